"""References for generated images: statistics and features of real ones, and the files that keep them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, with_config
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import TypedDict

from alight.artifacts import MANIFEST, is_complete, read_artifact
from alight.evaluation.batches import contiguous_share
from alight.evaluation.features import INCEPTION, FeatureNetworks, ImageFeatures, gather_features
from alight.metrics.frechet import FeatureStatistics
from alight.metrics.inception_set import POOL_DIM
from alight.metrics.reference import NpzImageReader, Reference, has_images, has_statistics, read_reference
from alight.runtime.distributed import Processes
from alight.runtime.errors import InputError
from alight.runtime.reading import check_values, require_regular

FEATURES_FILE = "features.safetensors"


def _plain(name: str) -> str:
    if not name or Path(name).name != name or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} is not a plain name")
    return name


@with_config(ConfigDict(strict=True, extra="allow"))
class ReferenceFacts(TypedDict):
    """The facts that the manifest of a reference must hold; `reference_facts` writes them."""

    spaces: list[Annotated[str, AfterValidator(_plain)]]
    size: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]
    description: str


@dataclass(frozen=True)
class ReferenceSet:
    """Real images in every feature space that is known of them.

    Attributes:
        description: of the images, for the conditions of every score.
        statistics: by key of the space; those of Inception's spatial features under `spatial`.
        features: by key, (M, D) of some of the images, where they are known.
        size: (H, W) of the images, where it is known.
    """

    description: str
    statistics: dict[str, FeatureStatistics]
    features: dict[str, Tensor] = field(default_factory=dict)
    size: tuple[int, int] | None = None

    @property
    def inception(self) -> Reference | None:
        """The part that the Inception scores need."""
        if INCEPTION not in self.statistics:
            return None
        spatial, features = self.statistics.get("spatial"), self.features.get(INCEPTION)
        return Reference(self.statistics[INCEPTION], spatial, features)

    def require_size(self, size: tuple[int, int], name: str) -> None:
        """Refuse to compare images of different sizes.

        Raises:
            InputError: names both sizes.
        """
        if self.size is not None:
            require_same_size(size, name, self.size, self.description)


def require_same_size(size: tuple[int, int], name: str, other: tuple[int, int], reference: str) -> None:
    """Refuse to compare images of different sizes (H, W).

    Raises:
        InputError: names both sizes.
    """
    if other != size:
        (height, width), (other_height, other_width) = size, other
        raise InputError(
            f"{name} has images of {width}x{height} pixels, but the reference ({reference}) is of "
            f"{other_width}x{other_height}. Scores of different sizes mean nothing: set --images.size to that of the "
            "images, also where 'alight evaluate reference' measures the reference."
        )


def statistics_of(seen: ImageFeatures) -> dict[str, FeatureStatistics]:
    """By key, with those of Inception's two kinds of features."""
    statistics = dict(seen.statistics)
    if seen.inception is not None:
        statistics |= {INCEPTION: seen.inception.pool, "spatial": seen.inception.spatial}
    return statistics


def write_reference_set(folder: Path, reference: ReferenceSet) -> list[Path]:
    """Write `inception.npz` in the layout of the ADM evaluator, a `.npz` for every other space, and the features.

    Returns:
        The files.
    """
    files = []
    for key, statistics in reference.statistics.items():
        if key == "spatial":
            continue
        files.append(folder / f"{key}.npz")
        if key == INCEPTION and reference.inception is not None:
            reference.inception.save(files[-1])
        else:
            statistics.save(files[-1])
    if reference.features:
        files.append(folder / FEATURES_FILE)
        save_file({key: features.contiguous() for key, features in reference.features.items()}, files[-1])
    return files


def open_reference_set(path: Path, networks: FeatureNetworks, processes: Processes, batch_size: int) -> ReferenceSet:
    """Open a folder that 'alight evaluate reference' wrote, or a `.npz` of the ADM evaluator or of pytorch-fid.

    The images that the ADM evaluator's files hold are measured again: precision and recall are taken on them.

    Raises:
        InputError: it is neither, is damaged, or is of features that no network here gives.
    """
    if path.suffix != ".npz":
        return _open_folder(path)
    if not path.is_file():
        raise InputError(f"There is no reference at {path}; give a .npz of statistics, or leave --reference out.")
    statistics: dict[str, FeatureStatistics] = {}
    if has_statistics(path) or not has_images(path):
        published = read_reference(path)
        key = _key_of(published.pool, networks)
        if key is None:
            raise InputError(
                f"The statistics in {path} are of {published.pool.dimension} features"
                f"{f' ({published.pool.features})' if published.pool.features else ''}, which no network here gives. "
                "Features of Inception need --inception-weights, and others the network that they were made with."
            )
        statistics[key] = published.pool
        if published.spatial is not None:
            statistics["spatial"] = published.spatial
    features, size, held = {}, None, ""
    if has_images(path):
        images = NpzImageReader(path)
        count, size, held = images.shape[0], images.shape[1:3], f", with {images.shape[0]:,} images"
        share = contiguous_share(count, batch_size, processes)
        seen = gather_features(networks, share, images.read(*share, batch_size), processes)
        statistics = statistics_of(seen) | statistics
        features = {key: kept for key in networks.keys if (kept := seen.features_of(key)) is not None}
    return ReferenceSet(f"{path.name}{held}", statistics, features, size)


def _open_folder(path: Path) -> ReferenceSet:
    if path.is_dir() and not is_complete(path):
        raise InputError(
            f"{path} holds no reference statistics. Give a folder that 'alight evaluate reference' wrote, or a .npz; "
            f"or leave --reference out and give the images themselves, as --images.source {path}."
        )
    artifact = read_artifact(path, "reference")
    where = f"The facts in {path / MANIFEST}"
    facts = check_values(artifact.facts, ReferenceFacts, where, "Restore the file, or make the reference again.")
    statistics: dict[str, FeatureStatistics] = {}
    for key in facts["spaces"]:
        if key == INCEPTION:
            inception = read_reference(path / f"{key}.npz")
            statistics[key] = inception.pool
            if inception.spatial is not None:
                statistics["spatial"] = inception.spatial
        else:
            statistics[key] = FeatureStatistics.load(path / f"{key}.npz")
    features: dict[str, Tensor] = {}
    if (path / FEATURES_FILE).is_file():
        require_regular(path / FEATURES_FILE)
        try:
            features = load_file(path / FEATURES_FILE)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{path / FEATURES_FILE} is damaged ({error}). Make the reference again, or remove that file to do "
                "without precision, recall and the kernel distance."
            ) from error
    height, width = facts["size"]
    return ReferenceSet(facts["description"], statistics, features, (height, width))


def _key_of(statistics: FeatureStatistics, networks: FeatureNetworks) -> str | None:
    """The space that statistics belong to, by their name; only those of Inception may have none."""
    for key, extractor in networks.extractors.items():
        if statistics.features == extractor.name:
            return key
    unnamed_or_pool = statistics.features is None or statistics.features.startswith("Inception")
    if networks.inception is not None and unnamed_or_pool and statistics.dimension == POOL_DIM:
        return INCEPTION
    return None


def reference_facts(reference: ReferenceSet, count: int) -> dict[str, Any]:
    """The facts in the manifest of a reference."""
    assert reference.size is not None
    spaces = [key for key in reference.statistics if key != "spatial"]
    names = {key: reference.statistics[key].features for key in spaces}
    facts = {"spaces": spaces, "features": names, "size": list(reference.size), "count": count}
    return facts | {"description": reference.description}
