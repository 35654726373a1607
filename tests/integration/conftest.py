"""The real command line in a subprocess, on tiny recipes."""

import json
import logging
import os
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from helpers import warm
from helpers.command_line import run_alight
from helpers.tiny_quickstart import TINY_QUICKSTART


@pytest.fixture(scope="session")
def alight():
    """Run `alight ...` in a process of its own and return what came of it; nothing is checked."""

    def run(*arguments: object, cwd: Path | None = None, timeout: float = 300, **environment: str):
        if "PYTHONPATH" not in environment:  # which decides what is imported
            return warm.run([str(argument) for argument in arguments], cwd, timeout, **environment)
        return run_alight(*arguments, cwd=cwd, timeout=timeout, **environment)

    return run


@pytest.fixture(scope="session")
def refused(alight):
    """Run `alight ...` and check that it ends as a user's mistake should; returns the message."""

    def run(*arguments: object, **options):
        result = alight(*arguments, **options)
        assert result.returncode == 2, result.stderr
        assert "Traceback" not in result.stderr
        message = [line for line in result.stderr.splitlines() if line.startswith("alight: ")]
        assert len(message) == 1, result.stderr
        return message[0]

    return run


@pytest.fixture(scope="session")
def tiny_quickstart():
    """The arguments of a quickstart of a few steps."""
    return TINY_QUICKSTART


@pytest.fixture(scope="session")
def finished_quickstart(alight, tmp_path_factory):
    """A tiny quickstart for all tests that look at its artifacts and change none; run once, whatever the workers."""
    base = tmp_path_factory.getbasetemp()
    common = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "quickstart"
    common.mkdir(exist_ok=True)
    folder, record = common / "run", common / "result.json"
    with FileLock(common / "lock"):  # the first worker that comes runs it, the others wait
        if not record.exists():
            record.write_text(json.dumps(vars(alight(*TINY_QUICKSTART, "--output", folder))))
    result = CompletedProcess(**json.loads(record.read_text()))
    assert result.returncode == 0, result.stderr
    return folder, result


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Two classes of images in every mode and size that people have lying around."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)

    def picture(width, height):
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))

    for number in range(12):
        for name, hue in (("cats", 40), ("dogs", 200)):
            (folder / name).mkdir(exist_ok=True)
            size = (40 + 7 * number, 36 + 5 * (number % 4))
            image = Image.blend(picture(*size), Image.new("RGB", size, (hue, 128, 255 - hue)), 0.7)
            path = folder / name / f"{number:02d}"
            match number % 6:
                case 0:
                    image.convert("L").save(path.with_suffix(".png"))
                case 1:
                    image.convert("RGBA").save(path.with_suffix(".png"))
                case 2:
                    image.convert("CMYK").save(path.with_suffix(".jpg"))
                case 3:
                    image.convert("P").save(path.with_suffix(".png"))
                case 4:
                    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
                    Image.fromarray(grey).save(path.with_suffix(".png"))
                case 5:
                    exif = image.getexif()
                    exif[0x0112] = 6  # rotated by 90 degrees
                    image.save(path.with_suffix(".jpeg"), exif=exif)
    return folder


@pytest.fixture
def log_text(caplog, monkeypatch):
    """The records that the package logs, from the level INFO."""
    monkeypatch.setattr(logging.getLogger("alight"), "propagate", True)
    caplog.set_level(logging.INFO, logger="alight")
    return caplog


def pytest_collection_modifyitems(items):
    """All tests of this folder run real processes and are slow by nature; `make test-fast` leaves them out."""
    for item in items:
        if Path(__file__).parent in Path(item.path).parents:
            item.add_marker(pytest.mark.slow)
