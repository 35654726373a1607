"""What a training step of the tokenizer costs, which depends on who takes part in it."""

import torch

from alight.config import TrainTokenizerConfig
from alight.training.flops import count_flops, weightless
from alight.training.tokenizer_step import TokenizerNetworks, autoencoder_backward, discriminator_backward


def tokenizer_flops(
    config: TrainTokenizerConfig, networks: TokenizerNetworks, features_known: bool, aligned: bool, playing: bool
) -> int | None:
    """Floating-point operations to learn from one image, without the optional regularisation.

    Args:
        config: of the job.
        networks: what can take part.
        features_known: whether those of the foundation model come from a cache.
        aligned: whether the alignment loss takes part.
        playing: whether the discriminator does.

    Returns:
        Their number; None where they cannot be counted, see `count_flops`.
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

    def step() -> None:
        result = autoencoder_backward(
            shadows,
            images,
            noise,
            config.reconstruction,
            config.alignment,
            adversarial_factor=1.0 if playing else None,
            features=features,
        )
        if shadows.discriminator is not None and playing:
            kind = config.reconstruction.adversarial_loss
            discriminator_backward(shadows.discriminator, result.images, result.reconstructions, kind)

    return count_flops(step)
