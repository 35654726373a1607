"""What is timed: the real networks of a recipe with random weights, and the pieces that its training step is made of.

Neither latents, images nor weight files are needed: only shapes matter to the clock. Reading data is no part of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from alight.config import OptimizerConfig, TrainingConfig, TrainTokenizerConfig, TrainTransformerConfig
from alight.flow import PATHS, flow_matching_loss
from alight.interop.tokenizer_sources import open_tokenizer
from alight.models.discriminator import PatchDiscriminator
from alight.models.foundation import FoundationModel
from alight.models.foundation_catalogue import FoundationRow, find_row
from alight.models.lightning_dit import PRESETS
from alight.models.perceptual import LPIPS
from alight.models.vavae import VAVAE
from alight.plan.flops import count_flops
from alight.runtime.device import autocast, compile_blocks
from alight.runtime.distributed import Processes
from alight.runtime.errors import InputError
from alight.runtime.seeding import seeded_initialisation
from alight.stages.train_transformer import build_training, draw_times
from alight.training.ema import EMA
from alight.training.optimizer import make_optimizer, optimizer_step
from alight.training.tokenizer_step import TokenizerNetworks, autoencoder_backward, discriminator_backward

BYTES = 4  # weights, gradients, moments and averages are float32 in either precision
HEAD_WIDTH = 64  # of every published foundation model


class Workload(ABC):
    """A training step taken apart: a piece is one forward and backward pass, the update follows the last of them.

    Args:
        training: of the recipe.
        optimizer: likewise.
        device: where the step is taken.
        averaged: the network that may have a moving average, and that average.
        trained: optimizers, and the networks whose parameters each of them has.
        compiled: what `training.compile` compiles.
        frozen: networks that only judge.
    """

    def __init__(
        self,
        training: TrainingConfig,
        optimizer: OptimizerConfig,
        device: torch.device,
        averaged: tuple[Any, EMA[Any] | None],
        trained: Mapping[Any, list[nn.Module]],
        compiled: Iterable[nn.Module],
        frozen: Iterable[nn.Module] = (),
    ) -> None:
        self.training, self.device = training, device
        self._generator = torch.Generator(device).manual_seed(0)
        self._optimizer, self._averaged, self._optimizers = optimizer, averaged, list(trained)
        networks = [*frozen, *(network for each in trained.values() for network in each)]
        self.parameters = sum(count_parameters(network, trained=True) for network in networks)
        self.frozen_parameters = sum(map(count_parameters, networks)) - self.parameters
        self.averaged_parameters = count_parameters(averaged[0]) if averaged[1] is not None else 0
        # before activation checkpointing, which does some of it twice; and that the optimizer has its memory
        self.flops_per_image = count_flops(lambda: self.piece(1))
        self.update()
        if training.activation_checkpointing:
            averaged[0].enable_gradient_checkpointing()
        if training.compile:
            compile_blocks(compiled)

    @abstractmethod
    def piece(self, images: int) -> None:
        """Forward and backward of so many images, which adds to the gradients."""

    def update(self) -> None:
        """What ends a step: optimizers and moving average."""
        for optimizer in self._optimizers:
            optimizer_step(optimizer, 0.0, self._optimizer.max_grad_norm)
        model, ema = self._averaged
        if ema is not None:
            ema.update(model)

    def noise(self, *shape: int) -> torch.Tensor:
        """In place of data, standard normal."""
        return torch.randn(shape, generator=self._generator, device=self.device)


class LatentShape(NamedTuple):
    """Latents as the transformer sees them.

    Attributes:
        shape: (C, h, w).
        num_classes: of their labels.
    """

    shape: tuple[int, ...]
    num_classes: int


class TransformerWorkload(Workload):
    """A step of `alight transformer train`.

    Args:
        config: the recipe.
        latents: their shape.
        device: where the step is taken.
        num_layers: instead of the recipe's.
    """

    def __init__(
        self, config: TrainTransformerConfig, latents: LatentShape, device: torch.device, num_layers: int
    ) -> None:
        self._config, self._latents = shallower(config, num_layers), latents
        plain = {"compile": False, "activation_checkpointing": False}
        plain_config = self._config.model_copy(update={"training": config.training.model_copy(update=plain)})
        model, ema, optimizer, _ = build_training(plain_config, latents, Processes(0, 1, device))
        self._model, self._times = model, torch.Generator().manual_seed(0)
        super().__init__(
            config.training, config.optimizer, device, (model, ema), {optimizer: [model]}, compiled=model.blocks
        )

    def piece(self, images: int) -> None:
        """Forward and backward of so many images."""
        flow, device = self._config.flow, self.device
        with autocast(device, self.training.precision):
            loss = flow_matching_loss(
                self._model,
                self.noise(images, *self._latents.shape),
                torch.zeros(images, dtype=torch.long, device=device),
                path=PATHS[flow.path](),
                prediction=flow.prediction,
                loss_weight=flow.loss_weight,
                cosine_weight=flow.cosine_weight,
                t=draw_times(flow, 0, images, self._times).to(device),
                x_0=self.noise(images, *self._latents.shape),
            )
        loss.total.backward()


class TokenizerWorkload(Workload):
    """A step of `alight tokenizer train` in which every loss of the recipe takes part.

    Args:
        config: the recipe.
        device: where the step is taken.
        size: of the images in pixels, instead of the recipe's.
    """

    def __init__(self, config: TrainTokenizerConfig, device: torch.device, size: int) -> None:
        with seeded_initialisation(config.seed, "plan"):
            self._config, self._size, self._networks = config, size, tokenizer_networks(config, device)
        vae, discriminator = self._networks.vae, self._networks.discriminator
        autoencoder, game = present(vae, self._networks.projection), present(discriminator)
        trained = {
            make_optimizer([weight for network in each for weight in network.parameters()], config.optimizer): each
            for each in (autoencoder, game)
            if each
        }
        ema = EMA(vae, config.training.ema_decay) if config.training.ema_decay else None
        frozen = present(self._networks.foundation, self._networks.lpips)
        compiled = [vae.encoder, vae.decoder, *game, *frozen]
        super().__init__(config.training, config.optimizer, device, (vae, ema), trained, compiled, frozen)

    def piece(self, images: int) -> None:
        """Forward and backward of so many images, for the autoencoder and for the discriminator."""
        networks, reconstruction = self._networks, self._config.reconstruction
        size, channels = self._size, networks.vae.config.latent_channels
        side = size // networks.vae.downsampling_factor
        pixels, noise = self.noise(images, 3, size, size).clamp(-1, 1), self.noise(images, channels, side, side)
        factor = 1.0 if networks.discriminator is not None else None
        with autocast(self.device, self.training.precision):
            result = autoencoder_backward(
                networks, pixels, noise, reconstruction, self._config.alignment, adversarial_factor=factor
            )
            if networks.discriminator is not None:
                made = result.images, result.reconstructions
                discriminator_backward(networks.discriminator, *made, reconstruction.adversarial_loss)


# --- networks -----------------------------------------------------------------------------------------------------


def present(*networks: nn.Module | None) -> list[nn.Module]:
    """Those that take part."""
    return [network for network in networks if network is not None]


def count_parameters(network: nn.Module, trained: bool = False) -> int:
    """How many numbers the parameters of a network are, or those of them that are trained."""
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad or not trained)


def num_layers(config: TrainTransformerConfig) -> int:
    """Blocks of the recipe's transformer."""
    return PRESETS[config.model.preset].num_layers if config.model.preset else config.model.num_layers or 0


