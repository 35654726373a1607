"""Slices of batches in inference: as large as the free memory allows, and of the same results."""

import pytest
import torch

from alight import VAVAE
from alight.runtime import slices
from alight.runtime.slices import images_at_once
from helpers.meta_memory import MetaMemory
from helpers.models import tiny_tokenizer

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
GIB = 2**30


@pytest.fixture
def free(monkeypatch):
    """Say how much memory an accelerator has left."""
    return lambda size: monkeypatch.setattr(slices, "free_memory", lambda device: size)


def test_a_cpu_takes_whole_batches_whatever_is_free(free):
    free(1)
    assert images_at_once(CPU, GIB, 1000) == 1000


@pytest.mark.parametrize(("gib", "size"), [(1000, 32), (64, 32), (63, 16), (32, 16), (4, 2), (2, 1), (0.1, 1)])
def test_slices_are_powers_of_two_that_fill_half_of_the_free_memory(free, gib, size):
    free(gib * GIB)
    assert images_at_once(CUDA, GIB, 64) == size


@pytest.mark.parametrize("size", [256, 512])
@pytest.mark.parametrize("widths", [(128, 128, 256, 256, 512), (128, 256, 512, 512), (64, 128, 256)])
def test_activations_take_no_more_than_the_rule_says_and_at_least_a_third(widths, size):
    with torch.device("meta"):
        vae = VAVAE.build(block_out_channels=widths)
    side, count = size // vae.downsampling_factor, 4
    for inputs, code in (
        (torch.empty(count, 3, size, size, device="meta"), vae.posterior),
        (torch.empty(count, 32, side, side, device="meta"), vae.decode_raw_latents),
    ):
        with torch.no_grad(), MetaMemory() as memory:
            code(inputs)
        assert vae.bytes_per_image(size**2) / 3 < memory.peak / count <= vae.bytes_per_image(size**2)


def test_slices_bound_the_memory_of_a_large_batch(monkeypatch):
    """A batch of 64 images of 512 pixels took 40 GiB at once."""
    with torch.device("meta"):
        vae = VAVAE.build()
    monkeypatch.setattr("alight.models.tokenizer.images_at_once", lambda device, size, batch: 4)
    with torch.no_grad(), MetaMemory() as memory:
        vae.decode_raw_latents(torch.empty(64, 32, 32, 32, device="meta"))
    images = 2 * 64 * 3 * 512**2 * 4  # those decoded, in slices and put together
    assert memory.peak < 4 * vae.bytes_per_image(512**2) + images


def test_slices_have_the_results_of_whole_batches_and_gradients_pass_unsliced(monkeypatch):
    vae = tiny_tokenizer()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 3, 16, 16, generator=generator) * 2 - 1
    with torch.no_grad():
        whole = vae.posterior(images)
        decoded = vae.decode_raw_latents(whole.mean)
    sizes = []
    monkeypatch.setattr("alight.models.tokenizer.images_at_once", lambda *arguments: 2)
    monkeypatch.setattr(vae, "decode", lambda x, of=vae.decode: (sizes.append(len(x)), of(x))[1])
    with torch.no_grad():
        sliced = vae.posterior(images)
        torch.testing.assert_close(sliced.parameters, whole.parameters)
        torch.testing.assert_close(sliced.std, whole.std)
        torch.testing.assert_close(vae.decode_raw_latents(whole.mean), decoded)
    vae.decode_raw_latents(whole.mean).sum().backward()
    assert sizes == [2, 2, 1, 5]
