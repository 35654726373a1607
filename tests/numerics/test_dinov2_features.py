"""FD-DINOv2's features against a second way of computing them: pixels, positions, and the class token."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from alight.models.dinov2_features import DINOv2ClassToken, resize_by_pillow
from alight.models.foundation_catalogue import IMAGENET_MEAN, IMAGENET_STD
from alight.runtime.errors import InputError


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=518, mlp_ratio=2
    )
    model = Dinov2Model(config).eval()
    torch.nn.init.normal_(model.embeddings.position_embeddings, std=1.0)
    torch.nn.init.normal_(model.embeddings.cls_token, std=1.0)
    return model


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8))


def authors_positions(table, side):
    """As in the repository of DINOv2: scaled by (side + 0.1) / 37, so not quite to the corners."""
    grid = table[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=((side + 0.1) / 37,) * 2, mode="bicubic", antialias=False)
    assert grid.shape[2:] == (side, side)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def test_features_are_those_of_the_published_evaluator(backbone, images):
    with torch.no_grad():
        pixels = np.stack([Image.fromarray(image).resize((224, 224), Image.BICUBIC) for image in images.numpy()])
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
        x = (x - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
        patches = backbone.embeddings.patch_embeddings(x)
        tokens = torch.cat([backbone.embeddings.cls_token.expand(3, -1, -1), patches], dim=1)
        tokens = tokens + authors_positions(backbone.embeddings.position_embeddings, 16)
        for layer in backbone.encoder.layer if hasattr(backbone, "encoder") else backbone.layer:
            output = layer(tokens)
            tokens = output[0] if isinstance(output, tuple) else output
        expected = backbone.layernorm(tokens)[:, 0]
    torch.testing.assert_close(DINOv2ClassToken(backbone)(images), expected, rtol=1e-5, atol=1e-5)


def test_positions_are_not_those_of_transformers(backbone, images):
    ours = DINOv2ClassToken(backbone)(images)
    del backbone.embeddings.interpolate_pos_encoding  # the method of the class again
    pixels = resize_by_pillow(images, 224) / 255
    pixels = (pixels - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    with torch.no_grad():
        theirs = backbone(pixels).last_hidden_state[:, 0]
    assert (ours - theirs).norm() / theirs.norm() > 1e-4  # ten times the tolerance above


def test_another_model_is_no_fd_dinov2(backbone, tmp_path):
    backbone.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="hidden_size 16.*--foundation"):
        DINOv2ClassToken.from_pretrained(str(tmp_path))
