"""A pipeline of a transformer that is still being trained."""

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from alight.artifacts import read_artifact
from alight.models.vavae import VAVAE
from alight.pipelines.lightning_dit import LightningDiTPipeline
from alight.training.snapshot import Snapshot


def pipeline_of_snapshot(snapshot: Snapshot, tokenizer: Path) -> LightningDiTPipeline:
    """Join a snapshot with its tokenizer, as `LightningDiTPipeline.from_artifacts` joins finished artifacts.

    Raises:
        InputError: the tokenizer is unusable, or the snapshot was trained on the latents of another one.
    """
    snapshot.require_input(read_artifact(tokenizer, "tokenizer"))
    vae, facts = VAVAE.from_pretrained(tokenizer), snapshot.facts
    vae.set_latents_statistics(torch.tensor(facts["latents_mean"]), torch.tensor(facts["latents_std"]))
    flow = {name: facts[name] for name in ("path", "prediction")}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    return LightningDiTPipeline(vae, snapshot.model(), scheduler, facts["class_names"], **flow)
