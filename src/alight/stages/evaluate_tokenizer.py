"""Tokenizers on images they have not seen -> figures, pictures and an assessment, alone or side by side."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from alight.artifacts import Artifact, library_versions, write_manifest
from alight.config import EvaluateTokenizerConfig
from alight.data.image_dataset import ImageDataset
from alight.data.loading import open_dataset
from alight.device_settings import ENCODED, joined, with_compilation
from alight.evaluation.alignment import fit_linear_map
from alight.evaluation.assessment import assess_tokenizer
from alight.evaluation.reconstruction import Measurements, measure_reconstruction, reconstruct, statistics_warning
from alight.evaluation.tokenizer_report import (
    chosen_images,
    difference_strip,
    numbered,
    psnr_distribution,
    side_by_side,
    tokenizer_curves,
    tokenizer_figures,
)
from alight.evaluation.tokenizers import EvaluatedTokenizer, MetricNetworks, open_evaluated, open_metric_networks
from alight.lineage import warn_of_other_squares
from alight.models.tokenizer_folders import require_image_size
from alight.outputs import claimed_output, read_written, writing_folder
from alight.reporting.files import figure_lines, write_report, write_table
from alight.reporting.report import Picture, Report, Stage
from alight.runtime.console import log
from alight.runtime.device import compile_blocks
from alight.runtime.files import file_hash
from alight.runtime.threads import all_cores

TABLE = "images.csv"
SHOWN_IMAGES = 8  # of up to 128 pixels, in a row
FEW_FOR_FID = 10_000
DIFFERENCE_CAPTION = "In the differences grey means equal, brighter means decoded too bright."


def run(config: EvaluateTokenizerConfig) -> Artifact:
    """Measure one tokenizer or several on the same crops; several processes share the work.

    Returns:
        The report artifact: `report.json`, `report.html`, and `images.csv` with the scores of every image.

    Raises:
        InputError: on unusable tokenizers, images, weight files or foundation model, or an output folder that cannot
            be written or holds another report.
    """
    started = time.perf_counter()
    resolved = config.model_dump(mode="json")
    with (
        joined(config) as (processes, config),
        claimed_output(config.output, "report", resolved, renew=True, is_main=processes.is_main),
    ):
        dataset = open_dataset(config.images, config.split, augment=False)
        tokenizers = open_evaluated([config.tokenizer, *config.compare])
        if config.also_in_bf16:
            tokenizers = [each for tokenizer in tokenizers for each in (tokenizer, tokenizer.in_bf16())]
        for tokenizer in tokenizers:
            require_image_size(tokenizer.vae, config.images.size, tokenizer.artifact.path)
        if processes.is_main:
            for tokenizer in tokenizers:
                warn_of_other_squares(tokenizer.artifact, config.images)
        config = with_compilation(config, processes.device, len(dataset) // processes.world_size, ENCODED)
        if config.compile:
            compile_blocks((block for each in tokenizers for block in each.vae.blocks), fixed_size=True)
        networks, notes = open_metric_networks(config, tokenizers)
        networks = networks.to(processes.device)
        measured = []
        for tokenizer in tokenizers:
            linear_map = None
            if networks.foundation is not None:
                linear_map = fit_linear_map(tokenizer.vae, networks.foundation, config, processes)
            measured.append(measure_reconstruction(tokenizer, dataset, config, networks, processes, linear_map))
        if processes.is_main:
            with all_cores(processes):
                report = describe(measured, dataset, config, networks, processes.device)
            seconds = time.perf_counter() - started
            report = replace(report, stages=[*report.stages, Stage("report", seconds)], notes=[*report.notes, *notes])
            with writing_folder(config.output) as staging:
                write_report(staging, report)
                write_table(staging / TABLE, image_table(measured, dataset))
                digest = file_hash(staging / "report.json")
                inputs = {"tokenizer": tokenizers[0].artifact.hash}
                resolved = config.model_dump(mode="json")
                write_manifest(staging, "report", resolved, digest, inputs, seconds=seconds)
            for line in figure_lines(report):
                log.info(line)
        processes.barrier()  # the artifact is there
    return read_written(config.output, "report")


def describe(
    measured: Sequence[Measurements],
    dataset: ImageDataset,
    config: EvaluateTokenizerConfig,
    networks: MetricNetworks,
    device: torch.device,
) -> Report:
    """The whole report."""
    tokenizers, several = [each.tokenizer for each in measured], len(measured) > 1
    own_figures = [tokenizer_figures(each, config, networks) for each in measured]
    figures = own_figures[0]
    if several:
        pairs = zip(own_figures, tokenizers, strict=True)
        figures = [figure for number, pair in enumerate(pairs, start=1) for figure in numbered(*pair, number)]
    split = {"held_out": "held-out images", "train": "training images", "all": "images"}[config.split]
    return Report(
        title=f"Tokenizer{'s' if several else ''} {' and '.join(tokenizer.name for tokenizer in tokenizers)}",
        summary=f"{'; '.join(map(kinship, tokenizers))}: measured on {'the same ' if several else ''}"
        f"{len(dataset):,} {split}.",
        figures=figures,
        answer=assess_tokenizer(measured, [dataset.source.name(index) for index in range(len(dataset))], config),
        comparison=side_by_side(measured, own_figures) if several else None,
        pictures=draw(measured, dataset, config, device),
        distributions=[psnr_distribution(measured)],
        curves=tokenizer_curves(tokenizers),
        stages=[
            Stage(tokenizer.name, tokenizer.artifact.seconds) for tokenizer in tokenizers if tokenizer.artifact.seconds
        ],
        configuration={tokenizer.name: tokenizer.artifact.config for tokenizer in tokenizers}
        | {"evaluate": config.model_dump(mode="json")},
        versions=library_versions(),
        notes=[
            *remarks(measured, dataset, config, networks),
            *statistics_remarks(tokenizers, dataset, config, device),
            *(precision_remarks(measured) if config.also_in_bf16 else ()),
        ],
    )


def kinship(tokenizer: EvaluatedTokenizer) -> str:
    """Such as "aligned (f16d32, aligned with dinov2-large)"."""
    foundation = tokenizer.artifact.facts.get("foundation")
    alignment = f"aligned with {Path(foundation).name}" if foundation else "without alignment"
    return f"{tokenizer.name} ({tokenizer.shape}, {alignment})"


def remarks(
    measured: Sequence[Measurements], dataset: ImageDataset, config: EvaluateTokenizerConfig, networks: MetricNetworks
) -> list[str]:
    """Notes on omitted measurements and on caveats."""
    notes = [
        f"The images: {dataset.source.description}.",
        "Every image is scored against the very crop that the tokenizer saw, and the scores of each image are in "
        f"{TABLE} beside this page.",
    ]
    for each in measured:
        name, identical = each.tokenizer.name, int(each.scores["psnr"].isinf().sum())
        if identical:
            rest = each.scores["psnr"][each.scores["psnr"].isfinite()]
            mean = f"; over the others it is {rest.mean():.2f} dB" if len(rest) else ""
            notes.append(f"{name} reproduces {identical} images exactly, which makes its mean PSNR infinite{mean}.")
        if networks.foundation is not None and each.tokenizer.projection and "alignment_cosine" not in each.scores:
            projection = each.tokenizer.projection
            layers = projection.settings.get("layers")
            of = f"layers {', '.join(map(str, layers))} of " if layers else ""
            notes.append(
                f"The trained projection of {name} leads to {of}{projection.foundation}, so it has no separate "
                f"figures in the features of {networks.foundation.name}."
            )
    if networks.foundation is not None and len({each.tokenizer.shape for each in measured}) > 1:
        notes.append(
            "Features are taken on the latent grid of each tokenizer, and wider latents hold more to read off: where "
            "grids or channels differ, the alignment compares loosely."
        )
    if networks.foundation is None:
        notes.append("The alignment was not measured: no tokenizer here names a foundation model, nor --foundation.")
    elif config.split != "held_out":
        notes.append("The linear map was fitted to some of the images that it is measured on.")
    if networks.inception is None:
        notes.append("rFID was not measured; it needs --inception-weights and thousands of images.")
    elif len(measured[0].scores["psnr"]) < FEW_FOR_FID:
        notes.append(f"rFID is biased upwards for fewer than {FEW_FOR_FID:,} images; the published one is of 50,000.")
    return notes


def precision_remarks(measured: Sequence[Measurements]) -> list[str]:
    """The differences that weights in bf16 make; every second tokenizer is the one before it with such weights."""
    notes = []
    for full, narrow in zip(measured[::2], measured[1::2], strict=True):
        change = narrow.scores["psnr"] - full.scores["psnr"]
        change = change[change.isfinite()]
        words = [f"PSNR by {change.mean():+.4f} dB in the mean and by {change.abs().max():.3f} dB at most"]
        words += [
            f"{'SSIM' if name == 'ssim' else 'LPIPS'} by {narrow.mean(name) - full.mean(name):+.6f}"
            for name in ("ssim", "lpips")
            if name in full.scores
        ]
        if full.fid is not None and narrow.fid is not None:
            words.append(f"rFID by {narrow.fid.value - full.fid.value:+.4f}")
        notes.append(f"Weights in bf16 change {full.tokenizer.name}: {', '.join(words)}.")
    return notes


def statistics_remarks(
    tokenizers: Sequence[EvaluatedTokenizer],
    dataset: ImageDataset,
    config: EvaluateTokenizerConfig,
    device: torch.device,
) -> list[str]:
    """Of tokenizers whose latents the recorded statistics would not normalise."""
    warnings = {tokenizer.name: statistics_warning(tokenizer, dataset, config, device) for tokenizer in tokenizers}
    return [f"{name}: {warning}" for name, warning in warnings.items() if warning]


def draw(
    measured: Sequence[Measurements], dataset: ImageDataset, config: EvaluateTokenizerConfig, device: torch.device
) -> list[Picture]:
    """The worst, the best and some ordinary images, with their reconstructions by every tokenizer."""
    captions = {
        "worst": ("The worst", "lowest PSNR first"),
        "ordinary": ("From the worst to the best", "evenly spread over the ranking by PSNR, not chosen by eye"),
        "best": ("The best", "highest PSNR first"),
    }
    count = max(2, SHOWN_IMAGES * 128 // max(config.images.size, 128))  # at 256 pixels, half as many
    of = f" of {measured[0].tokenizer.name}" if len(measured) > 1 else ""
    pictures = []
    for kind, indices in chosen_images(measured[0].scores["psnr"], count).items():
        decoded = {}
        for each in measured:
            originals, decoded[each.tokenizer.name] = reconstruct(each.tokenizer, dataset, indices, config, device)
        title, order = captions[kind]
        psnr = ", ".join(f"{measured[0].scores['psnr'][index]:.1f}" for index in indices)
        caption = f"By PSNR{of}, {order}: {psnr} dB. {DIFFERENCE_CAPTION}"
        pictures.append(difference_strip(title, caption, originals, decoded))
    return pictures


def image_table(measured: Sequence[Measurements], dataset: ImageDataset) -> dict[str, list[object]]:
    """The columns of the table: name and scores of every image, and the tokenizer where there are several."""
    names = list(dict.fromkeys(name for each in measured for name in each.scores))
    table: dict[str, list[object]] = {"name": [], **({"tokenizer": []} if len(measured) > 1 else {})}
    table |= {name: [] for name in names}
    for each in measured:
        table["name"] += [dataset.source.name(index) for index in range(len(dataset))]
        if len(measured) > 1:
            table["tokenizer"] += [each.tokenizer.name] * len(dataset)
        for name in names:
            table[name] += each.scores[name].tolist() if name in each.scores else [""] * len(dataset)
    return table
