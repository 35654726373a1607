"""The tokenizer's losses against closed forms and torch's own distributions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Laplace, Normal, kl_divergence

from alight.losses import (
    adaptive_weight,
    continuity_loss,
    generator_loss,
    gram_matching_loss,
    hinge_discriminator_loss,
    kl_loss,
    marginal_cosine_loss,
    marginal_distance_matrix_loss,
    patch_cosine_loss,
    pooled_cosine_loss,
    reconstruction_loss,
    turned,
    vanilla_discriminator_loss,
)
from alight.runtime.errors import InputError


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kl_equals_torch_distributions():
    mean, logvar = randn(3, 4, 2, 2), randn(3, 4, 2, 2, seed=1)
    posterior = Normal(mean, (0.5 * logvar).exp())
    expected = kl_divergence(posterior, Normal(0.0, 1.0)).sum() / 3
    torch.testing.assert_close(kl_loss(mean, logvar), expected)
    # the mean is over elements and without the factor 1/2
    torch.testing.assert_close(kl_loss(mean, logvar, "mean"), 2 * expected / (4 * 2 * 2))


def test_reconstruction_counts_the_perceptual_term_once_per_element():
    images, reconstructions = randn(2, 3, 4, 5), randn(2, 3, 4, 5, seed=1)
    perceptual = torch.tensor([0.5, 2.0], dtype=torch.float64).view(2, 1, 1, 1)
    got = reconstruction_loss(reconstructions, images, 1.0, perceptual, 3.0)
    expected = ((images - reconstructions).abs().sum() + 3.0 * (0.5 + 2.0) * 3 * 4 * 5) / 2
    torch.testing.assert_close(got.objective, expected)
    torch.testing.assert_close(got.l1_per_pixel, (images - reconstructions).abs().mean())


def test_log_variance_of_a_pixel():
    """-log of a Laplace density of scale exp(logvar), but for the constant log 2."""
    images, reconstructions = randn(2, 3, 4, 5), randn(2, 3, 4, 5, seed=1)
    logvar = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    got = reconstruction_loss(reconstructions, images, logvar=logvar).objective
    expected = -Laplace(images, logvar.exp()).log_prob(reconstructions) - math.log(2)
    torch.testing.assert_close(got, expected.sum() / 2)
    torch.testing.assert_close(reconstruction_loss(reconstructions, images, logvar=0.7).objective, got)
    (slope,) = torch.autograd.grad(got, logvar)
    torch.testing.assert_close(slope, (1 - (images - reconstructions).abs() / logvar.exp()).sum() / 2)


def test_mean_reduction_is_the_plain_mean_and_knows_no_variance():
    images, reconstructions = randn(2, 3, 4, 5), randn(2, 3, 4, 5, seed=1)
    perceptual = torch.tensor([0.5, 2.0], dtype=torch.float64).view(2, 1, 1, 1)
    got = reconstruction_loss(reconstructions, images, 2.0, perceptual, 3.0, logvar=5.0, reduction="mean")
    expected = (2.0 * (images - reconstructions).abs() + 3.0 * perceptual).mean()
    torch.testing.assert_close(got.objective, expected)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_sample_weights_count_in_the_objective_alone(reduction):
    images, reconstructions = randn(2, 3, 4, 5), randn(2, 3, 4, 5, seed=1)
    weights = torch.tensor([0.25, 3.0], dtype=torch.float64).view(2, 1, 1, 1)
    got = reconstruction_loss(reconstructions, images, logvar=0.3, reduction=reduction, sample_weights=weights)
    plain = reconstruction_loss(reconstructions, images, logvar=0.3, reduction=reduction)
    each = [
        reconstruction_loss(reconstructions[i : i + 1], images[i : i + 1], logvar=0.3, reduction=reduction).objective
        for i in range(2)
    ]
    torch.testing.assert_close(got.objective, (0.25 * each[0] + 3.0 * each[1]) / 2)
    torch.testing.assert_close(got.unweighted, plain.objective)
    torch.testing.assert_close(plain.unweighted, plain.objective)
    torch.testing.assert_close(got.l1_per_pixel, plain.l1_per_pixel)


def test_alignment_is_zero_for_equal_features():
    features = randn(2, 6, 3, 4)
    assert marginal_cosine_loss(features, features, margin=0.0) < 1e-12
    assert marginal_distance_matrix_loss(features, features, margin=0.0) < 1e-12


@pytest.mark.parametrize("loss", [marginal_cosine_loss, marginal_distance_matrix_loss])
def test_alignment_ignores_the_length_of_either_side(loss):
    latents, features = randn(2, 6, 3, 4), randn(2, 6, 3, 4, seed=1)
    lengths = randn(2, 1, 3, 4, seed=2).exp()  # another one for every position
    expected = loss(latents, features, 0.1)
    assert expected > 0.1
    torch.testing.assert_close(loss(lengths * latents, features, 0.1), expected)
    torch.testing.assert_close(loss(latents, lengths * features, 0.1), expected)


def test_marginal_cosine_by_hand():
    # angles of 0, 60, 90 and 180 degrees: 1 - cos = 0, 0.5, 1, 2; a margin of 0.5 takes 0.5 off, but not below 0
    angles = torch.tensor([0.0, 60.0, 90.0, 180.0], dtype=torch.float64).deg2rad()
    latents = torch.stack([angles.cos(), angles.sin()]).view(1, 2, 2, 2)
    features = torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    torch.testing.assert_close(marginal_cosine_loss(latents, features, 0.5), torch.tensor(2.0 / 4).double())


def test_distance_matrix_by_loops():
    latents, features = randn(2, 5, 2, 3), randn(2, 7, 2, 3, seed=1)  # other channel counts are allowed
    total = 0.0
    for image in range(2):
        z, f = latents[image].flatten(1).T, features[image].flatten(1).T
        for i in range(6):
            for j in range(6):
                gap = F.cosine_similarity(z[i], z[j], 0) - F.cosine_similarity(f[i], f[j], 0)
                total += max(float(gap.abs()) - 0.25, 0.0)
    got = marginal_distance_matrix_loss(latents, features, 0.25)
    torch.testing.assert_close(got, torch.tensor(total / (2 * 36), dtype=torch.float64))


def test_alignment_sends_gradient_to_either_side():
    """A projection is learned on whichever side it stands; the foundation model's features come without a graph."""
    latents, features = randn(1, 4, 2, 2).requires_grad_(), randn(1, 4, 2, 2, seed=1).requires_grad_()
    (marginal_cosine_loss(latents, features) + marginal_distance_matrix_loss(latents, features)).backward()
    assert latents.grad.any()
    assert features.grad.any()


