"""Auxiliary features of the published tokenizer training against recordings (`vf_loss/foundation`)."""

import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alight.models.foundation import FoundationModel
from helpers.portable_weights import portable_tensor


class RecordedViT(nn.Module):
    """The linear stand-in of the recordings: pooled patches through one matrix, their mean as the class token."""

    def __init__(self, weight, patch_size):
        super().__init__()
        self.register_buffer("weight", weight)
        self.config = SimpleNamespace(
            model_type="recorded", patch_size=patch_size, hidden_size=len(weight), image_size=16 * patch_size
        )

    def forward(self, pixels):
        tokens = F.avg_pool2d(pixels, self.config.patch_size).flatten(2).transpose(1, 2) @ self.weight.T
        return SimpleNamespace(last_hidden_state=torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1))


@pytest.mark.parametrize("name", ["dinov2", "mae"])
def test_published_features(read_case, name):
    tensors, description = read_case("vf_loss/foundation")
    case = description[name]
    rule = case["image_rule"] | {"sha256_16": case["image_sha"]}
    images = portable_tensor(rule, rule["seed"])
    patch_size = int(re.search(rf"(\d+) for {name}", description["fake_vit"]).group(1))
    foundation = FoundationModel(RecordedViT(tensors[f"{name}.weight"], patch_size), name=name, input_mode="published")
    expected = tensors[f"{name}.features"]
    features = foundation(images, grid=tuple(expected.shape[2:]))
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    assert foundation.num_prefix_tokens == 1
