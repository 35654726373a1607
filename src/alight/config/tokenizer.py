"""The configuration of the first stage: a foundation model, and a tokenizer aligned with one."""

from __future__ import annotations

from math import gcd
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_serializer, model_validator

from alight.config.base import (
    Depth,
    Fraction,
    ImagesConfig,
    Job,
    NonNegative,
    NonNegativeReal,
    Positive,
    PositiveReal,
    Section,
    Size,
    Source,
)
from alight.config.training import OptimizerConfig, TrainingConfig
from alight.options import (
    AdversarialLoss,
    DistanceOn,
    FeatureNormalisation,
    InitialEncoder,
    LatentProjectorKind,
    LatentSpace,
    NoiseLaw,
    Projection,
    Reduction,
)

Levels = Annotated[tuple[Size, ...], Field(min_length=1, max_length=12)]
CHANNELS_PER_GROUP, MOST_GROUPS = 4, 32  # of the published network's normalisations
SMALLEST_DISCRIMINATED = 32  # pixels along a side that the discriminator needs
PROJECTOR_HEAD_WIDTH = 32  # of the attention in a projector with a block
ALIGNMENT_TERMS = ("cosine", "distance", "gram", "pooled", "patch")

Layers = Annotated[tuple[Positive, ...], Field(min_length=1, max_length=100)]
Angle = Annotated[float, Field(gt=0, lt=180)]
Angles = Annotated[tuple[Angle, ...], Field(min_length=1, max_length=8)]


class FoundationModelConfig(Section):
    """A small vision transformer, for images that no public foundation model knows."""

    hidden_size: Size = 192
    num_layers: Depth = 6
    num_heads: Size = 3
    patch_size: Size = 16

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        return self


class TrainFoundationConfig(Job):
    """Train a small vision foundation model where no pretrained one is available."""

    output: Path = Path("runs/foundation")
    images: ImagesConfig = ImagesConfig()
    task: Literal["classifier", "masked_autoencoder"] = "classifier"  # the latter needs no labels
    model: FoundationModelConfig = FoundationModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.05)
    training: TrainingConfig = TrainingConfig(steps=2_000, global_batch_size=128, ema_decay=None)


class TokenizerModelConfig(Section):
    """The autoencoder; the defaults are the paper's f16d32."""

    latent_channels: Size = 32
    block_out_channels: Levels = (128, 128, 256, 256, 512)  # n levels downsample by 2**(n-1)
    layers_per_block: Depth = 2
    norm_num_groups: Size | None = None  # None = the most, up to 32, that leave each group 4 channels or more
    level_attention: bool = True  # attention at the lowest level
    mid_block_attention: bool = True
    latent_space: LatentSpace = "gaussian"  # sphere = of rms 1 over channels, without posterior and KL term (GAE)
    initial_encoder: InitialEncoder = "random"  # principal_components of the images save small networks the beginning

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        for channels in self.block_out_channels:
            if channels % self.groups:
                raise ValueError(f"block_out_channels {channels} is not a multiple of norm_num_groups {self.groups}")
        if self.initial_encoder == "principal_components" and (
            len(self.block_out_channels) < 2 or self.block_out_channels[-1] < CHANNELS_PER_GROUP * self.groups
        ):
            raise ValueError(
                "initial_encoder principal_components needs at least two levels, and at least 4 channels per group at "
                "the last one; lower norm_num_groups, or set initial_encoder to random"
            )
        return self

    @property
    def groups(self) -> int:
        """Groups of every normalisation.

        Groups of one or two channels erase the mean colour of a region; the published network has four.
        """
        if self.norm_num_groups is not None:
            return self.norm_num_groups
        most = min(MOST_GROUPS, min(self.block_out_channels) // CHANNELS_PER_GROUP)
        common = gcd(*self.block_out_channels)
        return max((count for count in range(1, most + 1) if common % count == 0), default=1)

    @field_serializer("norm_num_groups", when_used="json")
    def _resolved(self, value: int | None) -> int:
        """Record the number itself."""
        return self.groups

    @property
    def architecture(self) -> dict[str, Any]:
        """The arguments of `VAVAE.build`."""
        return self.model_dump(exclude={"initial_encoder"}) | {"norm_num_groups": self.groups}

    @property
    def downsampling_factor(self) -> int:
        """Image pixels per latent position, along one side."""
        return int(2 ** (len(self.block_out_channels) - 1))


class FrozenEncoderConfig(Section):
    """A frozen vision foundation model as the encoder (RAE); the decoder, a vision transformer, is all that learns."""

    foundation: Source | None = None  # folder or hub id of a transformers model; None = the autoencoder of `model`
    patch_size: Size = 16  # image pixels per latent position, along one side
    normalise: FeatureNormalisation = "position"  # statistics per channel at every position, as published, or at all
    hidden_size: Size = 512  # of the decoder
    num_layers: Depth = 8  # likewise
    num_heads: Size = 16  # likewise

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads} and of 4"
            )
        return self

    @property
    def enabled(self) -> bool:
        """Tell if the encoder is a frozen one."""
        return self.foundation is not None

    @property
    def decoder(self) -> dict[str, int]:
        """The arguments of `RepresentationAutoencoder.build` besides the encoder and the image size."""
        return self.model_dump(exclude={"foundation", "normalise"})


