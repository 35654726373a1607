"""Output folders: claimed by one run at a time, refused when they hold anything else, and replaced as a whole.

One rule for every writer: an output is new, empty, or an artifact of the same kind, finished or not. Nothing else is
removed or replaced, and an output never lies inside or above a folder that it is made from.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from alight.artifacts import (
    MANIFEST,
    PIPELINE_INDEX,
    STARTED,
    TO_BE_EDITED,
    Artifact,
    differences,
    is_complete,
    read_artifact,
    read_manifest,
)
from alight.options import EMBEDDED
from alight.runtime.console import log
from alight.runtime.errors import InputError
from alight.runtime.files import (
    LOCK_FILE,
    disk_reason,
    explained_disk_errors,
    locked_folder,
    seen_in_time,
    sync_folder,
    write_text,
)
from alight.runtime.reading import read_json_object

INPUTS = frozenset(  # keys of configurations that may name a folder which the output is made from
    "averages_of compare dinov2 folders foundation guide images inception_weights init_from latents lpips_weights "
    "observer pipeline public_foundation reference report run samples samples_tokenizer source statistics "
    "stock_tokenizer study tokenizer tokenizers transformer vgg16_weights".split()
)
_PARTIAL, _PROBE = ".partial", ".probe"
_PASSING = (LOCK_FILE, _PARTIAL, _PROBE, f".{STARTED}.writing")  # traces of our own that a killed process leaves
_OF_DESKTOPS = (".DS_Store", "desktop.ini", "Thumbs.db")  # which appear in every folder that a person opens
_UNFINISHED = {  # traces of unfinished runs of version 0.1, which wrote no STARTED
    **dict.fromkeys(("foundation", "tokenizer", "transformer"), "training/log.jsonl"),
    **dict.fromkeys(("samples", "report"), "unfinished.json"),
    "latents": "unfinished/run.json",
}


@contextmanager
def claimed_output(
    folder: Path,
    kind: str,
    config: Mapping[str, Any],
    *,
    renew: bool = False,
    compare: bool = True,
    is_main: bool = True,
) -> Iterator[Artifact | None]:
    """Claim an output folder before any work starts, and hold it until the block ends.

    Args:
        folder: that is going to be the artifact; it is made if it does not exist.
        kind: of the artifact.
        config: the resolved configuration, as plain data; folders that it names are inputs.
        renew: True = a finished artifact is made again, instead of being given back.
        compare: False = a finished artifact of another configuration may be renewed.
        is_main: whether this is the process that writes; the others only look.

    Yields:
        The finished artifact that is there already, made with the same configuration, or None if there is work.

    Raises:
        InputError: the folder belongs to something else, is in use, lies inside or above an input, or cannot be
            written.
    """
    if not is_main:
        yield read_artifact(folder, kind, verify=False) if is_complete(folder) and not renew else None
        return
    require_apart(folder, config)
    finished = _check_claim(folder, kind, config, compare)
    if finished is not None and not renew:
        yield read_artifact(folder, kind)
        log.info("%s is finished already: a %s of this configuration. Nothing was done.", folder, kind)
        return
    existed = folder.exists()
    try:
        with locked_folder(folder):
            finished = _check_claim(folder, kind, config, compare)  # another process may have been here
            if finished is None:
                _mark_started(folder, kind, config)
            yield None if renew or finished is None else read_artifact(folder, kind)
    finally:
        _leave_nothing(folder, existed)


def read_written(folder: Path, kind: str) -> Artifact:
    """Open the artifact that this job has just finished.

    Of several processes, those on other machines than the first may have to wait for it: a network file system shows
    them files of another machine after some seconds.

    Raises:
        InputError: as `read_artifact`.
    """

    def is_there() -> bool:
        with suppress(InputError):
            read_artifact(folder, kind)
            return True
        return False

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        seen_in_time(is_there)
    return read_artifact(folder, kind)


def check_output(folder: Path, config: Mapping[str, Any], kind: str) -> None:
    """Find out before any work starts whether an output can be claimed and written.

    Raises:
        InputError: as `claimed_output`.
    """
    require_apart(folder, config)
    if _check_claim(folder, kind, config, compare=True) is not None:
        return
    probe, missing = folder / _PROBE, [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0" * 4096)
    except OSError as error:
        raise InputError(f"Cannot write to {folder!s:.300}: {disk_reason(error)}.") from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
            for place in missing:  # from the innermost on, as far as they are empty
                place.rmdir()


def recorded_config(folder: Path) -> Mapping[str, Any]:
    """The configuration of the run in a folder, finished or not; empty where there is none or it cannot be read."""
    with suppress(InputError, OSError):
        if is_complete(folder):
            return read_manifest(folder).config
        if (folder / STARTED).is_file():
            config = read_json_object(folder / STARTED, "").get("config")
            return config if isinstance(config, Mapping) else {}
    return {}


def new_file(path: Path) -> Path:
    """A file to be written that must not exist yet, because it could be anybody's.

    Raises:
        InputError: something of that name exists.
    """
    if path.exists() or path.is_symlink():
        raise InputError(f"{path} exists already. Delete it, or choose another --output.")
    return path


@contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """A staging folder whose content moves into `folder` when the block ends well, and vanishes when it does not.

    The manifest moves last. If an earlier artifact is replaced, its manifest goes first, so that a folder with a
    manifest is whole at every moment.

    Raises:
        InputError: the disk is full, the folder cannot be written, or files of somebody else are in the way.
    """
    staging, existed = folder / _PARTIAL, folder.exists()
    try:
        with explained_disk_errors(folder):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            yield staging
            _move_into(folder, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):
            if not existed and not any(folder.iterdir()):
                folder.rmdir()


# --- the rule -----------------------------------------------------------------------------------------------------


def _check_claim(folder: Path, kind: str, config: Mapping[str, Any], compare: bool) -> Artifact | None:
    """The finished artifact in a folder, or None if the folder is free or holds an unfinished one of this kind."""
    with explained_disk_errors(folder):
        if is_complete(folder):
            finished = read_artifact(folder, kind, verify=False)
            changed = differences(finished.config, config) if compare else []
            if changed:
                raise InputError(
                    f"{folder} already holds a {kind} made with another configuration ({'; '.join(changed[:4])}"
                    f"{'; ...' if len(changed) > 4 else ''}). Choose another --output, or delete that folder."
                )
            return finished
        if folder.exists():
            _refuse_foreign(folder, kind)
    return None


def require_apart(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse an output inside or above a folder that it is made from.

    Raises:
        InputError: names the folder.
    """
    if "\0" in str(folder):
        raise InputError("The output path holds a NUL character, which no file system takes. Choose another --output.")
    with explained_disk_errors(folder):
        output = folder.resolve()
    for source in _named_folders(config):
        place = source.resolve()
        if output == place:
            raise InputError(f"The output would overwrite {source}, which it is made from. Choose another --output.")
        if output in place.parents or place in output.parents:
            where = "inside" if place in output.parents else "above"
            raise InputError(
                f"The output {folder} lies {where} {source}, which it is made from. Choose another --output."
            )


