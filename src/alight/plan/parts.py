"""The work of a stage that trains nothing, in parts: so many images, so many measured seconds for each of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from alight.config import (
    DrawConfig,
    EvaluateConfig,
    EvaluateReferenceConfig,
    EvaluateTokenizerConfig,
    ExtractLatentsConfig,
    FeatureNetworksConfig,
    Job,
    SampleConfig,
)
from alight.device_settings import settled
from alight.evaluation.generated import open_generated
from alight.flow.evaluations import SAME_EVALUATIONS, expected_evaluations
from alight.flow.timesteps import resolve_shift
from alight.models.foundation import FoundationModel
from alight.models.inception import InceptionV3
from alight.models.perceptual import LPIPS
from alight.models.tokenizer import Tokenizer
from alight.options import AUTO
from alight.pipelines.guidance_check import latent_shape
from alight.plan.inputs import Inputs
from alight.plan.passes import Passes
from alight.stages.extract_latents import size_sentence

PUBLISHED_COUNT = 50_000
DINOV2_SIDE = 224


class Part(NamedTuple):
    """Some of the work of a stage.

    Attributes:
        name: of what is done.
        times: how often.
        seconds_each: measured.
    """

    name: str
    times: float
    seconds_each: float

    @property
    def seconds(self) -> float:
        """The seconds of all of it."""
        return self.times * self.seconds_each


def parts_of(job: Job, inputs: Inputs, passes: Passes) -> Iterator[Part] | None:
    """Measure the parts of a stage; None if its job is no stage that could be measured so.

    Raises:
        InputError: a part that it is made from is there and cannot be used.
    """
    job = settled(job, passes.device)
    match job:
        case ExtractLatentsConfig():
            return extraction(job, inputs, passes)
        case SampleConfig():
            return sampling(job, job.transformer, job.tokenizer, job.batch_size, inputs, passes)
        case EvaluateTokenizerConfig():
            return tokenizer_report(job, inputs, passes)
        case EvaluateReferenceConfig():
            return reference(job, inputs, passes)
        case EvaluateConfig():
            return generation_report(job, inputs, passes)
    return None


def extraction(job: ExtractLatentsConfig, inputs: Inputs, passes: Passes) -> Iterator[Part]:
    """Decode and encode every image, and encode its mirror image."""
    count, _ = inputs.images(job.images)
    yield reading(job.images.workers, count, inputs.reading(job.images))
    mirrored = 2 if job.flips else 1
    vae = inputs.tokenizer(job.tokenizer)
    yield Part("encode", mirrored * count, passes.encoding(vae, job.images.size, job.batch_size, job.precision))
    if job.features.foundation is not None:
        model = inputs.foundation(job.features.foundation, job.features.foundation_input).to(passes.device)
        grid = (job.images.size // vae.downsampling_factor,) * 2
        inputs.note(size_sentence(vae, model, count, job))
        each = passes.features(lambda images: model(images, grid=grid), job.images.size, job.batch_size)
        yield Part("features of the foundation model", mirrored * count, each)


def sampling(
    draw: DrawConfig, transformer: Path, tokenizer: Path | None, batch: int, inputs: Inputs, passes: Passes
) -> Iterator[Part]:
    """Evaluate the transformer for every image, and decode it."""
    shape = inputs.transformer(transformer)
    count = drawn_images(draw, shape.num_classes)
    settings = draw.sampling.model_dump(exclude=SAME_EVALUATIONS)
    if draw.sampling.timestep_shift == AUTO:
        with torch.device("meta"):
            latents = latent_shape(shape.build(shape.num_layers))
        settings["timestep_shift"] = resolve_shift(AUTO, latents)
    evaluations = expected_evaluations(**settings)
    each = passes.sampling_step(shape.build, shape.num_layers, batch, draw.precision)
    yield Part("evaluate the transformer", count * evaluations, each)
    vae = inputs.tokenizer(tokenizer or inputs.tokenizer_of(transformer))
    yield Part(
        "decode", count, passes.decoding(vae, shape.latent_side * vae.downsampling_factor, batch, draw.precision)
    )


def tokenizer_report(job: EvaluateTokenizerConfig, inputs: Inputs, passes: Passes) -> Iterator[Part]:
    """Reconstruct every image with every tokenizer, and fit the linear map from latents to features."""
    count, _ = inputs.images(job.images, job.split)
    tokenizers = (job.tokenizer, *job.compare)
    yield reading(job.images.workers, count * len(tokenizers), inputs.reading(job.images, job.split))
    for folder in tokenizers:
        yield from reconstruction(job, folder, count, inputs, passes)
    name = job.foundation or next(filter(None, (inputs.foundation_of(folder) for folder in tokenizers)), None)
    if name is not None:
        mapped = min(inputs.images(job.images)[0], job.linear_map_images) * len(tokenizers)
        vae = inputs.tokenizer(job.tokenizer)
        each = passes.encoding(vae, job.images.size, job.batch_size)
        yield Part("encode for the linear map", mapped, each)
        yield Part("features for the linear map", mapped, foundation_seconds(job, name, vae, inputs, passes))


def reconstruction(
    job: EvaluateTokenizerConfig | EvaluateConfig, folder: Path, count: int, inputs: Inputs, passes: Passes
) -> Iterator[Part]:
    """Encode, decode and compare images with one tokenizer."""
    vae, size, batch = inputs.tokenizer(folder), job.images.size, job.batch_size
    yield Part("encode", count, passes.encoding(vae, size, batch))
    yield Part("decode", count, passes.decoding(vae, size, batch))
    if name := job.foundation or inputs.foundation_of(folder):
        yield Part("features of the foundation model", count, foundation_seconds(job, name, vae, inputs, passes))
    if job.lpips_weights is not None:
        yield Part("LPIPS", count, lpips_seconds(size, batch, passes))
    if job.inception_weights is not None:
        yield Part("features of Inception", 2 * count, inception_seconds(size, batch, passes))


def generation_report(job: EvaluateConfig, inputs: Inputs, passes: Passes) -> Iterator[Part]:
    """Features of generated and of real images, and reconstructions."""
    if job.pipeline is not None:
        yield from sampling(
            job.draw, job.pipeline / "transformer", job.pipeline / "tokenizer", job.batch_size, inputs, passes
        )
    count = generated_images(job, inputs)
    if job.reference is None:
        real, _ = inputs.images(job.images)
        yield reading(job.images.workers, real, inputs.reading(job.images))
        count += real
    yield from features(job, job.images.size, job.batch_size, count, inputs, passes)
    if job.tokenizer is not None:
        shown, _ = inputs.images(job.images, job.split)
        yield from reconstruction(job, job.tokenizer, shown, inputs, passes)


def reference(job: EvaluateReferenceConfig, inputs: Inputs, passes: Passes) -> Iterator[Part]:
    """Features of real images, or of decoded latents."""
    if job.latents is None:
        count, _ = inputs.images(job.images, job.split)
        yield reading(job.images.workers, count, inputs.reading(job.images, job.split))
    else:
        _, count = inputs.latents(job.latents)
        vae = inputs.tokenizer(job.tokenizer or "the tokenizer of the latents")
        yield Part("decode", count, passes.decoding(vae, job.images.size, job.batch_size))
    yield from features(job, job.images.size, job.batch_size, count, inputs, passes)


# --- shared -------------------------------------------------------------------------------------------------------


def features(
    job: FeatureNetworksConfig, size: int, batch: int, count: int, inputs: Inputs, passes: Passes
) -> Iterator[Part]:
    """Features in every space that needs a network; those of grey pixels take no time to speak of."""
    if job.inception_weights is not None:
        yield Part("features of Inception", count, inception_seconds(size, batch, passes))
    if job.dinov2 is not None:
        each = foundation_features(inputs.foundation(job.dinov2, "own"), DINOV2_SIDE, batch, passes)
        yield Part("features of DINOv2", count, each)
    if job.foundation is not None:
        each = foundation_features(inputs.foundation(job.foundation, "own"), size, batch, passes)
        yield Part("features of the foundation model", count, each)


def inception_seconds(size: int, batch: int, passes: Passes) -> float:
    """Seconds for Inception's features of an image."""
    return passes.features(InceptionV3().to(passes.device), size, batch)


