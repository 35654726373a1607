"""Where pipelines lie on the disk: in a folder of their own, or in that of a quickstart."""

from pathlib import Path

from alight.config import ServeConfig
from alight.runtime.errors import InputError

MODEL_INDEX = "model_index.json"
QUICKSTART_PIPELINE = "pipeline"


def pipeline_folders(config: ServeConfig) -> list[Path]:
    """The folders that were given for one pipeline or two, both with a pipeline in them.

    Raises:
        InputError: none was given, or one of them holds none.
    """
    if config.pipeline is None:
        raise InputError("Which pipeline? Give its folder: 'alight serve runs/quickstart'.")
    folders = [config.pipeline, *([config.compare] if config.compare else [])]
    for folder in folders:
        pipeline_folder(folder)
    return folders


def pipeline_folder(folder: Path) -> Path:
    """The pipeline itself, or the one in the folder of a quickstart.

    Raises:
        InputError: there is none.
    """
    for place in (folder, folder / QUICKSTART_PIPELINE):
        if (place / MODEL_INDEX).is_file():
            return place
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Check the path, or make a pipeline with 'alight quickstart'.")
    raise InputError(
        f"{folder} holds no pipeline: there is no {MODEL_INDEX} in it, nor in {folder / QUICKSTART_PIPELINE}. Give "
        "the folder of a quickstart, or one that LightningDiTPipeline.save_pretrained wrote; LightningDiTPipeline."
        "from_artifacts joins a transformer with its tokenizer."
    )
