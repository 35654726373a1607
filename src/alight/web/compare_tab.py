"""Tab *Compare*: the same classes and seeds with two pipelines, or with two settings of one."""

import threading
from collections.abc import Iterator
from typing import Any

from alight.runtime.errors import InputError
from alight.web.controls import (
    SolverControls,
    class_control,
    fragment,
    seed_control,
    settings,
    solver_controls,
    start_and_stop,
)
from alight.web.events import AppContext, Outputs, connect
from alight.web.markup import heading, hint, status
from alight.web.sampling import SampleRequest, Samples, sample_request, watch_samples
from alight.web.served import ServedPipeline
from alight.web.showing import previews, progress_line, results


def compare_tab(app: AppContext) -> None:
    """Lay out the tab and connect it."""
    import gradio as gr

    first, second = app.served.main, app.served.pipelines[-1]
    with gr.Column(elem_classes="settings wide"):
        with gr.Row():
            classes = class_control(first, "compare-classes")
            count = gr.Number(
                1, label="Images of each", precision=0, minimum=1, min_width=110, elem_id="compare-count"
            )
            seed = seed_control("compare-seed")
        with gr.Row():
            sides, titles = [], []
            for letter, which in zip("ab", (first, second), strict=True):
                with gr.Column(min_width=300, elem_classes="side"):
                    titles.append(which.name if first is not second else f"Setting {letter.upper()}")
                    fragment(heading(titles[-1]))
                    sides.append(solver_controls(which, f"compare-{letter}"))
        start, stop = start_and_stop("compare", "Compare")
    state = fragment(status(""), "compare-status")
    with gr.Row():
        shown = [
            fragment(hint(text), f"compare-{letter}-images")
            for letter, text in zip("ab", ("Both sides get the same classes and seeds.", ""), strict=True)
        ]

    def work(stop: threading.Event, labels: list[int], count: Any, seed: Any, *values: Any) -> Iterator[Outputs]:
        split = len(SolverControls._fields)
        limit = max(1, app.served.config.max_images // 2)
        requests = [
            sample_request(
                labels_of(which, first, labels), count, seed, settings(chosen, which.sampling.last_time), limit
            )
            for which, chosen in ((first, values[:split]), (second, values[split:]))
        ]
        fragments: list[Any] = ["", ""]
        for side, (which, request) in enumerate(zip((first, second), requests, strict=True)):
            for line, seen in one_side(which, titles[side], request, stop):
                fragments[side] = seen or fragments[side]
                yield line, *fragments
        yield status("Done."), *fragments

    def one_side(
        which: ServedPipeline, title: str, request: SampleRequest, stop: threading.Event
    ) -> Iterator[tuple[str, str]]:
        head = heading(title, str(request.sampling))
        for news in watch_samples(app.served, which, request, stop):
            if isinstance(news, Samples):
                yield status(f"{title} is done."), head + results(news, which, request, app.pictures)
            else:
                seen = "" if news.images is None else head + previews(news.images, which, request)
                yield progress_line(news, request), seen

    inputs = {"classes": classes, "per_class": count, "seed": seed}
    for letter, side in zip("ab", sides, strict=True):
        inputs |= {f"{name}_{letter}": control for name, control in side._asdict().items()}
    connect(app, "compare", work, (start, stop), inputs, [state, *shown])


def labels_of(which: ServedPipeline, first: ServedPipeline, labels: list[int]) -> list[int]:
    """The labels of the same classes in another pipeline: by name where both have names.

    Raises:
        InputError: it lacks one of the classes.
    """
    if which is first:
        return labels
    named = which.pipeline.class_names and first.pipeline.class_names
    wanted = [first.class_name(label) if named else label for label in labels]
    try:
        return [int(label) for label in which.pipeline.resolve_labels(wanted)]
    except InputError as error:
        raise InputError(f"{which.name} does not know all of these classes. {error}") from error
