"""The order of a meter, the latents that it refuses, and its plan."""

import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from alight.config import ImagesConfig, MeterLatentsConfig, ProbeConfig
from alight.evaluation import latent_meter, meter_plan
from alight.evaluation.latent_meter import FAMILIES, FIGURES_OF, Meter, Metered, Networks, measure
from alight.evaluation.meter_decider import require_measurable, require_options
from alight.evaluation.meter_plan import plan
from alight.evaluation.meter_report import MEASURES, absences, answer_of, notes_of, order_of, replaced_by, table_text
from alight.evaluation.meter_subjects import Subject, normalised, open_subjects
from alight.evaluation.study_meter import of_one_grid
from alight.evaluation.study_runs import StudyRun
from alight.evaluation.velocity_probe import HeldOutErrors
from alight.metrics.image_covariance import ImageCovariance
from alight.metrics.resampling import Resampled
from alight.options import MeterFigure, names_of
from alight.runtime.errors import InputError

PUBLISHED = Path(os.environ.get("ALIGHT_LATENT_SAMPLES", "absent"))  # latents of the published tokenizers
CPU = torch.device("cpu")


def subject(name="a", count=200, shape=(4, 2, 2), seed=0):
    latents = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    return normalised(name, Path(name), name * 64, latents, None, kind="latents")


def metered(name, **values):
    """Figures with a standard error of 0.01, independent of those of others."""
    generator = np.random.default_rng(sum(map(ord, name)))
    figures = {key: Resampled(value, value + 0.01 * generator.standard_normal(2_000)) for key, value in values.items()}
    return Metered(subject(name), figures)


def test_the_vocabulary_is_that_of_the_tables():
    figures = [figure for figures in FIGURES_OF.values() for figure in figures]
    assert sorted(figures) == sorted(MEASURES) == sorted(names_of(MeterFigure))
    assert FIGURES_OF.keys() == FAMILIES.keys()


def test_the_order_is_by_the_figure_that_decides_and_its_direction():
    measured = [
        metered("a", probe_loss=0.50, gram_agreement=0.2, density_cv=0.3),
        metered("b", probe_loss=0.40, gram_agreement=0.9, density_cv=0.1),
        metered("c", probe_loss=0.41, gram_agreement=0.1, density_cv=0.2),
    ]
    order = order_of(measured, "probe_loss")
    assert order.places == [1, 2, 0]
    assert order.sure[0] == pytest.approx(0.76, abs=0.03)  # of 0.01 apart, with an error of 0.014
    assert order.sure[1] > 0.999
    assert order.mean_ranks == pytest.approx([(3 + 2 + 3) / 3, 1, (2 + 3 + 2) / 3])
    assert order_of(measured, "gram_agreement").places == [1, 0, 2]
    reasons = answer_of(measured, order).reasons
    assert "b before c: probe loss 0.400 and 0.410" in reasons[0]
    assert reasons[0].endswith("it is open.")
    assert "Of 3 kinds of figures, 2 give this order" in reasons[2]
    rows = [line.split() for line in table_text(measured, order, dict.fromkeys(FIGURES_OF, 1.0)).splitlines()]
    assert rows[1][:5] == ["Probe", "loss", "0.500", "±", "0.020"]
    assert ["rank", "by", "probe", "loss", "3", "1", "2"] in rows


def test_a_decoder_that_amplifies_errors_is_warned_of():
    measured = [metered("a", probe_loss=0.2, decoder_drift=1.6), metered("b", probe_loss=0.5, decoder_drift=0.2)]
    advice = answer_of(measured, order_of(measured, "probe_loss"), step=0.5).advice
    assert advice[0].startswith("a: its decoder makes more of errors in the latents than they are (drift 1.60")
    assert len(advice) == 2


def test_a_figure_that_one_lacks_does_not_decide():
    measured = [metered("a", probe_loss=0.5, ambiguity_bound=0.9), metered("b", ambiguity_bound=0.8)]
    order = order_of(measured, "probe_loss")
    assert (order.figure, order.places) == ("ambiguity_bound", [1, 0])


