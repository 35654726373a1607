"""The time of an image in one pass through a network without gradients."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from alight.models.lightning_dit import LightningDiT
from alight.models.tokenizer import Tokenizer
from alight.options import Precision
from alight.plan.measure import at_extent
from alight.plan.subject import FEW_LAYERS, SMALLEST_IMAGE
from alight.runtime.device import autocast, order_for_convolutions
from alight.runtime.hardware import synchronise
from alight.stages.extract_latents import moments

REPEATS = 3


class Passes:
    """Times passes on a device.

    Args:
        device: that the networks run on.
        limit: about how many seconds a measurement may take; a network too large for that is measured in part.
        note: takes sentences on what was measured in part.
    """

    def __init__(self, device: torch.device, limit: float, note: Callable[[str], object]) -> None:
        self.device, self.limit, self._note = device, limit, note

    def seconds(self, work: Callable[[int], object], batch: int, precision: Precision = "fp32") -> float:
        """Seconds per image of work on so many images, in the largest batch that the time allows."""
        with torch.no_grad(), autocast(self.device, precision):
            self._time(work, 1)  # chooses kernels
            once = self._time(work, 1)
            count = max(1, min(batch, int(self.limit / REPEATS / max(once, 1e-6))))
            if count == 1:
                return once
            times = [self._time(work, count) for _ in range(REPEATS)]
        return statistics.median(times) / count

    def encoding(self, vae: Tokenizer, size: int, batch: int, precision: Precision = "fp32") -> float:
        """Seconds to encode an image of `size` pixels on a side."""
        vae.to(self.device)
        order_for_convolutions(vae)

        def timed(side: int) -> float:
            return self.seconds(lambda count: moments(vae, self._images(count, side)), batch, precision)

        return timed(size) if vae.has_frozen_encoder else self._by_area(timed, size, vae.downsampling_factor)

    def decoding(self, vae: Tokenizer, size: int, batch: int, precision: Precision = "fp32") -> float:
        """Seconds to decode the latents of an image of `size` pixels on a side."""
        vae.to(self.device)
        factor, channels = vae.downsampling_factor, vae.config.latent_channels

        def timed(side: int) -> float:
            shape = channels, side // factor, side // factor
            return self.seconds(lambda count: vae.decode_raw_latents(self._noise(count, *shape)), batch, precision)

        return timed(size) if vae.has_frozen_encoder else self._by_area(timed, size, factor)

    def sampling_step(
        self, build: Callable[[int], LightningDiT], num_layers: int, batch: int, precision: Precision
    ) -> float:
        """Seconds of one evaluation of a transformer for an image; `build` makes one of so many layers."""

        def timed(layers: int) -> float:
            model = build(layers).to(self.device).eval()
            height, width = model.config.sample_size
            shape = model.config.in_channels, height, width

            def evaluate(count: int) -> Tensor:
                labels = torch.zeros(count, dtype=torch.long, device=self.device)
                return model(self._noise(count, *shape), torch.rand(count, device=self.device), labels)

            return self.seconds(evaluate, batch, precision)

        few, more = FEW_LAYERS
        if num_layers <= more or (at_few := timed(few)) * num_layers / few <= self.limit:
            return timed(num_layers)
        self._note(
            f"The transformer is large for this machine or for the time: measured were models of {few} and {more} "
            f"layers, and the line through them was followed to {num_layers}."
        )
        return at_extent({few: at_few, more: timed(more)}, num_layers)

    def features(self, network: Callable[[Tensor], object], size: int, batch: int) -> float:
        """Seconds of a network for an image of `size` pixels on a side."""
        return self.seconds(lambda count: network(self._images(count, size)), batch)

    def _by_area(self, timed: Callable[[int], float], size: int, factor: int) -> float:
        quarter, half = size // 4, size // 2
        divisible = size % (4 * factor) == 0 and quarter >= SMALLEST_IMAGE
        if not divisible or (at_quarter := timed(quarter)) * 16 <= self.limit:
            return timed(size)
        self._note(
            f"The images are large for this machine or for the time: the tokenizer was measured with {quarter} and "
            f"{half} pixels on a side, and the line through them was followed to the area of {size}."
        )
        return at_extent({quarter**2: at_quarter, half**2: timed(half)}, size**2)

    def _time(self, work: Callable[[int], object], count: int) -> float:
        synchronise(self.device)
        started = time.perf_counter()
        work(count)
        synchronise(self.device)
        return time.perf_counter() - started

    def _images(self, count: int, size: int) -> Tensor:
        return self._noise(count, 3, size, size).clamp(-1, 1)

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device)
