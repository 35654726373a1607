"""Classes by name: ImageNet's own, a user's, and what is said when a name fits none or several."""

import pytest

from alight.data.class_names import class_index, imagenet_class_names, readable_class_names
from alight.runtime.errors import InputError

IMAGENET = imagenet_class_names()


def test_imagenet_names_stand_in_the_order_of_the_labels():
    assert len(IMAGENET) == 1000
    known = {0: "tench", 1: "goldfish", 207: "golden retriever", 281: "tabby", 388: "giant panda", 417: "balloon"}
    known |= {812: "space shuttle", 963: "pizza", 980: "volcano", 999: "toilet tissue"}
    assert {label: IMAGENET[label].split(",")[0] for label in known} == known


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (207, 207),
        ("207", 207),
        ("golden retriever", 207),
        ("Golden Retriever", 207),
        ("goldfish, Carassius auratus", 1),
        ("carassius AURATUS", 1),  # a synonym
        ("maillot, tank suit", 639),
        ("missile", 657),  # a first name wins over a synonym of 744, projectile
        (" pizza ", 963),
    ],
)
def test_imagenet_classes_are_found(label, expected):
    assert class_index(label, IMAGENET, 1000) == expected


@pytest.mark.parametrize(("label", "indices"), [("crane", (134, 517)), ("Maillot", (638, 639))])
def test_a_name_of_two_classes_is_answered_with_both_indices(label, indices):
    with pytest.raises(InputError, match="Several classes") as caught:
        class_index(label, IMAGENET, 1000)
    assert all(f"{index} is" in str(caught.value) for index in indices)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'golden retriever'") as caught:
        class_index("goldn retriver", IMAGENET, 1000)
    assert "0 to 999" in str(caught.value)
    with pytest.raises(InputError, match="no class names"):
        class_index("cat", (), 10)


@pytest.mark.parametrize("label", [-1, 10, "10", "-1"])
def test_indices_out_of_range_are_refused(label):
    with pytest.raises(InputError, match=r"out of range.*0 to 9"):
        class_index(label, (), 10)


def test_digits_as_names_and_case_that_matters():
    digits = [*"3456789012"]
    assert class_index("3", digits, 10) == 0  # the class that is called so
    assert class_index(3, digits, 10) == 3
    assert class_index("Polish", ["polish", "Polish"], 2) == 1
    with pytest.raises(InputError, match="Several classes"):
        class_index("POLISH", ["polish", "Polish"], 2)


def test_whose_names_a_model_knows():
    assert readable_class_names(None, 1000) == IMAGENET
    assert readable_class_names(None, 10) == ()
    assert readable_class_names(["cats", "dogs"], 2) == ("cats", "dogs")
    own = [f"class {label}" for label in range(1000)]
    assert readable_class_names(own, 1000) == tuple(own)


@pytest.mark.parametrize("label", ["--1", "+-3", "9" * 5000, "²", "", "-", "3.0", "0x3"])
def test_a_text_that_is_no_index_is_no_class(label):
    with pytest.raises(InputError, match="There is no class"):
        class_index(label, (), 10)
