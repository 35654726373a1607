"""The figures of a meter against the samples of a study's transformers: which of them predict generation?"""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from alight.artifacts import library_versions
from alight.config import MeterImagesConfig, MeterLatentsConfig
from alight.evaluation.latent_meter import Meter, Metered, measure, open_networks, seconds_of
from alight.evaluation.meter_plan import plan
from alight.evaluation.meter_report import MEASURES, absences
from alight.evaluation.meter_subjects import MeteredImages, Subject, encode_images, open_metered_images
from alight.evaluation.study_runs import FEWEST_SETTINGS, TARGETS, StudyRun, read_runs
from alight.interop.tokenizer_sources import open_tokenizer
from alight.metrics.resampling import (
    FEWEST_SEEDS,
    Pairs,
    RankCorrelation,
    kendall,
    over_seeds,
    pooled,
    spearman,
    within_seeds,
)
from alight.reporting.report import Answer, Bars, Comparison, Conditions, Curve, Figure, Report, Stage, in_a_sentence
from alight.runtime.console import log, progress_bar
from alight.runtime.errors import InputError
from alight.runtime.seeding import derive_seed

MEASURES_OF_RANK = {"spearman": spearman, "kendall": kendall}
SCOPES = {"pooled": pooled, "within": within_seeds}
SCOPE_WORDS = {"pooled": "all runs", "within": "within a seed"}


class Key(NamedTuple):
    """A correlation: of which figure, with which figure of generation, over which runs, by which measure."""

    figure: str
    target: str
    scope: str
    rank: str


Correlations = Mapping[Key, RankCorrelation]


def meter_study(config: MeterLatentsConfig, device: torch.device) -> tuple[Report, str, dict[str, Any]]:
    """Measure the tokenizers of a study, and correlate every figure with the study's figures of generation.

    Returns:
        The report, its text for the terminal, and its data.

    Raises:
        InputError: there are no finished runs of three settings.
    """
    assert config.study is not None
    started = time.perf_counter()
    runs = read_runs(config.study)
    config = as_in_study(config, runs)
    networks = open_networks(config, device)
    subjects, images = subjects_of(config, runs, device)
    runs, subjects, notes = of_one_grid(runs, subjects)
    meter = Meter(config, images, networks, device)
    planned = plan(meter, subjects[0], len(runs))
    log.info("Plan for %d tokenizers: %s.", len(runs), planned)
    for note in notes:
        log.warning(note)
    bar = progress_bar(subjects, desc="meter", unit="tokenizer")
    measured = [measure(meter, subject, planned.families) for subject in bar]
    if planned.left_out:
        notes.append(f"Left out, to end within {planned.minutes:g} minutes: {', '.join(planned.left_out)}.")
    found = correlations(config, runs, measured)
    report = describe(config, runs, measured, found, time.perf_counter() - started)
    report = replace(report, notes=[*report.notes, *notes])
    return report, text_of(found), data_of(runs, measured, found)


def subjects_of(
    config: MeterLatentsConfig, runs: Sequence[StudyRun], device: torch.device
) -> tuple[list[Subject], MeteredImages]:
    """The latents of every run's tokenizer, and the images that they are of."""
    subjects, images = list[Subject](), None
    for run in progress_bar(runs, desc="encode", unit="tokenizer"):
        opened = open_tokenizer(run.tokenizer)
        images = images or open_metered_images(config, [opened])
        subjects.append(encode_images(f"{run.setting}, seed {run.seed}", opened, images, config, device))
    assert images is not None
    return subjects, images


def of_one_grid(
    runs: Sequence[StudyRun], subjects: Sequence[Subject]
) -> tuple[list[StudyRun], list[Subject], list[str]]:
    """The runs whose latents lie on the grid of most settings, with a note that names the others.

    Figures of a position do not compare between grids.

    Raises:
        InputError: fewer than three settings have one grid.
    """
    settings = {(run.setting, subject.shape[1:]): None for run, subject in zip(runs, subjects, strict=True)}
    grid, _ = Counter(grid for _, grid in settings).most_common(1)[0]
    kept = [number for number, subject in enumerate(subjects) if subject.shape[1:] == grid]
    others = [f"{subject.name} ({_grid(subject)})" for subject in subjects if subject.shape[1:] != grid]
    if len({runs[number].setting for number in kept}) < FEWEST_SETTINGS:
        raise InputError(
            f"The latents of fewer than {FEWEST_SETTINGS} settings lie on one grid ({', '.join(others)}, and others "
            f"{_grid(subjects[kept[0]])}), and figures of a position do not compare between grids. Give a study of "
            "tokenizers of one grid; channels may differ."
        )
    notes = []
    if others:
        notes.append(
            f"Left out, because their latents lie on another grid than {_grid(subjects[kept[0]])}, that of most "
            f"settings: {', '.join(others)}. Figures of a position do not compare between grids."
        )
    return [runs[number] for number in kept], [subjects[number] for number in kept], notes


