"""`alight latents meter`: tokenizers side by side, those of a study against its samples, and mistakes."""

import json

import pytest
import torch
from scipy.stats import spearmanr

from alight.artifacts import write_manifest
from alight.config import ImagesConfig
from alight.outputs import writing_folder
from helpers.models import tiny_tokenizer, tiny_vit
from helpers.written import WEIGHTS, file_hash, write_latents

IMAGES = {"source": "digits", "size": 16}
QUICK = (
    *("--count", 100, "--draws", 20, "--probe.steps", 4, "--probe.hidden-size", 16, "--probe.num-layers", 1),
    *("--posterior-time", 0.05),
)


def write_tokenizer(folder, seed, size=16, **options):
    """A tokenizer artifact as training leaves it, but untrained."""
    vae = tiny_tokenizer(seed, **{"block_out_channels": (16, 16, 16)} | options)
    with writing_folder(folder) as staging:
        vae.save_pretrained(staging)
        images = ImagesConfig(**IMAGES | {"size": size}).model_dump(mode="json")
        write_manifest(staging, "tokenizer", {"images": images}, file_hash(staging / WEIGHTS))
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meter")
    tiny_vit(image_size=16, patch_size=4).save_pretrained(folder / "foundation")
    for seed, name in enumerate(("one", "two")):
        write_tokenizer(folder / name, seed)
    return folder


def test_tokenizers_side_by_side(alight, root, tmp_path):
    output = tmp_path / "meter"
    options = ("--images.source", "digits", "--foundation", root / "foundation", "--output", output, *QUICK)
    result = alight("latents", "meter", root / "one", root / "two", *options)
    assert result.returncode == 0, result.stderr
    assert "Plan for 2: about" in result.stderr
    assert result.stdout.splitlines()[0].split() == ["one", "two", "seconds"]
    assert "Which will be easier to generate?" in result.stdout
    assert f"Report: {output}/report.html" in result.stdout
    report = json.loads((output / "report.json").read_text())
    assert report["comparison"]["columns"] == ["one", "two"]
    names = {row[0]["name"] for row in report["comparison"]["rows"].values()}
    assert names == {
        *("probe_loss", "ambiguity_bound", "posterior_ambiguity", "density_cv", "density_gini", "density_entropy"),
        *("decoder_drift", "neighbour_accuracy", "gram_agreement", "midpoint_distance"),
    }
    for row in report["comparison"]["rows"].values():
        for figure in row:
            assert figure["interval"][0] <= figure["value"] <= figure["interval"][1], figure["name"]
            assert figure["conditions"]["images"] == "digits, train, 16 pixels"
    assert {report["rank"], report["rank_2"]} == {1, 2}
    assert report["probe_loss"] != report["probe_loss_2"]
    page = (output / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    again = alight("latents", "meter", root / "one", root / "two", *options, "--json")
    data = json.loads(again.stdout)
    assert data["figures"]["one"]["probe_loss"]["value"] == pytest.approx(report["probe_loss"])


def test_stored_latents_beside_a_tokenizer(alight, root, tmp_path):
    stored = write_latents(tmp_path / "latents", count=100, shape=(4, 4, 4))
    options = ("--latents", stored, "--images.source", "digits", "--output", tmp_path / "meter", *QUICK)
    result = alight("latents", "meter", root / "one", *options, "--density-runs", 0, "--json")
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)["figures"]
    assert {"decoder_drift", "midpoint_distance"} <= figures["one"].keys()
    assert not {"decoder_drift", "midpoint_distance"} & figures["latents"].keys()
    assert {"probe_loss", "neighbour_accuracy"} <= figures["latents"].keys()


def test_mistakes(refused, root, tmp_path):
    out = ("--output", tmp_path / "meter")
    assert "nothing to compare" in refused("latents", "meter", *out)
    assert "compared with itself" in refused("latents", "meter", root / "one", root / "one", *out)
    other = write_tokenizer(tmp_path / "other", 3, size=32)
    assert "different sizes in pixels" in refused("latents", "meter", root / "one", other, *out)
    few = ("--images.source", "digits", "--count", 3)
    assert "of 4 channels, and 3 images" in refused("latents", "meter", root / "one", *few, *out)
    both = ("--study", tmp_path, "--tokenizers", root / "one")
    assert "not both" in refused("latents", "meter", *both, *out)
    assert "holds no runs of a study" in refused("latents", "meter", "--study", tmp_path / "other", *out)
    assert "multiple of 4 * num_heads" in refused("latents", "meter", "--probe.num-heads", 3, *out)
    digits = ("--images.source", "digits", *out)
    grown = refused("latents", "meter", root / "one", *digits, "--images.size", 32)
    assert "trained on images of 16 pixels, and images.size is 32" in grown
    of_tokenizer = refused("latents", "meter", root / "one", "--foundation", root / "two", *digits)
    assert "two holds a tokenizer, not a foundation" in of_tokenizer
    without = refused("latents", "meter", root / "one", *digits, "--rank-by", "gram_agreement")
    assert "it needs a foundation model. Give one (--foundation)" in without
    study = ("--study", tmp_path, *out)
    assert "leave --images out" in refused("latents", "meter", *study, "--images.size", 32)
    assert "leave --rank-by out" in refused("latents", "meter", *study, "--rank-by", "density_cv")
    short = refused("latents", "meter", root / "one", *digits, *QUICK, "--minutes", 1e-7)
    assert "lower probe.steps and count" in short
    assert not (tmp_path / "meter").exists()


