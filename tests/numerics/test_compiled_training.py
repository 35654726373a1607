"""Compiled blocks take the same steps as blocks that are run as they are, in every kind of training and in sampling.

The backend traces forward and backward pass, and runs the graphs without generating code, which takes a minute.
"""

import copy
import itertools

import pytest
import torch
from torch import nn

from alight.config import (
    AlignmentConfig,
    FlowConfig,
    ReconstructionConfig,
    RepresentationConfig,
    TrainFoundationConfig,
    TrainTokenizerConfig,
    TrainTransformerConfig,
)
from alight.models.discriminator import PatchDiscriminator
from alight.models.foundation import FoundationModel, repeated_blocks
from alight.models.lightning_dit import LightningDiT
from alight.plan.untrained import LatentShape
from alight.plan.workload import FoundationWorkload, TokenizerWorkload, TransformerWorkload
from alight.runtime import device as policy
from alight.runtime.device import compile_blocks
from alight.runtime.seeding import seeded_initialisation
from alight.stages import train_foundation
from alight.training.token_alignment import build_token_alignment
from alight.training.tokenizer_networks import compile_networks
from alight.training.tokenizer_step import TokenizerNetworks, autoencoder_backward, discriminator_backward
from alight.training.transformer_step import TransformerBatch, transformer_backward
from helpers.models import HEAD, tiny_tokenizer, tiny_transformer, tiny_vit

BACKEND = "aot_eager"
CPU = torch.device("cpu")
FEATURES = 16  # width of those that tokens and latents are aligned with
RECONSTRUCTION = ReconstructionConfig(perceptual_weight=0, kl_weight=1e-2)
ALIGNMENT = AlignmentConfig(weight=0.3, cosine_margin=0.1, distance_margin=0.05)


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Forget the graphs of other tests, and what compiling has set for the whole process."""
    kept = torch._dynamo.config.recompile_limit, torch._functorch.config.donated_buffer
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit, torch._functorch.config.donated_buffer = kept


class Graphs:
    """A backend that counts what it compiles."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(*networks):
    named = [pair for network in networks if network is not None for pair in network.named_parameters()]
    return [(name, parameter.grad) for name, parameter in named]


def assert_same_gradients(found, expected):
    assert any(gradient is not None and gradient.any() for _, gradient in expected)
    for (name, gradient), (_, wanted) in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-10, msg=name)


def was_compiled(*networks):
    return any(module._compiled_call_impl is not None for network in networks for module in network.modules())


# --- transformer ----------------------------------------------------------------------------------------------------


def transformer_batch(count, aligned):
    labels, t = torch.arange(count), torch.rand(count, generator=torch.Generator().manual_seed(1)).double()
    x_1, x_0 = normal(count, 4, 4, 4, seed=2), normal(count, 4, 4, 4, seed=3)
    features = normal(count, FEATURES, 4, 4, seed=4) if aligned else None
    return TransformerBatch(x_1, labels, t, x_0, labels, features=features)


# Any two of the three choices meet in these; the other combinations are left to the exhaustive tests.
PAIRWISE = [(None, False, False), (None, True, True), (1, False, True), (1, True, False)]
COMBINATIONS = [
    pytest.param(*chosen, marks=() if chosen in PAIRWISE else pytest.mark.exhaustive)
    for chosen in itertools.product((None, 1), (False, True), (False, True))
]


@pytest.mark.parametrize(("auxiliary_block", "aligned", "checkpointing"), COMBINATIONS)
def test_transformers_learn_the_same(auxiliary_block, aligned, checkpointing):
    """Also with micro-batches of several sizes in a step."""
    found = []
    for compiled in (False, True):
        model = tiny_transformer(num_layers=3, auxiliary_block=auxiliary_block).double().train()
        alignment = None
        if aligned:
            settings = RepresentationConfig(weight=0.5, block=2, hidden_size=12)
            alignment = build_token_alignment(settings, model, FEATURES, seed=0)
            alignment.projector.double()
        if checkpointing:
            model.enable_gradient_checkpointing()
        compile_blocks(model.blocks if compiled else [], backend=BACKEND)
        assert was_compiled(model) == compiled
        for count in (4, 3):
            transformer_backward(model, transformer_batch(count, aligned), FlowConfig(), alignment=alignment)
        found.append(gradients(model, alignment.projector if alignment is not None else None))
    assert_same_gradients(found[1], found[0])


def test_transformers_with_a_wide_head_learn_the_same():
    found = []
    for compiled in (False, True):
        model = tiny_transformer(head=HEAD).double().train()
        model.enable_gradient_checkpointing()
        compile_blocks(model.all_blocks if compiled else [], backend=BACKEND)
        assert all(block._compiled_call_impl is not None for block in model.wide_head.blocks) == compiled
        transformer_backward(model, transformer_batch(4, False), FlowConfig())
        found.append(gradients(model))
    assert_same_gradients(found[1], found[0])


# --- tokenizer ------------------------------------------------------------------------------------------------------


def tokenizer_networks(adversarial, aligned):
    attention = {"level_attention": True, "mid_block_attention": True}
    vae = tiny_tokenizer(block_out_channels=(8, 8, 8), norm_num_groups=4, **attention).train()
    with seeded_initialisation(0):
        return TokenizerNetworks(
            vae.double(),
            nn.Conv2d(4, FEATURES, 1, bias=False).double() if aligned else None,
            FoundationModel(tiny_vit(patch_size=4, hidden_size=FEATURES)).double() if aligned else None,
            PatchDiscriminator(width=8).double() if adversarial else None,
        )