class AlignmentConfig(Section):
    """Alignment of the latent with a vision foundation model (paper, section 3.2)."""

    foundation: Source | None = (
        "facebook/dinov2-large"  # folder or hub id of a transformers model; None = no alignment
    )
    weight: NonNegativeReal = 0.1  # w_hyper of the paper, on top of the adaptive weight; 0 = no alignment
    cosine_margin: NonNegativeReal = 0.5  # m1
    distance_margin: NonNegativeReal = 0.25  # m2
    cosine_weight: NonNegativeReal = 1.0  # of the marginal cosine loss within the sum
    distance_weight: NonNegativeReal = 1.0  # of the marginal distance matrix loss within the sum
    projection: Projection = "to_features"  # side that a 1x1 convolution maps; components = of features, fixed (GAE)
    distance_on: DistanceOn = "projected"  # input of the distance matrix: projected as published, latent as in Eq. 3
    adaptive: bool = True  # scale by the ratio of gradient norms at the encoder's last convolution
    foundation_input: Literal["own", "published"] = "own"  # the model's own normalisation, or [-1, 1] as published
    cache_features: bool = False  # keep features of centre crops on disk, under ALIGHT_CACHE, for later epochs
    gram_weight: NonNegativeReal = 0.0  # of squared differences of the distance matrices, without margin (PAE)
    pooled_weight: NonNegativeReal = 0.0  # of 1 - cosine between means over the image, without margin (PAE)
    patch_weight: NonNegativeReal = 0.0  # of 1 - cosine at each position, without margin (PAE)
    projector: LatentProjectorKind = "linear"  # block = a transformer block before the 1x1 convolution (Send-VAE)
    projector_width: Size = 256  # of attention in that block, a multiple of 32
    latent_noise: NonNegativeReal = 0.0  # std of noise on the latents that are aligned, in units of raw latents
    layers: Layers | None = None  # of the foundation model, whose outputs are summed (RAEv2), from 1; None = its end

    @model_validator(mode="after")
    def _projector_fits(self) -> Self:
        if self.projector == "block" and self.projection != "to_features":
            raise ValueError("projector block maps latents to features; set projection to to_features")
        if self.projector_width % PROJECTOR_HEAD_WIDTH:
            raise ValueError(f"projector_width {self.projector_width} is not a multiple of {PROJECTOR_HEAD_WIDTH}")
        if self.layers is not None and len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers {list(self.layers)} names a layer twice; give each once")
        return self

    @property
    def enabled(self) -> bool:
        """Tell if the alignment loss takes part in training."""
        return self.foundation is not None and self.weight > 0

    @property
    def terms(self) -> dict[str, float]:
        """The weights of the terms of the sum, by their keys."""
        return {f"{name}_weight": getattr(self, f"{name}_weight") for name in ALIGNMENT_TERMS}


class ReconstructionConfig(Section):
    """The reconstruction loss: L1, KL, and optionally LPIPS and a discriminator."""

    l1_weight: PositiveReal = 1.0
    kl_weight: NonNegativeReal = 1e-6
    reduction: Reduction = "sum"  # over an image; kl_weight 1e-6 only means something with sums
    logvar: float = 0.0  # fixed log-variance of a pixel, which scales the sum by exp(-logvar)
    perceptual_weight: NonNegativeReal = 1.0  # LPIPS; 0 = off
    vgg16_weights: Path | None = None  # torchvision's vgg16-397923af.pth, or "download" ...
    lpips_weights: Path | None = None  # ... and the linear layers of LPIPS v0.1 (vgg.pth)
    adversarial_weight: NonNegativeReal = 0.5  # PatchGAN; 0 = off
    adversarial_loss: AdversarialLoss = "hinge"
    adversarial_start_step: NonNegative = 2_500  # optimizer steps of the autoencoder before the term counts

    @model_validator(mode="after")
    def _perceptual_files(self) -> Self:
        if self.perceptual_weight > 0 and not (self.vgg16_weights and self.lpips_weights):
            raise ValueError(
                "perceptual_weight > 0 needs vgg16_weights and lpips_weights (two files); give their paths, or the "
                "word download for each to fetch it, or set perceptual_weight to 0"
            )
        return self


