"""The first ten losses of small recipes, recorded: a change that is not meant to move a number must not move one."""

import json
import platform
import tempfile
from pathlib import Path

import pytest
import torch

from alight.config import ExtractLatentsConfig, TrainFoundationConfig, TrainTokenizerConfig, TrainTransformerConfig
from alight.config.recipes import validate
from alight.runtime.files import file_hash
from alight.runtime.run_log import read_log
from alight.stages import extract_latents, train_foundation, train_tokenizer, train_transformer

RECORDED = Path(__file__).parents[1] / "data" / "first_losses.json"


def processor():
    """The kind of the processor: its numbers where the system tells them, since kernels are chosen by the kind."""
    told = Path("/proc/cpuinfo")
    first = told.read_text().split("\n\n")[0].splitlines() if told.exists() else []
    named = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first)}
    numbers = [named.get(name, "?") for name in ("vendor_id", "cpu family", "model", "stepping")]
    return f"{platform.machine()} {' '.join(numbers)}, {torch.backends.cpu.get_cpu_capability()}"


MACHINE = f"torch {torch.__version__}, {processor()}"
DIGITS = {"source": "digits", "size": 32}
TEN = {"steps": 10, "log_every": 1, "global_batch_size": 8}
FOUNDATION = {"model": {"hidden_size": 24, "num_layers": 2, "num_heads": 2, "patch_size": 8}}
TOKENIZER = {"latent_channels": 4, "block_out_channels": [8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4}
PLAIN = {"perceptual_weight": 0, "adversarial_weight": 0}
TRANSFORMER = {"preset": None, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "patch_size": 2}
ADVERSARIAL = {"perceptual_weight": 0, "adversarial_weight": 0.5, "adversarial_start_step": 4}


def foundation(folder, **values):
    config = {"images": DIGITS, "training": TEN | {"ema_decay": None}, "output": folder, "device": "cpu"} | FOUNDATION
    train_foundation.run(validate(TrainFoundationConfig, config | values, "test"))
    return folder


def tokenizer(folder, model=None, **values):
    config = {"images": DIGITS, "model": TOKENIZER | (model or {}), "reconstruction": PLAIN, "training": TEN}
    train_tokenizer.run(validate(TrainTokenizerConfig, config | {"output": folder, "device": "cpu"} | values, "test"))
    return folder


def transformer(folder, latents, model=None, training=None, **values):
    config = {"latents": latents, "model": TRANSFORMER | (model or {}), "training": TEN | (training or {})}
    train_transformer.run(
        validate(TrainTransformerConfig, config | {"output": folder, "device": "cpu"} | values, "test")
    )
    return folder


def outcome(folder):
    """The scalars of every step that do not depend on time, and the weights after the last."""
    timed = ("seconds", "images_per_second", "mfu", "memory")
    lines = read_log(folder / "training")
    steps = [{name: value for name, value in line.items() if not name.startswith(timed)} for line in lines]
    return {"steps": steps, "weights": file_hash(next(folder.glob("*model.safetensors")))}


def measure(root):
    """Ten steps of every recipe, by name."""
    aligned = {"foundation": str(foundation(root / "classifier")), "weight": 0.1}
    runs = {
        "foundation, classifier": root / "classifier",
        "foundation, masked autoencoder": foundation(root / "mae", task="masked_autoencoder"),
        "tokenizer": tokenizer(root / "plain", alignment={"foundation": None}),
        "tokenizer, aligned": tokenizer(root / "aligned", alignment=aligned),
        "tokenizer, aligned and adversarial": tokenizer(root / "gan", alignment=aligned, reconstruction=ADVERSARIAL),
    }
    options = {"images": DIGITS, "tokenizer": root / "aligned", "output": root / "latents", "device": "cpu"}
    extract_latents.run(validate(ExtractLatentsConfig, options, "test"))
    latents = root / "latents"
    dit = {"norm": "layer_norm", "feed_forward": "gelu", "rope": False, "qk_norm": True}
    flow = {"path": "vp", "prediction": "noise", "time_sampling": "uniform"}
    runs |= {
        "transformer": transformer(root / "a", latents),
        "transformer, in parts": transformer(root / "b", latents, training={"micro_batch_size": 4}),
        "transformer, as DiT": transformer(root / "c", latents, model=dit, flow=flow),
    }
    return {name: outcome(folder) for name, folder in runs.items()}


def test_the_first_ten_losses_are_what_they_were(tmp_path):
    recorded, found = json.loads(RECORDED.read_text()), measure(tmp_path)
    assert found.keys() == recorded["runs"].keys()
    exact = recorded["machine"] == MACHINE
    for name, before in recorded["runs"].items():
        now = found[name]
        assert [line["step"] for line in now["steps"]] == list(range(1, 11)), name
        for old, new in zip(before["steps"], now["steps"], strict=True):
            for key, value in old.items():
                # other processors sum in another order, and within ten steps the last digits grow
                same = new[key] == value if exact else new[key] == pytest.approx(value, rel=0.02, abs=1e-4)
                assert same, (name, key, old["step"], value, new[key])
        assert now["weights"] == before["weights"] or not exact, name


if __name__ == "__main__":  # to record them, where a number is meant to change
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        RECORDED.write_text(json.dumps({"machine": MACHINE, "runs": measure(Path(place))}, indent=1) + "\n")
