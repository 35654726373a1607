"""The networks: `nn.Module`s, independent of training, data and configuration files."""

from alight.models.embeddings import drop_labels, validate_class_labels
from alight.models.lightning_dit import PRESETS, LightningDiT
from alight.models.vavae import VAVAE

__all__ = ["PRESETS", "VAVAE", "LightningDiT", "drop_labels", "validate_class_labels"]
