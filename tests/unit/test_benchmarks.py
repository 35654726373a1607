"""The benchmarks compare equals, and say what they measured."""

import re
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from alight.bench import REPOSITORY
from alight.cli import parse
from alight.config import BenchConfig
from alight.data.latents import LatentDataset
from alight.flow import LinearPath, flow_matching_loss, time_grid
from alight.models import LightningDiT
from alight.models.vavae import VAVAE
from alight.runtime.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[2]))  # the benchmarks are not installed with the package
from benchmarks import baseline, cases
from benchmarks.measure import Contender, measure
from benchmarks.report import append
from benchmarks.run import command, run
from benchmarks.tokenizer import tokenizer_training

from helpers.models import tiny_transformer

CPU = torch.device("cpu")
TINY = {"sample_size": 4, "in_channels": 3, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_classes": 5}


@pytest.fixture
def model():
    return tiny_transformer(**TINY)


def test_plain_model_is_the_same_function_with_the_same_gradients(model):
    plain = baseline.PlainLightningDiT(model)
    x, t, labels = cases.example(model, 3, CPU)
    x_0 = torch.randn_like(x)
    # float32, other order of operations
    torch.testing.assert_close(plain(x, t, labels), model(x, t, labels), atol=1e-5, rtol=1e-5)

    plain_loss = baseline.loss(plain, x, x_0, t, labels)
    loss = flow_matching_loss(model, x, labels, path=LinearPath(), t=t, x_0=x_0).total
    torch.testing.assert_close(plain_loss, loss, atol=1e-5, rtol=1e-5)
    plain_loss.backward()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-3)


def test_plain_training_takes_the_same_step(model, monkeypatch):
    x, t, labels = cases.example(model, 2, CPU)
    setting = cases.Setting(CPU, "fp32", batch=2)
    noise = torch.randn_like(x)
    plain = cases.PlainTraining(baseline.PlainLightningDiT(model), x, labels, model.null_label, setting)
    own = cases.Training(model, x, labels, setting)
    # The same draws for both; each side usually makes its own.
    monkeypatch.setattr(baseline, "logit_normal_times", lambda *_: t)
    monkeypatch.setattr(cases, "sample_timesteps", lambda *_, **__: t)
    monkeypatch.setattr(torch, "randn_like", lambda _: noise)
    monkeypatch.setattr(cases, "standard_normal", lambda *_: noise)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.ones(2))
    for _ in range(2):
        assert plain() == pytest.approx(own().item(), rel=1e-4)
    shadows = dict(plain.ema.model.named_parameters())
    for name, shadow in own.ema.model.named_parameters():
        # Adam turns the sign of a gradient near zero into a step of the learning rate, of which 1e-4 arrives here.
        torch.testing.assert_close(shadows[name], shadow, atol=1e-6, rtol=0)


def test_plain_sampler_arrives_where_ours_does(model):
    noise, _, labels = cases.example(model, 2, CPU)
    plain = baseline.PlainLightningDiT(model)
    times = time_grid(9, cases.TIMESTEP_SHIFT).tolist()
    setting = cases.Setting(CPU, "fp32", batch=2)
    expected = cases.sample_plainly(plain, noise, labels, model.null_label, times, setting)
    latents = cases.sample(model, noise, labels, steps=9)
    assert (latents - noise).norm() > 1  # they went somewhere
    torch.testing.assert_close(latents, expected, atol=1e-3, rtol=1e-4)  # rounding grows with the guidance scale


def test_plain_reader_reads_the_same_latents():
    with cases.stored_latents(40, shape=(2, 3, 3), shard_size=16) as folder:
        dataset = LatentDataset(folder)
        indices = np.random.default_rng(0).permutation(40)
        latents, labels = cases.PlainLatents(folder, dataset).gather(indices)
        batch = dataset.gather(indices)
    assert torch.equal(latents, batch.latents)
    assert torch.equal(labels, batch.labels)


