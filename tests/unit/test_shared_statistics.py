"""The statistics of a tokenizer's latents: the same to the last bit, however many processes share the images."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from alight.config import TrainTokenizerConfig
from alight.data.latent_statistics import ChannelStatistics
from alight.data.loading import open_dataset
from alight.runtime.distributed import Processes
from alight.runtime.pixels import unit_range
from alight.runtime.seeding import random_stream
from alight.stages import train_tokenizer
from helpers.models import tiny_tokenizer

CPU = torch.device("cpu")


class Threads(Processes):
    """Processes that are threads of this one, and meet to exchange values."""

    def __init__(self, rank, world_size, table, meeting):
        super().__init__(rank, world_size, CPU)
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "meeting", meeting)

    def gather(self, value):
        self.table[self.rank] = value
        self.meeting.wait(60)
        return [self.table[rank] for rank in range(self.world_size)]


@pytest.fixture(scope="module")
def config():
    return TrainTokenizerConfig.model_validate(
        {
            "images": {"source": "digits", "size": 16, "horizontal_flip": True},
            "alignment": {"weight": 0},
            "reconstruction": {"adversarial_weight": 0, "perceptual_weight": 0},
            "training": {"global_batch_size": 24, "micro_batch_size": 12},
        }
    )


@pytest.fixture(scope="module")
def dataset(config):
    return open_dataset(config.images, "train", seed=config.seed)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(train_tokenizer, "STATISTICS_IMAGES", 64)  # the last batch is smaller


def measured(config, dataset, processes, vae=None):
    vae = copy.deepcopy(vae or tiny_tokenizer())
    train_tokenizer.measure_latents_statistics(vae, dataset, config, processes)
    return vae.config.latents_mean, vae.config.latents_std


def test_one_process_draws_the_noise_of_one_batch_after_another(config, dataset):
    vae = tiny_tokenizer()
    order = torch.randperm(len(dataset), generator=random_stream(config.seed, "statistics"))[:64].tolist()
    statistics, generator = ChannelStatistics(4), random_stream(config.seed, "statistics noise")
    for start in range(0, 64, 12):
        pixels = torch.stack([dataset[index].image for index in order[start : start + 12]])
        with torch.no_grad():
            statistics.update(vae.encode_raw_latents(unit_range(pixels), generator))
    mean, std = measured(config, dataset, Processes(0, 1, CPU))
    assert mean == statistics.mean.tolist()
    assert std == statistics.std.tolist()


@pytest.mark.parametrize("count", [2, 3, 7])
def test_processes_share_the_images_and_agree_to_the_last_bit(config, dataset, count, monkeypatch):
    alone = measured(config, dataset, Processes(0, 1, CPU))
    table, meeting, read, vae = {}, threading.Barrier(count), [], tiny_tokenizer()
    loading = train_tokenizer.load_batches
    monkeypatch.setattr(
        train_tokenizer,
        "load_batches",
        lambda data, batches, workers: (read.extend(batches), loading(data, batches, 0))[1],
    )
    with ThreadPoolExecutor(count) as pool:
        results = list(
            pool.map(lambda rank: measured(config, dataset, Threads(rank, count, table, meeting), vae), range(count))
        )
    assert results == [alone] * count
    assert len(sum(read, [])) == len(set(sum(read, []))) == 64  # none was read twice
