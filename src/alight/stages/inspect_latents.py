"""A look at a folder of latents: what is in it, and whether its statistics do what they should."""

import numpy as np
import torch

from alight.artifacts import read_artifact
from alight.config import InspectLatentsConfig
from alight.data.latents import ChannelStatistics, LatentDataset

CHECKED = 2_000  # latents that are read for the statistics of what training will see


def run(config: InspectLatentsConfig) -> str:
    """Describe latents and the channel statistics that training will see after normalisation.

    Returns:
        A text for the terminal.

    Raises:
        InputError: if the folder is no finished latents artifact, or a shard is damaged.
    """
    artifact = read_artifact(config.latents, "latents")
    dataset = LatentDataset(config.latents)
    chosen = np.linspace(0, len(dataset) - 1, min(len(dataset), CHECKED)).astype(np.int64)
    batch = dataset.gather(chosen)
    seen = ChannelStatistics(dataset.shape[0])
    seen.update(batch.latents)
    counts = torch.bincount(batch.labels, minlength=dataset.num_classes)
    lines = [
        f"latents      {len(dataset):,} of shape {' x '.join(map(str, dataset.shape))}"
        + (", each also mirrored" if dataset.has_flips else ""),
        f"classes      {dataset.num_classes}: {', '.join(dataset.class_names[:8])}"
        + (", ..." if dataset.num_classes > 8 else ""),
        f"per class    {int(counts.min())} to {int(counts.max())} of {len(chosen)} looked at",
        f"tokenizer    {artifact.inputs.get('tokenizer', 'unknown')[:12]}",
        f"hash         {artifact.hash[:12]}",
        "",
        "After normalisation, over the latents looked at (0 and 1 are ideal):",
        f"mean         {_spread(seen.mean)}",
        f"std          {_spread(seen.std)}",
    ]
    return "\n".join(lines)


def _spread(values: torch.Tensor) -> str:
    return f"{values.min():.3f} to {values.max():.3f} over {len(values)} channels"
