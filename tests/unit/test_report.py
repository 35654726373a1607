"""The report: strict data, a page that loads nothing and hides nothing, files that are replaced together."""

import base64
import io
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alight.reporting.files import write_report
from alight.reporting.page import render_page
from alight.reporting.pictures import image_grid
from alight.reporting.report import Answer, Comparison, Curve, Figure, Picture, Report, Stage, in_a_sentence
from alight.runtime.errors import InputError
from helpers.pictures import digit_images
from helpers.report_files import Page, read_json

NASTY = "</style><script src='//evil.example/x.js'>alert(\"1\")</script> & $title ${summary} <img src=x onerror=y>"


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return digit_images()


@pytest.fixture
def report(digits: np.ndarray) -> Report:
    real = Figure("real_accuracy", "real held-out images", 0.981, digits=3, conditions={"n": 297})
    conditions = {"n": 500, "solver": "euler", "guidance scale": 2.0, "weights": "sha256:9f2c41d0"}
    return Report(
        title="Digits",
        summary="One paragraph.",
        figures=(
            Figure(
                "accuracy", "Accuracy", 0.9524, digits=3, conditions=conditions, compare=real, explanation="Share."
            ),
            Figure("reconstruction_psnr", "Reconstruction", 30.12, "dB", digits=1, reference=("goal", 27.0)),
            Figure("diverged", "Diverged", math.nan, conditions={"bound": math.inf}, headline=False),
        ),
        pictures=(Picture("Samples", "Ten.", image_grid(digits[:10], 5), magnify=2, row_labels=("first", "second")),),
        curves=(Curve("Tokenizer", "step", "loss", {"total": ([1, 2, 3], [3.0, math.nan, 1.0])}, log_y=True),),
        stages=(Stage("tokenizer", 100.1, {"steps": 1500}), Stage("transformer", 200.2)),
        configuration={
            "seed": 0,
            "tokenizer": {"optimizer": {"lr": 2e-3, "adam": {"betas": [0.9, 0.95]}}, "folder": Path("a/b")},
        },
        versions={"torch": "2.13.0"},
        notes=("Inception features were not measured.",),
    )


# ---- report.json


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("Label accuracy", "label accuracy"),
        ("Density CV", "density CV"),
        ("Frechet distance, observer", "Frechet distance, observer"),
        ("Gram agreement", "Gram agreement"),
        ("Ambiguity bound of channels", "ambiguity bound of channels"),
        ("PSNR", "PSNR"),
        ("", ""),
    ],
)
def test_labels_become_words_of_a_sentence(label: str, words: str) -> None:
    assert in_a_sentence(label) == words


def test_json_is_strict_and_holds_plain_values_and_conditions(tmp_path: Path, report: Report) -> None:
    write_report(tmp_path, report)
    data = read_json(tmp_path)
    assert data["accuracy"] == 0.9524  # all decimals, not the three on the page
    assert data["real_accuracy"] == 0.981
    assert data["reconstruction_psnr"] == 30.12
    assert data["diverged"] is None
    assert data["seconds_total"] == 300.3
    first, second, third = data["figures"]
    assert first["conditions"] == {"n": 500, "solver": "euler", "guidance scale": 2.0, "weights": "sha256:9f2c41d0"}
    assert first["compare"]["value"] == 0.981
    assert (second["unit"], second["reference"]) == ("dB", ["goal", 27.0])
    assert (third["value"], third["conditions"]) == (None, {"bound": None})
    assert data["stages"][0] == {"name": "tokenizer", "seconds": 100.1, "summary": {"steps": 1500}}
    assert data["curves"][0]["series"] == {"total": {"x": [1, 2, 3], "y": [3.0, None, 1.0]}}
    assert data["configuration"]["tokenizer"] == {
        "optimizer": {"lr": 0.002, "adam": {"betas": [0.9, 0.95]}},
        "folder": "a/b",
    }
    assert data["versions"] == {"torch": "2.13.0"}
    assert data["notes"] == ["Inception features were not measured."]


