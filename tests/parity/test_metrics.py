"""Frechet distance, PSNR, SSIM and the 8-bit rule against recordings of the published evaluation."""

import math

import numpy as np
import pytest
import torch

from alight.metrics import FeatureStatistics, frechet_distance, psnr, ssim
from alight.runtime.pixels import to_uint8

RANK_DEFICIENT = {"few", "few2", "nearsing", "dead"}


def recorded_statistics(tensors, name):
    return FeatureStatistics.from_moments(tensors[f"mu.{name}"].numpy(), tensors[f"sigma.{name}"].numpy())


def tolerance(a, b, offset, expected):
    """Absolute, from how well float64 determines the number: the notes of the recordings give these figures."""
    if offset or "huge" in (a, b):
        return 1e-8 * abs(expected)
    if a == b:
        return 1e-6
    return 1e-5 if RANK_DEFICIENT & {a, b} else 1e-6 * abs(expected)


def test_statistics_of_recorded_activations(read_case):
    tensors, _ = read_case("metrics/frechet")
    names = [key.removeprefix("act.") for key in tensors if key.startswith("act.")]
    assert names
    for name in names:
        statistics = FeatureStatistics(tensors[f"act.{name}"].shape[1])
        for batch in tensors[f"act.{name}"].split(7):
            statistics.update(batch)
        # Both are float64 sums over the same float32 numbers, in different order.
        np.testing.assert_allclose(statistics.mu, tensors[f"mu.{name}"].numpy(), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(statistics.sigma, tensors[f"sigma.{name}"].numpy(), rtol=1e-11, atol=1e-12)


def test_frechet_distance_of_every_recorded_pair(read_case):
    tensors, recording = read_case("metrics/frechet")
    assert recording["pairs"]
    for pair, expected in recording["pairs"].items():
        a, b = pair.split("|")[:2]
        offset = expected["eps"] if expected["offset_used"] else 0.0
        distance = frechet_distance(recorded_statistics(tensors, a), recorded_statistics(tensors, b), offset)
        assert distance.value == pytest.approx(expected["fid"], rel=0, abs=tolerance(a, b, offset, expected["fid"])), (
            pair
        )


def test_a_recorded_statistics_file_is_read(read_case, parity_dir):
    tensors, _ = read_case("metrics/frechet")
    statistics = FeatureStatistics.load(parity_dir / "metrics" / "stats_a.npz")
    np.testing.assert_array_equal(statistics.mu, tensors["mu.a"].numpy())
    np.testing.assert_array_equal(statistics.sigma, tensors["sigma.a"].numpy())


def test_psnr_of_every_recorded_pair(read_case):
    tensors, recording = read_case("metrics/image_metrics")
    assert recording["psnr"]
    ratios = {
        index: psnr(tensors[f"img{index}.rec"][None], tensors[f"img{index}.ref"][None]).item()
        for index in recording["psnr"]
    }
    for index, expected in recording["psnr"].items():
        assert ratios[index] == pytest.approx(expected, rel=0, abs=1e-5), index  # float32 in the recording
    finite = [ratio for ratio in ratios.values() if math.isfinite(ratio)]
    assert np.mean(finite) == pytest.approx(recording["psnr_folder_mean"], rel=0, abs=1e-5)


def test_recorded_ssim(read_case):
    tensors, recording = read_case("metrics/image_metrics")
    reconstructions, images = tensors["ssim.recon"], tensors["ssim.images"]
    similarities = ssim(reconstructions, images)
    assert similarities.tolist() == pytest.approx(recording["ssim_each"], rel=0, abs=1e-5)
    assert similarities.mean().item() == pytest.approx(recording["ssim_batch"], rel=0, abs=1e-5)
    assert ssim(images, reconstructions).mean().item() == pytest.approx(recording["ssim_batch_swapped"], abs=1e-5)
    if reconstructions.abs().max() > 1:  # only then can the clamp be seen
        assert similarities.mean().item() != pytest.approx(recording["ssim_data_range_2_unclamped"], abs=1e-4)


def test_recorded_8_bit_table(read_case):
    tensors, _ = read_case("metrics/image_metrics")
    values = tensors["uint8.in"].reshape(1, 1, -1)
    for column in ("uint8.out_decode", "uint8.out_ref_image"):
        assert torch.equal(to_uint8(values).flatten(), tensors[column])
