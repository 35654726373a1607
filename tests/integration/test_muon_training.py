"""Training with Muon: in one process and in several, interrupted, planned, and of a tokenizer."""

import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from alight.config import MuonConfig, OptimizerConfig, TrainTokenizerConfig, TrainTransformerConfig
from alight.runtime.distributed import Processes
from alight.stages import train_tokenizer, train_transformer
from alight.training.optimizer import make_optimizer, muon_matrices, optimizer_step
from alight.training.parallel import replicate, shard, whole
from helpers.models import TOKENIZER, tiny_transformer
from helpers.runs import losses, stopping_after, train_in_processes
from helpers.written import WEIGHTS, largest_difference, same_weights, write_latents

MODEL = {"preset": None, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "patch_size": 1}
STEPS = 6


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("latents"), count=40)


def configure(latents, output, training=None, **muon):
    options = {"steps": STEPS, "global_batch_size": 8, "log_every": 1, "ema_decay": 0.9, "checkpoint_every": 3}
    optimizer = {"name": "muon", "lr": 1e-2, "warmup_steps": 2, "weight_decay": 0.01, "muon": muon}
    values = {"latents": latents, "output": output, "device": "cpu", "model": MODEL, "optimizer": optimizer}
    return TrainTransformerConfig.model_validate(values | {"training": options | (training or {})})


@pytest.fixture(scope="module")
def alone(latents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    train_transformer.run(configure(latents, folder))
    return folder


def test_it_begins_as_adamw_and_goes_another_way(latents, alone, tmp_path):
    config = configure(latents, tmp_path)
    optimizer = config.optimizer.model_copy(update={"name": "adamw"})
    train_transformer.run(config.model_copy(update={"optimizer": optimizer}))
    assert not same_weights(alone, tmp_path)
    assert losses(alone)[0] == losses(tmp_path)[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_was_stopped_goes_on_to_the_bit(latents, tmp_path, monkeypatch, precision):
    train_transformer.run(configure(latents, tmp_path / "whole", precision=precision))
    parts = configure(latents, tmp_path / "parts", precision=precision)
    with stopping_after(monkeypatch, 4):
        train_transformer.run(parts)
    train_transformer.run(parts)
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


@pytest.mark.parametrize("sharding", [pytest.param("replicate", marks=pytest.mark.exhaustive), "shard"])
def test_two_processes_train_like_one(latents, alone, tmp_path, sharding):
    train_in_processes(configure(latents, tmp_path, {"sharding": sharding}), 2)
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-4)
    # sums in another order, amplified where the gradient has small singular values; weights move by up to 6e-2
    assert largest_difference(alone, tmp_path) < 1e-3


def test_a_run_goes_on_sharded(latents, alone, tmp_path):
    config = configure(latents, tmp_path, {"sharding": "shard"})
    train_transformer.run(config)  # one process holds all
    for leftover in (*tmp_path.glob("*.json"), tmp_path / WEIGHTS, tmp_path / "training" / "step-00000006.pt"):
        leftover.unlink()  # as if it had been stopped after the third step
    resumed = train_in_processes(config, 2)
    assert "going on from step 3 of 6" in resumed.stderr
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-4)
    assert largest_difference(alone, tmp_path) < 1e-3


# --- the same gradients in every layout ---------------------------------------------------------------------------


def step_weights(layout, processes):
    """The weights of a transformer after steps with the same gradient in every process."""
    model, device = tiny_transformer(num_layers=2), torch.device("cpu")
    if layout == "shard":
        shard(model, model.blocks, Processes(dist.get_rank(), processes, device))
    muon = MuonConfig(matrices="all", step_size="product", precision="bf16")
    config = OptimizerConfig(name="muon", weight_decay=0.1, muon=muon)
    optimizer = make_optimizer(model.named_parameters(), config)
    forward = replicate(model, Processes(0, processes, device)) if layout == "replicate" else model
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        x, t = torch.randn(4, 4, 4, 4, generator=generator), torch.rand(4, generator=generator)
        forward(x, t, torch.tensor([0, 1, 2, 10])).square().mean().backward()
        optimizer_step(optimizer, 1e-2, None)
    return {name: whole(parameter.detach()) for name, parameter in model.named_parameters()}


def compare_layouts(rank, folder):
    expected = step_weights("alone", 1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for layout in ("replicate", "shard"):
        found = step_weights(layout, 2)
        differing = [name for name in expected if not torch.equal(found[name], expected[name])]
        (folder / f"{layout}-{rank}.json").write_text(json.dumps(differing))
    dist.destroy_process_group()


def test_replicated_and_sharded_steps_are_those_of_one_process_to_the_bit(tmp_path):
    """Also in bfloat16: the gradients are the same, and each matrix is orthogonalised by one process for all."""
    torch.multiprocessing.spawn(compare_layouts, (tmp_path,), nprocs=2)
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert found == {"replicate-0": [], "replicate-1": [], "shard-0": [], "shard-1": []}


# --- the rest -----------------------------------------------------------------------------------------------------


def test_a_tokenizer_trains_and_goes_on_to_the_bit(tmp_path, monkeypatch):
    def configure(output):
        return TrainTokenizerConfig.model_validate(
            {
                "output": tmp_path / output,
                "images": {"source": "digits", "size": 32},
                "device": "cpu",
                "model": TOKENIZER | {"block_out_channels": (8, 8, 16), "norm_num_groups": 4},
                "alignment": {"foundation": None},
                "reconstruction": {"perceptual_weight": 0, "adversarial_start_step": 1},
                "optimizer": {"name": "muon", "lr": 1e-3},
                "training": {"steps": 4, "global_batch_size": 8, "log_every": 1, "checkpoint_every": 2},
                "preview_images": 0,
            }
        )

    train_tokenizer.run(configure("whole"))
    with stopping_after(monkeypatch, 5):  # of two optimizers
        train_tokenizer.run(configure("parts"))
    train_tokenizer.run(configure("parts"))
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_its_memory_is_planned(alight, tmp_path):
    recipe = tmp_path / "recipe.json"
    config = configure("nowhere", tmp_path / "output", {"ema_decay": None, "sharding": "shard"})
    recipe.write_text(json.dumps({"job": "transformer train", **config.model_dump(mode="json")}))
    shape = ("--latent-shape", 4, 4, 4, "--num-classes", 10, "--num-images", 80)
    command = ("plan", "--recipe", recipe, *shape, "--processes", 2, "--seconds", 3, "--json")
    result = alight(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    model = tiny_transformer(hidden_size=32, num_layers=2)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    taken = sum(sizes[name] for name in muon_matrices(model.named_parameters(), "blocks"))
    assert plan["parameters"] == sum(sizes.values())
    state = 4 * (2 * sum(sizes.values()) - taken)  # bytes
    assert plan["memory"]["optimizer"] == state // 2
    assert plan["checkpoint_size"] == 4 * sum(sizes.values()) + state
    assert any("orthogonalised all matrices" in note for note in plan["notes"])


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [("step_size", "rms", "match_rms"), ("momentum", 1, "less than 1"), ("lr", 1, "unknown key 'optimizer.muon.lr'")],
)
def test_bad_settings_of_a_recipe_are_refused(refused, tmp_path, option, value, told):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"job": "transformer train", "optimizer": {"muon": {option: value}}}))
    assert told in refused("transformer", "train", "--config", recipe, cwd=tmp_path)
