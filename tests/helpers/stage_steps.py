"""One step of training on any device: small networks from a seed, and batches that are drawn on the CPU."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alight.config import (
    AlignmentConfig,
    OptimizerConfig,
    ReconstructionConfig,
    TrainTokenizerConfig,
    TrainTransformerConfig,
)
from alight.config.recipes import validate
from alight.models.foundation import FoundationModel
from alight.models.perceptual import LPIPS
from alight.models.vavae import VAVAE
from alight.plan.untrained import LatentShape
from alight.runtime.device import autocast
from alight.runtime.distributed import Processes
from alight.runtime.seeding import seeded_initialisation
from alight.stages import train_tokenizer
from alight.training import tokenizer_networks, transformer_networks
from alight.training.optimizer import optimizer_step
from alight.training.tokenizer_step import TokenizerNetworks, autoencoder_backward, discriminator_backward
from alight.training.transformer_step import TransformerBatch, transformer_backward
from helpers.draws import seeded
from helpers.models import tiny_tokenizer, tiny_vit

LATENTS, CLASSES, FEATURES = (4, 4, 4), 10, 16
IMAGE_SIZE, BATCH = 32, 2
TRANSFORMER_STEPS = ("velocity", "auxiliary", "aligned", "average_velocity", "wide_head")
TOKENIZER_STEPS = ("reconstruction", "aligned", "adversarial", "all")
LEARNING_RATE = 1e-3


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers on the CPU."""
    return torch.randn(shape, generator=seeded(seed))


# --- the transformer ----------------------------------------------------------------------------------------------


def transformer_config(
    kind: str = "velocity", precision: str = "fp32", optimizer: str = "adamw", **training: Any
) -> TrainTransformerConfig:
    """A small transformer, trained with the objective of that name."""
    model: dict[str, Any] = {"preset": None, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "patch_size": 1}
    values: dict[str, Any] = {"optimizer": {"name": optimizer, "max_grad_norm": 1.0, "lr": LEARNING_RATE}}
    if kind == "auxiliary":
        model["auxiliary_block"] = 1
    if kind == "wide_head":
        model["head"] = {"num_layers": 1, "hidden_size": 96, "num_heads": 4}
        values["flow"] = {"timestep_shift": "auto", "first_time": 0.001}
    if kind == "aligned":
        values["representation"] = {"weight": 0.5, "block": 1, "hidden_size": 32, "spatial_norm": 0.6}
    if kind == "average_velocity":
        model["interval_embedding"] = True
        values |= {"init_from": "unused", "flow": {"objective": kind, "average_velocity": {"guidance_scale": 2.0}}}
    given = {"precision": precision, "compile": False, "ema_decay": 0.9, "global_batch_size": 4} | training
    return validate(TrainTransformerConfig, values | {"model": model, "training": given}, "test")


@dataclass
class TransformerTraining:
    """A transformer in training, and a batch for it.

    Attributes:
        config: of the run.
        networks: on the device.
        batch: on the CPU.
    """

    config: TrainTransformerConfig
    networks: transformer_networks.TransformerNetworks
    batch: TransformerBatch

    @classmethod
    def build(cls, device: torch.device, kind: str = "velocity", **options: Any) -> "TransformerTraining":
        """Build it from the seed, with weights in which no gate is closed; options as of `transformer_config`."""
        config = transformer_config(kind, **options)
        latents = LatentShape(LATENTS, CLASSES, FEATURES if kind == "aligned" else None)
        networks = transformer_networks.build_networks(
            config, latents, Processes(0, 1, device), feature_dim=latents.feature_dim
        )
        models = [networks.model, *([networks.ema.model] if networks.ema else [])]
        for model in models:
            redraw(model)
        return cls(config, networks, draw_transformer_batch(kind, config.training.global_batch_size))

    def backward(self, batch: TransformerBatch) -> dict[str, Tensor]:
        """Add the gradient of a batch on the device."""
        config, networks = self.config, self.networks
        precision = config.training.precision
        return transformer_backward(networks.forward, batch, config.flow, precision, 1, networks.alignment)

    def update(self, step: int = 0) -> Tensor:
        """End a step; gives the norm of the gradient."""
        norm = optimizer_step(self.networks.optimizer, LEARNING_RATE, self.config.optimizer.max_grad_norm)
        if self.networks.ema is not None:
            self.networks.ema.update(self.networks.model, step)
        return norm

    def step(self, device: torch.device) -> dict[str, Tensor]:
        """Take a whole step; gives the scalars of the log."""
        scalars = self.backward(self.batch.to(device))
        return scalars | {"grad_norm": self.update()}


