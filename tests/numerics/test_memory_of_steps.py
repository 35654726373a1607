"""The memory of a training step, counted on the meta device, and what a plan says of it."""

import pytest
import torch

from alight.config.recipes import load_config
from alight.plan.estimate import Sizes
from alight.plan.measure import at_extent
from alight.plan.untrained import LatentShape, shallower
from alight.plan.workload import TransformerWorkload, count_parameters
from helpers.live_memory import LiveMemory, use_fused_attention
from helpers.meta_device import META, use_fused_optimizers
from helpers.stage_steps import (
    CLASSES,
    FEATURES,
    LATENTS,
    TOKENIZER_STEPS,
    TRANSFORMER_STEPS,
    TokenizerTraining,
    TransformerTraining,
    transformer_config,
)
from helpers.step_memory import activations

GIB = 2**30
XL_LAYERS, FEW_LAYERS = 28, (2, 4)
XL_ACTIVATIONS = {32: 16.6, 128: 62.6}  # GiB in bf16 with fused attention, counted once with all layers


@pytest.fixture(autouse=True)
def _fused_kernels(monkeypatch):
    use_fused_optimizers(monkeypatch)


@pytest.mark.parametrize("kind", [kind for kind in TRANSFORMER_STEPS if kind != "average_velocity"])
def test_a_plan_knows_the_state_of_the_transformer(kind):
    latents = LatentShape(LATENTS, CLASSES, FEATURES if kind == "aligned" else None)
    work = TransformerWorkload(transformer_config(kind), latents, torch.device("cpu"), num_layers=2)
    planned = Sizes(*(getattr(work, name) for name in Sizes._fields)).memory(shards=1)
    with LiveMemory() as memory:
        training = TransformerTraining.build(META, kind)
        batch = training.batch.to(META)
        built = memory.now
        scalars = training.backward(batch)
        differentiated = memory.now
        scalars["grad_norm"] = training.update()
    # beside the weights there are the positions, the batch, the scalars of the log and the counters of the optimizer
    assert built == pytest.approx(planned["weights"] + planned["average"], rel=0.03)
    assert differentiated - built == pytest.approx(planned["gradients"], rel=0.03)
    assert memory.now - built == pytest.approx(planned["optimizer"], rel=0.03)


@pytest.mark.parametrize("kind", TOKENIZER_STEPS)
def test_a_plan_knows_the_state_of_the_tokenizer(kind):
    with LiveMemory() as memory:
        training = TokenizerTraining.build(META, kind)
        inputs = training.images.to(META), training.noise.to(META)
        built = memory.now
        scalars = training.backward(*inputs)
        differentiated = memory.now
        scalars["grad_norm"] = training.update()
    networks = [each for each in vars(training.networks).values() if each is not None]
    trained = sum(count_parameters(network, trained=True) for network in networks)
    frozen = sum(map(count_parameters, networks)) - trained
    planned = Sizes(trained, frozen, 0, 2 * trained, 0).memory(shards=1)
    assert built == pytest.approx(planned["weights"], rel=0.03)
    assert differentiated - built == pytest.approx(planned["gradients"], rel=0.2)  # reconstructions of a tiny network
    assert memory.now - built == pytest.approx(planned["optimizer"], rel=0.2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_grow_with_the_micro_batch(precision, monkeypatch):
    use_fused_attention(monkeypatch)
    config, latents = transformer_config(), LatentShape((4, 16, 16), CLASSES)
    few, many = (activations(config, latents, images, precision) for images in (8, 32))
    assert many == pytest.approx(4 * few, rel=0.1)


def test_bf16_and_checkpointing_need_less(monkeypatch):
    use_fused_attention(monkeypatch)
    latents = LatentShape((4, 16, 16), CLASSES)
    whole = activations(transformer_config(), latents, 16, "fp32")
    assert activations(transformer_config(), latents, 16, "bf16") < 0.8 * whole
    assert activations(transformer_config(activation_checkpointing=True), latents, 16, "fp32") < 0.8 * whole


@pytest.mark.slow
def test_the_largest_published_model(monkeypatch):
    """Two shallow models say what a deep one needs, as a plan has it; printed for a GPU's share of a batch."""
    use_fused_attention(monkeypatch)
    config, latents = load_config("imagenet/transformer_xl_64ep"), LatentShape((32, 16, 16), 1000)
    models = {layers: shallower(config, layers) for layers in FEW_LAYERS}
    for images in (32, 128, 256):
        few = {layers: activations(model, latents, images, "bf16") for layers, model in models.items()}
        needed = at_extent(few, XL_LAYERS) / GIB
        print(f"LightningDiT-XL/1, micro-batch of {images}: {needed:.1f} GiB of activations")
        assert needed == pytest.approx(XL_ACTIVATIONS.get(images, needed), rel=0.03)
