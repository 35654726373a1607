"""Gradients that are not finite, where a step has several optimizers, and where the answer comes late."""

import logging

import pytest
import torch
from torch import nn

from alight.config import OptimizerConfig, TrainingConfig, TrainTokenizerConfig
from alight.runtime.distributed import Processes
from alight.stages import train_tokenizer
from alight.training.finite import FiniteCheck
from alight.training.optimizer import make_optimizer, optimizer_step
from alight.training.run import TrainingRun

NAN, FINE = torch.tensor(float("nan")), torch.tensor(1.0)


@pytest.mark.parametrize("norms", [(NAN, NAN), (NAN, FINE), (FINE, NAN)])
def test_a_step_counts_once_however_many_optimizers_it_has(tmp_path, norms, caplog):
    caplog.set_level(logging.WARNING)
    settings = TrainingConfig(steps=1, on_non_finite="skip", max_non_finite=2)
    with TrainingRun(tmp_path, {}, settings, {"model": nn.Linear(1, 1)}, "test") as run:
        for _ in run.steps():
            run.check(*norms)
    assert "(1 so far)" in caplog.text


def test_finite_norms_pass():
    check = FiniteCheck()
    assert check.next(torch.stack([FINE, FINE]))
    assert check.last()


def test_a_tokenizer_with_a_discriminator_is_checked_once_in_a_step(tmp_path, monkeypatch):
    """With one check for each optimizer, the second waited for the first on an accelerator."""
    checked = []
    monkeypatch.setattr(TrainingRun, "check", lambda run, *norms: checked.append(len(norms)))
    config = TrainTokenizerConfig.model_validate(
        {
            "output": tmp_path / "tokenizer",
            "device": "cpu",
            "images": {"source": "digits", "size": 32},
            "model": {
                "latent_channels": 4,
                "block_out_channels": (8, 8),
                "norm_num_groups": 4,
                "layers_per_block": 1,
                "level_attention": False,
                "mid_block_attention": False,
            },
            "alignment": {"weight": 0},
            "reconstruction": {"adversarial_start_step": 1, "perceptual_weight": 0},
            "training": {"steps": 3, "global_batch_size": 4},
            "preview_images": 0,
        }
    )
    train_tokenizer.run(config)
    assert checked == [1, 2, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bad", [{0}, {2}, {5}, {1, 5}])
def test_a_gpu_answers_late_and_misses_none(tmp_path, bad, caplog):
    """The last step, too, which has no step after it."""
    caplog.set_level(logging.WARNING)
    device = torch.device("cuda", torch.cuda.device_count() - 1)  # not always the current one
    model = nn.Linear(1, 1, device=device)
    optimizer = make_optimizer(model.named_parameters(), OptimizerConfig(lr=0.1))
    settings = TrainingConfig(steps=6, on_non_finite="skip", max_non_finite=9)
    with TrainingRun(tmp_path, {}, settings, {"model": model}, "test", Processes(0, 1, device)) as run:
        for step in run.steps():
            factor = float("nan") if step in bad else 1.0
            (factor * model(torch.ones(1, 1, device=device))).sum().backward()
            run.check(optimizer_step(optimizer, 0.1, 1.0))
    assert f"({len(bad)} so far)" in caplog.text
    assert f"({len(bad) + 1} so far)" not in caplog.text
    assert all(parameter.isfinite().all() for parameter in model.parameters())
