"""Hashes in manifests: every damaged file of an artifact is found when it is opened, whoever opens it."""

import json
import random

import pytest

from alight import VAVAE, LightningDiT, LightningDiTPipeline
from alight.artifacts import (
    MANIFEST,
    read_artifact,
    read_manifest,
    verify_files,
    verify_folder,
    write_manifest,
)
from alight.outputs import writing_folder
from alight.runtime.errors import InputError
from helpers.models import tiny_tokenizer, tiny_transformer
from helpers.written import write_model


@pytest.fixture
def pipeline(tmp_path):
    """A pipeline folder with its manifest, in the layout of a finished run."""
    facts = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "class_names": ["a", "b", "c"]}
    transformer = tiny_transformer(hidden_size=32, num_classes=3)
    for kind, model in (("tokenizer", tiny_tokenizer()), ("transformer", transformer)):
        write_model(tmp_path / kind, kind, model, digest=kind, facts=facts)
    with writing_folder(tmp_path / "pipeline") as staging:
        parts = tmp_path / "transformer", tmp_path / "tokenizer"
        LightningDiTPipeline.from_artifacts(*parts).save_pretrained(staging)
        write_manifest(staging, "pipeline", {}, "p")
    return tmp_path


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def test_one_flipped_bit_in_any_file_is_found_by_every_way_to_open_it(pipeline):
    rng = random.Random(0)
    openers = {
        "tokenizer": (VAVAE.from_pretrained, lambda folder: read_artifact(folder, "tokenizer")),
        "transformer": (LightningDiT.from_pretrained, lambda folder: read_artifact(folder, "transformer")),
        "pipeline": (LightningDiTPipeline.from_pretrained, verify_folder),
    }
    for part, ways in openers.items():
        folder = pipeline / part
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            intact = path.read_bytes()
            for _ in range(3):
                flip(path, rng)
                for way in ways:
                    with pytest.raises(InputError):
                        way(folder)
                path.write_bytes(intact)
        for way in ways:
            way(folder)


def test_a_missing_file_is_named(pipeline):
    (pipeline / "tokenizer" / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        read_artifact(pipeline / "tokenizer", "tokenizer")


def test_the_card_of_a_shared_model_may_be_rewritten(tmp_path):
    with writing_folder(tmp_path) as staging:
        (staging / "README.md").write_text("made")
        write_manifest(staging, "pipeline", {}, "p")
    (tmp_path / "README.md").write_text("by hand")
    read_artifact(tmp_path, "pipeline")


def test_folders_of_others_have_no_hashes_and_open(pipeline):
    (pipeline / "pipeline" / MANIFEST).unlink()
    LightningDiTPipeline.from_pretrained(pipeline / "pipeline")


def rewrite(folder, change):
    """Change a manifest of the format before checksums, which nothing but its fields' types protects."""
    values = json.loads((folder / MANIFEST).read_text())
    del values["checksum"], values["files"]
    (folder / MANIFEST).write_text(json.dumps(change(values | {"format": 1})))


def test_a_manifest_of_version_0_1_opens(pipeline):
    rewrite(pipeline / "tokenizer", lambda values: values)
    assert read_artifact(pipeline / "tokenizer", "tokenizer").hash == "tokenizer"


@pytest.mark.parametrize(
    "key", ["format", "kind", "hash", "inputs", "facts", "config", "seconds", "versions", "created"]
)
@pytest.mark.parametrize("value", [None, [], {"a": []}, "x", -1.5, 10**400, True, [[]], {"class_names": 3}])
def test_fields_of_wrong_types_are_a_sentence(pipeline, key, value):
    folder = pipeline / "tokenizer"
    old = json.loads((folder / MANIFEST).read_text())[key]
    rewrite(folder, lambda values: values | {key: value})
    if type(old) is type(value) and (key, value) != ("facts", {"class_names": 3}):
        return  # of the right type: another value, which nobody can tell from the true one
    with pytest.raises(InputError):
        read_artifact(folder, "tokenizer")


@pytest.mark.parametrize("removed", [("checksum",), ("files",), ("format",), ("checksum", "format")])
def test_a_manifest_without_its_checksum_is_refused(pipeline, removed):
    path = pipeline / "tokenizer" / MANIFEST
    values = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in values.items() if key not in removed}, indent=2) + "\n")
    with pytest.raises(InputError):
        read_artifact(pipeline / "tokenizer", "tokenizer")


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../b", ""])
def test_a_manifest_names_no_file_outside_of_its_folder(tmp_path, name):
    with writing_folder(tmp_path) as staging:
        write_manifest(staging, "pipeline", {}, "p")
    artifact = read_manifest(tmp_path)
    artifact.files[name] = ["0" * 64]
    with pytest.raises(InputError, match="outside"):
        verify_files(artifact)
