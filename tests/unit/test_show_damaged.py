"""`alight info` and `alight report` of damaged or odd files: something true, or a sentence; never a traceback."""

import json
import os
import random
import struct

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from alight.config import InfoConfig, ReportConfig
from alight.runtime.errors import InputError
from alight.show import info, reports

FIGURE = {"name": "psnr", "label": "PSNR", "value": 9.5, "conditions": {"images": 3}, "digits": 2, "unit": "dB"}
REPORT = {"title": "A report", "figures": [FIGURE | {"compare": FIGURE | {"name": "other"}}]}


def describe(path):
    """Both forms of what is said."""
    found = info.run(InfoConfig(path=path))
    return f"{found}{json.dumps(found.as_data(), default=str)}"


def sentence_or_text(function, *arguments):
    try:
        return function(*arguments)
    except InputError as error:
        text = str(error)
    assert text.count("\n") == 0
    return text


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "\xff", "[" * 100_000, '{"a": NaN}', '"\\ud800"', "1" * 5000, '{"a": ' + "9" * 5000 + "}"),
    ],
)
@pytest.mark.parametrize("name", ["x.json", "report.json", "config.json", "alight.json", "model_index.json"])
def test_files_that_are_no_json_are_a_sentence(text, name, tmp_path):
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=name):
        describe(tmp_path / name)
    if name in ("config.json", "model_index.json"):
        with pytest.raises(InputError, match=name):
            describe(tmp_path)


@pytest.mark.parametrize("value", [None, [], 3, "text", True, [[1, {"a": None}]], {"": {}}, {"a": 1e999}])
def test_json_of_any_shape_is_described(value, tmp_path):
    for name in ("x.json", "report.json", "samples.json"):
        (tmp_path / name).write_text(json.dumps(value).replace("Infinity", "1e999"))
        assert name in describe(tmp_path / name)


def test_deep_nesting_is_shown_to_a_depth(tmp_path):
    for opening, closing in (("[", "]"), ('{"a": ', "}")):
        (tmp_path / "x.json").write_text(opening * 150 + "1" + closing * 150)
        assert "..." in str(info.run(InfoConfig(path=tmp_path / "x.json")))


def test_nothing_in_a_file_commands_the_terminal(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"a\x1b[31m": "b\x1b]0;title\x07", "c": ["\x9b2J"]}))
    text = str(info.run(InfoConfig(path=tmp_path / "x.json")))
    assert not set(text) & set("\x1b\x07\x9b")
    (tmp_path / "report.json").write_text(json.dumps(REPORT | {"title": "\x1b[2J"}))
    assert "\x1b" not in str(reports.run(ReportConfig(folders=(tmp_path,))))


def test_a_log_with_damaged_lines_tells_how_many(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": \xff}\n{"step": 3}\n{"st')
    found = info.run(InfoConfig(path=path)).as_data()
    assert (found["lines"], found["damaged lines"], found["last"]) == (4, 2, {"step": 3})
    path.write_bytes(b"\xff\xfe\n\x00")
    with pytest.raises(InputError, match="none of its 2 lines"):
        describe(path)
    path.write_bytes(b"")
    assert info.run(InfoConfig(path=path)).as_data()["lines"] == 0


def test_what_is_no_regular_file_is_a_sentence(tmp_path):
    for suffix in (".json", ".png", ".npz", ".pt", ".safetensors", ".jsonl", ""):
        os.mkfifo(tmp_path / f"pipe{suffix}")
        with pytest.raises(InputError, match="not a regular file"):
            describe(tmp_path / f"pipe{suffix}")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "model" / "weights.safetensors")
    with pytest.raises(InputError, match="not a regular file"):
        describe(tmp_path / "model")
    for path in (tmp_path / ("a" * 300), tmp_path / "a\0b", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="300 bytes|NUL|null|no file"):  # some by the configuration already
            describe(path)


def test_pictures_and_weights_that_announce_too_much_are_a_sentence(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "large.png")
    data = bytearray((tmp_path / "large.png").read_bytes())
    data[16:24] = struct.pack(">II", 2**30, 2**30)
    (tmp_path / "large.png").write_bytes(data)
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "large.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    for name in ("large.png", "large.safetensors"):
        with pytest.raises(InputError, match=name):
            describe(tmp_path / name)


