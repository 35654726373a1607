"""The adversarial losses: the objectives of the discriminator and of the autoencoder against it."""

import torch.nn.functional as F
from torch import Tensor


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Push real logits above 1 and fake ones below -1 (Lim and Ye 2017, Eq. 9); any shape, scalar out."""
    return 0.5 * (F.relu(1.0 - real_logits).mean() + F.relu(1.0 + fake_logits).mean())


def vanilla_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Binary cross-entropy on logits (Goodfellow et al. 2014, Eq. 1); any shape, scalar out."""
    return 0.5 * (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean())


def generator_loss(fake_logits: Tensor) -> Tensor:
    """The adversarial term of the autoencoder: the negated mean logit of its reconstructions."""
    return -fake_logits.mean()
