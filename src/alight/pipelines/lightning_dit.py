"""The sampler that users meet: class labels in, images out, in the manner of diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from alight.artifacts import read_artifact
from alight.flow import GuidedVelocity, solve_ode
from alight.models.lightning_dit import LightningDiT
from alight.models.vavae import VAVAE
from alight.runtime.errors import InputError
from alight.runtime.pixels import to_uint8
from alight.runtime.seeding import noise_of_seeds


@dataclass
class LightningDiTOutput(BaseOutput):
    """What a pipeline call returns.

    Attributes:
        images: as asked for by `output_type`.
        nfe: model evaluations per image that were really made.
    """

    images: Any
    nfe: int


class LightningDiTPipeline(DiffusionPipeline):
    """Noise to latents with LightningDiT, latents to images with the tokenizer it was trained on.

        pipeline = LightningDiTPipeline.from_pretrained("runs/quickstart/pipeline")
        images = pipeline(class_labels=["3", "7"], num_inference_steps=50, guidance_scale=2.0, seeds=[0, 1]).images

    Args:
        tokenizer: decodes; its statistics are those that the transformer's latents were normalised with.
        transformer: predicts the velocity.
        scheduler: holds the default time warp; diffusers' `shift` is 1 / timestep_shift.
        class_names: by label; labels may be given by name where they are known.
    """

    model_cpu_offload_seq = "transformer->tokenizer"

    def __init__(
        self,
        tokenizer: VAVAE,
        transformer: LightningDiT,
        scheduler: FlowMatchEulerDiscreteScheduler,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(tokenizer=tokenizer, transformer=transformer, scheduler=scheduler)
        # model_index.json names the public classes, not the files that happen to hold them
        self.register_to_config(
            tokenizer=("alight", "VAVAE"),
            transformer=("alight", "LightningDiT"),
            class_names=list(class_names) if class_names else None,
        )

    @classmethod
    def from_artifacts(cls, transformer: Path, tokenizer: Path) -> LightningDiTPipeline:
        """Join a trained transformer with its tokenizer.

        Raises:
            InputError: if a folder is unusable, or the transformer was trained on another tokenizer's latents.
        """
        trained = read_artifact(transformer, "transformer")
        trained.require_input(read_artifact(tokenizer, "tokenizer"))
        vae = VAVAE.from_pretrained(tokenizer)
        vae.set_latents_statistics(
            torch.tensor(trained.facts["latents_mean"]), torch.tensor(trained.facts["latents_std"])
        )
        scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
        return cls(vae, LightningDiT.from_pretrained(transformer), scheduler, trained.facts["class_names"])

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> Any:
        """Open a folder that `save_pretrained` wrote, or a hub id; options are those of diffusers."""
        options.setdefault("low_cpu_mem_usage", False)  # it needs a package that is otherwise unused, and says so
        return super().from_pretrained(pretrained_model_name_or_path, **options)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int | str],
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_channels: int | None = None,
        timestep_shift: float | None = None,
        solver: str = "euler",
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> LightningDiTOutput:
        """Generate one image per class label.

        Args:
            class_labels: indices or names.
            num_inference_steps: steps really taken.
            guidance_scale: 1 = off.
            guidance_interval: (low, high) in model time, t = 0 noise and t = 1 data; None = everywhere.
            guidance_channels: how many channels are guided; None = all.
            timestep_shift: s of t' = s t / (1 + (s-1) t); None = the scheduler's.
            solver: a name that `alight.flow.solve_ode` knows.
            seeds: one per image; image i then depends on seed i alone.
            generator: draws the noise of the whole batch instead.
            latents: the noise itself, (B, C, h, w), instead of both.
            output_type: `pil`, `uint8` (NHWC tensor), `pt` (NCHW in [-1, 1]) or `latent` (normalised latents).
            on_step: called after each step with (steps done, latents).

        Raises:
            InputError: on an unknown class, solver or output type, or settings out of range.
        """
        if output_type not in ("pil", "uint8", "pt", "latent"):
            raise InputError(f"Unknown output_type '{output_type}'. Known are pil, uint8, pt and latent.")
        labels = self.resolve_labels(class_labels).to(self.transformer.device)
        noise = self._noise(len(labels), seeds, generator, latents).to(self.transformer.device)
        shift = timestep_shift or 1.0 / self.scheduler.config.shift
        # a transformer trained without class dropout has no null class, and needs none without guidance
        null_labels = torch.full_like(labels, self.transformer.null_label) if guidance_scale != 1 else None
        velocity = GuidedVelocity(
            self.transformer,
            labels,
            null_labels,
            guidance_scale,
            guidance_interval,
            guidance_channels,
        )
        solution = solve_ode(
            velocity, noise, num_inference_steps, solver, None if shift == 1.0 else shift, on_step=on_step
        )
        return LightningDiTOutput(images=self._decode(solution.x, output_type), nfe=velocity.nfe)

    def resolve_labels(self, class_labels: Sequence[int | str]) -> Tensor:
        """Class names and indices to an int64 tensor of indices.

        Raises:
            InputError: names the class that is unknown, and those that are known.
        """
        names, count = self.config.class_names or [], self.transformer.config.num_classes
        return torch.tensor([_class_index(label, names, count) for label in class_labels], dtype=torch.int64)

    def _noise(
        self,
        count: int,
        seeds: Sequence[int] | None,
        generator: torch.Generator | None,
        latents: Tensor | None,
    ) -> Tensor:
        size = self.transformer.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (self.transformer.config.in_channels, height, width)
        if latents is not None:
            if latents.shape != (count, *shape):
                raise InputError(f"latents of shape {tuple(latents.shape)} were given; expected {(count, *shape)}.")
            return latents
        if seeds is not None:
            if len(seeds) != count:
                raise InputError(f"{count} class labels need as many seeds; {len(seeds)} were given.")
            return noise_of_seeds(list(seeds), shape)
        return torch.randn((count, *shape), generator=generator, device=generator.device if generator else "cpu")

    def _decode(self, latents: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return latents
        images = self.tokenizer.decode_latents(latents.to(self.tokenizer.dtype))
        if output_type == "pt":
            return images
        pixels = to_uint8(images)
        return pixels if output_type == "uint8" else [Image.fromarray(image.cpu().numpy()) for image in pixels]


def _class_index(label: int | str, names: Sequence[str], count: int) -> int:
    if isinstance(label, str) and label in names:
        return list(names).index(label)
    if isinstance(label, str) and not label.lstrip("-").isdigit():
        known = f" Known are {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}." if names else ""
        raise InputError(f"There is no class '{label}'.{known} Indices from 0 to {count - 1} work too.")
    if not 0 <= int(label) < count:
        raise InputError(f"Class {label} is out of range: this transformer knows the classes 0 to {count - 1}.")
    return int(label)
