"""`alight plan` on tiny recipes: real steps are measured, and the arithmetic that follows from them is right."""

import json
import time
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from alight.config import PlanConfig, TrainFoundationConfig
from alight.config.recipes import load_config
from alight.models.lightning_dit import LightningDiT
from alight.plan.estimate import choose, growing_divisors, micro_batch_cost
from alight.plan.inputs import Inputs
from alight.plan.measure import Cost, at_extent, sweep
from alight.plan.untrained import LatentShape, untrained_foundation
from alight.plan.workload import TokenizerWorkload, TransformerWorkload
from alight.runtime.errors import InputError
from alight.stages import train_foundation
from alight.training.flops import count_flops

TRANSFORMER = """
job: transformer train
latents: nowhere
model: {preset: null, hidden_size: 48, num_layers: 6, num_heads: 3, patch_size: 1}
training: {steps: 1000, global_batch_size: 8, ema_decay: 0.999}
device: cpu
"""
TOKENIZER = """
job: tokenizer train
images: {source: digits, size: 32}
model: {latent_channels: 4, block_out_channels: [16, 16, 32], layers_per_block: 1, norm_num_groups: 8}
alignment: {foundation: null}
reconstruction: {perceptual_weight: 0, adversarial_weight: 0.5}
training: {steps: 300, global_batch_size: 4, ema_decay: null}
device: cpu
"""


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_transformer_is_planned(alight, tmp_path):
    shape = ("--latent-shape", 4, 8, 8, "--num-classes", 10, "--num-images", 800)
    command = ("plan", "--recipe", write(tmp_path, TRANSFORMER), *shape, "--processes", 2, "--seconds", 15)
    result = alight(*command, "--json", "--quiet", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    model = LightningDiT(8, 4, 48, 6, 3, num_classes=10)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert plan["parameters"] == count
    assert {name: plan["memory"][name] for name in ("weights", "gradients", "optimizer", "average")} == {
        "weights": 4 * count,
        "gradients": 4 * count,
        "optimizer": 8 * count,
        "average": 4 * count,
    }
    assert plan["memory"]["activations"] > 0
    assert [each["size"] for each in plan["micro_batches"]][:2] == [1, 2]
    assert plan["chosen"] in plan["micro_batches"]
    assert plan["images_per_second"] == pytest.approx(2 * plan["chosen"]["images_per_second"])
    assert plan["epoch_seconds"] == pytest.approx(800 / plan["images_per_second"])
    assert plan["total_seconds"] == pytest.approx(1000 * 8 / plan["images_per_second"])
    assert plan["checkpoint_size"] == 16 * count
    assert any("There are no latents at nowhere" in note for note in plan["notes"])

    table = alight(*command, cwd=tmp_path).stdout
    for word in ("parameters", "gradients", "micro-batch", "share of rate", "epoch", "checkpoints", "Reading data"):
        assert word in table


def test_averages_take_memory_and_disk(alight, tmp_path):
    kept = TRANSFORMER.replace("ema_decay: 0.999", "ema_decay: 0.999, power_averages: [0.05, 0.1]")
    command = ("plan", "--recipe", write(tmp_path, kept), "--latent-shape", 4, 8, 8, "--num-classes", 10)
    result = alight(*command, "--seconds", 1, "--json", "--quiet", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    count = plan["parameters"]
    assert plan["memory"]["average"] == 3 * 4 * count
    assert plan["checkpoint_size"] == (4 + 8 + 3 * 4) * count
    assert (plan["snapshots"], plan["snapshot_size"]) == (64, 4 * count)
    assert "64 of 1.0 MiB = 67.0 MiB of averages" in alight(*command, "--seconds", 1, cwd=tmp_path).stdout


def test_a_tokenizer_is_planned(alight, tmp_path):
    result = alight("plan", "--recipe", write(tmp_path, TOKENIZER), "--seconds", 10, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    assert (plan["job"], plan["steps"], plan["scaled_from"]) == ("tokenizer train", 300, [])
    assert plan["num_images"] == 1500  # digits to train on
    assert plan["memory"]["average"] == 0


def test_a_foundation_model_is_planned(alight, refused, tmp_path):
    recipe = tmp_path / "foundation.yaml"
    recipe.write_text(
        "job: foundation train\nimages: {source: digits, size: 32}\n"
        "model: {hidden_size: 48, num_layers: 2, num_heads: 3, patch_size: 8}\n"
        "training: {steps: 100, global_batch_size: 8, ema_decay: null}\ndevice: cpu\n"
    )
    result = alight("plan", "--recipe", recipe, "--seconds", 5, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    model = train_foundation.build_model(load_config(recipe), num_classes=10)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert (plan["job"], plan["steps"], plan["num_images"]) == ("foundation train", 100, 1500)
    assert plan["parameters"] == trained
    assert plan["total_seconds"] == pytest.approx(100 * 8 / plan["images_per_second"])
    assert "runs in one process" in refused("plan", "--recipe", recipe, "--processes", 2)


def aligned_with(foundation, tmp_path):
    recipe = load_config(write(tmp_path, TOKENIZER))
    return recipe.model_copy(
        update={"alignment": recipe.alignment.model_copy(update={"foundation": foundation, "weight": 0.1})}
    )


@pytest.mark.parametrize(
    ("foundation", "width", "origin"),
    [
        ("runs/own_images/foundation", 192, "the recipe own_images/foundation"),
        ("runs/of/nobody", 192, "no shipped recipe makes it"),
        ("made/here", 48, None),
    ],
)
def test_a_foundation_model_that_is_not_there_yet_is_taken_from_its_recipe(tmp_path, foundation, width, origin):
    small = {"hidden_size": 48, "num_layers": 2, "num_heads": 3, "patch_size": 8}
    own = TrainFoundationConfig.model_validate({"output": "made/here", "model": small})
    inputs = Inputs(PlanConfig(), [own])
    work = TokenizerWorkload(aligned_with(foundation, tmp_path), torch.device("cpu"), 32, inputs)
    assert work.parameters - work_without_projection(tmp_path).parameters == 4 * width
    assert any(origin in note for note in inputs.notes) if origin else not inputs.notes


def work_without_projection(tmp_path):
    return TokenizerWorkload(load_config(write(tmp_path, TOKENIZER)), torch.device("cpu"), 32)


def test_latents_that_are_not_there_yet_are_those_of_the_recipe_that_makes_them():
    shape, count = Inputs(PlanConfig(num_images=500)).latents(Path("runs/own_images/latents"))
    assert (shape.shape, count) == ((16, 8, 8), 500)
    shape, count = Inputs(PlanConfig(latent_shape=(4, 2, 2), num_classes=3)).latents(Path("runs/own_images/latents"))
    assert (shape, count) == (LatentShape((4, 2, 2), 3), 1_281_167)
    assert Inputs(PlanConfig()).latents(Path("nowhere"))[0] == LatentShape((32, 16, 16), 1000)


def test_a_model_too_large_for_the_time_is_measured_in_part(alight, tmp_path):
    recipe = write(tmp_path, TRANSFORMER.replace("num_layers: 6", "num_layers: 40"))
    shape = ("--latent-shape", 4, 8, 8, "--num-classes", 10)
    result = alight("plan", "--recipe", recipe, *shape, "--seconds", 0.01, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    assert plan["scaled_from"] == [2, 4]
    model = LightningDiT(8, 4, 48, 40, 3, num_classes=10)
    assert plan["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert any("followed to 40" in note for note in plan["notes"])
    assert len(plan["micro_batches"]) == 1  # the time was up


def test_images_too_large_for_the_time_are_measured_smaller(alight, tmp_path):
    recipe = write(
        tmp_path,
        TOKENIZER.replace("size: 32", "size: 256").replace(
            "norm_num_groups: 8", "norm_num_groups: 8, level_attention: false, mid_block_attention: false"
        ),
    )
    result = alight("plan", "--recipe", recipe, "--seconds", 0.01, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    assert plan["scaled_from"] == [64**2, 128**2]
    whole = TokenizerWorkload(load_config(recipe), torch.device("cpu"), 256)
    assert plan["operations_per_image"] == pytest.approx(whole.flops_per_image, rel=0.02)
    assert plan["parameters"] == whole.parameters


def test_what_cannot_be_planned_is_refused(refused, tmp_path):
    assert "needs a recipe" in refused("plan")
    assert "runs in one process" in refused("plan", "--recipe", "quickstart", "--processes", 2)
    other = tmp_path / "other.yaml"
    for job in ("convert", "tune"):
        other.write_text(f"job: {job}\n")
        assert f"cannot plan 'alight {job}'" in refused("plan", "--recipe", other)
    recipe = write(tmp_path, TRANSFORMER)
    assert "cannot be divided evenly between 3 processes" in refused("plan", "--recipe", recipe, "--processes", 3)


BROKEN = ["", "null", "[]", "3", "{", '{"model_type": 3}', '{"model_type": "vit", "hidden_size": "x"}']


@pytest.mark.parametrize("content", BROKEN)
def test_a_foundation_model_of_wrong_shape_is_refused(tmp_path, content):
    folder = tmp_path / "foundation"
    folder.mkdir()
    (folder / "config.json").write_text(content)
    with pytest.raises(InputError, match="The size of the foundation model"):
        untrained_foundation(str(folder), "own")


def test_a_batch_of_two_thousand_million_is_divided_at_once():
    started = time.process_time()
    assert growing_divisors(2**31 - 1) == [1, 2**31 - 1]
    assert growing_divisors(2**30) == [2**power for power in range(31)]
    assert growing_divisors(12) == [1, 2, 4, 12]
    assert time.process_time() - started < 1


def test_operations_are_counted_as_torch_does():
    model = LightningDiT(8, 4, 48, 2, 3, num_classes=10)
    inputs = torch.randn(2, 4, 8, 8), torch.rand(2), torch.zeros(2, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(*inputs).sum().backward()
    assert count_flops(lambda: model(*inputs).sum().backward()) == counter.get_total_flops() > 0


def test_activations_are_at_least_what_is_saved_for_the_backward_pass(tmp_path):
    recipe = load_config(write(tmp_path, TRANSFORMER.replace("48", "192")))
    work = TransformerWorkload(recipe, LatentShape((4, 16, 16), 10), torch.device("cpu"), 6)
    saved = {}

    def note(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        work.backward(4)
    held = sum(saved.values()) - 4 * work.parameters  # weights are saved as well
    (cost,) = sweep({6: work}, 6, [4], 1 << 40, deadline=0.0)
    assert 0.7 * held < cost.activations < 3 * held


def test_values_at_another_extent_lie_on_a_line():
    assert at_extent({2: 5.0, 4: 9.0}, 28) == 57.0
    assert at_extent({6: 1.5}, 6) == 1.5
    assert at_extent({2: 5.0, 4: 4.9}, 28) == 4.9  # noise


def test_micro_batches_divide_the_batch_and_grow():
    assert growing_divisors(12) == [1, 2, 4, 12]
    assert growing_divisors(7) == [1, 7]


def test_the_smallest_micro_batch_that_is_nearly_as_fast_is_chosen():
    costs = [Cost(1, 1.0, 4.0, 10), Cost(2, 1.2, 4.0, 20), Cost(4, 2.3, 4.0, 40), Cost(8, 4.0, 4.0, 80)]
    judged = tuple(micro_batch_cost(cost, own=8, ideal=0.25, free=50) for cost in costs)
    assert [each.fits for each in judged] == [True, True, True, False]
    assert judged[0].images_per_second == pytest.approx(8 / (8 * 1.0 + 4.0))
    assert judged[0].share_of_rate == pytest.approx(0.25 * 8 / 12)
    assert choose(judged).size == 2  # 8 would be faster, but does not fit; 4 is hardly faster
