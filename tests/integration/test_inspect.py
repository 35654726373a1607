"""`alight latents inspect`: what is right is described, and what is damaged is never called right."""

import json
import random

import pytest
import torch

from alight.artifacts import write_manifest
from alight.config import InspectLatentsConfig
from alight.data.latent_shards import LABELS, LATENTS
from alight.outputs import writing_folder
from alight.runtime.errors import InputError
from alight.stages.inspect_latents import run
from helpers.written import write_shards


def write(folder, count=240):
    """Two channels of variance 4 about 3, the second a copy of the first, normalised by their own statistics."""
    generator = torch.Generator().manual_seed(0)
    with writing_folder(folder) as staging:
        channel = 3 + 2 * torch.randn(count, 1, 4, 4, generator=generator)
        tensors = {LATENTS: channel.repeat(1, 2, 1, 1), LABELS: torch.arange(count) % 3}
        digest = write_shards(staging, tensors, ["cats", "dogs", "mice"], shard_size=100)
        write_manifest(staging, "latents", {"seed": 0}, digest, {"tokenizer": "t" * 64})
    return folder


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return write(tmp_path_factory.mktemp("latents") / "latents")


def test_a_description(latents):
    text = str(run(InspectLatentsConfig(latents=latents)))
    assert "240 of shape 2 x 4 x 4; all checksums are right" in text
    assert "3: cats, dogs, mice" in text
    assert "80 to 80" in text
    figures = dict(line.rsplit(maxsplit=1) for line in text.splitlines() if line.startswith(("largest", "effective")))
    assert float(figures["largest channel mean"]) == 0
    assert float(figures["largest channel std"]) == 1
    assert float(figures["effective dimension"]) == 1  # two channels that say the same


def test_a_report(alight, latents, tmp_path):
    output = tmp_path / "report"
    options = ("--latents", latents, "--output", output, "--density-runs", 1)
    result = alight("latents", "inspect", *options)
    assert result.returncode == 0, result.stderr
    assert f"Report: {output}/report.html" in result.stdout
    report = json.loads((output / "report.json").read_text())
    assert report["effective_dimension"] == pytest.approx(1)
    assert 0 < report["density_gini"] < 1
    assert report["figures"][-1]["conditions"]["vectors"] == 240
    titles = {curve["title"]: curve["series"] for curve in report["distributions"]}
    assert titles["Channels"]["std"]["y"] == pytest.approx([1, 1], abs=1e-3)
    assert sum(titles["Values"]["latents"]["y"]) * 10 / 41 == pytest.approx(1, abs=1e-2)
    assert titles["Spatial frequencies"]["latents"]["y"] == pytest.approx([1] * 3, abs=0.2)
    page = (output / "report.html").read_text()
    assert page.count("<svg") >= 5


@pytest.mark.parametrize("seed", range(2))
def test_no_damage_is_called_right(latents, seed):
    rng = random.Random(seed)
    files = sorted(path for path in latents.iterdir() if path.name != "alight.json")
    assert len(files) == 4
    for _ in range(25):
        path = rng.choice(files)
        whole = path.read_bytes()
        data = bytearray(whole)
        if rng.random() < 0.3:
            data = data[: rng.randrange(len(data))]
        else:
            data[rng.randrange(min(len(data), rng.choice([8, 200, len(data)])))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        with pytest.raises(InputError):
            run(InspectLatentsConfig(latents=latents))
        path.write_bytes(whole)
    assert "all checksums are right" in str(run(InspectLatentsConfig(latents=latents)))


def test_shards_of_another_folder_are_noticed(tmp_path):
    """An index and shards that fit together, under a manifest that speaks of others."""
    one, other = write(tmp_path / "one"), write(tmp_path / "other", count=230)
    for path in other.iterdir():
        if path.name != "alight.json":
            (one / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="is not what was written"):
        run(InspectLatentsConfig(latents=one))


def test_a_damaged_shard_on_the_command_line(refused, tmp_path):
    folder = write(tmp_path / "latents")
    path = folder / "latents_00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert f"{path} is not what was written" in refused(
        "latents", "inspect", "--latents", folder, "--output", tmp_path / "report"
    )
    assert not (tmp_path / "report").exists()
