"""Check the group normalisations of a tokenizer: small groups erase the colour of a region."""

from collections.abc import Iterator

from alight.config import TokenizerModelConfig
from alight.config.tokenizer import CHANNELS_PER_GROUP
from alight.doctor.findings import Finding


def group_findings(model: TokenizerModelConfig) -> Iterator[Finding]:
    """Warn of fewer channels per group than the published network has."""
    narrowest = min(model.block_out_channels)
    if (channels := narrowest // model.groups) < CHANNELS_PER_GROUP:
        default = model.model_copy(update={"norm_num_groups": None}).groups
        yield Finding(
            "warning",
            "tokenizer",
            f"model.norm_num_groups {model.groups} leaves {channels} channel{'s' * (channels != 1)} per group at "
            f"width {narrowest}. Groups of fewer than {CHANNELS_PER_GROUP} erase the mean colour of a region, and "
            "training is slow.",
            f"Set model.norm_num_groups to {default}, or leave it out.",
        )
