"""Check the integrity of a run's files: weights by their structure and hash, shards by their checksums."""

import json
import math
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from alight.artifacts import MANIFEST, WEIGHTS_FILE, read_manifest, verify_files
from alight.data.latents import LatentDataset
from alight.doctor.findings import Finding, attempt
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash
from alight.runtime.reading import require_regular
from alight.training.checkpoint import damaged_file, list_checkpoints

HASHED = {"foundation": "model.safetensors", "tokenizer": WEIGHTS_FILE, "transformer": WEIGHTS_FILE}  # by the manifest
HEADER_LIMIT = 100 * 2**20  # bytes, the limit of the format
BITS = {
    **{"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16},
    **{"I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "BOOL": 8},
}
AGAIN = "Restore the file from a copy, or create the {kind} again."


def artifact_findings(folder: Path) -> Iterator[Finding]:
    """Check the files of the artifact in a folder, and of the artifacts below it."""
    for place in [folder, *sorted(each for each in folder.iterdir() if each.is_dir())]:
        if (place / MANIFEST).exists():
            yield from attempt("files", partial(_artifact, place))
        elif place != folder:  # a pipeline keeps its parts in folders of their own
            for part in [place, *sorted(each for each in place.iterdir() if each.is_dir())]:
                yield from _structures(part, "artifact")


def checkpoint_findings(place: Path) -> Iterator[Finding]:
    """Check if the run can resume from its newest checkpoint."""
    found = list_checkpoints(place)
    damaged = {step: file for step, path in found if (file := damaged_file(path)) is not None}
    if not found:
        return
    if not damaged:
        yield Finding("ok", "checkpoints", f"{len(found)} are intact, the newest of step {found[-1][0]:,}.")
        return
    steps = ", ".join(
        f"{step:,}" if file.parent == place else f"{step:,} by its {file.name}" for step, file in damaged.items()
    )
    hopeless = len(damaged) == len(found)
    yield Finding(
        "problem" if hopeless else "warning",
        "checkpoints",
        f"{len(damaged)} of {len(found)} are damaged (of step {steps}).",
        "Restore one of them with its checksums; the run cannot resume without it."
        if hopeless
        else "The run resumes from the newest one that is intact.",
    )


def _artifact(folder: Path) -> Iterator[Finding]:
    """Check an artifact: its manifest, the structure of its weights, and the hash that the manifest records."""
    artifact = read_manifest(folder)
    kind = artifact.kind
    broken = list(_structures(folder, kind))
    yield from broken
    if broken:
        return
    verify_files(artifact)  # an InputError becomes a problem
    if kind in HASHED:
        path = folder / HASHED[kind]
        if not path.is_file():
            yield Finding("problem", "files", f"The {kind} in {folder} lacks {path.name}.", AGAIN.format(kind=kind))
            return
        if file_hash(path) != artifact.hash:
            sentence = f"{path} is damaged: its hash differs from the one in {MANIFEST}."
            yield Finding("problem", "files", sentence, AGAIN.format(kind=kind))
            return
    elif kind == "latents":
        LatentDataset(folder).check_bytes(artifact.hash)  # likewise
    yield Finding("ok", "files", f"The files of the {kind} in {folder} are intact.")


def _structures(folder: Path, kind: str) -> Iterator[Finding]:
    """A problem for each safetensors file that is truncated or malformed."""
    for path in sorted(folder.glob("*.safetensors")):
        if (complaint := safetensors_complaint(path)) is not None:
            yield Finding("problem", "files", f"{path} is damaged: {complaint}.", AGAIN.format(kind=kind))


def safetensors_complaint(path: Path) -> str | None:
    """The reason why a file is not a complete safetensors file; None if it is one. Tensor values are not read.

    The format: eight bytes with the length of a header, the header as JSON, and the tensors without gaps.
    """
    try:
        size = require_regular(path)
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))[0]
            if length > min(size - 8, HEADER_LIMIT):
                return "it ends within its header, or is not a safetensors file"
            header = json.loads(file.read(length).decode("utf-8"))
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except (ValueError, RecursionError):
        return "its header is not valid JSON"
    if not isinstance(header, dict):
        return "its header is not a JSON object"
    header.pop("__metadata__", None)
    spans = [_span(entry) for entry in header.values()]
    if None in spans:
        return "its header does not describe tensors"
    ordered = sorted(span for span in spans if span is not None)
    ends = [0, *(end for _, end in ordered)]
    if any(start > end for start, end in ordered) or [start for start, _ in ordered] != ends[:-1]:
        return "its header has gaps or overlaps between tensors"
    if ends[-1] != size - 8 - length:
        return f"it has {size:,} bytes, but its header describes {8 + length + ends[-1]:,}"
    return None


def _span(entry: Any) -> tuple[int, int] | None:
    """First and last byte of a tensor; None if the entry is not consistent."""
    try:
        start, end = entry["data_offsets"]
        shape, bits = entry["shape"], BITS.get(entry["dtype"])
        if not all(type(number) is int and number >= 0 for number in (start, end, *shape)):
            return None
        if bits is not None and (end - start) * 8 != bits * math.prod(shape):
            return None
    except (TypeError, KeyError, ValueError):
        return None
    return start, end
