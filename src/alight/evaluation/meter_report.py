"""From the measurements of a meter to its order, its table and its report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from alight.config import MeterLatentsConfig
from alight.evaluation.latent_meter import FALLBACK, FAMILY_OF, FIGURES_OF, Meter, Metered
from alight.metrics.resampling import EQUAL, Resampled
from alight.reporting.report import Answer, Comparison, Conditions, Figure, Measure, in_a_sentence
from alight.runtime.errors import InputError

SURE = 0.95  # probability of an order, from which it is called certain

SHARE = "As a share of that of values without structure; lower is easier."
MEASURES = {
    "probe_loss": Measure(
        *("Probe loss", "", 3, "lower"),
        f"Error of a small transformer's velocity on latents that it has not seen, after a fixed budget. {SHARE}",
    ),
    "ambiguity_bound": Measure(
        *("Ambiguity bound of channels", "", 3, "lower"),
        f"Bound of the velocity's ambiguity from the covariance between channels, positions pooled. {SHARE}",
    ),
    "whole_ambiguity_bound": Measure(
        *("Ambiguity bound of whole latents", "", 3, "lower"),
        f"The same from the covariance of whole latents, where images are many times their numbers. {SHARE}",
    ),
    "posterior_ambiguity": Measure(
        *("Ambiguity by other latents", "", 3, "lower"),
        f"Error of the posterior mean over vectors of other images, at one time. {SHARE}",
    ),
    "density_cv": Measure(
        "Density CV", "", 3, "lower", "Of a t-SNE map of single positions (table 6); 0 = evenly filled."
    ),
    "density_gini": Measure("Density Gini", "", 3, "lower", "Of the same map; 0 = evenly filled."),
    "density_entropy": Measure("Density entropy", "", 4, "higher", "Of the same map, normalised; 1 = evenly filled."),
    "decoder_drift": Measure(
        "Decoder drift", "", 3, "lower", "Change of decoded images by noise in the latents, over the spread of images."
    ),
    "neighbour_accuracy": Measure(
        "Nearest-neighbour accuracy",
        *("", 3, "higher", "Share of images whose nearest latent, averaged over positions, has their class."),
    ),
    "gram_agreement": Measure(
        "Gram agreement",
        *("", 3, "higher", "Correlation of similarities between positions with those in the foundation model."),
    ),
    "midpoint_distance": Measure(
        "Midpoint distance",
        *("", 4, "lower", "Frechet distance of decoded midpoints of two latents from images, over their variance."),
    ),
}


@dataclass(frozen=True)
class Order:
    """Tokenizers from the easiest to the hardest, by one figure.

    Attributes:
        figure: that decides.
        places: numbers of the tokenizers in order.
        sure: probability of the order of every neighbouring pair.
        mean_ranks: of every tokenizer, over one figure of every family that all have.
        ranked: names of those figures.
    """

    figure: str
    places: list[int]
    sure: list[float]
    mean_ranks: list[float]
    ranked: list[str]


def order_of(measured: Sequence[Metered], rank_by: str) -> Order:
    """The order by a figure, or where not all have it, by the first that all have.

    Raises:
        InputError: there is none.
    """
    shared = [name for name in MEASURES if all(name in each.figures for each in measured)]
    if not shared:
        raise InputError(
            f"No figure was measured of all: {rank_by} does not exist for each of them, and there was no time for the "
            f"others. {_why(measured, rank_by)}Give more --minutes, or another --rank-by."
        )
    figure = next(name for name in (rank_by, *FALLBACK, *shared) if name in shared)
    costs = [_cost(each.figures[figure], figure) for each in measured]
    places = sorted(range(len(measured)), key=lambda number: costs[number].value)
    sure = [costs[one].probability_below(costs[other]) for one, other in pairwise(places)]
    ranked = [name for names in FIGURES_OF.values() for name in names[:1] if name in shared]
    ranks = [_ranks([_cost(each.figures[name], name).value for each in measured]) for name in ranked]
    return Order(figure, places, sure, np.mean(ranks, axis=0).tolist(), ranked)


def _cost(figure: Resampled, name: str) -> Resampled:
    """A figure of which less is easier."""
    return figure if MEASURES[name].better == "lower" else Resampled(-figure.value, -figure.draws)


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1 on; values that are equal up to rounding share the mean of theirs."""
    array = np.asarray(values)
    same = [np.isclose(array, value, rtol=EQUAL, atol=0) for value in values]
    return [
        float(((array < value) & ~equal).sum() + (equal.sum() + 1) / 2)
        for value, equal in zip(values, same, strict=True)
    ]


