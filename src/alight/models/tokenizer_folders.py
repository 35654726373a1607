"""Open the folder of a tokenizer of either kind, by the class that its configuration names."""

from pathlib import Path
from typing import cast

from alight.models.frozen_encoder import DIFFUSERS_CLASS
from alight.models.pretrained import CONFIG_FILE
from alight.models.representation_autoencoder import RepresentationAutoencoder
from alight.models.tokenizer import Tokenizer
from alight.models.vavae import VAVAE
from alight.runtime.reading import read_json_object

TOKENIZERS: dict[str, type[Tokenizer]] = {
    DIFFUSERS_CLASS: RepresentationAutoencoder,
    RepresentationAutoencoder.__name__: RepresentationAutoencoder,
}


def open_tokenizer_folder(folder: str | Path) -> Tokenizer:
    """Build the tokenizer of a local folder in eval mode.

    Args:
        folder: of diffusers' `AutoencoderKL` or `AutoencoderRAE`, or of this package.

    Raises:
        InputError: files are missing or damaged, or it holds a model of another kind.
    """
    file, kind = Path(folder) / CONFIG_FILE, None
    if file.is_file():
        kind = read_json_object(file, "Restore the file that was saved with the weights.").get("_class_name")
    return cast(Tokenizer, TOKENIZERS.get(str(kind), VAVAE).from_pretrained(Path(folder)))
