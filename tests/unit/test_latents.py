"""Latents on disk: what is written is what is read, normalised by the statistics that were asked for."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from alight.data.latents import ChannelStatistics, LatentDataset, LatentWriter
from alight.runtime.errors import InputError


def write(folder, count=25, shard_size=10, batch=4, flips=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    latents = 3 + 2 * torch.randn(count, 5, 2, 3, generator=generator)
    flipped, labels = latents.flip(-1), torch.arange(count) % 3
    writer = LatentWriter(folder, shard_size, dtype)
    for start in range(0, count, batch):
        piece = slice(start, start + batch)
        writer.add(latents[piece], labels[piece], flipped[piece] if flips else None)
    statistics = (writer.statistics.mean, writer.statistics.std)
    writer.close(statistics, "data", ["a", "b", "c"])
    return latents, labels


def test_round_trip_over_shards(tmp_path):
    latents, labels = write(tmp_path)
    dataset = LatentDataset(tmp_path)
    assert (len(dataset), dataset.shape, dataset.class_names) == (25, (5, 2, 3), ("a", "b", "c"))
    order = np.random.default_rng(0).permutation(25)
    got = dataset.gather(order)
    mean, std = latents.mean((0, 2, 3)), latents.transpose(0, 1).flatten(1).std(1)
    expected = (latents[order] - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    torch.testing.assert_close(got.latents, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(got.labels, labels[order])


def test_shards_have_the_published_layout(tmp_path):
    write(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert [len(load_file(path)["labels"]) for path in shards] == [10, 10, 5]
    assert set(load_file(shards[0])) == {"latents", "latents_flip", "labels"}


def test_flips_are_chosen_per_sample(tmp_path):
    write(tmp_path)
    dataset = LatentDataset(tmp_path)
    flips = np.array([True, False, True])
    got = dataset.gather([12, 12, 3], flips).latents
    plain = dataset.gather([12, 12, 3]).latents
    torch.testing.assert_close(got[0], plain[0].flip(-1))
    torch.testing.assert_close(got[1], plain[1])
    torch.testing.assert_close(got[2], plain[2].flip(-1))


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
def test_half_precision_storage(tmp_path, dtype, error):
    latents, _ = write(tmp_path, dtype=dtype)
    dataset = LatentDataset(tmp_path)
    got = dataset.gather(range(25)).latents * dataset.std + dataset.mean
    torch.testing.assert_close(got, latents, rtol=error, atol=1e-6)  # half a unit in the last place, and rounding


def test_statistics_do_not_depend_on_batches_and_do_not_cancel():
    values = 1e4 + torch.randn(64, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole, pieces = ChannelStatistics(3), ChannelStatistics(3)
    whole.update(values)
    for piece in values.split(7):
        pieces.update(piece)
    flat = values.transpose(0, 1).flatten(1)
    torch.testing.assert_close(pieces.mean, flat.mean(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(pieces.std, flat.std(1), rtol=1e-9, atol=0)
    torch.testing.assert_close(whole.std, pieces.std, rtol=1e-9, atol=0)


@pytest.mark.parametrize("keep", [5, 100, -8])
def test_truncated_shards_are_refused(tmp_path, keep):
    write(tmp_path)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(InputError, match="not a complete shard"):
        LatentDataset(tmp_path)


def test_missing_index_and_shard(tmp_path):
    with pytest.raises(InputError, match=r"no index\.json"):
        LatentDataset(tmp_path)
    write(tmp_path)
    sorted(tmp_path.glob("*.safetensors"))[0].unlink()
    with pytest.raises(InputError, match="not a complete shard"):
        LatentDataset(tmp_path)