@pytest.mark.parametrize("contents", [None, [1], torch.zeros(2), {}, {"a": "x" * 10_000}, {3: None}, {"ema": None}])
def test_torch_files_of_any_content_are_described(contents, tmp_path):
    torch.save(contents, tmp_path / "x.pt")
    assert len(describe(tmp_path / "x.pt")) < 2_000


@pytest.mark.parametrize(
    "index",
    [
        {"_class_name": 3},
        {"_class_name": [None, 3]},
        {"transformer": []},
        {"transformer": [1, 2, 3]},
        {"transformer": [None, {}]},
        {"..": ["a", "b"]},
        {"../secret": ["a", "b"]},
        {"a\0b": ["a", "b"]},
    ],
)
def test_an_index_of_any_shape_names_parts_of_its_folder_alone(index, tmp_path):
    (tmp_path / "secret").mkdir()
    save_file({"hidden": torch.zeros(3)}, tmp_path / "secret" / "x.safetensors")
    (tmp_path / "pipeline" / "transformer").mkdir(parents=True)
    (tmp_path / "pipeline" / "model_index.json").write_text(json.dumps(index))
    assert "x.safetensors" not in describe(tmp_path / "pipeline")


@pytest.mark.parametrize("seconds", ["3", None, [], -1, 1e999, True])
def test_unfinished_samples_of_the_wrong_shape_are_a_sentence(seconds, tmp_path):
    (tmp_path / "unfinished.json").write_text(json.dumps({"seconds": seconds}).replace("Infinity", "1e999"))
    with pytest.raises(InputError, match=r"unfinished\.json"):
        describe(tmp_path)


WRONG = {
    "title a number": {"title": 3},
    "no title": {"title": None},
    "figures a mapping": {"figures": {}},
    "figure a text": {"figures": ["psnr"]},
    "value a text": {"figures": [FIGURE | {"value": "9"}]},
    "value beyond numbers": {"figures": [FIGURE | {"value": 10**400}]},
    "name a list": {"figures": [FIGURE | {"name": ["a"]}]},
    "label null": {"figures": [FIGURE | {"label": None}]},
    "conditions a list": {"figures": [FIGURE | {"conditions": [1]}]},
    "digits negative": {"figures": [FIGURE | {"digits": -1}]},
    "digits endless": {"figures": [FIGURE | {"digits": 10**9}]},
    "unit a number": {"figures": [FIGURE | {"unit": 3}]},
    "compared with a text": {"figures": [FIGURE | {"compare": "x"}]},
}


@pytest.mark.parametrize("case", WRONG)
def test_a_report_of_the_wrong_shape_is_a_sentence(case, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    assert "PSNR" in str(reports.run(ReportConfig(folders=(tmp_path,))))
    (tmp_path / "report.json").write_text(json.dumps(REPORT | WRONG[case]))
    with pytest.raises(InputError, match="not a report of alight"):
        str(reports.run(ReportConfig(folders=(tmp_path,))))


def test_any_damage_is_described_or_a_sentence(tmp_path):
    rng = random.Random(0)
    Image.new("RGB", (5, 5)).save(tmp_path / "a.png")
    torch.save({"ema": {"x": torch.zeros(3)}, "step": 3}, tmp_path / "a.pt")
    save_file({"x": torch.zeros(3)}, tmp_path / "a.safetensors")
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    (tmp_path / "a.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    (tmp_path / "a.yaml").write_text("job: sample\nseed: 3\n")
    for path in sorted(tmp_path.glob("*.*")):
        whole = path.read_bytes()
        for _ in range(60):
            data = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.2 else whole)
            for _ in range(rng.choice([1, 1, 8]) if data else 0):
                data[rng.randrange(len(data))] = rng.randrange(256)
            path.write_bytes(data)
            assert sentence_or_text(describe, path)
            if path.name == "report.json":
                assert sentence_or_text(lambda: str(reports.run(ReportConfig(folders=(tmp_path,)))))
        path.write_bytes(whole)
