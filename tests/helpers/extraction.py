"""Extraction of latents: a tokenizer to extract with, what a run wrote, and runs that die."""

import pytest

from alight.data import latent_folder
from alight.stages.extract_latents import run
from helpers.models import normalised, tiny_tokenizer
from helpers.written import write_model


def write_tokenizer(folder, seed=0):
    vae = normalised(tiny_tokenizer(seed, block_out_channels=(8, 8, 8)))
    return write_model(folder, "tokenizer", vae)


def contents(folder):
    """The bytes of shards and index, by name; an unfinished folder has no index."""
    return {path.name: path.read_bytes() for path in [*folder.glob("*.safetensors"), *folder.glob("index.json")]}


def interrupt(configure, folder, monkeypatch, after=3):
    """A run that dies after some shards, as a killed one does: nothing is cleaned up."""
    write, written = latent_folder.LatentFolder.write, []

    def dying_write(self, number, tensors):
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(number)
        write(self, number, tensors)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(latent_folder.LatentFolder, "write", dying_write)
        run(configure(folder))
