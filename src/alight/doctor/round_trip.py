"""Check that a tokenizer reconstructs images, and that its latents match its recorded statistics."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from alight.config import ImagesConfig
from alight.data.loading import open_dataset
from alight.doctor.findings import Finding
from alight.interop.tokenizer_sources import open_tokenizer
from alight.metrics.reconstruction import psnr
from alight.runtime.device import resolve_device
from alight.runtime.pixels import to_uint8, unit_range

IMAGE_SIZE = 256  # if the tokenizer records none
BAD_PSNR, LOW_PSNR = 15.0, 20.0  # dB: at noise level; too low for training


@torch.no_grad()
def round_trip(tokenizer: Path, images: str, count: int, device_name: str) -> Iterator[Finding]:
    """Encode and decode a few images.

    Raises:
        InputError: there is no such tokenizer, or there are no such images.
    """
    opened, device = open_tokenizer(tokenizer), resolve_device(device_name)
    vae = opened.vae.to(device)
    size = int(opened.artifact.facts.get("image_size") or IMAGE_SIZE) // vae.downsampling_factor
    size *= vae.downsampling_factor
    dataset = open_dataset(ImagesConfig(source=images, size=size, upscale=True), "all", augment=False)
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset)), dtype=np.int64).tolist()
    originals, latents, quality = [unit_range(dataset[index].image[None].to(device)) for index in chosen], [], []
    for image in originals:
        raw = vae.encode_raw_latents(image)  # (1, C, h, w)
        latents.append(raw)
        quality.append(psnr(to_uint8(image), to_uint8(vae.decode_raw_latents(raw))).item())
    mean_psnr = float(np.mean(quality))
    sentence = f"{len(chosen)} images of {size} pixels are reconstructed with PSNR {mean_psnr:.1f} dB"
    if mean_psnr >= LOW_PSNR:
        yield Finding("ok", "reconstruction", f"{sentence}.")
    else:
        fix = "Check that these are the weights you mean, and that they were trained for such images."
        yield Finding("problem" if mean_psnr < BAD_PSNR else "warning", "reconstruction", f"{sentence}.", fix)

    raw_latents = torch.cat(latents)
    if not vae.has_latents_statistics:
        mean, std = raw_latents.mean().item(), raw_latents.std().item()
        fix = "Extract latents with 'alight latents extract --statistics data'."
        sentence = f"The tokenizer records no statistics; raw latents have mean {mean:.3g} and std {std:.3g}."
        yield Finding("warning", "latents", sentence, fix)
        return
    normalised = vae.normalize(raw_latents)
    vae.check_latents_statistics(raw_latents)
    sentence = f"Normalised as recorded, they have mean {normalised.mean():.3g} and std {normalised.std():.3g}."
    yield Finding("ok", "latents", sentence)
