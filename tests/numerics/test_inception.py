"""Inception-v3: its layers against plain second computations, and the whole against pytorch-fid and torch-fidelity."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from alight.models import inception
from alight.models.inception import InceptionV3, prepare, resize_like_tensorflow
from alight.runtime.errors import InputError
from helpers.random_inception import random_inception

ROUNDING = 1e-5  # float32 through some hundred layers and sums, relative to the largest value


@pytest.fixture(scope="module")
def network() -> InceptionV3:
    return random_inception()


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def relative_error(actual, expected):
    return ((actual.double() - expected).abs().max() / expected.abs().max()).item()


# --- the input


@pytest.mark.parametrize(("height", "width", "size"), [(5, 7, 13), (13, 11, 5), (4, 4, 4), (1, 2, 3)])
def test_tensorflow_resizing_is_the_double_loop_over_top_left_positions(height, width, size):
    image = np.random.default_rng(0).integers(0, 256, (height, width)).astype(float)
    expected = np.empty((size, size))
    for row in range(size):
        for column in range(size):
            y, x = row * height / size, column * width / size
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            above = image[top, left] * (1 - x + left) + image[top, right] * (x - left)
            below = image[bottom, left] * (1 - x + left) + image[bottom, right] * (x - left)
            expected[row, column] = above * (1 - y + top) + below * (y - top)
    resized = resize_like_tensorflow(torch.from_numpy(image).float()[None, None], size)
    np.testing.assert_allclose(resized[0, 0], expected, atol=255 * 4e-7 * size)  # positions are float32 too


def test_both_preparations_scale_8_bit_pixels_as_their_evaluators_do():
    levels = torch.tensor([0, 1, 127, 128, 255], dtype=torch.uint8)
    images = (levels / 127.5 - 1).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    for resize, expected in (("tensorflow", (levels.float() - 128) / 128), ("pytorch", 2 * (levels / 255) - 1)):
        prepared = prepare(images, resize)
        assert prepared.shape == (5, 3, 299, 299)
        torch.testing.assert_close(prepared[:, 0, 0, 0], expected, rtol=0, atol=1e-7)
        torch.testing.assert_close(prepared[:, 2, 298, 150], expected, rtol=0, atol=1e-7)


def test_images_that_are_no_colour_images_are_refused(network):
    for images in (torch.zeros(2, 1, 8, 8), torch.zeros(3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(InputError, match=r"takes images \(B, 3, H, W\)"):
            network(images)
    with pytest.raises(InputError, match="not 'bicubic'"):
        network(torch.zeros(1, 3, 8, 8), resize="bicubic")


# --- the layers


def test_size_and_names_of_the_published_weights(network):
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_850_960
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert sum(name.endswith(".conv.weight") for name in shapes) == 94
    for name, shape in {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5d.branch_pool.conv.weight": (64, 288, 1, 1),
        "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
        "Mixed_6c.branch7x7dbl_4.conv.weight": (160, 160, 7, 1),
        "Mixed_7a.branch7x7x3_2.conv.weight": (192, 192, 1, 7),
        "Mixed_7c.branch3x3dbl_3a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_3b.bn.bias": (384,),
        "fc.weight": (1008, 2048),
        "fc.bias": (1008,),
    }.items():
        assert shapes[name] == shape


def test_average_pools_divide_by_the_positions_that_exist(network):
    x = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.empty_like(x)
    for row in range(5):
        for column in range(4):
            window = x[..., max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            expected[..., row, column] = window.mean(dim=(2, 3))
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7b"):
        torch.testing.assert_close(network.get_submodule(name).pool(x), expected)


def test_the_last_block_pools_by_the_maximum_and_reductions_halve_without_padding(network):
    x = torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    pooled = network.Mixed_7c.pool(x)
    assert pooled.shape == x.shape
    assert pooled[0, 0, 0, 0] == x[0, 0, :2, :2].max()
    assert pooled[0, 0, 2, 3] == x[0, 0, 1:4, 2:5].max()
    for name in ("Mixed_6a", "Mixed_7a"):
        halved = network.get_submodule(name).pool(x)
        assert halved.shape == (1, 1, 2, 2)
        assert halved[0, 0, 1, 0] == x[0, 0, 2:5, :3].max()


def plain_convolution(network, name, x, padding, stride=1):
    """Convolution, normalisation with epsilon 0.001 and ReLU, in float64 from the stored numbers."""
    stored = {key: value.double() for key, value in network.get_submodule(name).state_dict().items()}
    y = F.conv2d(x, stored["conv.weight"], stride=stride, padding=padding)
    mean, variance, weight, bias = (
        stored[f"bn.{key}"].view(1, -1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
    )
    return ((y - mean) / (variance + 0.001).sqrt() * weight + bias).clamp(min=0)


def test_the_last_block_is_wired_as_a_row_beside_a_column(network):
    x = torch.rand(1, 2048, 8, 8, generator=torch.Generator().manual_seed(0))

    def layer(name, y, padding=0):
        return plain_convolution(network, f"Mixed_7c.{name}", y, padding)

    z = x.double()
    middle = layer("branch3x3_1", z)
    double = layer("branch3x3dbl_2", layer("branch3x3dbl_1", z), 1)
    expected = torch.cat(
        [
            layer("branch1x1", z),
            layer("branch3x3_2a", middle, (0, 1)),
            layer("branch3x3_2b", middle, (1, 0)),
            layer("branch3x3dbl_3a", double, (0, 1)),
            layer("branch3x3dbl_3b", double, (1, 0)),
            layer("branch_pool", F.max_pool2d(z, 3, 1, 1)),
        ],
        dim=1,
    )
    assert relative_error(network.Mixed_7c(x), expected) < ROUNDING


def test_a_reduction_joins_its_branches_and_the_pooled_input(network):
    x = torch.rand(1, 288, 9, 9, generator=torch.Generator().manual_seed(0))
    z = x.double()
    single = plain_convolution(network, "Mixed_6a.branch3x3", z, 0, stride=2)
    double = plain_convolution(network, "Mixed_6a.branch3x3dbl_1", z, 0)
    double = plain_convolution(network, "Mixed_6a.branch3x3dbl_2", double, 1)
    double = plain_convolution(network, "Mixed_6a.branch3x3dbl_3", double, 0, stride=2)
    expected = torch.cat([single, double, F.max_pool2d(z, 3, 2)], dim=1)
    assert expected.shape == (1, 768, 4, 4)
    assert relative_error(network.Mixed_6a(x), expected) < ROUNDING


# --- the whole


def test_activations_are_what_they_are_called(network, pixels):
    seen = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
        for name in ("Mixed_6d.branch1x1", "Mixed_7c")
    ]
    output = network(pixels / 127.5 - 1)
    for hook in hooks:
        hook.remove()
    assert (output.pool.shape, output.spatial.shape, output.logits.shape) == ((2, 2048), (2, 2023), (2, 1008))
    assert not any(activation.requires_grad for activation in output)

    grid = seen["Mixed_6d.branch1x1"]  # (2, 192, 17, 17)
    assert output.spatial[1, 7 * (17 * 3 + 5) + 6] == grid[1, 6, 3, 5]  # channels last
    torch.testing.assert_close(output.pool, seen["Mixed_7c"].flatten(2).mean(dim=2))
    expected = output.pool.double() @ network.fc.weight.double().T  # and no bias
    assert relative_error(output.logits, expected) < ROUNDING

    alone = network(pixels[:1] / 127.5 - 1)
    for one, both in zip(alone, output, strict=True):
        assert relative_error(one, both[:1].double()) < ROUNDING


def test_the_published_file_loads_with_and_without_counters(network, pixels, tmp_path, monkeypatch):
    weights = network.state_dict()
    torch.save(weights, tmp_path / "with.pth")
    torch.save({k: v for k, v in weights.items() if "num_batches_tracked" not in k}, tmp_path / "without.pth")
    with pytest.raises(InputError, match="SHA-256 begins .* instead of 6726825d"):
        InceptionV3.from_file(tmp_path / "with.pth")
    monkeypatch.setattr(inception, "WEIGHTS", replace(inception.WEIGHTS, sha256=""))
    images = pixels[:1] / 127.5 - 1
    for name in ("with.pth", "without.pth"):
        assert torch.equal(InceptionV3.from_file(tmp_path / name)(images).logits, network(images).logits)


def test_without_a_path_the_file_is_taken_from_the_cache(network, monkeypatch):
    monkeypatch.setattr(inception, "WEIGHTS", replace(inception.WEIGHTS, sha256=""))
    inception.WEIGHTS.cached.parent.mkdir(parents=True)
    torch.save(network.state_dict(), inception.WEIGHTS.cached)
    assert torch.equal(InceptionV3.from_file().fc.bias, network.fc.bias)


def test_other_files_are_refused_by_name_and_address(network, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"no file .*absent.pth.*https://.*pt_inception-2015-12-05-6726825d.pth"):
        InceptionV3.from_file(tmp_path / "absent.pth")
    monkeypatch.setattr(inception, "WEIGHTS", replace(inception.WEIGHTS, sha256=""))
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(InputError, match="cannot be read as PyTorch weights"):
        InceptionV3.from_file(tmp_path / "cut.pth")
    weights = network.state_dict()
    weights["fc.weight"] = weights["fc.weight"][:1000]  # torchvision's classes
    del weights["Mixed_7c.branch1x1.conv.weight"]
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"1 missing \(Mixed_7c.*fc.weight \(1000, 2048\)"):
        InceptionV3.from_file(tmp_path / "other.pth")


def test_activations_equal_those_of_pytorch_fid_and_torch_fidelity(network, pixels, tmp_path):
    """With random weights: the same operations in the same order, so only the convolution library may differ."""
    oracles = os.environ.get("ALIGHT_ORACLES")
    if not oracles:
        pytest.skip(
            "pytorch-fid and torch-fidelity import torchvision, which breaks beside a CPU build of torch: install "
            "the three with `pip install --no-deps --target FOLDER` and set ALIGHT_ORACLES=FOLDER"
        )
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    torch.save(pixels, tmp_path / "images.pt")
    files = [str(tmp_path / name) for name in ("weights.pth", "images.pt", "result.pt")]
    subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "helpers" / "inception_oracle.py"), *files],
        env={**os.environ, "PYTHONPATH": oracles},
        check=True,
        timeout=300,
    )
    expected = torch.load(files[2], weights_only=True)
    images = pixels / 127.5 - 1
    output = network(images)
    assert relative_error(network(images, resize="pytorch").pool, expected["pytorch"]) < ROUNDING
    assert relative_error(output.pool, expected["pool"]) < ROUNDING
    assert relative_error(output.logits, expected["logits"]) < ROUNDING
    grid = expected["branch1x1"][:, :7].permute(0, 2, 3, 1).flatten(1)
    assert relative_error(output.spatial, grid) < ROUNDING
    assert relative_error(output.pool, expected["pytorch"]) > 100 * ROUNDING  # the two resizings are told apart
