"""rFID: the Frechet distance of Inception features of 8-bit reconstructions and of the crops they were made of."""

from pathlib import Path

import pytest
import torch

from alight.artifacts import Artifact
from alight.config import EvaluateTokenizerConfig, ImagesConfig
from alight.data.loading import open_dataset
from alight.evaluation.reconstruction import measure_reconstruction, reconstruct
from alight.evaluation.tokenizer_report import tokenizer_figures
from alight.evaluation.tokenizers import EvaluatedTokenizer, MetricNetworks
from alight.metrics import FeatureStatistics, frechet_distance
from alight.runtime.distributed import Processes
from alight.runtime.pixels import from_uint8
from helpers.data_sets import FirstImages
from helpers.models import tiny_tokenizer
from helpers.random_inception import random_inception

COUNT = 6


@pytest.mark.slow
def test_rfid_is_the_distance_of_the_features_of_8_bit_images():
    artifact = Artifact(Path("tokenizer"), "tokenizer", {}, "h" * 64)
    tokenizer = EvaluatedTokenizer("tokenizer", tiny_tokenizer(), artifact, None)
    images = ImagesConfig(source="digits", size=32)
    config = EvaluateTokenizerConfig(images=images, batch_size=4, posterior="mode")
    dataset, networks = (
        FirstImages(open_dataset(images, "held_out", augment=False), COUNT),
        MetricNetworks(inception=random_inception()),
    )
    device = torch.device("cpu")
    measured = measure_reconstruction(tokenizer, dataset, config, networks, Processes(0, 1, device))
    assert set(measured.scores) == {"psnr", "ssim"}  # features are no scores

    statistics = []
    with torch.no_grad():
        for pixels in reconstruct(tokenizer, dataset, range(COUNT), config, device):
            pool = networks.inception(from_uint8(torch.from_numpy(pixels)), resize="pytorch").pool
            statistics.append(FeatureStatistics.from_features(pool.numpy()))
    # of 2,048 features of six images: rank-deficient, so rounding in the network moves the last digits
    assert measured.fid.value == pytest.approx(frechet_distance(*statistics).value, rel=1e-4)
    figure = next(each for each in tokenizer_figures(measured, config, networks) if each.name == "reconstruction_fid")
    assert figure.value == measured.fid.value
    assert figure.conditions["resize"] == "as pytorch-fid"
    assert figure.conditions["images"] == COUNT
