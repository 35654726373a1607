"""What is exported opens elsewhere and makes the same images; its card says what the records say, and no more."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from huggingface_hub import ModelCard
from PIL import Image

from alight import VAVAE, LightningDiT, LightningDiTPipeline
from alight.artifacts import read_artifact
from alight.config import ConvertConfig, ExportConfig
from alight.interop.reference import export_latents_statistics, export_tokenizer, export_transformer
from alight.lineage import require_tokenizer_of
from alight.runtime.errors import InputError
from alight.runtime.seeding import seeded_initialisation
from alight.sharing.escaping import markdown
from alight.sharing.export import run
from alight.sharing.hub import check_access
from alight.sharing.source import portable
from alight.stages import convert
from helpers.hub_server import TOKEN, hub_server
from helpers.models import exportable_tokenizer
from helpers.written import WEIGHTS

WITHOUT_ALIGHT = """
import sys
sys.modules["alight"] = None  # whoever tries to import it fails
import numpy as np, torch
from diffusers import AutoencoderKL
torch.set_num_threads(1)
folder, output = sys.argv[1:]
vae, report = AutoencoderKL.from_pretrained(folder, subfolder="tokenizer", output_loading_info=True)
assert not any(report.values()), report
images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
with torch.no_grad():
    np.save(output, vae.decode(vae.encode(images).latent_dist.mode()).sample.numpy())
"""


@pytest.fixture(scope="module")
def exported(alight, finished_quickstart, tmp_path_factory):
    """The tiny quickstart, exported by the command line."""
    folder = tmp_path_factory.mktemp("export") / "tiny-digits"
    result = alight("export", finished_quickstart[0], "--output", folder, "--license", "mit", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["kind"] == "pipeline"
    return folder


@pytest.fixture(autouse=True)
def _own_modules(tmp_path, monkeypatch):
    """The code that diffusers copies to where it imports it from stays in the test's own folder."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def sample(pipeline):
    settings = {"num_inference_steps": 3, "guidance_scale": 1.5, "seeds": [0, 1, 2]}
    return np.stack([np.asarray(image) for image in pipeline(class_labels=[3, "7", 0], **settings).images])


def reconstruct(folder, kind=VAVAE):
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    vae = kind.from_pretrained(folder)
    with torch.no_grad():
        return vae.decode(vae.encode(images).latent_dist.mode()).sample.numpy()


# --- round trips ------------------------------------------------------------------------------------------------


def test_images_are_the_same_through_alight_and_through_diffusers(finished_quickstart, exported):
    expected = sample(LightningDiTPipeline.from_pretrained(finished_quickstart[0] / "pipeline"))
    assert expected.std() > 0
    np.testing.assert_array_equal(sample(LightningDiTPipeline.from_pretrained(exported)), expected)
    through_diffusers = DiffusionPipeline.from_pretrained(exported, trust_remote_code=True)
    assert isinstance(through_diffusers, LightningDiTPipeline)
    np.testing.assert_array_equal(sample(through_diffusers), expected)


def test_alight_opens_an_export_without_running_the_code_in_it(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "copy")
    (folder / "pipeline.py").write_text("raise SystemExit('this code ran')\n")
    with pytest.raises(InputError, match="not what was written"):
        LightningDiTPipeline.from_pretrained(folder)
    (folder / "alight.json").unlink()  # as in a folder of others, which has no hashes
    assert LightningDiTPipeline.from_pretrained(folder).class_names == tuple("0123456789")


def test_the_tokenizer_needs_diffusers_alone(finished_quickstart, exported, tmp_path):
    command = [sys.executable, "-c", WITHOUT_ALIGHT, exported, tmp_path / "images.npy"]
    subprocess.run(command, check=True, timeout=120, cwd=tmp_path)
    found = np.load(tmp_path / "images.npy")
    np.testing.assert_array_equal(found, reconstruct(finished_quickstart[0] / "tokenizer"))


def test_a_tokenizer_alone(finished_quickstart, tmp_path):
    source = finished_quickstart[0] / "tokenizer"
    artifact = run(ExportConfig(pipeline=source, output=tmp_path / "vae", reconstructions=2))
    assert (artifact.kind, artifact.hash) == ("tokenizer", read_artifact(source, "tokenizer").hash)
    np.testing.assert_array_equal(reconstruct(artifact.path, AutoencoderKL), reconstruct(source))
    card = ModelCard.load(artifact.path / "README.md")
    assert card.data.license is None
    assert "have not chosen a licence" in card.text
    assert "Reconstruction PSNR" in card.text
    assert "Label accuracy" not in card.text  # a figure of the transformer, too
    assert Image.open(artifact.path / "reconstructions.png").size == (2 * 32 + 2, 2 * 32 + 2)


