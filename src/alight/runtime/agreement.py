"""A check that all processes of a job do the same: one version of the package, one configuration."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import torch
import torch.distributed as dist

from alight.runtime.errors import InputError

_SHOWN = 4  # differing keys


def require_same_job(store: dist.Store, rank: int, world_size: int, job: Mapping[str, Any]) -> None:
    """Compare versions and configurations, in rank 0.

    Args:
        store: of the job.
        rank: of this process.
        world_size: number of processes.
        job: the resolved configuration, as plain data.

    Raises:
        InputError: names the ranks that differ from rank 0, and in which keys; in rank 0 alone.
    """
    own = _description(job)
    store.set(f"job/{rank}", json.dumps(own))
    if rank != 0:
        return
    others = store.multi_get([f"job/{other}" for other in range(1, world_size)])
    differing: dict[str, list[int]] = {}
    for other, text in enumerate(others, start=1):
        theirs = json.loads(text)
        keys = sorted(key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key))
        shown = [_versions(key, own, theirs) for key in keys[:_SHOWN]]
        if keys:
            differing.setdefault(", ".join(shown) + (", ..." if len(keys) > _SHOWN else ""), []).append(other)
    if differing:
        parts = [f"rank{'s' * (len(ranks) > 1)} {_listed(ranks)} in {keys}" for keys, ranks in differing.items()]
        raise InputError(
            f"The processes of the job differ from rank 0: {'; '.join(parts)}. Start the same command, recipe and "
            "version on every machine."
        )


def _description(job: Mapping[str, Any]) -> dict[str, str]:
    """Versions, and a hash for every key of the configuration: passwords in it stay in their process."""
    versions = {"alight's version": metadata.version("alight"), "torch's version": torch.__version__}
    shared = [(key, value) for key, value in _flat(job) if key != "device"]  # of which each process may have its own
    return versions | {key: hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16] for key, value in shared}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _versions(key: str, own: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    return f"{key} ({theirs[key]} against {own[key]})" if key.endswith("version") and " " in key else key


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
