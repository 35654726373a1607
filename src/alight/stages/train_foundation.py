"""Stage 0, where no pretrained model fits: images -> a small vision foundation model in the `transformers` format."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification, ViTMAEConfig, ViTMAEForPreTraining

from alight.artifacts import Artifact, read_artifact, write_manifest
from alight.config import TrainFoundationConfig
from alight.data.loading import open_dataset
from alight.data.sampling import ResumableLoader, ResumableSampler
from alight.device_settings import settled
from alight.models.foundation import repeated_blocks
from alight.models.foundation_loading import quiet_transformers
from alight.outputs import claimed_output, recorded_config, writing_folder
from alight.runtime.ahead import on_device
from alight.runtime.device import autocast, compile_blocks, fast_float32, resolve_device
from alight.runtime.distributed import Processes, used_device
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash
from alight.runtime.pixels import unit_range
from alight.runtime.seeding import random_stream, seeded_initialisation
from alight.training.flops import known_flops, weightless
from alight.training.inputs import image_inputs, require_unchanged
from alight.training.longer import expected_config, goes_on
from alight.training.optimizer import learning_rate, make_optimizer, optimizer_step
from alight.training.run import TrainingRun


def run(config: TrainFoundationConfig) -> Artifact:
    """Train a vision transformer on images, and save it so that the foundation adapter opens it like DINOv2.

    Returns:
        The foundation artifact: a `transformers` folder.

    Raises:
        InputError: on unusable images, output folder or device.
    """
    config = settled(config, resolve_device(config.device), recorded_config(config.output))
    resolved = config.model_dump(mode="json")
    longer = goes_on(resolved, config.output, "foundation")
    expected = expected_config(resolved, config.output, "foundation")
    with (
        used_device(resolve_device(config.device)) as device,
        fast_float32(device),
        claimed_output(config.output, "foundation", expected, renew=longer) as finished,
    ):
        if finished is None:
            train(config, resolved, device)
        else:
            require_unchanged(finished, image_inputs(config.images))
    return read_artifact(config.output, "foundation")


def train(config: TrainFoundationConfig, resolved: dict[str, Any], device: torch.device) -> None:
    """Run the training loop."""
    dataset = open_dataset(config.images, "train", seed=config.seed)
    with seeded_initialisation(config.seed, "foundation"):
        model = build_model(config, num_classes=len(dataset.source.class_names)).to(device)
    if config.training.compile:
        compile_blocks(repeated_blocks(model))
    optimizer = make_optimizer(model.named_parameters(), config.optimizer)
    training, inputs = config.training, image_inputs(config.images, dataset.source)
    sampler = ResumableSampler(len(dataset), training.global_batch_size, config.seed)
    micro_batches = training.micro_batches()
    with TrainingRun(
        config.output / "training",
        resolved,
        training,
        {"model": model, "optimizer": optimizer},
        "foundation",
        Processes(0, 1, device),
        dataset_size=len(dataset),
        flops_per_image=image_flops(model, config),
        inputs=inputs,
    ) as run:
        sampler.advance(run.start_step)
        workers, pinned = config.images.workers, device.type == "cuda"
        loader = ResumableLoader(dataset, sampler, training.micro_batch_size, workers, pinned)
        batches = on_device(loader, device, "image", "label")
        for step in run.steps():
            for _ in range(micro_batches):
                batch = next(batches)
                with autocast(device, training.precision):
                    loss = objective(model, unit_range(batch.image), batch.label, config.seed, step)
                (loss / micro_batches).backward()
                run.log(loss=loss)
            lr = learning_rate(step, training.steps, config.optimizer)
            norm = optimizer_step(optimizer, lr, config.optimizer.max_grad_norm)
            run.log(grad_norm=norm, lr=lr)
            run.check(norm)
    save(model, config, inputs, run.seconds)


def build_model(config: TrainFoundationConfig, num_classes: int) -> PreTrainedModel:
    """A vision transformer with the head that its task needs.

    Raises:
        InputError: the patches do not fit the images.
    """
    size, pixels = config.model, config.images.size
    if pixels < size.patch_size or (config.task == "masked_autoencoder" and pixels % size.patch_size):
        rule = "a multiple of" if config.task == "masked_autoencoder" else "at least"
        raise InputError(
            f"images.size {pixels} does not fit a foundation model with patches of {size.patch_size} pixels: a "
            f"{config.task.replace('_', ' ')} needs {rule} the patch size. Change images.size or model.patch_size."
        )
    shared = {
        "image_size": pixels,
        "patch_size": size.patch_size,
        "hidden_size": size.hidden_size,
        "num_hidden_layers": size.num_layers,
        "num_attention_heads": size.num_heads,
        "intermediate_size": 4 * size.hidden_size,
    }
    if config.task == "classifier":
        return ViTForImageClassification(ViTConfig(num_labels=num_classes, **shared))
    decoder = {"decoder_hidden_size": size.hidden_size, "decoder_num_hidden_layers": 2}
    heads = {"decoder_num_attention_heads": size.num_heads, "decoder_intermediate_size": 4 * size.hidden_size}
    return ViTMAEForPreTraining(ViTMAEConfig(mask_ratio=0.75, **shared, **decoder, **heads))


def objective(model: PreTrainedModel, images: Tensor, labels: Tensor, seed: int, step: int) -> Tensor:
    """Cross-entropy of the class, or the error of the masked patches (He et al. 2022, section 3)."""
    if isinstance(model, ViTForImageClassification):
        return model(pixel_values=images, labels=labels).loss
    patches = (model.config.image_size // model.config.patch_size) ** 2
    order = torch.rand(len(images), patches, generator=random_stream(seed, "mask", step))
    return model(pixel_values=images, noise=order.to(images.device)).loss


def image_flops(model: PreTrainedModel, config: TrainFoundationConfig) -> int | None:
    """Floating-point operations to learn from one image."""
    images = torch.empty(1, 3, config.images.size, config.images.size, device="meta")
    labels = torch.empty(1, dtype=torch.int64, device="meta")
    return known_flops(lambda: objective(weightless(model), images, labels, seed=0, step=0).backward())


def save(model: PreTrainedModel, config: TrainFoundationConfig, inputs: Mapping[str, str], seconds: float) -> None:
    """Write the backbone without its head, and the normalisation it was trained with: [-1, 1]."""
    backbone = model.vit
    with writing_folder(config.output) as staging:
        with quiet_transformers():
            backbone.save_pretrained(staging)
        normalisation = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (staging / "preprocessor_config.json").write_text(json.dumps(normalisation, indent=2) + "\n")
        digest = file_hash(staging / "model.safetensors")
        facts = {"task": config.task, "steps": config.training.steps, **inputs}
        write_manifest(staging, "foundation", config.model_dump(mode="json"), digest, facts=facts, seconds=seconds)
