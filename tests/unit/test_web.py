"""The parts of the browser app that need no browser: markup, pictures, latents in colours and work that stops."""

import ast
import io
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from alight.artifacts import write_manifest
from alight.config import SolverConfig
from alight.data.class_names import class_index, readable_class_names
from alight.data.readable_names import folded
from alight.flow import GuidedVelocity
from alight.models.pretrained import WEIGHTS_FILE
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash
from alight.web import markup, served
from alight.web.compare_tab import labels_of
from alight.web.controls import SolverControls, settings
from alight.web.interpolation import MixedVelocity, between_latents
from alight.web.jobs import Jobs, Stopped, stream
from alight.web.latent_views import channel_maps, pca_pictures
from alight.web.latents_tab import structure
from alight.web.markup import (
    Shown,
    element,
    figures,
    heading,
    hint,
    message_text,
    page_head,
    row_name,
    status,
    summary,
)
from alight.web.pictures import PictureStore, png_bytes
from alight.web.sampling import sample_request


def test_the_store_forgets_the_oldest_beyond_its_capacity():
    store = PictureStore(capacity=100)
    keys = [store.add("a.png", bytes(40)).split("/")[1] for _ in range(4)]
    assert store.size <= 100
    assert [store.get(key) is not None for key in keys] == [False, False, True, True]


def test_png_carries_its_settings_in_any_script():
    image = np.zeros((4, 5, 3), np.uint8)
    settings = {"class": "Schäferhund", "seed": 7}
    with Image.open(io.BytesIO(png_bytes(image, settings))) as png:
        assert png.size == (5, 4)
        assert (png.info["class"], png.info["seed"]) == ("Schäferhund", "7")


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


@pytest.mark.parametrize(
    "made",
    [
        lambda: status(HOSTILE, 0.5),
        lambda: hint(HOSTILE),
        lambda: heading(HOSTILE, HOSTILE),
        lambda: row_name(HOSTILE),
        lambda: page_head(HOSTILE, HOSTILE),
        lambda: summary(HOSTILE, [(HOSTILE, HOSTILE, HOSTILE)]),
        lambda: figures([Shown(HOSTILE, HOSTILE, HOSTILE, HOSTILE)], 32),
        lambda: element("p", HOSTILE, title=HOSTILE),
        lambda: message_text(HOSTILE),
        lambda: hint("") + HOSTILE,
        lambda: HOSTILE + hint(""),
    ],
)
def test_texts_cannot_become_markup(made):
    page = made()
    assert "<script" not in page
    assert "<img src=x" not in page


def test_a_foundation_models_name_cannot_become_markup():
    foundation = SimpleNamespace(name="folder/<img src=x onerror=alert(1)>")
    which = SimpleNamespace(foundation=foundation, main=SimpleNamespace(image_size=8))
    app = SimpleNamespace(served=which, pictures=PictureStore())
    grids = torch.randn(2, 4, 8, 8)
    page = structure(app, np.zeros((2, 8, 8, 3), np.uint8), grids, grids)
    assert "Features of" in page
    assert "<img src=x" not in page


@pytest.mark.parametrize("path", sorted(Path(markup.__file__).parent.glob("*.py")), ids=lambda path: path.name)
def test_only_one_file_of_the_app_writes_tags(path):
    if path.name == "markup.py":
        return
    texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    assert not [text for text in texts if isinstance(text, str) and re.search("</?[a-z]", text)]


def test_channels_are_blue_below_and_orange_above_their_mean():
    low, zero, high = channel_maps(torch.tensor([-9.0, 0.0, 9.0]).view(1, 1, 3))[0, 0]
    assert low[2] > low[0]
    assert high[0] > high[2]
    assert zero.min() > 240


def test_equal_vectors_have_equal_colours_and_three_directions_become_red_green_and_blue():
    directions = torch.eye(3).view(3, 3, 1, 1) * torch.tensor([3.0, 2.0, 1.0]).view(3, 1, 1, 1)  # (3, 3, 1, 1)
    grids = torch.cat([directions, directions])
    pictures = pca_pictures(grids)
    np.testing.assert_array_equal(pictures[:3], pictures[3:])
    assert len(np.unique(pictures[:3].reshape(3, 3), axis=0)) == 3
    assert pca_pictures(torch.ones(1, 2, 1, 1)).shape == (1, 1, 1, 3)


def test_the_way_between_latents_is_straight_and_ends_where_it_should():
    first, last = torch.randn(2, 3, 2, 2).unbind()
    way = between_latents(first, last, 5)
    assert way.shape == (5, 3, 2, 2)
    torch.testing.assert_close(way[[0, 2, 4]], torch.stack([first, (first + last) / 2, last]))


def test_mixed_velocities_are_those_of_the_ends_at_the_ends():
    def model(x, t, labels):
        return x * (labels + 1).view(-1, 1, 1, 1)

    one, two = (GuidedVelocity(model, torch.full((3,), label)) for label in (0, 4))
    x = torch.randn(3, 2, 2, 2)
    mixed = MixedVelocity(one, two, torch.tensor([0, 0.5, 1]).view(-1, 1, 1, 1))(x, 0.3)
    torch.testing.assert_close(mixed, x * torch.tensor([1, 3, 5]).view(-1, 1, 1, 1))


