"""Small networks with random weights, the same in every call with the same seed."""

import torch
from torch import nn
from transformers import ViTConfig, ViTModel

from alight import VAVAE, LightningDiT
from alight.runtime.seeding import seeded_initialisation

TRANSFORMER = {
    "sample_size": 4,
    "in_channels": 4,
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "num_classes": 10,
}
HEAD = {"num_layers": 2, "hidden_size": 24, "num_heads": 3}  # of a transformer
TOKENIZER = {
    "latent_channels": 4,
    "block_out_channels": (16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "level_attention": False,
    "mid_block_attention": False,
}
VIT = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def randomise(model: LightningDiT, std: float = 0.2) -> LightningDiT:
    """Draw every weight, the gates too: a transformer as initialised predicts zero, which no test would notice."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    return model


def tiny_transformer(seed: int = 0, std: float = 0.2, **options: object) -> LightningDiT:
    """A transformer in which every weight counts; `options` change its sizes."""
    with seeded_initialisation(seed):
        return randomise(LightningDiT(**TRANSFORMER | options), std).eval()


def tiny_tokenizer(seed: int = 0, **options: object) -> VAVAE:
    """A tokenizer as initialised, without statistics of latents; `options` change its sizes."""
    with seeded_initialisation(seed):
        return VAVAE.build(**TOKENIZER | options).eval()


def exportable_tokenizer(seed: int = 0, **options: object) -> VAVAE:
    """A tokenizer with attention and groups as published, so that the published layout can hold it."""
    sizes = {"latent_channels": 4, "block_out_channels": (32, 32), "layers_per_block": 1}
    with seeded_initialisation(seed):
        return VAVAE.build(**sizes | options).eval()


def normalised(vae: VAVAE, std: float = 1.0) -> VAVAE:
    """Give a tokenizer the statistics of latents with mean zero."""
    channels = vae.config.latent_channels
    vae.set_latents_statistics(torch.zeros(channels), std * torch.ones(channels))
    return vae


def tiny_vit(seed: int = 0, **options: object) -> ViTModel:
    """A vision transformer of the `transformers` library, without pooling; `options` change its sizes."""
    with seeded_initialisation(seed):
        return ViTModel(ViTConfig(**VIT | options), add_pooling_layer=False)
