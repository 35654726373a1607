"""Open the folder of a tokenizer of either kind, by the class that its configuration names."""

from pathlib import Path
from typing import cast

from alight.models.frozen_encoder import DIFFUSERS_CLASS
from alight.models.pretrained import CONFIG_FILE
from alight.models.representation_autoencoder import RepresentationAutoencoder
from alight.models.tokenizer import Tokenizer
from alight.models.vavae import VAVAE
from alight.runtime.errors import InputError
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


def require_image_size(vae: Tokenizer, size: int, source: str | Path | None) -> None:
    """Refuse images of another size than the only one that the decoder of a frozen encoder knows.

    Args:
        vae: any tokenizer; others than these take any size.
        size: of the images, in pixels along a side.
        source: of the tokenizer, for the message.

    Raises:
        InputError: names both sizes.
    """
    only = vae.config.sample_size
    if vae.has_frozen_encoder and size != only:
        raise InputError(
            f"images.size is {size}, but the decoder of the tokenizer in {source} is made for images of {only} pixels "
            f"alone. Give --images.size {only}."
        )
