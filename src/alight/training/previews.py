"""The steps at which a training run draws pictures of what it can do by then."""

DOUBLINGS = 4  # before the end: pictures after 1/16, 1/8, 1/4, 1/2 and all of the steps


def preview_is_due(done: int, steps: int, every: int | None) -> bool:
    """Tell if a picture is drawn after `done` of `steps` steps: at the end, and regularly or at doubling intervals.

    The answer depends on these numbers alone, so that a resumed run draws the same pictures.

    Args:
        done: steps taken, from 1.
        steps: of the whole run.
        every: interval; None = after 1/16 of the run and at every doubling, a handful of pictures for any length.
    """
    if done == steps:
        return True
    if every is not None:
        return done % every == 0
    return done in {steps >> doubling for doubling in range(1, DOUBLINGS + 1)}