def _named_folders(config: Mapping[str, Any]) -> Iterator[Path]:
    """The existing folders that a configuration names as inputs; images and options may have names of folders, too."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _named_folders(value)
        elif key in INPUTS:
            for text in value if isinstance(value, list | tuple) else (value,):
                with suppress(OSError, ValueError):  # too long for a path, or no path at all
                    if isinstance(text, str | Path) and text not in ("", *EMBEDDED) and Path(text).is_dir():
                        yield Path(text)


def _mark_started(folder: Path, kind: str, config: Mapping[str, Any]) -> None:
    """Mark a folder as an unfinished one of a kind, with the configuration that its run was begun with."""
    if not recorded_config(folder):
        write_text(folder / STARTED, json.dumps({"kind": kind, "config": config}, default=str) + "\n")


def _refuse_foreign(folder: Path, kind: str) -> None:
    """Refuse a folder with files in it, unless an unfinished run of the same kind has left them."""
    held = sorted(item.name for item in folder.iterdir() if item.name not in (*_PASSING, *_OF_DESKTOPS))
    if not held:
        return
    if (folder / STARTED).is_file():
        started = read_json_object(folder / STARTED, f"Delete {folder} to start from the beginning.").get("kind")
        if started == kind:
            return
        raise InputError(
            f"{folder} holds an unfinished {started}, not a {kind}. Choose another --output, or delete that folder."
        )
    if kind in _UNFINISHED and (folder / _UNFINISHED[kind]).exists():
        return
    shown = ", ".join(repr(name) for name in held[:3]) + (", ..." if len(held) > 3 else "")
    raise InputError(
        f"{folder} holds files that no 'alight' run has left there ({shown:.200}), and they might be overwritten. "
        "Choose a new or an empty folder as --output."
    )


def _leave_nothing(folder: Path, existed: bool) -> None:
    """Remove the traces of a run that has written nothing."""
    with suppress(OSError):
        if not is_complete(folder) and {item.name for item in folder.iterdir()} <= {STARTED}:
            (folder / STARTED).unlink(missing_ok=True)
            if not existed:
                folder.rmdir()


# --- replacing a folder's content ---------------------------------------------------------------------------------


def _move_into(folder: Path, staging: Path) -> None:
    """Move what was staged into its place; meanwhile the folder has no manifest and is marked as unfinished."""
    before = read_manifest(folder) if is_complete(folder) else None
    known = None if before is None or not before.files else set(before.files)
    if known is not None:
        for item in staging.iterdir():
            _refuse_replacing(folder / item.name, folder, known)
    if before is not None:
        write_text(folder / STARTED, f'{{"kind": "{before.kind}"}}\n')
    for name in (MANIFEST, PIPELINE_INDEX):
        if (staging / name).exists():
            (folder / name).unlink(missing_ok=True)
    last = (PIPELINE_INDEX, MANIFEST)
    for item in sorted(staging.iterdir(), key=lambda path: last.index(path.name) if path.name in last else -1):
        target = folder / item.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        os.replace(item, target)
    if known is not None and is_complete(folder):
        for name in known - set(read_manifest(folder).files):  # of the artifact before, and of no use to this one
            (folder / name).unlink(missing_ok=True)
    (folder / STARTED).unlink(missing_ok=True)
    sync_folder(folder)


def _refuse_replacing(target: Path, folder: Path, known: set[str]) -> None:
    """Refuse to replace what the artifact before did not write."""
    written = [target, *target.rglob("*")] if target.is_dir() else [target]
    for path in written:
        if path.is_file() and path.name != MANIFEST:
            name = str(PurePosixPath(path.relative_to(folder)))
            if name not in known and name not in TO_BE_EDITED:
                raise InputError(
                    f"{path} was not written by the run that made {folder}, and would be overwritten. Move it, or "
                    "choose another --output."
                )