def test_the_figures_of_white_latents_are_those_of_no_structure():
    """Bounds of 1, less what 200 x 4 numbers lose by chance, and no figure of a decoder."""
    config = MeterLatentsConfig(probe=ProbeConfig(steps=0), density_runs=0, draws=50, posterior_time=0.1)
    meter = Meter(config, None, Networks(), CPU)
    found = measure(meter, subject())
    assert found.figures["ambiguity_bound"].value == pytest.approx(1, abs=0.01)
    assert found.figures["whole_ambiguity_bound"].value == pytest.approx(1, abs=0.03)
    assert found.figures["posterior_ambiguity"].value == pytest.approx(1, abs=0.05)
    assert set(found.absent) == {"neighbours", "Gram agreement", "drift", "midpoints", "density", "probe"}
    assert "no decoder" in found.absent["drift"]


def test_whole_latents_need_many_images():
    meter = Meter(MeterLatentsConfig(draws=20), None, Networks(), CPU)
    assert "whole_ambiguity_bound" not in measure(meter, subject(count=79), ["covariance"]).figures
    assert "whole_ambiguity_bound" in measure(meter, subject(count=80), ["covariance"]).figures


def planned(monkeypatch, limit, count=1, **options):
    """The plan for families of 1, 5, 8 and 50 seconds, to end within so many seconds."""
    costs = {"covariance": 1.0, "drift": 5.0, "density": 8.0, "probe": 50.0}
    monkeypatch.setattr(meter_plan, "estimates", lambda meter, subject: iter(costs.items()))
    config = MeterLatentsConfig(minutes=limit / 60, **options)
    return plan(Meter(config, None, Networks(), CPU), subject(), count)


def test_a_plan_leaves_out_the_most_expensive_but_not_what_decides(monkeypatch):
    found = planned(monkeypatch, 60)
    assert (found.families, found.left_out) == (["covariance", "drift", "probe"], ["density"])
    assert "left out, to end within 1 minutes: density" in str(found)
    assert planned(monkeypatch, 64).left_out == []
    assert planned(monkeypatch, 20, rank_by="density_cv").families == ["covariance", "drift", "density"]
    assert planned(monkeypatch, 20, study=Path("study")).left_out == ["probe"]


def test_a_figure_that_decides_and_does_not_fit_is_refused(monkeypatch):
    """Leaving out all others would not end within the time, either."""
    with pytest.raises(
        InputError, match=r"'probe', which decides .* Give more --minutes, or lower probe.steps and count"
    ):
        planned(monkeypatch, 49)
    with pytest.raises(InputError, match="about 1 min 40 s for 2 tokenizers, and minutes is 1"):
        planned(monkeypatch, 60, count=2)
    with pytest.raises(InputError, match="the cheapest, 'covariance'"):
        planned(monkeypatch, 0.5, study=Path("study"))


def test_the_estimates_are_those_of_the_figures_that_there_can_be():
    found = plan(Meter(MeterLatentsConfig(draws=20), None, Networks(), CPU), subject(), 3)
    assert not found.left_out
    assert set(found.families) == {"covariance", "other latents", "density", "probe"}


def test_the_plan_takes_no_covariance_that_the_meter_does_not_take(monkeypatch):
    widths = []

    class Recorded(ImageCovariance):
        def spectrum(self, chosen):
            widths.append(self.latents.shape[1])
            return super().spectrum(chosen)

    monkeypatch.setattr(meter_plan, "ImageCovariance", Recorded)
    meter = Meter(MeterLatentsConfig(draws=20, density_runs=0, probe=ProbeConfig(steps=0)), None, Networks(), CPU)
    plan(meter, subject(count=79), 1)
    assert widths == [4]
    plan(meter, subject(count=80), 1)
    assert widths == [4, 4, 16]


def test_a_figure_that_cannot_be_there_keeps_another_in_the_plan(monkeypatch):
    assert planned(monkeypatch, 52, rank_by="gram_agreement").families == ["covariance", "probe"]
    with pytest.raises(InputError, match="more --minutes"):
        order_of([metered("a", probe_loss=0.5), metered("b", decoder_drift=0.5)], "probe_loss")