def test_json_takes_numpy_and_keeps_lists_of_numbers_on_one_line(tmp_path: Path) -> None:
    y = np.array([1.0, np.inf, 1e-9, -2.5e20], dtype=np.float64)
    configuration = {
        "a": np.float32(0.5),
        "b": np.int64(3),
        "c": (np.bool_(True), None),
        4: np.arange(2),
        "s": "[\n 1\n]",
    }
    curve = Curve("c", "x", "y", {"s": (np.arange(4), y)})
    write_report(tmp_path, Report("t", "s", curves=(curve,), configuration=configuration))
    data = read_json(tmp_path)
    assert data["configuration"] == {"a": 0.5, "b": 3, "c": [True, None], "4": [0, 1], "s": "[\n 1\n]"}
    assert data["curves"][0]["series"]["s"]["y"] == [1.0, None, 1e-9, -2.5e20]
    assert "[1.0, null, 1e-09, -2.5e+20]" in (tmp_path / "report.json").read_text()


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Report("t", "s", figures=(Figure("a", "A", 1.0), Figure("a", "B", 2.0))), "'a'"),
        (lambda: Report("t", "s", figures=(Figure("curves", "A", 1.0),)), "'curves'"),
        (lambda: Figure("two words", "A", 1.0), "two words"),
        (lambda: Figure("a", "A", "1.0"), "str"),  # type: ignore[arg-type]
        (lambda: Figure("a", "A", 1.0, digits=-1), "-1"),
        (lambda: Comparison(("one", "two"), {"PSNR": [None]}), "'PSNR'"),
        (lambda: Curve("c", "x", "y", {"loss": ([1, 2], [1.0])}), "'loss'"),
        (lambda: Curve("c", "x", "y", {"loss": ([1, 2], [1, 2])}, labels={"loss": ["d8"]}), "2 points and 1 labels"),
        (lambda: Curve("c", "x", "y", {"loss": ([1], [1])}, bars={"loss": []}), "1 points and 0 bars"),
        (lambda: Picture("p", "", np.zeros((4, 4, 3), dtype=np.float32)), "float32"),
        (lambda: Picture("p", "", np.zeros((4, 4), dtype=np.uint8)), "(4, 4)"),
        (lambda: Picture("p", "", np.zeros((4, 4, 3), dtype=np.uint8), magnify=0), "magnify=0"),
    ],
)
def test_a_wrong_part_is_refused_by_name(build: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        build()


def test_one_real_measurement_may_serve_two_figures(tmp_path: Path) -> None:
    real = Figure("real", "real images", math.nan)
    write_report(
        tmp_path, Report("t", "s", (Figure("a", "A", 1.0, compare=real), Figure("b", "B", 2.0, compare=real)))
    )
    assert read_json(tmp_path)["real"] is None


# ---- report.html


def assert_self_contained(html: str) -> None:
    page = Page(html)
    assert not {tag for tag, _ in page.elements} & {"script", "iframe", "object", "embed", "base", "video", "audio"}
    assert all(source.startswith("data:image/png;base64,") for source in page.attributes("src"))
    assert all(target.startswith(("#", "data:,")) for target in page.attributes("href"))
    for name in ("srcset", "action", "xlink:href", "poster", "background"):
        assert page.attributes(name) == []
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in style


def test_page_is_self_contained(report: Report) -> None:
    html = render_page(report)
    assert_self_contained(html)
    assert "http://" not in html
    assert "https://" not in html
    # Should a text ever escape its escaping, the browser still may not load anything.
    assert "default-src 'none'" in html


def test_links_lead_to_parts_of_the_page(report: Report) -> None:
    page = Page(render_page(report))
    identifiers = page.attributes("id")
    assert len(identifiers) == len(set(identifiers))
    targets = [target[1:] for target in page.attributes("href") if target.startswith("#")]
    assert targets == ["figure-accuracy", "figure-reconstruction_psnr"]
    assert set(targets) <= set(identifiers)


def test_page_shows_every_part(report: Report) -> None:
    text = Page(render_page(report)).text
    shown = (
        "Digits",
        "One paragraph.",
        "0.952",
        "real held-out images",
        "0.981",
        "goal",
        "27.0",
        "Share.",
        "30.1",
        "dB",
    )
    shown += ("n 500", "solver euler", "guidance scale 2", "weights sha256:9f2c41d0", "n 297", "real_accuracy")
    shown += ("Diverged", "not finite", "bound not finite", "none given", "Samples", "Ten.", "first", "second")
    shown += (
        "Tokenizer",
        "step",
        "loss",
        "total",
        "1 of 3 values cannot be drawn",
        "1 min 40 s",
        "steps 1500",
        "5 min 00 s",
    )
    shown += ("optimizer.lr 0.002", "optimizer.adam.betas 0.9, 0.95", "folder a/b", "seed 0", "torch 2.13.0")
    shown += ("Inception features were not measured.",)
    assert [part for part in shown if part not in text] == []


def test_a_mean_shows_its_interval_or_that_there_is_none(tmp_path: Path) -> None:
    mean = Figure("gain", "Gain", 0.12, digits=2, interval=(0.05, 0.19))
    alone = Figure("alone", "Alone", 0.5, interval=(math.nan, math.nan))
    write_report(tmp_path, Report("t", "s", figures=(mean, alone)))
    page = (tmp_path / "report.html").read_text()
    assert "0.05 to 0.19" in page
    assert "one run" in page
    stored = {figure["name"]: figure["interval"] for figure in read_json(tmp_path)["figures"]}
    assert stored == {"gain": [0.05, 0.19], "alone": [None, None]}


def test_only_headline_figures_are_cards(report: Report) -> None:
    cards = [attributes for tag, attributes in Page(render_page(report)).elements if tag == "article"]
    assert len(cards) == 2


def test_parts_that_are_not_there_leave_no_heading(report: Report) -> None:
    page = Page(render_page(Report("Title", "Summary")))
    assert [tag for tag, _ in page.elements if tag in ("section", "h2", "table")] == []
    assert len([tag for tag, _ in Page(render_page(report)).elements if tag == "h2"]) == 7


def test_every_text_is_escaped(digits: np.ndarray) -> None:
    given: list[str] = []

    def nasty() -> str:
        given.append(f"{NASTY} {len(given)}.")
        return given[-1]

    compare = Figure("b", nasty(), 3.0, nasty(), conditions={nasty(): nasty()})
    figure = Figure(
        "a",
        nasty(),
        1.0,
        nasty(),
        2,
        {nasty(): nasty()},
        reference=(nasty(), 2.0),
        explanation=nasty(),
        compare=compare,
    )
    report = Report(
        nasty(),
        nasty(),
        figures=(figure,),
        pictures=(Picture(nasty(), nasty(), digits[0], row_labels=(nasty(),)),),
        curves=(Curve(nasty(), nasty(), nasty(), {nasty(): ([0, 1], [0.0, 1.0])}),),
        stages=(Stage(nasty(), 1.0, {nasty(): nasty()}),),
        configuration={nasty(): {"a": {"b": [nasty()]}}, nasty(): nasty()},
        versions={nasty(): nasty()},
        notes=(nasty(),),
        answer=Answer(nasty(), nasty(), [nasty()], [nasty()], nasty()),
        comparison=Comparison([nasty()], {nasty(): [Figure("c", "", 1.0, nasty(), explanation=nasty())]}),
        distributions=(Curve(nasty(), nasty(), nasty(), {nasty(): ([0, 1], [0.0, 1.0])}),),
    )
    html = render_page(report)
    assert_self_contained(html)
    page = Page(html)
    assert [text for text in given if text not in page.text] == []  # each arrives as the text that it is
    assert [attributes["alt"] for tag, attributes in page.elements if tag == "img"] == [report.pictures[0].title]
    assert [attributes["aria-label"] for tag, attributes in page.elements if attributes.get("class") == "plot"] == [
        report.distributions[0].title,
        report.curves[0].title,
    ]


def test_pictures_arrive_pixel_by_pixel(digits: np.ndarray) -> None:
    grid = image_grid(digits[:6], 3)
    for image in (grid, grid[..., :3], digits[0]):
        page = Page(render_page(Report("t", "s", pictures=(Picture("p", "c", image, magnify=3),))))
        (element,) = [attributes for tag, attributes in page.elements if tag == "img"]
        png = Image.open(io.BytesIO(base64.b64decode(str(element["src"]).partition(",")[2])))
        np.testing.assert_array_equal(np.asarray(png).reshape(image.shape), image)
        assert (element["width"], element["height"]) == (str(3 * image.shape[1]), str(3 * image.shape[0]))
        assert element["class"] == "crisp"


# ---- files


def test_write_report_returns_the_page_and_leaves_two_files(tmp_path: Path, report: Report) -> None:
    page = write_report(tmp_path / "new" / "report", report)
    assert page.read_text(encoding="utf-8") == render_page(report)
    assert sorted(path.name for path in page.parent.iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize(("broken", "call"), [("fsync", 1), ("replace", 1)])
def test_a_failure_leaves_the_old_report_intact(
    tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch, broken: str, call: int
) -> None:
    write_report(tmp_path, Report("Old", "Old."))
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    works, calls = getattr(os, broken), []

    def fails_at_last(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == call:
            raise OSError("no space left on device")
        return works(*arguments)

    monkeypatch.setattr(os, broken, fails_at_last)
    with pytest.raises(OSError, match="no space left"):
        write_report(tmp_path, report)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_a_file_in_the_way_is_the_users_to_move(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="in the way|is a file"):
            write_report(folder, Report("t", "s"))


def test_characters_outside_unicode_do_not_cost_the_report(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")  # a file name in Latin-1, as Python reads it
    write_report(tmp_path, Report("t", name))
    assert read_json(tmp_path)["summary"] == name
