"""Measuring tokenizers: every image by itself, alignment by named measures, and words that follow from numbers."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from alight.artifacts import Artifact
from alight.config import EvaluateTokenizerConfig, ImagesConfig
from alight.data.loading import open_dataset
from alight.evaluation.alignment import LinearMap, alignment_scores, fit_linear_map
from alight.evaluation.assessment import ANSWERS, assess_tokenizer
from alight.evaluation.batches import gather_batches, index_batches, share_of
from alight.evaluation.reconstruction import (
    Measurements,
    encode,
    measure_reconstruction,
    reconstruct,
    statistics_warning,
)
from alight.evaluation.tokenizer_report import chosen_images, psnr_distribution, side_by_side, tokenizer_figures
from alight.evaluation.tokenizers import (
    EvaluatedTokenizer,
    MetricNetworks,
    Projection,
    applicable_projection,
)
from alight.losses import marginal_cosine_loss, marginal_distance_matrix_loss
from alight.metrics import psnr, ssim
from alight.models.foundation import FoundationModel
from alight.runtime.distributed import Processes
from alight.runtime.errors import InputError
from alight.runtime.files import short_names
from alight.runtime.pixels import from_uint8
from helpers.data_sets import FirstImages
from helpers.models import tiny_tokenizer, tiny_vit

ALONE = Processes(0, 1, torch.device("cpu"))
DIGITS = ImagesConfig(source="digits", size=32)


def make_tokenizer(seed=0, name="tokenizer", projection=None, channels=4):
    sizes = {"latent_channels": channels, "block_out_channels": (16, 16, 16), "mid_block_attention": True}
    vae = tiny_tokenizer(seed, **sizes)
    return EvaluatedTokenizer(name, vae, Artifact(Path(name), "tokenizer", {}, "h" * 64), projection)


@pytest.fixture(scope="module")
def foundation():
    return FoundationModel(tiny_vit(hidden_size=24, patch_size=4), name="runs/foundation")


def configure(**options):
    return EvaluateTokenizerConfig(images=DIGITS, batch_size=13, linear_map_images=40, **options)


@pytest.fixture(scope="module")
def images():
    return FirstImages(open_dataset(DIGITS, "held_out", augment=False), 30)


# --- reconstruction


def test_scores_are_those_of_the_definitions(images):
    tokenizer, config = make_tokenizer(), configure(posterior="mode")
    measured = measure_reconstruction(tokenizer, images, config, MetricNetworks(), ALONE)
    originals, decoded = reconstruct(tokenizer, images, range(30), config, ALONE.device)
    assert np.array_equal(originals, np.stack([images[index].image.permute(1, 2, 0).numpy() for index in range(30)]))
    expected = psnr(torch.from_numpy(decoded), torch.from_numpy(originals))
    torch.testing.assert_close(measured.scores["psnr"], expected, rtol=0, atol=1e-9)
    # the recomputed pictures are 8-bit, the scored ones were not
    similar = ssim(from_uint8(torch.from_numpy(decoded)), from_uint8(torch.from_numpy(originals))).double()
    torch.testing.assert_close(measured.scores["ssim"], similar, rtol=0, atol=5e-3)
    assert set(measured.scores) == {"psnr", "ssim"}


@pytest.mark.parametrize("posterior", ["sample", "mode"])
def test_neither_batch_size_nor_company_changes_a_score(posterior, images, foundation):
    tokenizer = make_tokenizer()
    settings = configure(posterior=posterior)
    config = [settings.model_copy(update={"batch_size": size}) for size in (30, 7, 1)]
    whole, parts, single = (
        measure_reconstruction(tokenizer, images, each, MetricNetworks(foundation=foundation), ALONE)
        for each in config
    )
    alone = measure_reconstruction(
        tokenizer, FirstImages(images.dataset, 4), config[1], MetricNetworks(foundation=foundation), ALONE
    )
    for name, values in whole.scores.items():
        # One pixel of 3,072 that rounds the other way moves PSNR by less than 1e-3 dB.
        for other in (parts, single):
            torch.testing.assert_close(other.scores[name], values, rtol=0, atol=1e-3 if name == "psnr" else 1e-5)
        torch.testing.assert_close(alone.scores[name], values[:4], rtol=0, atol=1e-3 if name == "psnr" else 1e-5)


def test_the_posterior_and_the_seed_matter(images):
    vae = make_tokenizer().vae
    pixels = torch.stack([images[index].image for index in range(2)]).float() / 127.5 - 1
    mode, sample, other = (
        encode(vae, pixels, [0, 1], configure(posterior=kind, seed=seed))
        for kind, seed in (("mode", 0), ("sample", 0), ("sample", 1))
    )
    assert torch.equal(mode, vae.posterior(pixels).mode())
    assert not torch.equal(sample, mode)
    assert not torch.equal(sample, other)
    swapped = encode(vae, pixels.flip(0), [1, 0], configure())
    torch.testing.assert_close(swapped.flip(0), sample, rtol=0, atol=1e-5)


def test_batches_are_dealt_out_and_come_back_in_order():
    batches = index_batches(range(10), 3)
    assert batches == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]

    class Pretended(Processes):
        """As if the other processes answered with their shares."""

        def gather(self, value):
            return [list(share_of(batches, Processes(rank, 3, self.device))) for rank in range(3)]

    assert share_of(batches, Processes(0, 3, ALONE.device)) == [[0, 1, 2], [9]]
    assert gather_batches([], Pretended(0, 3, ALONE.device)) == batches


def test_statistics_of_other_images_are_told_of(images):
    tokenizer, config = make_tokenizer(), configure()
    assert statistics_warning(tokenizer, images, config, ALONE.device) is None  # there are none
    raw = torch.cat(
        [encode(tokenizer.vae, images[i].image[None] / 127.5 - 1, [i], config) for i in range(30)]
    ).detach()
    tokenizer.vae.set_latents_statistics(raw.mean((0, 2, 3)), raw.std((0, 2, 3)))
    assert statistics_warning(tokenizer, images, config, ALONE.device) is None
    tokenizer.vae.set_latents_statistics(raw.mean((0, 2, 3)), 50 * raw.std((0, 2, 3)))
    assert "do not fit" in statistics_warning(tokenizer, images, config, ALONE.device)


# --- alignment


@pytest.mark.parametrize("direction", ["to_features", "to_latent"])
@pytest.mark.parametrize("distance_on", ["projected", "latent"])
def test_alignment_scores_are_the_losses_of_each_image(direction, distance_on):
    generator = torch.Generator().manual_seed(0)
    raw, features = torch.randn(5, 4, 6, 6, generator=generator), torch.randn(5, 7, 6, 6, generator=generator)
    shape = (7, 4, 1, 1) if direction == "to_features" else (4, 7, 1, 1)
    weight = torch.randn(shape, generator=generator)
    settings = {"projection": direction, "distance_on": distance_on, "cosine_margin": 0.5, "distance_margin": 0.25}
    linear_map = LinearMap(torch.randn(7, 4, 1, 1, generator=generator), 10)
    scores = alignment_scores(raw, features, Projection(weight, "f", settings), linear_map)

    one, other = (F.conv2d(raw, weight), features) if direction == "to_features" else (raw, F.conv2d(features, weight))
    pair = (raw, features) if distance_on == "latent" else (one, other)
    expected = {
        "latent_mdms": marginal_distance_matrix_loss(raw, features, 0.0),
        "linear_cosine": 1 - marginal_cosine_loss(F.conv2d(raw, linear_map.weight), features, 0.0),
        "alignment_cosine": 1 - marginal_cosine_loss(one, other, 0.0),
        "alignment_mcos": marginal_cosine_loss(one, other, 0.5),
        "alignment_mdms": marginal_distance_matrix_loss(*pair, 0.25),
    }
    assert {name: len(values) for name, values in scores.items()} == dict.fromkeys(expected, 5)
    for name, value in expected.items():
        assert scores[name].mean().item() == pytest.approx(value.item(), abs=1e-6), name


def test_the_linear_map_finds_what_is_there(foundation):
    """Features that are a linear map of the latents are found again, on images that were not fitted to."""
    tokenizer, config = make_tokenizer(channels=8), configure(posterior="mode")
    hidden = torch.randn(24, 8, 1, 1, generator=torch.Generator().manual_seed(0))

    class Linear(FoundationModel):
        def forward(self, images, grid):
            return F.conv2d(tokenizer.vae.posterior(images).mean, hidden)

    linear = Linear(foundation.backbone, name="linear")
    held_out = FirstImages(open_dataset(DIGITS, "held_out", augment=False), 10)
    scores = {}
    for name, model in (("linear", linear), ("vit", foundation)):
        linear_map = fit_linear_map(tokenizer.vae, model, config, ALONE)
        assert (linear_map.images, linear_map.weight.shape) == (40, (24, 8, 1, 1))
        measured = measure_reconstruction(
            tokenizer, held_out, config, MetricNetworks(foundation=model), ALONE, linear_map
        )
        scores[name] = measured.mean("linear_cosine")
    assert scores["linear"] > 0.95  # features of unit length are not quite linear in the latents
    assert scores["vit"] < scores["linear"] - 0.05


def test_a_projection_serves_its_own_foundation_model_alone(foundation):
    settings = {"foundation_input": "own", "cosine_margin": 0.5, "distance_margin": 0.25}
    fitting = make_tokenizer(projection=Projection(torch.zeros(24, 4, 1, 1), "moved/foundation", settings))
    assert applicable_projection(fitting, foundation) is fitting.projection
    other = make_tokenizer(projection=Projection(torch.zeros(24, 4, 1, 1), "dinov2", settings))
    assert applicable_projection(other, foundation) is None
    assert applicable_projection(make_tokenizer(), foundation) is None
    wrong = make_tokenizer(projection=Projection(torch.zeros(25, 4, 1, 1), "runs/foundation", settings))
    with pytest.raises(InputError, match=r"features of 25, but .* 24 features"):
        applicable_projection(wrong, foundation)


# --- words and pictures


def measured_of(psnr_values, ssim_value=0.95, name="tokenizer", **more):
    count = len(psnr_values)
    scores = {"psnr": torch.tensor(psnr_values).double(), "ssim": torch.full((count,), ssim_value).double()}
    more = {key: torch.full((count,), value).double() for key, value in more.items()}
    return Measurements(make_tokenizer(name=name), scores | more)


@pytest.mark.parametrize(
    ("psnr_value", "ssim_value", "more", "level"),
    [
        (28.0, 0.80, {}, 2),
        (28.0, 0.80, {"lpips": 0.09}, 2),
        (28.0, 0.80, {"lpips": 0.12}, 1),  # the weakest measure decides
        (26.0, 0.80, {}, 1),
        (28.0, 0.60, {}, 0),
        (35.0, 0.95, {"lpips": 0.2}, 0),
    ],
)
def test_the_verdict_follows_from_the_thresholds(psnr_value, ssim_value, more, level):
    answer = assess_tokenizer([measured_of([psnr_value] * 3, ssim_value, **more)], ["a", "b", "c"], configure())
    assert answer.answer.startswith(ANSWERS[level])
    assert ("LPIPS 0." in answer.reasons[0]) == ("lpips" in more)
    assert any("was not measured" in reason for reason in answer.reasons) == ("lpips" not in more)
    assert any("--init-from" in advice for advice in answer.advice) == (level < 2)
    for threshold in ("25.29", "27.96", "0.69", "0.79", "0.147", "0.096"):
        assert threshold in answer.basis


def test_the_verdict_names_the_worst_image_and_the_split():
    answer = assess_tokenizer(
        [measured_of([30.0, 20.0, 31.0, 10.0])], ["a", "b", "c", "worst.png"], configure(split="train")
    )
    text = " ".join(answer.reasons)
    assert "2 of the 4 images lie below 25.29 dB; the worst, worst.png, has 10.00 dB." in text
    assert "trained on" in text


def test_several_tokenizers_are_judged_each_and_against_each_other():
    plain = measured_of([29.0], 0.9, "plain", linear_cosine=0.4)
    aligned = measured_of([26.0], 0.9, "aligned", linear_cosine=0.7)
    answer = assess_tokenizer([plain, aligned], ["a"], configure())
    assert answer.answer == "plain: yes; aligned: nearly."
    text = " ".join(answer.reasons)
    assert "plain reconstructs best (29.00 dB)" in text
    assert "off the latents of aligned (mean cosine 0.700)" in text
    assert any("latents extract" in advice for advice in answer.advice)  # one of them is good enough


def test_chosen_images_are_the_extremes_and_what_lies_between():
    chosen = chosen_images(torch.tensor([5.0, 1.0, math.inf, 3.0, 4.0]), 3)
    assert chosen == {"worst": [1, 3, 4], "ordinary": [1, 4, 2], "best": [2, 0, 4]}
    assert chosen_images(torch.tensor([2.0]), 8) == {"worst": [0], "ordinary": [0], "best": [0]}


def test_the_distribution_runs_from_the_worst_to_the_best():
    curve = psnr_distribution([measured_of([3.0, 1.0, 2.0], name="a"), measured_of([math.inf, 1.0, 2.0], name="b")])
    assert list(curve.series) == ["a", "b"]
    share, values = curve.series["a"]
    assert (share[0], share[-1], values[0], values[-1]) == (0, 100, 1, 3)
    assert values == sorted(values)
    assert curve.series["b"][1][-1] == math.inf


def test_side_by_side_has_a_row_per_measure_and_knows_the_better_value():
    config = configure()
    measured = [measured_of([20.0], 0.5, "plain"), measured_of([21.0], 0.5, "aligned", lpips=0.1)]
    table = side_by_side(measured, [tokenizer_figures(each, config, MetricNetworks()) for each in measured])
    assert list(table.columns) == ["plain", "aligned"]
    assert [figure and figure.value for figure in table.rows["Reconstruction PSNR"]] == [20.0, 21.0]
    assert table.rows["Reconstruction LPIPS"][0] is None
    assert table.best("Reconstruction PSNR") == 21.0
    assert table.best("Reconstruction SSIM") is None  # equal
    assert table.best("Reconstruction LPIPS") is None  # alone


def test_names_are_as_short_as_they_can_be():
    assert short_names([Path("runs/plain"), Path("runs/aligned")]) == ["plain", "aligned"]
    assert short_names([Path("a/tokenizer"), Path("b/tokenizer")]) == ["a/tokenizer", "b/tokenizer"]
    assert short_names([Path("a/tokenizer")]) == ["tokenizer"]
