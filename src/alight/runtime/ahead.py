"""Batches on their way to an accelerator, copied while it still computes on those before.

A copy from ordinary memory waits until the accelerator has finished all that it was asked for. From pinned memory it
goes on by itself, on a stream of its own.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch", bound=tuple[Any, ...])


def on_device(batches: Iterable[Batch], device: torch.device, *fields: str) -> Iterator[Batch]:
    """Batches with their tensors on a device, in the same order.

    On CUDA each is fetched and its copy begun one batch ahead. Elsewhere nothing is fetched before it is asked for.

    Args:
        batches: named tuples; what is not a tensor stays as it is.
        device: to copy to.
        *fields: names of the fields to copy; none = all.
    """
    if device.type == "cuda":
        return _one_ahead(batches, device, fields)
    return (_moved(batch, device, fields) for batch in batches)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, without waiting for what the device has to do."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


class _Sent(NamedTuple):
    """A batch on a device, and the event after which it has arrived."""

    batch: Any
    arrival: torch.cuda.Event


def _one_ahead(batches: Iterable[Batch], device: torch.device, fields: tuple[str, ...]) -> Iterator[Batch]:
    stream, before = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(stream):
            under_way = _Sent(_moved(batch, device, fields), torch.cuda.Event())
            under_way.arrival.record(stream)
        if before is not None:
            yield _received(before, device)
        before = under_way
    if before is not None:
        yield _received(before, device)


def _received(sent_before: _Sent, device: torch.device) -> Any:
    """The batch, for use on the current stream: it waits for the copy, and the memory is not reused before its end."""
    current = torch.cuda.current_stream(device)
    current.wait_event(sent_before.arrival)
    for value in sent_before.batch:
        if isinstance(value, Tensor) and value.is_cuda:
            value.record_stream(current)
    return sent_before.batch


def _moved(batch: Any, device: torch.device, fields: tuple[str, ...]) -> Any:
    values = {name: getattr(batch, name) for name in fields or batch._fields}
    return batch._replace(**{name: sent(value, device) for name, value in values.items() if isinstance(value, Tensor)})
