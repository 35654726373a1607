"""`alight evaluate`: the same figures from every kind of images, reference and number of processes."""

import json
import shutil
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

from alight import VAVAE, LightningDiTPipeline
from alight.artifacts import WEIGHTS_FILE, read_artifact, write_manifest
from alight.cli import parse
from alight.config import ImagesConfig, TuneConfig
from alight.config.commands import COMMANDS
from alight.config.recipes import validate
from alight.data.loading import open_dataset
from alight.evaluation.label_figures import pixels_of
from alight.metrics import FeatureStatistics, GreyPixels, frechet_distance
from alight.outputs import writing_folder
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash
from alight.tune import trial
from alight.tune.search import run as search
from helpers import warm

DIGITS = ("--images.source", "digits", "--images.size", "32")
GREY = "frechet_distance_grey_pixels"


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def conditions(report, name):
    return next(figure["conditions"] for figure in report["figures"] if figure["name"] == name)


@pytest.fixture(scope="module")
def run(finished_quickstart):
    return finished_quickstart[0]


def start(job, arguments):
    """Run a command in this process, which spares the seconds that a new one takes to begin."""
    name = COMMANDS[job].module
    config, _ = parse(job, [str(argument) for argument in arguments])
    return import_module(name).run(config)


def evaluate(output, *options):
    start("evaluate", ["--output", output, "--device", "cpu", *DIGITS, *options])
    return report_of(output)


@pytest.fixture(scope="module")
def whole(run, alight, tmp_path_factory):
    """Everything there is: samples with their tokenizer, transformer and latents, in grey pixels and features."""
    parts = [word for kind in ("samples", "tokenizer", "transformer", "latents") for word in (f"--{kind}", run / kind)]
    output = tmp_path_factory.mktemp("evaluated") / "whole"
    options = (*parts, "--foundation", run / "foundation", "--npz", "True")
    result = alight("evaluate", "--output", output, "--device", "cpu", *DIGITS, *options)
    assert result.returncode == 0, result.stderr
    return output, report_of(output)


@pytest.fixture(scope="module")
def reference(run, tmp_path_factory):
    output = tmp_path_factory.mktemp("reference") / "digits"
    options = ("--foundation", run / "foundation", "--device", "cpu", *DIGITS)
    return start("evaluate reference", ["--output", output, *options]).path


def test_the_report_of_a_whole_run(whole):
    output, report = whole
    assert {"reconstruction_psnr", "generated_label_accuracy", GREY, "effective_dimension"} <= report.keys()
    assert conditions(report, GREY)["comparable"].startswith("no: 20 images for 64 features")
    assert conditions(report, GREY)["reference"] == "1,500 training images"
    assert conditions(report, GREY)["NFE"] > 0
    assert len(report["comparison"]["rows"]) == 10  # classes
    page = (output / "report.html").read_text()
    assert "Nearest training images" in page
    assert "Label accuracy by class" in page
    assert set(read_artifact(output, "report").inputs) == {"tokenizer", "transformer", "samples"}


def test_the_distance_is_that_of_all_pixels_at_once(run, whole):
    extractor = GreyPixels(8)
    real = pixels_of(open_dataset(ImagesConfig(source="digits", size=32), "train", augment=False))
    made = np.stack([np.asarray(Image.open(path)) for path in sorted((run / "samples" / "images").iterdir())])
    one, two = (FeatureStatistics.from_features(extractor(pixels)) for pixels in (made, real))
    assert whole[1][GREY] == pytest.approx(frechet_distance(one, two).value, rel=1e-9)


def test_a_folder_and_an_npz_give_the_same_figures(run, whole, tmp_path):
    with np.load(whole[0] / "samples.npz") as file:
        assert file["arr_0"].shape == (20, 32, 32, 3)
    of_npz = evaluate(tmp_path / "npz", "--samples", whole[0] / "samples.npz", "--neighbours", "0")
    of_folder = evaluate(tmp_path / "folder", "--samples", run / "samples" / "images", "--batch-size", "3")
    assert of_npz[GREY] == pytest.approx(whole[1][GREY], rel=1e-9)  # in another order
    assert of_folder[GREY] == pytest.approx(whole[1][GREY], rel=1e-9)  # in other batches
    assert of_npz["generated_label_accuracy"] == whole[1]["generated_label_accuracy"]  # it says how it was made
    assert conditions(of_npz, GREY)["NFE"] == conditions(whole[1], GREY)["NFE"]
    assert "generated_label_accuracy" not in of_folder  # nobody knows the labels
    assert "reconstruction_psnr" not in of_npz


def improved_tokenizer(folder, original):
    """The tokenizer with another decoder, in the form in which `train: decoder` leaves one."""
    vae, artifact = VAVAE.from_pretrained(original), read_artifact(original, "tokenizer")
    with torch.no_grad():
        vae.decoder.conv_out.bias += 0.01
    with writing_folder(folder) as staging:
        vae.save_pretrained(staging)
        facts = artifact.facts | {"same_latents_as": [artifact.hash]}
        write_manifest(staging, "tokenizer", artifact.config, file_hash(staging / WEIGHTS_FILE), facts=facts)
    return read_artifact(folder, "tokenizer")


