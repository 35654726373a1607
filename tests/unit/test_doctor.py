"""What the doctor makes of logs, checks that fail, and this machine."""

import json
import math
from pathlib import Path

import pytest
import torch

from alight.artifacts import write_manifest
from alight.config import TokenizerModelConfig, TrainTransformerConfig
from alight.config.recipes import load_config
from alight.doctor.environment import disk, packages
from alight.doctor.findings import Examination, Finding, attempt
from alight.doctor.group_check import group_findings
from alight.doctor.recipe_needs import needs
from alight.doctor.run_check import run_findings
from alight.doctor.training_log import symptoms
from alight.runtime.errors import InputError
from alight.runtime.hardware import PeakMemory, available_cores, free_disk, free_memory, matrix_product_rate

CPU = torch.device("cpu")


def log_of(mse, **others):
    """Lines every 100 steps; `others` are functions of the line's number."""
    return [
        {"step": 100 * (i + 1), "mse": mse(i), "grad_norm": 1.0, **{name: value(i) for name, value in others.items()}}
        for i in range(100)
    ]


def falling(i):
    return 0.3 + 0.7 * math.exp(-i / 10)


def sick(lines):
    return [(finding.verdict, finding.subject) for finding in symptoms(lines) if finding.verdict != "ok"]


def write_run(folder, lines, config=None):
    (folder / "training").mkdir(parents=True)
    (folder / "training" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if config is not None:
        write_manifest(folder, "transformer", config.model_dump(mode="json"), "0")
    return folder


def test_a_healthy_log_has_no_symptoms():
    healthy = log_of(falling, kl=lambda i: 100 + i, discriminator_accuracy=lambda i: 0.7)
    assert sick(healthy) == []


def test_a_rising_loss_is_a_problem_and_a_spike_is_not():
    assert sick(log_of(lambda i: falling(i) + 0.01 * i)) == [("problem", "loss")]
    assert sick(log_of(lambda i: 2.0 if i == 95 else falling(i))) == []


def test_values_that_are_not_finite_are_holes_in_the_log():
    lines = log_of(falling)
    del lines[50]["mse"]
    assert sick(lines) == [("warning", "not finite")]
    lines[-1]["grad_norm"] = math.nan
    assert sick(lines) == [("problem", "not finite")]


@pytest.mark.parametrize("since", [20, 85])
def test_a_gradient_that_vanishes_while_the_loss_stands_still_is_a_problem(since):
    def until(value, after):
        return lambda i: value(i) if i < since else after

    stuck = log_of(until(falling, 0.4), grad_norm=until(lambda i: 0.5, 0.0))
    assert ("problem", "gradient") in sick(stuck)
    assert f"after step {100 * since:,}" in next(f.sentence for f in symptoms(stuck) if f.subject == "gradient")
    learns = log_of(falling, grad_norm=lambda i: 5 * math.exp(-i / 20))  # only smaller
    assert sick(learns) == []
    solved = log_of(lambda i: math.exp(-i), grad_norm=lambda i: math.exp(-i))  # with the loss itself
    assert sick(solved) == []


def test_a_collapsed_posterior_is_a_problem():
    assert sick(log_of(falling, kl=lambda i: 5000 * math.exp(-i / 5))) == [("problem", "KL")]


@pytest.mark.parametrize(("accuracy", "said"), [(0.995, "every reconstruction"), (0.5, "no better than chance")])
def test_a_game_that_has_been_one_sided_for_long_is_a_warning(accuracy, said):
    found = [f for f in symptoms(log_of(falling, discriminator_accuracy=lambda i: accuracy)) if f.verdict != "ok"]
    assert [f.subject for f in found] == ["discriminator"]
    assert said in found[0].sentence
    assert sick(log_of(falling, discriminator_accuracy=lambda i: accuracy if i > 95 else 0.7)) == []  # not long


def test_the_first_loss_tells_latents_that_are_not_normalised():
    assert sick(log_of(lambda i: 17 * falling(i))) == [("problem", "latents")]
    assert sick(log_of(lambda i: 17 * falling(i), loss=lambda i: 0.9)) == []  # average velocities, guided


def test_a_run_on_a_known_curve_is_well_and_one_off_it_is_not(tmp_path):
    recipe = "imagenet/transformer_xl_64ep"

    def verdict(name, offset):
        lines = [
            {"step": step, "mse": 0.305 + 0.01 * math.log(80_000 / step) + offset}
            for step in range(2_000, 80_001, 500)
        ]
        folder = write_run(tmp_path / name, lines, load_config(recipe))
        findings = {finding.subject: finding for finding in run_findings(folder, recipe)}
        assert findings["configuration"].verdict == "ok"
        return findings["known curve"].verdict

    assert verdict("well", 0.0) == "ok"
    assert verdict("high", 0.03) == "problem"
    assert verdict("low", -0.03) == "warning"


def test_differences_from_the_recipe_are_listed(tmp_path):
    recipe = "imagenet/transformer_xl_64ep"
    config = load_config(recipe, {"optimizer.lr": 1e-3, "flow.cosine_weight": 0})
    findings = list(run_findings(write_run(tmp_path / "run", log_of(falling), config), recipe))
    said = [f.sentence for f in findings if f.subject == "configuration"]
    assert len(said) == 2
    assert "flow.cosine_weight: 1.0 -> 0.0" in said[0]
    assert "optimizer.lr: 0.0002 -> 0.001" in said[1]


def test_a_recipe_for_another_command_is_a_problem(tmp_path):
    folder = write_run(tmp_path / "run", log_of(falling), TrainTransformerConfig())
    findings = [f for f in run_findings(folder, "imagenet/tokenizer_f16d32") if f.subject == "configuration"]
    assert [f.verdict for f in findings] == ["problem"]


def test_the_configuration_of_an_unfinished_run_comes_from_its_checkpoint(tmp_path):
    folder = write_run(tmp_path / "run", log_of(falling))
    torch.save(
        {"config": TrainTransformerConfig(seed=7).model_dump(mode="json")}, folder / "training/step-00000100.pt"
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("job: transformer train\n")
    said = [f.sentence for f in run_findings(folder, str(recipe)) if f.subject == "configuration"]
    assert said == ["seed: 0 -> 7 (recipe -> run)."]


def test_a_folder_without_a_log_is_refused(tmp_path):
    with pytest.raises(InputError, match="There is no training log"):
        list(run_findings(tmp_path, None))


def test_a_recipe_is_told_every_file_that_it_lacks(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    findings = list(needs("imagenet/tokenizer_f16d32"))
    assert [f.subject for f in findings] == ["recipe", "foundation", "weights", "weights"]
    assert "vgg16-397923af.pth" in findings[2].sentence
    Path("weights").mkdir()
    Path("weights/vgg16-397923af.pth").write_bytes(b"another file")
    assert "SHA-256" in next(f for f in needs("imagenet/tokenizer_f16d32") if "VGG16" in f.sentence).sentence


def test_the_quickstart_needs_nothing():
    assert [finding.verdict for finding in needs("quickstart")] == ["ok"]


def test_a_check_that_breaks_is_a_problem_and_keeps_what_it_had_found():
    def breaking():
        yield Finding("ok", "first", "Found.")
        raise RuntimeError("a broken\nlibrary")

    kept, broken = attempt("second", breaking)
    assert kept.verdict == "ok"
    assert (broken.verdict, broken.subject) == ("problem", "second")
    assert "a broken library" in broken.sentence


def test_only_problems_make_the_exit_code():
    well, odd, bad = (Finding(verdict, "x", "y.") for verdict in ("ok", "warning", "problem"))
    assert Examination((well, odd)).exit_code == 0
    assert Examination((well, odd, bad)).exit_code == 1
    assert "\033" not in str(Examination((bad,)))  # not a terminal


def test_these_packages_are_in_their_ranges_and_others_would_not_be(monkeypatch):
    assert {finding.verdict for finding in packages()} == {"ok"}
    monkeypatch.setattr("alight.doctor.environment.metadata.requires", lambda name: ["torch>=99", "no-such-package"])
    assert [f.verdict for f in packages() if f.subject == "packages"] == ["problem", "problem"]


def test_a_folder_that_is_not_there_yet_is_judged_by_the_one_above(tmp_path):
    (found,) = disk("output", tmp_path / "a" / "b")
    assert found.verdict in ("ok", "warning")
    assert not (tmp_path / "a").exists()
    (refused,) = disk("output", Path("/proc/none"))
    assert refused.verdict == "problem"


def test_the_machine_is_measured():
    assert available_cores() >= 1
    assert free_disk(Path("no/such/folder")) > 0
    assert free_memory(CPU) > 1 << 20
    assert matrix_product_rate(CPU, "fp32") > 1e8


def test_peak_memory_sees_what_is_freed_again():
    with PeakMemory(CPU) as peak:
        block = torch.ones(16 << 20)  # 64 MiB
        torch.ones(256, 256).mm(torch.ones(256, 256))
        torch.linalg.matrix_power(torch.ones(400, 400), 30)  # some time, in which the watch looks
        del block
    assert 60 << 20 < peak.growth < 96 << 20


@pytest.mark.parametrize(
    ("widths", "groups", "words"),
    [
        ((16, 32, 64), 16, "leaves 1 channel per group at width 16"),
        ((64, 128), 32, "leaves 2 channels per group at width 64"),
    ],
)
def test_groups_of_few_channels_are_a_warning(widths, groups, words):
    (finding,) = group_findings(TokenizerModelConfig(block_out_channels=widths, norm_num_groups=groups))
    assert finding.verdict == "warning"
    assert words in finding.sentence
    assert f"to {widths[0] // 4}" in finding.fix


def test_the_default_leaves_groups_of_four_channels():
    for widths, groups in (((128, 128, 256, 512), 32), ((16, 32, 64), 4), ((64, 64), 16), ((6, 6), 1), ((24, 36), 6)):
        model = TokenizerModelConfig(block_out_channels=widths)
        assert model.groups == groups
        assert model.model_dump(mode="json")["norm_num_groups"] == groups  # as records of earlier versions have it
        assert not list(group_findings(model))


def test_recipes_and_runs_are_checked_for_small_groups(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    model = "{block_out_channels: [16, 32, 64], norm_num_groups: 16}"
    recipe.write_text(f"job: tokenizer train\nimages: {{size: 64}}\nmodel: {model}\nalignment: {{foundation: null}}\n")
    assert "leaves 1 channel per group" in " ".join(finding.sentence for finding in needs(str(recipe)))
