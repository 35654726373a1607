"""The steps of training on fewer images, by which a message can say which micro-batch fits into memory."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from alight.runtime.memory import SmallerAttempts, explains_shortage

MOMENTS = 2  # of AdamW, in the size of the weights


@explains_shortage
def of_transformer(work: Any, forward: nn.Module, batch: Any, *others: Any, **options: Any) -> SmallerAttempts:
    """The gradient of the first images of a micro-batch of the transformer."""

    def attempt(images: int) -> None:
        work(forward, batch.first(images), *others, **options)

    model = getattr(forward, "module", forward)
    reserve = optimizer_memory([forward])
    return SmallerAttempts(len(batch.x_1), attempt, batch.x_1.device, reserve, is_checkpointing(model))


@explains_shortage
def of_autoencoder(
    work: Any, networks: Any, images: Tensor, noise: Tensor, *others: Any, **options: Any
) -> SmallerAttempts:
    """The gradient of the first images of a micro-batch of the tokenizer.

    It is taken without regularisation, which only makes images smaller.
    """

    def attempt(count: int) -> None:
        features = options.get("features")
        fewer = {"features": None if features is None else features[:count], "regularisation": None}
        fewer |= {"alignment_noise": None, "continuity": None}  # one decoder's activations after another's
        work(networks, images[:count], noise[:count], *others, **options | fewer)

    players = [each for each in (networks.vae, networks.projection, networks.discriminator) if each is not None]
    checkpointing = is_checkpointing(networks.vae.encoder)
    return SmallerAttempts(len(images), attempt, images.device, optimizer_memory(players), checkpointing)


def optimizer_memory(trained: Iterable[nn.Module]) -> int:
    """Bytes of the moments that the first step of an optimizer allocates."""
    weights = [weight for network in trained for weight in network.parameters() if weight.requires_grad]
    return MOMENTS * sum(weight.numel() * weight.element_size() for weight in weights)


def is_checkpointing(network: torch.nn.Module) -> bool:
    """Tell if activations are computed again rather than kept."""
    return bool(getattr(network, "gradient_checkpointing", False))
