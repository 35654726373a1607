"""Symptoms in the log of a training run: bad values, a rising loss, collapsed gradients or KL, one-sided networks."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import median

from alight.doctor.findings import Finding
from alight.training.discriminator_watch import LOSES, ONE_SIDED_STEPS, WINS

Line = Mapping[str, float]

MAIN_LOSSES = ("mse", "l1", "loss")  # the first of them in the log is used
PARTS, RISE = 10, 1.2  # of the log; the last part may have at most 1.2 times the lowest loss before it
FIRST_MSE = 3.0  # an untrained velocity network has 1 + size^2, so 2 on normalised latents
FEW_STEPS = 200  # after which a network is still untrained
GRADIENT_SHARE = 1e-3  # of its highest median before, below which the gradient moves nothing
STANDSTILL = 0.02  # share of itself by which the loss still changes when it stands still
KL_SHARE = 0.01  # of its highest value, below which the latent carries no information


def symptoms(lines: Sequence[Line]) -> Iterator[Finding]:
    """All symptoms in the lines of a log, oldest first."""
    for look in (non_finite, rising_loss, collapsed_gradient, kl_collapse, one_sided_discriminator, first_loss):
        yield from look(lines)


def series(lines: Sequence[Line], name: str) -> list[tuple[int, float]]:
    """(step, value) for all finite values in the log."""
    return [(int(line["step"]), line[name]) for line in lines if math.isfinite(line.get(name, math.nan))]


def main_loss(lines: Sequence[Line]) -> str:
    """The name of the loss to check."""
    return next((name for name in MAIN_LOSSES if series(lines, name)), MAIN_LOSSES[-1])


def medians(values: Sequence[float]) -> list[float]:
    """The median of every part of the values."""
    ends = [round(part * len(values) / PARTS) for part in range(PARTS + 1)]
    return [median(values[start:stop]) for start, stop in pairwise(ends)]


def non_finite(lines: Sequence[Line]) -> Iterator[Finding]:
    """Find lines without a finite loss or gradient norm; the log omits non-finite values."""
    names = [name for name in (main_loss(lines), "grad_norm") if series(lines, name)]
    holes = [line for line in lines if any(not math.isfinite(line.get(name, math.nan)) for name in names)]
    if not holes:
        return
    ended = holes[-1] is lines[-1]
    yield Finding(
        "problem" if ended else "warning",
        "not finite",
        f"{len(holes):,} of {len(lines):,} lines have a loss or gradient that is not finite, the last at step "
        f"{int(holes[-1]['step']):,}.",
        "Lower optimizer.lr, set optimizer.max_grad_norm to 1.0, or train in fp32.",
    )


def rising_loss(lines: Sequence[Line]) -> Iterator[Finding]:
    """Compare medians over parts of the log, so that a spike that recovers does not count."""
    name = main_loss(lines)
    values = [value for _, value in series(lines, name)]
    if len(values) < 2 * PARTS:
        yield Finding("ok", "loss", f"{len(values)} values of {name} are too few to see a trend.")
        return
    parts = medians(values)
    lowest, last = min(parts[:-1]), parts[-1]
    if last > RISE * lowest:
        yield Finding(
            "problem",
            "loss",
            f"{name} rises: it was {lowest:.4g}, and is {last:.4g} now.",
            "Go back to an earlier checkpoint with a lower optimizer.lr, or set optimizer.max_grad_norm to 1.0.",
        )
    else:
        yield Finding("ok", "loss", f"{name} went from {parts[0]:.4g} to {last:.4g}.")


def collapsed_gradient(lines: Sequence[Line]) -> Iterator[Finding]:
    """Find a gradient that has vanished while the loss stands still, as after underflow in half precision.

    A gradient that vanishes because the loss does is no symptom.
    """
    norms, losses = series(lines, "grad_norm"), dict(series(lines, main_loss(lines)))
    if len(norms) < 2 * PARTS:
        return
    last = len(norms) // PARTS
    before, recent = norms[:-last], norms[-last:]
    usual = max(medians([value for _, value in norms])[:-1])
    values = [losses[step] for step, _ in recent if step in losses]
    if max(value for _, value in recent) > GRADIENT_SHARE * usual or not values:
        return
    if max(values) - min(values) <= STANDSTILL * max(values) and min(values) > 0:
        since = next(step for step, value in reversed(before) if value > GRADIENT_SHARE * usual)
        yield Finding(
            "problem",
            "gradient",
            f"The gradient norm fell from {usual:.3g} to {recent[-1][1]:.3g} after step {since:,}, and the loss "
            f"stands still at {values[-1]:.4g}: the network no longer learns.",
            "Go back to an earlier checkpoint, and train in fp32 or with a lower optimizer.lr.",
        )


def kl_collapse(lines: Sequence[Line]) -> Iterator[Finding]:
    """Find a posterior that has collapsed to the prior."""
    values = [value for _, value in series(lines, "kl")]
    if values and values[-1] <= KL_SHARE * max(values):
        yield Finding(
            "problem",
            "KL",
            f"The KL divergence fell from {max(values):.4g} to {values[-1]:.4g}: the posterior has collapsed.",
            "Lower reconstruction.kl_weight; 1e-6 is for reduction 'sum' only.",
        )


def one_sided_discriminator(lines: Sequence[Line]) -> Iterator[Finding]:
    """Find a discriminator that is always right, or no better than chance, up to the end of the log."""
    accuracies = series(lines, "discriminator_accuracy")
    wins = [(step, accuracy > WINS) for step, accuracy in accuracies]
    if (since := lasting_since(wins)) is not None:
        fix = "Lower reconstruction.adversarial_weight, or start it later."
        sentence = f"Since step {since:,} it recognises every reconstruction."
        yield Finding("warning", "discriminator", sentence, fix)
    loses = [(step, accuracy < LOSES) for step, accuracy in accuracies]
    if (since := lasting_since(loses)) is not None:
        fix = "Raise optimizer.lr, or check that images reach it undamaged."
        yield Finding("warning", "discriminator", f"Since step {since:,} it is no better than chance.", fix)


def lasting_since(spells: Sequence[tuple[int, bool]]) -> int | None:
    """The step since which a condition has held to the end, if that is long enough."""
    since = None
    for step, holds in spells:
        since = (step if since is None else since) if holds else None
    return since if since is not None and spells[-1][0] - since >= ONE_SIDED_STEPS else None


def first_loss(lines: Sequence[Line]) -> Iterator[Finding]:
    """Check the size of the latents by the velocity error of the untrained network."""
    values = series(lines, "mse")
    # The loss of average velocities is weighted to stay below 1; their error may begin higher, as guidance adds to it.
    weighted = bool(lines) and lines[0].get("loss", math.inf) < 1
    if values and not weighted and values[0][0] <= FEW_STEPS and values[0][1] > FIRST_MSE:
        yield Finding(
            "problem",
            "latents",
            f"The first mse is {values[0][1]:.3g}, where normalised latents give about 2: they are not normalised, or "
            "with the wrong statistics.",
            "Extract them again with 'alight latents extract --statistics data'.",
        )
