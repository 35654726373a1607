"""Tab *Latents*: latents channel by channel and beside the features of a foundation model."""

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from alight.runtime.device import autocast
from alight.runtime.pixels import PixelArray, from_uint8
from alight.web.between_section import between_section
from alight.web.controls import fragment, image_files, start_and_stop
from alight.web.events import AppContext, Outputs, connect
from alight.web.jobs import Stopped
from alight.web.latent_views import channel_maps, pca_pictures
from alight.web.markup import CRISP_BELOW, Shown, element, figures, heading, hint, joined, row_name, status
from alight.web.pictures import png_bytes
from alight.web.served import Served
from alight.web.uploads import read_uploads

MOST_IMAGES = 8  # shown together


def latents_tab(app: AppContext) -> None:
    """Lay out the tab and connect it."""
    import gradio as gr

    with gr.Row(elem_classes="bench"):
        with gr.Column(scale=4, min_width=300, elem_classes="settings"):
            files = image_files("latents")
            start, stop = start_and_stop("latents", "Look inside")
        with gr.Column(scale=8, min_width=320):
            state = fragment(status(""), "latents-status")
            shown = fragment(hint(f"Drop up to {MOST_IMAGES} images to see their latents."), "latents-images")

    def work(stop: threading.Event, files: list[str] | None) -> Iterator[Outputs]:
        originals = read_uploads(files, app.served.main.image_size, MOST_IMAGES)
        yield status("Encoding"), gr.skip()
        latents, features = encode(app.served, originals)
        if stop.is_set():
            raise Stopped
        yield status("Done."), structure(app, originals, latents, features) + channels(app, latents[0])

    connect(app, "latents", work, (start, stop), {"files": files}, [state, shown])
    fragment(element("hr", class_="between"))
    between_section(app)


@torch.no_grad()
def encode(served: Served, originals: PixelArray) -> tuple[Tensor, Tensor | None]:
    """Normalised latents (B, C, h, w) of images (B, H, W, 3), and the foundation model's features on the same grid."""
    images = from_uint8(torch.from_numpy(originals)).to(served.device)
    with served.lock, autocast(served.device, served.config.precision):
        latents: Tensor = served.main.pipeline.tokenizer.encode_latents(images).float()
        features = served.foundation(images, (latents.shape[2], latents.shape[3])) if served.foundation else None
    return latents, features


def structure(app: AppContext, originals: PixelArray, latents: Tensor, features: Tensor | None) -> str:
    """Rows of the images, of their latents in false colours, and of their features."""
    note = "Three principal components as red, green and blue: equal colours within a row are similar vectors."
    rows: list[tuple[str, PixelArray]] = [("Images", originals), ("Latents", pca_pictures(latents))]
    if features is None or app.served.foundation is None:
        note += " Start the server with --foundation NAME to see a foundation model's features below them."
    else:
        rows.append((f"Features of {app.served.foundation.name.rpartition('/')[2]}", pca_pictures(features)))
    side = app.served.main.image_size
    strips = [
        row_name(name) + figures(_shown(app, name, pictures), side if number == 0 else 1, "strip")
        for number, (name, pictures) in enumerate(rows)
    ]
    return heading("Structure", note) + joined(strips)


def channels(app: AppContext, latents: Tensor) -> str:
    """Every channel of one latent (C, h, w)."""
    shape = " x ".join(map(str, latents.shape))
    title = heading(f"Channels of the first image ({shape})", "Blue is below the channel's mean, orange above.")
    pictures = channel_maps(latents)
    return title + figures(_shown(app, "Channel", pictures, numbered=True), CRISP_BELOW - 1, "tiles")


def _shown(app: AppContext, name: str, pictures: PixelArray, numbered: bool = False) -> list[Shown]:
    shown = []
    for number, picture in enumerate(pictures):
        filename = f"{name.split()[0].lower()}-{number}.png"
        address = app.pictures.add(filename, png_bytes(picture))
        shown.append(Shown(address, str(number) if numbered else "", f"{name} {number}", filename))
    return shown
