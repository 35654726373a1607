"""Generated images, measured: their features against a reference, their labels, and their nearest training images."""

from dataclasses import dataclass

from alight.config import EvaluateConfig
from alight.data.image_dataset import ImageDataset
from alight.evaluation.batches import contiguous_share, evenly_spread, in_steps
from alight.evaluation.features import FeatureNetworks, ImageFeatures, gather_features, open_feature_networks
from alight.evaluation.generated import GeneratedImages
from alight.evaluation.label_figures import LabelScores, score_labels
from alight.evaluation.real_images import RealImages, measure_reference, open_training_images
from alight.evaluation.reference_set import ReferenceSet, open_reference_set
from alight.metrics.neighbours import NearestNeighbours
from alight.runtime.console import progress_bar
from alight.runtime.distributed import Processes
from alight.runtime.threads import all_cores

NEIGHBOURS = 3  # of every generated image that is shown with its own


@dataclass(frozen=True)
class Generation:
    """The measurements of generated images.

    Attributes:
        features: of the generated images.
        reference: real images that they are compared with.
        label_scores: accuracy of their labels, where they have labels.
        dataset: the training images, where they were measured.
        shown: numbers of the images whose neighbours were sought among them.
        neighbours: those found, or None.
        space: in which features they are near.
        networks: the feature spaces.
    """

    features: ImageFeatures
    reference: ReferenceSet
    label_scores: LabelScores | None
    dataset: ImageDataset | None
    shown: list[int]
    neighbours: NearestNeighbours | None
    space: str
    networks: FeatureNetworks


def measure_generation(config: EvaluateConfig, images: GeneratedImages, processes: Processes) -> Generation:
    """Measure the reference and the generated images, each once; several processes share the work.

    Raises:
        InputError: a network, the reference or an image cannot be used, or the sizes differ.
    """
    networks = open_feature_networks(config, images.size[0], processes.device)
    shown = evenly_spread(images.count, config.neighbours) if config.neighbours else []
    dataset, neighbours = None, None
    if config.reference is not None:
        reference = open_reference_set(config.reference, networks, processes, config.batch_size)
        reference.require_size(images.size, images.name)
    else:
        dataset = open_training_images(config.images, images.size, images.name)
        if shown:
            queries = ImageFeatures(networks).update(images.pick(shown))
            neighbours = NearestNeighbours(queries[networks.nearest], NEIGHBOURS)
        workers = config.images.workers
        real = RealImages.of_dataset(dataset, "training images", config.batch_size, workers, processes)
        reference = measure_reference(networks, real, processes, seed=config.seed, neighbours=neighbours)
    start, stop = contiguous_share(images.count, config.batch_size, processes)
    read = progress_bar(
        images.read(start, stop, config.batch_size),
        total=len(in_steps(start, stop, config.batch_size)),
        desc="generated images",
        unit="batch",
    )
    features = gather_features(networks, (start, stop), read, processes)
    label_scores = None
    if processes.is_main and dataset is not None:
        with all_cores(processes):
            label_scores = score_labels(images, dataset, config.images)
    space = networks.name(networks.nearest)
    return Generation(features, reference, label_scores, dataset, shown, neighbours, space, networks)
