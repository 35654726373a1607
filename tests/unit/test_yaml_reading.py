"""Reading YAML: plain values, merge keys, and bounds; what is wrong is named with its line."""

import os
import time
from pathlib import Path

import pytest

from alight.runtime.errors import InputError
from alight.runtime.yaml_reading import YAML_LIMIT, YamlError, parse_yaml, read_yaml

TEN_BILLION = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
)
MERGED_OVER_AND_OVER = "a0: &a0 {x: 1}\n" + "".join(
    f"a{level}: &a{level} {{<<: [*a{level - 1}, *a{level - 1}]}}\n" for level in range(1, 40)
)
DEEP_BY_ALIASES = "a0: &a0 [x]\n" + "".join(f"a{level}: &a{level} [*a{level - 1}]\n" for level in range(1, 5_000))


# --- values -------------------------------------------------------------------------------------------------------


def test_names_that_look_like_numbers_dates_or_switches_keep_their_spelling():
    text = "[01, 010, 1_000, 12:30, 2024-01-02, 2024-13-45, yes, no, on, off, 0b1, =, <<]"
    assert parse_yaml(text.encode()) == text.strip("[]").split(", ")


def test_numbers_switches_and_nothing_are_those_of_yaml():
    text = b"[0, -3, +4, 0x1F, 0o17, 1e-4, 1., .5, -2.5E+3, true, False, null, ~, .inf]"
    found = parse_yaml(text)
    assert found == [0, -3, 4, 31, 15, 1e-4, 1.0, 0.5, -2500.0, True, False, None, None, float("inf")]
    assert [type(value) for value in found[:6]] == [int] * 5 + [float]


def test_merge_keys_bring_the_referenced_keys_and_explicit_ones_win():
    assert parse_yaml(b"a: &t {x: 1, y: 2}\nb: {<<: *t, y: 3}")["b"] == {"x": 1, "y": 3}
    assert parse_yaml(b"a: &t {x: 1, y: 2}\nb: {y: 3, <<: *t}")["b"] == {"x": 1, "y": 3}
    several = b"a: &a {x: 1}\nb: &b {x: 2, z: 3}\nc: {<<: [*a, *b], q: 4}"
    assert parse_yaml(several)["c"] == {"x": 1, "z": 3, "q": 4}  # the first of several wins
    nested = b"a: &a {x: 1, y: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b, z: 3}"
    assert parse_yaml(nested)["c"] == {"x": 1, "y": 2, "z": 3}
    assert parse_yaml(nested)["b"] == {"x": 1, "y": 2}


def test_aliases_stand_for_copies():
    found = parse_yaml(b"a: &t {x: [1]}\nb: *t")
    found["a"]["x"].append(2)
    assert found["b"] == {"x": [1]}


def test_a_byte_order_mark_is_no_part_of_the_first_key():
    assert parse_yaml(b"\xef\xbb\xbfjob: 1") == {"job": 1}


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: 1\nb: 2\na: 3", "'a' is repeated in line 3"),
        (b"a: &t {x: 1}\nb: {<<: *t, <<: *t}", "'<<' is repeated in line 2"),
        (b"a: &t {x: 1}\nb: {<<: *t, y: 1, y: 2}", "'y' is repeated"),
        (b"a:\n  b: !!int abc", "'abc' in line 2 is not a value of the type int"),
        (b"a: !!int ''", "'' in line 1 is not a value of the type int"),
        (b"a: !!bool maybe", "'maybe' in line 1"),
        (b"a: !!timestamp 2024-99-99", "line 1 has the tag"),
        (b"a: !!python/object/apply:os.system [ls]", "line 1 has the tag"),
        (b"x: 1\na: " + b"[" * 100_000, "line 2 is nested"),
        (b"- " * 100_000, "line 1 is nested"),
        (b"a: " + b"9" * 5_000, "the number in line 1 has 5,000 digits"),
        (b"a: 0x" + b"f" * 5_000, "the number in line 1 has 5,002 digits"),
        (b'x: 1\na: "\\ud800"', "the text in line 2"),
        (b'a: "x\\0y"', "the text in line 1"),
        (b'"\\udfff": 1', "the text in line 1"),
        (b"x: 1\ny: \0", "line 2 holds the control character U+0000"),
        (b"x: 1\n\x1b: 2", "line 2 holds the control character U+001B"),
        (b"x: 1\ny: \xff", "line 2 holds a byte (0xff) that is not UTF-8"),
        (b"x:\n\t- 1", "line 2, column 1"),
        (b"x: 1\n? [1]\n: 2", "the key in line 2 is a list or a mapping"),
        (b"{a: 1}: 2", "the key in line 1 is a list or a mapping"),
        (b"a: &a [*a]", "the alias in line 1 refers to itself"),
        (b"a: &a {b: *a}", "the alias in line 1 refers to itself"),
        (b"a: *b", "line 1, column 4: found undefined alias"),
        (b"a: {<<: 3}", "line 1, column 9"),
        (b"a: {<<: [1]}", "expected a mapping for merging"),
        (b"a: 1\n---\nb: 2", "line 2, column 1: expected a single document"),
        (TEN_BILLION.encode(), "more than 50,000 values"),
        (MERGED_OVER_AND_OVER.encode(), "more than 50,000 values"),
        (DEEP_BY_ALIASES.encode(), "more than 50 levels deep"),
        (b"a: [" + b"1," * 200_000, "more than 50,000 keys and values"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[:30],
)
def test_a_mistake_is_named_with_its_line_in_bounded_time(text, message):
    started = time.process_time()
    with pytest.raises(YamlError) as caught:
        parse_yaml(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400
    assert time.process_time() - started < 10


def test_files_that_never_end_or_are_too_large_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (YAML_LIMIT + 1))
    for name, message in (("pipe.yaml", "regular file"), ("large.yaml", "bytes"), ("absent.yaml", "no file")):
        with pytest.raises(InputError, match=message):
            read_yaml(tmp_path / name)
    with pytest.raises(InputError, match="regular file"):
        read_yaml(Path("/dev/zero"))


def test_the_file_is_named(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("a: [\n")
    with pytest.raises(InputError, match=r"recipe\.yaml is not valid YAML.*line 2"):
        read_yaml(path)
