"""Images that are generated while they are measured, without being written to disk."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from alight.config import DrawConfig, SolverConfig
from alight.evaluation.batches import in_steps
from alight.evaluation.generated import GeneratedImages, sampling_conditions
from alight.models.weight_files import weights_hash
from alight.pipelines.lightning_dit import LightningDiTPipeline, latent_shape
from alight.pipelines.requests import label_protocol, plan_requests
from alight.pipelines.selection import selection_text
from alight.reporting.report import Conditions
from alight.runtime.device import autocast
from alight.runtime.errors import InputError
from alight.runtime.pixels import UINT8_RULE, PixelArray


class LiveImages(GeneratedImages):
    """The images that 'alight sample' makes with the same settings, generated batch by batch.

    The order is shuffled from the seed, as in a `.npz`: the Inception score reads chunks, so classes must be mixed.

    Raises:
        InputError: an unknown class, fewer than two images, or settings that the transformer cannot be sampled with.
    """

    def __init__(self, pipeline: LightningDiTPipeline, folder: Path, draw: DrawConfig, seed: int) -> None:
        sampling = draw.sampling
        pipeline.check_guidance(
            sampling.guidance_scale,
            sampling.guidance_channels,
            guidance=sampling.guidance,
            internal_scale=sampling.internal_scale,
        )
        requests = plan_requests(pipeline, draw, seed)
        if len(requests) < 2:
            raise InputError("A single image is not a distribution: raise draw.samples_per_class or draw.num_samples.")
        order = np.random.default_rng(seed).permutation(len(requests))
        self._requests = [requests[number] for number in order]
        self.pipeline, self._draw, self._seed = pipeline, draw, seed
        self.hashes = {part: weights_hash(folder / part) for part in ("transformer", "tokenizer")}
        chosen = SolverConfig(**pipeline.recommended_sampling) if pipeline.recommended_sampling else None
        self.remarks = [selection_text(pipeline.config.get("selection") if sampling == chosen else None)]
        self.evaluations: list[int] = []  # of every batch that was made
        self.name, self.count = folder.name, len(requests)
        self.labels = np.array([request.label for request in self._requests])
        classes = pipeline.transformer.config.num_classes
        self.class_names = pipeline.class_names or [str(label) for label in range(classes)]
        _, height, width = latent_shape(pipeline.transformer)
        factor = pipeline.tokenizer.downsampling_factor
        self.size = (height * factor, width * factor)

    @property
    def conditions(self) -> Conditions:  # type: ignore[override]
        """As those of stored samples; the number of evaluations is known once images were made."""
        return sampling_conditions(
            {
                "count": self.count,
                "label_protocol": label_protocol(self._draw),
                "sampling": self._draw.sampling.effective(),
                "nfe": float(np.mean(self.evaluations)) if self.evaluations else "unknown",
                "seed": self._seed,
                "uint8_rule": UINT8_RULE,
                **self.hashes,
            }
        ) | {"precision": self._draw.precision, "order": "shuffled"}

    def read(self, start: int, stop: int, batch_size: int) -> Iterator[PixelArray]:
        """See `GeneratedImages`."""
        for numbers in in_steps(start, stop, batch_size):
            yield self.pick(numbers)

    def pick(self, numbers: Sequence[int]) -> PixelArray:
        """See `GeneratedImages`."""
        requests = [self._requests[number] for number in numbers]
        with torch.no_grad(), autocast(self.pipeline.device, self._draw.precision):
            result = self.pipeline(
                class_labels=[request.label for request in requests],
                seeds=[request.seed for request in requests],
                output_type="uint8",
                **self._draw.sampling.model_dump(),
            )
        self.evaluations.append(result.nfe)
        pixels: PixelArray = result.images.cpu().numpy()
        return pixels
