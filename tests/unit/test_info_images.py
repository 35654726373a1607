"""`alight info images`: every class with its count, and the same facts as JSON."""

import json
import shutil

import pytest

from alight.cli import dispatch
from alight.runtime.errors import InputError
from helpers.pictures import write_noise, write_truncated


@pytest.fixture
def folder(tmp_path):
    """Twenty-five classes, one of them large, with a copy and a damaged file."""
    folder = tmp_path / "pictures"
    for number in range(24):
        write_noise(folder / f"class{number:02}" / "a.png", number, (40, 100))
    for number in range(5):
        write_noise(folder / "large" / f"{number}.png", 100 + number, (150, 140))
    shutil.copy(folder / "large" / "0.png", folder / "class00" / "copy.png")
    write_truncated(folder / "large" / "cut.png")
    (folder / "large" / "film.mp4").write_bytes(b"0")
    return folder


def test_all_classes_are_listed_with_their_counts(folder, capsys):
    assert dispatch(["info", "images", str(folder)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][-5:] == ["30", "images", "in", "25", "classes"]
    assert ["large", "5"] in lines
    assert ["class00", "2"] in lines
    assert all([f"class{number:02}", "1"] in lines for number in range(1, 24))
    assert ["wider", "than", "2:1", "24"] in lines
    assert ["under", "64", "pixels", "24"] in lines
    assert ["other", "files", ".mp4", "1"] in lines
    assert ["1", "class00/copy.png,", "large/0.png"] in lines


def test_the_same_as_data(folder, capsys):
    dispatch(["info", "images", str(folder), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], len(found["classes"]), found["classes"]["large"]) == (30, 25, 5)
    assert found["duplicates"] == {"exact": [["class00/copy.png", "large/0.png"]], "near": [], "examined": 29}
    assert sum(found["skipped"].values()) == 1
    assert found["ignored"] == {".mp4": 1}


def test_images_without_classes_and_from_a_list(folder, capsys):
    dispatch(["info", "images", str(folder), "--unconditional", "--json"])
    assert json.loads(capsys.readouterr().out)["classes"] == {"pictures": 30}
    (folder / "list.csv").write_text("path,kind\nlarge/0.png,x\nlarge/1.png,y\n")
    dispatch(["info", "images", str(folder / "list.csv"), "--label-column", "kind", "--json"])
    assert json.loads(capsys.readouterr().out)["classes"] == {"x": 1, "y": 1}


def test_many_damaged_files_are_counted_rather_than_refused(folder, capsys):
    for number in range(60):
        write_truncated(folder / "large" / f"cut{number}.png")
    dispatch(["info", "images", str(folder), "--json"])
    assert sum(json.loads(capsys.readouterr().out)["skipped"].values()) == 61


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="There are no images at"):
        dispatch(["info", "images", str(tmp_path / "nowhere")])


def test_info_on_a_folder_of_images_names_the_command_for_images(folder, capsys):
    dispatch(["info", str(folder)])
    assert f"alight info images {folder}" in capsys.readouterr().out
