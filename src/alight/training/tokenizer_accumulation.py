"""The gradient of a whole step of tokenizer training, added up over its micro-batches."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from alight.config import TrainTokenizerConfig
from alight.data.feature_cache import FeatureCache, cached_features
from alight.data.image_dataset import ImageDataset, ImageSample
from alight.runtime.ahead import sent
from alight.runtime.console import log
from alight.runtime.device import autocast
from alight.runtime.distributed import Processes
from alight.runtime.pixels import unit_range
from alight.runtime.seeding import noise_of_batch, random_stream
from alight.training.decoder_continuity import DecoderContinuity
from alight.training.feature_components import fit_components
from alight.training.latent_regularisation import draw_regularisation
from alight.training.tokenizer_flops import tokenizer_flops
from alight.training.tokenizer_schedule import TokenizerPhase
from alight.training.tokenizer_step import TokenizerNetworks, autoencoder_backward, discriminator_backward


@dataclass(frozen=True)
class Accumulation:
    """The gradient of a whole step, added up over its micro-batches.

    Attributes:
        config: of the run.
        networks: of the run.
        processes: that share the batch.
        latent_shape: (B, C, h, w) of the whole batch.
        cache: of the foundation model's features; None = computed at every step.
    """

    config: TrainTokenizerConfig
    networks: TokenizerNetworks
    processes: Processes
    latent_shape: tuple[int, int, int, int]
    cache: FeatureCache | None

    @classmethod
    def of(
        cls, config: TrainTokenizerConfig, networks: TokenizerNetworks, dataset: ImageDataset, processes: Processes
    ) -> "Accumulation":
        """Prepare for the images of a data set."""
        training, cache = config.training, None
        if networks.vae.latent_space == "sphere":
            log.info("tokenizer: latents on the sphere have no KL term, so reconstruction.kl_weight has no effect.")
        fit_components(networks, dataset, config)
        side = config.images.size // networks.vae.downsampling_factor
        if networks.foundation is not None and config.alignment.cache_features:
            cache = FeatureCache.open(networks.foundation, dataset.source, (side, side), training.precision)
        shape = (training.global_batch_size, networks.vae.config.latent_channels, side, side)
        return cls(config, networks, processes, shape, cache)

    def backward(
        self, step: int, phase: TokenizerPhase, samples: Iterator[ImageSample]
    ) -> Iterator[dict[str, Tensor]]:
        """Take this process's micro-batches of a step one by one; gives the scalars of each for the log.

        Everything random is drawn for the whole batch, whatever its micro-batches; adaptive weights are of each one,
        and so are the statistics of the discriminator's batch normalisation.

        Args:
            step: from 0.
            phase: of the schedule that the step belongs to.
            samples: micro-batches, one after another, their images on the device.
        """
        config, networks, device = self.config, self.networks, self.processes.device
        if not phase.alignment.enabled:
            networks = replace(networks, foundation=None)
        count = config.training.micro_batches(self.processes.world_size)
        own, factor = self.processes.share(self.latent_shape[0]), phase.adversarial_factor(step)
        noise = noise_of_batch(own, self.latent_shape[1:], config.seed, "posterior", step)
        changed = draw_regularisation(
            config.regularisation,
            self.latent_shape,
            networks.vae.downsampling_factor,
            random_stream(config.seed, "regularisation", step),
        )
        aligned_noise, continuity = self._noises(own, step, phase)
        for part in np.split(np.arange(len(noise)), count):
            of_part = slice(part[0], part[-1] + 1)
            sample = next(samples)
            images = unit_range(sample.image)
            with autocast(device, config.training.precision):
                result = autoencoder_backward(
                    networks,
                    images,
                    sent(noise[of_part], device),
                    phase.reconstruction,
                    phase.alignment,
                    adversarial_factor=factor,
                    share=1 / count,
                    regularisation=changed.part(own).part(of_part) if changed is not None else None,
                    average=self.processes.average,
                    features=self._features(networks, images, sample.position),
                    alignment_noise=sent(aligned_noise[of_part], device) if aligned_noise is not None else None,
                    continuity=continuity.part(of_part) if continuity is not None else None,
                )
                scalars = result.scalars
                if networks.discriminator is not None and factor is not None:
                    scalars |= discriminator_backward(
                        networks.discriminator,
                        result.images,
                        result.reconstructions,
                        phase.reconstruction.adversarial_loss,
                        factor=factor,
                        share=1 / count,
                    )
            yield scalars

    def _noises(self, own: slice, step: int, phase: TokenizerPhase) -> tuple[Tensor | None, DecoderContinuity | None]:
        """The noise on this process's latents while they are aligned, and the turns of those that are decoded."""
        seed, shape, aligned, continuity = self.config.seed, self.latent_shape[1:], None, None
        if phase.alignment.enabled and phase.alignment.latent_noise > 0:
            aligned = phase.alignment.latent_noise * noise_of_batch(own, shape, seed, "alignment noise", step)
        if self.config.regularisation.continuity_weight > 0:
            directions = noise_of_batch(own, shape, seed, "continuity", step)
            continuity = DecoderContinuity.of(self.config.regularisation, directions)
        return aligned, continuity

    def _features(self, networks: TokenizerNetworks, images: Tensor, positions: Any) -> Tensor | None:
        if self.cache is None or networks.foundation is None:
            return None
        return cached_features(self.cache, networks.foundation, images, positions.tolist(), self.latent_shape[2:])

    def flops_per_image(self, step: int, phase: TokenizerPhase) -> int | None:
        """Floating-point operations to learn from one image at a step."""
        adversarial = phase.adversarial_factor(step) is not None
        return self._flops(phase.alignment.enabled, adversarial)

    @functools.cached_property
    def _flops(self) -> Callable[[bool, bool], int | None]:
        known = self.cache is not None
        return functools.cache(functools.partial(tokenizer_flops, self.config, self.networks, known))
