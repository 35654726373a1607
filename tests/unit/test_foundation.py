"""What the foundation adapter does beyond calling the network: names, files, sizes, normalisation, and refusals."""

import logging
import sys
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from alight.models.foundation import FoundationModel
from alight.models.foundation_catalogue import FOUNDATIONS, FoundationRow, find_row
from alight.runtime.console import log
from alight.runtime.errors import InputError
from helpers.models import tiny_vit

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def small_vit():
    return tiny_vit(**SIZE)


@pytest.fixture
def vit_folder(tmp_path):
    small_vit().save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.fixture
def caplog(caplog, monkeypatch):
    """Also where an earlier test has turned the package's messages to the terminal."""
    monkeypatch.setattr(log, "propagate", True)
    return caplog


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


# --- names ----------------------------------------------------------------------------------------------------------


def test_the_catalogue_is_consistent():
    for name, row in FOUNDATIONS.items():
        assert find_row(name) is row
        assert find_row(row.hub_id) is row
        assert row.native_size % row.patch_size == 0
        side = row.native_size
        assert row.allowed_sizes == ((side,) if name.startswith(("clip", "siglip")) else None), name
    assert find_row("facebook/dinov2-giant") is None


def test_a_registered_name_opens_what_its_row_says(vit_folder, monkeypatch):
    row = FoundationRow(str(vit_folder), "vit", 8, 32, 1, 32, *HALF)
    monkeypatch.setitem(FOUNDATIONS, "tiny", row)
    foundation = FoundationModel.from_pretrained("tiny")
    assert foundation.name == "tiny"
    torch.testing.assert_close(foundation.mean.flatten(), torch.full((3,), 0.5))  # of the row: the folder names none


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (("dinov2", 8, 32, 1, 32), "family vit instead of dinov2"),
        (("vit", 16, 32, 1, 32), "patch_size 8 instead of 16"),
        (("vit", 8, 64, 1, 32), "feature_dim 32 instead of 64"),
        (("vit", 8, 32, 5, 32), "num_prefix_tokens 1 instead of 5"),
        (("vit", 8, 32, 1, 64), "native_size 32 instead of 64"),
    ],
)
def test_a_registered_model_that_is_another_is_refused(values, complaint, vit_folder, monkeypatch):
    monkeypatch.setitem(FOUNDATIONS, "tiny", FoundationRow(str(vit_folder), *values, *HALF))
    with pytest.raises(InputError, match=complaint):
        FoundationModel.from_pretrained("tiny")


