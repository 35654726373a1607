"""The precision policy: full float32 where scores need its digits, and the user's own settings afterwards."""

import pytest
import torch

from alight.runtime.device import full_float32


def settings():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def test_full_float32_holds_inside_and_restores_what_was_set():
    before = settings()
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        with full_float32():
            assert settings() == (False, False)
        assert settings() == (True, True)
        with pytest.raises(KeyError), full_float32():
            raise KeyError
        assert settings() == (True, True)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
