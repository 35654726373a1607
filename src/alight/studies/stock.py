"""Published networks in place of own ones: a tokenizer that passes the reconstruction check, a foundation model."""

import json
from pathlib import Path

from alight.config import EvaluateTokenizerConfig, ImagesConfig, QuickstartConfig, StartConfig
from alight.evaluation.assessment import level
from alight.interop.tokenizer_sources import open_tokenizer
from alight.models.foundation_loading import open_backbone
from alight.runtime.console import log
from alight.runtime.device import resolve_device
from alight.runtime.errors import InputError
from alight.stages import evaluate_tokenizer
from alight.studies.proposal import split_of

TOKENIZER, FOUNDATION = "stabilityai/sd-vae-ft-mse", "dinov2-base"  # tried where a GPU makes them pay
GOOD_ENOUGH = 1  # thresholds, of two, that each figure must reach: those of the published f16d16
TOKENS = 16  # along a side, of the transformer; more latents than that are joined to patches


def with_published_networks(config: StartConfig, recipe: QuickstartConfig, folder: Path) -> QuickstartConfig:
    """Use published networks where they are given, or where a GPU and a network are there and they serve the images.

    Args:
        config: of the command.
        recipe: with its images filled in.
        folder: of the run; the check of the tokenizer is written below it.

    Raises:
        InputError: a network that was named cannot be used.
    """
    worth_it = resolve_device(config.device).type != "cpu"
    tokenizer = config.stock_tokenizer or (TOKENIZER if worth_it else None)
    if tokenizer is not None and is_usable(tokenizer, recipe.images, folder, named=config.stock_tokenizer is not None):
        return with_tokenizer(recipe, tokenizer)
    foundation = config.public_foundation or (FOUNDATION if worth_it else None)
    if foundation is not None and is_reachable(foundation, named=config.public_foundation is not None):
        return recipe.model_copy(update={"public_foundation": foundation})
    return recipe


def is_usable(tokenizer: str, images: ImagesConfig, folder: Path, named: bool) -> bool:
    """Reconstruct held-out images, and tell if the result is as good as the published f16d16 on ImageNet."""
    check = EvaluateTokenizerConfig(
        output=folder / f"stock-tokenizer-{images.size}px",
        tokenizer=Path(tokenizer),
        images=images,
        split=split_of(images),
    )
    try:
        report = evaluate_tokenizer.run(check)
    except InputError as error:
        if named:
            raise
        log.info("start: the published tokenizer %s cannot be used: %s", tokenizer, error)
        return False
    figures = json.loads((report.path / "report.json").read_text(encoding="utf-8"))
    measures = {name: figures.get(f"reconstruction_{name}") for name in ("psnr", "ssim")}
    psnr = measures["psnr"] if measures["psnr"] is not None else float("inf")  # of images without an error
    usable = min(level("psnr", psnr), level("ssim", measures["ssim"])) >= GOOD_ENOUGH
    log.info(
        "start: the tokenizer %s reconstructs these images with %.1f dB: %s. See %s.",
        tokenizer,
        psnr,
        "it is used" if usable else "too little, so one is trained",
        report.path / "report.html",
    )
    return usable


def is_reachable(foundation: str, named: bool) -> bool:
    """Tell if a foundation model can be loaded, from a folder, the cache or the hub."""
    try:
        open_backbone(foundation)
    except InputError as error:
        if named:
            raise
        log.info("start: the foundation model %s cannot be used, so a small one is trained: %s", foundation, error)
        return False
    return True


def with_tokenizer(recipe: QuickstartConfig, tokenizer: str) -> QuickstartConfig:
    """The recipe with an existing tokenizer, and patches that fit its latents."""
    side = recipe.images.size // open_tokenizer(tokenizer).vae.downsampling_factor
    model = recipe.transformer.model.model_copy(update={"patch_size": max(side // TOKENS, 1)})
    return recipe.model_copy(
        update={
            "stock_tokenizer": tokenizer,
            "transformer": recipe.transformer.model_copy(update={"model": model}),
            "latents": recipe.latents.model_copy(update={"statistics": "data"}),  # of these images
        }
    )
