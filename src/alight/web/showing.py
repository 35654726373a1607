"""Samples as the page shows them: previews on the way, and results with all their settings."""

from alight.data.provenance import software
from alight.reporting.pictures import image_grid
from alight.runtime.pixels import UINT8_RULE, PixelArray
from alight.runtime.units import duration
from alight.web.markup import Shown, figures, status, summary
from alight.web.pictures import PictureStore, png_bytes, preview_address
from alight.web.sampling import Progress, SampleRequest, Samples
from alight.web.served import ServedPipeline

GRID_COLUMNS = 10


def progress_line(news: Progress, request: SampleRequest) -> str:
    """The progress of a request, as text and as a bar."""
    total, steps = len(request.labels), request.sampling.num_inference_steps
    share = (news.finished + news.under_way * news.steps / steps) / total if news.steps else None
    where = f"step {news.steps} of {steps}" if news.steps else f"{news.evaluations} evaluations so far"
    finished = f"{news.finished} of {total} images done, " if news.under_way < total else ""
    return status(f"{finished}{where}".capitalize(), share)


def previews(images: PixelArray, which: ServedPipeline, request: SampleRequest) -> str:
    """Unfinished images, without download links."""
    names = [which.class_name(label).split(",")[0] for label in request.labels]
    shown = (
        Shown(preview_address(image), name, f"{name}, on its way from noise")
        for image, name in zip(images, names, strict=False)
    )
    return figures(shown, which.image_size)


def results(samples: Samples, which: ServedPipeline, request: SampleRequest, pictures: PictureStore) -> str:
    """The finished images, each with a link to its file, and a link to all of them in one grid."""
    shown = []
    for number, image in enumerate(samples.images):
        facts = image_settings(which, request, number, samples.nfe[number])
        name = str(facts["class"]).split(",")[0]
        filename = f"{_plain(name)}-{number:03d}.png"
        address = pictures.add(filename, png_bytes(image, facts))
        shown.append(Shown(address, name, f"{name}, generated", filename))
    grid = image_grid(samples.images, min(GRID_COLUMNS, _row_length(request.labels)))
    facts = shared_settings(which, request) | {"labels": list(request.labels), "seeds": list(request.seeds)}
    address = pictures.add("grid.png", png_bytes(grid, facts))
    count, cost = len(samples.images), max(samples.nfe)
    text = f"{count} image{'s'[: count > 1]} in {duration(samples.seconds)}, {cost} evaluations each"
    return summary(text, [("Download all in one picture", address, "grid.png")]) + figures(shown, which.image_size)


def shared_settings(which: ServedPipeline, request: SampleRequest) -> dict[str, object]:
    """The settings that all images of a request share."""
    sampling = request.sampling.effective()
    return software() | {"pipeline": which.name, **which.hashes, "sampling": sampling, "uint8_rule": UINT8_RULE}


def image_settings(which: ServedPipeline, request: SampleRequest, number: int, nfe: int) -> dict[str, object]:
    """All settings of one image."""
    label = request.labels[number]
    own = {"label": label, "class": which.class_name(label), "seed": request.seeds[number], "nfe": nfe}
    return own | shared_settings(which, request)


def _row_length(labels: tuple[int, ...]) -> int:
    """The images of one class, or all of them if each class has one."""
    return labels.count(labels[0]) if labels.count(labels[0]) > 1 else len(labels)


def _plain(name: str) -> str:
    """A class name as part of a file name."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-") or "image"
