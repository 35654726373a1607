"""Lineage from records: images that are prepared in another way than those of the tokenizer."""

import logging
from pathlib import Path

import pytest

from alight.artifacts import Artifact
from alight.config import ImagesConfig
from alight.lineage import warn_of_other_squares


@pytest.mark.parametrize(
    ("trained", "images", "words"),
    [
        ({"background": "black", "crop": "center"}, {}, ["--images.background black, and these have white"]),
        ({"background": "white", "crop": "pad"}, {}, ["--images.crop pad, and these have center"]),
        ({"background": "white", "crop": "center"}, {"crop": "pad"}, ["--images.crop center, and these have pad"]),
        ({"background": "white", "crop": "random"}, {}, []),  # the way to measure what was trained on random crops
        ({"background": "white", "crop": "center", "source": "a"}, {"source": "b"}, []),
        (None, {"crop": "pad"}, []),  # a tokenizer of others
        ({}, {"crop": "pad"}, []),  # a record older than the options
    ],
)
def test_another_background_or_shape_than_that_of_the_tokenizer_is_warned_of(
    caplog, monkeypatch, trained, images, words
):
    monkeypatch.setattr(logging.getLogger("alight"), "propagate", True)
    tokenizer = Artifact(Path("tokenizer"), "tokenizer", {"images": trained}, "0" * 64)
    warn_of_other_squares(tokenizer, ImagesConfig(**images))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(words)
    assert all(word in message for word, message in zip(words, messages, strict=True))