def test_a_tokenizer_improved_after_the_transformer_is_named(run, whole, tmp_path):
    original = read_artifact(run / "tokenizer", "tokenizer")
    improved = improved_tokenizer(tmp_path / "improved", original.path)
    draw = ("--samples-per-class", "2", "--sampling.num-inference-steps", "2", "--device", "cpu")
    models = ("--transformer", run / "transformer", "--tokenizer", improved.path)
    start("sample", ["--output", tmp_path / "samples", *models, *draw])
    for samples, said in (
        (tmp_path / "samples", "trained on the latents of"),
        (run / "samples", "decoded by another"),
    ):
        report = evaluate(tmp_path / said.split()[0], "--samples", samples, "--tokenizer", improved.path)
        note = next(note for note in report["notes"] if said in note)
        assert improved.hash[:12] in note
        assert original.hash[:12] in note
    assert not any(original.hash[:12] in note for note in whole[1]["notes"])


def test_live_generation_gives_the_figures_of_stored_samples(run, whole, reference, tmp_path):
    draw = ("--draw.samples-per-class", "2", "--draw.sampling.num-inference-steps", "3")
    sampling = json.loads((run / "samples" / "samples.json").read_text())["sampling"]
    draw = (*draw, "--draw.sampling.guidance-scale", sampling["guidance_scale"])
    draw = (*draw, "--draw.sampling.guidance-interval", *sampling["guidance_interval"])
    live = evaluate(
        tmp_path / "live", "--pipeline", run / "pipeline", "--reference", reference,
        "--foundation", run / "foundation", *draw,
    )  # fmt: skip
    for name in (GREY, "frechet_distance_foundation"):
        # other batches, so a pixel in a few hundred rounds to its neighbour
        assert live[name] == pytest.approx(whole[1][name], rel=1e-2), name
    assert conditions(live, GREY)["NFE"] == conditions(whole[1], GREY)["NFE"]
    assert conditions(live, GREY)["transformer"] == conditions(whole[1], GREY)["transformer"]
    assert "1,500 training images" in conditions(live, GREY)["reference"]


def test_a_reference_holds_what_the_images_gave(run, whole, reference, tmp_path):
    report = evaluate(
        tmp_path / "report", "--samples", run / "samples", "--reference", reference,
        "--foundation", run / "foundation",
    )  # fmt: skip
    for name in (GREY, "frechet_distance_foundation"):
        assert report[name] == pytest.approx(whole[1][name], rel=1e-9)
    start(  # whose size is that of the images, not the configuration's
        "evaluate",
        ["--output", tmp_path / "plain", "--device", "cpu", "--samples", run / "samples", "--reference", reference]
        + ["--foundation", run / "foundation"],
    )
    assert report_of(tmp_path / "plain")["frechet_distance_foundation"] == report["frechet_distance_foundation"]
    with_file = evaluate(tmp_path / "file", "--samples", run / "samples", "--reference", reference / "grey_pixels.npz")
    assert with_file[GREY] == pytest.approx(whole[1][GREY], rel=1e-9)


def test_a_reference_of_decoded_latents(run, tmp_path):
    start("evaluate reference", ["--output", tmp_path / "decoded", "--latents", run / "latents", "--device", "cpu"])
    facts = read_artifact(tmp_path / "decoded", "reference").facts
    assert (facts["count"], facts["size"], facts["spaces"]) == (1500, [32, 32], ["grey_pixels"])


def test_two_processes_give_the_figures_of_one(run, whole, tmp_path):
    command = ["evaluate", "--output", str(tmp_path), "--device", "cpu", *DIGITS, "--samples", str(run / "samples")]
    command += ["--foundation", str(run / "foundation"), "--batch-size", "8"]
    result = warm.run_together(command, 2)
    assert result.returncode == 0, result.stderr
    report = report_of(tmp_path)
    for name in (GREY, "frechet_distance_foundation", "generated_label_accuracy"):
        assert report[name] == pytest.approx(whole[1][name], rel=1e-5), name


def message(job, *arguments):
    with pytest.raises(InputError) as caught:
        start(job, arguments)
    return str(caught.value)


