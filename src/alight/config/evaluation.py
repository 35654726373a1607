"""The configuration of measurements: of tokenizers, generated images and references."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import model_validator

from alight.config.base import ImagesConfig, Job, NonNegative, Positive, Section, Source
from alight.config.sampling import DrawConfig
from alight.options import Compilation, Posterior, Split


class MeasureTokenizerConfig(Job):
    """Measurements of a tokenizer in every report."""

    images: ImagesConfig = ImagesConfig()
    split: Split = "held_out"  # the images that are reconstructed
    posterior: Posterior = "sample"  # the published figures are of samples
    foundation: Source | None = None  # measure in the features of this model (folder, hub id); None = the aligned one
    vgg16_weights: Path | None = None  # for LPIPS: torchvision's vgg16-397923af.pth, or "download" ...
    lpips_weights: Path | None = None  # ... and the linear layers of LPIPS v0.1 (vgg.pth), or "download"
    batch_size: Positive = 64

    @model_validator(mode="after")
    def _perceptual_files(self) -> Self:
        if (self.vgg16_weights is None) != (self.lpips_weights is None):
            raise ValueError("LPIPS needs both vgg16_weights and lpips_weights; give two files or none")
        return self


class EvaluateTokenizerConfig(MeasureTokenizerConfig):
    """Measure how well a tokenizer reconstructs images, alone or side by side with others, and write a report."""

    output: Path = Path("runs/tokenizer-report")
    tokenizer: Path = Path("runs/tokenizer")  # a folder, a hub id or a published checkpoint
    compare: tuple[Path, ...] = ()  # further tokenizers, measured on the same crops
    linear_map_images: Positive = 2_000  # training crops that the linear map from latents to features is fitted to
    inception_weights: Path | None = None  # for rFID: pt_inception-2015-12-05-6726825d.pth, or "download"
    observer: Source | None = None  # a model that took no part in training, for a Frechet distance in its features
    geometry: bool = False  # also Gram agreement, decoder drift and nearest-neighbour accuracy; half as long again
    also_in_bf16: bool = False  # measure each tokenizer with weights in bf16, too, side by side
    compile: Compilation = "auto"  # the blocks of the tokenizers; auto = on CUDA, from 50,000 images on


class FeatureNetworksConfig(Section):
    """The networks in whose features generated and real images are compared; what is not given is not measured.

    Grey pixels are compared in any case: they need no network, and tell small pictures apart.
    """

    inception_weights: Path | None = None  # for FID, sFID, ...: pt_inception-2015-12-05-6726825d.pth, or "download"
    dinov2: Source | None = None  # for FD-DINOv2: dinov2-large, as a short name, hub id or folder
    foundation: Source | None = None  # any vision transformer: folder, hub id or short name
    observer: Source | None = None  # another one, that took no part in training
    compile: Compilation = "auto"  # the layers of vision transformers; auto = on CUDA, from 50,000 images on


class EvaluateConfig(FeatureNetworksConfig, MeasureTokenizerConfig):
    """Measure generated images, and the tokenizer that decoded them, and write the report."""

    output: Path = Path("runs/report")
    samples: Path = Path("runs/samples")  # of 'alight sample', any folder of images, or a .npz with arr_0
    pipeline: Path | None = None  # generate from this one while measuring, instead of reading samples
    draw: DrawConfig = DrawConfig()  # number, classes and sampling of the images from the pipeline
    tokenizer: Path | None = None  # also measure its reconstructions; None = do not
    transformer: Path | None = None  # also show how it was trained; None = do not
    latents: Path | None = None  # also describe these latents; None = do not
    density_runs: NonNegative = 0  # t-SNE maps of them that the density figures are averaged over; 0 = none
    reference: Path | None = None  # a .npz of statistics, or of 'alight evaluate reference'; None = training images
    neighbours: NonNegative = 8  # number of generated images shown beside their nearest training images
    shown_classes: Positive = 50  # classes in the picture of samples, and in the table of the worst ones
    npz: bool = False  # also write samples.npz (arr_0, shuffled), which the ADM evaluator reads


class EvaluateReferenceConfig(FeatureNetworksConfig, Job):
    """Measure real images once, so that generated ones can be held against them many times."""

    output: Path = Path("runs/reference")
    images: ImagesConfig = ImagesConfig()
    split: Split = "train"
    latents: Path | None = None  # measure the decoded images of these latents instead of the images
    tokenizer: Path | None = None  # decodes them; None = the one that they were made with
    keep_features: NonNegative = 10_000  # images with stored features, for precision, recall and the like; 0 = none
    batch_size: Positive = 64

    @model_validator(mode="after")
    def _tokenizer_decodes(self) -> Self:
        if self.tokenizer is not None and self.latents is None:
            raise ValueError("a tokenizer decodes latents; name their folder in latents, or leave tokenizer out")
        return self
