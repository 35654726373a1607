"""The model card under hostile names: what a reader's program makes of it is text, and its metadata stay its own."""

import re

import pytest
import yaml

from alight.artifacts import Artifact
from alight.sharing.escaping import code, markdown, plain
from alight.sharing.model_card import Shared, model_card

markdown_it = pytest.importorskip("markdown_it")

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "<!-- hidden -->",
    "</details><h1>big</h1>",
    "[click](https://evil.example)",
    "![shown](https://evil.example/a.png)",
    "x](https://evil.example)![y",
    "<https://evil.example>",
    "# heading",
    "- item",
    "1. item",
    "> quote",
    "```\ncode\n```",
    "`code`",
    "*strong* __strong__ ~~gone~~ _em_",
    "| cell | cell |",
    "a\n\n# heading\n\nb",
    "a\n---\nlicense: mit\n---\nb",
    "[ref]: https://evil.example",
    "&lt;b&gt; &amp;",
    "back\\slash \\",
    "$x$ $$y$$",
    "nul\0 escape\x1b[31m half\ud800 turned\u202e",
    "a: {b: [c",
    "'",
    '"',
    "!!python/name:os.system",
    "%YAML",
    "@mention",
    "key: value # comment",
]


def rendered(text):
    return markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)


def tags(html):
    return set(re.findall(r"<[a-zA-Z!/][^>\s]*", html))


def record(kind, hostile):
    return Artifact(
        path="x",
        kind=kind,
        config={
            "images": {"source": f"hf:{hostile}"},
            "training": {"precision": hostile},
            hostile: {hostile: hostile},
        },
        hash=hostile,
        facts={"foundation": hostile, "steps": hostile, "converted_from": hostile},
        versions={hostile: hostile},
        seconds=3.0,
    )


def card(hostile, **changed):
    figure = {
        "name": hostile,
        "label": hostile,
        "value": 1.0,
        "digits": 2,
        "unit": hostile,
        "conditions": {hostile: hostile, "transformer": "abc"},
        "headline": True,
        "compare": None,
    }
    values = {
        "name": hostile,
        "license": "mit",
        "tokenizer": record("tokenizer", hostile),
        "transformer": record("transformer", hostile),
        "shape": "f16d32",
        "image_size": 32,
        "parameters": {"tokenizer": 1, "transformer": 2},
        "class_names": [hostile, hostile],
        "sampling": {"sampling": {"solver": hostile, "num_inference_steps": 3}},
        "report": {"figures": [figure], "notes": [hostile], "configuration": {}},
        "pictures": {"samples.png": hostile},
        "address": hostile,
    }
    return model_card(Shared(**(values | changed)))


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_exactly_the_text(text):
    html = rendered(f"{markdown(text)}\n")
    assert tags(html) <= {"<p", "</p"}, html
    shown = html.removeprefix("<p>").removesuffix("</p>\n")
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        shown = shown.replace(entity, character)
    assert shown == plain(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name_changes_the_structure_of_the_card(text):
    head, _, body = card(text).removeprefix("---\n").partition("\n---\n")
    harmless = rendered(card("harmless").partition("\n---\n")[2])
    html = rendered(body)
    assert tags(html) <= tags(harmless), tags(html) - tags(harmless)
    for tag in ("<h1", "<h2", "<a", "<img", "<table", "<tr", "<td", "<details", "<pre", "<ul", "<li"):
        assert html.count(tag) == harmless.count(tag), tag
    assert "evil" not in "".join(part.split(">")[0] for part in html.split("<a")[1:])
    metadata = yaml.safe_load(head)
    expected = yaml.safe_load(card("harmless").removeprefix("---\n").partition("\n---\n")[0])
    assert list(metadata) == list(expected)
    assert metadata["license"] == "mit"
    assert metadata["model-index"][0]["name"] == plain(text)


def test_usual_names_stay_readable_in_the_source():
    for text in ("LightningDiT-XL/1", "num_inference_steps 3", "golden retriever", "hf:owner/name", "0.5", "1e-05"):
        assert markdown(text) == text


def test_inline_code_holds_its_marks():
    assert code("abc") == "`abc`"
    assert rendered(code("a`b``c")) == "<p><code>a`b``c</code></p>\n"


def test_text_that_is_markup_is_not_escaped_twice():
    assert markdown(markdown("a|b")) == "a\\|b"
    assert markdown(code("a*b")) == "`a*b`"


def test_records_of_wrong_shape_are_left_out():
    for broken in (None, 3, "text", [1], {"images": 3}, {"images": {"source": [1]}}):
        values = broken if isinstance(broken, dict) else {"images": broken}
        bare = Artifact(path="x", kind="tokenizer", config=values, hash="abc")
        text = card("name", tokenizer=bare, transformer=None, report=None, sampling=None, class_names=())
        assert "# name" in text


@pytest.mark.parametrize("name", ["AutoencoderRAE", "RepresentationAutoencoder"])
def test_a_frozen_encoder_whose_name_is_not_recorded_is_no_variational_autoencoder(name):
    bare = Artifact(path="x", kind="tokenizer", config={}, hash="abc")
    text = card("name", tokenizer=bare, tokenizer_class=name, transformer=None, report=None, sampling=None)
    assert "a representation autoencoder in the format of" in text
    assert "variational" not in text


def test_the_code_in_the_card_ends_where_the_recommended_settings_end():
    sampling = {"num_inference_steps": 3, "timestep_shift": "auto", "last_time": 0.999}
    assert "timestep_shift='auto', last_time=0.999)" in card("name", sampling={"sampling": sampling})


def test_latents_on_the_sphere_are_put_there_by_the_code_in_the_card():
    alone = {"transformer": None, "report": None, "sampling": None}
    assert "onto the sphere" in card("name", latent_space="sphere", **alone)
    assert "onto the sphere" not in card("name", **alone)
