"""A frozen encoder through all stages: the command line from digits to a report, exact resume, going on, export."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from alight import LightningDiTPipeline, RepresentationAutoencoder
from alight.artifacts import read_artifact
from alight.config import (
    ConvertConfig,
    EvaluateTokenizerConfig,
    ExportConfig,
    ExtractLatentsConfig,
    TrainTokenizerConfig,
)
from alight.data.latents import LatentDataset
from alight.data.loading import open_dataset
from alight.doctor.round_trip import round_trip
from alight.interop.tokenizer_sources import open_tokenizer
from alight.runtime.errors import InputError
from alight.runtime.pixels import unit_range
from alight.sharing import export
from alight.stages import convert, evaluate_tokenizer, extract_latents, train_tokenizer
from helpers.models import tiny_vit
from helpers.runs import log_of
from helpers.tiny_quickstart import TINY
from helpers.written import WEIGHTS

FROZEN = {"patch_size": 8, "hidden_size": 16, "num_layers": 1, "num_heads": 2}
ARGUMENTS = [option for options in TINY.values() for option in options]


@pytest.fixture(scope="module")
def finished(alight, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen") / "run"
    arguments = [*ARGUMENTS, "--tokenizer.frozen-encoder.hidden-size", "16", "--output", folder]
    result = alight("quickstart", "--config", "digits/frozen_encoder", *arguments)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    tiny_vit().save_pretrained(folder)
    normalisation = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(normalisation))
    return folder


@pytest.fixture
def configure(encoder, tmp_path):
    def build(output="tokenizer", **options):
        training = {"steps": 4, "global_batch_size": 8, "log_every": 1, "ema_decay": 0.9, "checkpoint_every": 1}
        values = {
            "output": tmp_path / output,
            "images": {"source": "digits", "size": 32},
            "device": "cpu",
            "frozen_encoder": FROZEN | {"foundation": str(encoder)},
            "alignment": {"weight": 0},
            "reconstruction": {"perceptual_weight": 0, "adversarial_weight": 0},
            "regularisation": {"noise": 0.5},
            "optimizer": {"lr": 1e-3, "betas": (0.5, 0.9), "max_grad_norm": None},
            "preview_images": 0,
            "training": training | {"keep_checkpoints": 9, "micro_batch_size": 4},
        }
        return TrainTokenizerConfig.model_validate(values | options)

    return build


def test_the_whole_arrow_from_the_command_line(finished):
    vae = open_tokenizer(finished / "tokenizer").vae
    assert isinstance(vae, RepresentationAutoencoder)
    index = json.loads((finished / "latents" / "index.json").read_text())
    assert index["shape"] == [64, 2, 2]
    mean, std = vae.latents_statistics
    assert vae.normalises_positions
    assert (
        (index["statistics"]["mean"], index["statistics"]["std"])
        == (mean.tolist(), std.tolist())
        == ([0] * 64, [1] * 64)
    )
    latents = LatentDataset(finished / "latents").gather(np.arange(1500)).latents  # 1,500 of them: all were measured
    torch.testing.assert_close(latents.mean(0), torch.zeros(64, 2, 2), rtol=0, atol=1e-3)
    torch.testing.assert_close(latents.std(0), torch.ones(64, 2, 2), rtol=0, atol=2e-2)
    report = json.loads((finished / "report" / "report.json").read_text())
    assert isinstance(report["reconstruction_psnr"], float)
    facts = read_artifact(finished / "tokenizer", "tokenizer")
    assert facts.facts["frozen_encoder"] == str(finished / "foundation")
    assert facts.inputs["foundation"] == read_artifact(finished / "foundation", "foundation").hash


def test_the_pipeline_opens_without_the_encoders_own_folder(finished, tmp_path):
    shutil.copytree(finished / "pipeline", tmp_path / "elsewhere")
    pipeline = LightningDiTPipeline.from_pretrained(tmp_path / "elsewhere")
    assert isinstance(pipeline.tokenizer, RepresentationAutoencoder)
    call = {"num_inference_steps": 2, "seeds": [0, 1], "output_type": "uint8"}
    images = pipeline(class_labels=[3, 7], **call).images
    assert tuple(images.shape) == (2, 16, 16, 3)
    joined = LightningDiTPipeline.from_artifacts(finished / "transformer", finished / "tokenizer")
    assert (images == joined(class_labels=[3, 7], **call).images).all()


def test_it_is_exported_with_a_card_that_says_what_opens_it(finished, tmp_path):
    export.run(ExportConfig(pipeline=finished / "pipeline", output=tmp_path / "whole"))
    assert "from alight import RepresentationAutoencoder" in (tmp_path / "whole" / "README.md").read_text()
    LightningDiTPipeline.from_pretrained(tmp_path / "whole")
    export.run(ExportConfig(tokenizer=finished / "tokenizer", output=tmp_path / "alone"))
    card = (tmp_path / "alone" / "README.md").read_text()
    assert "representation autoencoder" in card
    assert "AutoencoderKL" not in card
    assert (tmp_path / "alone" / "reconstructions.png").is_file()
    assert open_tokenizer(tmp_path / "alone").artifact.hash == read_artifact(finished / "tokenizer", "tokenizer").hash


def test_the_doctor_looks_at_it(finished):
    areas = [finding.subject for finding in round_trip(finished / "tokenizer", "digits", 2, "cpu")]
    assert areas == ["reconstruction", "latents"]


def test_resuming_is_exact(configure, encoder):
    whole, parts = configure("whole"), configure("parts")
    train_tokenizer.run(whole)
    train_tokenizer.run(parts)
    for path in (*parts.output.glob("*.json"), *parts.output.glob("*.safetensors")):
        path.unlink()
    for path in (parts.output / "training").glob("step-*.pt"):
        if path.name != "step-00000002.pt":
            path.unlink()
    train_tokenizer.run(parts)
    for name in (WEIGHTS, "config.json"):
        assert (whole.output / name).read_bytes() == (parts.output / name).read_bytes(), name
    weights, own = load_file(whole.output / WEIGHTS), load_file(encoder / "model.safetensors")
    assert torch.equal(
        weights["encoder.backbone.embeddings.position_embeddings"], own["embeddings.position_embeddings"]
    )
    assert "kl" not in log_of(whole.output)[-1]


@pytest.mark.parametrize("normalise", ["position", "channel"])
def test_latents_of_the_training_images_have_mean_zero_and_size_one(normalise, configure, encoder):
    config = configure(frozen_encoder=FROZEN | {"foundation": str(encoder), "normalise": normalise})
    vae = open_tokenizer(train_tokenizer.run(config).path).vae
    dataset = open_dataset(config.images, "train", augment=False)
    images = unit_range(torch.stack([dataset[index].image for index in range(len(dataset))]))
    latents, dims = vae.encode_latents(images), (0,) if normalise == "position" else (0, 2, 3)
    assert vae.normalises_positions == (normalise == "position")
    assert latents.mean(dims).abs().max() < 1e-3
    assert (latents.std(dims) - 1).abs().max() < 2e-2
    plain = vae.encode(0.5 * images[:4] + 0.5).latent  # as diffusers calls it
    torch.testing.assert_close(plain, latents[:4], rtol=1e-3, atol=1e-3)


def test_going_on_keeps_the_encoder(configure):
    first = configure("first")
    before = train_tokenizer.run(first)
    fixed = {"init_from": str(first.output), "frozen_encoder": {}, "regularisation": {}}
    after = train_tokenizer.run(configure("on", **fixed))
    tuned = train_tokenizer.run(configure("decoder", train="decoder", **fixed))
    assert after.facts["same_latents_as"] == tuned.facts["same_latents_as"] == [before.hash]
    assert before.facts["frozen_encoder"] == after.facts["frozen_encoder"] == tuned.facts["frozen_encoder"]
    one, two = load_file(before.path / WEIGHTS), load_file(after.path / WEIGHTS)
    for name in one:
        kept = name.startswith("encoder") or name.startswith("_latents")
        assert torch.equal(one[name], two[name]) == kept, name
    for options, message in (
        ({"alignment": {"weight": 0.1, "foundation": "x"}}, "no loss can change"),
        ({"images": {"source": "digits", "size": 16}}, "made for images of 32 pixels alone"),
        ({"training": {"steps": 1, "activation_checkpointing": True}}, "no activation_checkpointing"),
    ):
        with pytest.raises(InputError, match=message):
            train_tokenizer.run(configure("refused", **fixed | options))


def test_moments_of_features_are_refused(finished, tmp_path):
    config = ExtractLatentsConfig(
        tokenizer=finished / "tokenizer",
        images={"source": "digits", "size": 16},
        posterior="moments",
        output=tmp_path / "latents",
    )
    with pytest.raises(InputError, match="gives latents, not moments"):
        extract_latents.run(config)


def test_images_of_another_size_are_refused_by_the_option(finished, tmp_path):
    images = {"source": "digits", "size": 32}
    tokenizer = finished / "tokenizer"
    with pytest.raises(
        InputError, match="images.size is 32, but .* for images of 16 pixels alone. Give --images.size 16"
    ):
        extract_latents.run(ExtractLatentsConfig(tokenizer=tokenizer, images=images, output=tmp_path / "latents"))
    with pytest.raises(InputError, match="Give --images.size 16"):
        evaluate_tokenizer.run(EvaluateTokenizerConfig(tokenizer=tokenizer, images=images, output=tmp_path / "report"))


def test_a_published_folder_becomes_an_artifact_and_no_published_vae(finished, tmp_path):
    plain = open_tokenizer(finished / "tokenizer").vae
    plain.save_pretrained(tmp_path / "plain")
    artifact = convert.run(ConvertConfig(kind="tokenizer", source=tmp_path / "plain", output=tmp_path / "artifact"))
    assert artifact.hash == read_artifact(finished / "tokenizer", "tokenizer").hash
    with pytest.raises(InputError, match="frozen encoder, for which there is no published layout"):
        convert.run(
            ConvertConfig(kind="tokenizer", source=finished / "tokenizer", to="published", output=tmp_path / "x.pt")
        )
