"""The foundation adapter against `transformers`' own forward: real patch sizes, small random networks in real files.

At other sizes than the native one the reference is the library run at a fixed size, whose position table was
resampled beforehand; so nothing of the adapter's own handling of positions takes part in it.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PvtConfig,
    PvtModel,
    SamConfig,
    SamModel,
    SamVisionConfig,
    SamVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    Swinv2Config,
    Swinv2Model,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from alight.models.foundation import FoundationModel
from alight.runtime.errors import InputError

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
MODELS = {  # model, configuration with the real patch and native size, prefix tokens
    "dinov2": (Dinov2Model, Dinov2Config(image_size=518, patch_size=14, **SIZE), 1),
    "dinov2 with registers": (
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig(image_size=518, patch_size=14, num_register_tokens=4, **SIZE),
        5,
    ),
    "dinov3": (DINOv3ViTModel, DINOv3ViTConfig(image_size=224, patch_size=16, num_register_tokens=4, **SIZE), 5),
    "mae": (ViTMAEModel, ViTMAEConfig(image_size=224, patch_size=16, **SIZE), 1),
    "vit": (ViTModel, ViTConfig(image_size=224, patch_size=16, **SIZE), 1),
    "siglip": (SiglipVisionModel, SiglipVisionConfig(image_size=256, patch_size=16, **SIZE), 0),
    "clip": (CLIPVisionModel, CLIPVisionConfig(image_size=224, patch_size=16, **SIZE), 1),
    "clip 14": (CLIPVisionModel, CLIPVisionConfig(image_size=224, patch_size=14, **SIZE), 1),
}
LATENTS = [(224, 16), (256, 16), (256, 8), (512, 16)]  # image size, downsampling factor
TABLES = ("embeddings.position_embeddings", "embeddings.position_embedding.weight")
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every model of the table, all of its weights random, saved as users have them."""
    written = {}
    for name, (kind, config, _) in MODELS.items():
        folder = written[name] = tmp_path_factory.mktemp("model")
        model = kind(copy.deepcopy(config))
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.2, generator=generator)
        model.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(f'{{"image_mean": {MEAN}, "image_std": {STD}}}')
    return written


