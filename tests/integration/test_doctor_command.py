"""`alight doctor` through the real command line: what is well, and what is not."""

import json
import os
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src"


def findings(result):
    return {finding["subject"]: finding for finding in json.loads(result.stdout)["findings"]}


def test_a_sound_installation(alight, tmp_path):
    result = alight("doctor", cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert "0 problems" in result.stdout
    assert "\033" not in result.stdout  # no colour in a pipe
    assert "network" not in result.stdout  # unless it is asked for


def test_a_broken_torchvision_is_named_with_its_fix(alight, tmp_path):
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('libc10_cuda.so: cannot open shared object file')\n")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    result = alight("doctor", "--json", "--recipe", "imagenet/tokenizer_f16d32", cwd=tmp_path, PYTHONPATH=path)
    assert result.returncode == 1, result.stderr
    found = findings(result)["torchvision"]
    assert found["verdict"] == "problem"
    assert "libc10_cuda.so" in found["sentence"]
    assert "pip uninstall torchvision" in found["fix"]
    assert findings(result)["packages"]["verdict"] == "ok"  # the other checks had their say


def test_missing_files_of_a_recipe(alight, tmp_path):
    result = alight("doctor", "--recipe", "imagenet/tokenizer_f16d32", cwd=tmp_path)
    assert result.returncode == 1
    assert "There is no file weights/vgg16-397923af.pth" in result.stdout
    assert "Traceback" not in result.stderr


def test_a_recipe_that_does_not_load_is_a_finding(alight, tmp_path):
    result = alight("doctor", "--recipe", "imagenet/transformer_xxl", "--json", cwd=tmp_path)
    assert result.returncode == 1
    assert "There is no recipe" in findings(result)["recipe"]["sentence"]


def test_the_network_is_asked_on_demand_alone(alight, tmp_path):
    result = alight("doctor", "--network", "--json", cwd=tmp_path)  # the fixture sets HF_HUB_OFFLINE
    assert result.returncode == 0, result.stderr
    assert "HF_HUB_OFFLINE" in findings(result)["network"]["sentence"]


def test_a_sick_log(alight, tmp_path):
    (tmp_path / "run" / "training").mkdir(parents=True)
    lines = [{"step": 100 * i, "mse": 0.3 + 0.01 * i, "grad_norm": 1.0} for i in range(1, 100)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 10000, "ms'  # cut off by a crash
    (tmp_path / "run" / "training" / "log.jsonl").write_text(text)
    result = alight("doctor", "--run", "run", "--json", cwd=tmp_path)
    assert result.returncode == 1
    assert "mse rises" in findings(result)["loss"]["sentence"]


def test_a_finished_run_and_its_tokenizer(alight, finished_quickstart, tmp_path):
    folder, _ = finished_quickstart
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("job: transformer train\n")
    result = alight("doctor", "--run", folder / "transformer", "--recipe", recipe, "--json", cwd=tmp_path)
    assert any(
        finding["subject"] == "configuration" and "model.num_layers: None -> 2" in finding["sentence"]
        for finding in json.loads(result.stdout)["findings"]
    )
    result = alight("doctor", "--images", "digits", "--tokenizer", folder / "tokenizer", "--json", cwd=tmp_path)
    found = findings(result)
    assert "dB" in found["reconstruction"]["sentence"]
    assert found["latents"]["verdict"] == "ok"  # even four steps leave the right statistics


def test_images_and_tokenizer_go_together(refused):
    assert "name it, too: --tokenizer FOLDER" in refused("doctor", "--images", "digits")


@pytest.mark.parametrize("command", ["plan", "doctor"])
def test_help_lists_the_options(alight, command):
    result = alight(command, "--help")
    assert result.returncode == 0
    assert "--recipe" in result.stdout
    assert "--json" in result.stdout
