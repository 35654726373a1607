"""A tokenizer whose encoder begins as a principal component analysis of patches.

With random weights, an autoencoder first has to find the directions in which images vary, and the gradient along them
is small as long as neither encoder nor decoder knows them (Saxe et al., arXiv 1312.6120). They are known in closed
form: the encoder is set to compute them, and training starts with the decoder's half of the work.
"""

from typing import NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from alight.models.vavae import VAVAE
from alight.runtime.errors import InputError

CHANNELS_PER_GROUP = 4  # that linearising a group normalisation takes: a component, its negative, and two constants
CONSTANT = 2.0  # in standard deviations of the components; the larger, the more linear
LOG_VARIANCE = -4.0  # of the posterior, in units of latents of variance 1
SMALLEST_STD = 1e-3  # of a component, absolutely and as a share of the largest; flat or grey images have none in some
SMALLEST_LATENT = 0.02  # std behind the last normalisation, where about 0.5 is usual
MOST_PATCHES = 20_000  # in an analysis
CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # of a 2x2 neighbourhood


class Components(NamedTuple):
    """Principal components of 2x2 neighbourhoods.

    Attributes:
        basis: (K, 4C), rows of length 1, largest variance first; the channels of one corner after the other.
        mean: (4C,) of the neighbourhoods.
        std: (K,) of the components.
    """

    basis: Tensor
    mean: Tensor
    std: Tensor


@torch.no_grad()
def start_from_principal_components(vae: VAVAE, images: Tensor) -> None:
    """Set the encoder so that its latents are principal components of patches, with mean 0 and variance 1.

    Residual branches and attention begin at zero. Every downsampling keeps the components of 2x2 neighbourhoods with
    the largest variance, as far as there are channels. The last group normalisation and SiLU are made linear by
    silu(x) - silu(-x) = x and by constants that dominate the variance of each group. Channels beyond the number of
    components keep their random weights.

    Args:
        vae: freshly initialised.
        images: (N, 3, H, W) in [-1, 1], some hundreds.

    Raises:
        InputError: the encoder has no downsampling, or fewer than four channels per group at the last level.
    """
    encoder, latent_channels = vae.encoder, vae.config.latent_channels
    groups = encoder.conv_norm_out.num_groups
    downsamplings = sum(block.downsamplers is not None for block in encoder.down_blocks)
    if downsamplings == 0 or encoder.conv_norm_out.num_channels < CHANNELS_PER_GROUP * groups:
        raise InputError(
            "An encoder that begins with principal components needs at least two levels, and at least "
            f"{CHANNELS_PER_GROUP} channels per group at the last one. Lower model.norm_num_groups, or set "
            "model.initial_encoder to random."
        )
    silence_branches(encoder)
    copy_channels(encoder.conv_in)
    features, used = encoder.conv_in(images), images.shape[1]
    signs = pairing(encoder.conv_norm_out.num_channels, groups, latent_channels)
    for number, block in enumerate(encoder.down_blocks, start=1):
        for resnet in block.resnets:
            if resnet.conv_shortcut is not None:
                copy_channels(resnet.conv_shortcut)
                if number > downsamplings:
                    arrange(resnet.conv_shortcut, signs, moments(features[:, :used])[0])
            features = resnet(features, None)
        if block.downsamplers is not None:
            conv = block.downsamplers[0].conv
            found = analyse(features[:, :used], conv.out_channels)
            following = encoder.down_blocks[number].resnets[0]
            project(conv, found, signs if number == downsamplings and following.conv_shortcut is None else None)
            features, used = block.downsamplers[0](features), len(found.std)
    read_out(vae, signs[:, :used], images)


def silence_branches(encoder: nn.Module) -> None:
    """Let residual blocks and attention begin as the identity."""
    for module in encoder.modules():
        if isinstance(module, ResnetBlock2D | Attention):
            last = module.conv2 if isinstance(module, ResnetBlock2D) else module.to_out[0]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)


def copy_channels(conv: nn.Conv2d) -> None:
    """Let a convolution pass its channels on; further outputs are zero."""
    nn.init.dirac_(conv.weight)
    set_bias(conv, torch.zeros(conv.out_channels))


