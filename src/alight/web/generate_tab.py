"""Tab *Generate*: classes and settings in, images out, watched on their way."""

import random
import threading
from collections.abc import Iterator
from typing import Any

from alight.web.controls import (
    class_control,
    fragment,
    seed_control,
    settings,
    solver_controls,
    start_and_stop,
)
from alight.web.events import AppContext, Outputs, connect
from alight.web.markup import hint, status
from alight.web.sampling import Samples, sample_request, watch_samples
from alight.web.showing import previews, progress_line, results


def generate_tab(app: AppContext) -> None:
    """Lay out the tab and connect it."""
    import gradio as gr

    which = app.served.main
    with gr.Row(elem_classes="bench"):
        with gr.Column(scale=4, min_width=300, elem_classes="settings"):
            classes = class_control(which, "generate-classes")
            with gr.Row():
                per_class = gr.Number(
                    2, label="Images of each", precision=0, minimum=1, min_width=110, elem_id="generate-count"
                )
                seed = seed_control("generate-seed")
            controls = solver_controls(which, "generate")
            start, stop = start_and_stop("generate", "Generate")
            another = gr.Button(
                "Generate with another seed", elem_id="generate-another", size="sm", variant="secondary"
            )
        with gr.Column(scale=8, min_width=320):
            state = fragment(status(""), "generate-status")
            shown = fragment(hint("Choose classes and press Generate."), "generate-images")

    def work(stop: threading.Event, labels: list[int], count: Any, seed: Any, *values: Any) -> Iterator[Outputs]:
        chosen = settings(values, which.sampling.last_time)
        request = sample_request(labels, count, seed, chosen, app.served.config.max_images)
        yield status("Starting"), gr.skip()
        for news in watch_samples(app.served, which, request, stop):
            if isinstance(news, Samples):
                yield status(f"Done: {request.sampling}."), results(news, which, request, app.pictures)
            else:
                seen = gr.skip() if news.images is None else previews(news.images, which, request)
                yield progress_line(news, request), seen

    inputs = {"classes": classes, "per_class": per_class, "seed": seed, **controls._asdict()}
    connect(app, "generate", work, (start, stop), inputs, [state, shown])
    another.click(
        lambda: random.randrange(2**31), None, seed, queue=False, api_visibility="private", show_progress="hidden"
    ).then(None, js="() => document.querySelector('#generate-start').click()")
