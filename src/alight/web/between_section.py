"""The second part of tab *Latents*: interpolation between two classes or two images."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from alight.reporting.pictures import image_grid
from alight.runtime.device import autocast
from alight.runtime.errors import InputError
from alight.runtime.pixels import PixelArray, from_uint8, to_uint8
from alight.web.controls import class_control, fragment, image_files, in_words, seed_control, start_and_stop
from alight.web.events import AppContext, Outputs, connect
from alight.web.interpolation import between_classes, between_latents
from alight.web.markup import Shown, figures, hint, status, summary
from alight.web.pictures import png_bytes
from alight.web.sampling import checked_before_each_evaluation
from alight.web.served import Served
from alight.web.uploads import read_uploads

LEAST, AT_FIRST, MOST = 3, 8, 24  # pictures from one end to the other


def between_section(app: AppContext) -> None:
    """Lay out the section and connect it."""
    import gradio as gr

    which = app.served.main
    with gr.Row(elem_classes="bench"):
        with gr.Column(scale=4, min_width=300, elem_classes="settings"):
            ends = gr.Radio(["Classes", "Images"], value="Classes", label="Between two", elem_id="between-ends")
            with gr.Column(elem_classes="plain") as of_classes:
                first = class_control(which, "between-first", "From", one=0)
                last = class_control(which, "between-last", "To", one=min(1, which.num_classes - 1))
                seed = seed_control("between-seed")
            with gr.Column(visible=False, elem_classes="plain") as of_images:
                files = image_files("between", "Two images")
            frames = gr.Slider(LEAST, MOST, AT_FIRST, step=1, label="Pictures", elem_id="between-frames")
            start, stop = start_and_stop("between", "Interpolate")
        with gr.Column(scale=8, min_width=320):
            state = fragment(status(""), "between-status")
            shown = fragment(hint("Choose two ends to see the images between them."), "between-images")
    ends.change(
        lambda chosen: (gr.update(visible=chosen == "Classes"), gr.update(visible=chosen == "Images")),
        ends,
        [of_classes, of_images],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )

    def work(stop: threading.Event, ends: str, *values: Any) -> Iterator[Outputs]:
        between = images_between if ends == "Images" else classes_between
        names, how, latents_of = between(app.served, *values)
        yield status("Under way"), gr.skip()
        pictures = decoded(app.served, latents_of, stop)
        yield status(f"Done: {how}."), strip(app, pictures, names)

    inputs = {"ends": ends, "first": first, "last": last, "seed": seed, "files": files, "pictures": frames}
    connect(app, "between", work, (start, stop), inputs, [state, shown])


Between = tuple[tuple[str, str], str, Callable[[], Tensor]]
"""Names of the two ends, a description of the method, and a function that returns the latents (frames, C, h, w)."""


def classes_between(
    served: Served, first: int | None, last: int | None, seed: float | None, _: Any, frames: float
) -> Between:
    """Interpolate between two classes, with the settings of the pipeline's own samples."""
    if first is None or last is None or seed is None or not 0 <= seed < 2**63:
        raise InputError("Choose two classes, and a seed of at least 0.")
    count, which = _count(frames), served.main
    names = (which.class_name(first), which.class_name(last))
    way = (first, last, count, int(seed), which.sampling)
    return names, in_words(which.sampling), lambda: between_classes(which.pipeline, *way)


def images_between(served: Served, _: Any, __: Any, ___: Any, files: list[str] | None, frames: float) -> Between:
    """Interpolate linearly between the latents of two images."""
    originals = read_uploads(files, served.main.image_size, 2)
    if len(originals) != 2:
        raise InputError("Give two images to go from one to the other.")
    images = from_uint8(torch.from_numpy(originals)).to(served.device)
    count = _count(frames)

    def latents() -> Tensor:
        first, last = served.main.pipeline.tokenizer.encode_latents(images)
        return between_latents(first, last, count)

    return ("first image", "second image"), "straight from latent to latent", latents


@torch.no_grad()
def decoded(served: Served, latents_of: Callable[[], Tensor], stop: threading.Event) -> PixelArray:
    """Compute latents and decode them to pictures (frames, H, W, 3)."""
    pipeline = served.main.pipeline
    with served.lock, checked_before_each_evaluation(pipeline.transformer, stop):
        with autocast(served.device, served.config.precision):
            return to_uint8(pipeline.decode(latents_of(), "pt").float()).cpu().numpy()


def strip(app: AppContext, pictures: PixelArray, names: tuple[str, str]) -> str:
    """The pictures side by side, and a link to all of them in one file."""
    share = [number / (len(pictures) - 1) for number in range(len(pictures))]
    shown = []
    for number, picture in enumerate(pictures):
        filename = f"between-{number:02d}.png"
        caption = f"{share[number]:.0%}"
        alt = f"{caption} of the way from {names[0]} to {names[1]}"
        shown.append(Shown(app.pictures.add(filename, png_bytes(picture)), caption, alt, filename))
    row = png_bytes(image_grid(pictures, len(pictures)))
    links = [("Download all in one picture", app.pictures.add("between.png", row), "between.png")]
    return summary(f"From {names[0]} to {names[1]}", links) + figures(shown, app.served.main.image_size)


def _count(frames: float | None) -> int:
    if frames is None or not LEAST <= frames <= MOST:
        raise InputError(f"Choose {LEAST} to {MOST} pictures, not {frames}.")
    return int(frames)
