"""Output folders: claimed by one run, never taken from somebody else, replaced as a whole."""

import errno
import os
import re
import threading
from pathlib import Path
from typing import get_args

import pytest

from alight.artifacts import MANIFEST, is_complete, read_artifact, replace_file, write_manifest
from alight.config.base import Section
from alight.config.commands import COMMANDS
from alight.data.sample_folder import SampleFolder
from alight.outputs import INPUTS, STARTED, check_output, claimed_output, new_file, read_written, writing_folder
from alight.runtime.errors import InputError
from alight.runtime.files import LOCK_FILE


def write(folder, config=None, content="w", kind="samples", more=()):
    with writing_folder(folder) as staging:
        (staging / "weights").write_text(content)
        (staging / "part").mkdir()
        for name in ("a", *more):
            (staging / "part" / name).write_text(content)
        write_manifest(staging, kind, config or {}, "a" * 64)


def make(folder, config=None, **options):
    with claimed_output(folder, "samples", config or {}, renew=True):
        write(folder, config, **options)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuse(folder, config, match, kind="samples", **options):
    with (
        pytest.raises(InputError, match=match),
        claimed_output(folder, kind, config, **options),
    ):
        pass


def test_a_new_an_empty_and_an_unfinished_folder_can_be_claimed(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with claimed_output(tmp_path / name, "samples", {}) as finished:
            assert finished is None
            (tmp_path / name / "half.png").write_text("half")
        with claimed_output(tmp_path / name, "samples", {}) as finished:  # it goes on
            assert finished is None
            write(tmp_path / name)
        with claimed_output(tmp_path / name, "samples", {}) as finished:
            assert finished is not None
        assert STARTED not in contents(tmp_path / name)
        assert LOCK_FILE not in contents(tmp_path / name)


def test_a_claim_that_comes_to_nothing_leaves_nothing_behind(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with claimed_output(tmp_path / name, "samples", {}):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize("name", ["report.html", "weights", "part/notes.txt", MANIFEST + ".bak", ".git/config"])
def test_a_folder_with_files_of_somebody_else_is_refused(tmp_path, name):
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    before = contents(tmp_path)
    refuse(tmp_path / "mine", {}, "new or an empty folder")
    refuse(tmp_path / "mine", {}, "new or an empty folder", renew=True, compare=False)
    with pytest.raises(InputError, match="new or an empty folder"):
        check_output(tmp_path / "mine", {}, "samples")
    assert contents(tmp_path) == before


def test_files_that_desktops_leave_everywhere_do_not_count(tmp_path):
    (tmp_path / ".DS_Store").write_text("")
    make(tmp_path)
    assert is_complete(tmp_path)


def test_an_unfinished_folder_of_another_kind_is_refused(tmp_path):
    with claimed_output(tmp_path, "samples", {}):
        (tmp_path / "half.png").write_text("half")
    refuse(tmp_path, {}, "unfinished samples, not a latents", kind="latents")


def test_an_artifact_of_another_kind_or_configuration_is_refused(tmp_path):
    make(tmp_path / "run", {"seed": 0})
    refuse(tmp_path / "run", {"seed": 1}, "another configuration")
    refuse(tmp_path / "run", {"seed": 1}, "another configuration", renew=True)
    refuse(tmp_path / "run", {"seed": 0}, "holds samples, not latents", kind="latents", compare=False)


def test_outputs_in_above_and_inside_of_inputs_are_refused(tmp_path):
    (tmp_path / "run" / "input").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "run" / "input")
    for named in (tmp_path / "run" / "input", tmp_path / "link"):
        for config in ({"a": {"source": str(named)}}, {"compare": [str(named)]}):
            refuse(tmp_path / "run" / "input", config, "would overwrite")
            refuse(tmp_path / "run" / "input" / "new", config, "inside")
            refuse(tmp_path / "run", config, "above")
            refuse(tmp_path / "run" / "input" / ".." / "input", config, "would overwrite")
    with claimed_output(
        tmp_path / "run" / "output", "samples", {"source": str(tmp_path / "run" / "input"), "b": "\0"}
    ):
        pass


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("photographs", {"images": {"source": "photographs"}}),
        ("linear", {"path": "linear"}),
        ("cosine", {"optimizer": {"schedule": "cosine"}}),
    ],
)
def test_an_output_may_have_the_name_of_embedded_images_or_of_an_option(tmp_path, monkeypatch, name, config):
    monkeypatch.chdir(tmp_path)
    for output in (Path(name) / "part", Path(name)):
        with claimed_output(output, "samples", config) as finished:
            assert finished is None


def sections(kind):
    """A section of the configuration and those inside of it."""
    yield kind
    for field in kind.model_fields.values():
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, Section):
                yield from sections(part)


def test_every_key_that_may_name_a_folder_is_known_as_an_input():
    writing = [command.config for command in COMMANDS.values() if "output" in command.config.model_fields]
    keys = {
        key
        for config in writing
        for section in sections(config)
        for key, field in section.model_fields.items()
        if re.search("Path|_source_with_home", f"{field.annotation} {field.metadata}")
    }
    assert "stock_tokenizer" in keys
    assert keys - {"output", "recipe"} <= INPUTS  # a recipe is a file


def test_two_runs_never_hold_one_folder(tmp_path):
    with claimed_output(tmp_path / "run", "samples", {}):
        refuse(tmp_path / "run", {}, "in use")
    with claimed_output(tmp_path / "run", "samples", {}) as finished:
        assert finished is None


