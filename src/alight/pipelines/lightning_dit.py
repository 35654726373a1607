"""The sampler that users meet: class labels in, images out, in the manner of diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from alight.artifacts import read_artifact, verify_folder
from alight.data.class_names import class_index, readable_class_names
from alight.flow import (
    PATHS,
    DiffusionForm,
    GuidedVelocity,
    LastStep,
    Prediction,
    SDEMethod,
    VelocityField,
    solve_ode,
    solve_sde,
    time_interval,
)
from alight.models.lightning_dit import LightningDiT
from alight.models.vavae import VAVAE
from alight.runtime.errors import InputError
from alight.runtime.pixels import to_uint8
from alight.runtime.seeding import noise_of_seeds, random_stream
from alight.runtime.solver_names import SDE_SOLVERS, require_solver


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
        class_names: by label; labels may be given by name where they are known. A transformer of 1000 classes without
            names knows those of ImageNet-1k.
        path: the path from noise to data that the transformer was trained on: linear, gvp or vp.
        prediction: what it predicts: velocity, noise or score.
        recommended_sampling: arguments of a call that 'alight tune' found to be good.
    """

    model_cpu_offload_seq = "transformer->tokenizer"

    def __init__(
        self,
        tokenizer: VAVAE,
        transformer: LightningDiT,
        scheduler: FlowMatchEulerDiscreteScheduler,
        class_names: Sequence[str] | None = None,
        path: str = "linear",
        prediction: Prediction = "velocity",
        recommended_sampling: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(tokenizer=tokenizer, transformer=transformer, scheduler=scheduler)
        # model_index.json names the public classes, not the files that happen to hold them
        self.register_to_config(
            tokenizer=("alight", "VAVAE"),
            transformer=("alight", "LightningDiT"),
            class_names=list(class_names) if class_names else None,
            path=path,
            prediction=prediction,
            recommended_sampling=dict(recommended_sampling) if recommended_sampling else None,
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
        flow = {name: trained.facts[name] for name in ("path", "prediction") if name in trained.facts}
        model = LightningDiT.from_pretrained(transformer)
        return cls(vae, model, scheduler, trained.facts.get("class_names"), **flow)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> Any:
        """Open a folder that `save_pretrained` wrote, or a hub id; options are those of diffusers.

        Raises:
            InputError: the folder is an artifact, and a file of it is missing or has changed.
        """
        verify_folder(Path(pretrained_model_name_or_path))
        options.setdefault("low_cpu_mem_usage", False)  # it needs a package that is otherwise unused, and says so
        return super().from_pretrained(pretrained_model_name_or_path, **options)

    @classmethod
    def _dict_from_json_file(cls, json_file: Any) -> dict[str, Any]:
        """What diffusers knows of a folder; exported ones lead it to this class by code of theirs, not needed here."""
        index: dict[str, Any] = super()._dict_from_json_file(json_file)
        if isinstance(index.get("_class_name"), list):
            index["_class_name"] = index["_class_name"][-1]
        return index

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names by which classes can be asked for, by label; empty if there are none."""
        return readable_class_names(self.config.class_names, self.transformer.config.num_classes)

    @property
    def recommended_sampling(self) -> dict[str, Any]:
        """Arguments of a call that 'alight tune' found to be good; empty where nobody has searched.

        pipeline(["3"], **pipeline.recommended_sampling)
        """
        return dict(self.config.recommended_sampling or {})

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
        diffusion_form: DiffusionForm = "sigma",
        last_step: LastStep = "mean",
        guide: LightningDiT | None = None,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> LightningDiTOutput:
        """Generate one image per class label.

        With `seeds`, image i depends on seed i alone; on the batch only as far as the rounding of matrix products
        does, and with adaptive solvers, whose steps are the batch's.

        Args:
            class_labels: indices or names.
            num_inference_steps: steps really taken.
            guidance_scale: 1 = off.
            guidance_interval: (low, high) in model time, t = 0 noise and t = 1 data; None = everywhere.
            guidance_channels: how many channels are guided; None = all.
            timestep_shift: s of t' = s t / (1 + (s-1) t); None = the scheduler's.
            solver: a name that `alight.flow.solve_ode` knows; `sde_euler` and `sde_heun` add noise on the way.
            diffusion_form: how much noise the SDE solvers add when; see `alight.flow.diffusion_coefficient`.
            last_step: how the SDE solvers end; see `alight.flow.solve_sde`.
            guide: a weaker transformer on the same latents: autoguidance (arXiv 2406.02507), not the null class.
            seeds: one per image.
            generator: draws the noise of the whole batch instead.
            latents: the noise itself, (B, C, h, w), instead of both.
            output_type: `pil`, `uint8` (NHWC tensor), `pt` (NCHW in [-1, 1]) or `latent` (normalised latents).
            on_step: called after each step with (steps done, latents).

        Raises:
            InputError: on an unknown class, solver or output type, or settings out of range.
        """
        if output_type not in ("pil", "uint8", "pt", "latent"):
            raise InputError(f"Unknown output_type '{output_type}'. Known are pil, uint8, pt and latent.")
        require_solver(solver)
        self.check_guidance(guidance_scale, guidance_channels, guide)
        labels = self.resolve_labels(class_labels).to(self.transformer.device)
        noise = self._noise(len(labels), seeds, generator, latents).to(self.transformer.device)
        # a transformer trained without class dropout has no null class; without guidance or with a guide it needs none
        has_null = guidance_scale != 1 and guide is None
        velocity = GuidedVelocity(
            self.transformer,
            labels,
            torch.full_like(labels, self.transformer.null_label) if has_null else None,
            guidance_scale,
            guidance_interval,
            guidance_channels,
            guide,
        )
        path, prediction = PATHS[self.config.path](), self.config.prediction
        shift = 1.0 / self.scheduler.config.shift if timestep_shift is None else timestep_shift
        if solver in SDE_SOLVERS:
            if shift != 1.0:
                raise InputError(f"{solver} takes even steps, but the timestep shift is {shift}. Set it to 1.")
            x = solve_sde(
                velocity,
                noise,
                num_inference_steps,
                cast(SDEMethod, solver.removeprefix("sde_")),
                path=path,
                prediction=prediction,
                diffusion_form=diffusion_form,
                last_step=last_step,
                generator=generator if seeds is None else [random_stream(seed, "sde") for seed in seeds],
                on_step=on_step,
            ).x
        else:
            warp = None if shift == 1.0 else shift
            field, (start, end) = VelocityField(velocity, path, prediction), time_interval(path, prediction)
            x = solve_ode(field, noise, num_inference_steps, solver, warp, t_0=start, t_1=end, on_step=on_step).x
        return LightningDiTOutput(images=self.decode(x, output_type), nfe=velocity.nfe)

    def resolve_labels(self, class_labels: Sequence[int | str]) -> Tensor:
        """Class names and indices to an int64 tensor of indices.

        Raises:
            InputError: names the class that is unknown, and those that are known.
        """
        names, count = self.class_names, self.transformer.config.num_classes
        return torch.tensor([class_index(label, names, count) for label in class_labels], dtype=torch.int64)

    def check_guidance(self, scale: float, channels: int | None = None, guide: LightningDiT | None = None) -> None:
        """Find out before any work starts whether the transformer can be guided like that.

        Raises:
            InputError: more channels than the latent has, no null class to guide with, or a guide of another kind.
        """
        config = self.transformer.config
        if channels is not None and channels > config.in_channels:
            raise InputError(
                f"guidance_channels={channels}, but the latents have only {config.in_channels} channels. Give fewer, "
                "or none to guide all of them."
            )
        if guide is None:
            if scale != 1:
                _ = self.transformer.null_label  # raises where there is none
            return
        kinds = [(model.config.num_classes, *latent_shape(model)) for model in (self.transformer, guide)]
        if kinds[0] != kinds[1]:
            own, other = (f"{classes} classes and latents of {shape}" for classes, *shape in kinds)
            raise InputError(
                f"The guide knows {other}, but the transformer that it guides {own}. Give a guide that was trained on "
                "the same latents."
            )

    def _noise(
        self,
        count: int,
        seeds: Sequence[int] | None,
        generator: torch.Generator | None,
        latents: Tensor | None,
    ) -> Tensor:
        shape = latent_shape(self.transformer)
        if latents is not None:
            if latents.shape != (count, *shape):
                raise InputError(f"latents of shape {tuple(latents.shape)} were given; expected {(count, *shape)}.")
            return latents
        if seeds is not None:
            if len(seeds) != count:
                raise InputError(f"{count} class labels need as many seeds; {len(seeds)} were given.")
            return noise_of_seeds(list(seeds), shape)
        return torch.randn((count, *shape), generator=generator, device=generator.device if generator else "cpu")

    def decode(self, latents: Tensor, output_type: str = "uint8") -> Any:
        """Normalised latents to images, in one of the output types of a call."""
        if output_type == "latent":
            return latents
        images = self.tokenizer.decode_latents(latents.to(self.tokenizer.dtype))
        if output_type == "pt":
            return images
        pixels = to_uint8(images)
        return pixels if output_type == "uint8" else [Image.fromarray(image.cpu().numpy()) for image in pixels]


def latent_shape(transformer: LightningDiT) -> tuple[int, int, int]:
    """(C, h, w) of the latents that a transformer makes."""
    size = transformer.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return transformer.config.in_channels, height, width


def image_size(pipeline: LightningDiTPipeline) -> int:
    """Height in pixels of the images that a pipeline makes."""
    return latent_shape(pipeline.transformer)[1] * int(pipeline.tokenizer.downsampling_factor)