def conditions_of(meter: Meter, each: Metered) -> dict[str, Conditions]:
    """The conditions of every figure, by family."""
    config, subject = meter.config, each.subject
    channels, height, width = subject.shape
    common: Conditions = {
        "latents": len(subject.latents),
        "shape": f"{channels} x {height} x {width}" if subject.kind != "vectors" else f"vectors of {channels}",
        "normalised by": "these latents",
        subject.kind.removesuffix("s"): subject.hash[:12],
        "seed": config.seed,
        "interval": f"95 %, of {config.draws} draws of images",
    }
    if meter.images is not None and subject.vae is not None:
        common |= {
            "images": f"{meter.images.config.source}, {config.split.replace('_', ' ')}, "
            f"{meter.images.config.size} pixels",
            "posterior": config.posterior,
        }
        size = meter.images.config.size
        space = meter.networks.extractor(size, meter.device).name
    else:
        space = ""
    network, foundation = config.probe, meter.networks.foundation
    own: dict[str, Conditions] = {
        "other latents": {"time": config.posterior_time},
        "probe": {
            "network": f"LightningDiT, width {network.hidden_size}, {network.num_layers} blocks",
            "training": f"{network.steps} steps of {network.batch_size}",
        },
        "density": {"maps": config.density_runs, "interval of": "the points of the maps"},
        "drift": {"noise": f"{config.perturbation:g} of the latent"},
        "Gram agreement": {"foundation": foundation.name} if foundation else {},
        "midpoints": {"way": config.interpolation, "features": space},
    }
    return {family: common | own.get(family, {}) for family in FIGURES_OF}


def figures_of(meter: Meter, each: Metered) -> list[Figure]:
    """The figures of one tokenizer with their intervals, in the order of the table of measures."""
    conditions = conditions_of(meter, each)
    figures = []
    for name, measure in MEASURES.items():
        if (found := each.figures.get(name)) is not None:
            figure = measure.figure(name, found.value, conditions[FAMILY_OF[name]])
            figures.append(replace(figure, headline=False, interval=found.interval))
    return figures


def numbered(measured: Sequence[Metered], figures: Sequence[Sequence[Figure]]) -> list[Figure]:
    """The figures of all tokenizers: `probe_loss_2` is that of the second."""
    suffixes = ["" if number == 1 else f"_{number}" for number in range(1, len(measured) + 1)]
    return [
        replace(figure, name=f"{figure.name}{suffix}", label=f"{figure.label}, {each.subject.name}")
        for suffix, each, own in zip(suffixes, measured, figures, strict=True)
        for figure in own
    ]


def comparison_of(measured: Sequence[Metered], figures: Sequence[Sequence[Figure]]) -> Comparison:
    """A column per tokenizer, a row per figure."""
    by_name = [{figure.name: figure for figure in each} for each in figures]
    names = [name for name in MEASURES if any(name in each for each in by_name)]
    rows = {MEASURES[name].label: [each.get(name) for each in by_name] for name in names}
    return Comparison([each.subject.name for each in measured], rows)


def rank_figures(measured: Sequence[Metered], order: Order) -> list[Figure]:
    """The rank of every tokenizer, as figures."""
    decided = MEASURES[order.figure].label
    figures = []
    for number, each in enumerate(measured):
        suffix, name = "" if number == 0 else f"_{number + 1}", each.subject.name
        rank, mean = order.places.index(number) + 1, order.mean_ranks[number]
        by: Conditions = {"by": decided}
        figures.append(Figure(f"rank{suffix}", f"Rank, {name}", rank, digits=0, conditions=by, better="lower"))
        over: Conditions = {"over": ", ".join(MEASURES[figure].label for figure in order.ranked)}
        label = f"Mean rank, {name}"
        figures.append(Figure(f"mean_rank{suffix}", label, mean, digits=1, conditions=over, headline=False))
    return figures


def amplified(measured: Sequence[Metered], step: float) -> list[str]:
    """A warning of every tokenizer whose decoder changes images by more than the step in their latents.

    Latents that hold little are easy to predict, and their decoder then makes much of every error.
    """
    return [
        f"{each.subject.name}: its decoder makes more of errors in the latents than they are (drift "
        f"{each.figures['decoder_drift'].value:.2f} for a step of {step:g}): easy latents may give bad samples."
        for each in measured
        if "decoder_drift" in each.figures and each.figures["decoder_drift"].value > step
    ]


