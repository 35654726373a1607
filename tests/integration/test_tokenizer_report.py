"""`alight tokenizer evaluate`: one tokenizer or several, in one process or two, and mistakes on the way."""

import csv
import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file

from alight import VAVAE
from alight.artifacts import write_manifest
from alight.outputs import writing_folder
from alight.runtime.seeding import seeded_initialisation
from helpers import warm
from helpers.models import normalised, tiny_tokenizer, tiny_vit
from helpers.written import WEIGHTS

PHOTOGRAPHS = ["--images.source", "photographs", "--images.size", 128, "--batch-size", 8, "--linear-map-images", 40]


def write_tokenizer(folder, foundation=None, feature_dim=24, seed=0):
    """A tokenizer artifact as training leaves it, but untrained."""
    vae = normalised(
        tiny_tokenizer(seed, block_out_channels=(8, 8, 16), norm_num_groups=4, mid_block_attention=True), std=0.1
    )
    alignment = {"foundation": foundation, "foundation_input": "own", "cosine_margin": 0.5, "distance_margin": 0.25}
    facts = {"foundation": foundation} if foundation else {}
    with writing_folder(folder) as staging:
        vae.save_pretrained(staging)
        if foundation:
            weight = torch.randn(feature_dim, 4, 1, 1, generator=torch.Generator().manual_seed(seed))
            save_file({"weight": weight}, staging / "projection.safetensors")
        write_manifest(staging, "tokenizer", {"alignment": alignment}, f"{seed}" * 64, facts=facts)
    (folder / "training").mkdir()
    losses = {"l1": 0.3, **({"mcos": 0.2, "mdms": 0.1} if foundation else {})}
    lines = [json.dumps({"step": step, **losses}) + "\n" for step in (10, 20)]
    (folder / "training" / "log.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    tiny_vit(hidden_size=24, image_size=64).save_pretrained(folder / "foundation")
    write_tokenizer(folder / "plain", seed=1)
    write_tokenizer(folder / "aligned", str(folder / "foundation"), seed=2)
    return folder


@pytest.fixture(scope="module")
def comparison(alight, root):
    """One report on two tokenizers, looked at by several tests."""
    options = ["--tokenizer", root / "plain", "--compare", root / "aligned", *PHOTOGRAPHS]
    result = alight("tokenizer", "evaluate", *options, "--output", root / "comparison")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"Report: {root / 'comparison'}/report.html"
    return root / "comparison"


def read(folder):
    return json.loads((folder / "report.json").read_text())


def table(folder):
    with (folder / "images.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_plain_and_aligned_are_measured_alike(comparison):
    report = read(comparison)
    assert report["comparison"]["columns"] == ["plain", "aligned"]
    rows = report["comparison"]["rows"].values()
    measured = {next(filter(None, row))["name"]: [figure is not None for figure in row] for row in rows}
    assert measured == {
        "reconstruction_psnr": [True, True],
        "reconstruction_ssim": [True, True],
        "latent_mdms": [True, True],
        "linear_cosine": [True, True],
        "alignment_cosine": [False, True],
        "alignment_mcos": [False, True],
        "alignment_mdms": [False, True],
    }
    values = [figure["value"] for figure in report["comparison"]["rows"]["Reconstruction PSNR"]]
    assert values == [report["reconstruction_psnr"], report["reconstruction_psnr_2"]]
    for row in rows:
        for figure in filter(None, row):
            conditions = figure["conditions"]
            assert {"images", "split", "crop", "latent", "seed", "uint8 rule", "tokenizer"} <= set(conditions)
            assert conditions["latent"] == "posterior sample"
    losses = {curve["title"]: list(curve["series"]) for curve in report["curves"]}
    assert losses["Tokenizers: marginal cosine loss"] == ["plain", "aligned"]
    assert list(report["distributions"][0]["series"]) == ["plain", "aligned"]
    assert "FID" not in json.dumps(report["figures"])
    assert report["answer"]["answer"] == "plain: not yet; aligned: not yet."


def test_the_table_has_every_image_and_the_figures_are_its_means(comparison):
    report, rows = read(comparison), table(comparison)
    columns = ["name", "tokenizer", "psnr", "ssim", "latent_mdms", "linear_cosine"]
    assert list(rows[0]) == [*columns, "alignment_cosine", "alignment_mcos", "alignment_mdms"]
    by_name = {
        figure["name"]: [None if each is None else each["value"] for each in row]
        for row in report["comparison"]["rows"].values()
        for figure in [next(filter(None, row))]
    }
    for number, tokenizer in enumerate(("plain", "aligned")):
        own = [row for row in rows if row["tokenizer"] == tokenizer]
        assert len({row["name"] for row in own}) == len(own) == report["figures"][0]["conditions"]["images"]
        for name in ("psnr", "ssim"):
            mean = sum(float(row[name]) for row in own) / len(own)
            assert mean == pytest.approx(by_name[f"reconstruction_{name}"][number], rel=1e-12)
        mean = sum(float(row["linear_cosine"]) for row in own) / len(own)
        assert mean == pytest.approx(by_name["linear_cosine"][number], rel=1e-12)


def test_two_processes_give_the_same_report(comparison, root):
    options = ["--tokenizer", root / "plain", "--compare", root / "aligned", *PHOTOGRAPHS, "--device", "cpu"]
    result = warm.run_together(["tokenizer", "evaluate", *map(str, options), "--output", str(root / "two")], 2)
    assert result.returncode == 0, result.stderr
    assert (root / "two" / "images.csv").read_bytes() == (comparison / "images.csv").read_bytes()
    one, two = read(comparison), read(root / "two")
    for part in ("figures", "comparison", "answer", "distributions"):
        assert one[part] == two[part], part


def test_a_plain_diffusers_folder_on_a_folder_of_images(alight, root, image_folder, tmp_path):
    """Nothing of it was made by this package, and its images have many sizes."""
    with seeded_initialisation(5):
        AutoencoderKL(block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2,
                      up_block_types=("UpDecoderBlock2D",) * 2).save_pretrained(tmp_path / "sd" / "vae")  # fmt: skip
    options = ["--images.source", image_folder, "--images.size", 32, "--split", "all", "--posterior", "mode"]
    options += ["--foundation", root / "foundation", "--output", tmp_path / "report"]
    result = alight("tokenizer", "evaluate", "--tokenizer", tmp_path / "sd", *options)
    assert result.returncode == 0, result.stderr
    report, rows = read(tmp_path / "report"), table(tmp_path / "report")
    assert report["comparison"] is None
    assert report["reconstruction_psnr"] > 0
    assert 0 < report["linear_cosine"] <= 1
    assert "alignment_cosine" not in report
    assert report["figures"][0]["conditions"]["latent"] == "posterior mode"
    assert len(rows) == 24
    assert "cats/00.png" in {row["name"] for row in rows}
    assert any("fitted to some of the images" in note for note in report["notes"])
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<img") == 3  # the worst, some between, the best
    assert "Is this tokenizer good enough for these images?" in page


def test_a_foundation_model_that_is_gone_costs_only_its_own_figures(alight, refused, root, tmp_path):
    folder = write_tokenizer(tmp_path / "aligned", str(tmp_path / "gone"))
    options = ["--tokenizer", folder, *PHOTOGRAPHS, "--output", tmp_path / "report"]
    result = alight("tokenizer", "evaluate", *options)
    assert result.returncode == 0, result.stderr
    report = read(tmp_path / "report")
    assert "alignment_cosine" not in report
    assert any("gone" in note for note in report["notes"])
    assert "gone" in refused("tokenizer", "evaluate", *options[:-1], tmp_path / "other", "--foundation", "gone")
    assert not (tmp_path / "other").exists()


def test_mistakes_are_explained(refused, root, image_folder, tmp_path):
    def message(*options, tokenizer=root / "aligned", images=PHOTOGRAPHS):
        output = tmp_path / "report"
        text = refused("tokenizer", "evaluate", "--tokenizer", tokenizer, *images, *options, "--output", output)
        assert not output.exists()
        return text

    (tmp_path / "empty").mkdir()
    assert "holds no images" in message(images=["--images.source", tmp_path / "empty", "--split", "all"])
    small = ["--images.source", image_folder, "--images.size", 256, "--split", "all", "--images.upscale", False]
    assert "smaller than 256 pixels" in message(images=small)
    assert "raise held_out_fraction" in message(images=["--images.source", image_folder, "--images.size", 32])
    assert "multiples of 4" in message(images=["--images.source", "photographs", "--images.size", 66])
    assert "compared with itself" in message("--compare", root / "aligned")
    assert "LPIPS needs both" in message("--vgg16-weights", tmp_path / "vgg.pth")
    nothing = ["--vgg16-weights", tmp_path / "vgg.pth", "--lpips-weights", tmp_path / "lpips.pth"]
    assert "vgg16-397923af.pth" in message(*nothing)
    assert str(tmp_path / "inception.pth") in message("--inception-weights", tmp_path / "inception.pth")
    assert "There is no tokenizer folder" in message(tokenizer=tmp_path / "nowhere")
    assert "is not a VAVAE folder" in message(tokenizer=root / "foundation")

    other = write_tokenizer(tmp_path / "other", str(root / "foundation"), feature_dim=25)
    assert "features of 25" in message(tokenizer=other)
    weights = tmp_path / "cut" / WEIGHTS
    shutil.copytree(root / "plain", weights.parent)
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "is not what was written" in message(tokenizer=weights.parent)
    (tmp_path / "other" / "projection.safetensors").write_bytes(b"cut")
    assert "projection.safetensors is not what was written" in message(tokenizer=other)


def test_a_flawless_reconstruction_is_told_of(alight, root, tmp_path):
    """Black images through a tokenizer that makes everything black: PSNR is infinite, and JSON says null."""
    black = tmp_path / "black"
    shutil.copytree(root / "plain", black)
    vae = VAVAE.from_pretrained(black)
    with torch.no_grad():
        vae.decoder.conv_out.weight.zero_()
        vae.decoder.conv_out.bias.fill_(-1)
    with writing_folder(black) as staging:
        vae.save_pretrained(staging)
        write_manifest(staging, "tokenizer", {}, "b" * 64)
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / f"{number}.png")
    options = ["--images.source", tmp_path / "images", "--images.size", 32, "--split", "all"]
    result = alight("tokenizer", "evaluate", "--tokenizer", black, *options, "--output", tmp_path / "report")
    assert result.returncode == 0, result.stderr
    report = read(tmp_path / "report")
    assert report["reconstruction_psnr"] is None
    assert report["reconstruction_ssim"] == pytest.approx(1)
    assert any("reproduces 3 images exactly" in note for note in report["notes"])


def test_weights_in_bf16_are_measured_beside_those_in_fp32(alight, root, tmp_path):
    options = ["--tokenizer", root / "plain", "--also-in-bf16", *PHOTOGRAPHS]
    result = alight("tokenizer", "evaluate", *options, "--output", tmp_path / "report")
    assert result.returncode == 0, result.stderr
    assert "kept in float32" not in result.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    (note,) = [note for note in report["notes"] if note.startswith("Weights in bf16 change plain: PSNR by ")]
    with open(tmp_path / "report" / "images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    psnr = {
        name: [float(row["psnr"]) for row in rows if row["tokenizer"] == name] for name in ("plain", "plain in bf16")
    }
    changes = [narrow - full for full, narrow in zip(*psnr.values(), strict=True)]
    assert 0 < max(map(abs, changes)) < 0.2  # eight bits, against the error of a tokenizer
    assert f"by {sum(changes) / len(changes):+.4f} dB in the mean" in note
