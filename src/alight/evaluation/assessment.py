"""Assessment of a tokenizer: its figures in plain words, compared with the published tokenizers."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from alight.config import EvaluateTokenizerConfig, ImagesConfig, MeasureTokenizerConfig
from alight.config.command_line import command_text, option_words
from alight.evaluation.reconstruction import Measurements
from alight.evaluation.tokenizers import EvaluatedTokenizer
from alight.next_command import next_command
from alight.reporting.report import Answer

OF_TRAINING = ("crop", "horizontal_flip", "held_out_fraction", "workers")  # settings of images that training keeps
ANCHOR_IMAGES = "50,000 ImageNet validation crops of 256 pixels"


class Anchor(NamedTuple):
    """Reconstruction of a published tokenizer on ImageNet at 256 pixels (paper, Table 2, aligned with DINOv2)."""

    psnr: float
    ssim: float
    lpips: float
    fid: float


F16D32 = Anchor(psnr=27.96, ssim=0.79, lpips=0.096, fid=0.28)  # the one that the paper generates with
F16D16 = Anchor(psnr=25.29, ssim=0.69, lpips=0.147, fid=0.55)  # the weakest one of the table
F16D64_PSNR = 30.71
F16D32_PIXELS_PER_LATENT = 24

ANSWERS = ("Not yet", "Nearly", "Yes")
MEANINGS = (
    "it reconstructs these images worse than the weakest published tokenizer does ImageNet",
    "it reconstructs these images about as well as the smaller published tokenizer does ImageNet",
    "it reconstructs these images at least as well as the published f16d32 tokenizer does ImageNet",
)
PLACES = ("below the published f16d16", "between the published f16d16 and f16d32", "at or above the published f16d32")
# Two published tokenizers that differ in the alignment alone (paper, Table 2; f16d32, LightningDiT-B, 160 epochs)
PUBLISHED_TRADE = (
    "In the published pair, aligning f16d32 with DINOv2 cost 0.63 dB of PSNR (28.59 to 27.96) and took the FID-10k of "
    "a generator from 22.62 to 15.82."
)


def assess_tokenizer(measured: Sequence[Measurements], names: Sequence[str], config: MeasureTokenizerConfig) -> Answer:
    """Assess one tokenizer or several against thresholds; the weakest measure of each decides."""
    overall = [overall_level(each) for each in measured]
    tokenizers = [each.tokenizer for each in measured]
    if len(measured) == 1:
        question, answer = (
            "Is this tokenizer good enough for these images?",
            f"{ANSWERS[overall[0]]}: {MEANINGS[overall[0]]}.",
        )
        reasons = [place(measured[0]), spread(measured[0], names)]
    else:
        question = "Are these tokenizers good enough for these images?"
        answer = "; ".join(
            f"{tokenizer.name}: {ANSWERS[level].lower()}" for tokenizer, level in zip(tokenizers, overall, strict=True)
        )
        answer += "."
        reasons = [f"{each.tokenizer.name}: {place(each)} {spread(each, names)}" for each in measured]
        reasons += trade(measured)
    if "lpips" not in measured[0].scores:
        reasons.append(
            "LPIPS, which sees blur and artefacts much as people do, was not measured: it needs --vgg16-weights and "
            "--lpips-weights. Look at the worst images below instead."
        )
    if config.split != "held_out":
        reasons.append(
            "Some or all of these images may have been trained on, and then a tokenizer looks better than it is: "
            "hold some out (--images.held-out-fraction) for an honest answer."
        )
    basis = (
        f"Assessed by the weakest measure, with the published f16d16 and f16d32 as thresholds: PSNR {F16D16.psnr} and "
        f"{F16D32.psnr} dB, SSIM {F16D16.ssim} and {F16D32.ssim}, LPIPS {F16D16.lpips} and {F16D32.lpips}, taken on "
        f"{ANCHOR_IMAGES}. These are a yardstick, no limit of nature: smooth or dark images score higher and fine "
        "texture lower at the same quality, and other sizes shift all three."
    )
    best = overall.index(max(overall))
    return Answer(question, answer, reasons, advice(tokenizers[best], overall[best], config), basis)


def overall_level(measured: Measurements) -> int:
    """The answer by its number: 0 not yet, 1 nearly, 2 yes."""
    return min(levels(measured).values())


def levels(measured: Measurements) -> dict[str, int]:
    """Each measure, and the number of thresholds, of two, that it reaches."""
    return {name: level(name, measured.mean(name)) for name in ("psnr", "ssim", "lpips") if name in measured.scores}


def level(name: str, value: float) -> int:
    """Count the thresholds, of two, that a value reaches."""
    sign = -1 if name == "lpips" else 1
    return sum(sign * value >= sign * getattr(anchor, name) for anchor in (F16D16, F16D32))


def place(measured: Measurements) -> str:
    """The level of each measure."""
    digits = {"psnr": 2, "ssim": 3, "lpips": 3}
    places = [
        f"{name.upper()} {measured.mean(name):.{digits[name]}f} is {PLACES[level]}"
        for name, level in levels(measured).items()
    ]
    return f"{'; '.join(places)}."


def spread(measured: Measurements, names: Sequence[str]) -> str:
    """The images that the mean hides: the number of bad ones, and the worst."""
    psnr = measured.scores["psnr"]
    poor, worst = int((psnr < F16D16.psnr).sum()), int(psnr.argmin())
    share = "None" if not poor else "All" if poor == len(psnr) else f"{poor:,}"
    return (
        f"{share} of the {len(psnr):,} images lie below {F16D16.psnr} dB; the worst, {names[worst]}, has "
        f"{psnr[worst]:.2f} dB."
    )


def trade(measured: Sequence[Measurements]) -> list[str]:
    """Name the tokenizer that reconstructs best, and the one whose latents are nearest to the foundation model."""
    if "linear_cosine" not in measured[0].scores:
        return []
    sharpest = max(measured, key=lambda each: each.mean("psnr"))
    nearest = max(measured, key=lambda each: each.mean("linear_cosine"))
    found = (
        f"{sharpest.tokenizer.name} reconstructs best ({sharpest.mean('psnr'):.2f} dB), and a linear map reads the "
        f"foundation model's features best off the latents of {nearest.tokenizer.name} (mean cosine "
        f"{nearest.mean('linear_cosine'):.3f})."
    )
    return [f"{found} {PUBLISHED_TRADE}"]


def advice(tokenizer: EvaluatedTokenizer, overall: int, config: MeasureTokenizerConfig) -> list[str]:
    """Suggest improvements."""
    if overall == 2:
        return [
            "A generator can be no sharper than these reconstructions: if the worst images below look right, so can "
            f"the generated ones.{extraction(tokenizer, config)}"
        ]
    vae = tokenizer.vae
    pixels_per_latent = 3 * vae.downsampling_factor**2 / vae.config.latent_channels
    room = (
        f"{tokenizer.shape} keeps one number for every {pixels_per_latent:.3g} of the image, the published f16d32 one "
        f"for every {F16D32_PIXELS_PER_LATENT}"
    )
    if pixels_per_latent > F16D32_PIXELS_PER_LATENT:
        room = (
            f"Give the latents more room, by more channels or fewer levels: {room}, and f16d64, with twice as many, "
            f"reaches {F16D64_PSNR} dB. More channels are harder to generate, which is what the alignment is for."
        )
    else:
        room = f"The latents have room enough: {room}. More training or a wider network is needed."
    return [
        f"Go on training on these images: '{training_command(tokenizer, config.images)}'. With '--train decoder "
        "--alignment.weight 0' the latents stay as they are, and transformers that were trained on them stay of use.",
        room,
        "If fine detail is blurred though PSNR is fair, train with LPIPS and the discriminator "
        "(reconstruction.perceptual_weight, reconstruction.adversarial_weight).",
    ]


def extraction(tokenizer: EvaluatedTokenizer, config: MeasureTokenizerConfig) -> str:
    """A sentence with the command that encodes the same images."""
    if not isinstance(config, EvaluateTokenizerConfig):
        return ""
    source = Path(tokenizer.artifact.facts.get("source", tokenizer.artifact.path))
    command = next_command("tokenizer evaluate", config.model_copy(update={"tokenizer": source}))
    return f" The next step is '{command}'." if command is not None else ""


def training_command(tokenizer: EvaluatedTokenizer, images: ImagesConfig) -> str:
    """The command that goes on training a tokenizer into another folder.

    One that was trained here goes on as it was trained; of others the settings of training are not known.
    """
    artifact = tokenizer.artifact
    recorded = artifact.config.get("images") if "training" in artifact.config else None
    if recorded is not None:
        source, settings = str(artifact.path), ["--config", str(artifact.path)]
        trained_on = ImagesConfig.model_validate(recorded)
    else:  # a published one, imported or not
        source, settings = str(artifact.facts.get("source", artifact.path)), ["--alignment.foundation", "None"]
        trained_on = ImagesConfig()
    settings += option_words(images, trained_on, "images", without=OF_TRAINING)
    output = f"{artifact.path if artifact.path.is_dir() else Path('runs') / tokenizer.name}-longer"
    return command_text("tokenizer train", [*settings, "--init-from", source, "--output", output])
