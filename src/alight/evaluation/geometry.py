"""Three properties of a tokenizer's latents that go with easy generation, beside its reconstructions.

They are those of `alight latents meter`: relations as in the foundation model, a decoder that changes little with its
latent, and classes that lie together.
"""

from dataclasses import dataclass

from torch import Tensor

from alight.config import EvaluateTokenizerConfig, MeasureTokenizerConfig
from alight.data.image_dataset import ImageDataset
from alight.evaluation.batches import evenly_spread, load_batches
from alight.metrics.latent_geometry import decoder_drift, gram_agreement, neighbour_hits, perturbed
from alight.models.tokenizer import Tokenizer
from alight.runtime.pixels import unit_range
from alight.runtime.seeding import derive_seed, noise_of_seeds

STEP = 0.5  # of the latents, relative to each, for the drift of the decoder
FEWEST_POSITIONS = 3  # that similarities between positions need
MEAN_IMAGES = 256  # that the mean image is taken of, evenly spread
CHANGES, SPREADS, POOLED = "changes", "spreads", "pooled latents"  # columns that figures are made of


@dataclass(frozen=True)
class GeometryRows:
    """The parts of the properties that every batch gives.

    Attributes:
        mean: (3, S, S) the mean image, about which images spread.
        seed: of the noise.
    """

    mean: Tensor
    seed: int

    def of(
        self, vae: Tokenizer, raw_latents: Tensor, decoded: Tensor, indices: list[int], features: Tensor | None
    ) -> dict[str, Tensor]:
        """Columns of a batch: (B,) each, and the pooled latents (B, C).

        Latents are normalised where the tokenizer has statistics, and taken as they are where it has none.
        """
        known = vae.has_latents_statistics
        latents = vae.normalize(raw_latents) if known else raw_latents
        seeds = [derive_seed(self.seed, "drift", index) for index in indices]
        moved = perturbed(latents, STEP, noise_of_seeds(seeds, tuple(latents.shape[1:])).to(latents))
        after = vae.decode_raw_latents(vae.denormalize(moved) if known else moved).float()
        row = {
            CHANGES: (after - decoded).square().sum((1, 2, 3)).cpu().double(),
            SPREADS: (decoded - self.mean.to(decoded)).square().sum((1, 2, 3)).cpu().double(),
            POOLED: latents.mean((2, 3)).cpu(),
        }
        if features is not None and latents.shape[2] * latents.shape[3] >= FEWEST_POSITIONS:
            row["gram_agreement"] = gram_agreement(latents, features).cpu().double()
        return row


def geometry_rows(dataset: ImageDataset, config: MeasureTokenizerConfig) -> GeometryRows | None:
    """The measurement of the properties, where the configuration asks for them."""
    if not isinstance(config, EvaluateTokenizerConfig) or not config.geometry:
        return None
    indices = evenly_spread(len(dataset), MEAN_IMAGES)
    (pixels,) = load_batches(dataset, [indices], workers=0)
    return GeometryRows(unit_range(pixels).mean(0), config.seed)


def take_geometry(columns: dict[str, Tensor], labels: Tensor) -> float | None:
    """Make figures of the columns, which then hold scores of images alone.

    Returns:
        The decoder's drift; None where the properties were not measured.
    """
    if CHANGES not in columns:
        return None
    changes, spreads, pooled = (columns.pop(name) for name in (CHANGES, SPREADS, POOLED))
    if len(labels.unique()) > 1:
        columns["neighbour_accuracy"] = neighbour_hits(pooled[:, :, None, None], labels).double()
    return decoder_drift(changes, spreads)
