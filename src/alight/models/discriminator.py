"""PatchGAN: classifies overlapping patches of an image as real or reconstructed (Isola et al. 2017, section 3.2.2)."""

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Convolutions that give one logit per patch.

    In training, batch normalisation takes its statistics from the images of one call: from one micro-batch of one
    process, as in the published code, so that they depend on how a batch is divided.

    Args:
        in_channels: of the images.
        width: channels after the first convolution; they double at each layer, up to eight times.
        num_layers: strided convolutions; 3 gives the 70-pixel receptive field.

    Shapes: (B, in_channels, H, W) -> (B, 1, about H/8, about W/8) for three layers; H and W of at least 32 pixels.
    """

    def __init__(self, in_channels: int = 3, width: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2, True)]
        channels = width
        for layer in range(1, num_layers + 1):
            out = width * min(2**layer, 8)
            stride = 2 if layer < num_layers else 1
            # no bias, since the following batch normalisation has one
            layers += [nn.Conv2d(channels, out, 4, stride=stride, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(out), nn.LeakyReLU(0.2, True)]
            channels = out
        layers += [nn.Conv2d(channels, 1, 4, stride=1, padding=1)]
        self.main = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Logits per patch; positive means real."""
        return self.main(images)


def _initialise(module: nn.Module) -> None:
    """Normal weights of standard deviation 0.02, as in DCGAN (Radford et al. 2016, section 3)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
