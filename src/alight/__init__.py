"""alight: aligned latents and LightningDiT (arXiv 2501.01423).

images -> tokenizer -> latents -> transformer -> samples -> report. Names are imported when they are first used, so
that `import alight` and the command line's help stay fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alight.config.recipes import load_config
    from alight.models.lightning_dit import LightningDiT
    from alight.models.representation_autoencoder import RepresentationAutoencoder
    from alight.models.vavae import VAVAE
    from alight.pipelines import LightningDiTPipeline

_HOMES = {
    "LightningDiT": "alight.models.lightning_dit",
    "LightningDiTPipeline": "alight.pipelines",
    "ModelMixin": "diffusers",  # where diffusers looks when it loads the models of a pipeline folder
    "RepresentationAutoencoder": "alight.models.representation_autoencoder",
    "VAVAE": "alight.models.vavae",
    "load_config": "alight.config.recipes",
}

__all__ = ["VAVAE", "LightningDiT", "LightningDiTPipeline", "RepresentationAutoencoder", "load_config"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'alight' has no attribute '{name}'")