def test_replacing_removes_what_the_artifact_before_left_and_nothing_else(tmp_path):
    make(tmp_path, more=("old",))
    (tmp_path / "notes.txt").write_text("precious")
    make(tmp_path, content="new")
    assert contents(tmp_path)["notes.txt"] == b"precious"
    assert sorted(contents(tmp_path)) == sorted([MANIFEST, "notes.txt", "part/a", "weights"])
    read_artifact(tmp_path, "samples")


@pytest.mark.parametrize("name", ["part/notes.txt", "extra"])
def test_files_put_into_an_artifact_by_hand_are_not_replaced(tmp_path, name):
    make(tmp_path)
    (tmp_path / name).write_text("precious")
    before = contents(tmp_path)

    def again():
        with claimed_output(tmp_path, "samples", {}, renew=True), writing_folder(tmp_path) as staging:
            (staging / "part").mkdir()
            (staging / "extra").write_text("ours")
            write_manifest(staging, "samples", {}, "a" * 64)

    with pytest.raises(InputError, match="would be overwritten"):
        again()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("call", ["replace", "unlink", "rmdir", "fsync"])
def test_replacing_interrupted_at_any_operation_leaves_a_whole_artifact_or_none(tmp_path, monkeypatch, call):
    for moment in range(1, 8):
        folder = tmp_path / str(moment)
        make(folder, content="old", more=("old",))
        counter = {"left": moment}
        real = getattr(os, call)

        def interrupted(*arguments, real=real, counter=counter, **options):
            counter["left"] -= 1
            if counter["left"] == 0:
                raise OSError(errno.EIO, "Input/output error")
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, interrupted)
            try:
                make(folder, content="new")
            except InputError as error:
                assert "input/output error" in str(error)  # noqa: PT017 (not every moment is reached)
        if is_complete(folder):
            read_artifact(folder, "samples")  # every file is the one that the manifest describes
        make(folder, content="new")  # and the next run puts it right
        assert contents(folder)["part/a"] == b"new"
        read_artifact(folder, "samples")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EXDEV, errno.EINVAL, errno.ENAMETOOLONG])
@pytest.mark.parametrize("call", ["replace", "fsync", "mkdir"])
def test_a_disk_that_fails_ends_in_a_sentence(tmp_path, monkeypatch, call, number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(InputError, match="Cannot write to"):
            make(tmp_path / "run")
    assert not is_complete(tmp_path / "run")
    make(tmp_path / "run")


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "/".join(["y" * 200] * 40)])
def test_impossible_paths_are_a_sentence(tmp_path, name):
    folder = tmp_path / name
    with pytest.raises(InputError):
        check_output(folder, {}, "samples")
    refuse(folder, {}, "Choose|choose")


def test_an_output_that_vanishes_meanwhile_is_a_sentence(tmp_path):
    import shutil

    def vanishing():
        with claimed_output(tmp_path / "run", "samples", {}), writing_folder(tmp_path / "run") as staging:
            (staging / "weights").write_text("w")
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(InputError, match="removed meanwhile"):
        vanishing()


def test_a_file_of_somebody_else_is_not_overwritten(tmp_path):
    (tmp_path / "weights.pt").write_text("precious")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("weights.pt", "dangling"):
        with pytest.raises(InputError, match="exists already"):
            new_file(tmp_path / name)
    assert new_file(tmp_path / "new.pt") == tmp_path / "new.pt"


def test_a_file_is_replaced_together_with_its_hash(tmp_path, monkeypatch):
    make(tmp_path)
    replace_file(tmp_path, "weights", "other")
    assert read_artifact(tmp_path, "samples").files["weights"] != ["w"]
    for moment in (1, 2, 3):  # killed between any two of its steps, the folder still opens
        counter, real = {"left": moment}, os.replace

        def interrupted(*arguments, counter=counter, real=real):
            counter["left"] -= 1
            if counter["left"] == 0:
                raise KeyboardInterrupt
            real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", interrupted)
            with pytest.raises(KeyboardInterrupt):
                replace_file(tmp_path, "weights", f"content {moment}")
        read_artifact(tmp_path, "samples")


def test_an_unfinished_run_without_images_takes_a_corrected_configuration(tmp_path):
    SampleFolder(tmp_path, {"sampling": {"guidance_scale": 1e9}}, {}).start()  # and its images are not finite
    SampleFolder(tmp_path, {"sampling": {"guidance_scale": 2.0}}, {}).start()
    (tmp_path / "images" / "000000.png").write_bytes(b"made")
    with pytest.raises(InputError, match="guidance_scale"):
        SampleFolder(tmp_path, {"sampling": {"guidance_scale": 3.0}}, {}).start()


# --- network file systems -------------------------------------------------------------------------------------------


def appear_later(folder, seconds):
    """Show the manifest of a finished artifact after some seconds."""
    hidden = folder / "hidden"
    (folder / MANIFEST).rename(hidden)
    timer = threading.Timer(seconds, lambda: hidden.rename(folder / MANIFEST))
    timer.start()
    return timer


def test_of_several_processes_one_waits_for_what_another_machine_has_written(tmp_path, monkeypatch):
    with writing_folder(tmp_path) as staging:
        (staging / "picture").write_text("x")
        write_manifest(staging, "samples", {}, "0" * 64)
    timer = appear_later(tmp_path, 0.7)
    with pytest.raises(InputError, match="is not a finished samples"):
        read_written(tmp_path, "samples")  # one process has written it itself
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert read_written(tmp_path, "samples").kind == "samples"
    timer.join()
