"""A trained pipeline, or a tokenizer alone -> a folder for others: diffusers' layout, pictures, and a model card."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from alight.artifacts import (
    PIPELINE_INDEX,
    SAMPLES_GRID,
    SAMPLES_RECORD,
    WEIGHTS_FILE,
    Artifact,
    is_complete,
    read_artifact,
    write_manifest,
)
from alight.config import EvaluateTokenizerConfig, ExportConfig, ImagesConfig
from alight.data.image_dataset import ImageDataset
from alight.data.loading import open_dataset
from alight.data.provenance import png_text, software
from alight.evaluation.reconstruction import reconstruct
from alight.evaluation.tokenizers import EvaluatedTokenizer
from alight.models.tokenizer import Tokenizer
from alight.models.tokenizer_folders import open_tokenizer_folder
from alight.options import EMBEDDED
from alight.outputs import claimed_output, writing_folder
from alight.pipelines import LightningDiTPipeline
from alight.pipelines.lightning_dit import image_size
from alight.pipelines.opening import open_pipeline
from alight.reporting.pictures import pair_strip
from alight.runtime.console import log
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash, write_text
from alight.sharing import hub
from alight.sharing.model_card import Shared, model_card, setting_text
from alight.sharing.source import Source, figures_of, find_source, portable, records_of, samples_of

CARD, PIPELINE_CODE = "README.md", "pipeline.py"
SAMPLES_PICTURE, RECONSTRUCTIONS_PICTURE = "samples.png", "reconstructions.png"
CODE = '''"""Where `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` finds the pipeline: in alight."""

from alight import LightningDiTPipeline

__all__ = ["LightningDiTPipeline"]
'''


def run(config: ExportConfig) -> Artifact:
    """Write the folder, and upload it where that is asked for.

    Checkpoints, logs and whatever else training left behind stay where they are.

    Returns:
        The exported folder: an artifact of the kind `pipeline` or `tokenizer`.

    Raises:
        InputError: what is to be exported is not there or does not belong together, the output cannot be written, or
            the hub is out of reach.
    """
    started = time.perf_counter()
    if config.push_to_hub is not None:
        hub.check_access(config.push_to_hub)
    source = find_source(config)
    records = records_of(source)
    kind = "pipeline" if source.transformer is not None else "tokenizer"
    resolved = config.model_dump(mode="json") | {"inputs": [source.pipeline, *source.folders.values()]}
    with claimed_output(config.output, kind, resolved, renew=True, compare=False):
        require_same_networks(config.output, kind, records)
        files = write_export(config, source, records, started)
        if config.push_to_hub is not None:
            log.info("Uploaded: %s", hub.upload(config.output, files, config.push_to_hub, config.private))
    return read_artifact(config.output, kind)


def write_export(config: ExportConfig, source: Source, records: dict[str, Artifact], started: float) -> list[str]:
    """Write networks, pictures, card and manifests, and return the names of all files."""
    samples = samples_of(source, records, config.samples)
    report = figures_of(source, records, config.report)
    with writing_folder(config.output) as staging:
        networks = save_networks(source, staging)
        shared = describe(config, records, networks, report)
        if samples is not None and source.transformer is not None:
            shared = with_samples(shared, samples, staging)
        shared = with_reconstructions(shared, networks, config, staging)
        write_text(staging / CARD, model_card(shared))
        write_manifests(staging, records, config, time.perf_counter() - started)
        return sorted(str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file())


# --- networks ---------------------------------------------------------------------------------------------------


def save_networks(source: Source, staging: Path) -> LightningDiTPipeline | Tokenizer:
    """Open the networks and write them in diffusers' layout; the code beside them leads diffusers to the pipeline."""
    if source.transformer is None:
        vae = open_tokenizer_folder(source.tokenizer)
        vae.save_pretrained(staging)
        return vae
    if source.pipeline is not None:
        pipeline = open_pipeline(source.pipeline)
    else:
        pipeline = LightningDiTPipeline.from_artifacts(source.transformer, source.tokenizer)
    pipeline.save_pretrained(staging)
    index = json.loads((staging / PIPELINE_INDEX).read_text(encoding="utf-8"))
    index.pop("_name_or_path", None)  # a path of this machine
    index["_class_name"] = [PIPELINE_CODE.removesuffix(".py"), LightningDiTPipeline.__name__]
    write_text(staging / PIPELINE_INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
    write_text(staging / PIPELINE_CODE, CODE)
    return pipeline


def require_same_networks(output: Path, kind: str, records: dict[str, Artifact]) -> None:
    """Let an earlier export be replaced only by one of the same networks."""
    if is_complete(output):
        existing = read_artifact(output, kind, verify=False)
        held = existing.inputs if kind == "pipeline" else {kind: existing.hash}
        if held != {name: record.hash for name, record in records.items()}:
            raise InputError(f"{output} holds another {kind}. Choose another --output, or delete that folder.")


def write_manifests(staging: Path, records: dict[str, Artifact], config: ExportConfig, seconds: float) -> None:
    """Let the networks stay artifacts, with their records as far as these make sense elsewhere."""
    alone = "transformer" not in records
    for name, record in records.items():
        facts, settings = portable(record.facts), portable(record.config)
        folder = staging if alone else staging / name
        write_manifest(folder, name, settings, record.hash, record.inputs, facts, record.seconds)
    if not alone:
        settings = portable(config.model_dump(mode="json", exclude={"push_to_hub", "private"}))
        digest = file_hash(*(staging / name / WEIGHTS_FILE for name in ("transformer", "tokenizer")))
        inputs = {name: record.hash for name, record in records.items()}
        write_manifest(staging, "pipeline", settings, digest, inputs, seconds=seconds)


def describe(
    config: ExportConfig,
    records: dict[str, Artifact],
    networks: LightningDiTPipeline | Tokenizer,
    report: dict[str, Any] | None,
) -> Shared:
    """The content of the card, without pictures."""
    pipeline = networks if isinstance(networks, LightningDiTPipeline) else None
    vae = networks.tokenizer if isinstance(networks, LightningDiTPipeline) else networks
    models = {"tokenizer": vae} | ({"transformer": pipeline.transformer} if pipeline is not None else {})
    folder = (config.pipeline or config.transformer or config.tokenizer or config.output).resolve()
    return Shared(
        name=config.name or (folder.parent.name if folder.name in ("pipeline", *records) else folder.name),
        license=config.license,
        tokenizer=records["tokenizer"],
        transformer=records.get("transformer"),
        shape=f"f{vae.downsampling_factor}d{vae.config.latent_channels}",
        image_size=vae.config.sample_size if pipeline is None else image_size(pipeline),
        parameters={kind: sum(weight.numel() for weight in model.parameters()) for kind, model in models.items()},
        class_names=pipeline.class_names if pipeline is not None else (),
        report=report,
        selection=pipeline.config.get("selection") if pipeline is not None else None,
        address=config.push_to_hub or "FOLDER",
        tokenizer_class=json.loads(vae.to_json_string())["_class_name"],
        latent_space=vae.latent_space,
    )


# --- pictures ---------------------------------------------------------------------------------------------------


def with_samples(shared: Shared, samples: Artifact, staging: Path) -> Shared:
    """Show the grid of the samples, and tell how they were made."""
    settings = json.loads((samples.path / SAMPLES_RECORD).read_text(encoding="utf-8"))
    shutil.copyfile(samples.path / SAMPLES_GRID, staging / SAMPLES_PICTURE)
    chosen = {name: value for name, value in settings["sampling"].items() if value is not None}
    caption = (
        f"Samples, a row per class, not chosen: {setting_text(chosen)}, NFE {setting_text(settings['nfe'])}, "
        f"seed {settings['seed']}."
    )
    return replace(shared, sampling=settings, pictures={**shared.pictures, SAMPLES_PICTURE: caption})


def with_reconstructions(
    shared: Shared, networks: LightningDiTPipeline | Tokenizer, config: ExportConfig, staging: Path
) -> Shared:
    """Show what the tokenizer makes of a few images that everybody may see, or that were named."""
    recorded = shared.tokenizer.config.get("images", {})
    source = config.images or (recorded["source"] if recorded.get("source") in EMBEDDED else None)
    if source is None or not config.reconstructions:
        return shared
    own = recorded if recorded.get("source") == source else {"size": shared.image_size}
    images = ImagesConfig.model_validate({**own, "source": source})
    dataset, of = open_shown_images(images)
    vae = networks if isinstance(networks, Tokenizer) else networks.tokenizer
    tokenizer = EvaluatedTokenizer(shared.name, vae, shared.tokenizer, None)
    shown = range(min(config.reconstructions, len(dataset)))
    settings = EvaluateTokenizerConfig(images=images, batch_size=min(8, len(shown)))
    strip = pair_strip(*reconstruct(tokenizer, dataset, shown, settings, torch.device("cpu")))
    Image.fromarray(strip).save(staging / RECONSTRUCTIONS_PICTURE, pnginfo=png_text(software()))
    caption = f"The first {len(shown)} {of} of {Path(source).name}: originals above, reconstructions below."
    return replace(shared, pictures={**shared.pictures, RECONSTRUCTIONS_PICTURE: caption})


def open_shown_images(images: ImagesConfig) -> tuple[ImageDataset, str]:
    """Held-out images where there are any, else all of them; and what to call them."""
    try:
        return open_dataset(images, "held_out", augment=False), "held-out images"
    except InputError:  # nothing is held out
        return open_dataset(images, "all", augment=False), "images"
