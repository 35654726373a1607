"""Workloads to time: the real networks of a recipe with random weights, and the parts of its training step.

Neither latents, images nor weight files are needed: only shapes matter to the clock. Reading data is no part of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from alight.config import (
    OptimizerConfig,
    PlanConfig,
    TrainFoundationConfig,
    TrainingConfig,
    TrainTokenizerConfig,
    TrainTransformerConfig,
)
from alight.device_settings import settled
from alight.models.foundation import repeated_blocks
from alight.models.perceptual import LPIPS
from alight.plan.inputs import Inputs
from alight.plan.untrained import LatentShape, shallower
from alight.runtime.device import autocast, compile_blocks
from alight.runtime.distributed import Processes
from alight.runtime.memory import unexplained
from alight.stages import train_foundation
from alight.training import tokenizer_networks, transformer_networks
from alight.training.decoder_continuity import DecoderContinuity
from alight.training.ema import EMA
from alight.training.flops import count_flops
from alight.training.optimizer import make_optimizer, optimizer_step, state_size
from alight.training.tokenizer_step import autoencoder_backward, discriminator_backward
from alight.training.transformer_step import (
    TransformerBatch,
    draw_steps,
    draw_times,
    transformer_backward,
    with_resolved_shift,
)

Item = TypeVar("Item")
BYTES = 4  # weights, gradients, moments and averages are float32 in either precision


class Workload(ABC):
    """A training step in two parts: forward and backward passes of micro-batches, and the update after the last.

    Args:
        training: of the recipe.
        optimizer: likewise.
        device: where the step is taken.
        averaged: the network that may have averages, and these.
        trained: optimizers, and the networks whose parameters each of them has.
        compilation: what `training.compile` does.
        frozen: networks that are not trained.
    """

    def __init__(
        self,
        training: TrainingConfig,
        optimizer: OptimizerConfig,
        device: torch.device,
        averaged: tuple[Any, Sequence[EMA[Any]]],
        trained: Mapping[Any, list[nn.Module]],
        compilation: Callable[[], None],
        frozen: Iterable[nn.Module] = (),
    ) -> None:
        self.training, self.device = training, device
        self._generator = torch.Generator(device).manual_seed(0)
        self._optimizer, self._averaged, self._optimizers = optimizer, averaged, list(trained)
        networks = [*frozen, *(network for each in trained.values() for network in each)]
        self.parameters = sum(count_parameters(network, trained=True) for network in networks)
        self.frozen_parameters = sum(map(count_parameters, networks)) - self.parameters
        self.averaged_parameters = count_parameters(averaged[0]) * len(averaged[1])
        # before activation checkpointing, which does some of it twice
        self.flops_per_image = count_flops(lambda: self.backward(1))
        self.update()  # so that the optimizer has its memory
        self.state_size = sum(map(state_size, self._optimizers))
        if training.activation_checkpointing:
            averaged[0].enable_gradient_checkpointing()
        if training.compile:
            compilation()

    @abstractmethod
    def backward(self, images: int) -> None:
        """Add the gradient of a micro-batch of that many images."""

    def update(self) -> None:
        """End a step: optimizers and averages."""
        for optimizer in self._optimizers:
            optimizer_step(optimizer, 0.0, self._optimizer.max_grad_norm)
        model, averages = self._averaged
        for average in averages:
            average.update(model)

    def noise(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers in place of data."""
        return torch.randn(shape, generator=self._generator, device=self.device)


class TransformerWorkload(Workload):
    """A step of `alight transformer train`, with as many layers as the recipe says or `num_layers`."""

    def __init__(
        self, config: TrainTransformerConfig, latents: LatentShape, device: torch.device, num_layers: int
    ) -> None:
        config = settled(config, device)
        self._config, self._latents = shallower(config, num_layers), latents
        plain = {"compile": False, "activation_checkpointing": False}
        plain_config = self._config.model_copy(update={"training": config.training.model_copy(update=plain)})
        processes, feature_dim = Processes(0, 1, device), latents.feature_dim
        networks = transformer_networks.build_networks(plain_config, latents, processes, feature_dim=feature_dim)
        model, ema, optimizer, *_ = networks
        averages = [*present(ema), *networks.power_averages]
        self._model, self._times = model, torch.Generator().manual_seed(0)
        self._alignment = networks.alignment
        compilation = partial(compile_blocks, model.all_blocks)
        averaged, trained = (model, averages), {optimizer: [networks.trained]}
        super().__init__(config.training, config.optimizer, device, averaged, trained, compilation)

    def backward(self, images: int) -> None:
        """Add the gradient of a micro-batch of that many images."""
        flow, device = with_resolved_shift(self._config.flow, self._latents.shape), self.device
        labels = torch.zeros(images, dtype=torch.long, device=device)
        x_1, x_0 = (self.noise(images, *self._latents.shape) for _ in range(2))
        features = until = None
        if self._alignment is not None and self._latents.feature_dim is not None:
            features = self.noise(images, self._latents.feature_dim, *self._latents.shape[1:])
        t = draw_times(flow, 0, images, self._times)
        if flow.objective == "average_velocity":
            t, until = draw_steps(flow, 0, t, self._times)
        batch = TransformerBatch(x_1, labels, t, x_0, labels, features, until).to(device)
        backward = unexplained(transformer_backward)
        backward(self._model, batch, flow, self.training.precision, alignment=self._alignment)


