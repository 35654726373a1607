"""Weight files of a diffusers model folder: one file, or shards with an index, each possibly of a variant."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, with_config
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from typing_extensions import TypedDict

from alight.artifacts import WEIGHTS_FILE
from alight.runtime.errors import InputError, one_line
from alight.runtime.files import file_hash
from alight.runtime.reading import read_json, require_regular

_STEM, _SUFFIX = Path(WEIGHTS_FILE).stem, Path(WEIGHTS_FILE).suffix


def _plain(name: str) -> str:
    if Path(name).name != name or "\\" in name or "\0" in name or not name.endswith(_SUFFIX):
        raise ValueError(f"{name!r} is not a plain file name that ends in {_SUFFIX}")
    return name


@with_config(ConfigDict(strict=True, extra="allow"))
class _ShardIndex(TypedDict):
    """The index of shards that `save_pretrained` writes: tensor -> shard."""

    weight_map: Annotated[dict[str, Annotated[str, AfterValidator(_plain)]], Field(min_length=1)]


def find_weights(folder: Path, variant: str | None = None) -> list[Path]:
    """Find the safetensors files of a model folder, as `save_pretrained` names them; several if they are shards.

    Args:
        folder: of the model.
        variant: in the names of the files, such as `fp16`; None = the files without a variant, or those of the only
            variant.

    Raises:
        InputError: there are two contradictory sets, or a shard is missing.
    """
    if variant is not None and not re.fullmatch(r"\w[\w.-]*", str(variant)):
        raise InputError(f"The variant of the weights is {variant!r}, but must be a name such as fp16.")
    found = _files_of(folder, variant)
    if found or variant is not None:
        return found
    variants = sorted(set(_variants(folder)))
    if len(variants) > 1:
        raise InputError(
            f"{folder} holds only weights of the variants {', '.join(variants)}. Choose one: variant={variants[0]!r}."
        )
    return _files_of(folder, variants[0]) if variants else []


def weights_hash(folder: Path) -> str:
    """SHA-256 over the bytes of all weights files of a model folder, in the order of their names.

    Raises:
        InputError: there are none.
    """
    files = find_weights(folder)
    if not files:
        raise InputError(f"{folder} holds no {WEIGHTS_FILE}. Give the folder that training or save_pretrained wrote.")
    return file_hash(*files)


def read_weights(files: list[Path]) -> dict[str, Tensor]:
    """All tensors of one safetensors file, or of several shards, on the CPU.

    Raises:
        InputError: a file is truncated or of another format, or two hold the same tensor.
    """
    weights: dict[str, Tensor] = {}
    for path in files:
        part = read_safetensors(path)
        twice = next((name for name in part if name in weights), None)
        if twice is not None:
            raise InputError(f"{path} holds '{twice}', which another shard has already. Save the model again.")
        weights |= part
    return weights


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        InputError: if the file is truncated or of another format.
    """
    require_regular(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} is not a complete safetensors file ({one_line(error)}). It was probably "
            "truncated when it was copied or downloaded; get it again."
        ) from error


def _files_of(folder: Path, variant: str | None) -> list[Path]:
    middle = f".{variant}" if variant else ""
    whole, index = folder / f"{_STEM}{middle}{_SUFFIX}", folder / f"{_STEM}{_SUFFIX}.index{middle}.json"
    if not index.exists():
        return [whole] if whole.exists() else []
    names = read_json(index, _ShardIndex, "Save the model again.")["weight_map"].values()
    shards = [folder / name for name in sorted(set(names))]
    missing = [path.name for path in shards if not path.is_file()]
    if whole.exists() and len(missing) == len(shards):  # saved again in one file, which removes only the shards
        return [whole]
    if whole.exists():
        raise InputError(
            f"{folder} holds both {whole.name} and the shards of {index.name}, so it is unclear which belong to its "
            "configuration. Save the model again, into a new folder."
        )
    if missing:
        raise InputError(f"{folder} lacks {missing[0]}, a shard that {index.name} lists. Get it, or save it again.")
    return shards


def _variants(folder: Path) -> Iterator[str]:
    for path in folder.glob(f"{_STEM}.*{_SUFFIX}"):
        name = path.name.removeprefix(f"{_STEM}.").removesuffix(_SUFFIX)
        yield name.rpartition("-of-")[0].rpartition("-")[0] or name
