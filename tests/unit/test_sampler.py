"""The laws of the sampler: each index once per epoch, the same batches for any world, and exact positions."""

import copy
from collections import Counter
from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from alight.data.sampling import EpochIndex, ResumableLoader, ResumableSampler, epoch_of
from alight.runtime.errors import InputError

SIZES = [(10, 4, 1), (10, 4, 2), (12, 4, 4), (7, 7, 1), (3, 8, 2), (1, 6, 3), (5, 20, 4)]  # images, batch, processes


def global_batches(num_samples, batch, world_size, count, **options):
    """The first global batches, put together from all processes."""
    ranks = [
        islice(ResumableSampler(num_samples, batch, rank=rank, world_size=world_size, **options), count)
        for rank in range(world_size)
    ]
    return [[index for part in parts for index in part] for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize(("num_samples", "batch", "world_size"), SIZES)
def test_each_index_once_per_epoch(num_samples, batch, world_size):
    epochs = 6
    batches = global_batches(num_samples, batch, world_size, count=-(-epochs * num_samples // batch))
    draws = [index for indices in batches for index in indices]
    assert all(len(indices) == batch for indices in batches)
    for epoch in range(epochs):
        piece = draws[epoch * num_samples : (epoch + 1) * num_samples]
        assert sorted(piece) == list(range(num_samples))
        assert {epoch_of(index) for index in piece} == {epoch}


@pytest.mark.parametrize(("num_samples", "batch", "world_size"), SIZES)
def test_global_batches_do_not_depend_on_the_world(num_samples, batch, world_size):
    alone = global_batches(num_samples, batch, 1, count=7, seed=5)
    assert global_batches(num_samples, batch, world_size, count=7, seed=5) == alone


def test_ranks_share_a_batch_evenly():
    parts = [next(iter(ResumableSampler(100, 12, rank=rank, world_size=3))) for rank in range(3)]
    assert [len(part) for part in parts] == [4, 4, 4]
    assert len(set().union(*parts)) == 12


def test_every_epoch_and_every_seed_has_its_own_order():
    first, second = global_batches(50, 50, 1, count=2)
    (other,) = global_batches(50, 50, 1, count=1, seed=1)
    assert len({tuple(first), tuple(second), tuple(other), tuple(range(50))}) == 4


def test_permutations_are_uniform():
    orders = Counter(tuple(batch) for batch in islice(ResumableSampler(3, 3, seed=2), 6000))
    # 1000 expected for each of 6 orders; 5 standard deviations of binomial(6000, 1/6) are 144
    assert len(orders) == 6
    assert all(abs(count - 1000) < 144 for count in orders.values())


def test_without_shuffling_the_order_is_that_of_the_data():
    assert global_batches(5, 4, 1, count=3, shuffle=False) == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4, 0, 1]]


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 9])
def test_position_is_exact_after_loading(steps):
    sampler = ResumableSampler(10, 4, seed=3)
    batches = iter(sampler)
    for _ in range(steps):
        next(batches)
    state = sampler.state_dict()
    expected = list(islice(batches, 8))
    resumed = ResumableSampler(10, 4, seed=3)
    resumed.load_state_dict(state)
    assert resumed.epoch == steps * 4 // 10
    assert list(islice(resumed, 8)) == expected


def test_advancing_equals_drawing():
    drawn, advanced = ResumableSampler(10, 4), ResumableSampler(10, 4)
    list(islice(drawn, 6))
    advanced.advance(6)
    assert advanced.state_dict() == drawn.state_dict()


def test_resuming_with_another_world_and_batch_continues_the_stream():
    whole = [index for batch in global_batches(10, 4, 1, count=15) for index in batch]
    sampler = ResumableSampler(10, 4)
    list(islice(sampler, 3))
    parts = []
    for rank in range(2):
        resumed = ResumableSampler(10, 6, rank=rank, world_size=2)
        resumed.load_state_dict(sampler.state_dict())
        parts.append(list(islice(resumed, 8)))
    continued = [index for pair in zip(*parts, strict=True) for part in pair for index in part]
    assert continued == whole[12:60]


@pytest.mark.parametrize("other", [{"num_samples": 11}, {"seed": 1}, {"shuffle": False}])
def test_state_of_another_order_is_refused(other):
    state = ResumableSampler(10, 4).state_dict()
    with pytest.raises(InputError, match=next(iter(other))):
        ResumableSampler(**{"num_samples": 10, "global_batch_size": 4} | other).load_state_dict(state)


@pytest.mark.parametrize(
    "arguments", [(0, 4), (10, 0), (10, 4, 0, 2, 2), (10, 4, 0, -1, 2), (10, 4, 0, 0, 0), (10, 5, 0, 0, 2)]
)
def test_impossible_arguments(arguments):
    with pytest.raises(InputError):
        ResumableSampler(*arguments)


def test_epoch_index_is_an_int_that_survives_copies():
    index = EpochIndex(7, epoch=3)
    assert index == 7
    assert [10, 20, 30, 40, 50, 60, 70, 80][index] == 80
    assert epoch_of(copy.deepcopy(index)) == 3
    assert epoch_of(7) == 0


# --- the loader ---------------------------------------------------------------------------------------------------


class Echo(Dataset):
    """Gives back each index and its epoch."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return index * 1000 + epoch_of(index)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_position_does_not_run_ahead(num_workers):
    reference = [
        [index * 1000 + epoch_of(index) for index in batch] for batch in islice(ResumableSampler(10, 4, seed=1), 9)
    ]
    sampler = ResumableSampler(10, 4, seed=1)
    batches = iter(ResumableLoader(Echo(10), sampler, num_workers=num_workers))
    assert [next(batches).tolist() for _ in range(4)] == reference[:4]
    state = sampler.state_dict()
    assert (state["epoch"], state["position"]) == (1, 6)

    resumed = ResumableSampler(10, 4, seed=1)
    resumed.load_state_dict(state)
    batches = iter(ResumableLoader(Echo(10), resumed, num_workers=num_workers))
    assert [next(batches).tolist() for _ in range(5)] == reference[4:]


def test_micro_batches_add_up_to_the_global_batch():
    sampler = ResumableSampler(50, 10, rank=1, world_size=2)
    expected = [list(batch) for batch in islice(copy.copy(sampler), 2)]
    loader = ResumableLoader(Echo(50), sampler, micro_batch_size=2)
    assert loader.micro_batches == 3
    positions, pieces = [], []
    for piece in islice(iter(loader), 6):
        pieces.append((piece // 1000).tolist())
        positions.append(sampler.state_dict()["position"])
    assert [len(piece) for piece in pieces] == [2, 2, 1, 2, 2, 1]
    assert sum(pieces, []) == sum(expected, [])
    assert positions == [0, 0, 10, 10, 10, 20]  # a global batch counts when its last piece is handed out


def test_loading_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(ResumableLoader(Echo(10), ResumableSampler(10, 4))))
    assert torch.equal(torch.get_rng_state(), before)


def test_sampler_serves_a_plain_data_loader():
    loader = DataLoader(Echo(6), batch_sampler=ResumableSampler(6, 3, shuffle=False))
    assert [batch.tolist() for batch in islice(loader, 3)] == [[0, 1000, 2000], [3000, 4000, 5000], [1, 1001, 2001]]


def test_loader_refuses_a_sampler_of_another_size():
    with pytest.raises(InputError, match="num_samples"):
        ResumableLoader(Echo(6), ResumableSampler(7, 3))
    with pytest.raises(InputError, match="micro_batch_size"):
        ResumableLoader(Echo(6), ResumableSampler(6, 3), micro_batch_size=0)