def _grid(subject: Subject) -> str:
    return " x ".join(map(str, subject.shape[1:]))


def as_in_study(config: MeterLatentsConfig, runs: Sequence[StudyRun]) -> MeterLatentsConfig:
    """The configuration with the images of the study, and with its foundation model and observer where they are kept.

    Raises:
        InputError: the runs have different images.
    """
    images = runs[0].images
    if any(run.images != images for run in runs):
        raise InputError(f"The runs of {config.study} have different images, so their tokenizers do not compare.")
    assert config.study is not None
    changes: dict[str, Any] = {"images": MeterImagesConfig(**images.model_dump())}
    for name in ("foundation", "observer"):
        if getattr(config, name) is None and (config.study / name).is_dir():
            changes[name] = str(config.study / name)
    return config.model_copy(update=changes)


def correlations(
    config: MeterLatentsConfig, runs: Sequence[StudyRun], measured: Sequence[Metered]
) -> dict[Key, RankCorrelation]:
    """All rank correlations, with signs that make 1 the right prediction: what is easier generates better."""
    found = {}
    for figure, measure_ in MEASURES.items():
        easier = 1 if measure_.better == "higher" else -1
        for target, (_, better) in TARGETS.items():
            pairs: dict[int, list[tuple[float, float]]] = {}
            for run, each in zip(runs, measured, strict=True):
                if figure in each.figures and target in run.generation:
                    both = easier * each.figures[figure].value, better * run.generation[target]
                    pairs.setdefault(run.seed, []).append(both)
            for scope, over in SCOPES.items():
                for rank, by in MEASURES_OF_RANK.items():
                    if pairs:
                        found[Key(figure, target, scope, rank)] = _correlation(
                            config, pairs, partial(over, measure=by)
                        )
    return found


def _correlation(config: MeterLatentsConfig, pairs: Pairs, correlation: Any) -> RankCorrelation:
    generator = np.random.default_rng(derive_seed(config.seed, "meter", "seeds"))
    return over_seeds(pairs, correlation, config.draws, generator)


def describe(
    config: MeterLatentsConfig,
    runs: Sequence[StudyRun],
    measured: Sequence[Metered],
    found: Correlations,
    seconds: float,
) -> Report:
    """The whole report."""
    seeds, settings = {run.seed for run in runs}, {run.setting for run in runs}
    conditions: Conditions = {"study": str(config.study), "runs": len(runs), "seeds": len(seeds)}
    conditions |= {"tokenizers of a seed": len(settings), "sign": "1 = what is easier generates better"}
    times = seconds_of(measured)
    return Report(
        title="Latent meter against generation",
        summary=f"{len(runs)} tokenizers of {config.study}, of {len(settings)} settings and {len(seeds)} seeds, "
        "measured before generation, against the samples of the transformers that were trained on them.",
        figures=[figure for key, each in found.items() if (figure := figure_of(key, each, conditions)) is not None],
        answer=answer_of(found),
        comparison=comparison_of(found, conditions),
        results=scatters(next(iter(TARGETS)), runs, measured, found),
        distributions=[plot for target in list(TARGETS)[1:] for plot in scatters(target, runs, measured, found)],
        stages=[Stage("encoding", seconds - sum(times.values())), *(Stage(*each) for each in times.items())],
        configuration={"meter": config.model_dump(mode="json")},
        versions=library_versions(),
        notes=[*notes_of(runs), *absences(measured)],
    )


def figure_of(key: Key, found: RankCorrelation, conditions: Conditions) -> Figure | None:
    """A correlation with its interval; None where a side has no order."""
    if not math.isfinite(found.value):
        return None
    target, _ = TARGETS[key.target]
    label = f"{MEASURES[key.figure].label} and {target}, {SCOPE_WORDS[key.scope]}, {key.rank.title()}"
    return Figure(
        f"{key.figure}_{key.target}_{key.scope}_{key.rank}",
        label,
        found.value,
        digits=2,
        conditions=conditions | {"runs": found.runs},
        headline=False,
        interval=(found.low, found.high) if math.isfinite(found.low) else None,
    )


def comparison_of(found: Correlations, conditions: Conditions) -> Comparison:
    """Spearman's correlation of every figure, a column per target and scope."""
    columns = [(target, scope) for target in TARGETS for scope in SCOPES]
    rows: dict[str, list[Figure | None]] = {}
    for figure in dict.fromkeys(key.figure for key in found):
        keys = [Key(figure, *column, "spearman") for column in columns]
        rows[MEASURES[figure].label] = [
            figure_of(key, found[key], conditions) if key in found else None for key in keys
        ]
    heads = [f"{TARGETS[target][0]}, {SCOPE_WORDS[scope]}" for target, scope in columns]
    return Comparison(heads, rows, "Rank correlation (Spearman) with the quality of samples")


