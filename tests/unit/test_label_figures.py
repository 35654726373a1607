"""Label accuracy in reports: classes whose only images are held out are left out."""

import numpy as np
import pytest
from PIL import Image

from alight.config import ImagesConfig
from alight.data.loading import open_dataset, open_source
from alight.evaluation.generated import NpzImages
from alight.evaluation.label_figures import label_figure, score_labels

COLOURS = {"black": 0, "white": 255, "grey": 120}


def dataset(folder, names):
    """A folder of classes, each an evenly coloured image per name, and its training images."""
    for colour, files in names.items():
        (folder / colour).mkdir(parents=True)
        for file in files:
            Image.new("RGB", (16, 16), (COLOURS[colour],) * 3).save(folder / colour / f"{file}.png")
    config = ImagesConfig(source=str(folder), size=16, held_out_fraction=0.2)
    return config, open_dataset(config, "train", augment=False)


def held_out_name(folder, colour):
    """The name of an image of the class that is held out."""
    return next(str(n) for n in range(1000) if is_held_out(folder / str(n), colour, str(n)))


def is_held_out(folder, colour, name):
    (folder / colour).mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(folder / colour / f"{name}.png")
    return bool(open_source(ImagesConfig(source=str(folder), size=16), "all").held_out(0.2)[0])


@pytest.fixture
def generated(tmp_path):
    """Two images of each of three classes, all in the right colour."""
    labels = np.repeat(np.arange(3), 2)  # of the sorted names: black, grey, white
    values = np.array([0, 120, 255], np.uint8)[labels]
    pixels = np.broadcast_to(values[:, None, None, None], (6, 16, 16, 3))
    np.savez(tmp_path / "samples.npz", arr_0=pixels, arr_1=labels)
    return NpzImages(tmp_path / "samples.npz")


def test_a_class_without_training_images_is_left_out(tmp_path, generated):
    alone = held_out_name(tmp_path / "names", "grey")
    names = {"black": map(str, range(12)), "white": map(str, range(12)), "grey": [alone]}
    config, real = dataset(tmp_path / "images", names)
    assert 1 not in real.source.labels
    scores = score_labels(generated, real, config)
    assert scores is not None
    assert (scores.generated.value, scores.generated.n) == (1.0, 4)
    assert scores.real is not None
    assert set(scores.real.per_class) <= {0, 2}
    conditions = label_figure(scores, generated).conditions
    assert conditions["left out, of classes without training images"] == "2 images"


def test_there_is_no_accuracy_where_training_images_have_one_class(tmp_path, generated):
    alone = held_out_name(tmp_path / "names", "grey")
    config, real = dataset(tmp_path / "images", {"black": map(str, range(12)), "grey": [alone]})
    assert len(real.source.class_names) == 2
    assert score_labels(generated, real, config) is None
