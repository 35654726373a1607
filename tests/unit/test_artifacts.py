"""Artifacts: whole or not at all, and never of the wrong kind."""

import json

import pytest

from alight.artifacts import MANIFEST, differences, is_complete, read_artifact, write_manifest
from alight.outputs import check_output, writing_folder
from alight.runtime.errors import InputError
from alight.runtime.files import explained_disk_errors, write_text


def make(folder, kind="tokenizer", digest="a" * 64, inputs=None, config=None):
    with writing_folder(folder) as staging:
        (staging / "weights").write_text("w")
        write_manifest(staging, kind, config or {"seed": 0}, digest, inputs, facts={"steps": 3}, seconds=1.5)
    return read_artifact(folder, kind)


def test_an_artifact_describes_itself(tmp_path):
    artifact = make(tmp_path / "tokenizer")
    assert artifact.hash == "a" * 64
    assert artifact.facts == {"steps": 3}
    assert artifact.seconds == 1.5
    assert "torch" in artifact.versions
    assert sorted(path.name for path in artifact.path.iterdir()) == [MANIFEST, "weights"]


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), writing_folder(tmp_path / "new") as staging:  # noqa: PT012
        (staging / "weights").write_text("half")
        raise RuntimeError
    assert not (tmp_path / "new").exists()


def test_a_failure_keeps_what_was_there(tmp_path):
    make(tmp_path / "old")
    with pytest.raises(RuntimeError), writing_folder(tmp_path / "old") as staging:  # noqa: PT012
        (staging / "weights").write_text("half")
        raise RuntimeError
    assert (tmp_path / "old" / "weights").read_text() == "w"
    assert is_complete(tmp_path / "old")


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="no tokenizer folder"):
        read_artifact(tmp_path / "nothing", "tokenizer")
    with pytest.raises(InputError, match="not a finished tokenizer"):
        read_artifact(tmp_path, "tokenizer")
    make(tmp_path / "latents", kind="latents")
    with pytest.raises(InputError, match="holds latents, not a tokenizer"):
        read_artifact(tmp_path / "latents", "tokenizer")
    (tmp_path / "latents" / MANIFEST).write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_artifact(tmp_path / "latents", "latents")


def test_artifacts_that_do_not_belong_together(tmp_path):
    tokenizer = make(tmp_path / "tokenizer", digest="b" * 64)
    right = make(tmp_path / "right", "latents", inputs={"tokenizer": "b" * 64})
    wrong = make(tmp_path / "wrong", "latents", inputs={"tokenizer": "c" * 64})
    right.require_input(tokenizer)
    with pytest.raises(InputError, match="another tokenizer"):
        wrong.require_input(tokenizer)


def test_another_configuration_is_named(tmp_path):
    make(tmp_path / "t", config={"seed": 0, "optimizer": {"lr": 1.0}})
    check_output(tmp_path / "t", {"seed": 0, "optimizer": {"lr": 1.0}}, "tokenizer")
    with pytest.raises(InputError, match=r"optimizer\.lr: 1\.0 -> 2\.0"):
        check_output(tmp_path / "t", {"seed": 0, "optimizer": {"lr": 2.0}}, "tokenizer")


@pytest.mark.parametrize("kind", ["tokenizer", "samples", "reference", "nonsense", ""])
def test_a_folder_that_is_not_there_is_explained_for_every_kind(tmp_path, kind):
    with pytest.raises(InputError, match="make one with 'alight"):
        read_artifact(tmp_path / "x", kind)


def test_differences_ignore_where_results_go():
    assert differences({"output": "a", "device": "cpu", "x": {"y": 1}}, {"output": "b", "device": "mps", "x": {}}) == [
        "x.y: 1 -> None"
    ]


@pytest.mark.parametrize("part", [(), ("tokenizer",), ("foundation",)])
def test_a_key_of_a_later_version_that_changes_nothing_is_no_difference(part):
    older, newer, other = {"lr": 1.0}, {"lr": 1.0, "name": "adamw"}, {"lr": 1.0, "name": "another"}
    configs = [{"optimizer": each} for each in (older, newer, other)]
    for name in part:
        configs = [{name: each} for each in configs]
    assert differences(configs[0], configs[1]) == differences(configs[1], configs[0]) == []
    assert len(differences(configs[0], configs[2])) == len(differences(configs[1], configs[2])) == 1


@pytest.mark.parametrize("part", [(), ("tokenizer",)])
def test_refusing_small_images_is_no_difference_and_a_background_is_one(part):
    before = {"size": 64, "crop": "center", "upscale": False}  # as the version without backgrounds has it
    now = {**before, "upscale": True, "background": "white"}
    configs = [{"images": each} for each in (before, now, {**now, "background": "black"}, {**now, "crop": "pad"})]
    for name in part:
        configs = [{name: each} for each in configs]
    assert differences(configs[0], configs[1]) == differences(configs[1], configs[0]) == []
    for other in configs[2:]:
        assert len(differences(configs[0], other)) == len(differences(configs[1], other)) == 1
    assert differences({"images": {"size": 64}}, {"images": {"size": 32}}) == ["images.size: 64 -> 32"]
    assert differences({"upscale": True}, {"upscale": False}) == ["upscale: True -> False"]


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a part of the path is a file"):
        check_output(tmp_path / "file" / "run", {}, "tokenizer")


def test_a_full_disk_is_explained(tmp_path):
    with pytest.raises(InputError, match="disk is full"), explained_disk_errors(tmp_path):
        raise OSError(28, "No space left on device")
    with pytest.raises(InputError, match="disk is full"), explained_disk_errors(tmp_path):  # as torch reports it
        raise RuntimeError("PytorchStreamWriter failed: No space left on device")
    with pytest.raises(InputError, match="disk is full"), explained_disk_errors(tmp_path):  # noqa: PT012
        try:
            raise OSError(28, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 97856 vs 97808")  # as torch closes the file it could not write
    with pytest.raises(RuntimeError, match="something else"), explained_disk_errors(tmp_path):
        raise RuntimeError("something else")


def test_checking_leaves_no_folder_behind(tmp_path):
    check_output(tmp_path / "run", {}, "tokenizer")
    assert not (tmp_path / "run").exists()


def test_text_is_replaced_whole(tmp_path):
    path = tmp_path / "x.json"
    write_text(path, json.dumps([1]))
    write_text(path, json.dumps([2]))
    assert json.loads(path.read_text()) == [2]
    assert list(tmp_path.iterdir()) == [path]