def test_a_registered_model_with_another_normalisation_is_refused(vit_folder, monkeypatch):
    (vit_folder / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    monkeypatch.setitem(FOUNDATIONS, "tiny", FoundationRow(str(vit_folder), "vit", 8, 32, 1, 32, *HALF))
    with pytest.raises(InputError, match="mean"):
        FoundationModel.from_pretrained("tiny")


def test_a_folder_goes_before_a_short_name(vit_folder, monkeypatch):
    monkeypatch.chdir(vit_folder.parent)
    vit_folder.rename("dinov2-large")
    assert FoundationModel.from_pretrained("dinov2-large").feature_dim == 32


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "config"), [(SiglipModel, SiglipConfig), (CLIPModel, CLIPConfig)])
@torch.no_grad()
def test_of_a_model_for_images_and_text_only_the_image_side_is_opened(kind, config, tmp_path):
    text = SIZE | {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
    whole = kind(config(text_config=text, vision_config=SIZE | {"image_size": 32, "patch_size": 8})).eval()
    whole.save_pretrained(tmp_path)
    foundation = FoundationModel.from_pretrained(str(tmp_path))
    assert sum(p.numel() for p in foundation.parameters()) == sum(p.numel() for p in whole.vision_model.parameters())
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    pixels = (images * 0.5 + 0.5 - foundation.mean) / foundation.std
    expected = whole.vision_model(pixels).last_hidden_state[:, -16:]
    torch.testing.assert_close(foundation(images, (4, 4)).flatten(2).transpose(1, 2), expected)


def test_its_own_normalisation_is_read_from_the_folder(vit_folder, caplog):
    values = '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.1, 0.2, 0.3]}'
    (vit_folder / "preprocessor_config.json").write_text(values)
    foundation = FoundationModel.from_pretrained(str(vit_folder))
    torch.testing.assert_close(foundation.std.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    assert not caplog.records


def test_a_folder_without_normalisation_gets_that_of_imagenet_and_says_so(vit_folder, caplog):
    foundation = FoundationModel.from_pretrained(str(vit_folder))
    torch.testing.assert_close(foundation.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    assert "ImageNet" in caplog.text


def test_a_missing_model_is_named_with_its_source_and_its_place(offline):
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        FoundationModel.from_pretrained("dinov2-large")
    for part in ("dinov2-large", "https://huggingface.co/facebook/dinov2-large", "HF_HOME", "model.safetensors"):
        assert part in str(caught.value)
    with pytest.raises(InputError, match="licence"):
        FoundationModel.from_pretrained("dinov3-small")


def test_names_that_mean_nothing(tmp_path):
    with pytest.raises(InputError, match="perhaps dinov2-large"):
        FoundationModel.from_pretrained("dinov2-lage")
    with pytest.raises(InputError, match="no such folder"):
        FoundationModel.from_pretrained(str(tmp_path / "nothing"))


def test_files_that_cannot_be_used(vit_folder, tmp_path):
    tensors = load_file(vit_folder / "model.safetensors")
    del tensors[next(name for name in tensors if "layernorm" in name.lower())]
    save_file(tensors, vit_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="not a complete vision transformer"):
        FoundationModel.from_pretrained(str(vit_folder))
    (vit_folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="model.safetensors"):
        FoundationModel.from_pretrained(str(vit_folder))
    BertModel(BertConfig(vocab_size=20, **SIZE)).save_pretrained(tmp_path / "text")
    with pytest.raises(InputError, match="lacks patch_size"):
        FoundationModel.from_pretrained(str(tmp_path / "text"))
    Siglip2VisionModel(Siglip2VisionConfig(num_patches=16, patch_size=8, **SIZE)).save_pretrained(tmp_path / "naflex")
    with pytest.raises(InputError, match="lacks image_size"):  # takes lists of patches of any shape, not images
        FoundationModel.from_pretrained(str(tmp_path / "naflex"))


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "image_size", "input_size", "positions"),
    [
        ((4, 4), (32, 32), (32, 32), "learned"),
        ((8, 6), (64, 48), (64, 48), "resampled"),
        ((8, 8), (128, 128), (64, 64), "resampled"),
    ],
)
@torch.no_grad()
def test_the_grid_decides_the_input_size(grid, image_size, input_size, positions):
    foundation = FoundationModel(small_vit())
    plan = foundation.describe(grid, image_size)
    assert (plan.input_size, plan.positions, plan.resamples_features) == (input_size, positions, False)
    assert foundation(torch.zeros(1, 3, *image_size), grid).shape == (1, 32, *grid)


@torch.no_grad()
def test_a_model_of_one_size_gets_that_size_and_its_features_are_resampled(caplog):
    foundation = FoundationModel(SiglipVisionModel(SiglipVisionConfig(image_size=32, patch_size=8, **SIZE)))
    plan = foundation.describe((6, 6), (96, 96))
    assert (plan.input_size, plan.patch_grid, plan.positions) == ((32, 32), (4, 4), "learned")
    assert plan.resamples_features
    assert str(plan) == (
        "images of 96x96 fed at 32x32, normalised by its own mean and std, positions learned, features resampled "
        "from 4x4 to 6x6"
    )
    images = torch.rand(2, 3, 96, 96) * 2 - 1
    native = foundation(images, (4, 4))
    assert not caplog.records
    expected = F.interpolate(native, size=(6, 6), mode="bilinear", antialias=True)
    torch.testing.assert_close(foundation(images, (6, 6)), expected)
    foundation(images, (6, 6))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]  # said once
    assert str(plan) in caplog.text


class FixedSizeViT(nn.Module):
    """Learned positions, and no way to bring them to another size."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(model_type="fixed", patch_size=8, hidden_size=3, image_size=32)
        self.embeddings = nn.Module()
        self.embeddings.position_embeddings = nn.Parameter(torch.randn(1, 16, 3))

    def forward(self, pixels):
        patches = F.avg_pool2d(pixels, 8).flatten(2).transpose(1, 2)
        return SimpleNamespace(last_hidden_state=patches + self.embeddings.position_embeddings)


@torch.no_grad()
def test_a_model_whose_positions_cannot_be_resampled_gets_its_one_size():
    foundation = FoundationModel(FixedSizeViT())
    assert (foundation.allowed_sizes, foundation.num_prefix_tokens) == ((32,), 0)
    assert foundation.describe((8, 8), (64, 64)).input_size == (32, 32)
    assert foundation(torch.zeros(1, 3, 64, 64), (8, 8)).shape == (1, 3, 8, 8)


@torch.no_grad()
def test_positions_are_resampled_once_per_grid(monkeypatch):
    foundation = FoundationModel(small_vit())
    calls = []
    resize = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda x, **options: calls.append(x.shape) or resize(x, **options))
    for size in (48, 48, 64, 48, 32):
        foundation(torch.zeros(2, 3, size, size), (size // 8, size // 8))
    assert calls == [(1, 32, 4, 4)] * 2  # for 6x6 and 8x8; the images had the right sizes already


@torch.no_grad()
def test_published_input_is_neither_normalised_nor_antialiased():
    foundation = FoundationModel(
        Dinov2Model(Dinov2Config(image_size=224, patch_size=14, **SIZE)), input_mode="published"
    )
    images = torch.rand(1, 3, 256, 256) * 2 - 1
    plan = foundation.describe((16, 16), (256, 256))
    assert (plan.input_size, plan.normalisation, plan.positions) == ((224, 224), "as [-1, 1]", "learned")
    expected = foundation.backbone(F.interpolate(images, size=(224, 224), mode="bilinear")).last_hidden_state[:, 1:]
    torch.testing.assert_close(foundation(images, grid=(16, 16)).flatten(2).transpose(1, 2), expected)


@torch.no_grad()
def test_features_are_float32_under_autocast():
    foundation = FoundationModel(SiglipVisionModel(SiglipVisionConfig(image_size=32, patch_size=8, **SIZE)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert foundation(torch.zeros(1, 3, 64, 64), (8, 8)).dtype == torch.float32


# --- identity -------------------------------------------------------------------------------------------------------


def test_the_identity_follows_all_that_the_features_depend_on():
    vit = small_vit()
    first = FoundationModel(vit).identity()
    assert FoundationModel(vit).identity() == first
    assert FoundationModel(vit, input_mode="published").identity() != first
    assert FoundationModel(vit, mean=(0.5, 0.5, 0.5)).identity() != first
    assert FoundationModel(vit, name="another").identity() != first
    vit.layernorm.bias.data[0] += 1e-6
    assert FoundationModel(vit).identity() != first


# --- timm -----------------------------------------------------------------------------------------------------------


class StandInTimmViT(nn.Module):
    """What the adapter uses of timm's `VisionTransformer`, under the same names (as of timm 1.0)."""

    def __init__(self):
        super().__init__()
        self.patch_embed = SimpleNamespace(patch_size=(8, 8), img_size=(32, 32))
        self.num_features = 3
        self.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "input_size": (3, 32, 32)}

    def forward_features(self, pixels):
        patches = F.avg_pool2d(pixels, 8).flatten(2).transpose(1, 2)
        return torch.cat([torch.zeros(len(pixels), 5, 3), patches], dim=1)


