"""Memory that runs out within a step: the message names the micro-batch that fits, found by trying."""

import time

import pytest
import torch
import torch.distributed as dist

from alight.config.recipes import validate
from alight.models.lightning_dit import LightningDiT
from alight.models.vavae import VAVAE
from alight.plan.measure import sweep
from alight.plan.untrained import LatentShape
from alight.plan.workload import TransformerWorkload
from alight.runtime.errors import InputError
from alight.runtime.memory import smaller_divisors
from alight.stages import train_transformer
from alight.training import shortage
from helpers.stage_steps import TokenizerTraining, TransformerTraining, transformer_config
from helpers.written import write_latents

CPU = torch.device("cpu")


@pytest.fixture
def memory_for(monkeypatch):
    """Let networks run out of memory on batches of more than so many images, as an allocator would within them."""

    def limit(network, method, images):
        work = getattr(network, method)

        def limited(self, batch, *arguments, **options):
            tried.append(len(batch))
            if len(batch) > images:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return work(self, batch, *arguments, **options)

        monkeypatch.setattr(network, method, limited)
        return tried

    tried = []
    return limit


@pytest.mark.parametrize(("fits", "named"), [(1, 1), (3, 3), (4, 4), (5, 4), (11, 6)])
def test_the_largest_micro_batch_that_fits_is_named(memory_for, fits, named):
    training = TransformerTraining.build(CPU, global_batch_size=12)
    tried = memory_for(LightningDiT, "forward", fits)
    with pytest.raises(
        InputError, match=f"12 images does not fit .*micro_batch_size to {named}, which fits"
    ) as caught:
        training.step(CPU)
    assert "training.activation_checkpointing" in str(caught.value)
    assert tried == [12, *(count for count in (6, 4, 3, 2, 1) if count >= named)]


@pytest.mark.parametrize("kind", ["velocity", "aligned", "average_velocity"])
def test_every_step_of_the_transformer_says_so(memory_for, kind):
    training = TransformerTraining.build(CPU, kind)
    memory_for(LightningDiT, "forward", 2)
    with pytest.raises(InputError, match="micro_batch_size to 2, which fits"):
        training.step(CPU)


@pytest.mark.parametrize("kind", ["aligned", "all"])
def test_the_step_of_the_tokenizer_says_so(memory_for, kind):
    training = TokenizerTraining.build(CPU, kind)
    memory_for(VAVAE, "decode_raw_latents", 1)
    with pytest.raises(InputError, match="2 images does not fit .*micro_batch_size to 1, which fits"):
        training.step(CPU)


def test_where_checkpointing_is_on_and_nothing_fits_a_smaller_model_is_advised(memory_for):
    training = TransformerTraining.build(CPU, activation_checkpointing=True)
    memory_for(LightningDiT, "forward", 0)
    with pytest.raises(InputError) as caught:
        training.step(CPU)
    assert str(caught.value) == (
        "A micro-batch of 4 images does not fit into the memory of cpu, nor does a single image. Take a smaller "
        "model, or a device with more memory."
    )


def test_the_memory_of_the_optimizer_stays_free(memory_for, monkeypatch):
    """Before its first step an optimizer has no moments, and what fits then would not fit later."""
    training = TransformerTraining.build(CPU)
    memory_for(LightningDiT, "forward", 2)
    weights = sum(weight.numel() for weight in training.networks.model.parameters())
    reserve = shortage.optimizer_memory([training.networks.model])
    assert reserve == 8 * weights
    empty = torch.empty

    def limited(size, *others, **options):
        if size == reserve:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return empty(size, *others, **options)

    monkeypatch.setattr(torch, "empty", limited)
    with pytest.raises(InputError, match="nor does a single image"):
        training.step(CPU)


def test_nothing_is_tried_where_other_processes_would_wait(memory_for, monkeypatch):
    training = TransformerTraining.build(CPU)
    tried = memory_for(LightningDiT, "forward", 2)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(InputError, match="micro_batch_size to a smaller divisor"):
        training.backward(training.batch)
    assert tried == [4]


def test_a_run_ends_with_that_message_and_goes_on_with_a_smaller_micro_batch(memory_for, tmp_path):
    values = {
        "latents": write_latents(tmp_path / "latents"),
        "output": tmp_path / "transformer",
        "device": "cpu",
        "sample_images": 0,
        "model": {"preset": None, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "patch_size": 1},
        "training": {"steps": 2, "global_batch_size": 8},
    }
    memory_for(LightningDiT, "forward", 4)
    with pytest.raises(InputError, match="micro_batch_size to 4, which fits"):
        train_transformer.run(validate(train_transformer.TrainTransformerConfig, values, "test"))
    values["training"]["micro_batch_size"] = 4
    train_transformer.run(validate(train_transformer.TrainTransformerConfig, values, "test"))


def test_a_plan_tries_micro_batches_itself(memory_for):
    """It learns of a shortage as it comes, so that it can end with what fits."""
    recipe, latents = transformer_config(), LatentShape((4, 4, 4), 10)
    work = TransformerWorkload(recipe, latents, CPU, num_layers=2)
    memory_for(LightningDiT, "forward", 2)
    costs = sweep({2: work}, 2, [1, 2, 4], 2**40, time.perf_counter() + 60)
    assert [cost.micro_batch for cost in costs] == [1, 2]


def test_divisors():
    assert smaller_divisors(12) == [6, 4, 3, 2, 1]
    assert smaller_divisors(7) == [1]
    assert smaller_divisors(1) == []
