"""One thread per worker process: small tensors gain nothing from more, and workers would fight over the cores."""

import logging
import os

import pytest
import torch

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the subprocesses of the integration tests


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    """No test reads or leaves behind an image index of the user's."""
    monkeypatch.setenv("ALIGHT_CACHE", str(tmp_path / "alight-cache"))


@pytest.fixture(autouse=True)
def _quiet_logger():
    """What one test has the command line do to the package's logger is no business of the next."""
    log = logging.getLogger("alight")
    before = log.level, log.propagate, list(log.handlers)
    yield
    level, log.propagate, log.handlers[:] = before
    log.setLevel(level)