def test_alignment_refuses_other_shapes():
    with pytest.raises(InputError, match="Project the latents"):
        marginal_cosine_loss(randn(1, 4, 2, 2), randn(1, 8, 2, 2))
    with pytest.raises(InputError, match="patch grid"):
        marginal_distance_matrix_loss(randn(1, 4, 2, 2), randn(1, 4, 4, 4))


def test_adaptive_weight_by_hand():
    reference, gradient = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])
    torch.testing.assert_close(adaptive_weight(reference, gradient, 1e4), torch.tensor(5 / 2.0001))
    assert adaptive_weight(reference, torch.zeros(2), 1e3) == 1e3  # 5 / 1e-4, clipped


def test_adversarial_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.0])
    torch.testing.assert_close(hinge_discriminator_loss(real, fake), torch.tensor(0.5 * (0.25 + 0.5)))
    cross_entropy = F.binary_cross_entropy_with_logits
    expected = 0.5 * (cross_entropy(real, torch.ones(2)) + cross_entropy(fake, torch.zeros(2)))
    torch.testing.assert_close(vanilla_discriminator_loss(real, fake), expected)
    softplus = [math.log1p(math.exp(-2.0)), math.log1p(math.exp(-0.5)), math.log1p(math.exp(-2.0)), math.log(2.0)]
    torch.testing.assert_close(vanilla_discriminator_loss(real, fake), torch.tensor(0.25 * sum(softplus)))
    assert generator_loss(fake) == 1.0


def test_gram_matching_by_loops_and_without_a_margin():
    latents, features = randn(2, 5, 2, 3), randn(2, 7, 2, 3, seed=1)
    total = 0.0
    for image in range(2):
        z, f = latents[image].flatten(1).T, features[image].flatten(1).T
        for i in range(6):
            for j in range(6):
                total += float(F.cosine_similarity(z[i], z[j], 0) - F.cosine_similarity(f[i], f[j], 0)) ** 2
    torch.testing.assert_close(
        gram_matching_loss(latents, features), torch.tensor(total / (2 * 36), dtype=torch.float64)
    )


