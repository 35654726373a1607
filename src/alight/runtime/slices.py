"""The number of images that pass a network at once in inference, where a whole batch may not fit into memory."""

import torch

from alight.runtime.hardware import free_memory

MOST_AT_ONCE = 32  # images, which fill a GPU with work at any size
MEMORY_SHARE = 0.5  # of the free memory, the rest of which is for the workspace of convolutions


def images_at_once(device: torch.device, bytes_per_image: int, batch: int) -> int:
    """The size of the slices of a batch: on an accelerator a power of two of at most 32, as far as memory is free.

    Elsewhere the whole batch, whose rounding does not depend on the memory of the moment.

    Args:
        device: of the network.
        bytes_per_image: memory that activations take at their most.
        batch: its images.
    """
    if device.type not in ("cuda", "mps") or batch == 1:
        return batch
    room, size = MEMORY_SHARE * free_memory(device), MOST_AT_ONCE
    while size > 1 and size * bytes_per_image > room:
        size //= 2
    return size
