"""The order of a meter, the latents that it refuses, and its plan."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from alight.config import MeterLatentsConfig, ProbeConfig
from alight.evaluation import latent_meter, meter_plan
from alight.evaluation.latent_meter import FAMILIES, FIGURES_OF, Meter, Metered, Networks, measure
from alight.evaluation.meter_plan import plan
from alight.evaluation.meter_report import MEASURES, answer_of, order_of, table_text
from alight.evaluation.meter_subjects import Subject, normalised, open_subjects
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


def test_a_plan_leaves_out_the_most_expensive_but_not_what_decides():
    config = MeterLatentsConfig(draws=20, minutes=1e-9)
    meter = Meter(config, None, Networks(), CPU)
    found = plan(meter, subject(), 3)
    assert found.families == ["probe"]
    assert {"covariance", "other latents", "density"} <= set(found.left_out)
    assert "left out, to end within 1e-09 minutes" in str(found)
    whole = plan(Meter(config.model_copy(update={"minutes": 60.0}), None, Networks(), CPU), subject(), 3)
    assert not whole.left_out
    assert set(whole.families) == {"covariance", "other latents", "density", "probe"}


def test_the_plan_takes_no_covariance_that_the_meter_does_not_take(monkeypatch):
    widths = []

    def spectrum(vectors):
        widths.append(vectors.shape[1])
        return np.ones(vectors.shape[1])

    monkeypatch.setattr(meter_plan, "covariance_spectrum", spectrum)
    meter = Meter(MeterLatentsConfig(draws=20, density_runs=0, probe=ProbeConfig(steps=0)), None, Networks(), CPU)
    plan(meter, subject(count=79), 1)
    assert widths == [4]
    plan(meter, subject(count=80), 1)
    assert widths == [4, 4, 16]


def test_a_figure_that_cannot_be_there_keeps_another_in_the_plan():
    config = MeterLatentsConfig(draws=20, minutes=1e-9, rank_by="gram_agreement")
    found = plan(Meter(config, None, Networks(), CPU), subject(), 2)
    assert found.families == ["probe"]
    with pytest.raises(InputError, match="more --minutes"):
        order_of([metered("a", probe_loss=0.5), metered("b", decoder_drift=0.5)], "probe_loss")


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
    with pytest.raises(InputError, match="compared with itself"):
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