def test_work_is_told_of_its_stop_and_its_error_is_raised_where_it_is_watched():
    stop, ended = threading.Event(), threading.Event()

    def endless(tell):
        tell(1)
        assert stop.wait(10)
        ended.set()
        raise Stopped

    watched = stream(endless, stop)
    assert next(watched) == 1
    watched.close()  # nobody listens any more
    assert ended.is_set()

    def failing(tell):
        tell(1)
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        list(stream(failing, threading.Event()))


def test_work_that_ends_by_itself_leaves_its_stop_alone():
    stop = threading.Event()
    assert list(stream(lambda tell: tell(2), stop)) == [2]
    assert not stop.is_set()


def test_a_later_job_of_a_session_takes_the_place_of_the_earlier():
    jobs = Jobs()
    first, second = jobs.start("a"), jobs.start("a")
    other = jobs.start("b")
    assert (first.is_set(), second.is_set()) == (True, False)
    assert jobs.stop("a")
    assert second.is_set()
    assert not jobs.stop("a")
    assert not other.is_set()


def test_image_i_has_the_ith_seed_whatever_its_class():
    one = sample_request([3], 4, 7, {}, max_images=10)
    two = sample_request([5, 6], 2, 7, {}, max_images=10)
    assert one.seeds == two.seeds
    assert two.labels == (5, 5, 6, 6)
    for count in (None, 0, 1.5, float("nan"), float("inf")):
        with pytest.raises(InputError, match="number of images"):
            sample_request([3], count, 7, {}, max_images=10)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"timestep_shift": 0.5, "time_warp": None, "kappa": 0.5}),
        ({"solver": "sde_euler"}, {"timestep_shift": 0.5, "solver": "sde_euler"}),
        ({"solver": "ucgm"}, {"solver": "ucgm", "kappa": 0.3}),
        ({"ucgm_grid": True}, {"timestep_shift": None, "time_warp": (1.17, 0.8, 1.1)}),
    ],
)
def test_the_controls_of_a_solver_are_settings_that_go_together(changes, expected):
    values = {"steps": 5, "guidance": 1.5, "low": 0, "high": 1, "shift": 0.5, "solver": "euler", "channels": 0}
    values |= {"internal": 1.0, "internal_low": 0, "internal_high": 1}
    chosen = SolverControls(**values | {"kappa": 0.3, "ucgm_grid": False} | changes)
    found = SolverConfig.model_validate(settings(chosen))
    assert {name: getattr(found, name) for name in expected} == expected


def test_the_page_begins_with_what_a_search_has_found_else_with_the_runs_own_settings(tmp_path):
    write_manifest(tmp_path, "samples", {"sampling": {"solver": "heun", "guidance_scale": 1.5}}, "s" * 64)
    (tmp_path / "samples").mkdir()
    (tmp_path / "alight.json").rename(tmp_path / "samples" / "alight.json")
    tuned = SimpleNamespace(recommended_sampling={"solver": "ab2", "num_inference_steps": 10})
    untuned = SimpleNamespace(recommended_sampling={})
    assert served.starting_settings(tuned, tmp_path) == SolverConfig(solver="ab2", num_inference_steps=10)
    assert served.starting_settings(untuned, tmp_path) == SolverConfig(solver="heun", guidance_scale=1.5)
    assert served.starting_settings(untuned, tmp_path / "elsewhere") == SolverConfig()


def served_with(names):
    """As much of a pipeline as the names of its classes need."""
    transformer = SimpleNamespace(config=SimpleNamespace(num_classes=len(names)))
    known = readable_class_names(names, len(names))

    def resolve_labels(wanted):
        return [class_index(label, known, len(names)) for label in wanted]

    pipeline = SimpleNamespace(class_names=known, transformer=transformer, resolve_labels=resolve_labels)
    return served.ServedPipeline("p", pipeline, {}, SolverConfig())


def test_classes_are_the_same_in_every_normal_form_of_their_names():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    one, two = served_with(["tea", composed]), served_with([decomposed, "tea"])
    assert labels_of(two, one, [1, 0]) == [0, 1]


def test_classes_whose_names_look_the_same_are_told_apart():
    alike = served_with(["caf\u00e9", "cafe\u0301", "tea"])
    shown = [alike.class_choice(label) for label in range(3)]
    assert len(set(map(folded, shown))) == 3
    assert shown[2] == "tea"


def test_the_tokenizers_record_leads_to_the_foundation_model_whatever_its_folder_is_called(tmp_path):
    run, foundation = tmp_path / "run", tmp_path / "vit"
    foundation.mkdir()
    places = {
        run / "pipeline" / "tokenizer": b"mine",
        run / "pipeline" / "transformer": b"other",
        run / "vavae": b"mine",
    }
    for folder, weights in places.items():
        folder.mkdir(parents=True)
        (folder / WEIGHTS_FILE).write_bytes(weights)
    (run / "pipeline" / "model_index.json").write_text("{}")
    write_manifest(
        run / "vavae", "tokenizer", {}, file_hash(run / "vavae" / WEIGHTS_FILE), facts={"foundation": str(foundation)}
    )
    for given in (run, run / "pipeline"):
        assert served.recorded_foundation(given) == str(foundation)
    (run / "pipeline" / "tokenizer" / WEIGHTS_FILE).write_bytes(b"others")
    assert served.recorded_foundation(run) is None


def test_a_model_of_the_hub_is_not_downloaded_because_a_record_names_it():
    assert not served.is_local_folder("facebook/dinov2-base")
    assert not served.is_local_folder("x" * 10_000)
    assert not served.is_local_folder("a\0b")