def test_forward_flops_are_those_of_the_equations():
    width, tokens, layers, inner = 16, 16, 2, 42
    per_token = 2 * (4 * width**2 + 3 * width * inner + 2 * tokens * width) * layers  # block: linear maps, attention
    per_token += 2 * 2 * 3 * width  # first and last layer
    per_image = 2 * (6 * layers + 2) * width**2 + 2 * (256 + width) * width  # modulation, time
    assert cases.forward_flops(LightningDiT(**TINY)) == per_token * tokens + per_image


def test_contenders_take_turns_and_the_slower_one_is_called_slower():
    turns = []

    def work(name, size):
        matrix = torch.ones(size, size)

        def run():
            turns.append(name)
            for _ in range(3):
                matrix @ matrix

        return run

    slow, fast = measure([Contender("slow", work("slow", 512), 1), Contender("fast", work("fast", 64), 1)], 3, CPU)
    assert turns == ["slow", "fast"] * 4  # the first round is not counted
    speedup = fast.speedup_over(slow)
    assert len(speedup.wall) == 3
    assert min(speedup.wall) > 2  # 512 times the work
    assert fast.images_per_second > slow.images_per_second


def test_table_shows_every_case_and_is_appended(monkeypatch, tmp_path):
    monkeypatch.setattr(cases, "random_model", lambda device, preset: LightningDiT(**TINY))
    # a large product in bf16 takes a CPU without instructions for it ten seconds, and is no part of the table's shape
    monkeypatch.setattr("benchmarks.run.matmul_rate", lambda device, dtype: 1e10)
    result = run(BenchConfig(train_batch=2, sample_steps=3, rounds=2, latents=8))
    text = str(result)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    header, *rows = rows
    assert all(len(row) == len(header) for row in rows)
    works = ("train LightningDiT-S/1", "sample LightningDiT-S/1")
    expected = [(work, dtype, name) for dtype in ("fp32", "bf16") for work in works for name in ("plain", "alight")]
    expected += [("read latents", "fp32", "plain"), ("read latents", "fp32", "alight")]
    assert [(row[0], row[2], row[4]) for row in rows] == expected
    for row in rows:
        assert float(row[header.index("img/s")]) > 0
        assert re.fullmatch(r"1|\d+\.\d\d \(\d+\.\d\d-\d+\.\d\d\)", row[header.index("speed-up (range)")])
    for fact in ("Device:", "Commit:", "Command: `alight bench --train-batch 2 ", "2 interleaved rounds"):
        assert fact in text
    assert [row["contender"] for row in result.as_data()["rows"]] == [row[4] for row in rows]
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n")
    append(text, results)
    assert results.read_text() == "# Results\n\n" + text


def test_the_recorded_command_asks_for_the_same_again():
    config = BenchConfig(work=("train", "read"), precisions=("bf16",), rounds=7, compile=True)
    words = command(config).split()
    assert words[:4] == ["alight", "bench", "train", "read"]
    assert parse("bench", words[2:])[0] == config


def test_without_the_repository_the_command_says_where_the_benchmarks_are(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("alight.bench.REPOSITORY", tmp_path)
    assert (REPOSITORY / "benchmarks" / "baseline.py").is_file()
    with pytest.raises(InputError, match="in a copy of the repository"):
        import_module("alight.bench").run(BenchConfig())


def test_both_ways_of_the_tokenizers_gradient_agree(monkeypatch):
    """The contenders leave the same gradients before they clear them."""
    kept = []
    zero_grad = torch.nn.Module.zero_grad

    def keep(module, *_):
        if isinstance(module, VAVAE):
            kept.append([parameter.grad.clone() for parameter in module.parameters()])
        zero_grad(module)

    monkeypatch.setattr(torch.nn.Module, "zero_grad", keep)
    architecture = {"latent_channels": 4, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    contenders = tokenizer_training(cases.Setting(CPU, "fp32", batch=2), 32, **architecture)
    for contender in contenders:
        contender.run()
    plain, own = kept
    scale = max(gradient.abs().max() for gradient in plain)
    for expected, gradient in zip(plain, own, strict=True):  # batch statistics are of the batch, so alike in both
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-4 * float(scale))
