"""Batches on their way to the device: nothing changes but when they are fetched."""

from typing import Any, NamedTuple

import pytest
import torch

from alight.runtime.ahead import on_device, sent

CPU = torch.device("cpu")


class Batch(NamedTuple):
    x: torch.Tensor
    labels: torch.Tensor
    extra: Any = None


def batches(count, fetched):
    for number in range(count):
        fetched.append(number)
        yield Batch(torch.full((3,), float(number)), torch.tensor([number]), extra="kept" if number else None)


def test_a_cpu_gets_the_same_tensors_and_nothing_is_read_ahead():
    fetched, given = [], []
    moved = on_device(batches(3, fetched), CPU)
    assert fetched == []
    for number, batch in enumerate(moved):
        assert fetched == list(range(number + 1))
        given.append(batch)
    assert [(float(batch.x[0]), int(batch.labels), batch.extra) for batch in given] == [
        (0, 0, None),
        (1, 1, "kept"),
        (2, 2, "kept"),
    ]
    x = torch.ones(2)
    assert sent(x, CPU) is x


def test_an_error_while_fetching_is_not_lost():
    def failing():
        yield Batch(torch.ones(1), torch.ones(1))
        raise OSError("on purpose")

    with pytest.raises(OSError, match="on purpose"):
        list(on_device(failing(), CPU))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_them_one_ahead_and_waits_for_nothing():
    device, fetched = torch.device("cuda"), []
    product = torch.ones(8, 8, device=device)
    torch.mm(product, product)  # what the first use sets up may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        given = []
        for number, batch in enumerate(on_device(batches(5, fetched), device, "x")):
            assert fetched == list(range(min(number + 2, 5)))
            assert batch.x.is_cuda
            assert not batch.labels.is_cuda
            given.append(batch.x.square())
        given.append(sent(torch.arange(4.0), device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [values.tolist() for values in given] == [[n**2] * 3 for n in range(5)] + [[0, 1, 2, 3]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_on_a_gpu_is_not_reused_before_the_copy_was_read():
    """Copies run on a stream of their own; a batch that is dropped at once must still be read as it was."""
    device, fetched = torch.device("cuda"), []
    busy = torch.randn(4096, 4096, device=device)

    def large(count):
        for number in range(count):
            fetched.append(number)
            yield Batch(torch.full((2**20,), float(number)), torch.tensor([number]))

    sums = []
    for batch in on_device(large(50), device):
        busy = (busy @ busy).clamp(-1, 1)  # so that reading begins late
        sums.append(batch.x.sum() / 2**20)
        del batch
    assert [float(value) for value in sums] == list(range(50))
