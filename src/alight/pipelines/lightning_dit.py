"""The sampler that users meet: class labels in, images out, in the manner of diffusers' pipelines."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, Unpack

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.utils import BaseOutput
from PIL import Image
from pydantic import ConfigDict, with_config
from torch import Tensor
from typing_extensions import TypedDict

from alight.artifacts import MANIFEST, read_artifact, verify_folder
from alight.data.class_names import class_index, readable_class_names
from alight.flow import PATHS, GuidedVelocity, InternalGuidance, SolverOptions, SolverSettings, resolve_shift, sample
from alight.models.lightning_dit import LightningDiT
from alight.models.loading_options import check_options, resolve_dtype
from alight.models.pretrained import is_hub_id
from alight.models.tokenizer import Tokenizer
from alight.models.tokenizer_folders import open_tokenizer_folder
from alight.options import GuidanceName, require_known
from alight.pipelines.call_arguments import (
    as_labels,
    as_seeds,
    as_steps,
    check_generator,
    check_interval,
    check_numbers,
    noise_of_generators,
    require_finite,
)
from alight.pipelines.folder_check import PREDICTIONS, check_pipeline_folder
from alight.pipelines.guidance_check import check_guidance, check_solver, latent_shape
from alight.runtime.device import by_its_weights
from alight.runtime.errors import InputError
from alight.runtime.pixels import to_uint8
from alight.runtime.reading import check_values
from alight.runtime.seeding import noise_of_seeds, random_stream

# Keywords that diffusers' own loader of pipelines accepts.
DIFFUSERS_OPTIONS = {"custom_pipeline", "custom_revision", "device_map", "quantization_config", "trust_remote_code"}
OUTPUT_TYPES = ("pil", "uint8", "pt", "latent")


@with_config(ConfigDict(strict=True, allow_inf_nan=False, extra="allow"))
class TransformerFacts(TypedDict):
    """The facts that the manifest of a transformer must hold for images to be made with it."""

    latents_mean: list[float]
    latents_std: list[float]
    class_names: NotRequired[list[str] | None]
    path: NotRequired[str]
    prediction: NotRequired[str]
    trained_guidance_scale: NotRequired[float]


@dataclass
class LightningDiTOutput(BaseOutput):
    """The result of a pipeline call.

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
        prediction: of the transformer: velocity, noise or score.
        recommended_sampling: arguments of a call that 'alight tune' found to be good.
        selection: record of that search, see `Selection`.
        trained_guidance_scale: of guidance that average velocities were trained with; None = none.
    """

    model_cpu_offload_seq = "transformer->tokenizer"

    def __init__(
        self,
        tokenizer: Tokenizer,
        transformer: LightningDiT,
        scheduler: FlowMatchEulerDiscreteScheduler,
        class_names: Sequence[str] | None = None,
        path: str = "linear",
        prediction: str = "velocity",  # diffusers remarks on a Literal whenever it opens a pipeline
        recommended_sampling: Mapping[str, Any] | None = None,
        selection: Mapping[str, Any] | None = None,
        trained_guidance_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(tokenizer=tokenizer, transformer=transformer, scheduler=scheduler)
        # model_index.json names the public classes, not the files that happen to hold them
        self.register_to_config(
            tokenizer=("alight", type(tokenizer).__name__),
            transformer=("alight", "LightningDiT"),
            class_names=list(class_names) if class_names else None,
            path=path,
            prediction=prediction,
            recommended_sampling=dict(recommended_sampling) if recommended_sampling else None,
            selection=dict(selection) if selection else None,
            **({} if trained_guidance_scale is None else {"trained_guidance_scale": trained_guidance_scale}),
        )

    @classmethod
    def from_artifacts(cls, transformer: str | Path, tokenizer: str | Path) -> LightningDiTPipeline:
        """Join a trained transformer with its tokenizer.

        Args:
            transformer: folder of a transformer artifact.
            tokenizer: folder of a tokenizer artifact.

        Raises:
            InputError: if a folder is unusable, or the transformer was trained on another tokenizer's latents.
        """
        folder = Path(transformer)
        trained = read_artifact(folder, "transformer")
        trained.require_input(read_artifact(Path(tokenizer), "tokenizer"))
        where = f"The facts in {folder / MANIFEST}"
        facts = check_values(trained.facts, TransformerFacts, where, "Restore the file, or train it again.")
        path, prediction = facts.get("path", "linear"), facts.get("prediction", "velocity")
        if path not in PATHS or prediction not in PREDICTIONS:
            raise InputError(f"{where} name the path {path!r} with {prediction!r}, unknown here. Restore the file.")
        return cls.from_models(open_tokenizer_folder(tokenizer), LightningDiT.from_pretrained(folder), facts)

    @classmethod
    def from_models(
        cls, tokenizer: Tokenizer, transformer: LightningDiT, facts: TransformerFacts
    ) -> LightningDiTPipeline:
        """Join networks in memory, by the facts that the transformer's training recorded."""
        tokenizer.set_latents_statistics(torch.tensor(facts["latents_mean"]), torch.tensor(facts["latents_std"]))
        scheduler, names = FlowMatchEulerDiscreteScheduler(shift=1.0), facts.get("class_names")
        flow = facts.get("path", "linear"), facts.get("prediction", "velocity")
        trained = facts.get("trained_guidance_scale")
        return cls(tokenizer, transformer, scheduler, names, *flow, trained_guidance_scale=trained)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> Any:
        """Open a folder that `save_pretrained` wrote, or a hub id.

        Args:
            pretrained_model_name_or_path: a local folder or a hub id.
            **options: those of diffusers, such as `dtype` and `variant`, and components to be taken instead of those
                in the folder.

        Raises:
            InputError: a file is missing or damaged, does not describe a pipeline of this package, or a keyword is
                unknown or cannot be followed.
        """
        origin, what = pretrained_model_name_or_path, f"{cls.__name__}.from_pretrained"
        own = set(inspect.signature(cls.__init__).parameters) - {"self"}
        check_options(options, what, own | DIFFUSERS_OPTIONS)
        by_component = options.get("dtype") or options.get("torch_dtype")
        dtype = by_component if isinstance(by_component, dict) else resolve_dtype(options, what)
        if dtype == "auto":
            raise InputError(f"{what} does not know 'auto'. Give a type such as torch.bfloat16.")
        options = {name: value for name, value in options.items() if name not in ("dtype", "torch_dtype")}
        options |= {} if dtype is None else {"dtype": dtype}
        if not is_hub_id(origin):
            if not Path(origin).is_dir():
                raise InputError(f"There is no folder {origin}. Check the path, or give a hub id (owner/name).")
            verify_folder(Path(origin))
            try:
                check_pipeline_folder(Path(origin), options, cls.__call__)
            except InputError as error:
                raise InputError(f"The pipeline in {origin} cannot be opened. {error}") from error
        options.setdefault("low_cpu_mem_usage", False)  # it needs a package that is otherwise unused, and says so
        try:
            return super().from_pretrained(origin, **options)
        except InputError:
            raise
        except Exception as error:  # the library has dozens of kinds for files that are missing or damaged
            raise InputError(
                f"The pipeline in {origin} cannot be opened ({' '.join(str(error).split())[:300]}). Restore the "
                "folder, or write it again."
            ) from error

    @classmethod
    def _dict_from_json_file(cls, json_file: Any) -> dict[str, Any]:
        """The index of a folder; exported ones name a loader of their own beside this class, not needed here."""
        index: dict[str, Any] = super()._dict_from_json_file(json_file)
        if isinstance(index.get("_class_name"), list):
            index["_class_name"] = index["_class_name"][-1]
        return index

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names by which classes can be asked for, by label; empty if there are none."""
        return readable_class_names(self.config.class_names, self.transformer.config.num_classes)

    @property
    def default_shift(self) -> float:
        """The timestep shift of the scheduler, which counts where a call gives none; 1 = even steps."""
        return 1.0 / self.scheduler.config.shift

    @property
    def recommended_sampling(self) -> dict[str, Any]:
        """Arguments of a call that 'alight tune' found to be good; empty before a search.

        pipeline(["3"], **pipeline.recommended_sampling)
        """
        return dict(self.config.recommended_sampling or {})

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int | str] | int | str,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_channels: int | None = None,
        timestep_shift: float | Literal["auto"] | None = None,
        solver: str = "euler",
        guide: LightningDiT | None = None,
        guidance: GuidanceName | None = None,
        internal_scale: float = 1.0,
        internal_interval: tuple[float, float] | None = None,
        seeds: Sequence[int] | int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        on_step: Callable[[int, Tensor], None] | None = None,
        **solver_settings: Unpack[SolverSettings],
    ) -> LightningDiTOutput:
        """Generate one image per class label.

        With `seeds`, image i depends on seed i alone, but for rounding and the steps of adaptive solvers.

        Args:
            class_labels: indices or names; one alone for one image.
            num_inference_steps: steps really taken.
            guidance_scale: 1 = off.
            guidance_interval: (low, high) in model time, t = 0 noise and t = 1 data; None = everywhere.
            guidance_channels: number of channels that are guided; None = all.
            timestep_shift: s of t' = s t / (1 + (s-1) t); None = the scheduler's, "auto" = by the latents' dimension.
            solver: a name that `alight.flow.solve_ode` knows; `sde_euler` and `sde_heun` add noise on the way, and
                `mean` takes few steps with a transformer that was trained for it.
            guide: a weaker transformer on the same latents: autoguidance (arXiv 2406.02507), not the null class.
            guidance: a strategy of `alight.flow.GUIDANCES`; None = autoguidance with a guide, else classifier-free.
            internal_scale: of Internal Guidance, which needs a transformer with an auxiliary output; 1 = off.
            internal_interval: as `guidance_interval`.
            seeds: one per image; a number for one image.
            generator: draws the noise of the whole batch instead; a list of one per image draws that of each.
            latents: the noise itself, (B, C, h, w), instead of both.
            output_type: `pil`, `uint8` (NHWC tensor), `pt` (NCHW in [-1, 1]) or `latent` (normalised latents).
            on_step: called after each step with (steps done, latents).
            **solver_settings: `time_warp`, `last_time`, and those of single solvers: `kappa`, `diffusion_form`,
                `last_step` and `last_step_size`; see `alight.flow.SolverOptions`.

        Raises:
            InputError: an unknown name, settings out of range, or latents or images that are not finite.
        """
        require_known(output_type, OUTPUT_TYPES, "output_type")
        num_inference_steps = as_steps(num_inference_steps)
        check_solver(self.transformer, solver, guidance_scale, internal_scale)
        check_numbers(guidance_scale=guidance_scale, internal_scale=internal_scale)
        strategy = guidance_scale, guidance_interval, guidance_channels, guide, guidance
        velocity = self.velocity(class_labels, *strategy, internal_scale, internal_interval)
        noise, generator = self._noise(len(velocity.class_labels), seeds, generator, latents)
        flow = self.flow(timestep_shift, **solver_settings)
        x = sample(velocity, noise, num_inference_steps, solver, **flow, generator=generator, on_step=on_step).x
        told = {"guidance_scale": guidance_scale, "solver": solver, "num_inference_steps": num_inference_steps}
        told |= {"internal_scale": internal_scale} if internal_scale != 1 else {}
        return LightningDiTOutput(images=self._output(x, output_type, told), nfe=velocity.nfe)

    def shift_of(self, timestep_shift: float | Literal["auto"] | None) -> float:
        """A timestep shift of a call as a number: None is the scheduler's, "auto" follows the latents' dimension."""
        shift = resolve_shift(timestep_shift, latent_shape(self.transformer))
        check_numbers(timestep_shift=shift)
        return self.default_shift if shift is None else shift

    def flow(
        self, timestep_shift: float | Literal["auto"] | None = None, **solver_settings: Unpack[SolverSettings]
    ) -> dict[str, Any]:
        """The arguments of `alight.flow.sample` that belong to the transformer, and the settings of a solver.

        Without a timestep shift, and without a time warp in its place, the shift is the scheduler's.
        """
        warped = timestep_shift is None and solver_settings.get("time_warp") is not None
        options = SolverOptions(None if warped else self.shift_of(timestep_shift), **solver_settings)
        return {"options": options, "path": PATHS[self.config.path](), "prediction": self.config.prediction}

    def velocity(
        self,
        class_labels: Sequence[int | str] | int | str | Tensor,
        scale: float = 1.0,
        interval: tuple[float, float] | None = None,
        channels: int | None = None,
        guide: LightningDiT | None = None,
        guidance: GuidanceName | None = None,
        internal_scale: float = 1.0,
        internal_interval: tuple[float, float] | None = None,
    ) -> GuidedVelocity:
        """The guided velocity field that a call with these arguments follows; a row of its state per label.

        Raises:
            InputError: an unknown class, an interval that is none, or guidance that the transformer cannot have.
        """
        labels = self.resolve_labels(class_labels).to(self.transformer.device)
        check_interval(interval)
        check_interval(internal_interval)
        self.check_guidance(scale, channels, guide, guidance, internal_scale)
        # a transformer trained without class dropout has no null class; without guidance it needs none
        has_null = scale != 1 and self.transformer.config.class_dropout_prob > 0
        null_labels = torch.full_like(labels, self.transformer.null_label) if has_null else None
        model = InternalGuidance(self.transformer, internal_scale, internal_interval)
        return GuidedVelocity(model, labels, null_labels, scale, interval, channels, guide, guidance)

    def _output(self, x: Tensor, output_type: str, settings: Mapping[str, Any]) -> Any:
        """Latents in an output type of a call, refused where they or their images are not finite."""
        require_finite(x, "The latents", settings)
        if output_type == "latent":
            return x
        images = self.decode(x, "pt")
        require_finite(images, "The images", settings)
        return as_output(images, output_type)

    def resolve_labels(self, class_labels: Sequence[int | str] | int | str | Tensor) -> Tensor:
        """Class names and indices to an int64 tensor of indices.

        Raises:
            InputError: names the class that is unknown, and those that are known.
        """
        names, count = self.class_names, self.transformer.config.num_classes
        return torch.tensor([class_index(label, names, count) for label in as_labels(class_labels)], dtype=torch.int64)

    def check_guidance(
        self,
        scale: float,
        channels: int | None = None,
        guide: LightningDiT | None = None,
        guidance: GuidanceName | None = None,
        internal_scale: float = 1.0,
    ) -> None:
        """Refuse guidance that the transformer cannot have, before any work starts; see `guidance_check`."""
        trained = self.config.get("trained_guidance_scale")
        check_guidance(self.transformer, scale, channels, guide, guidance, internal_scale, trained)

    def _noise(
        self, count: int, seeds: Any, generator: Any, latents: Tensor | None
    ) -> tuple[Tensor, torch.Generator | Sequence[torch.Generator] | None]:
        """The noise at the start, on the transformer's device, and the generators of the noise that an SDE adds."""
        seeds = as_seeds(seeds, count)
        check_generator(generator, count)
        shape = latent_shape(self.transformer)
        if latents is not None:
            if not isinstance(latents, Tensor) or latents.shape != (count, *shape):
                raise InputError(f"latents of shape {np.shape(latents)} were given; expected {(count, *shape)}.")
            noise = latents
        elif seeds is not None:
            noise = noise_of_seeds(seeds, shape)
        elif isinstance(generator, Sequence):
            noise = noise_of_generators(generator, shape)
        else:
            noise = torch.randn((count, *shape), generator=generator, device=generator.device if generator else "cpu")
        later = generator if seeds is None else [random_stream(seed, "sde") for seed in seeds]
        return noise.to(self.transformer.device), later

    def decode(self, latents: Tensor, output_type: str = "uint8") -> Any:
        """Normalised latents to images, in one of the output types of a call."""
        if output_type == "latent":
            return latents
        with by_its_weights(self.tokenizer):
            return as_output(self.tokenizer.decode_latents(latents), output_type)


def as_output(images: Tensor, output_type: str) -> Any:
    """Images (B, 3, H, W) in [-1, 1] as they are asked for: `pt`, `uint8` or `pil`."""
    if output_type == "pt":
        return images
    pixels = to_uint8(images)
    return pixels if output_type == "uint8" else [Image.fromarray(image.cpu().numpy()) for image in pixels]


def image_size(pipeline: LightningDiTPipeline) -> int:
    """Height in pixels of the images that a pipeline makes."""
    return latent_shape(pipeline.transformer)[1] * int(pipeline.tokenizer.downsampling_factor)
