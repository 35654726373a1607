"""The steps at which pictures are drawn during training."""

import pytest

from alight.training.previews import preview_is_due


def drawn(steps: int, every: int | None = None) -> list[int]:
    return [step for step in range(1, steps + 1) if preview_is_due(step, steps, every)]


@pytest.mark.parametrize(
    ("steps", "due"),
    [(450, [28, 56, 112, 225, 450]), (80_000, [5_000, 10_000, 20_000, 40_000, 80_000]), (3, [1, 3]), (1, [1])],
)
def test_a_run_of_any_length_shows_a_handful_at_doubling_steps(steps, due):
    assert drawn(steps) == due


def test_a_given_interval_holds_and_the_end_is_always_shown():
    assert drawn(450, 200) == [200, 400, 450]
    assert drawn(4, 2) == [2, 4]
    assert drawn(10, 1_000) == [10]