def test_a_probe_that_diverges_has_no_figure():
    """Another figure then decides, and the reason is told wherever the order is."""
    config = MeterLatentsConfig(probe=ProbeConfig(steps=30, hidden_size=16, num_layers=1, lr=1e10), draws=20)
    meter = Meter(config, None, Networks(), CPU)
    measured = [measure(meter, subject(name, seed=seed), ["covariance", "probe"]) for seed, name in enumerate("ab")]
    assert "probe_loss" not in measured[0].figures
    assert re.search(r"diverged.* Lower probe.lr, which is 1e\+10", measured[0].absent["probe"])
    order = order_of(measured, config.rank_by)
    assert order.figure == "ambiguity_bound"
    replaced = replaced_by(measured, order, config.rank_by)
    assert "not all have the figure probe_loss" in replaced
    assert "Lower probe.lr" in replaced
    assert any("Not measured: probe loss" in note for note in notes_of(measured, order, config))


@pytest.mark.parametrize(
    ("probe", "there"), [(1.9, True), (2.1, False), (math.nan, False), (math.inf, False), (0.5, True)]
)
def test_the_error_of_a_probe_is_believed_up_to_twice_that_of_doing_nothing(monkeypatch, probe, there):
    monkeypatch.setattr(latent_meter, "train_probe", lambda *_: None)
    errors = HeldOutErrors(np.full(40, probe), np.ones(40))
    monkeypatch.setattr(latent_meter, "held_out_errors", lambda *_: errors)
    found = measure(Meter(MeterLatentsConfig(draws=20), None, Networks(), CPU), subject(), ["probe"])
    assert ("probe_loss" in found.figures) == there
    assert ("probe" in found.absent) != there


@pytest.mark.parametrize("bad", [Resampled(math.nan, np.zeros(9)), Resampled(1.0, np.asarray([1.0, math.inf]))])
def test_figures_that_are_not_finite_are_left_out_alone(monkeypatch, bad):
    good = Resampled(0.5, np.full(9, 0.5))
    family = {"density": lambda *_: {"density_cv": good, "density_gini": bad}}
    monkeypatch.setattr(latent_meter, "FAMILIES", family)
    found = measure(Meter(MeterLatentsConfig(), None, Networks(), CPU), subject(), ["density"])
    assert list(found.figures) == ["density_cv"]
    assert absences([found]) == ["Not measured: density Gini. On these latents it is not a finite number."]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank_by": "gram_agreement"}, "by gram_agreement: .*--foundation"),
        ({"rank_by": "decoder_drift", "latents": ["a"]}, "no decoder .*Leave --latents out"),
        ({"rank_by": "density_cv", "density_runs": 0}, "--density-runs 1 or more"),
        ({"rank_by": "density_gini", "count": 90}, "more than 90 images.*--count"),
    ],
)
def test_a_deciding_figure_without_its_option_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        require_options(MeterLatentsConfig(**options))


@pytest.mark.parametrize(
    ("figure", "count", "message"),
    [
        ("whole_ambiguity_bound", 79, "a has latents of 16 numbers, which need 80 images, and there are 79"),
        ("density_cv", 90, "a has 90"),
        ("neighbour_accuracy", 200, "images of a have one class, or none"),
    ],
)
def test_a_deciding_figure_that_these_latents_cannot_have_is_refused(figure, count, message):
    config = MeterLatentsConfig(rank_by=figure)
    with pytest.raises(InputError, match=message):
        require_measurable(config, [subject(count=count)])
    require_measurable(MeterLatentsConfig(), [subject(count=count)])
    require_measurable(MeterLatentsConfig(rank_by="whole_ambiguity_bound"), [subject(count=80)])


