"""Makes the pictures of the documentation, with the package's own functions, into docs/pictures/.

    pip install -e '.[docs]' -c constraints.txt
    alight quickstart
    alight study alignment --config photographs/tokenizer_study
    alight tokenizer train --config own_images/tokenizer --images.source photographs --output runs/adversarial \
      --alignment.foundation runs/study/foundation --model.block-out-channels 16 32 64 64 \
      --reconstruction.adversarial-weight 0.5 --reconstruction.adversarial-start-step 200 \
      --training.steps 600 --training.global-batch-size 8 --training.log-every 5
    alight study frontier --config digits/frontier --jobs 2
    python docs/pictures.py

The frontier takes about an hour on two quiet cores, the others ten minutes. `--only flow guidance` makes the
pictures of these functions alone. Pictures of quoted figures say so.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_images, make_moons
from sklearn.decomposition import PCA
from torch import Tensor

from alight import VAVAE, LightningDiTPipeline
from alight.flow import GuidedVelocity, LinearPath, sample_timesteps, shift_timesteps, solve_ode, time_grid
from alight.models.foundation import FoundationModel
from alight.reporting.pictures import image_grid
from alight.reporting.plots import smooth
from alight.runtime.pixels import unit_range

FOLDER = Path(__file__).parent / "pictures"
INK, QUIET, LINE, PAPER = "#1c1c1a", "#6a6862", "#e2dfd6", "#fcfbf8"
COLOURS = ["#2b5c8a", "#b4641e", "#4b7f52", "#8a4a78", "#84702a", "#7a7a7a"]  # those of the report
STYLE = {
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.prop_cycle": plt.cycler(color=COLOURS),
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "font.size": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "alight",  # the same picture gives the same file
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
}


@dataclass(frozen=True)
class Runs:
    """Folders of the finished runs that pictures are taken from."""

    quickstart: Path
    study: Path
    adversarial: Path
    frontier: Path


# --- a plane in which the velocity is known exactly ---------------------------------------------------------------


class Moons:
    """Two crescents, a class each, as mixtures of small Gaussians: their flow has a velocity in closed form.

    With x_1 from a Gaussian of mean m and variance s^2, x_t = t x_1 + (1 - t) x_0 is Gaussian with variance
    w = t^2 s^2 + (1 - t)^2, and E[x_1 - x_0 | x_t] = m + (t s^2 - (1 - t)) / w (x_t - t m). A mixture averages these
    by how likely each part made x_t.
    """

    NULL = 2  # the label that means either class
    STD = 0.11

    def __init__(self) -> None:
        points, labels = make_moons(n_samples=80)
        self.means = torch.tensor((points - points.mean(0)) * 1.6, dtype=torch.float32)  # (80, 2)
        self.labels = torch.tensor(labels)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, 2) points of both classes."""
        means = self.means[torch.randint(len(self.means), (count,), generator=generator)]
        return means + self.STD * torch.randn(count, 2, generator=generator)

    def __call__(self, x: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        """The exact velocity (B, 2): what a perfect model would answer."""
        t = t[:, None]
        variance = t**2 * self.STD**2 + (1 - t) ** 2  # (B, 1)
        offset = x[:, None] - t[..., None] * self.means  # (B, 80, 2)
        of_class = (class_labels[:, None] == self.NULL) | (class_labels[:, None] == self.labels)
        logits = (-offset.square().sum(-1) / (2 * variance)).masked_fill(~of_class, -torch.inf)
        parts = self.means + ((t * self.STD**2 - (1 - t)) / variance)[..., None] * offset
        return (logits.softmax(1)[..., None] * parts).sum(1)


def _plane(axes: Axes, title: str, width: float, height: float) -> None:
    axes.set(title=title, xlim=(-width, width), ylim=(-height, height), aspect="equal", xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def flow(runs: Runs) -> Figure:
    """What is learned from, straight lines that cross; and what is followed, curves that do not."""
    moons, generator = Moons(), torch.Generator().manual_seed(1)
    count = 160
    x_0, x_1 = torch.randn(count, 2, generator=generator), moons.sample(count, generator)
    point = LinearPath().sample(x_1, x_0, sample_timesteps(count, generator=generator))
    labels = torch.full((count,), Moons.NULL)
    figure, (training, sampling, steps) = plt.subplots(1, 3, figsize=(9, 3.2))

    _plane(training, "training: random pairs, a point of each line", 3, 3)
    training.scatter(*x_1.T, s=9, color=COLOURS[0])
    training.plot(*torch.stack([x_0, x_1]).permute(2, 0, 1), color=QUIET, alpha=0.25, linewidth=0.6)
    training.quiver(*point.x_t.T, *(0.22 * point.velocity).T, color=COLOURS[1], angles="xy", scale_units="xy", scale=1)
    for axes in (training, sampling, steps):
        axes.scatter(*x_0.T, s=4, color=QUIET, alpha=0.4, linewidths=0)

    _plane(sampling, "sampling: the mean velocity, followed", 3, 3)
    exact = solve_ode(GuidedVelocity(moons, labels), x_0, 200, "heun", return_trajectory=True)
    sampling.plot(*exact.trajectory.permute(2, 0, 1), color=COLOURS[0], alpha=0.35, linewidth=0.7)
    sampling.scatter(*exact.x.T, s=9, color=COLOURS[0])

    _plane(steps, "six Euler steps of the same flow", 3, 3)
    coarse = solve_ode(GuidedVelocity(moons, labels), x_0, 6, "euler", return_trajectory=True)
    steps.plot(*coarse.trajectory.permute(2, 0, 1), color=COLOURS[2], alpha=0.35, linewidth=0.7)
    steps.scatter(*coarse.x.T, s=9, color=COLOURS[2])
    return figure


def solvers(runs: Runs) -> Figure:
    """What a step buys: the distance to the exact end point against model evaluations."""
    moons, generator = Moons(), torch.Generator().manual_seed(1)
    x_0, labels = torch.randn(256, 2, generator=generator).double(), torch.full((256,), Moons.NULL)
    moons.means = moons.means.double()
    exact = solve_ode(GuidedVelocity(moons, labels), x_0, 2000, "rk4").x
    figure, axes = plt.subplots(figsize=(5.2, 3.2))
    for solver in ("euler", "ab2", "heun", "rk4"):
        evaluations, errors = [], []
        for steps in (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256):
            solution = solve_ode(GuidedVelocity(moons, labels), x_0, steps, solver)
            if 8 <= solution.nfe <= 256:
                evaluations.append(solution.nfe)
                errors.append((solution.x - exact).square().sum(1).mean().sqrt().item())
        axes.loglog(evaluations, errors, "o-", markersize=3, label=solver)
    axes.set(xlabel="model evaluations per sample", ylabel="distance to the exact end (RMS)")
    axes.set_xticks([8, 16, 32, 64, 128, 256], [8, 16, 32, 64, 128, 256], minor=False)
    axes.minorticks_off()
    axes.legend()
    return figure


def guidance(runs: Runs) -> Figure:
    """One class at several scales, and with an interval; the other class lies behind in grey."""
    moons, generator = Moons(), torch.Generator().manual_seed(2)
    labels = torch.zeros(400, dtype=torch.int64)
    noise = torch.randn(400, 2, generator=generator)
    settings: list[tuple[str, float, tuple[float, float] | None]] = [
        ("scale 1: no guidance", 1.0, None),
        ("scale 2", 2.0, None),
        ("scale 5", 5.0, None),
        ("scale 5 on t in [0.5, 1]", 5.0, (0.5, 1.0)),
    ]
    figure, panels = plt.subplots(2, 2, figsize=(7, 4.7))
    for axes, (title, scale, interval) in zip(panels.flat, settings, strict=True):
        velocity = GuidedVelocity(moons, labels, torch.full_like(labels, Moons.NULL), scale, interval)
        x = solve_ode(velocity, noise, 100, "heun").x
        _plane(axes, title, 2.9, 1.75)
        axes.scatter(*moons.means[moons.labels == 1].T, s=40, color=LINE)
        axes.scatter(*moons.means[moons.labels == 0].T, s=40, color="#d5dfe9")
        axes.scatter(*x.T, s=4, color=COLOURS[0])
    return figure


def times(runs: Runs) -> Figure:
    """Where training looks, how time is warped, and where a sampler then stands."""
    figure, (density, warp, grid) = plt.subplots(1, 3, figsize=(9, 2.9))
    t = sample_timesteps(400_000, generator=torch.Generator().manual_seed(0))
    shifted = shift_timesteps(t, 0.3)
    for drawn, label in ((t, "logit-normal"), (shifted, "the same, shift 0.3")):
        heights, edges = np.histogram(drawn, bins=60, range=(0, 1), density=True)
        density.plot((edges[1:] + edges[:-1]) / 2, heights, label=label)
    density.axhline(1, color=QUIET, linewidth=1, linestyle=":", label="uniform")
    density.set(title="training times", xlabel="t (0 noise, 1 data)", ylabel="density", ylim=(0, 4.2))
    density.legend(loc="upper right")

    line = torch.linspace(0, 1, 101)
    for s in (3.0, None, 0.5, 0.3):
        warp.plot(line, shift_timesteps(line, s), label=f"s = {s:g}" if s else "off", linestyle="-" if s else ":")
    warp.set(title="timestep shift", xlabel="t", ylabel="s t / (1 + (s - 1) t)")
    warp.legend()

    for row, s in enumerate((3.0, None, 0.5, 0.3)):
        grid.scatter(time_grid(20, s), [row] * 21, s=14)
    grid.set(title="the 21 points of 20 steps", xlabel="t", ylim=(-0.7, 3.7))
    grid.set_yticks(range(4), ["s = 3", "off", "s = 0.5", "s = 0.3"])
    return figure


# --- figures quoted from the paper --------------------------------------------------------------------------------


def dilemma(runs: Runs) -> Figure:
    """Table 2 of the paper (arXiv 2501.01423): reconstruction against generation, by width and alignment."""
    widths = ["f16d16", "f16d32", "f16d64"]
    table = {  # rFID of the tokenizer, FID of 10,000 samples of LightningDiT-B, 160 epochs, no guidance
        "no alignment": ([0.49, 0.26, 0.17], [16.24, 22.62, 36.83]),
        "aligned with MAE": ([0.51, 0.28, 0.15], [16.86, 19.89, 23.58]),
        "aligned with DINOv2": ([0.55, 0.28, 0.14], [15.79, 15.82, 24.00]),
    }
    figure, axes = plt.subplots(figsize=(5.6, 3.6))
    for label, (reconstruction, generation) in table.items():
        axes.plot(reconstruction, generation, "o-", markersize=4, label=label)
    for x, y, width, offset in zip(*table["no alignment"], widths, [(-4, -14), (6, 5), (6, 5)], strict=True):
        axes.annotate(width, (x, y), offset, textcoords="offset points", color=QUIET)
    axes.set(xlabel="reconstruction: rFID (better to the left)", ylabel="generation: FID-10k (better below)")
    axes.set_title("quoted from table 2 of arXiv 2501.01423, LightningDiT-B/1")
    axes.set_ylim(12, 40)
    axes.legend()
    return figure


# --- real runs of this project ------------------------------------------------------------------------------------


def frontier(runs: Runs) -> Figure:
    """The measured counterpart of table 2: generation against reconstruction, and learning curves at 64 channels."""
    report = json.loads((runs.frontier / "report" / "report.json").read_text())
    labels, observer, _ = report["results"]
    learning = {name.split()[0]: line for name, line in report["curves"][0]["series"].items() if name.endswith(" d64")}
    figure, panels = plt.subplots(1, 3, figsize=(10.5, 3.4), layout="constrained")
    for axes, series in zip(panels, (labels["series"], observer["series"], learning), strict=True):
        for kind, line in series.items():
            means = np.array([line["x"], line["y"], line["x"], line["y"]])
            left, right, low, high = np.array(line["bars"], dtype=float).T
            ends = np.abs(np.array([left, low, right, high]) - means).reshape(2, 2, -1)  # lower and upper, x and y
            axes.errorbar(*means[:2], ends[:, 1], ends[:, 0], "o-", markersize=4, elinewidth=0.8, label=kind)
            for *point, text in zip(*means[:2], line.get("labels", ()), strict=False):
                axes.annotate(text, point, (5, 5), textcoords="offset points", color=QUIET)
    panels[0].set(title="label accuracy", xlabel="PSNR in dB", ylabel="better above")
    panels[1].set(title="Frechet distance, observer", xlabel="PSNR in dB", ylabel="better below")
    panels[2].set(title="label accuracy, d64", xlabel="step of the transformer")
    panels[0].legend()
    return figure


@torch.no_grad()
def alignment(runs: Runs) -> Figure:
    """Three principal components of features and latents, as red, green and blue, of one part of a photograph."""
    size = 256  # the networks take any grid; they were trained on crops of 64
    corners = ((60, 120), (90, 230))  # top, left
    photographs = load_sample_images().images
    pixels = np.stack([photo[y : y + size, x : x + size] for photo, (y, x) in zip(photographs, corners, strict=True)])
    images = unit_range(torch.from_numpy(pixels).permute(0, 3, 1, 2))  # (2, 3, H, W) in [-1, 1]
    plain, aligned = (VAVAE.from_pretrained(runs.study / name).eval() for name in ("plain", "aligned"))
    foundation = FoundationModel.from_pretrained(str(runs.study / "foundation")).eval()
    columns = {
        "image": None,
        "foundation model": foundation(images, (size // 8, size // 8)),
        "latents, not aligned": plain.encode_raw_latents(images),
        "latents, aligned": aligned.encode_raw_latents(images),
    }
    figure, panels = plt.subplots(2, 4, figsize=(9, 4.7))
    for column, (title, values) in enumerate(columns.items()):
        for row in range(2):
            shown = pixels[row] if values is None else _principal_colours(values[row])
            panels[row, column].imshow(shown, interpolation="nearest")
            panels[row, column].set_axis_off()
        panels[0, column].set_title(title)
    return figure


def _principal_colours(values: Tensor) -> np.ndarray:
    """(C, h, w) to (h, w, 3): the first three components, each stretched between its 2nd and 98th percentile."""
    vectors = values.flatten(1).T.numpy()  # (h w, C)
    components = PCA(3).fit_transform(vectors)
    low, high = np.percentile(components, [2, 98], axis=0)
    return np.clip((components - low) / (high - low), 0, 1).reshape(*values.shape[1:], 3)


@torch.no_grad()
def samples(runs: Runs) -> Figure:
    """Digits on their way from noise: the same seeds at six of 20 Euler steps."""
    pipeline = LightningDiTPipeline.from_pretrained(runs.quickstart / "pipeline")
    kept = {}

    def keep(step: int, latents: Tensor) -> None:
        if step in (1, 8, 12, 15, 17, 20):
            kept[step] = pipeline.decode(latents)

    classes = [str(digit) for digit in range(10)]
    pipeline(classes, 20, guidance_scale=1.5, guidance_interval=(0.1, 1.0), seeds=range(10), on_step=keep)
    figure, axes = plt.subplots(figsize=(7.2, 4.3))
    axes.imshow(image_grid(torch.cat(list(kept.values())).numpy(), columns=10, padding=3))
    axes.set_yticks([16 + 35 * row for row in range(len(kept))], [f"t = {step / 20:.2f}" for step in kept])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return figure


def _curves(axes: Axes, run: Path, names: dict[str, str], title: str, log_y: bool = False) -> None:
    """Values of a training log, faint, and a smooth line through them."""
    lines = [json.loads(line) for line in (run / "training" / "log.jsonl").read_text().splitlines()]
    for colour, (name, label) in zip(COLOURS, names.items(), strict=False):
        at = [line["step"] for line in lines if name in line]
        values = np.array([line[name] for line in lines if name in line], dtype=np.float64)
        axes.plot(at, values, color=colour, alpha=0.3, linewidth=0.8)
        line = 10 ** smooth(np.log10(values)) if log_y else smooth(values)
        axes.plot(at, line, color=colour, label=label)
    axes.set(title=title, xlabel="step")
    if log_y:
        axes.set_yscale("log")
    axes.legend()


def training_transformer(runs: Runs) -> Figure:
    """The two parts of the flow's loss, and the gradient norm, of the quickstart."""
    figure, (loss, norm) = plt.subplots(1, 2, figsize=(8, 3))
    _curves(loss, runs.quickstart / "transformer", {"mse": "mse", "cosine": "1 - cosine"}, "velocity error")
    _curves(norm, runs.quickstart / "transformer", {"grad_norm": "before clipping"}, "gradient norm", log_y=True)
    return figure


def training_tokenizer(runs: Runs) -> Figure:
    """Reconstruction, alignment and the adaptive weight of the quickstart's tokenizer."""
    figure, panels = plt.subplots(1, 3, figsize=(9, 2.8))
    run = runs.quickstart / "tokenizer"
    _curves(panels[0], run, {"l1": "L1 per pixel"}, "reconstruction", log_y=True)
    _curves(panels[1], run, {"mcos": "marginal cosine", "mdms": "marginal distance"}, "alignment")
    _curves(panels[2], run, {"alignment_adaptive_weight": "weight of the alignment"}, "adaptive weight", log_y=True)
    return figure


def training_discriminator(runs: Runs) -> Figure:
    """A tokenizer with a discriminator from step 200 on."""
    figure, panels = plt.subplots(1, 3, figsize=(9, 2.8))
    _curves(panels[0], runs.adversarial, {"l1": "L1 per pixel"}, "reconstruction", log_y=True)
    logits = {"discriminator_real": "real", "discriminator_fake": "reconstructed"}
    _curves(panels[1], runs.adversarial, logits, "mean logit of the discriminator")
    _curves(panels[2], runs.adversarial, {"discriminator_accuracy": "patches classified correctly"}, "accuracy")
    panels[2].set_ylim(0.4, 1.05)
    for axes in panels:
        axes.axvline(200, color=QUIET, linewidth=1, linestyle=":")
    return figure


PICTURES: dict[str, Callable[[Runs], Figure]] = {
    made.__name__: made
    for made in (
        *(dilemma, frontier, alignment, flow, solvers, guidance, times, samples),
        *(training_transformer, training_tokenizer, training_discriminator),
    )
}
RASTER = {"alignment", "flow", "guidance", "samples"}  # the others are SVG


def main() -> None:
    """Make the pictures that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--study", type=Path, default=Path("runs/study"))
    parser.add_argument("--adversarial", type=Path, default=Path("runs/adversarial"))
    parser.add_argument("--frontier", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--only", nargs="*", choices=PICTURES, default=list(PICTURES))
    arguments = parser.parse_args()
    runs = Runs(arguments.quickstart, arguments.study, arguments.adversarial, arguments.frontier)
    FOLDER.mkdir(exist_ok=True)
    for name in arguments.only:
        with plt.rc_context(STYLE):
            figure = PICTURES[name](runs)
            path = FOLDER / f"{name}.{'png' if name in RASTER else 'svg'}"
            figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
            plt.close(figure)
        if path.suffix == ".png":  # 256 colours are enough here, for a third of the bytes
            picture = Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE)
            picture.save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
