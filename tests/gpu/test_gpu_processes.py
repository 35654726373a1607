"""DDP and FSDP2 over NCCL, of a single process, and the whole arrow on a device."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from alight.artifacts import read_artifact
from alight.runtime.distributed import Processes
from alight.training.optimizer import make_optimizer, optimizer_step
from alight.training.parallel import ModelState, OptimizerState, shard, synchronised, whole_weights
from alight.training.transformer_step import transformer_backward
from helpers.command_line import run_alight
from helpers.stage_steps import TransformerTraining
from helpers.tiny_quickstart import TINY_QUICKSTART

CUDA = torch.device("cuda", 0)


@pytest.fixture
def nccl(tmp_path):
    """A group of one process that exchanges CUDA tensors through NCCL, as torchrun would start it."""
    torch.cuda.set_device(CUDA)
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield Processes(0, 1, CUDA)
    dist.destroy_process_group()


def laid_out(kind, precision="fp32"):
    """A model in training, its average and its optimizer, alone, replicated or sharded."""
    training = TransformerTraining.build(CUDA, "velocity")
    config, model, ema = training.config, training.networks.model, training.networks.ema
    forward = model
    if kind == "replicate":
        forward = DistributedDataParallel(model, device_ids=[CUDA])
    if kind == "shard":
        for each in (model, ema.model):
            shard(each, each.blocks, Processes(0, 1, CUDA), precision, keep_gathered=each is model)
    return training, forward, model, ema, make_optimizer(model.named_parameters(), config.optimizer)


def trained(kind, precision="fp32", steps=3):
    training, forward, model, ema, optimizer = laid_out(kind, precision)
    parts = training.batch.micro_batches(2)
    for step in range(steps):
        for number, part in enumerate(parts, start=1):
            with synchronised(forward, last=number == len(parts)):
                transformer_backward(forward, part.to(CUDA), training.config.flow, precision, len(parts))
        norm = optimizer_step(optimizer, 1e-3, 1.0)
        ema.update(model, step)
    return float(norm), whole_weights(model), whole_weights(ema.model), (model, optimizer)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["replicate", "shard"])
def test_one_process_over_nccl_trains_like_one_without(nccl, kind, precision):
    expected, found = trained("alone", precision), trained(kind, precision)
    assert found[0] == pytest.approx(expected[0], rel=1e-4 if precision == "fp32" else 0.03)
    for ours, theirs in zip(found[1:3], expected[1:3], strict=True):
        assert ours.keys() == theirs.keys()
        # three steps of Adam at 1e-3, in which signs of tiny gradients may differ: of more of them in bf16
        tolerance = 1e-3 if precision == "fp32" else 6e-3
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name].cpu(), rtol=0, atol=tolerance, msg=name)


def test_a_step_that_is_not_finite_leaves_shards_as_they_are(nccl):
    *_, (model, optimizer) = trained("shard")
    weights = copy.deepcopy(ModelState(model).state_dict())
    memory = copy.deepcopy(OptimizerState(model, optimizer).state_dict()["state"])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) * float("nan")
    assert not torch.isfinite(optimizer_step(optimizer, 0.1, 1.0))
    assert all(torch.equal(value, weights[name]) for name, value in ModelState(model).state_dict().items())
    torch.testing.assert_close(OptimizerState(model, optimizer).state_dict()["state"], memory, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["replicate", "shard"])
def test_averages_follow_weights_that_are_laid_out(nccl, kind):
    training, forward, model, ema, optimizer = laid_out(kind)
    transformer_backward(forward, training.batch.to(CUDA), training.config.flow)
    optimizer_step(optimizer, 0.1, None)
    before = copy.deepcopy(ModelState(ema.model).state_dict())
    ema.update(model, 0)
    after, target = ModelState(ema.model).state_dict(), ModelState(model).state_dict()
    for name, value in after.items():
        expected = before[name].cpu().lerp(target[name].cpu(), 1 - ema.decay)
        torch.testing.assert_close(value.cpu(), expected, msg=name)


@pytest.mark.slow
def test_the_quickstart_runs_on_the_device(tmp_path):
    result = run_alight(*TINY_QUICKSTART, "--device", "cuda", "--output", tmp_path / "run", timeout=600)
    assert result.returncode == 0, result.stderr
    for stage in ("foundation", "tokenizer", "latents", "transformer", "samples", "report"):
        assert read_artifact(tmp_path / "run" / stage, stage).config["device"] == "cuda"