class LatentRegularisationConfig(Section):
    """Optional demands on the latent beyond the KL term; all are off in the paper."""

    equivariance_probability: Fraction = 0.0  # share of steps that decode scaled and rotated latents (EQ-VAE)
    equivariance_min_scale: Annotated[float, Field(gt=0, le=1)] = 0.25  # smallest scale, of the side
    noise: NonNegativeReal = 0.0  # decode latents plus noise of a std drawn from [0, this], in units of raw latents
    noise_law: NoiseLaw = "uniform"  # normal = that std is |N(0, noise^2)|, one per image (GAE)
    continuity_weight: NonNegativeReal = 0.0  # of squared changes of a pixel by turned latents, beside l1_weight (PAE)
    continuity_angles: Angles = (42.5, 85.0)  # by which latents are turned, in degrees, increasing

    @model_validator(mode="after")
    def _angles_increase(self) -> Self:
        if list(self.continuity_angles) != sorted(set(self.continuity_angles)):
            raise ValueError(f"continuity_angles {list(self.continuity_angles)} do not increase; sort them, each once")
        return self


class TokenizerPhaseConfig(Section):
    """One phase of the schedule; what is not given is as in the sections beside `stages`."""

    steps: Positive | None = None  # length in optimizer steps ...
    epochs: PositiveReal | None = None  # ... or in passes over the images
    alignment_weight: NonNegativeReal | None = None
    cosine_margin: NonNegativeReal | None = None
    distance_margin: NonNegativeReal | None = None
    adversarial_start_step: NonNegative | None = None  # counted from the beginning of the phase
    lr: PositiveReal | None = None
    restart: bool = False  # a new discriminator and empty optimizers, as where every phase is a separate run

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("a stage has a length in either steps or epochs; give exactly one of them")
        return self