def test_the_parts_of_an_export_are_artifacts_again(exported, tmp_path):
    """What was exported can be exported once more, from its parts, and makes the same images."""
    parts = {kind: exported / kind for kind in ("transformer", "tokenizer")}
    again = run(ExportConfig(**parts, output=tmp_path / "again", reconstructions=0))
    assert again.inputs == read_artifact(exported, "pipeline").inputs
    pipelines = [LightningDiTPipeline.from_pretrained(folder) for folder in (exported, again.path)]
    np.testing.assert_array_equal(*map(sample, pipelines))


def test_converted_checkpoints_are_exported(tmp_path):
    with seeded_initialisation(0):
        model = LightningDiT(4, 4, hidden_size=16, num_layers=1, num_heads=2, num_classes=5)
    export_transformer(model, tmp_path / "model.pt")
    export_tokenizer(exportable_tokenizer(), tmp_path / "vae.pt")
    export_latents_statistics(torch.zeros(4), torch.ones(4), tmp_path / "stats.pt")
    for kind, file in (("tokenizer", "vae.pt"), ("transformer", "model.pt")):
        options = {"kind": kind, "source": tmp_path / file, "output": tmp_path / kind}
        tokenizer = tmp_path / "tokenizer" if kind == "transformer" else None
        convert.run(ConvertConfig(**options, statistics=tmp_path / "stats.pt", tokenizer=tokenizer))
    folders = {kind: tmp_path / kind for kind in ("tokenizer", "transformer")}
    exported = run(ExportConfig(**folders, output=tmp_path / "export"))
    assert LightningDiTPipeline.from_pretrained(exported.path)([1], seeds=[0], num_inference_steps=1).images
    card = (exported.path / "README.md").read_text()
    assert "| converted from | model.pt |" in card
    assert "No figures were measured" in card


# --- the card ---------------------------------------------------------------------------------------------------


def test_the_card_tells_every_figure_with_all_its_conditions(finished_quickstart, exported):
    report = json.loads((finished_quickstart[0] / "report" / "report.json").read_text())
    card = ModelCard.load(exported / "README.md")
    rows = [line.split(" | ") for line in card.text.splitlines() if line.startswith("| ")]
    for figure in report["figures"]:
        (row,) = [row for row in rows if row[0] == f"| {figure['label']}"]
        assert row[1].split()[0] == f"{figure['value']:.{figure['digits']}f}"
        for name, value in figure["conditions"].items():
            assert name in row[2], name
            assert markdown(portable(value)) in row[2], name


def test_the_metadata_are_those_of_the_hub(exported):
    card = ModelCard.load(exported / "README.md")  # refuses metadata that are not well-formed
    metadata = card.data.to_dict()
    assert (metadata["license"], metadata["library_name"]) == ("mit", "diffusers")
    assert card.data.pipeline_tag == "unconditional-image-generation"
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results["generated_label_accuracy"].metric_args["images"] == 20
    assert results["generated_label_accuracy"].dataset_type == "digits"
    for name in ("samples.png", "reconstructions.png"):
        assert f"]({name})" in card.text
        Image.open(exported / name).verify()


def test_nothing_leaves_but_what_belongs_to_the_model(exported, finished_quickstart):
    found = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert found == {
        *("README.md", "alight.json", "model_index.json", "pipeline.py", "samples.png", "reconstructions.png"),
        *(
            f"{kind}/{name}"
            for kind in ("tokenizer", "transformer")
            for name in ("alight.json", "config.json", WEIGHTS)
        ),
        "scheduler/scheduler_config.json",
    }
    for name in found - {f"{kind}/{WEIGHTS}" for kind in ("tokenizer", "transformer")}:
        assert str(finished_quickstart[0].parent).encode() not in (exported / name).read_bytes(), name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/somebody/data/cats", "cats"),
        ("no model '/home/somebody/vit' here", "no model 'vit' here"),
        ("runs/quickstart", "runs/quickstart"),
        ("see https://arxiv.org/abs/2501.01423", "see https://arxiv.org/abs/2501.01423"),
        ("60 img/s and LightningDiT-XL/1", "60 img/s and LightningDiT-XL/1"),
        ({"a": ["/x/y", 1]}, {"a": ["y", 1]}),
    ],
)
def test_paths_of_this_machine_stay_here(text, expected):
    assert portable(text) == expected


