"""LPIPS from the files that people have: torchvision's VGG16 and the linear layers of LPIPS v0.1."""

from pathlib import Path

import pytest
import torch

from alight.models.perceptual import LPIPS, LPIPS_LINEAR, VGG16
from alight.runtime.errors import InputError

# position in torchvision's `features` -> input and output channels
CONVOLUTIONS = {
    0: (3, 64),
    2: (64, 64),
    5: (64, 128),
    7: (128, 128),
    10: (128, 256),
    12: (256, 256),
    14: (256, 256),
    17: (256, 512),
    19: (512, 512),
    21: (512, 512),
    24: (512, 512),
    26: (512, 512),
    28: (512, 512),
}


@pytest.fixture(scope="module")
def vgg16():
    """Random weights in the layout of `vgg16-397923af.pth`; of the unused classifier, a sliver."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for index, (inputs, outputs) in CONVOLUTIONS.items():
        scale = (2 / (9 * inputs)) ** 0.5
        weights[f"features.{index}.weight"] = scale * torch.randn(outputs, inputs, 3, 3, generator=generator)
        weights[f"features.{index}.bias"] = torch.zeros(outputs)
    for index in (0, 3, 6):
        weights |= {f"classifier.{index}.weight": torch.zeros(1, 1), f"classifier.{index}.bias": torch.zeros(1)}
    return weights


@pytest.fixture(scope="module")
def linear_file():
    """The real linear layers, which torchmetrics ships."""
    torchmetrics = pytest.importorskip("torchmetrics")
    return Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "vgg.pth"


@pytest.fixture(scope="module")
def linear(linear_file):
    return torch.load(linear_file, map_location="cpu", weights_only=True)


@pytest.fixture(scope="module")
def lpips(vgg16, linear):
    return LPIPS.from_weights(vgg16, linear)


def images(seed, size=32):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_real_linear_layers_have_the_checksum(linear_file):
    assert LPIPS_LINEAR.locate(linear_file) == linear_file


def test_every_weight_finds_its_place(lpips, vgg16, linear):
    state = lpips.state_dict()
    assert len(state) == 2 * len(CONVOLUTIONS) + 5
    for index in CONVOLUTIONS:
        for kind in ("weight", "bias"):
            assert torch.equal(state[f"features.{index}.{kind}"], vgg16[f"features.{index}.{kind}"])
    for index in range(5):
        assert torch.equal(state[f"linear.{index}"], linear[f"lin{index}.model.1.weight"])
    assert not any(parameter.requires_grad for parameter in lpips.parameters())


def test_is_a_distance_per_image(lpips):
    a, b = images(1), images(2)
    with torch.no_grad():
        distance = lpips(a, b)
        assert distance.shape == (2, 1, 1, 1)
        assert distance.min() > 0
        assert lpips(a, a).abs().max() == 0
        torch.testing.assert_close(lpips(b, a), distance)
        torch.testing.assert_close(lpips(a[1:], b[1:]), distance[1:])


def test_gradient_is_finite_where_features_vanish(vgg16, linear):
    dark = {
        name: torch.full_like(value, -1.0) if name.endswith("bias") else 0 * value for name, value in vgg16.items()
    }
    a = images(1).requires_grad_()
    LPIPS.from_weights(dark, linear)(a, images(2)).sum().backward()
    assert torch.isfinite(a.grad).all()


def test_distances_are_float32_in_bf16(lpips):
    with torch.no_grad():
        expected = lpips(images(1), images(2))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            distance = lpips(images(1), images(2))
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance, expected, rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda vgg16, linear: vgg16.pop("features.28.bias"), "1 missing"),
        (lambda vgg16, linear: linear.pop("lin4.model.1.weight"), "1 missing"),
        (lambda vgg16, linear: linear.update({"lin5.model.1.weight": torch.zeros(1)}), "1 unexpected"),
        (lambda vgg16, linear: vgg16.update({"features.5.weight": torch.zeros(1)}), "1 of another shape"),
        (lambda vgg16, linear: linear["lin0.model.1.weight"].fill_(torch.nan), "1 not finite"),
    ],
)
def test_other_weights_are_refused(vgg16, linear, damage, complaint):
    vgg16, linear = dict(vgg16), {name: value.clone() for name, value in linear.items()}
    damage(vgg16, linear)
    with pytest.raises(InputError, match=complaint):
        LPIPS.from_weights(vgg16, linear)


def test_other_files_are_refused(vgg16, linear_file, tmp_path):
    path = tmp_path / "vgg16-397923af.pth"
    torch.save(vgg16, path)  # of the right layout, but not the file
    with pytest.raises(InputError, match="another file, or damaged") as error:
        LPIPS.from_files(path, linear_file)
    assert str(path) in str(error.value)
    assert VGG16.url in str(error.value)
    with pytest.raises(InputError, match="There is no file"):
        LPIPS.from_files(tmp_path / "absent.pth", linear_file)
