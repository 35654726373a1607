"""An encoder that begins as a principal component analysis, against the analysis by itself."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch.nn import functional as F

from alight.models.principal_components import start_from_principal_components
from alight.models.vavae import VAVAE
from alight.runtime.errors import InputError

NETWORKS = {
    "same width at the end": {"block_out_channels": (12, 32, 32), "norm_num_groups": 4},
    "wider at the end, attention": {
        "block_out_channels": (12, 32, 64),
        "norm_num_groups": 4,
        "level_attention": True,
        "mid_block_attention": True,
        "layers_per_block": 2,
    },
    "one downsampling": {"block_out_channels": (16, 16), "norm_num_groups": 2},
}


def images(count: int = 64, size: int = 32) -> torch.Tensor:
    """Smooth random images in [-1, 1]: like photographs, their patches vary in few directions."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False).clamp(-1, 1)


def build(latent_channels: int = 4, **changes) -> VAVAE:
    torch.manual_seed(0)
    plain = {"layers_per_block": 1, "level_attention": False, "mid_block_attention": False}
    return VAVAE.build(latent_channels=latent_channels, **(plain | changes))


def patches(pixels: torch.Tensor, factor: int) -> np.ndarray:
    """(N h w, 3 f^2), in the order of latents (N, h, w)."""
    return F.unfold(pixels, factor, stride=factor).transpose(1, 2).flatten(0, 1).numpy()


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_latents_hold_nearly_all_that_the_best_linear_map_can_hold(network):
    """Share of the patches' variance that is lost, against that of PCA with as many components."""
    pixels, vae = images(), build(**network)
    start_from_principal_components(vae, pixels)
    with torch.no_grad():
        latents = vae.posterior(pixels).mode()
    rows, wanted = latents.permute(0, 2, 3, 1).flatten(0, 2).numpy(), patches(pixels, vae.downsampling_factor)
    rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    residual = wanted - rows @ np.linalg.lstsq(rows, wanted, rcond=None)[0]
    best = PCA(4).fit(wanted).explained_variance_ratio_.sum()
    lost = residual.var(axis=0).sum() / wanted.var(axis=0).sum()
    assert lost < 1.35 * (1 - best) + 0.01  # the group normalisation is linear only nearly


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_latents_have_mean_zero_variance_one_and_a_narrow_posterior(network):
    pixels, vae = images(), build(**network)
    start_from_principal_components(vae, pixels)
    with torch.no_grad():
        posterior = vae.posterior(pixels)
    std, mean = torch.std_mean(posterior.mean, dim=(0, 2, 3))
    torch.testing.assert_close(mean, torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(std, torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(posterior.logvar, torch.full_like(posterior.logvar, -4.0))


def test_the_start_depends_on_the_images_alone():
    pixels = images()
    first, second = build(), build()
    torch.manual_seed(1)
    for parameter in second.encoder.parameters():
        torch.nn.init.normal_(parameter)
    for module in second.encoder.modules():  # normalisations begin at scale 1 and shift 0
        if isinstance(module, torch.nn.GroupNorm):
            module.reset_parameters()
    for vae in (first, second):
        start_from_principal_components(vae, pixels)
    with torch.no_grad():
        torch.testing.assert_close(first.posterior(pixels).mean, second.posterior(pixels).mean)


def test_more_latent_channels_than_components_keep_random_weights():
    vae, pixels = build(latent_channels=40, block_out_channels=(12, 32, 32), norm_num_groups=4), images()
    start_from_principal_components(vae, pixels)
    with torch.no_grad():
        latents = vae.posterior(pixels).mean
    std, correlation = latents.std(dim=(0, 2, 3)), torch.corrcoef(latents.permute(1, 0, 2, 3).flatten(1))
    assert torch.isfinite(latents).all()
    torch.testing.assert_close(std, torch.ones(40), atol=1e-3, rtol=0)
    assert torch.linalg.matrix_rank(correlation, atol=1e-3) > 20


@pytest.mark.parametrize(
    "network",
    [{"block_out_channels": (16, 16), "norm_num_groups": 8}, {"block_out_channels": (16,), "norm_num_groups": 4}],
    ids=["two channels per group", "no downsampling"],
)
def test_an_encoder_without_room_for_it_is_refused(network):
    with pytest.raises(InputError, match="norm_num_groups"):
        start_from_principal_components(build(**network), images())


def flat():
    return torch.full((20, 3, 64, 64), 0.3)


def two_tones():
    images = -torch.ones(20, 3, 64, 64)
    images[..., 32:] = 1
    return images


def one_patch():
    return torch.linspace(-1, 1, 192).view(1, 3, 8, 8)


@pytest.mark.parametrize("images", [flat(), two_tones(), one_patch()], ids=["flat", "two tones", "one patch"])
def test_images_without_variation_leave_an_encoder_that_serves_others(images):
    vae = VAVAE.build(
        latent_channels=16,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        norm_num_groups=16,
        sample_size=64,
    )
    start_from_principal_components(vae, images)
    assert max(weight.abs().max() for weight in vae.parameters()) < 2_000
    others = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert vae.posterior(others).mean.abs().max() < 20