def test_a_probe_that_diverges_leaves_the_order_to_another_figure(alight, root, tmp_path):
    options = ("--images.source", "digits", "--output", tmp_path / "meter", *QUICK, "--probe.lr", 1e10)
    options = (*options, "--probe.steps", 30, "--density-runs", 0)
    result = alight("latents", "meter", root / "one", root / "two", *options, "--json")
    assert result.returncode == 0, result.stderr
    assert "Lower probe.lr, which is 1e+10" in result.stderr
    data = json.loads(result.stdout)
    assert data["by"] == "ambiguity_bound"
    assert "probe_loss" not in data["figures"]["one"]
    notes = json.loads((tmp_path / "meter" / "report.json").read_text())["notes"]
    assert any(
        "because not all have the figure probe_loss that was to decide. The probe div" in note for note in notes
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of three settings and two seeds, and a fourth of another grid, with generation as the test decides."""
    folder = tmp_path_factory.mktemp("study") / "ablation"
    accuracies = {("plain", 0): 0.5, ("wide", 0): 0.6, ("odd", 0): 0.7, ("plain", 1): 0.55, ("wide", 1): 0.5}
    accuracies |= {("odd", 1): 0.8, ("coarse", 0): 0.9}
    images = ImagesConfig(**IMAGES).model_dump(mode="json")
    for number, ((setting, seed), accuracy) in enumerate(accuracies.items()):
        run = folder / "runs" / f"{setting}-seed{seed}"
        options = {"block_out_channels": (16,) * 4} if setting == "coarse" else {}
        write_tokenizer(run / "tokenizer", number, latent_channels=8 if setting == "wide" else 4, **options)
        with writing_folder(run / "transformer") as staging:
            write_manifest(staging, "transformer", {"seed": seed, "flow": {}}, "x" * 64)
        for step in (5, 10):
            with writing_folder(run / "report" / f"{step:07d}") as staging:
                values = {"generated_label_accuracy": accuracy if step == 10 else 0.1}
                values["frechet_distance_observer"] = 1 - accuracy
                (staging / "report.json").write_text(json.dumps(values))
                write_manifest(staging, "report", {"images": images}, "r" * 64)
    (folder / "runs" / "unfinished-seed0").mkdir()
    return folder


def test_a_study_says_which_figures_predict(alight, study, tmp_path):
    output = tmp_path / "meter"
    options = ("--study", study, "--output", output, *QUICK, "--density-runs", 0)
    result = alight("latents", "meter", *options, "--json", timeout=600)
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    runs = data["runs"]
    assert [(run["setting"], run["seed"]) for run in runs[:3]] == [("odd", 0), ("plain", 0), ("wide", 0)]
    assert runs[0]["generation"]["generated_label_accuracy"] == 0.7  # after the last step
    found = {(each["figure"], each["target"], each["scope"], each["rank"]): each for each in data["correlations"]}
    for figure, sign in (("probe_loss", -1), ("neighbour_accuracy", 1)):
        values = [sign * run["figures"][figure] for run in runs]
        labels = [run["generation"]["generated_label_accuracy"] for run in runs]
        key = (figure, "generated_label_accuracy", "pooled", "spearman")
        assert found[key]["value"] == pytest.approx(spearmanr(values, labels).statistic)
        seeds = [spearmanr(values[part], labels[part]).statistic for part in (slice(0, 3), slice(3, 6))]
        within = found[(figure, "generated_label_accuracy", "within", "spearman")]
        assert within["value"] == pytest.approx(sum(seeds) / 2)
        assert within["low"] is None  # of two seeds
        distance = found[(figure, "frechet_distance_observer", "pooled", "spearman")]
        assert distance["value"] == pytest.approx(found[key]["value"])  # as the test has written them
    report = json.loads((output / "report.json").read_text())
    assert len(runs) == 6
    assert "another grid than 4 x 4, that of most settings: coarse, seed 0 (2 x 2)" in result.stderr
    assert any("coarse, seed 0 (2 x 2)" in note for note in report["notes"])
    assert "Label accuracy against probe loss" in [curve["title"] for curve in report["results"]]
    assert len(report["comparison"]["columns"]) == 4
    assert report["probe_loss_generated_label_accuracy_pooled_spearman"] == pytest.approx(
        found[("probe_loss", "generated_label_accuracy", "pooled", "spearman")]["value"]
    )


def test_a_study_of_two_settings_is_refused(refused, study, tmp_path):
    few = tmp_path / "few"
    (few / "runs").mkdir(parents=True)
    for name in ("plain-seed0", "wide-seed0"):
        (few / "runs" / name).symlink_to(study / "runs" / name)
    message = refused("latents", "meter", "--study", few, "--output", tmp_path / "meter")
    assert "finished runs of 2 settings" in message


def test_constant_latents_are_named(refused, tmp_path):
    torch.save(torch.ones(50, 4), tmp_path / "latents.pt")
    message = refused("latents", "meter", "--latents", tmp_path / "latents.pt", "--output", tmp_path / "meter")
    assert "Channel 0" in message