def test_what_cannot_be_compared_is_refused(run, reference, tmp_path):
    def message_of(*options):
        return message("evaluate", "--output", tmp_path / "report", "--device", "cpu", *options)

    samples = ("--samples", run / "samples")
    assert "32x32 pixels" in message_of(*samples, "--images.source", "digits", "--images.size", "16")
    assert "There is no reference at" in message_of(*samples, "--reference", tmp_path / "none.npz")
    np.savez(tmp_path / "keys.npz", mean=np.zeros(4))
    assert "it has no mu" in message_of(*samples, "--reference", tmp_path / "keys.npz")
    np.savez(tmp_path / "fid.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    assert "need --inception-weights" in message_of(*samples, "--reference", tmp_path / "fid.npz")
    (tmp_path / "other.pth").write_bytes(b"no weights")
    assert "is not the file with the Inception-v3" in message_of(
        *samples, "--inception-weights", tmp_path / "other.pth"
    )
    assert "holds no pipeline" in message_of("--pipeline", run / "samples")
    small = tmp_path / "small"
    small.mkdir()
    for number in range(2):
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(small / f"{number}.png")
    assert "16x16 pixels" in message_of("--samples", small, "--reference", reference)
    assert not (tmp_path / "report").exists()


def test_damaged_references_are_refused_in_one_paragraph(run, refused, reference, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in reference.iterdir():
        data = path.read_bytes()
        (broken / path.name).write_bytes(data[: len(data) // 2] if path.suffix == ".npz" else data)
    complaint = refused(
        "evaluate", "--output", tmp_path / "report", "--samples", run / "samples", "--reference", broken, *DIGITS
    )
    assert "is not what was written" in complaint


# --- tune -------------------------------------------------------------------------------------------------------

TUNE = (
    *("--device", "cpu", *DIGITS, "--draw.samples-per-class", "7"),  # more images than the 64 grey pixels
    *("--guidance-scales", "1", "2", "--guidance-intervals", "0", "1", "--timestep-shifts", "1", "0.5"),
    *("--solvers", "euler", "heun", "--steps", "2"),
)


@pytest.fixture(scope="module")
def tuned(run, alight, tmp_path_factory):
    root = tmp_path_factory.mktemp("tuned")
    shutil.copytree(run / "pipeline", root / "pipeline")
    result = alight("tune", "--pipeline", root / "pipeline", "--output", root / "report", *TUNE)
    assert result.returncode == 0, result.stderr
    return root


def test_the_best_of_the_trials_is_stored_where_the_pipeline_finds_it(tuned):
    report = report_of(tuned / "report")
    rows = (tuned / "report" / "settings.csv").read_text().splitlines()
    header, best, *others = (row.split(",") for row in rows)
    distances = [float(row[-3]) for row in [best, *others]]
    assert header[-3:] == ["distance", "nfe", "seconds"]
    assert distances == sorted(distances)
    assert report["best_distance"] == distances[0]
    pipeline = LightningDiTPipeline.from_pretrained(tuned / "pipeline")
    recommended = pipeline.recommended_sampling
    assert recommended["solver"] == best[0]
    images = pipeline(["3"], seeds=[0], **recommended).images
    assert images[0].size == (32, 32)
    pipeline.save_pretrained(tuned / "again")
    assert LightningDiTPipeline.from_pretrained(tuned / "again").recommended_sampling == recommended


def test_tuning_does_not_start_again(tuned):
    before = torch.tensor([path.stat().st_mtime_ns for path in (tuned / "report").iterdir()])
    start("tune", ["--pipeline", tuned / "pipeline", "--output", tuned / "report", *TUNE])
    after = torch.tensor([path.stat().st_mtime_ns for path in (tuned / "report").iterdir()])
    assert torch.equal(before, after)


def test_a_search_that_was_interrupted_keeps_its_trials(tuned, tmp_path):
    values = {
        "output": tmp_path, "pipeline": tuned / "pipeline", "device": "cpu",
        "images": {"source": "digits", "size": 32},
        "draw": {"samples_per_class": 1, "sampling": {"num_inference_steps": 1}}, "search": "grid", "store": False,
        "guidance_scales": [1.0, 2.0], "guidance_intervals": [[0.0, 1.0]], "timestep_shifts": [1.0],
        "solvers": ["euler"], "steps": [1],
    }  # fmt: skip
    made = []

    class StoppedError(Exception):
        pass

    class Images(trial.LiveImages):
        def read(self, *arguments):
            made.append(self._draw.sampling.guidance_scale)
            if len(made) == 2:
                raise StoppedError
            return super().read(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "LiveImages", Images)
        with pytest.raises(StoppedError):
            search(validate(TuneConfig, values, "test"))
        search(validate(TuneConfig, values, "test"))
    assert made == [1.0, 2.0, 2.0]  # the first was kept
    assert not (tmp_path / "unfinished.json").exists()


def test_tuning_needs_a_pipeline_and_the_network_it_is_asked_to_use(run, tmp_path):
    assert "holds no pipeline" in message("tune", "--pipeline", run / "samples", "--output", tmp_path / "x")
    broken = tmp_path / "broken"
    shutil.copytree(run / "pipeline", broken)
    (broken / "model_index.json").write_text("{")
    assert "is not what was written" in message("tune", "--pipeline", broken, "--output", tmp_path / "x")
    options = ("--pipeline", run, "--output", tmp_path / "x", "--measure", "inception", *DIGITS)
    assert "give --inception-weights" in message("tune", *options)
    assert "solver" in message("tune", "--solvers", "magic")
