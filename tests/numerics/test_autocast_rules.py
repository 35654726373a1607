"""The precision of every operation of training and sampling in bf16, by the rules of CUDA, which are not the CPU's.

Products are taken in bf16; norms, the residual stream of the transformer, all losses and the state of the solvers stay
in float32. The tables hold the types of the results, function by function.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from alight.flow import GuidedVelocity, LinearPath, sample
from alight.flow.solvers import FIXED_STEP
from alight.models.discriminator import PatchDiscriminator
from alight.options import MEAN_SOLVER, SDE_SOLVERS
from alight.runtime.device import autocast
from alight.stages.extract_latents import moments
from helpers.fake_gpu import GPU, fake_gpu, move_to_gpu
from helpers.models import tiny_transformer
from helpers.places import Place, calling_place
from helpers.stage_steps import TOKENIZER_STEPS, TRANSFORMER_STEPS, Parts, TokenizerTraining, TransformerTraining

pytestmark = pytest.mark.skipif(
    torch.version.cuda is not None and not torch.cuda.is_available(), reason="a build for CUDA asks for its driver"
)
CPU = torch.device("cpu")
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.complex64: "complex"}
COMPUTING = (
    *("linear", "conv2d", "scaled_dot_product_attention", "embedding", "addcmul", "interpolate", "max_pool2d"),
    *("rms_norm", "layer_norm", "group_norm", "batch_norm", "linalg_vector_norm"),
    *("silu", "gelu", "relu", "leaky_relu"),
)
PRODUCTS = {"linear": "bf16", "scaled_dot_product_attention": "bf16"}
TRANSFORMER = PRODUCTS | {"embedding": "fp32", "addcmul": "fp32", "rms_norm": "fp32", "silu": "bf16 fp32"}
PLAIN_DIT = PRODUCTS | {"embedding": "fp32", "addcmul": "fp32", "layer_norm": "fp32", "silu": "bf16 fp32"}
ENCODER = PRODUCTS | {"conv2d": "bf16", "group_norm": "fp32", "silu": "fp32"}
TABLES = {
    "transformer": TRANSFORMER,
    "transformer with normalised queries": TRANSFORMER,
    "transformer as DiT has it": PLAIN_DIT | {"gelu": "bf16"},
    "encoder": ENCODER,
    "decoder": ENCODER | {"interpolate": "fp32"},
    "discriminator": {"conv2d": "bf16", "batch_norm": "bf16", "leaky_relu": "bf16"},
    "lpips": {"conv2d": "bf16", "relu": "bf16", "max_pool2d": "bf16", "linalg_vector_norm": "fp32"},
    "foundation": PRODUCTS | {"conv2d": "bf16", "layer_norm": "fp32", "gelu": "bf16"},
}
EXACT = ("losses/", "flow/")  # whatever the networks give, everything in these folders is computed in float32
TIMES = Place("models/embeddings.py", "sinusoidal_embedding")
RANDOM_TIMES = Place("models/embeddings.py", "forward")  # of a wide head
ROTATION = Place("models/position.py", "rotate")


class Trace(TorchFunctionMode):
    """Records the types of the floating-point results within it.

    Attributes:
        results: by place and function.
    """

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[tuple[Place, str], set[str]] = defaultdict(set)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.device == GPU]
        kinds = {NAMES.get(tensor.dtype, str(tensor.dtype)) for tensor in tensors if not is_integer(tensor)}
        if kinds:
            self.results[calling_place(), function.__name__] |= kinds
        return result

    @property
    def table(self) -> dict[str, str]:
        """The types of the results of functions that compute, by their names."""
        found = defaultdict(set)
        for (_, name), kinds in self.results.items():
            if name in COMPUTING:
                found[name] |= kinds
        return {name: " ".join(sorted(kinds)) for name, kinds in found.items()}

    def of(self, prefix: str | Place) -> dict[str, set[str]]:
        """The types of the results in files whose names begin so, or in one function of a file, by function called."""
        inside = (lambda place: place == prefix) if isinstance(prefix, Place) else lambda p: p.file.startswith(prefix)
        found = defaultdict(set)
        for (place, name), kinds in self.results.items():
            if inside(place):
                found[name] |= kinds
        return found


def is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def traced(work: Callable[[], Any]) -> tuple[Trace, Any]:
    with Trace() as trace:
        result = work()
    return trace, result


def empty(*shape: int) -> Tensor:
    return torch.empty(*shape, device=GPU)


def labels(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64, device=GPU)


def networks() -> dict[str, tuple[torch.nn.Module, Callable[[Any], Any]]]:
    """Each network of a table, and a call of it."""
    parts, images = Parts.build(), (2, 3, 32, 32)
    transformers = {
        "transformer": {},
        "transformer with normalised queries": {"qk_norm": True},
        "transformer as DiT has it": {"norm": "layer_norm", "feed_forward": "gelu", "rope": False},
    }
    return {
        **{
            name: (tiny_transformer(**options), lambda model: model(empty(2, 4, 4, 4), empty(2), labels(2)))
            for name, options in transformers.items()
        },
        "encoder": (parts.vae, lambda vae: vae.posterior(empty(*images)).mean),
        "decoder": (parts.vae, lambda vae: vae.decode_raw_latents(empty(2, 4, 8, 8))),
        "discriminator": (PatchDiscriminator(width=8), lambda network: network(empty(*images))),
        "lpips": (parts.lpips, lambda network: network(empty(*images), empty(*images))),
        "foundation": (parts.foundation, lambda network: network(empty(*images), (8, 8))),
    }


@pytest.mark.parametrize("name", TABLES)
def test_every_operation_has_its_precision(name):
    network, call = networks()[name]
    with fake_gpu():
        move_to_gpu(network)
        with autocast(GPU, "bf16"):
            trace, _ = traced(lambda: call(network))
    assert trace.table == TABLES[name]


def assert_exact(trace):
    """Losses, paths and solvers compute in float32."""
    for folder in EXACT:
        wrong = {name: kinds for name, kinds in trace.of(folder).items() if kinds != {"fp32"}}
        assert not wrong, folder


@pytest.mark.parametrize("kind", TRANSFORMER_STEPS)
def test_the_step_of_the_transformer(kind):
    training = TransformerTraining.build(CPU, kind, precision="bf16")
    with fake_gpu():
        move_to_gpu(training.networks.trained)
        trace, scalars = traced(lambda: training.backward(training.batch.to(GPU)))
    assert {scalar.dtype for scalar in scalars.values()} == {torch.float32}
    assert trace.of("flow/")
    assert_exact(trace)
    assert trace.of(RANDOM_TIMES if kind == "wide_head" else TIMES)["cos"] == {"fp32"}
    assert trace.of(ROTATION)["mul"] == {"complex"}
    assert trace.table["addcmul"] == "fp32"  # the residual stream


@pytest.mark.parametrize("kind", TOKENIZER_STEPS)
def test_the_step_of_the_tokenizer(kind):
    training = TokenizerTraining.build(CPU, kind)
    with fake_gpu():
        for network in vars(training.networks).values():
            if network is not None:
                move_to_gpu(network)
        trace, scalars = traced(lambda: training.backward(training.images.to(GPU), training.noise.to(GPU), "bf16"))
    assert {scalar.dtype for scalar in scalars.values()} == {torch.float32}
    assert trace.of("losses/")
    assert_exact(trace)
    if kind in ("aligned", "all"):  # its products are those of a small matrix, and decide the weight of the loss
        assert trace.of("losses/alignment.py")["matmul"] == {"fp32"}


@pytest.mark.parametrize("solver", [*FIXED_STEP, *SDE_SOLVERS, MEAN_SOLVER])
@torch.no_grad()
def test_the_state_of_every_solver(solver):
    model = tiny_transformer(interval_embedding=True)
    scale = 1.0 if solver == MEAN_SOLVER else 2.0
    with fake_gpu():
        move_to_gpu(model)
        velocity = GuidedVelocity(model, labels(2), labels(2), scale)
        with autocast(GPU, "bf16"):
            trace, result = traced(lambda: sample(velocity, empty(2, 4, 4, 4), 3, solver, path=LinearPath()))
    assert result.x.dtype == torch.float32
    assert_exact(trace)


@torch.no_grad()
def test_moments_that_are_stored():
    vae = Parts.build().vae
    with fake_gpu():
        move_to_gpu(vae)
        with autocast(GPU, "bf16"):
            mean, logvar = moments(vae, empty(2, 3, 32, 32))
    assert mean.dtype == logvar.dtype == torch.float32


def test_a_loss_under_autocast_without_its_island_would_be_noticed():
    with fake_gpu(), autocast(GPU, "bf16"):
        trace, result = traced(lambda: empty(2, 3) @ empty(3, 2))
    assert result.dtype == torch.bfloat16
    assert {kind for kinds in trace.results.values() for kind in kinds} == {"fp32", "bf16"}
