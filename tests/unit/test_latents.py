"""Latents on disk: what is written is what is read, normalised by the statistics that were asked for."""

import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from alight.data.latent_shards import LABELS, LATENTS, MIRRORED, map_shard, write_shard
from alight.data.latent_statistics import ChannelStatistics
from alight.data.latents import LatentDataset, write_index
from alight.data.sampling import ResumableSampler
from alight.runtime.checked_json import read_checked, write_checked
from alight.runtime.errors import InputError
from helpers.written import write_shards


def write(folder, count=25, shard_size=10, flips=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    latents = 3 + 2 * torch.randn(count, 5, 2, 3, generator=generator)
    labels = torch.arange(count) % 3
    tensors = {LATENTS: latents.to(dtype), LABELS: labels}
    if flips:
        tensors[MIRRORED] = latents.flip(-1).to(dtype)
    write.hash = write_shards(folder, tensors, ["a", "b", "c"], shard_size)
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


def test_parts_of_statistics_come_together():
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(90, 3, 2, 2, generator=generator)
    whole, merged = ChannelStatistics(3), ChannelStatistics(3)
    whole.update(values)
    for piece in values.split(40):
        part = ChannelStatistics(3)
        part.update(piece)
        merged.merge(ChannelStatistics.from_dict(json.loads(json.dumps(part.to_dict()))))
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(merged.std, whole.std, rtol=1e-12, atol=0)


def test_statistics_of_moments_are_those_of_samples():
    """Means of variance 4 and an own variance of 9 give samples of variance 13; 400,000 values, good to 0.5 %."""
    generator = torch.Generator().manual_seed(3)
    means = 2 * torch.randn(1000, 1, 20, 20, generator=generator)
    statistics = ChannelStatistics(1)
    statistics.update(means, torch.full_like(means, 9.0))
    assert statistics.std.item() ** 2 == pytest.approx(13, rel=5e-3)


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_latent_once_per_epoch_over_the_processes(tmp_path, world_size):
    write(tmp_path, count=24)
    dataset = LatentDataset(tmp_path)
    raw = dataset.gather(range(24)).latents
    order = [iter(ResumableSampler(24, 6, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for _ in range(2):
        seen = torch.cat([dataset.gather(next(batches)).latents for _ in range(4) for batches in order])
        found = [int((row == raw).flatten(1).all(1).nonzero()) for row in seen]
        assert sorted(found) == list(range(24))
        assert found != sorted(found)


def test_positions_out_of_range_are_refused(tmp_path):
    write(tmp_path)
    dataset = LatentDataset(tmp_path)
    assert torch.equal(dataset.gather([24]).labels, torch.tensor([0]))
    for position in (25, -1):
        with pytest.raises(IndexError):
            dataset.gather([0, position])


def test_moments_are_drawn_when_they_are_read(tmp_path):
    generator = torch.Generator().manual_seed(4)
    mean, mirrored = torch.randn(2, 6, 2, 1, 1, generator=generator)
    logvar, logvar_mirrored = torch.randn(2, 6, 2, 1, 1, generator=generator)
    tensors = {"latents": mean, "latents_flip": mirrored, "labels": torch.zeros(6, dtype=torch.int64)}
    tensors |= {"latents_logvar": logvar, "latents_flip_logvar": logvar_mirrored}
    record = write_shard(tmp_path / "latents_00000.safetensors", tensors)
    write_index(tmp_path, [record], (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])), "tokenizer", ["a"])
    dataset = LatentDataset(tmp_path)
    order, flips = np.array([5, 0]), np.array([False, True])
    drawn = dataset.gather(order, flips, torch.Generator().manual_seed(1)).latents
    noise = torch.randn(2, 2, 1, 1, generator=torch.Generator().manual_seed(1))
    raw = torch.stack([mean[5], mirrored[0]]) + torch.stack([logvar[5], logvar_mirrored[0]]).mul(0.5).exp() * noise
    expected = (raw - torch.tensor([1.0, 2.0]).view(2, 1, 1)) / torch.tensor([3.0, 4.0]).view(2, 1, 1)
    torch.testing.assert_close(drawn, expected)
    assert torch.equal(drawn, dataset.gather(order, flips, noise=noise).latents)
    again = dataset.gather(order, flips, torch.Generator().manual_seed(2)).latents
    assert (again - drawn).abs().min() > 0
    plain = dataset.gather(order, flips).latents
    torch.testing.assert_close(plain * dataset.std + dataset.mean, torch.stack([mean[5], mirrored[0]]))


# --- damage -------------------------------------------------------------------------------------------------------


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


def test_an_unfinished_folder_is_not_taken_for_published_shards(tmp_path):
    write(tmp_path)
    (tmp_path / "index.json").unlink()
    assert len(LatentDataset(tmp_path)) == 25
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(InputError, match="unfinished latents"):
        LatentDataset(tmp_path)


def test_a_shard_of_another_folder_is_noticed_at_once(tmp_path):
    for name, flips in (("a", True), ("b", False)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, count=20, flips=flips)
    name = "latents_00001.safetensors"
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(InputError, match="is not the shard that"):
        LatentDataset(tmp_path / "a")


def test_labels_without_a_name_are_refused(tmp_path):
    write(tmp_path)
    index = read_checked(tmp_path / "index.json")
    write_checked(tmp_path / "index.json", index | {"class_names": ["a", "b"]})
    with pytest.raises(InputError, match="labels from 0 to 2"):
        LatentDataset(tmp_path)


def test_other_safetensors_are_no_shards(tmp_path):
    save_file({"latents": torch.zeros(2, 1, 1, 1)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="is not a shard of latents"):
        LatentDataset(tmp_path)


def test_infinite_latents_are_not_written(tmp_path):
    with pytest.raises(InputError, match="not finite in float16"):
        write_shard(tmp_path / "latents_00000.safetensors", {LATENTS: torch.full((2, 1, 1, 1), 1e6).half()})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", range(3))
def test_any_damage_is_noticed_and_explained(tmp_path, seed):
    """Opening finds what does not fit together, the checksums find every bit; nothing but `InputError` comes out."""
    rng = random.Random(seed)
    write(tmp_path)
    files = sorted(tmp_path.iterdir())
    assert [path.suffix for path in files] == [".json", *[".safetensors"] * 3]
    for _ in range(60):
        path = rng.choice(files)
        data = bytearray(path.read_bytes())
        whole = bytes(data)
        if rng.random() < 0.3:
            data = data[: rng.randrange(len(data))]
        else:
            for _ in range(rng.choice([1, 1, 8])):
                data[rng.randrange(min(len(data), rng.choice([8, 200, len(data)])))] ^= 1 << rng.randrange(8)
        if data == whole:
            continue  # the same bit twice
        path.write_bytes(data)
        with pytest.raises(InputError):
            LatentDataset(tmp_path).check_bytes(write.hash)
        path.write_bytes(whole)
    LatentDataset(tmp_path).check_bytes(write.hash)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b'{"latents": 1}',
        b'{"latents": {"dtype": "F32", "shape": [-1, 1, 1, 1], "data_offsets": [0, 8]}}',
        b'{"latents": {"dtype": "F32", "shape": [2, 1, 1, 1], "data_offsets": [0, 1e400]}}',
        b'{"latents": {"dtype": "F99", "shape": [2, 1, 1, 1], "data_offsets": [0, 8]}}',
        b'{"latents": {"dtype": "F32", "shape": [99999999999999999999], "data_offsets": [0, 8]}}',
        b"[" * 100_000,
    ],
)
def test_hostile_headers_are_refused(tmp_path, header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(InputError, match="not a complete shard"):
        map_shard(path)


def test_a_seal_covers_every_byte(tmp_path):
    path = tmp_path / "values.json"
    values = {"mean": [0.1, -2.5e-20], "name": "Zürich", "nothing": None, "more": {"a": [1, 2]}}
    write_checked(path, values)
    assert read_checked(path) == values
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(InputError):
            read_checked(path)
