"""Short runs of `alight latents extract` on a tokenizer of random weights."""

import pytest

from alight.config import ExtractLatentsConfig
from alight.config.recipes import validate
from alight.stages.extract_latents import run
from helpers.extraction import write_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def configure(tokenizer):
    """The configuration of a short run on the CPU: 1,500 digits in 8 shards."""

    def configured(output, **values):
        values = {"tokenizer": tokenizer, "device": "cpu", "shard_size": 200, "batch_size": 50} | values
        values["images"] = {"size": 16} | values.get("images", {})
        return validate(ExtractLatentsConfig, values | {"output": output, "statistics": "data"}, "test")

    return configured


@pytest.fixture(scope="session")
def options(tokenizer):
    """The same on the command line."""
    values = {"tokenizer": tokenizer, "device": "cpu", "shard-size": 200, "batch-size": 50, "images.size": 16}
    values["statistics"] = "data"
    return [str(part) for name, value in values.items() for part in (f"--{name}", value)]


@pytest.fixture(scope="session")
def whole(configure, tmp_path_factory):
    """The latents of an uninterrupted run."""
    return run(configure(tmp_path_factory.mktemp("whole") / "latents"))
