"""Inception-v3 with random weights under which activations keep their size through all layers."""

import torch
from torch import nn

from alight.models.inception import InceptionV3


def random_inception(seed: int = 0) -> InceptionV3:
    generator = torch.Generator().manual_seed(seed)
    network = InceptionV3()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0, 0.1, generator=generator)
    network.fc.weight.normal_(0, 0.02, generator=generator)
    network.fc.bias.normal_(0, 1, generator=generator)
    return network
