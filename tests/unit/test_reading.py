"""Reading files that others may have written: regular, bounded, and by a schema."""

import os

import pytest
from typing_extensions import TypedDict

from alight.runtime.errors import InputError
from alight.runtime.reading import read_bytes, read_json, read_json_object, require_regular


class Entry(TypedDict):
    file: str
    count: int


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "3",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": "\\ud800"}',
        "[" * 100_000,
        '{"a":' + "9" * 5000 + "}",
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path, text):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"file\.json.*Make it again"):
        read_json_object(path, "Make it again.")


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InputError, match="not valid JSON"):
        read_json_object(path, "Make it again.")


def test_a_schema_names_the_field_that_is_wrong(tmp_path):
    path = tmp_path / "file.json"
    path.write_text('{"file": "a", "count": "many"}')
    with pytest.raises(InputError, match="count"):
        read_json(path, Entry, "Make it again.")
    path.write_text('{"file": "a", "count": 3}')
    assert read_json(path, Entry, "Make it again.") == {"file": "a", "count": 3}


def test_fifos_devices_and_folders_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "link", tmp_path):
        with pytest.raises(InputError, match="regular file"):
            read_bytes(path, 1000)


def test_a_file_beyond_the_limit_and_a_path_with_nul_are_refused(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(b"x" * 1001)
    with pytest.raises(InputError, match="1,001 bytes"):
        read_bytes(path, 1000)
    assert require_regular(path) == 1001
    with pytest.raises(InputError, match="cannot be read"):
        require_regular(tmp_path / "a\0b")
    with pytest.raises(InputError, match="There is no file"):
        require_regular(tmp_path / "absent")
