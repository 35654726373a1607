"""The scores of a tokenizer's report, all at once, against recordings of the published evaluation."""

import pytest
import torch
from test_alignment import recorded_lpips

from alight.metrics import image_scores


def test_ssim_clamps_and_lpips_does_not(read_case):
    tensors, recording = read_case("metrics/image_metrics")
    _, weights = read_case("vf_loss/lpips")
    lpips = recorded_lpips(weights | {"weight_seed": recording["lpips_weight_seed"]})
    reconstructions, images = tensors["ssim.recon"], tensors["ssim.images"]
    with torch.no_grad():
        scores = image_scores(reconstructions, images, lpips)
    assert scores["ssim"].tolist() == pytest.approx(recording["ssim_each"], rel=0, abs=1e-5)
    assert scores["lpips"].tolist() == pytest.approx(tensors["lpips.each"].tolist(), rel=0, abs=1e-5)
    assert scores["lpips"].mean().item() == pytest.approx(recording["lpips_batch_mean"], rel=0, abs=1e-5)
