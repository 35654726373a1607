"""Inspection of a folder of latents: every byte is checked, and the latents are described as training sees them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alight.artifacts import Artifact, library_versions, read_artifact, write_manifest
from alight.config import InspectLatentsConfig
from alight.data.latent_features import LatentFeatures
from alight.data.latents import LatentDataset
from alight.evaluation.latent_report import density_figures, latent_figures, latent_plots, read_some
from alight.outputs import claimed_output, writing_folder
from alight.reporting.files import write_report
from alight.reporting.report import Figure, Picture, Report
from alight.runtime.files import file_hash


@dataclass(frozen=True)
class Inspection:
    """The result of an inspection; `facts` by name as they are printed, `report` where one was written."""

    path: Path
    hash: str
    facts: Mapping[str, str]
    checked: int
    figures: Sequence[Figure]
    report: Path | None = None

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        figures = {figure.name: figure.value for figure in self.figures}
        report = str(self.report) if self.report is not None else None
        facts = {**self.facts, "checked": self.checked}
        return {"kind": "latents", "path": str(self.path), "hash": self.hash, "facts": facts, "figures": figures} | (
            {"report": report} if report else {}
        )

    def __str__(self) -> str:
        lines = [
            *(f"{name:<12} {fact}" for name, fact in self.facts.items()),
            f"hash         {self.hash[:12]}",
            "",
            f"After normalisation, over {self.checked:,} latents:",
            *(f"{figure.label:<24} {figure.value:.{figure.digits}f}" for figure in self.figures),
        ]
        return "\n".join([*lines, *(["", f"Report: {self.report}"] if self.report is not None else [])])


def run(config: InspectLatentsConfig) -> Inspection:
    """Check all shards, and describe the latents as training will see them, after normalisation.

    Returns:
        The description, as text and `as_data`; with `output` also a report with plots is written there.

    Raises:
        InputError: if the folder is not a finished latents artifact, or anything in it is damaged.
    """
    artifact = read_artifact(config.latents, "latents")
    if config.output is None:
        return inspect(config, artifact)
    with claimed_output(config.output, "report", config.model_dump(mode="json"), renew=True):
        return inspect(config, artifact)


def inspect(config: InspectLatentsConfig, artifact: Artifact) -> Inspection:
    """Check every byte, and measure some of the latents."""
    dataset = LatentDataset(config.latents)
    dataset.check_bytes(artifact.hash)
    features = LatentFeatures(artifact) if dataset.has_features else None
    if features is not None:
        features.check_bytes()
    latents = read_some(dataset, config.seed)
    figures, pictures = latent_figures(dataset, latents, config.seed), []
    if config.density_runs:
        density, picture = density_figures(dataset, config.seed, config.density_runs)
        figures, pictures = [*figures, *density], [picture]
    counts = np.bincount(dataset.labels.numpy(), minlength=dataset.num_classes)
    names = ", ".join(dataset.class_names[:8]) + (", ..." if dataset.num_classes > 8 else "")
    facts = {
        "latents": f"{describe(dataset)}; all checksums are right",
        "classes": f"{dataset.num_classes}: {names}",
        "per class": f"{counts.min():,} to {counts.max():,}",
        "tokenizer": artifact.inputs.get("tokenizer", "")[:12] or "unknown",
    }
    if features is not None:
        facts["features"] = f"{' x '.join(map(str, features.shape))} of {features.foundation}; all checksums are right"
    report = None
    if config.output is not None:
        page, resolved = build_report(artifact, dataset, latents, figures, pictures), config.model_dump(mode="json")
        with writing_folder(config.output) as staging:
            report = config.output / write_report(staging, page).name
            digest, inputs = file_hash(staging / "report.json"), {"latents": artifact.hash}
            write_manifest(staging, "report", resolved, digest, inputs)
    return Inspection(config.latents, artifact.hash, facts, len(latents), figures, report)


def describe(dataset: LatentDataset) -> str:
    """The number and shape of the latents."""
    text = f"{len(dataset):,} of shape {' x '.join(map(str, dataset.shape))}"
    text += ", mean and log-variance" if dataset.has_moments else ""
    return text + (", each also mirrored" if dataset.has_flips else "")


def build_report(
    artifact: Artifact, dataset: LatentDataset, latents: np.ndarray, figures: list[Figure], pictures: list[Picture]
) -> Report:
    """The figures, and plots of what they summarise."""
    return Report(
        title="Latents",
        summary=f"{artifact.path}: {describe(dataset)}, in {dataset.num_classes} classes. All checksums are right. "
        f"The figures and plots are of {len(latents):,} latents after normalisation, as training sees them.",
        figures=figures,
        pictures=pictures,
        distributions=latent_plots(latents),
        configuration=artifact.config,
        versions=library_versions(),
        notes=[f"Latents {artifact.hash}, of tokenizer {artifact.inputs.get('tokenizer') or 'unknown'}."],
    )