def answer_of(measured: Sequence[Metered], order: Order, step: float = math.inf) -> Answer:
    """The order in words, with the probability that it is right, and warnings; `step` is that of the drift."""
    names = [measured[number].subject.name for number in order.places]
    figure = MEASURES[order.figure]
    reasons = []
    for (one, other), sure in zip(pairwise(order.places), order.sure, strict=True):
        values = [f"{measured[number].figures[order.figure].value:.{figure.digits}f}" for number in (one, other)]
        word = "certain for these latents" if sure >= SURE else "open"
        reasons.append(
            f"{measured[one].subject.name} before {measured[other].subject.name}: {in_a_sentence(figure.label)} "
            f"{values[0]} and {values[1]}; the order has a probability of {100 * sure:.1f} %, it is {word}."
        )
    agree = [name for name in order.ranked if _places(measured, name) == order.places]
    if len(measured) > 1:
        reasons.append(
            f"Of {len(order.ranked)} kinds of figures, {len(agree)} give this order: "
            f"{', '.join(in_a_sentence(MEASURES[name].label) for name in agree)}."
        )
    return Answer(
        "Which will be easier to generate?",
        f"{', then '.join(names)}." if len(names) > 1 else f"{names[0]} alone was measured; give others beside it.",
        reasons,
        [
            *amplified(measured, step),
            "Check that the reconstruction is good enough before you choose: 'alight tokenizer evaluate'.",
        ],
        f"By the {in_a_sentence(figure.label)}. Probabilities are those over other images of the same kind, with the "
        "same tokenizers and the same training of the probe; that an easier figure means better samples is an "
        "assumption.",
    )


def _places(measured: Sequence[Metered], name: str) -> list[int]:
    costs = [_cost(each.figures[name], name).value for each in measured]
    return sorted(range(len(measured)), key=lambda number: costs[number])


def table_text(measured: Sequence[Metered], order: Order, seconds: Mapping[str, float]) -> str:
    """One table for the terminal: figures with half of their interval, seconds, ranks."""
    rows = [["", *(each.subject.name for each in measured), "seconds"]]
    for name, measure in MEASURES.items():
        if any(name in each.figures for each in measured):
            cells = [_cell(each.figures.get(name), measure) for each in measured]
            family = FAMILY_OF[name]
            rows.append([measure.label, *cells, f"{seconds[family]:.1f}" if FIGURES_OF[family][0] == name else ""])
    ranks = [str(order.places.index(number) + 1) for number in range(len(measured))]
    rows.append([f"rank by {in_a_sentence(MEASURES[order.figure].label)}", *ranks, ""])
    rows.append([f"mean rank of {len(order.ranked)}", *(f"{rank:.1f}" for rank in order.mean_ranks), ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _cell(figure: Resampled | None, measure: Measure) -> str:
    if figure is None:
        return "-"
    half = (figure.interval[1] - figure.interval[0]) / 2
    return f"{figure.value:.{measure.digits}f} ± {half:.{measure.digits}f}"


def replaced_by(measured: Sequence[Metered], order: Order, rank_by: str) -> str | None:
    """The note that another figure decides than the one that was to; None where it does."""
    if order.figure == rank_by:
        return None
    return (
        f"The order is by {in_a_sentence(MEASURES[order.figure].label)}, because not all have the figure {rank_by} "
        f"that was to decide. {_why(measured, rank_by)}"
    ).rstrip()


def _why(measured: Sequence[Metered], name: str) -> str:
    """The reasons why a figure is not there, each once, with a space behind."""
    found = [each.absent.get(name) or each.absent.get(FAMILY_OF[name]) for each in measured]
    return "".join(f"{reason} " for reason in dict.fromkeys(found) if reason)


def absences(measured: Sequence[Metered]) -> list[str]:
    """A note for every absent figure with its reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for each in measured:
        for name, reason in each.absent.items():
            reasons.setdefault((name, reason), []).append(each.subject.name)
    notes = []
    for (name, reason), names in reasons.items():
        whose = "" if len(names) == len(measured) else f" of {', '.join(names)}"
        figure = FIGURES_OF[name][0] if name in FIGURES_OF else name
        notes.append(f"Not measured: {in_a_sentence(MEASURES[figure].label)}{whose}. {reason}")
    return notes


def notes_of(measured: Sequence[Metered], order: Order, config: MeterLatentsConfig) -> list[str]:
    """Absent figures with their reasons, and the limits of the others."""
    replaced = replaced_by(measured, order, config.rank_by)
    notes = [*([replaced] if replaced else []), *absences(measured)]
    if any("whole_ambiguity_bound" not in each.figures for each in measured):
        notes.append(
            "The bound of whole latents needs five images for every number of a latent, and latents of more than one "
            "position; fewer give it too low."
        )
    if len({each.subject.shape[0] for each in measured}) > 1:
        notes.append(
            "The latents have different numbers of channels. Figures are per number of a latent, and a generator has "
            "to learn all of them: compare across widths with care."
        )
    if config.observer is None and config.foundation is not None:
        notes.append("Midpoints are compared in the features of the foundation model, which favour latents like it.")
    return notes