def analyse(features: Tensor, most: int) -> Components:
    """The components of 2x2 neighbourhoods of features (N, C, H, W), at most that many."""
    corners = [features[:, :, row::2, column::2] for row, column in CORNERS]
    patches = torch.cat(corners, dim=1).permute(0, 2, 3, 1).flatten(0, 2)  # (N H/2 W/2, 4C)
    patches = patches[:: max(len(patches) // MOST_PATCHES, 1)].cpu().double()
    mean = patches.mean(dim=0)
    _, values, basis = torch.linalg.svd(patches - mean, full_matrices=False)
    basis = basis[:most]
    largest = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True))
    basis = basis * largest.sign()  # the sign of a component is arbitrary; this one is the same everywhere
    return Components(basis.float(), mean.float(), at_least_small(values[:most] / len(patches) ** 0.5).float())


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviation and mean of every channel of (N, C, H, W); a single position has none of the former: 0."""
    several = features[:, 0].numel() > 1
    std, mean = torch.std_mean(features, dim=(0, 2, 3), correction=int(several))
    return std, mean


def at_least_small(std: Tensor) -> Tensor:
    """Standard deviations (K,) that can be divided by without making noise large, where images do not vary."""
    return std.clamp_min(SMALLEST_STD * max(float(std.max()), 1.0))


def pairing(channels: int, groups: int, components: int) -> Tensor:
    """Signs of the components in the channels before the last normalisation: (channels, K) of -1, 0 and 1.

    Each group holds components, each followed by its negative; at least two channels of it are left for constants.
    """
    size = channels // groups
    pairs = min((size - 2) // 2, -(-components // groups))
    signs = torch.zeros(channels, min(groups * pairs, components))
    for component in range(signs.shape[1]):
        group, slot = component % groups, component // groups
        first = group * size + 2 * slot
        signs[first, component], signs[first + 1, component] = 1.0, -1.0
    return signs


def constants(signs: Tensor) -> Tensor:
    """The constant, alternately positive and negative, of every channel without a component: (channels,)."""
    free = signs.abs().sum(dim=1) == 0
    alternating = CONSTANT * (1.0 - 2.0 * (torch.arange(len(signs)) % 2))
    return torch.where(free, alternating, torch.zeros_like(alternating))


def project(conv: nn.Conv2d, components: Components, signs: Tensor | None) -> None:
    """Let a downsampling compute the components, or their pairs before the last normalisation."""
    channels = components.basis.shape[1] // len(CORNERS)
    basis, bias = components.basis, torch.zeros(conv.out_channels)
    if signs is not None:
        kept = min(signs.shape[1], len(basis))
        basis = signs[:, :kept] @ (basis[:kept] / components.std[:kept, None])
        bias = constants(signs)
    bias[: len(basis)] -= basis @ components.mean
    nn.init.zeros_(conv.weight)
    for corner, (row, column) in enumerate(CORNERS):
        conv.weight[: len(basis), :channels, row, column] = basis[:, corner * channels : (corner + 1) * channels]
    set_bias(conv, bias)


def arrange(shortcut: nn.Conv2d, signs: Tensor, std: Tensor) -> None:
    """Let the last change of width arrange the components in pairs."""
    kept = min(signs.shape[1], len(std))
    nn.init.zeros_(shortcut.weight)
    shortcut.weight[:, :kept, 0, 0] = signs[:, :kept].to(std) / at_least_small(std[:kept])
    set_bias(shortcut, constants(signs))


def set_bias(conv: nn.Conv2d, values: Tensor) -> None:
    """Set the bias of every output channel."""
    assert conv.bias is not None
    conv.bias.copy_(values)


def read_out(vae: VAVAE, signs: Tensor, images: Tensor) -> None:
    """Read the components off their pairs, normalise them, and begin with a narrow posterior."""
    conv, latent_channels = vae.encoder.conv_out, vae.config.latent_channels
    mean, log_variance = slice(0, signs.shape[1]), slice(latent_channels, None)
    set_bias(conv, torch.zeros(conv.out_channels))
    conv.weight[mean] = 0.0
    conv.weight[log_variance] = 0.0
    conv.weight[mean, :, 1, 1] = signs.T.to(conv.weight)
    conv.bias[log_variance] = LOG_VARIANCE
    if vae.quant_conv is not None:
        copy_channels(vae.quant_conv)
    std, centre = moments(vae.encoder_output(images).chunk(2, dim=1)[0])
    std = torch.where(std < SMALLEST_LATENT, torch.ones_like(std), std)  # a component that the images do not have
    conv.weight[:latent_channels] /= std.view(-1, 1, 1, 1)
    conv.bias[:latent_channels] = (conv.bias[:latent_channels] - centre) / std