def normalise(images):
    return (0.5 * images + 0.5 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def patch_features(model, pixels, prefix_tokens, grid):
    options = {}
    if model.config.model_type == "vit_mae":
        model.config.mask_ratio = 0.0
        options = {"noise": torch.arange(grid[0] * grid[1]).expand(len(pixels), -1)}
    tokens = model.eval()(pixels, **options).last_hidden_state
    assert tokens.shape[1] == prefix_tokens + grid[0] * grid[1]
    return tokens[:, prefix_tokens:].view(len(pixels), *grid, -1).permute(0, 3, 1, 2)


def library_at(folder, size, patch_size):
    """The library's model built for this input size, with the position table resampled to it beforehand."""
    model = AutoModel.from_pretrained(folder)
    config = copy.deepcopy(model.config)
    native, grid = config.image_size // patch_size, (size[0] // patch_size, size[1] // patch_size)
    config.image_size = size[0] if size[0] == size[1] else list(size)
    state = model.state_dict()
    for name in TABLES:
        if name in state and grid != (native, native):
            prefix, patches = state[name].view(-1, 32).tensor_split([-(native**2)])
            square = patches.view(1, native, native, 32).permute(0, 3, 1, 2)
            square = F.interpolate(square, size=grid, mode="bicubic", antialias=True)
            resampled = torch.cat([prefix, square.permute(0, 2, 3, 1).reshape(-1, 32)])
            state[name] = resampled.view(*state[name].shape[:-2], -1, 32)
    fixed = type(model)(config)
    fixed.load_state_dict(state)
    return fixed


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_at_the_native_size_features_are_the_librarys_own(name, folders):
    _, config, prefix_tokens = MODELS[name]
    foundation = FoundationModel.from_pretrained(folders[name])
    assert foundation.num_prefix_tokens == prefix_tokens
    side = config.image_size // config.patch_size
    images = torch.rand(2, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    library = AutoModel.from_pretrained(folders[name])
    expected = patch_features(library, normalise(images), prefix_tokens, (side, side))
    assert torch.equal(foundation(images, (side, side)), expected)


@pytest.mark.parametrize("mode", ["own", "published"])
@pytest.mark.parametrize(("size", "factor"), LATENTS)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_at_other_sizes_features_are_those_of_the_library_built_for_the_size(name, size, factor, mode, folders):
    _, config, prefix_tokens = MODELS[name]
    patch, side = config.patch_size, size // factor
    foundation = FoundationModel.from_pretrained(folders[name], mode)
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1
    if mode == "published":
        fed = 224 if patch == 14 else size
        pixels = F.interpolate(images, size=(fed, fed), mode="bilinear")
    else:
        fed = config.image_size if name.startswith(("siglip", "clip")) else side * patch
        same = fed == size
        pixels = normalise(images if same else F.interpolate(images, (fed, fed), mode="bicubic", antialias=True))
    library = library_at(folders[name], (fed, fed), patch)
    expected = patch_features(library, pixels, prefix_tokens, (fed // patch, fed // patch))
    if fed // patch != side:
        expected = F.interpolate(expected, size=(side, side), mode="bilinear", antialias=True)
    features = foundation(images, (side, side))
    assert features.shape == (1, 32, side, side)
    torch.testing.assert_close(features, expected, rtol=0, atol=2e-5)  # of order 1


@torch.no_grad()
def test_oblong_grids(folders):
    foundation = FoundationModel.from_pretrained(folders["vit"])
    images = torch.rand(1, 3, 320, 192, generator=torch.Generator().manual_seed(3)) * 2 - 1
    expected = patch_features(library_at(folders["vit"], (320, 192), 16), normalise(images), 1, (20, 12))
    torch.testing.assert_close(foundation(images, (20, 12)), expected, rtol=0, atol=2e-5)


@torch.no_grad()
def test_the_librarys_own_resampling_is_another(folders):
    """Without antialiasing features are others, so the comparisons above would notice it."""
    library = AutoModel.from_pretrained(folders["dinov2"])
    pixels = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(4))
    fixed = library_at(folders["dinov2"], (224, 224), 14)
    difference = patch_features(library, pixels, 1, (16, 16)) - patch_features(fixed, pixels, 1, (16, 16))
    assert difference.abs().max() > 1e-2


@torch.no_grad()
def test_timm_gives_the_same_features(tmp_path):
    """A timm ViT from a local folder, against the same network called directly; only where timm can be imported."""
    timm = pytest.importorskip("timm", exc_type=Exception)
    import json

    from safetensors.torch import save_file

    arguments = {"img_size": 224, "patch_size": 14, "embed_dim": 32, "depth": 2, "num_heads": 2}
    direct = timm.create_model("vit_base_patch14_dinov2", num_classes=0, dynamic_img_size=True, **arguments).eval()
    save_file(direct.state_dict(), tmp_path / "model.safetensors")
    settings = {"mean": MEAN, "std": STD, "input_size": [3, 224, 224], "num_classes": 0}
    description = {"architecture": "vit_base_patch14_dinov2", "model_args": arguments, "pretrained_cfg": settings}
    (tmp_path / "config.json").write_text(json.dumps(description))
    foundation = FoundationModel.from_pretrained(f"timm:local-dir:{tmp_path}")
    images = torch.rand(2, 3, 196, 196, generator=torch.Generator().manual_seed(5)) * 2 - 1
    tokens = direct.forward_features(normalise(images))[:, direct.num_prefix_tokens :]
    expected = tokens.view(2, 14, 14, 32).permute(0, 3, 1, 2)
    assert foundation.num_prefix_tokens == direct.num_prefix_tokens
    torch.testing.assert_close(foundation(images, (14, 14)), expected, rtol=0, atol=2e-5)


# --- networks that are no plain grids of tokens ------------------------------------------------------------------

SAM_VISION = {
    **{"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 64},
    **{"image_size": 64, "patch_size": 16, "global_attn_indexes": [1], "window_size": 2, "num_pos_feats": 8},
}
SWIN = {"embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 2, 4], "window_size": 4, "image_size": 64}


def opened(model, folder, **options):
    for number, parameter in enumerate(model.parameters()):
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(number))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    return FoundationModel.from_pretrained(str(folder), **options)


@pytest.mark.parametrize("whole", [False, True])
def test_sam_gives_the_features_behind_its_neck(whole, tmp_path):
    config = SamVisionConfig(**SAM_VISION)
    model = SamModel(SamConfig(vision_config=config.to_dict())) if whole else SamVisionModel(config)
    foundation = opened(model.eval(), tmp_path)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = (model.vision_encoder if whole else model)(images).last_hidden_state  # (B, D, h, w)
    torch.testing.assert_close(foundation(images, (4, 4)), expected, rtol=1e-5, atol=1e-6)
    assert (foundation.feature_dim, foundation.patch_size, foundation.num_prefix_tokens) == (16, 16, 0)
    assert foundation(images[:, :, :32, :48], (2, 3)).shape == (2, 16, 2, 3)  # fed at its own size


@pytest.mark.parametrize(("kind", "config"), [(SwinModel, SwinConfig), (Swinv2Model, Swinv2Config)])
def test_swin_gives_the_grid_of_its_last_stage(kind, config, tmp_path):
    model = kind(config(**SWIN, patch_size=4)).eval()
    foundation = opened(model, tmp_path)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = model(images).last_hidden_state.transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(foundation(images, (4, 4)), expected, rtol=1e-5, atol=1e-6)
    assert (foundation.feature_dim, foundation.patch_size, foundation.num_prefix_tokens) == (32, 16, 0)
    assert foundation(images, (8, 8)).shape == (2, 32, 8, 8)


def test_networks_without_a_grid_of_patches_are_refused(tmp_path):
    convolutions = ConvNextModel(ConvNextConfig(hidden_sizes=[4, 8, 16, 32], depths=[1, 1, 1, 1], image_size=64))
    pyramid = PvtModel(PvtConfig(image_size=64))
    for number, model in enumerate((convolutions, pyramid)):
        with pytest.raises(InputError, match="cannot be used as a foundation model|not a complete vision transformer"):
            opened(model, tmp_path / str(number))


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated_weights_of_a_foundation_model_are_a_sentence(keep, tmp_path):
    opened(SwinModel(SwinConfig(**SWIN, patch_size=4)), tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: int(keep * len(whole)) if keep == 0.5 else keep])
    with pytest.raises(InputError, match="cannot be loaded"):
        FoundationModel.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "[]", "3", '{"image_mean": 3, "image_std": [1, 1, 1]}', "\xff"),
        *('{"image_mean": ["a"], "image_std": [1]}', '{"image_mean": [0, 0], "image_std": [1, 1]}'),
        '{"image_mean": [0, 0, 0], "image_std": [0, 1, 1]}',
    ],
)
def test_a_preprocessor_file_of_the_wrong_shape_is_a_sentence(text, tmp_path):
    opened(SwinModel(SwinConfig(**SWIN, patch_size=4)), tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="preprocessor_config"):
        FoundationModel.from_pretrained(str(tmp_path))
