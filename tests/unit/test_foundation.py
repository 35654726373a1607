"""The foundation adapter against `transformers` itself, on small random models in the real file formats."""

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from alight.models.foundation import FoundationModel
from alight.runtime.errors import InputError

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
MODELS = {
    "vit": (ViTModel, ViTConfig(image_size=32, patch_size=8, **SIZE), 1),
    "dinov2": (Dinov2Model, Dinov2Config(image_size=56, patch_size=14, **SIZE), 1),
    "registers": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(image_size=56, patch_size=14, **SIZE), 5),
    "mae": (ViTMAEModel, ViTMAEConfig(image_size=32, patch_size=8, **SIZE), 1),
    "siglip": (SiglipVisionModel, SiglipVisionConfig(image_size=32, patch_size=8, **SIZE), 0),
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_features_equal_the_librarys_own_forward(name, tmp_path):
    kind, config, prefix_tokens = MODELS[name]
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path)
    foundation = FoundationModel.from_pretrained(str(tmp_path))
    images = torch.rand(2, 3, 4 * config.patch_size, 4 * config.patch_size) * 2 - 1
    features = foundation(images, grid=(4, 4))
    assert features.shape == (2, 32, 4, 4)
    assert foundation.num_prefix_tokens == prefix_tokens

    library = AutoModel.from_pretrained(tmp_path).eval()
    library = getattr(library, "vision_model", library)
    if name == "mae":
        library.config.mask_ratio = 0.0
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((images + 1) / 2 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    options = {"noise": torch.arange(16).expand(2, -1)} if name == "mae" else {}
    tokens = library(pixels, **options).last_hidden_state[:, prefix_tokens:]
    expected = tokens.view(2, 4, 4, 32).permute(0, 3, 1, 2)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_grid_decides_the_input_size(tmp_path):
    ViTModel(MODELS["vit"][1]).save_pretrained(tmp_path)
    foundation = FoundationModel.from_pretrained(str(tmp_path))
    assert foundation(torch.zeros(1, 3, 64, 48), grid=(8, 6)).shape == (1, 32, 8, 6)


@torch.no_grad()
def test_published_input_is_neither_normalised_nor_antialiased(tmp_path):
    config = Dinov2Config(image_size=224, patch_size=14, **SIZE)
    Dinov2Model(config).save_pretrained(tmp_path)
    foundation = FoundationModel.from_pretrained(str(tmp_path), input_mode="published")
    images = torch.rand(1, 3, 256, 256) * 2 - 1
    expected = foundation.backbone(F.interpolate(images, size=(224, 224), mode="bilinear")).last_hidden_state[:, 1:]
    got = foundation(images, grid=(16, 16))
    torch.testing.assert_close(got.flatten(2).transpose(1, 2), expected)


def test_its_own_normalisation_is_read_from_the_folder(tmp_path):
    ViTModel(MODELS["vit"][1]).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.1, 0.2, 0.3]}')
    foundation = FoundationModel.from_pretrained(str(tmp_path))
    torch.testing.assert_close(foundation.std.flatten(), torch.tensor([0.1, 0.2, 0.3]))


def test_models_that_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="cannot be loaded"):
        FoundationModel.from_pretrained(str(tmp_path / "nothing"))
    ViTModel(MODELS["vit"][1]).save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "model.safetensors")
    missing = next(name for name in tensors if "layernorm" in name.lower())
    del tensors[missing]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="not a complete vision transformer"):
        FoundationModel.from_pretrained(str(tmp_path))
