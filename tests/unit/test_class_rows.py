"""The images of a picture with a row per class: the first ones, in the order of the classes, within a size."""

from alight.reporting.class_rows import class_rows, left_out


def test_rows_hold_the_first_images_of_each_class_in_order():
    assert class_rows([1, 0, 1, 0, 1], 10, 32) == {0: [1, 3], 1: [0, 2, 4]}
    assert class_rows([0] * 12, 10, 32) == {0: list(range(10))}


def test_the_number_of_classes_is_limited_and_the_rest_is_told():
    labels = list(range(30)) * 2
    assert list(class_rows(labels, 4, 32)) == [0, 1, 2, 3]
    assert left_out(labels, 4, "--shown-classes") == (" 26 of 30 classes are left out; --shown-classes 30 shows all.")
    assert left_out(labels, 30, "--shown-classes") == ""


def test_rows_of_many_or_large_images_are_shorter_but_never_single():
    labels = [label for label in range(50) for _ in range(12)]
    for side, columns in ((64, 10), (128, 8), (256, 2), (512, 2)):
        assert {len(row) for row in class_rows(labels, 50, side).values()} == {columns}, side