def test_runs_on_another_grid_than_most_settings_are_left_out():
    def run(setting, seed):
        return StudyRun(setting, seed, Path(setting), setting, ImagesConfig(), {}, {})

    runs = [run("odd", 0), *(run(setting, seed) for setting in "abc" for seed in (0, 1))]
    subjects = [subject(f"{each.setting}, seed {each.seed}", shape=(4, 2, 2)) for each in runs]
    assert of_one_grid(runs, subjects) == (runs, subjects, [])
    subjects[0] = subject("odd, seed 0", shape=(4, 1, 1))
    kept, whose, notes = of_one_grid(runs, subjects)
    assert kept == runs[1:]
    assert [each.name for each in whose] == [each.name for each in subjects[1:]]
    assert "another grid than 2 x 2, that of most settings: odd, seed 0 (1 x 1)." in notes[0]
    with pytest.raises(InputError, match="fewer than 3 settings lie on one grid"):
        of_one_grid(runs[:5], subjects[:5])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (torch.randn(3, 4, 2, 2), "latents of 4 channels, and 3 images"),
        (torch.full((9, 4, 2, 2), torch.nan), "NaN or infinity"),
        (torch.cat([torch.randn(9, 3, 2, 2), torch.ones(9, 1, 2, 2)], 1), "Channel 3 of the latents"),
    ],
)
def test_latents_that_cannot_be_normalised_are_refused(raw, message):
    with pytest.raises(InputError, match=message):
        normalised("a", Path("a"), "", raw, None)


def write(path, values):
    torch.save(values, path)
    return path


def opened(*paths):
    return open_subjects(MeterLatentsConfig(latents=paths), CPU)[0]


def test_files_of_vectors_and_of_latents(tmp_path):
    vectors = 3 + 2 * torch.randn(50, 4)
    (found,) = opened(write(tmp_path / "vectors.pt", vectors))
    assert isinstance(found, Subject)
    assert (found.kind, found.shape) == ("vectors", (4, 1, 1))
    assert found.latents.mean((0, 2, 3)) == pytest.approx(torch.zeros(4), abs=1e-5)
    assert found.latents.square().mean((0, 2, 3)) == pytest.approx(torch.ones(4), abs=1e-5)
    (grid,) = opened(write(tmp_path / "latents.pt", torch.randn(50, 4, 2, 3)))
    assert (grid.kind, grid.shape) == ("latents", (4, 2, 3))


def test_latents_that_do_not_compare_are_refused(tmp_path):
    vectors = write(tmp_path / "vectors.pt", torch.randn(50, 4))
    grid = write(tmp_path / "latents.pt", torch.randn(50, 4, 2, 2))
    with pytest.raises(InputError, match="different grids"):
        opened(vectors, grid)
    with pytest.raises(InputError, match="There are no latents .*nosuch"):
        opened(tmp_path / "nosuch")
    with pytest.raises(InputError, match="compared with itself; give it once"):
        opened(vectors, vectors)
    copy = tmp_path / "copy.pt"
    copy.write_bytes(vectors.read_bytes())
    with pytest.raises(InputError, match="are the same"):
        opened(vectors, copy)
    with pytest.raises(InputError, match="holds no latents"):
        opened(write(tmp_path / "other.pt", {"a": torch.zeros(1)}))
    with pytest.raises(InputError, match="nothing to compare"):
        opened()


@pytest.fixture(scope="module")
def published():
    """The plain and the aligned f16d32, measured on 1,500 of their vectors, with half of the usual budget."""
    if not PUBLISHED.is_dir():
        pytest.skip(f"no published latent vectors at {PUBLISHED} (set ALIGHT_LATENT_SAMPLES)")
    names = ("latents_cache_f16d32.pt", "latents_cache_f16d32_vfdinov2.pt")
    probe = ProbeConfig(steps=300, lr=4e-3)
    config = MeterLatentsConfig(latents=[PUBLISHED / name for name in names], count=1_500, probe=probe)
    subjects, _ = open_subjects(config, CPU)
    meter = Meter(config, None, Networks(), CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_meter, "DENSITY_VECTORS", 600)
        return [measure(meter, each, ["covariance", "density", "probe"]) for each in subjects]


def test_the_aligned_tokenizer_is_the_easier_one(published):
    """Image generators are trained on aligned latents faster (paper, table 2), and the default figure says so."""
    order = order_of(published, MeterLatentsConfig().rank_by)
    assert order.figure == "probe_loss"
    assert order.places == [1, 0]
    assert order.sure[0] > 0.99
    assert order_of(published, "density_cv").places == [1, 0]
    assert order_of(published, "density_cv").sure[0] > 0.99


def test_the_covariance_alone_would_say_otherwise(published):
    """A finding, not a wish: aligned channels are less correlated, and what makes them easier is not linear."""
    assert order_of(published, "ambiguity_bound").places == [0, 1]
