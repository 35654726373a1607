"""The measure of a search: the features in which images are compared with a reference, and its identity."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alight.artifacts import is_complete, read_artifact
from alight.config import TuneConfig
from alight.evaluation.features import SPACES, FeatureNetworks, gather_features, open_feature_networks
from alight.evaluation.real_images import RealImages, measure_reference, open_training_images
from alight.evaluation.reference_set import ReferenceSet, open_reference_set, statistics_of
from alight.metrics.frechet import FrechetDistance, frechet_distance
from alight.runtime.distributed import Processes
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash
from alight.runtime.pixels import PixelArray


@dataclass(frozen=True)
class Measure:
    """A Frechet distance from a reference.

    Attributes:
        networks: the feature spaces.
        key: of the space whose distance is made small.
        reference: real images.
        class_names: of the reference's images; None = unknown.
        identity: plain data that changes with everything that the distance of given images depends on.
    """

    networks: FeatureNetworks
    key: str
    reference: ReferenceSet
    class_names: tuple[str, ...] | None
    identity: dict[str, Any]

    @property
    def dimension(self) -> int:
        """Length of a feature vector."""
        return self.reference.statistics[self.key].dimension

    def distance(self, share: tuple[int, int], batches: Iterable[PixelArray], processes: Processes) -> FrechetDistance:
        """The distance of images, of which each process gives its share; see `gather_features`."""
        seen = gather_features(self.networks, share, batches, processes, keep=False)
        return frechet_distance(statistics_of(seen)[self.key], self.reference.statistics[self.key])


def open_measure(config: TuneConfig, size: tuple[int, int], processes: Processes) -> Measure:
    """Load the networks, and open or measure the reference, for images of a size (H, W).

    Raises:
        InputError: the space that was asked for needs a network that was not given, or the reference is unusable, of
            another size, or lacks the space.
    """
    networks = open_feature_networks(config, size[0], processes.device)
    key = networks.keys[0] if config.measure == "auto" else config.measure
    if key not in networks.keys:
        option = SPACES[key].option.replace("_", "-")
        raise InputError(f"measure {key} needs its network; give --{option}, or set measure to auto.")
    identity: dict[str, Any] = {"measure": networks.name(key), "network": network_identity(config, key)}
    class_names: tuple[str, ...] | None = None
    if config.reference is None:
        dataset, workers = open_training_images(config.images, size, config.pipeline.name), config.images.workers
        images = RealImages.of_dataset(dataset, "training images", config.batch_size, workers, processes)
        reference = measure_reference(networks, images, processes, keep=0)
        class_names = tuple(dataset.source.class_names)
        crops = config.images.model_dump(mode="json", exclude={"source", "workers", "max_skipped_fraction"})
        identity |= {"reference": dataset.source.fingerprint, "images": crops}
    else:
        reference = open_reference_set(config.reference, networks, processes, config.batch_size)
        reference.require_size(size, config.pipeline.name)
        identity["reference"] = reference_identity(config.reference)
    if key not in reference.statistics:
        raise InputError(
            f"The reference ({reference.description}) has no statistics of the features '{key}'. Choose another "
            "--measure, or another reference."
        )
    draw = config.draw.model_dump(mode="json", exclude={"sampling"})
    return Measure(networks, key, reference, class_names, identity | {"draw": draw, "seed": config.seed})


def network_identity(config: TuneConfig, key: str) -> str:
    """The network of a space: the hash of its weights where they are local files, else its name."""
    option = SPACES[key].option
    value = str(getattr(config, option)) if option else ""
    path = Path(value)
    files = [path] if value and path.is_file() else sorted(path.glob("*.safetensors")) if value else []
    return file_hash(*files) if files else value


def reference_identity(path: Path) -> str:
    """The hash of a file, or of what the records of a folder say of it."""
    return read_artifact(path, "reference", verify=False).hash if is_complete(path) else file_hash(path)