def test_an_earlier_export_is_replaced_but_nothing_else(finished_quickstart, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "copy")
    run(ExportConfig(pipeline=finished_quickstart[0], output=folder, license="apache-2.0", reconstructions=0))
    assert ModelCard.load(folder / "README.md").data.license == "apache-2.0"
    with pytest.raises(InputError, match="lies inside"):
        run(ExportConfig(pipeline=finished_quickstart[0], output=finished_quickstart[0] / "samples"))
    with pytest.raises(InputError, match="would overwrite"):
        run(ExportConfig(pipeline=exported, output=exported))


def test_records_are_found_by_their_hash_under_any_name(finished_quickstart, tmp_path):
    """A pipeline beside a tokenizer whose folder has another name, and a transformer that leads to it."""
    run_folder = shutil.copytree(finished_quickstart[0], tmp_path / "run")
    (run_folder / "tokenizer").rename(run_folder / "digits of mine")
    (run_folder / "transformer").rename(run_folder / "dit")
    exported = run(ExportConfig(pipeline=run_folder / "pipeline", output=tmp_path / "a", reconstructions=0))
    card = (exported.path / "README.md").read_text()
    assert "There are no records" not in card
    assert read_artifact(exported.path / "tokenizer", "tokenizer").config["training"]["steps"] == 4
    assert read_artifact(exported.path / "transformer", "transformer").config["training"]["steps"] == 6


def test_the_tokenizer_of_a_transformer_is_found_through_its_latents(alight, finished_quickstart, tmp_path):
    run_folder = finished_quickstart[0]
    exported = run(ExportConfig(transformer=run_folder / "transformer", output=tmp_path / "a", reconstructions=0))
    assert (
        read_artifact(exported.path / "tokenizer", "tokenizer").hash
        == read_artifact(run_folder / "tokenizer", "tokenizer").hash
    )
    options = ["--samples-per-class", 1, "--sampling.num-inference-steps", 1, "--classes", 3, "--json", "--quiet"]
    result = alight(
        "sample", "--transformer", run_folder / "transformer", "--output", tmp_path / "samples", *options, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    found = read_artifact(tmp_path / "samples", "samples").config["tokenizer"]
    assert found == str(run_folder / "tokenizer")


def test_a_moved_run_still_leads_to_its_tokenizer(finished_quickstart, tmp_path):
    moved = shutil.copytree(finished_quickstart[0], tmp_path / "moved")
    transformer = replace(read_artifact(moved / "transformer", "transformer"), config={"latents": "gone/latents"})
    shutil.rmtree(moved / "latents")  # its records would lead to where the tokenizer was before
    assert require_tokenizer_of(transformer) == moved / "tokenizer"
    (moved / "tokenizer").rename(moved / "elsewhere")
    with pytest.raises(InputError, match=r"\([0-9a-f]{12}\).* nor beside it\. Give its folder with --tokenizer"):
        require_tokenizer_of(transformer)


def test_a_tokenizer_of_other_latents_is_not_taken(finished_quickstart, tmp_path):
    moved = shutil.copytree(finished_quickstart[0], tmp_path / "moved")
    transformer = read_artifact(moved / "transformer", "transformer")
    other = replace(transformer, config={}, inputs={"tokenizer": "0" * 64})
    with pytest.raises(InputError, match=r"\(0{12}\).* nor beside it"):
        require_tokenizer_of(other)


def test_reports_of_wrong_shape_are_refused(finished_quickstart, tmp_path):
    whole = json.loads((finished_quickstart[0] / "report" / "report.json").read_text())
    figure = whole["figures"][0]
    broken = [
        *(None, [], 3, "x", {"figures": None}, {"figures": [None]}, {"figures": {"a": 1}}, {"figures": [[]]}),
        *({"figures": [figure | {key: [[]]}]} for key in ("name", "label", "value", "digits", "unit", "conditions")),
        *({"figures": [figure | {"digits": digits}]} for digits in (-1, 10**6)),
        *(whole | {key: 3} for key in ("notes", "configuration")),
    ]
    for content in broken:
        path = tmp_path / "report" / "report.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match="no report of alight"):
            run(ExportConfig(pipeline=finished_quickstart[0], report=path.parent, output=tmp_path / "export"))
    assert not (tmp_path / "export").exists()


# --- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give the folder to export"),
        (["{run}/transformer"], "needs its tokenizer to make images"),
        (["{run}/report"], "holds a report, not a tokenizer"),
        (["{run}/pipeline/scheduler"], "not a pipeline, a run or a tokenizer"),
        (["{run}/nowhere"], "not a pipeline, a run or a tokenizer"),
        (["{run}", "--report", "{run}/samples"], "no report of alight"),
        (["{run}", "--license", "MIT License"], "not an identifier of the hub"),
        (["{run}", "--push-to-hub", "digits"], "OWNER/NAME"),
        (["{run}", "--push-to-hub", "somebody/digits"], "HF_HUB_OFFLINE is set"),
        (["{run}", "--tokenizer", "{run}/tokenizer"], "not both"),
    ],
)
def test_mistakes_are_named(finished_quickstart, tmp_path, capsys, arguments, message, monkeypatch):
    from alight.cli import main

    monkeypatch.setattr("alight.sharing.hub.constants.HF_HUB_OFFLINE", True)
    words = [word.format(run=finished_quickstart[0]) for word in arguments]
    with pytest.raises(SystemExit) as left:
        main(["export", *words, "--output", str(tmp_path / "export")])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert not (tmp_path / "export").exists()


