"""Cost of a training step of the tokenizer, which depends on the losses that are on."""

import torch

from alight.config import TrainTokenizerConfig
from alight.training.decoder_continuity import DecoderContinuity
from alight.training.flops import known_flops, weightless
from alight.training.tokenizer_step import TokenizerNetworks, autoencoder_backward, discriminator_backward


def tokenizer_flops(
    config: TrainTokenizerConfig, networks: TokenizerNetworks, features_known: bool, aligned: bool, adversarial: bool
) -> int | None:
    """Floating-point operations to learn from one image, without scaling, turning and noise of its latent.

    Returns:
        Their number; None where they cannot be counted, see `known_flops`.
    """
    parts = {name: weightless(part) for name, part in vars(networks).items() if part is not None}
    if not aligned:
        parts.pop("foundation", None)
    shadows, size = TokenizerNetworks(**parts), config.images.size
    grid = (size // networks.vae.downsampling_factor,) * 2
    images = torch.empty(1, 3, size, size, device="meta")
    noise = torch.empty(1, networks.vae.config.latent_channels, *grid, device="meta")
    features = None
    if features_known and shadows.foundation is not None:
        features = torch.empty(1, shadows.foundation.feature_dim, *grid, device="meta")
    continuity = DecoderContinuity.of(config.regularisation, noise)

    def step() -> None:
        result = autoencoder_backward(
            shadows,
            images,
            noise,
            config.reconstruction,
            config.alignment,
            adversarial_factor=1.0 if adversarial else None,
            features=features,
            continuity=continuity,
        )
        if shadows.discriminator is not None and adversarial:
            kind = config.reconstruction.adversarial_loss
            discriminator_backward(shadows.discriminator, result.images, result.reconstructions, kind)

    return known_flops(step)