def scatters(target: str, runs: Sequence[StudyRun], measured: Sequence[Metered], found: Correlations) -> list[Curve]:
    """A plot of every figure."""
    names = [figure for figure in MEASURES if Key(figure, target, "pooled", "spearman") in found]
    return [scatter_of(figure, target, runs, measured) for figure in names]


def scatter_of(figure: str, target: str, runs: Sequence[StudyRun], measured: Sequence[Metered]) -> Curve:
    """A point per setting: the means over its seeds, with the range of these."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    bars: dict[str, list[Bars]] = {}
    for setting in dict.fromkeys(run.setting for run in runs):
        pairs = [
            (each.figures[figure].value, run.generation[target])
            for run, each in zip(runs, measured, strict=True)
            if run.setting == setting and figure in each.figures and target in run.generation
        ]
        if pairs:
            x, y = np.asarray(pairs).T
            series[setting] = [float(x.mean())], [float(y.mean())]
            bars[setting] = [Bars(*map(float, (x.min(), x.max(), y.min(), y.max())))]
    up, across = TARGETS[target][0], MEASURES[figure].label
    labels = {setting: [setting] for setting in series}
    title = f"{up.capitalize()} against {in_a_sentence(across)}"
    return Curve(title, across, up.capitalize(), series, bars=bars, labels=labels)


def answer_of(found: Correlations) -> Answer:
    """The figures that predict generation within these runs, those that mislead, and those that say nothing."""
    groups: dict[str, list[str]] = {"predict": [], "mislead": [], "say nothing certain": []}
    for key, each in found.items():
        if key.target == next(iter(TARGETS)) and key.scope == "within" and key.rank == "spearman":
            kind = "say nothing certain"
            if each.excludes_zero:
                kind = "predict" if each.value > 0 else "mislead"
            groups[kind].append(f"{in_a_sentence(MEASURES[key.figure].label)} ({in_words(each)})")
    reasons = [f"These {kind}: {', '.join(names)}." for kind, names in groups.items() if names]
    return Answer(
        "Which figures predict how well the transformers of this study generate?",
        f"{len(groups['predict'])} of {sum(map(len, groups.values()))}, by the label accuracy within a seed.",
        reasons,
        basis="Spearman's rank correlation over the tokenizers of a seed, averaged over seeds; certain is what has an "
        "interval on one side of zero. Other tokenizers, images and transformers may rank otherwise.",
    )


def in_words(found: RankCorrelation) -> str:
    """A correlation with its interval."""
    if not math.isfinite(found.value):
        return "no order"
    interval = f", {found.low:+.2f} to {found.high:+.2f}" if math.isfinite(found.low) else ""
    return f"{found.value:+.2f}{interval}"


def notes_of(runs: Sequence[StudyRun]) -> list[str]:
    """The limits of the correlations."""
    notes = [
        "Signs are such that 1 is the right prediction: the easier latents by the figure have the better samples.",
        "Intervals come from whole seeds, resampled. They hold for the settings of this study: that other tokenizers "
        "rank likewise does not follow.",
        "The crosses in the plots reach from the lowest to the highest of the seeds.",
    ]
    if len({run.seed for run in runs}) < FEWEST_SEEDS:
        notes.append(f"There are fewer than {FEWEST_SEEDS} seeds, so the correlations have no intervals.")
    if any(run.transformer != runs[0].transformer for run in runs):
        notes.append("Some transformers were trained in another way than others, which the figures cannot know of.")
    return notes


def text_of(found: Correlations) -> str:
    """The table for the terminal."""
    columns = [(target, scope) for target in TARGETS for scope in SCOPES]
    rows = [["Spearman", *(f"{TARGETS[target][0]}, {SCOPE_WORDS[scope]}" for target, scope in columns)]]
    for figure in dict.fromkeys(key.figure for key in found):
        keys = [Key(figure, *column, "spearman") for column in columns]
        rows.append([MEASURES[figure].label, *(in_words(found[key]) if key in found else "-" for key in keys)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    answer = answer_of(found)
    return "\n".join([*lines, "", f"{answer.question} {answer.answer}", *answer.reasons])


def data_of(runs: Sequence[StudyRun], measured: Sequence[Metered], found: Correlations) -> dict[str, Any]:
    """The correlations and the figures of every run, for programs."""
    return {
        "correlations": [
            {**key._asdict(), **{name: _number(value) for name, value in vars(each).items()}}
            for key, each in found.items()
        ],
        "runs": [
            {
                "setting": run.setting,
                "seed": run.seed,
                "generation": run.generation,
                "figures": {name: figure.value for name, figure in each.figures.items()},
            }
            for run, each in zip(runs, measured, strict=True)
        ],
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
