"""The networks of tokenizer training: built from a configuration, continued from an existing tokenizer, compiled."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alight.artifacts import DISCRIMINATOR_FILE, PROJECTION_FILE
from alight.config import TokenizerModelConfig, TrainTokenizerConfig
from alight.data.image_dataset import ImageDataset
from alight.interop.tokenizer_sources import alignment_settings, open_tokenizer
from alight.models.discriminator import PatchDiscriminator
from alight.models.foundation import FoundationModel
from alight.models.latent_projector import make_latent_projector
from alight.models.perceptual import LPIPS
from alight.models.pretrained import read_safetensors
from alight.models.principal_components import start_from_principal_components
from alight.models.representation_autoencoder import RepresentationAutoencoder
from alight.models.tokenizer import Tokenizer
from alight.models.tokenizer_folders import require_image_size
from alight.models.vavae import VAVAE
from alight.runtime.device import compile_blocks
from alight.runtime.errors import InputError
from alight.runtime.pixels import unit_range
from alight.runtime.seeding import random_stream, seeded_initialisation
from alight.training.inputs import INIT_FROM
from alight.training.tokenizer_step import TokenizerNetworks

INITIAL_IMAGES = 256  # whose components a new encoder may begin with


@dataclass(frozen=True)
class Origin:
    """The tokenizer that a run goes on from, with what its training left beside it; empty for a new one.

    Attributes:
        vae: the tokenizer; None = start from the seed.
        folder: of its projection and discriminator, where they were kept.
        identity: hashes of the tokenizers whose latents it gives.
        foundation: the name of the model whose features its projection leads to.
        alignment: settings that its projection was trained with.
        frozen_encoder: the name of the model that is its encoder.
    """

    vae: Tokenizer | None = None
    folder: Path | None = None
    identity: tuple[str, ...] = ()
    foundation: str | None = None
    alignment: Mapping[str, Any] = field(default_factory=dict)
    frozen_encoder: str | None = None

    @classmethod
    def of(cls, config: TrainTokenizerConfig) -> "Origin":
        """Open the tokenizer that `init_from` names."""
        if config.init_from is None:
            return cls()
        vae, artifact = open_tokenizer(config.init_from)
        asked_for = config.model.model_copy(update={"initial_encoder": TokenizerModelConfig().initial_encoder})
        if asked_for != TokenizerModelConfig() and not same_architecture(vae, config.model):
            raise InputError(
                f"The tokenizer in {config.init_from} has another architecture than the section 'model' asks for. "
                "Leave the section out: training goes on with the architecture that is there."
            )
        if asked_for != TokenizerModelConfig() and vae.latent_space != config.model.latent_space:
            raise InputError(
                f"The tokenizer in {config.init_from} has {vae.latent_space} latents, and model.latent_space asks for "
                f"{config.model.latent_space}: its decoder has never seen such latents. Leave the section 'model' out "
                f"to go on with {vae.latent_space} latents, or leave out init_from to train a new tokenizer."
            )
        if config.images.size % vae.downsampling_factor:
            raise InputError(
                f"images.size {config.images.size} is not a multiple of {vae.downsampling_factor}, the downsampling "
                f"factor of the tokenizer in {config.init_from}."
            )
        identity = (artifact.hash, *artifact.facts.get("same_latents_as", ()))
        if vae.has_frozen_encoder:
            require_frozen(config, vae)
        aligned_with, encoder = (artifact.facts.get(name) for name in ("foundation", "frozen_encoder"))
        return cls(vae, artifact.path, identity, aligned_with, alignment_settings(artifact), encoder)

    @property
    def inputs(self) -> dict[str, str]:
        """Its hash, where there is one."""
        return {INIT_FROM: self.identity[0]} if self.identity else {}

    def weights(self, name: str) -> dict[str, Tensor] | None:
        """The weights of a network beside the tokenizer; None where it was not kept."""
        path = self.folder / name if self.folder is not None else None
        return read_safetensors(path) if path is not None and path.is_file() else None


def require_frozen(config: TrainTokenizerConfig, vae: Tokenizer) -> None:
    """Refuse settings that a tokenizer to go on from cannot follow, since its encoder is frozen.

    Raises:
        InputError: names the setting.
    """
    if config.aligning_foundation is not None or config.regularisation.equivariance_probability:
        raise InputError(
            f"The tokenizer in {config.init_from} has a frozen encoder, whose latents no loss can change. Set "
            "alignment.weight (and that of the stages) and regularisation.equivariance_probability to 0."
        )
    require_image_size(vae, config.images.size, config.init_from)


def same_architecture(vae: Tokenizer, model: TokenizerModelConfig) -> bool:
    """Tell if building from this section would give a network of the same weights."""
    with torch.device("meta"):
        other = VAVAE.build(**model.architecture)
    return _shapes(vae.state_dict()) == _shapes(other.state_dict())


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in weights.items()}


def used_models(config: TrainTokenizerConfig) -> str | None:
    """The name of the one foundation model that a tokenizer is made from: of its alignment, or its encoder."""
    return config.aligning_foundation or config.frozen_encoder.foundation


def load_foundation(config: TrainTokenizerConfig) -> FoundationModel | None:
    """Load the foundation model of the alignment; None where there is no alignment."""
    name = config.aligning_foundation
    if name is None:
        return None
    alignment = config.alignment
    return FoundationModel.from_pretrained(name, alignment.foundation_input).with_layers(alignment.layers)


def load_lpips(config: TrainTokenizerConfig) -> LPIPS | None:
    """Load LPIPS; None where the perceptual loss is off."""
    reconstruction = config.reconstruction
    if reconstruction.perceptual_weight == 0:
        return None
    return LPIPS.from_files(reconstruction.vgg16_weights, reconstruction.lpips_weights)


def build_networks(
    config: TrainTokenizerConfig,
    device: torch.device,
    vae: Tokenizer | None,
    foundation: FoundationModel | None,
    lpips: LPIPS | None,
) -> TokenizerNetworks:
    """Build everything that the losses need, from the seed.

    Args:
        config: of the run.
        device: of all networks.
        vae: an existing tokenizer to go on from; None = a new one.
        foundation: of the alignment; None = no alignment.
        lpips: of the perceptual loss; None = off.
    """
    with seeded_initialisation(config.seed, "tokenizer"):
        vae = vae or new_tokenizer(config)
        vae.requires_grad_(True).train().to(device)
        projection = None
        if foundation is not None:
            widths = (vae.config.latent_channels, foundation.feature_dim)
            inputs, outputs = widths if config.alignment.projection == "to_features" else widths[::-1]
            kind, width = config.alignment.projector, config.alignment.projector_width
            projection = make_latent_projector(kind, inputs, outputs, width).to(device)
            projection.requires_grad_(config.alignment.projection != "components")  # which are fitted, and fixed
        discriminator = PatchDiscriminator().to(device) if config.reconstruction.adversarial_weight > 0 else None
    if config.train == "decoder" or vae.has_frozen_encoder:
        for part in vae.encoding_parts:
            part.requires_grad_(False)
    if config.training.activation_checkpointing:
        if vae.has_frozen_encoder:
            raise InputError("The decoder of a frozen encoder has no activation_checkpointing; set it to false.")
        vae.enable_gradient_checkpointing()
    for frozen in (foundation, lpips):
        if frozen is not None:
            frozen.to(device)
    return TokenizerNetworks(vae, projection, foundation, discriminator, lpips)


def new_tokenizer(config: TrainTokenizerConfig, encoder: FoundationModel | None = None) -> Tokenizer:
    """Build the tokenizer that a run begins with.

    Args:
        config: of the run.
        encoder: in place of the frozen encoder that the configuration names.
    """
    frozen = config.frozen_encoder
    if frozen.foundation is None:
        return VAVAE.build(**config.model.architecture, sample_size=config.images.size)
    encoder = encoder or FoundationModel.from_pretrained(frozen.foundation)
    return RepresentationAutoencoder.build(encoder, config.images.size, **frozen.decoder)


def unused_settings(config: TrainTokenizerConfig) -> list[str]:
    """The keys that were given and that a frozen encoder makes no use of."""
    if not config.frozen_encoder.enabled:
        return []
    default, kl_weight = TokenizerModelConfig(), config.reconstruction.kl_weight
    usual = type(config.reconstruction).model_fields["kl_weight"].default
    model = config.model.model_dump(mode="json") != default.model_dump(mode="json")
    return ["model"] * model + ["reconstruction.kl_weight"] * (kl_weight not in (0, usual))


def begin_encoder(vae: Tokenizer, dataset: ImageDataset, config: TrainTokenizerConfig) -> None:
    """Let a new encoder begin as the configuration says: with random weights, or with the images' components."""
    if config.init_from is None and isinstance(vae, VAVAE) and config.model.initial_encoder == "principal_components":
        generator = random_stream(config.seed, "initial encoder")
        chosen = torch.randperm(len(dataset), generator=generator)[:INITIAL_IMAGES].tolist()
        images = unit_range(torch.stack([dataset[index].image for index in chosen]))
        start_from_principal_components(vae, images.to(next(vae.parameters()).device))


def adopt_weights(networks: TokenizerNetworks, origin: Origin, config: TrainTokenizerConfig) -> None:
    """Go on with the projection and discriminator beside an existing tokenizer, as far as they fit."""
    projected, projection = origin.weights(PROJECTION_FILE), networks.projection
    if projection is not None and projected and _shapes(projected) == _shapes(projection.state_dict()):
        before, now = origin.alignment.get("layers"), config.alignment.layers
        if origin.foundation == config.alignment.foundation and tuple(before or ()) == (now or ()):
            projection.load_state_dict(projected)
    discriminating = origin.weights(DISCRIMINATOR_FILE)
    if networks.discriminator is not None and discriminating:
        networks.discriminator.load_state_dict(discriminating)


def compile_networks(networks: TokenizerNetworks, backend: str = "inductor") -> None:
    """Compile the blocks of the tokenizer, and the discriminator; adaptive weights differentiate both twice."""
    blocks = [*networks.vae.blocks, *filter(None, [networks.discriminator])]
    compile_blocks(blocks, differentiated_twice=True, fixed_size=True, backend=backend)
