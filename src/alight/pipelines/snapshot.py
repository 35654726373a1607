"""A pipeline of a transformer that is still being trained."""

from pathlib import Path
from typing import cast

from alight.artifacts import read_artifact
from alight.models.tokenizer_folders import open_tokenizer_folder
from alight.pipelines.lightning_dit import LightningDiTPipeline, TransformerFacts
from alight.training.snapshot import Snapshot


def pipeline_of_snapshot(snapshot: Snapshot, tokenizer: Path) -> LightningDiTPipeline:
    """Join a snapshot with its tokenizer, as `LightningDiTPipeline.from_artifacts` joins finished artifacts.

    Raises:
        InputError: the tokenizer is unusable, or the snapshot was trained on the latents of another one.
    """
    snapshot.require_input(read_artifact(tokenizer, "tokenizer"))
    facts = cast(TransformerFacts, snapshot.facts)  # checked when it was read
    return LightningDiTPipeline.from_models(open_tokenizer_folder(tokenizer), snapshot.model(), facts)
