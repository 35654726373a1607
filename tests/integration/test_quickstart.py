"""The whole arrow through the command line: artifacts, report, running again, interrupting and resuming."""

import json
import signal
import time

import torch
from safetensors.torch import load_file

from alight import VAVAE, LightningDiTPipeline
from alight.artifacts import read_artifact
from helpers import warm
from helpers.written import WEIGHTS

STAGES = ("foundation", "tokenizer", "latents", "transformer", "samples", "report")


def test_every_stage_leaves_its_artifact(finished_quickstart):
    folder, result = finished_quickstart
    for stage in STAGES:
        artifact = read_artifact(folder / stage, stage)
        assert artifact.config["seed"] == 0
        assert stage in result.stderr
    assert result.stdout.strip() == f"Report: {folder}/report/report.html"


def test_the_report_holds_the_figures(finished_quickstart):
    folder, _ = finished_quickstart
    report = json.loads((folder / "report" / "report.json").read_text())
    for figure in ("seconds_total", "reconstruction_psnr", "generated_label_accuracy", "real_label_accuracy"):
        assert isinstance(report[figure], float), figure
    assert abs(report["real_label_accuracy"] - 0.953) < 0.005  # 283 of 297 real held-out digits
    assert report["seconds_total"] > 0
    conditions = {figure["name"]: figure["conditions"] for figure in report["figures"]}
    assert conditions["generated_label_accuracy"]["images"] == 20
    assert conditions["generated_label_accuracy"]["NFE"] > 0
    assert {curve["title"].split(":")[0] for curve in report["curves"]} == {"Tokenizer", "Transformer"}
    page = (folder / "report" / "report.html").read_text()
    assert "<html" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_artifacts_open_as_documented(finished_quickstart):
    folder, _ = finished_quickstart
    vae = VAVAE.from_pretrained(folder / "tokenizer")
    assert vae.has_latents_statistics
    pipeline = LightningDiTPipeline.from_pretrained(folder / "pipeline")
    images = pipeline(class_labels=["3", 7], num_inference_steps=2, guidance_scale=2.0, seeds=[0, 1]).images
    assert [image.size for image in images] == [(32, 32), (32, 32)]


def test_running_again_says_that_it_is_finished(finished_quickstart, alight, tiny_quickstart):
    folder, _ = finished_quickstart
    before = (folder / "transformer" / WEIGHTS).stat().st_mtime_ns
    again = alight(*tiny_quickstart, "--output", folder)
    assert again.returncode == 0
    assert "finished already" in again.stderr
    assert again.stdout.endswith("report.html (finished already, nothing was done)\n")
    assert (folder / "transformer" / WEIGHTS).stat().st_mtime_ns == before


def test_another_configuration_in_the_same_folder_is_refused(finished_quickstart, refused, tiny_quickstart):
    folder, _ = finished_quickstart
    message = refused(*tiny_quickstart, "--output", folder, "--seed", 1)
    assert "seed: 0 -> 1" in message
    assert "another --output" in message


def test_interrupt_and_resume_equal_an_uninterrupted_run(finished_quickstart, alight, tmp_path, tiny_quickstart):
    """SIGINT while the transformer trains: exit code 130, and the same weights in the end, bit for bit."""
    reference, _ = finished_quickstart
    options = [*tiny_quickstart, "--output", tmp_path / "run"]
    process = warm.AlightProcess([str(option) for option in options])
    log = tmp_path / "run" / "transformer" / "training" / "log.jsonl"
    deadline = time.monotonic() + 240
    while not log.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run" / "transformer" / "alight.json").exists()

    resumed = alight(*options)
    assert resumed.returncode == 0, resumed.stderr
    one, two = (load_file(folder / "transformer" / WEIGHTS) for folder in (reference, tmp_path / "run"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 6