def test_a_report_of_others_is_refused(finished_quickstart, tmp_path):
    report = json.loads((finished_quickstart[0] / "report" / "report.json").read_text())
    for figure in report["figures"]:
        figure["conditions"]["tokenizer"] = "0123456789ab"
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(InputError, match="is about other networks"):
        run(ExportConfig(pipeline=finished_quickstart[0], report=tmp_path, output=tmp_path.with_name("export")))


# --- the hub ----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """A hub that the library takes for the real one."""
    with hub_server() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def test_an_upload_sends_the_export_and_nothing_else(hub, finished_quickstart, tmp_path):
    output = tmp_path / "export"
    options = {"output": output, "reconstructions": 0}
    run(ExportConfig(pipeline=finished_quickstart[0], **options))
    (output / "private notes.txt").write_text("not for others")
    options["push_to_hub"] = "a-lab/digits"
    run(ExportConfig(pipeline=finished_quickstart[0], **options))
    steps = ("/api/whoami-v2", "/api/validate-yaml", "/api/repos/create", "/api/models/a-lab/digits/commit/main")
    assert list(dict.fromkeys(path for path in hub.requests if path in steps)) == list(steps)  # asked, then done
    asked = hub.repositories["a-lab/digits"]
    assert asked.get("private") is True or asked.get("visibility") == "private"  # as the library's version has it
    sent = {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    del sent["private notes.txt"]
    assert hub.files == sent


@pytest.mark.parametrize(
    ("token", "repository", "message"),
    [
        ("", "somebody/digits", "You are not logged in to the hub"),
        ("hf_of_somebody_else", "somebody/digits", "does not accept your token"),
        (TOKEN, "nobody/digits", "You are somebody on the hub, who cannot write to nobody/digits"),
    ],
)
def test_an_upload_that_cannot_work_does_no_work(
    hub, finished_quickstart, tmp_path, monkeypatch, token, repository, message
):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    output = tmp_path / "export"
    with pytest.raises(InputError, match=message):
        run(ExportConfig(pipeline=finished_quickstart[0], output=output, push_to_hub=repository))
    assert not output.exists()
    assert not hub.repositories
    assert not hub.files


WRONG_SHAPES = [None, [], "somebody", {}, {"name": 3}, {"name": "a", "orgs": 3}, {"name": "a", "orgs": [1]}]


@pytest.mark.parametrize("answer", WRONG_SHAPES)
def test_a_hub_that_answers_in_another_shape_is_named(monkeypatch, hub, answer):
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda *_, **__: answer)
    with pytest.raises(InputError, match="does not say who you are"):
        check_access("somebody/digits")


def test_a_hub_out_of_reach_is_told_before_any_work(monkeypatch, finished_quickstart, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(InputError, match="cannot be reached"):
        run(ExportConfig(pipeline=finished_quickstart[0], output=tmp_path / "export", push_to_hub="somebody/digits"))
    assert not (tmp_path / "export").exists()