def shallower(config: TrainTransformerConfig, layers: int) -> TrainTransformerConfig:
    """The same recipe for a model of another depth."""
    sizes = PRESETS[config.model.preset]._asdict() if config.model.preset else {}
    model = config.model.model_copy(update={"preset": None, **sizes, "num_layers": layers})
    return config.model_copy(update={"model": model})


def tokenizer_networks(config: TrainTokenizerConfig, device: torch.device) -> TokenizerNetworks:
    """The tokenizer and all that judges it, with random weights; of `init_from` only the architecture matters."""
    if config.init_from is not None:
        vae = open_tokenizer(config.init_from).vae
    else:
        vae = VAVAE.build(**config.model.model_dump(), sample_size=config.images.size)
    networks = TokenizerNetworks(vae.requires_grad_(True).train().to(device))
    if config.train == "decoder":
        for part in (vae.encoder, vae.quant_conv):
            if part is not None:
                part.requires_grad_(False)
    alignment, reconstruction = config.alignment, config.reconstruction
    if alignment.enabled:
        assert alignment.foundation is not None
        foundation = untrained_foundation(alignment.foundation, alignment.foundation_input).to(device)
        widths = (vae.config.latent_channels, foundation.feature_dim)
        inputs, outputs = widths if alignment.projection == "to_features" else widths[::-1]
        projection = nn.Conv2d(inputs, outputs, 1, bias=False).to(device)
        networks = replace(networks, foundation=foundation, projection=projection)
    return replace(
        networks,
        discriminator=PatchDiscriminator().to(device) if reconstruction.adversarial_weight > 0 else None,
        lpips=LPIPS().to(device) if reconstruction.perceptual_weight > 0 else None,
    )


def untrained_foundation(name: str, input_mode: str) -> FoundationModel:
    """A foundation model without its weights: by the catalogue, else by its own configuration.

    Raises:
        InputError: its configuration is neither in a folder nor on the hub.
    """
    row = None if Path(name).is_dir() else find_row(name)
    try:
        config = AutoConfig.from_pretrained(name) if row is None else catalogued_config(row)
        backbone = AutoModel.from_config(getattr(config, "vision_config", config))
    except Exception as error:  # of the library, the hub or the network
        raise InputError(
            f"The size of the foundation model '{name}' is not known here ({' '.join(str(error).split())[:200]}). "
            "Give the recipe a folder with its config.json (train one first with 'alight foundation train'), or "
            "one of the short names such as dinov2-large."
        ) from error
    return FoundationModel(backbone, name=name, input_mode=input_mode)


def catalogued_config(row: FoundationRow) -> PreTrainedConfig:
    """The configuration of a catalogued model; its depth follows from its width, as in all of them."""
    return AutoConfig.for_model(
        row.family,
        hidden_size=row.feature_dim,
        num_hidden_layers=24 if row.feature_dim >= 1024 else 12,
        num_attention_heads=row.feature_dim // HEAD_WIDTH,
        intermediate_size=4 * row.feature_dim,
        patch_size=row.patch_size,
        image_size=row.native_size,
    )