@pytest.mark.parametrize("aligned", [False, True], ids=["", "aligned"])
@pytest.mark.parametrize("adversarial", [False, True], ids=["", "adversarial"])
def test_tokenizers_learn_the_same(adversarial, aligned):
    """Adaptive weights go through one graph more than once, which compiled blocks must allow."""
    found = []
    for compiled in (False, True):
        networks = tokenizer_networks(adversarial, aligned)
        if compiled:
            compile_networks(networks, backend=BACKEND)
        assert was_compiled(networks.vae) == compiled
        images, noise = normal(2, 3, 32, 32, seed=1).clamp(-1, 1), normal(2, 4, 8, 8, seed=2)
        factor = 1.0 if adversarial else None
        step = autoencoder_backward(networks, images, noise, RECONSTRUCTION, ALIGNMENT, adversarial_factor=factor)
        if networks.discriminator is not None:
            discriminator_backward(networks.discriminator, step.images, step.reconstructions, "hinge")
        found.append(gradients(networks.vae, networks.projection, networks.discriminator))
    assert_same_gradients(found[1], found[0])


# --- foundation models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["classifier", "masked_autoencoder"])
def test_foundation_models_learn_the_same(task):
    sizes = {"patch_size": 8, "hidden_size": 16, "num_layers": 3, "num_heads": 2}
    config = TrainFoundationConfig(task=task, images={"size": 32}, model=sizes)
    with seeded_initialisation(0):
        plain = train_foundation.build_model(config, num_classes=3).double()
    compiled = copy.deepcopy(plain)
    assert len(repeated_blocks(compiled)) == 3
    compile_blocks(repeated_blocks(compiled), backend=BACKEND)
    images, labels = normal(4, 3, 32, 32, seed=1).clamp(-1, 1), torch.arange(4) % 3
    for model in (plain, compiled):
        for part in (slice(0, 4), slice(0, 3)):
            train_foundation.objective(model, images[part], labels[part], seed=0, step=0).backward()
    assert_same_gradients(gradients(compiled), gradients(plain))


@torch.no_grad()
def test_foundation_models_give_the_same_features():
    model = FoundationModel(tiny_vit(num_hidden_layers=3)).double()
    images = normal(2, 3, 32, 32, seed=1).clamp(-1, 1)
    expected, graphs = model(images, grid=(4, 4)), Graphs()
    compile_blocks(model.blocks, backend=graphs)
    torch.testing.assert_close(model(images, grid=(4, 4)), expected, rtol=1e-10, atol=1e-10)
    assert graphs.count == 1  # of all three layers


# --- batches of other sizes -----------------------------------------------------------------------------------------

SIZES = (8, 8, 5, 3, 1, 7, 2, 6, 4, 8)  # as those of last batches, or of requests to a server
PER_SHAPE = 4  # one size; all sizes, which the CPU's convolutions divide at 16; and 1


@torch.no_grad()
def test_batches_of_any_size_cost_a_few_compilations_of_a_transformer():
    model, graphs = tiny_transformer(num_layers=3), Graphs()
    compile_blocks(model.blocks, backend=graphs)
    for size in SIZES:
        sample(model, size)
    assert graphs.count <= PER_SHAPE
    before = graphs.count
    for size in SIZES:
        sample(model, size)
    assert graphs.count == before


def sample(model: LightningDiT, size):
    model(normal(size, 4, 4, 4, seed=1).float(), torch.full((size,), 0.5), torch.zeros(size, dtype=torch.long))


@torch.no_grad()
def test_no_block_of_a_deep_tokenizer_falls_back_to_uncompiled_code(monkeypatch):
    """Its blocks differ in width, and each is compiled for several sizes: more graphs than PyTorch allows by itself.

    With this option it raises an error instead of going on without compiling.
    """
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    widths = (8, 16, 24)
    vae, graphs = tiny_tokenizer(block_out_channels=widths, norm_num_groups=4, level_attention=True), Graphs()
    compile_blocks(vae.blocks, backend=graphs)
    for size in (8, 5, 1, 7, 8):
        vae.decode_raw_latents(vae.encode_raw_latents(normal(size, 3, 16, 16, seed=1).float()))
    assert 8 < graphs.count <= PER_SHAPE * len(vae.blocks)  # 8 is what PyTorch allows
    assert policy.MOST_GRAPHS >= PER_SHAPE * len(vae.blocks)


# --- planning ---------------------------------------------------------------------------------------------------


PLAIN = {"norm_num_groups": 4, "level_attention": False, "mid_block_attention": False}


def compiled_kinds(network):
    return sorted(type(module).__name__ for module in network.modules() if module._compiled_call_impl is not None)


def test_plans_compile_what_training_compiles():
    """Else the plan would be of another speed."""
    short = {"steps": 4, "global_batch_size": 2, "ema_decay": None, "compile": True}
    tokenizer = TrainTokenizerConfig(
        training=short, images={"size": 32}, model={"latent_channels": 4, "block_out_channels": (8, 8)} | PLAIN
    )
    work = TokenizerWorkload(tokenizer, CPU, 32)
    networks = work._networks
    assert len(compiled_kinds(networks.vae)) == len(networks.vae.blocks)
    assert networks.discriminator is not None
    assert compiled_kinds(networks.discriminator) == ["PatchDiscriminator"]

    sizes = {"preset": None, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "patch_size": 1}
    transformer = TrainTransformerConfig(training=short, model=sizes)
    work = TransformerWorkload(transformer, LatentShape((4, 4, 4), 10), CPU, 2)
    assert compiled_kinds(work._model) == ["LightningDiTBlock"] * 2

    foundation = TrainFoundationConfig(
        training=short,
        images={"size": 32},
        model={"patch_size": 8, "hidden_size": 16, "num_layers": 2, "num_heads": 2},
    )
    work = FoundationWorkload(foundation, CPU, 3)
    assert compiled_kinds(work._model) == compiled_kinds(work._model.vit) == ["ViTLayer"] * 2
