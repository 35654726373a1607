"""The checkpoint that a run goes on from: chosen by the first of its processes, and given to all of them.

Others may see another state of a network file system, or none of the files. They read no more of it than their own
parts of a sharded checkpoint, and everything else comes from the first process.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from alight.runtime.distributed import Processes
from alight.runtime.errors import InputError
from alight.runtime.files import seen_in_time
from alight.training.checkpoint import newest_whole, read_checkpoint, read_outline, require_run, restore
from alight.training.parallel import divided_like, is_divided
from alight.training.sharded_checkpoint import all_visible, read_into
from alight.training.state_tree import Keys, Shapes, join, shapes_of, split


class Newest(NamedTuple):
    """The newest checkpoint that is whole, as all processes know it.

    Attributes:
        path: of it, for the first process.
        content: everything in it but tensors; `state` is there without them.
        shapes: of its tensors, by their paths in `state`.
        sharded: True if every process may read its own part.
    """

    path: Path
    content: dict[str, Any]
    shapes: Shapes
    sharded: bool


def choose_newest(folder: Path, processes: Processes) -> tuple[Newest | None, list[Path]]:
    """The same checkpoint in all processes, which must all ask for it.

    Returns:
        The checkpoint (None if there is none), and a damaged file of each newer one.

    Raises:
        InputError: the first process cannot read it, or it is none of a run; it is raised in all of them.
    """
    choice: tuple[Newest | None, list[Path]] | str = (None, [])
    if processes.is_main:
        try:
            choice = _choose(folder)
        except InputError as error:
            if processes.world_size == 1:
                raise
            choice = str(error)
    choice = processes.gather(choice)[0]
    if isinstance(choice, str):
        raise InputError(choice)
    return choice


def _choose(folder: Path) -> tuple[Newest | None, list[Path]]:
    path, damaged = newest_whole(folder)
    if path is None:
        return None, damaged
    content, shapes = read_outline(path)
    require_run(content, folder)
    return Newest(path, content, shapes, path.is_dir()), damaged


def restore_newest(
    parts: Mapping[str, Any], newest: Newest, folder: Path, processes: Processes, group: dist.ProcessGroup | None
) -> None:
    """Load the state of a checkpoint into models, optimizers and averages, by name; every process must call it.

    Args:
        parts: of the run.
        newest: the checkpoint.
        folder: of the run, for messages.
        processes: that share the work.
        group: of all of them, over gloo, where the model is sharded.

    Raises:
        InputError: a part is missing or does not fit; the parts are then of no use.
    """
    if processes.world_size == 1:
        restore(parts, read_checkpoint(newest.path)["state"], folder)
        return
    source = None if newest.sharded or not processes.is_main else read_checkpoint(newest.path, mapped=True)
    own = group is not None and newest.sharded and _seen_by_all(newest.path, processes)
    for name, part in parts.items():
        if name not in newest.content["state"]:
            restore({name: part}, {}, folder)  # it says so
        targets = _targets(name, part, newest.shapes)
        if own:
            read_into(newest.path, targets, group)
        else:
            whole: dict[Keys, Tensor] = {}
            if processes.is_main:  # of a folder, no more than one part at a time
                content = source or read_checkpoint(newest.path, parts=(name,))
                whole = split({name: content["state"][name]})[1]
            _send(whole, targets, newest.shapes, processes)
        state = join({name: newest.content["state"][name]}, targets)
        restore({name: part}, state, folder)


def _seen_by_all(path: Path, processes: Processes) -> bool:
    return not processes.largest(int(not seen_in_time(lambda: all_visible(path))))


def _targets(name: str, part: Any, shapes: Shapes) -> dict[Keys, Tensor]:
    """The tensors of a part that a checkpoint fills: its own where they fit, so that nothing is held twice."""
    present = split({name: part.state_dict()})[1]
    fitting = shapes_of(present)
    return {
        keys: present[keys] if fitting.get(keys) == wanted else torch.empty(wanted[0], dtype=wanted[1])
        for keys, wanted in shapes.items()
        if keys[0] == name
    }


@torch.no_grad()
def _send(whole: Mapping[Keys, Tensor], targets: Mapping[Keys, Tensor], shapes: Shapes, processes: Processes) -> None:
    """Fill tensors of all processes from whole ones of the first, which arrive one by one."""
    for keys, target in targets.items():
        shape, dtype = shapes[keys]
        if processes.is_main:
            tensor = whole[keys].to(processes.device).contiguous()
        else:
            tensor = torch.empty(shape, dtype=dtype, device=processes.device)
        dist.broadcast(tensor, src=0)
        target.copy_(divided_like(target, tensor) if is_divided(target) else tensor)
