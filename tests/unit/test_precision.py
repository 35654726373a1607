"""The precision policy: full float32 where scores need its digits, the user's own settings afterwards, and bf16 only
where it is faster."""

import logging

import pytest
import torch

from alight.config.recipes import load_config
from alight.doctor.recipe_needs import needs
from alight.plan.usable_precision import in_usable_precision
from alight.runtime import device as policy
from alight.runtime import hardware
from alight.runtime.device import (
    autocast,
    bf16_advantage,
    fast_float32,
    faster_precision,
    full_float32,
    warn_of_slow_precision,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def multiplies_in_bf16(monkeypatch):
    """Set how many times as fast as fp32 this machine multiplies in bf16."""

    def let(advantage):
        bf16_advantage.cache_clear()
        rates = {"fp32": 1e11, "bf16": advantage * 1e11}
        monkeypatch.setattr(policy, "matrix_product_rate", lambda device, precision: rates[precision])

    yield let
    bf16_advantage.cache_clear()


def older():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def newer():
    places = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends)
    return tuple(place.fp32_precision for place in (*places, torch.backends.mkldnn.matmul))


def use_nothing():
    """Leave the settings as PyTorch has them."""


def use_older():
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True


def use_newer():
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"


def use_newer_for_convolutions():
    torch.backends.cudnn.conv.fp32_precision = "ieee"


def use_newer_for_everything():
    torch.backends.fp32_precision = "tf32"


USES = [use_nothing, use_older, use_newer, use_newer_for_convolutions, use_newer_for_everything]


@pytest.fixture
def untouched():
    """Put every setting back as it was."""
    before, products = newer(), older()[0]
    yield
    torch.backends.fp32_precision = before[3]
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision = before[0], before[4]
    assert newer() == before


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
@pytest.mark.parametrize(("policy", "inside"), [(full_float32, "ieee"), (lambda: fast_float32(CUDA), "tf32")])
def test_products_of_float32_are_as_told_inside_and_as_before_outside(use, policy, inside):
    """Whichever of PyTorch's two ways the caller has used, of which the older cannot be read after the newer."""
    use()
    before, readable = newer(), readable_older()
    with policy():
        assert {"tf32" if value == "tf32" else "ieee" for value in newer()[:2]} == {inside}
    assert (newer(), readable_older()) == (before, readable)
    with pytest.raises(KeyError), policy():
        raise KeyError
    assert (newer(), readable_older()) == (before, readable)


def readable_older():
    try:
        return older()
    except RuntimeError:
        return None


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("policy", [full_float32, lambda: fast_float32(CUDA)])
def test_compilers_can_read_the_settings(policy):
    """They read the older ones, and fail where only the newer were set."""
    with policy():
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == (policy is not full_float32)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_only_cuda_has_fast_products(device):
    before = newer(), older()
    with fast_float32(torch.device(device)):
        assert (newer(), older()) == before


@pytest.mark.usefixtures("untouched")
def test_islands_of_full_float32_lie_within_fast_work():
    with fast_float32(CUDA):
        with full_float32():
            assert older() == ("highest", False)
        assert older() == ("high", True)


@pytest.mark.parametrize("precision", ["auto", "fp16", ""])
def test_no_forward_pass_runs_in_a_precision_that_was_not_decided(precision):
    with pytest.raises(ValueError, match="fp32 or bf16"):
        autocast(CPU, precision)


@pytest.mark.parametrize(("advantage", "precision"), [(0.01, "fp32"), (1.1, "fp32"), (1.9, "bf16"), (8.0, "bf16")])
def test_bf16_is_chosen_where_it_is_clearly_faster(multiplies_in_bf16, advantage, precision):
    multiplies_in_bf16(advantage)
    assert faster_precision(CPU) == precision


@pytest.mark.parametrize(
    ("advantage", "precision", "warned"), [(0.01, "bf16", True), (0.01, "fp32", False), (2.0, "bf16", False)]
)
def test_slow_bf16_is_warned_of(multiplies_in_bf16, caplog, monkeypatch, advantage, precision, warned):
    multiplies_in_bf16(advantage)
    monkeypatch.setattr(logging.getLogger("alight"), "propagate", True)
    warn_of_slow_precision(CPU, precision)
    assert ("100 times as slowly in bf16" in caplog.text) == warned


@pytest.mark.parametrize(("advantage", "verdicts"), [(0.01, ["warning"]), (2.0, [])])
def test_doctor_warns_of_a_recipe_in_slow_bf16(multiplies_in_bf16, tmp_path, advantage, verdicts):
    multiplies_in_bf16(advantage)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("job: foundation train\ntraining: {precision: bf16}\n")
    assert [finding.verdict for finding in needs(str(recipe)) if finding.subject == "precision"] == verdicts


@pytest.mark.parametrize(("advantage", "precision"), [(0.01, "fp32"), (2.0, "bf16")])
def test_a_recipe_is_planned_in_a_precision_of_this_machine(multiplies_in_bf16, advantage, precision):
    multiplies_in_bf16(advantage)
    recipe = load_config("own_images/gpu")
    planned = in_usable_precision(recipe, CPU)
    assert {planned.latents.precision, planned.tokenizer.training.precision} == {precision}
    assert planned.transformer.training.steps == recipe.transformer.training.steps


def test_a_rate_of_slow_products_is_measured_on_small_matrices(monkeypatch):
    """A processor without bf16 instructions took two minutes for large ones."""
    sizes = []

    def slow(a, b, products=1):
        sizes.append(len(a))
        return 0.6 * (len(a) / 256) ** 3

    monkeypatch.setattr(hardware, "_product_seconds", slow)
    monkeypatch.setattr(hardware, "_RATE_SECONDS", 0.0)
    assert hardware.matrix_product_rate(CPU, "bf16") == 2 * 256**3 / 0.6
    assert sizes == [256]


def test_the_rate_of_products_is_that_of_numbers_without_a_pattern(monkeypatch):
    """Matrices of ones draw little power on a GPU, which then runs faster than with any real data."""
    factors = []
    monkeypatch.setattr(torch, "mm", lambda a, b: factors.append((a, b)))
    hardware.matrix_product_rate(CPU, "fp32")
    for each in factors[-1]:
        assert abs(float(each.mean())) < 0.1
        assert float(each.std()) == pytest.approx(1, abs=0.1)
    assert not torch.equal(*factors[-1])
