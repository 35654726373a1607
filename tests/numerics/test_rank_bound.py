"""The bound that the width of a transformer sets on its error, which a wide head lifts.

The output layer is affine on d numbers per token, so the outputs of a model of width d < n lie in an affine space of d
dimensions. Its squared error on any targets v, samples and tokens together, is at least the sum of the n - d smallest
eigenvalues of their covariance (Eckart and Young). Noise has all n dimensions, so about (n - d) / n of it remains even
where the model sees a single image.
"""

import pytest
import torch

from alight import LightningDiT
from alight.flow import LinearPath, flow_matching_loss
from alight.runtime.seeding import seeded_initialisation

CHANNELS, WIDTH, SIDE, BATCH, STEPS = 24, 8, 4, 32, 150
SIZES = {"sample_size": SIDE, "in_channels": CHANNELS, "hidden_size": WIDTH, "num_layers": 2, "num_heads": 2}
HEAD = {"num_layers": 1, "hidden_size": 48, "num_heads": 4}


def squared_errors(prediction, target):
    return (prediction - target).square().sum(1).mean().item()  # over channels, mean over samples and places


def lowest_error(target, width):
    """The sum of the n - d smallest eigenvalues of the covariance of targets (B, n, H, W), in float64."""
    vectors = target.double().movedim(1, -1).flatten(0, -2)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(vectors.T, correction=0))  # ascending
    return eigenvalues[: CHANNELS - width].sum().item()


def overfitted(head):
    """A model that was trained on one image; also its image, and a generator of noise that it has not seen."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, CHANNELS, SIDE, SIDE, generator=generator).expand(BATCH, -1, -1, -1)
    with seeded_initialisation(0):
        model = LightningDiT(**SIZES, num_classes=1, class_dropout_prob=0.0, head=head)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    labels = torch.zeros(BATCH, dtype=torch.int64)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / STEPS)
        loss = flow_matching_loss(model, image, labels, path=LinearPath(), cosine_weight=0.0, generator=generator)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), image, generator


@torch.no_grad()
def evaluated(model, image, generator):
    """Errors and targets on fresh noise at middle times."""
    noise = torch.randn(image.shape, generator=generator)
    t = 0.3 + 0.4 * torch.rand(len(image), generator=generator)
    x = t[:, None, None, None] * image + (1 - t)[:, None, None, None] * noise
    target = image - noise
    return model(x, t, torch.zeros(len(image), dtype=torch.int64)), target


@pytest.mark.parametrize("head", [None, HEAD], ids=["plain", "wide"])
def test_a_single_image_is_overfitted_below_the_bound_with_a_wide_head_alone(head):
    prediction, target = evaluated(*overfitted(head))
    error, bound = squared_errors(prediction, target), lowest_error(target, WIDTH)
    total = target.double().movedim(1, -1).flatten(0, -2).var(0, correction=0).sum().item()
    assert bound > 0.9 * (CHANNELS - WIDTH)  # each channel of the noise alone has variance one
    vectors = prediction.double().movedim(1, -1).flatten(0, -2)
    dimensions = torch.linalg.matrix_rank(vectors - vectors.mean(0), rtol=1e-5).item()
    if head is None:
        assert dimensions == WIDTH
        assert bound <= error < total  # it has learned, and is not below
    else:
        assert dimensions == CHANNELS
        assert error < 0.2 * bound  # 0.04 of it was measured
