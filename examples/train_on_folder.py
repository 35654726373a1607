"""The whole arrow on a folder of your own images, called from Python: a stage is a function of its configuration.

    python examples/train_on_folder.py photographs --output runs/folder

One subfolder per class, or images alone (one class). The defaults are for trying out: 32 pixels and a few minutes on
two CPU cores; what they make looks like it. `--size 64 --effort 10` takes ten times the steps and more. Run the same
command again and what is finished is kept.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

from alight import LightningDiTPipeline, load_config
from alight.config import ImagesConfig
from alight.data.loading import open_source
from alight.runtime.console import show_progress
from alight.stages import (
    evaluate,
    extract_latents,
    generate_samples,
    train_foundation,
    train_tokenizer,
    train_transformer,
)


def arrow(images: str, size: int, effort: float, output: Path) -> None:
    """Run the stages in order; each writes an artifact, a folder that the next one opens."""

    def config(recipe: str, **overrides: Any) -> Any:
        """A shipped recipe with what is different here; `__` stands for the dots of a key."""
        dotted = {name.replace("__", "."): value for name, value in overrides.items()}
        return load_config(f"own_images/{recipe}", dotted)

    def steps(count: int) -> int:
        return max(1, round(count * effort))

    source: dict[str, Any] = {"images__source": images, "images__size": size}
    named = {
        name: output / name for name in ("foundation", "tokenizer", "latents", "transformer", "samples", "report")
    }
    classes = len(open_source(ImagesConfig(source=images), "train").class_names)

    train_foundation.run(
        config(
            "foundation",
            **source,
            output=named["foundation"],
            task="classifier" if classes > 1 else "masked_autoencoder",  # one class teaches a classifier nothing
            model={"hidden_size": 96, "num_layers": 3, "num_heads": 3, "patch_size": 8},
            training__steps=steps(200),
        )
    )
    train_tokenizer.run(
        config(
            "tokenizer",
            **source,
            output=named["tokenizer"],
            alignment__foundation=str(named["foundation"]),
            model={
                "latent_channels": 16,
                "block_out_channels": [32, 64, 64, 64],
                "layers_per_block": 1,
                "initial_encoder": "principal_components",
            },
            training__steps=steps(300),
        )
    )
    extract_latents.run(config("latents", **source, output=named["latents"], tokenizer=named["tokenizer"]))
    train_transformer.run(
        config(
            "transformer",
            output=named["transformer"],
            latents=named["latents"],
            model={"preset": None, "hidden_size": 128, "num_layers": 6, "num_heads": 4, "patch_size": 1},
            training__steps=steps(600),
        )
    )
    parts = {"tokenizer": named["tokenizer"], "transformer": named["transformer"]}
    generate_samples.run(config("samples", **parts, output=named["samples"], sampling__num_inference_steps=20))
    evaluate.run(config("report", **source, **parts, output=named["report"], samples=named["samples"], split="all"))

    pipeline = LightningDiTPipeline.from_artifacts(named["transformer"], named["tokenizer"])
    pipeline.save_pretrained(output / "pipeline")  # what LightningDiTPipeline.from_pretrained opens


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="folder, or anything else that images.source may be")
    parser.add_argument("--output", type=Path, default=Path("runs/folder"))
    parser.add_argument("--size", type=int, default=32, help="side of the crops in pixels, a multiple of 8")
    parser.add_argument("--effort", type=float, default=1.0, help="factor of the training steps")
    arguments = parser.parse_args()
    show_progress(logging.INFO)
    arrow(arguments.images, arguments.size, arguments.effort, arguments.output)
    print(f"Report: {arguments.output / 'report' / 'report.html'}")


if __name__ == "__main__":
    main()
