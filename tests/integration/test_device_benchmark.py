"""`alight bench accelerator`: every part runs, on any device, and the record says what was measured with what."""

import json
import re
from typing import get_args

import pytest
import torch

from alight.options import AcceleratorPart


@pytest.mark.slow
def test_every_part_runs_at_toy_size(alight):
    result = alight("bench", "accelerator", "--dry-run", "True", "--device", "cpu", "--json", timeout=600)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    rows = found["rows"]
    assert not [row for row in rows if row["contender"] == "failed"]
    measured = {row["work"] for row in rows if row["ms"]}
    assert {"matrix product", "train LightningDiT-S/1", "sample, 3 steps", "encode 32 px", "decode 32 px"} <= measured
    assert {"train tokenizer with discriminator", "train tokenizer without discriminator"} <= measured
    assert {"extract latents, first time", "extract latents, second time"} <= measured
    ways = {row["contender"] for row in rows if row["work"].startswith("train Lightning")}
    assert ways == {"eager", "compiled", "DDP, compiled", "FSDP2, compiled"}
    (difference,) = (row for row in rows if row["work"].startswith("difference") and row["precision"] == "fp32")
    of_loss, of_gradient = map(float, re.findall(r"(\d\.\de[+-]\d+)", difference["remark"]))
    assert max(of_loss, of_gradient) < 1e-4  # compiled and eager
    for condition in (
        "torch " + torch.__version__,
        "Commit: ",
        "`alight bench accelerator --dry-run True`",
        "Toy sizes",
    ):
        assert condition in found["record"]


def test_parts_can_be_chosen_and_others_are_refused(alight):
    result = alight("bench", "accelerator", "ceilings", "--dry-run", "True", "--device", "cpu", "--json")
    assert result.returncode == 0, result.stderr
    assert {row["work"] for row in json.loads(result.stdout)["rows"]} == {"matrix product", "copy in memory"}
    refused = alight("bench", "accelerator", "training,sampling")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert get_args(AcceleratorPart)[0] in refused.stderr


def test_parts_that_would_begin_too_late_are_named(alight):
    options = ("--dry-run", "True", "--device", "cpu", "--minutes", "1e-9")
    result = alight("bench", "accelerator", "ceilings", *options)
    assert result.returncode == 0, result.stderr
    assert "Left out for want of time: ceilings." in result.stdout