class TokenizerWorkload(Workload):
    """A step of `alight tokenizer train` with every loss of the recipe, on its image size or `size` pixels."""

    def __init__(
        self, config: TrainTokenizerConfig, device: torch.device, size: int, inputs: Inputs | None = None
    ) -> None:
        inputs, config = inputs or Inputs(PlanConfig()), settled(config, device)
        plain = config.training.model_copy(update={"activation_checkpointing": False})
        self._config, self._size = config, size
        # of an existing tokenizer, only the architecture matters
        started_from = config.init_from
        existing = inputs.tokenizer(started_from) if started_from is not None else inputs.new_tokenizer(config)
        name = config.aligning_foundation
        foundation = inputs.foundation(name, config.alignment.foundation_input) if name is not None else None
        if foundation is not None:
            foundation.with_layers(config.alignment.layers)
        lpips = LPIPS() if config.reconstruction.perceptual_weight > 0 else None
        plain_config = config.model_copy(update={"training": plain})
        self._networks = tokenizer_networks.build_networks(plain_config, device, existing, foundation, lpips)
        vae = self._networks.vae
        discriminator: list[nn.Module] = present(self._networks.discriminator)
        autoencoder: list[nn.Module] = present(vae, self._networks.projection)
        trained: dict[Any, list[nn.Module]] = {
            make_optimizer([named for each in players for named in each.named_parameters()], config.optimizer): players
            for players in (autoencoder, discriminator)
            if players
        }
        ema = EMA(vae, config.training.ema_decay) if config.training.ema_decay else None
        compilation = partial(tokenizer_networks.compile_networks, self._networks)
        averaged, frozen = (vae, present(ema)), present(foundation, lpips)
        super().__init__(config.training, config.optimizer, device, averaged, trained, compilation, frozen)

    def backward(self, images: int) -> None:
        """Add the gradients of autoencoder and discriminator."""
        networks, reconstruction = self._networks, self._config.reconstruction
        size, channels = self._size, networks.vae.config.latent_channels
        side = size // networks.vae.downsampling_factor
        pixels, noise = self.noise(images, 3, size, size).clamp(-1, 1), self.noise(images, channels, side, side)
        factor = 1.0 if networks.discriminator is not None else None
        continuity = DecoderContinuity.of(self._config.regularisation, noise)
        with autocast(self.device, self.training.precision):
            result = unexplained(autoencoder_backward)(
                networks,
                pixels,
                noise,
                reconstruction,
                self._config.alignment,
                adversarial_factor=factor,
                continuity=continuity,
            )
            if networks.discriminator is not None:
                made = result.images, result.reconstructions
                discriminator_backward(networks.discriminator, *made, reconstruction.adversarial_loss)


class FoundationWorkload(Workload):
    """A step of `alight foundation train`."""

    def __init__(self, config: TrainFoundationConfig, device: torch.device, num_classes: int) -> None:
        self._config, self._num_classes = settled(config, device), num_classes
        self._model = train_foundation.build_model(config, num_classes).to(device)
        optimizer = make_optimizer(self._model.named_parameters(), config.optimizer)
        trained: dict[Any, list[nn.Module]] = {optimizer: [self._model]}
        training = self._config.training
        super().__init__(training, config.optimizer, device, (self._model, ()), trained, self._compile)

    def backward(self, images: int) -> None:
        """Add the gradient of a micro-batch of that many images."""
        size = self._config.images.size
        pixels = self.noise(images, 3, size, size).clamp(-1, 1)
        labels = torch.zeros(images, dtype=torch.long, device=self.device)
        with autocast(self.device, self.training.precision):
            loss = train_foundation.objective(self._model, pixels, labels, self._config.seed, 0)
        loss.backward()

    def _compile(self) -> None:
        compile_blocks(repeated_blocks(self._model))


# --- networks -----------------------------------------------------------------------------------------------------


def present(*networks: Item | None) -> list[Item]:
    """Drop absent networks or averages."""
    return [network for network in networks if network is not None]


def count_parameters(network: nn.Module, trained: bool = False) -> int:
    """Numbers in the parameters of a network, or in those that are trained."""
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad or not trained)
