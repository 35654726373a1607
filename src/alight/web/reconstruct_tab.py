"""Tab *Reconstruct*: images, their reconstructions by one tokenizer or two, and the differences."""

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alight.metrics.reconstruction import image_scores
from alight.models.tokenizer import Tokenizer
from alight.reporting.pictures import difference_picture
from alight.runtime.device import autocast
from alight.runtime.errors import InputError
from alight.runtime.pixels import PixelArray, from_uint8, to_uint8
from alight.web.controls import fragment, image_files, start_and_stop
from alight.web.events import AppContext, Outputs, connect
from alight.web.jobs import Stopped
from alight.web.markup import Shown, figures, heading, hint, status
from alight.web.pictures import png_bytes
from alight.web.served import Served
from alight.web.uploads import read_uploads

DIFFERENCE_GAIN = 4.0


class Reconstruction(NamedTuple):
    """The reconstruction of one image, with PSNR in dB and SSIM."""

    pixels: PixelArray
    difference: PixelArray
    psnr: float
    ssim: float


@torch.no_grad()
def reconstruct(served: Served, vae: Tokenizer, original: PixelArray) -> Reconstruction:
    """Encode and decode an image (H, W, 3) uint8; deterministic, by the mean of the posterior."""
    image = from_uint8(torch.from_numpy(original)[None]).to(served.device)
    with served.lock, autocast(served.device, served.config.precision):
        raw_latents: Tensor = vae.encode_raw_latents(image)
        decoded = vae.decode_raw_latents(raw_latents).float()
    scores = image_scores(decoded, image)
    pixels = to_uint8(decoded)[0].cpu().numpy()
    difference = difference_picture(original, pixels, DIFFERENCE_GAIN)
    return Reconstruction(pixels, difference, scores["psnr"].item(), scores["ssim"].item())


def image_size_for(served: Served) -> int:
    """The image size of the pipeline, checked against all tokenizers.

    Raises:
        InputError: it is not a multiple of a tokenizer's downsampling factor.
    """
    size = served.main.image_size
    for name, vae in served.tokenizers.items():
        if size % vae.downsampling_factor:
            raise InputError(f"{name} takes images in multiples of {vae.downsampling_factor} pixels, not of {size}.")
    return size


def reconstruct_tab(app: AppContext) -> None:
    """Lay out the tab and connect it."""
    import gradio as gr

    served = app.served
    with gr.Row(elem_classes="bench"):
        with gr.Column(scale=4, min_width=300, elem_classes="settings"):
            files = image_files("reconstruct")
            start, stop = start_and_stop("reconstruct", "Reconstruct")
            size = served.main.image_size
            fragment(hint(f"The central square of each image is taken, at {size} x {size} pixels."))
        with gr.Column(scale=8, min_width=320):
            state = fragment(status(""), "reconstruct-status")
            shown = fragment(hint("Drop images to see their reconstructions."), "reconstruct-images")

    def work(stop: threading.Event, files: list[str] | None) -> Iterator[Outputs]:
        originals = read_uploads(files, image_size_for(served), served.config.max_images)
        rows: list[list[Reconstruction]] = []
        for number, original in enumerate(originals):
            if stop.is_set():
                raise Stopped
            yield status(f"Image {number + 1} of {len(originals)}", number / len(originals)), gr.skip()
            rows.append([reconstruct(served, vae, original) for vae in served.tokenizers.values()])
            fragments = [show(number, *pair) for number, pair in enumerate(zip(originals, rows, strict=False))]
            yield gr.skip(), means(rows) + "".join(fragments)
        yield status("Done."), gr.skip()

    def show(number: int, original: PixelArray, row: list[Reconstruction]) -> str:
        pictures = [shown_picture(f"original-{number}.png", original, "Original")]
        for name, result in zip(served.tokenizers, row, strict=True):
            prefix = f"{name}: " if len(served.tokenizers) > 1 else ""
            caption = f"{prefix}{result.psnr:.1f} dB, SSIM {result.ssim:.3f}"
            facts = {"tokenizer": name, "psnr": result.psnr, "ssim": result.ssim}
            pictures += [
                shown_picture(f"reconstruction-{number}.png", result.pixels, caption, facts),
                shown_picture(f"difference-{number}.png", result.difference, f"{DIFFERENCE_GAIN:g} x difference"),
            ]
        return figures(pictures, served.main.image_size, f"row of-{len(pictures)}")

    def shown_picture(filename: str, picture: PixelArray, caption: str, facts: dict[str, Any] | None = None) -> Shown:
        return Shown(app.pictures.add(filename, png_bytes(picture, facts)), caption, caption, filename)

    def means(rows: list[list[Reconstruction]]) -> str:
        return "".join(
            heading(
                f"{name}: PSNR {sum(one.psnr for one in results) / len(rows):.2f} dB, "
                f"SSIM {sum(one.ssim for one in results) / len(rows):.3f}"
            )
            for name, results in zip(served.tokenizers, zip(*rows, strict=True), strict=True)
        )

    connect(app, "reconstruct", work, (start, stop), {"files": files}, [state, shown])
