"""Draw images with a trained pipeline: classes by name, one seed per image, a grid on the disk.

    python examples/sample_pipeline.py runs/quickstart/pipeline --classes 3 7 --output sevens.png

The folder is what `alight quickstart` leaves, what `LightningDiTPipeline.from_artifacts(...).save_pretrained(...)`
writes, or a hub id.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from alight import LightningDiTPipeline
from alight.reporting.pictures import image_grid
from alight.runtime.device import resolve_device


def main() -> None:
    """Open the folder, sample, and save a row of images per class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder or hub id")
    parser.add_argument("--classes", nargs="+", help="names or indices; all if not given")
    parser.add_argument("--per-class", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=1.5)
    parser.add_argument("--output", type=Path, default=Path("samples.png"))
    arguments = parser.parse_args()

    pipeline = LightningDiTPipeline.from_pretrained(arguments.pipeline).to(resolve_device("auto"))
    classes = arguments.classes or list(range(pipeline.transformer.config.num_classes))
    class_labels = [name for name in classes for _ in range(arguments.per_class)]
    result = pipeline(
        class_labels,
        num_inference_steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        guidance_interval=(0.1, 1.0),
        solver="heun",
        seeds=range(len(class_labels)),  # image i depends on seed i alone
        output_type="uint8",
    )
    images: torch.Tensor = result.images  # (N, H, W, 3)
    Image.fromarray(image_grid(images.cpu().numpy(), columns=arguments.per_class)).save(arguments.output)
    print(f"{len(images)} images, {result.nfe} model evaluations each: {arguments.output}")


if __name__ == "__main__":
    main()
