"""Stage 5: generated images and reconstructions of their tokenizer -> figures with their conditions, and a report."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from alight.artifacts import (
    SAMPLES_NPZ,
    Artifact,
    find_pipeline,
    library_versions,
    read_artifact,
    write_manifest,
)
from alight.config import EvaluateConfig
from alight.data.image_dataset import ImageDataset
from alight.data.image_npz import write_shuffled_npz
from alight.data.latents import LatentDataset
from alight.data.loading import open_dataset
from alight.device_settings import ENCODED, joined, with_compilation
from alight.evaluation.assessment import assess_tokenizer, overall_level
from alight.evaluation.batches import in_steps
from alight.evaluation.bottleneck import find_bottleneck
from alight.evaluation.generated import GeneratedImages, SampledImages, open_generated
from alight.evaluation.generation import Generation, measure_generation
from alight.evaluation.generation_assessment import assess_generation
from alight.evaluation.generation_report import generation_figures, neighbours_picture, samples_picture
from alight.evaluation.label_figures import class_table, label_figure
from alight.evaluation.latent_report import density_figures, latent_figures, latent_plots, read_some
from alight.evaluation.reconstruction import Measurements, reconstruct
from alight.evaluation.reconstruction import measure_reconstruction as measure_tokenizer
from alight.evaluation.tokenizer_report import log_curve, magnification, tokenizer_curves, tokenizer_figures
from alight.evaluation.tokenizers import EvaluatedTokenizer, MetricNetworks, open_evaluated, open_metric_networks
from alight.outputs import claimed_output, read_written, writing_folder
from alight.pipelines.compilation import compile_pipeline
from alight.pipelines.live_images import LiveImages
from alight.pipelines.opening import open_pipeline
from alight.reporting.files import figure_lines, write_report
from alight.reporting.pictures import pair_strip
from alight.reporting.report import Answer, Curve, Figure, Picture, Report, Stage
from alight.runtime.console import log
from alight.runtime.distributed import Processes
from alight.runtime.files import file_hash
from alight.runtime.threads import all_cores

HEADLINES = ("reconstruction_psnr", "alignment_cosine")  # of the tokenizer's figures
SHOWN_PAIRS = 16


def run(config: EvaluateConfig, timings: Mapping[str, float] | None = None) -> Artifact:
    """Measure generated images, and the tokenizer that decoded them; several processes share the work.

    Args:
        config: of the measurement.
        timings: seconds by stage, where the caller measured them; otherwise each artifact's own.

    Returns:
        The report artifact: `report.json`, `report.html`, and where asked for `samples.npz`.

    Raises:
        InputError: on unusable artifacts or images, or parts that do not belong together or cannot be compared.
    """
    started = time.perf_counter()
    with (
        joined(config) as (processes, config),
        claimed_output(config.output, "report", config.model_dump(mode="json"), renew=True, is_main=processes.is_main),
    ):
        images, artifacts = open_subject(config, processes.device)
        config = compile_networks(config, images, processes)
        generation = measure_generation(config, images, processes)
        reconstruction = measure_reconstruction(config, processes) if config.tokenizer is not None else None
        if processes.is_main:
            with all_cores(processes):
                report = describe(config, images, generation, reconstruction, artifacts)
            stages = [Stage(artifact.kind, artifact.seconds, _brief(artifact)) for artifact in artifacts]
            if timings is not None:
                stages = [Stage(name, seconds) for name, seconds in timings.items()]
            report = replace(report, stages=[*stages, Stage("report", time.perf_counter() - started)])
            with writing_folder(config.output) as staging:
                write_report(staging, report)
                if config.npz:
                    export_npz(staging / SAMPLES_NPZ, images, config)
                digest = file_hash(staging / "report.json")
                inputs = {artifact.kind: artifact.hash for artifact in artifacts}
                seconds, resolved = time.perf_counter() - started, config.model_dump(mode="json")
                write_manifest(staging, "report", resolved, digest, inputs, seconds=seconds)
            for line in figure_lines(report):
                log.info(line)
        processes.barrier()  # the artifact is there
    return read_written(config.output, "report")


def open_subject(config: EvaluateConfig, device: torch.device) -> tuple[GeneratedImages, list[Artifact]]:
    """The generated images, and the artifacts that they and the report are made of.

    Raises:
        InputError: something is missing, or does not belong together.
    """
    wanted = {"tokenizer": config.tokenizer, "transformer": config.transformer}
    artifacts = []
    for kind, path in wanted.items():
        if path is not None:
            own = open_evaluated([path])[0].artifact if kind == "tokenizer" else read_artifact(path, kind)
            artifacts.append(own)
    if config.pipeline is not None:
        place = find_pipeline(config.pipeline)
        return LiveImages(open_pipeline(place).to(device), place, config.draw, config.seed), artifacts
    images = open_generated(config.samples)
    if isinstance(images, SampledImages):
        for artifact in artifacts:
            images.artifact.require_input(artifact)
        artifacts.append(images.artifact)
    return images, artifacts


def compile_networks(config: EvaluateConfig, images: GeneratedImages, processes: Processes) -> EvaluateConfig:
    """Compile the pipeline that makes the images, where there is one; decide for the networks that measure them."""
    share = images.count // processes.world_size
    if isinstance(images, LiveImages):
        config = config.model_copy(update={"draw": compile_pipeline(images.pipeline, config.draw, share)})
    return with_compilation(config, processes.device, share, ENCODED)


@dataclass(frozen=True)
class Reconstruction:
    """The measurements of the tokenizer."""

    tokenizer: EvaluatedTokenizer
    dataset: ImageDataset
    measured: Measurements
    networks: MetricNetworks
    notes: list[str]


def measure_reconstruction(config: EvaluateConfig, processes: Processes) -> Reconstruction:
    """Measure the reconstructions of the images of the split."""
    assert config.tokenizer is not None
    (tokenizer,) = open_evaluated([config.tokenizer])
    dataset = open_dataset(config.images, config.split, augment=False)
    networks, notes = open_metric_networks(config, [tokenizer])
    measured = measure_tokenizer(tokenizer, dataset, config, networks.to(processes.device), processes)
    return Reconstruction(tokenizer, dataset, measured, networks, notes)


def reconstruction_picture(of: Reconstruction, config: EvaluateConfig, device: torch.device) -> Picture:
    """The first originals above their reconstructions."""
    shown = range(min(SHOWN_PAIRS, len(of.dataset)))
    originals, decoded = reconstruct(of.tokenizer, of.dataset, shown, config, device)
    caption = "Originals above, their reconstructions below."
    return Picture("Reconstructions", caption, pair_strip(originals, decoded), magnification(originals))


def describe(
    config: EvaluateConfig,
    images: GeneratedImages,
    generation: Generation,
    reconstruction: Reconstruction | None,
    artifacts: Sequence[Artifact],
) -> Report:
    """The whole report but for the times."""
    figures: list[Figure] = []
    pictures: list[Picture | None] = [
        samples_picture(images, config.shown_classes),
        neighbours_picture(generation, images),
    ]
    curves: list[Curve] = []
    notes: list[str] = [*images.remarks]
    if reconstruction is not None:
        figures += [
            replace(figure, headline=figure.name in HEADLINES)
            for figure in tokenizer_figures(reconstruction.measured, config, reconstruction.networks)
        ]
        pictures.append(reconstruction_picture(reconstruction, config, generation.networks.device))
        curves += tokenizer_curves([reconstruction.tokenizer])
        notes += decoder_notes(images, reconstruction.tokenizer)
        notes += [*reconstruction.notes, "PSNR and SSIM compare with the same crops that the tokenizer saw."]
    classes = None
    if generation.label_scores is not None:
        classes = class_table(generation.label_scores, images, config.shown_classes)
        figures.append(label_figure(generation.label_scores, images))
    device = generation.networks.device
    figures += generation_figures(images, generation.features, generation.reference, config.seed, device)
    if config.transformer is not None:
        curves += transformer_curves(config.transformer)
    plots: list[Curve] = []
    if config.latents is not None:
        dataset = LatentDataset(config.latents)
        latents = read_some(dataset, config.seed)
        figures += [replace(figure, headline=False) for figure in latent_figures(dataset, latents, config.seed)]
        plots = latent_plots(latents)
        if config.density_runs:
            density, picture = density_figures(dataset, config.seed, config.density_runs)
            figures += [replace(figure, headline=False) for figure in density]
            pictures.append(picture)
    return Report(
        answer=answer(config, images, generation, reconstruction, artifacts),
        title=f"Report on {images.name if config.reference else Path(config.images.source).name}",
        summary=summary(images, reconstruction, artifacts),
        figures=figures,
        comparison=classes,
        pictures=[picture for picture in pictures if picture is not None],
        distributions=plots,
        curves=curves,
        configuration={artifact.kind: artifact.config for artifact in artifacts}
        | {"evaluate": config.model_dump(mode="json")},
        versions=library_versions(),
        notes=[*notes, *remarks(config, generation)],
    )


def answer(
    config: EvaluateConfig,
    images: GeneratedImages,
    generation: Generation,
    reconstruction: Reconstruction | None,
    artifacts: Sequence[Artifact],
) -> Answer | None:
    """The verdict on the generated images; None without the reconstructions that they are held against."""
    if reconstruction is None:
        return None
    tokenizer, dataset, measured = reconstruction.tokenizer, reconstruction.dataset, reconstruction.measured
    found = find_bottleneck(generation, images, tokenizer, dataset, reconstruction.networks, config)
    names = [dataset.source.name(index) for index in range(len(dataset))]
    alone, level = assess_tokenizer([measured], names, config), overall_level(measured)
    by_kind = {artifact.kind: artifact for artifact in artifacts}
    return assess_generation(images, generation.label_scores, found, alone, level, by_kind)


def summary(images: GeneratedImages, reconstruction: Reconstruction | None, artifacts: Sequence[Artifact]) -> str:
    """The subject of the report, in a sentence."""
    parts = []
    if reconstruction is not None:
        aligned = reconstruction.tokenizer.artifact.facts.get("foundation")
        kind = "whose latents are aligned with a vision foundation model" if aligned else "without alignment"
        parts.append(f"a tokenizer {kind}")
    for artifact in artifacts:
        if artifact.kind == "transformer":
            parts.append(
                f"a LightningDiT of {artifact.facts['parameters'] / 1e6:.1f} million parameters trained on its "
                "latents with rectified flow"
            )
    parts.append(f"{images.count:,} generated images of {images.size[1]}x{images.size[0]} pixels")
    text = f"{', '.join(parts[:-1])}, and {parts[-1]}" if len(parts) > 1 else parts[0]
    return f"{text[0].upper()}{text[1:]}."


def decoder_notes(images: GeneratedImages, measured: EvaluatedTokenizer) -> list[str]:
    """Name both tokenizers where the reconstructions are of another one than the generated images."""
    decoder = images.settings["tokenizer"] if images.settings is not None else measured.artifact.hash
    if decoder == measured.artifact.hash:
        return []
    return [
        f"The reconstructions are those of the tokenizer {measured.artifact.hash[:12]}, but the generated images were "
        f"decoded by another one, {decoder[:12]}."
    ]


def remarks(config: EvaluateConfig, generation: Generation) -> list[str]:
    """Notes on omitted measurements and on caveats."""
    notes = [
        "A Frechet distance in other features than Inception's is not an FID, and compares with nothing published.",
        "Distances are biased upwards for few images; compare only runs with the same count.",
    ]
    if generation.features.inception is None:
        notes.append("FID and its relatives were not measured; they need --inception-weights.")
    elif generation.reference.inception is None:
        notes.append("FID was not measured: the reference holds no statistics of Inception's features.")
    if config.reference is not None and config.neighbours:
        notes.append("Nearest training images were not sought: statistics stand for the training images here.")
    return notes


def transformer_curves(folder: Path) -> list[Curve]:
    """Both parts of the flow's loss."""
    curve = log_curve("Transformer: rectified flow", folder, {"mse": "velocity", "cosine": "velocity direction"})
    return [curve] if curve is not None else []


def _brief(artifact: Artifact) -> dict[str, object]:
    return {key: artifact.facts[key] for key in ("steps", "count", "parameters") if key in artifact.facts}


def export_npz(path: Path, images: GeneratedImages, config: EvaluateConfig) -> None:
    """Write the images in shuffled order as `arr_0`."""

    def read(order: list[int]) -> Iterator[np.ndarray]:
        for part in in_steps(0, len(order), config.batch_size):
            yield from images.pick(order[part.start : part.stop])

    write_shuffled_npz(path, read, images.count, config.seed, images.settings)