class TrainTokenizerConfig(Job):
    """Train a tokenizer whose latent space is aligned with a vision foundation model."""

    output: Path = Path("runs/tokenizer")
    init_from: Source | None = None  # a tokenizer to go on from: folder, hub id or published checkpoint
    train: Literal["all", "decoder"] = "all"  # decoder = leave the latents as they are, and only decode them better
    images: ImagesConfig = ImagesConfig()
    model: TokenizerModelConfig = TokenizerModelConfig()  # with init_from, that tokenizer's
    frozen_encoder: FrozenEncoderConfig = FrozenEncoderConfig()  # with a foundation, this takes the place of `model`
    alignment: AlignmentConfig = AlignmentConfig()
    reconstruction: ReconstructionConfig = ReconstructionConfig(perceptual_weight=0)
    regularisation: LatentRegularisationConfig = LatentRegularisationConfig()
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-4, betas=(0.5, 0.9), max_grad_norm=None)
    training: TrainingConfig = TrainingConfig(steps=50_000, ema_decay=None)
    stages: tuple[TokenizerPhaseConfig, ...] = ()  # phases of a schedule; their sum takes the place of training.steps
    preview_images: NonNegative = 8  # images drawn with their reconstructions beside the log; 0 = none
    preview_every: Positive | None = None  # steps between them; None = after 1/16, 1/8, 1/4, 1/2 and all of the run

    @model_validator(mode="after")
    def _size_fits(self) -> Self:
        factor = self.model.downsampling_factor
        if self.init_from is None and not self.frozen_encoder.enabled and self.images.size % factor:
            raise ValueError(
                f"images.size {self.images.size} is not a multiple of {factor}, the downsampling factor of "
                f"{len(self.model.block_out_channels)} levels"
            )
        return self

    @model_validator(mode="after")
    def _discriminator_sees_patches(self) -> Self:
        if self.reconstruction.adversarial_weight and self.images.size < SMALLEST_DISCRIMINATED:
            raise ValueError(
                f"the discriminator needs images of at least {SMALLEST_DISCRIMINATED} pixels, and images.size is "
                f"{self.images.size}; set reconstruction.adversarial_weight to 0, or take larger images"
            )
        return self

    @model_validator(mode="after")
    def _latents_can_turn(self) -> Self:
        if self.init_from is None and self.model.latent_channels < 2:
            if self.regularisation.continuity_weight:
                raise ValueError("regularisation.continuity_weight needs latents of two channels or more")
            if self.model.latent_space == "sphere":
                raise ValueError("latent_space sphere needs two channels or more: of one, only the sign would be left")
        return self

    @model_validator(mode="after")
    def _features_come_again(self) -> Self:
        if self.alignment.cache_features and self.images.crop == "random":
            raise ValueError("alignment.cache_features needs images.crop center or pad: random crops never come again")
        return self

    @model_validator(mode="after")
    def _stages_agree(self) -> Self:
        lengths = [phase.steps for phase in self.stages]
        total = None if None in lengths else sum(length or 0 for length in lengths)
        untouched = {type(self).model_fields["training"].default.steps, TrainingConfig().steps}
        if self.stages and self.training.steps not in untouched | {total}:
            sum_of_stages = f"{total:,} steps" if total else "a number of epochs"
            raise ValueError(
                f"stages are {sum_of_stages} long, but training.steps says {self.training.steps:,}; leave it out"
            )
        for number, phase in enumerate(self.stages, start=1):
            if phase.alignment_weight and self.alignment.foundation is None:
                raise ValueError(f"stage {number} has an alignment_weight, but alignment.foundation names no model")
            if phase.adversarial_start_step is not None and not self.reconstruction.adversarial_weight:
                raise ValueError(f"stage {number} starts a discriminator, but reconstruction.adversarial_weight is 0")
        return self

    @property
    def aligning_foundation(self) -> str | None:
        """The name of the foundation model, where any phase aligns with it."""
        weight = self.alignment.weight
        phases = [weight if phase.alignment_weight is None else phase.alignment_weight for phase in self.stages]
        return self.alignment.foundation if any(phases or [weight]) else None

    @model_validator(mode="after")
    def _alignment_has_terms(self) -> Self:
        if self.aligning_foundation is not None and not any(self.alignment.terms.values()):
            raise ValueError(
                f"alignment has a weight, but all of its terms have none: {', '.join(self.alignment.terms)} are 0; to "
                "switch it off, set alignment.weight (and that of the stages) to 0"
            )
        return self

    @model_validator(mode="after")
    def _built_before(self) -> Self:
        if self.init_from is not None and not self.frozen_encoder.enabled:
            fields = FrozenEncoderConfig.model_fields
            given = [name for name in fields if getattr(self.frozen_encoder, name) != fields[name].default]
            if given:
                raise ValueError(
                    "init_from names a tokenizer, whose encoder and decoder stay as they were built; leave "
                    f"{', '.join(f'frozen_encoder.{name}' for name in given)} out"
                )
        return self

    @model_validator(mode="after")
    def _encoder_is_frozen(self) -> Self:
        if not self.frozen_encoder.enabled:
            return self
        if self.init_from is not None:
            raise ValueError(
                "init_from names a tokenizer, whose encoder stays as it is; leave frozen_encoder.foundation out"
            )
        if self.images.size % self.frozen_encoder.patch_size:
            raise ValueError(
                f"images.size {self.images.size} is not a multiple of frozen_encoder.patch_size "
                f"{self.frozen_encoder.patch_size}, the image pixels per latent position"
            )
        if self.alignment.enabled or any(phase.alignment_weight for phase in self.stages):
            raise ValueError(
                "a frozen encoder leaves nothing to align: its latents are the features themselves; set "
                "alignment.weight (and that of the stages) to 0"
            )
        if self.regularisation.equivariance_probability:
            raise ValueError(
                "a frozen encoder gives latents that no loss can change, and its decoder knows one size; set "
                "regularisation.equivariance_probability to 0 (noise is possible)"
            )
        if self.training.activation_checkpointing:
            raise ValueError("the decoder of a frozen encoder has no activation_checkpointing; set it to false")
        return self

    @model_validator(mode="after")
    def _decoder_alone(self) -> Self:
        if self.train == "all":
            return self
        if self.init_from is None:
            raise ValueError("train 'decoder' keeps the latents of an existing tokenizer; name it in init_from")
        weights = [self.alignment.weight if self.alignment.foundation else 0.0]
        weights += [phase.alignment_weight or 0.0 for phase in self.stages]
        if any(weights) or self.regularisation.equivariance_probability:
            raise ValueError(
                "train 'decoder' leaves the latents as they are, so nothing can align them or make them equivariant; "
                "set alignment.weight (and that of the stages) and regularisation.equivariance_probability to 0"
            )
        return self