def lpips_seconds(size: int, batch: int, passes: Passes) -> float:
    """Seconds to compare two images."""
    distance = LPIPS().to(passes.device)
    return passes.features(lambda images: distance(images, images), size, batch)


def foundation_features(model: FoundationModel, size: int, batch: int, passes: Passes) -> float:
    """Seconds for the features of an image of `size` pixels on a side."""
    side = max(size // model.patch_size, 1)
    model.to(passes.device)
    return passes.features(lambda images: model(images, grid=(side, side)), size, batch)


def foundation_seconds(
    job: EvaluateTokenizerConfig | EvaluateConfig, name: str, vae: Tokenizer, inputs: Inputs, passes: Passes
) -> float:
    """Seconds for the features of an image at the positions of its latents."""
    model, side = inputs.foundation(name, "own").to(passes.device), job.images.size // vae.downsampling_factor
    return passes.features(lambda images: model(images, grid=(side, side)), job.images.size, job.batch_size)


def reading(workers: int, count: int, seconds_each: float) -> Part:
    """Decoding of images, by several processes where the job has them."""
    return Part("read images", count, seconds_each / max(workers, 1))


def drawn_images(draw: DrawConfig, num_classes: int) -> int:
    """The number of images that are generated."""
    if draw.class_counts:
        return sum(draw.class_counts.values())
    return draw.num_samples or draw.samples_per_class * (len(draw.classes) or num_classes)


def generated_images(job: EvaluateConfig, inputs: Inputs) -> int:
    """The number of images that a report measures."""
    if job.pipeline is not None:
        return drawn_images(job.draw, inputs.transformer(job.pipeline / "transformer").num_classes)
    if job.samples.exists():
        return open_generated(job.samples).count
    maker = inputs.maker(job.samples, SampleConfig)
    if maker is not None:
        return drawn_images(maker, inputs.transformer(maker.transformer).num_classes)
    inputs.note(f"There are no samples at {job.samples} yet: they are taken to be {PUBLISHED_COUNT:,}.")
    return PUBLISHED_COUNT
