"""Settings that a configuration leaves to the device (`auto`), and the values that a run gives them.

`precision` is part of the result, so a run keeps the one that it was begun with: begun on a GPU, it goes on in bf16 on
any device. Compilation changes no more than the device does, the last digits, so it is chosen again at every start and
never compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch

from alight.config import TrainingConfig, TrainTransformerConfig
from alight.config.base import Job, Section
from alight.options import AUTO, Compilation, FixedPrecision, names_of
from alight.outputs import recorded_config
from alight.runtime.console import log
from alight.runtime.device import can_compile, default_precision, fast_float32
from alight.runtime.distributed import Processes, process_group

Config = TypeVar("Config", bound=Section)
AnyJob = TypeVar("AnyJob", bound=Job)

# From these numbers on, models of the paper's size win back their compilation on an H100: a tokenizer in 2,600 steps,
# since it takes two minutes, a transformer in some hundred; sampling with 250 images in 249 steps, or 1,200 in 50.
STEPS = 5_000  # of training
SAMPLED = 2_000  # images, each of which passes the transformer many times
ENCODED = 50_000  # images, each of which passes the tokenizer or a network of features once


PRECISION, COMPILE = "precision", "compile"  # the keys, in any section


class Choice(NamedTuple):
    """A setting that was chosen, for the log.

    Attributes:
        name: dotted.
        value: chosen.
        kept: True if it is that of the run's beginning.
    """

    name: str
    value: str | bool
    kept: bool = False


@contextmanager
def joined(config: AnyJob) -> Iterator[tuple[Processes, AnyJob]]:
    """Join the processes of a job, for the length of the block, with its settings decided.

    Args:
        config: of the job, which must be the same for all of them.

    Yields:
        The processes, and the configuration as `settled` gives it; rank 0 alone says how the run was begun.
    """
    given = config.model_dump(mode="json")
    with process_group(config.device, given) as processes, fast_float32(processes.device):
        recorded = processes.gather(recorded_config(config.output))[0]
        yield processes, settled(config, processes.device, recorded)


def settled(config: Config, device: torch.device, recorded: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a run with a value for every precision, and for the compilation of every training.

    Args:
        config: as it was given.
        device: of the run.
        recorded: configuration of the run in its output, which says in which precision it was begun.
    """
    choices: list[Choice] = []
    result = _settle(config, device, recorded or {}, "", choices)
    notable = [choice for choice in choices if choice.value not in ("fp32", False) or choice.kept]
    if notable:
        kept = {choice.name for choice in notable if choice.kept}
        words = [f"{name} {value}{' (as this run was begun)' if name in kept else ''}" for name, value, _ in notable]
        log.info("Chosen for %s: %s.", device, ", ".join(words))
    return result


def with_compilation(config: Config, device: torch.device, images: int, enough: int) -> Config:
    """The configuration of a job without training, with a decision for `compile`.

    Args:
        config: of the job, or its section with this key.
        device: of the networks.
        images: of this process.
        enough: images for which compiling pays.
    """
    wanted: Compilation = getattr(config, COMPILE)
    compiled = compiles(wanted, device, images, enough)
    if compiled:
        log.info("The networks are compiled, so the first images take a minute or two longer.")
    return config.model_copy(update={COMPILE: compiled})


def compiles(wanted: Compilation, device: torch.device, work: int, enough: int) -> bool:
    """Tell if blocks are to be compiled.

    Args:
        wanted: by the configuration.
        device: of the work.
        work: of this process, in images or steps.
        enough: work for which compiling pays.
    """
    return wanted if isinstance(wanted, bool) else work >= enough and can_compile(device)


def _settle(
    config: Config, device: torch.device, recorded: Mapping[str, Any], prefix: str, choices: list[Choice]
) -> Config:
    """The same for one section and those in it; notes what was chosen."""
    changed: dict[str, Any] = {}
    for name, value in config:
        if isinstance(value, Section):
            below = recorded.get(name)
            own = _settle(value, device, below if isinstance(below, Mapping) else {}, f"{prefix}{name}.", choices)
            if isinstance(own, TrainingConfig) and own.compile == AUTO:
                compiled = _is_compilable(config) and compiles(own.compile, device, own.steps, STEPS)
                own = own.model_copy(update={COMPILE: compiled})
                choices.append(Choice(f"{prefix}{name}.{COMPILE}", compiled))
            changed[name] = own
        elif name == PRECISION and value == AUTO:
            before, default = recorded.get(name), default_precision(device)
            known = before in names_of(FixedPrecision)
            changed[name] = before if known else default
            choices.append(Choice(f"{prefix}{name}", changed[name], known and before != default))
    return config.model_copy(update=changed)


def _is_compilable(config: Section) -> bool:
    """Tell if a training goes without derivatives in forward mode, which compiled blocks do not have."""
    return not isinstance(config, TrainTransformerConfig) or config.flow.objective != "average_velocity"
