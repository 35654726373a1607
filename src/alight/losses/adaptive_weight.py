"""One rule that balances two losses: equal gradient norms at a layer (paper, Eq. 4; Esser et al. 2021, Eq. 7)."""

from torch import Tensor

ADVERSARIAL_LIMIT = 1e4
ALIGNMENT_LIMIT = 1e8


def adaptive_weight(reference_gradient: Tensor, gradient: Tensor, limit: float) -> Tensor:
    """|reference gradient| / (|gradient| + 1e-4), clipped: the factor that makes a loss pull as hard as the reference.

    For alignment, both gradients are taken at the weight of the encoder's last convolution; for the adversarial
    term, at the weight of the decoder's.

    Args:
        reference_gradient: of the reconstruction objective, any shape.
        gradient: of the loss to be weighted, same layer.
        limit: upper bound of the factor; 1e8 for alignment and 1e4 for the adversarial term, as published.

    Returns:
        A scalar without gradient, in [0, limit].
    """
    ratio = reference_gradient.norm() / (gradient.norm() + 1e-4)
    return ratio.clamp(0.0, limit).detach()