def test_gram_matching_is_invariant_under_orthogonal_maps_of_the_channels():
    latents, features = randn(2, 5, 2, 3), randn(2, 7, 2, 3, seed=1)
    expected = gram_matching_loss(latents, features)
    assert expected > 0.01
    for seed in (2, 3):
        rotation = torch.linalg.qr(randn(5, 5, seed=seed)).Q
        rotated = torch.einsum("dc,bchw->bdhw", rotation, latents)
        torch.testing.assert_close(gram_matching_loss(rotated, features), expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(gram_matching_loss(rotated, latents), torch.zeros(()).double(), rtol=0, atol=1e-28)
    stretched = latents * torch.tensor([1.0, 2, 3, 4, 5]).view(1, 5, 1, 1)  # no orthogonal map
    assert (gram_matching_loss(stretched, features) - expected).abs() > 1e-3


@pytest.mark.parametrize(("sign", "expected"), [(1.0, 0.0), (0.0, 1.0), (-1.0, 2.0)])
def test_cosine_terms_of_parallel_orthogonal_and_opposite_vectors(sign, expected):
    features = torch.zeros(2, 3, 2, 2, dtype=torch.float64)
    features[:, 0] = 2.0
    latents = torch.zeros_like(features)
    latents[:, 0], latents[:, 1] = 5 * sign, 3.0 if sign == 0 else 0.0
    assert patch_cosine_loss(latents, features) == expected
    assert pooled_cosine_loss(latents, features) == expected


def test_the_pooled_term_sees_means_alone():
    """Positions may be exchanged, and differ from each other, as long as their mean is that of the features."""
    features = randn(2, 5, 2, 3)
    latents = features.flatten(2)[:, :, [3, 0, 5, 1, 2, 4]].unflatten(2, (2, 3))
    noise = randn(2, 5, 2, 3, seed=1)
    latents = 2 * latents + noise - noise.mean((2, 3), keepdim=True)
    assert pooled_cosine_loss(latents, features) < 1e-12
    assert patch_cosine_loss(latents, features) > 0.1
    torch.testing.assert_close(patch_cosine_loss(latents, features), marginal_cosine_loss(latents, features, 0.0))


@pytest.mark.parametrize("angle", [42.5, 85.0, 1e-3, 179.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_turned_latents_have_their_length_and_exactly_the_angle(angle, dtype):
    latents, directions = randn(3, 8, 4, 5), randn(3, 8, 4, 5, seed=1)
    directions[0] = latents[0] + 1e-3 * directions[0]  # nearly no part that is orthogonal
    result = turned(latents.to(dtype), directions.to(dtype), angle).double()
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    torch.testing.assert_close(result.norm(dim=1), latents.norm(dim=1), rtol=tolerance, atol=0)
    unit, moved = F.normalize(latents.to(dtype).double(), dim=1), F.normalize(result, dim=1)
    found = 2 * torch.asin((unit - moved).norm(dim=1) / 2).rad2deg()  # exact for small angles, too
    torch.testing.assert_close(found, torch.full_like(found, angle), rtol=0, atol=180 * tolerance)


def test_turns_along_one_direction_lie_on_one_circle_and_add_up():
    latents, directions = randn(2, 6, 3, 3), randn(2, 6, 3, 3, seed=1)
    first, second = (turned(latents, directions, angle) for angle in (42.5, 85.0))
    cosine = F.cosine_similarity(first, second, dim=1)
    torch.testing.assert_close(cosine, torch.full_like(cosine, math.cos(math.radians(42.5))))
    torch.testing.assert_close(turned(latents, directions, 0.0), latents)
    torch.testing.assert_close(turned(latents, directions, 180.0), -latents)


def test_a_turn_needs_two_channels():
    with pytest.raises(InputError, match="single channel"):
        turned(randn(1, 1, 2, 2), randn(1, 1, 2, 2, seed=1), 30.0)


def test_the_reference_of_continuity_is_held_fixed():
    decoded, reference = randn(2, 3, 4, 4).requires_grad_(), randn(2, 3, 4, 4, seed=1).requires_grad_()
    loss = continuity_loss(decoded, reference)
    torch.testing.assert_close(loss, F.mse_loss(decoded, reference))
    loss.backward()
    assert decoded.grad.any()
    assert reference.grad is None


def test_new_losses_by_finite_differences():
    latents, features = randn(2, 5, 2, 3).requires_grad_(), randn(2, 5, 2, 3, seed=1).requires_grad_()
    for loss in (gram_matching_loss, pooled_cosine_loss, patch_cosine_loss):
        assert torch.autograd.gradcheck(loss, (latents, features))
    assert torch.autograd.gradcheck(lambda x: continuity_loss(x, features), (latents,))
    directions = randn(2, 5, 2, 3, seed=2)
    assert torch.autograd.gradcheck(lambda z: turned(z, directions, 42.5), (latents,))
