"""Training steps on CUDA: the numbers of the CPU, bf16, the optimizer's contract, compilation, and no waiting."""

import copy

import pytest
import torch

from alight.config import OptimizerConfig
from alight.config.recipes import validate
from alight.runtime.device import compile_blocks
from alight.runtime.distributed import Processes
from alight.stages import train_transformer
from alight.training.meter import Averages
from alight.training.optimizer import OPTIMIZERS, make_optimizer, optimizer_step
from alight.training.run import TrainingRun
from helpers.models import tiny_transformer
from helpers.runs import before_each_step, losses
from helpers.stage_steps import TOKENIZER_STEPS, TRANSFORMER_STEPS, TokenizerTraining, TransformerTraining
from helpers.written import write_latents

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def weights_of(training):
    """All trained numbers in one vector on the CPU."""
    networks = training.networks
    modules = [networks.trained] if hasattr(networks, "trained") else [networks.vae, networks.projection]
    modules += [] if hasattr(networks, "trained") else [networks.discriminator]
    parameters = [parameter for module in modules if module is not None for parameter in module.parameters()]
    return torch.cat([parameter.detach().cpu().flatten() for parameter in parameters])


def gradient_of(training, build, device, *precision):
    """Scalars and gradient of one backward pass, on the CPU."""
    if build is TransformerTraining:
        scalars = training.backward(training.batch.to(device))
        modules = [training.networks.trained]
    else:
        scalars = training.backward(training.images.to(device), training.noise.to(device), *precision)
        modules = [training.networks.vae, training.networks.projection, training.networks.discriminator]
    parameters = [parameter for module in modules if module is not None for parameter in module.parameters()]
    gradient = torch.cat([parameter.grad.cpu().flatten() for parameter in parameters if parameter.grad is not None])
    return {name: float(value) for name, value in scalars.items()}, gradient


CASES = [
    *((TransformerTraining, kind) for kind in TRANSFORMER_STEPS),
    *((TokenizerTraining, kind) for kind in TOKENIZER_STEPS),
]
every_step = pytest.mark.parametrize(("build", "kind"), CASES, ids=[f"{b.__name__}-{kind}" for b, kind in CASES])


@pytest.mark.usefixtures("exact")
@every_step
def test_a_step_has_the_gradient_of_the_cpu(build, kind):
    expected, expected_gradient = gradient_of(build.build(CPU, kind), build, CPU)
    scalars, gradient = gradient_of(build.build(CUDA, kind), build, CUDA)
    assert scalars == pytest.approx(expected, rel=1e-3, abs=1e-4)  # other orders of summation, in float32
    assert (gradient - expected_gradient).norm() / expected_gradient.norm() < 1e-3


@every_step
def test_a_step_in_bf16_is_close_to_one_in_fp32(build, kind):
    if build is TransformerTraining:
        expected, exact = gradient_of(build.build(CUDA, kind), build, CUDA)
        scalars, gradient = gradient_of(build.build(CUDA, kind, precision="bf16"), build, CUDA)
    else:
        expected, exact = gradient_of(build.build(CUDA, kind), build, CUDA, "fp32")
        scalars, gradient = gradient_of(build.build(CUDA, kind), build, CUDA, "bf16")
    assert scalars["loss"] == pytest.approx(expected["loss"], rel=0.03)  # products keep eight bits
    assert (gradient - exact).norm() / exact.norm() < 0.2  # the ratio of two gradients weighs those of the tokenizer


@every_step
def test_a_step_changes_weights_and_keeps_them_finite(build, kind):
    training = build.build(CUDA, kind)
    before = weights_of(training)
    training.step(CUDA)
    after = weights_of(training)
    assert after.isfinite().all()
    assert (after != before).float().mean() > 0.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_leaves_all_as_it_is_where_a_gradient_is_not_finite(name, bad):
    model = tiny_transformer().to(CUDA)
    optimizer = make_optimizer(model.named_parameters(), OptimizerConfig(name=name))

    def learn(spoilt):
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.ones_like(parameter)
            if spoilt and number == 3:
                parameter.grad.view(-1)[0] = bad
        return optimizer_step(optimizer, 0.1, 1.0)

    learn(spoilt=False)
    weights, memory = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    assert not torch.isfinite(learn(spoilt=True))
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    torch.testing.assert_close(optimizer.state_dict()["state"], memory, rtol=0, atol=0)
    learn(spoilt=False)
    assert not torch.equal(model.state_dict()["patch_embed.weight"], weights["patch_embed.weight"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_blocks_have_the_gradient_of_eager_ones(precision):
    eager, compiled = (TransformerTraining.build(CUDA, "velocity", precision=precision) for _ in range(2))
    compile_blocks(compiled.networks.model.blocks)
    expected, expected_gradient = gradient_of(eager, TransformerTraining, CUDA)
    scalars, gradient = gradient_of(compiled, TransformerTraining, CUDA)
    # fused operations round differently: in bf16, intermediate results keep more bits than in eager mode
    tolerance = 1e-3 if precision == "fp32" else 0.03
    assert scalars == pytest.approx(expected, rel=tolerance)
    assert (gradient - expected_gradient).norm() / expected_gradient.norm() < tolerance


# --- waiting ------------------------------------------------------------------------------------------------------

# Average velocities are left out: each micro-batch asks for the rows whose step has a length.
WITHOUT_WAITING = [case for case in CASES if case[1] != "average_velocity"]


@pytest.mark.parametrize(("build", "kind"), WITHOUT_WAITING, ids=[f"{b.__name__}-{k}" for b, k in WITHOUT_WAITING])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_never_waits_for_the_device(build, kind, precision, no_waiting):
    averages = Averages()
    if build is TransformerTraining:
        training = build.build(CUDA, kind, precision=precision)
        inputs, options = (training.batch.to(CUDA),), ()
    else:
        training = build.build(CUDA, kind)
        inputs, options = (training.images.to(CUDA), training.noise.to(CUDA)), (precision,)
    for number in range(3):
        if number == 1:  # the first one chooses kernels and allocates
            no_waiting()
        for name, value in training.backward(*inputs, *options).items():
            averages.add(name, value)
        averages.add("grad_norm", training.update())
        averages.add("lr", 1e-3)


def test_the_check_of_the_gradient_never_waits_for_its_own_step(tmp_path, no_waiting):
    config = validate(train_transformer.TrainTransformerConfig, {}, "test").training
    run = TrainingRun(tmp_path, {}, config, {}, "test", Processes(0, 1, CUDA))
    with run:
        run.check(torch.ones((), device=CUDA))  # allocates pinned memory
        no_waiting()
        for _ in range(3):
            run.check(torch.ones((), device=CUDA))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loop_never_waits_for_the_device(tmp_path, monkeypatch, precision, no_waiting):
    """Everything between two optimizer steps: drawing, copying the batch over, losses, averages, bookkeeping."""
    values = {
        "latents": write_latents(tmp_path / "latents"),
        "output": tmp_path / "transformer",
        "device": "cuda",
        "sample_images": 0,
        "model": {"preset": None, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "patch_size": 1},
        "training": {
            "steps": 8,
            "global_batch_size": 8,
            "micro_batch_size": 4,
            "precision": precision,
            "compile": False,
        },
    }

    def watch(number):
        if number == 2:
            no_waiting()
        if number == 6:  # the log and the last checkpoint may wait
            torch.cuda.set_sync_debug_mode("default")

    with before_each_step(monkeypatch, watch):
        train_transformer.run(validate(train_transformer.TrainTransformerConfig, values, "test"))
    assert len(losses(tmp_path / "transformer")) == 1