def draw_transformer_batch(kind: str = "velocity", count: int = 4) -> TransformerBatch:
    """A batch on the CPU; of average velocities, half the steps have a length."""
    labels = torch.arange(count) % CLASSES
    t, until, long, features = torch.rand(count, generator=seeded(1)), None, None, None
    if kind == "average_velocity":
        until = torch.where(torch.arange(count) % 2 == 0, t, t + (1 - t) / 2)
        long = tuple((until != t).tolist())
    if kind == "aligned":
        features = normal(count, FEATURES, *LATENTS[1:], seed=4).bfloat16()
    x_1, x_0 = normal(count, *LATENTS, seed=2), normal(count, *LATENTS, seed=3)
    return TransformerBatch(x_1, labels, t, x_0, labels, features, until, long)


@torch.no_grad()
def redraw(model: nn.Module, std: float = 0.05) -> None:
    """Draw every weight on the CPU, so that a model is the same on every device and no part of it is silent."""
    generator = seeded(5)
    for parameter in model.parameters():
        parameter.copy_(std * torch.randn(parameter.shape, generator=generator))


# --- the tokenizer ------------------------------------------------------------------------------------------------


def tokenizer_config(kind: str = "all") -> TrainTokenizerConfig:
    """Losses of that name, all of them by default."""
    losses = ReconstructionConfig(
        kl_weight=1e-4,
        perceptual_weight=1.0,
        vgg16_weights="unused",  # the network is built here
        lpips_weights="unused",
        adversarial_weight=0.5 if kind in ("adversarial", "all") else 0.0,
    )
    alignment = AlignmentConfig(weight=0.1 if kind in ("aligned", "all") else 0.0)
    optimizer = OptimizerConfig(lr=LEARNING_RATE, max_grad_norm=1.0)
    return TrainTokenizerConfig(reconstruction=losses, alignment=alignment, optimizer=optimizer)


@dataclass
class Parts:
    """The networks that tokenizer training is given, of small size but for LPIPS."""

    vae: VAVAE
    foundation: FoundationModel
    lpips: LPIPS

    @classmethod
    def build(cls) -> "Parts":
        """Build them from the seed, on the CPU."""
        sizes = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4}
        vae = tiny_tokenizer(**sizes, level_attention=True, mid_block_attention=True)
        with seeded_initialisation(0):
            return cls(vae, FoundationModel(tiny_vit(patch_size=4, hidden_size=FEATURES)), LPIPS())


@dataclass
class TokenizerTraining:
    """A tokenizer in training with real networks of small size, and a batch for it.

    Attributes:
        config: of the run.
        networks: on the device.
        optimizers: of autoencoder with projection, and of the discriminator where there is one.
        images: (B, 3, H, W) on the CPU.
        noise: (B, C, h, w) on the CPU.
    """

    config: TrainTokenizerConfig
    networks: TokenizerNetworks
    optimizers: list[torch.optim.Optimizer]
    images: Tensor
    noise: Tensor

    @classmethod
    def build(cls, device: torch.device, kind: str = "all", parts: "Parts | None" = None) -> "TokenizerTraining":
        """Build it from the seed around networks that are there already, which `parts` may hold."""
        config, parts = tokenizer_config(kind), parts or Parts.build()
        foundation = parts.foundation if config.alignment.enabled else None
        networks = tokenizer_networks.build_networks(config, device, parts.vae, foundation, parts.lpips)
        optimizers = train_tokenizer.build_optimizers(networks, config.optimizer)
        side = IMAGE_SIZE // networks.vae.downsampling_factor
        images = normal(BATCH, 3, IMAGE_SIZE, IMAGE_SIZE, seed=1).clamp(-1, 1)
        noise = normal(BATCH, networks.vae.config.latent_channels, side, side, seed=2)
        return cls(config, networks, list(optimizers.values()), images, noise)

    def backward(self, images: Tensor, noise: Tensor, precision: str = "fp32") -> dict[str, Tensor]:
        """Add the gradients of a batch on the device."""
        networks, config = self.networks, self.config
        factor = 1.0 if networks.discriminator is not None else None
        with autocast(images.device, precision):
            losses = config.reconstruction, config.alignment
            result = autoencoder_backward(networks, images, noise, *losses, adversarial_factor=factor)
            scalars = dict(result.scalars)
            if networks.discriminator is not None:
                pair = result.images, result.reconstructions
                scalars |= discriminator_backward(
                    networks.discriminator, *pair, config.reconstruction.adversarial_loss
                )
        return scalars

    def update(self) -> Tensor:
        """End a step; gives the norm of the autoencoder's gradient."""
        limit = self.config.optimizer.max_grad_norm
        return [optimizer_step(optimizer, LEARNING_RATE, limit) for optimizer in self.optimizers][0]

    def step(self, device: torch.device, precision: str = "fp32") -> dict[str, Tensor]:
        """Take a whole step; gives the scalars of the log."""
        scalars = self.backward(self.images.to(device), self.noise.to(device), precision)
        return scalars | {"grad_norm": self.update()}