def test_timm_models_are_called_by_the_same_forward(monkeypatch):
    asked = {}

    def create_model(name, **options):
        asked.update(options, name=name)
        return StandInTimmViT()

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    foundation = FoundationModel.from_pretrained("timm:vit_small_patch8_224.dino")
    assert asked == {
        "name": "vit_small_patch8_224.dino",
        "pretrained": True,
        "num_classes": 0,
        "dynamic_img_size": True,
    }
    assert (foundation.name, foundation.num_prefix_tokens) == ("timm:vit_small_patch8_224.dino", 5)
    images = torch.rand(2, 3, 48, 48) * 2 - 1
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    expected = F.avg_pool2d((images / 2 + 0.5 - mean) / std, 8)
    torch.testing.assert_close(foundation(images, (6, 6)), expected)
    assert foundation.describe((6, 6), (48, 48)).positions == "computed"


def test_timm_models_that_cannot_be_used(monkeypatch):
    def create_model(name, **options):
        raise TypeError("ResNet.__init__() got an unexpected keyword argument 'dynamic_img_size'")

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    with pytest.raises(InputError, match="timm cannot open 'resnet18'"):
        FoundationModel.from_pretrained("timm:resnet18")
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"pip install 'alight\[timm\]'"):
        FoundationModel.from_pretrained("timm:vit_base_patch16_224")


# --- layers ---------------------------------------------------------------------------------------------------------


DEEP = SIZE | {"num_hidden_layers": 4, "image_size": 32, "patch_size": 8}


@pytest.mark.parametrize("network", ["vit", "dinov2", "siglip"])
@torch.no_grad()
def test_features_are_the_sum_of_the_outputs_of_layers(network):
    backbone = {
        "vit": lambda: tiny_vit(**DEEP),
        "dinov2": lambda: Dinov2Model(Dinov2Config(**DEEP | {"intermediate_size": 64})),
        "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**DEEP)),
    }[network]().eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    foundation = FoundationModel(backbone, *HALF)
    last = foundation(images, (4, 4))
    states = backbone(images, output_hidden_states=True).hidden_states  # of the embedding, and after every layer
    assert len(states) == 5
    for layers in ((2,), (1, 3), (4, 2)):
        found = foundation.with_layers(layers)(images, (4, 4))
        expected = sum(states[number] for number in layers)[:, -16:].transpose(1, 2).unflatten(2, (4, 4))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(foundation.with_layers(None)(images, (4, 4)), last)


@pytest.mark.parametrize("layers", [(5,), (0, 1), (2, 9)])
def test_layers_that_do_not_exist_are_refused(layers):
    foundation = FoundationModel(tiny_vit(**DEEP), name="small")
    with pytest.raises(InputError, match="'small', which has 4. Give numbers from 1 to 4"):
        foundation.with_layers(layers)


def test_a_model_of_one_layer_has_no_range_of_them():
    with pytest.raises(InputError, match=r"which has 1\. Give 1\."):
        FoundationModel(tiny_vit(num_hidden_layers=1), name="small").with_layers((2,))


def test_the_identity_follows_the_layers_and_is_unchanged_without():
    foundation = FoundationModel(tiny_vit(**DEEP))
    plain = foundation.identity()
    found = [foundation.with_layers(layers).identity() for layers in (None, (1,), (2,), (1, 2))]
    assert found[0] == plain
    assert len(set(found)) == 4
