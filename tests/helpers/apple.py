"""The limits of Apple's processors, kept on the meta device: no float64, and no kernel that PyTorch lacks for them."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchgen
import yaml
from torch import Tensor
from torch.utils._pytree import tree_leaves

from helpers.meta_device import AcceleratorRules
from helpers.places import calling_place

COMPOSITE = {"CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional"}


class AppleRules(AcceleratorRules):
    """Within it, the meta device has the limits of Apple's processors, too.

    Attributes:
        broken: what would have failed there, as "operation in file, function".
    """

    def __init__(self) -> None:
        super().__init__()
        self.broken: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = super().__torch_dispatch__(function, types, args, kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_meta]
        place = calling_place()
        if any(tensor.dtype in (torch.float64, torch.complex128) for tensor in made):
            self.broken.add(f"float64 in {place.file}, {place.function}")
        if made and function.name().removeprefix("aten::") in without_kernel():
            self.broken.add(f"{function.name()} in {place.file}, {place.function}")
        return result


@functools.cache
def without_kernel() -> frozenset[str]:
    """The operations that PyTorch can do on CPUs and not on Apple's processors, by its own list of kernels."""
    table = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    entries = {entry["func"].partition("(")[0]: entry for entry in yaml.load(table.read_text(), loader)}

    def kernels(name: str) -> set[str]:
        entry = entries[name]
        if delegate := entry.get("structured_delegate"):
            return kernels(delegate)
        return {key.strip() for keys in entry.get("dispatch", {}) for key in keys.split(",")}

    found = {name: kernels(name) for name in entries}
    return frozenset(name for name, keys in found.items() if "CPU" in keys and not keys & {"MPS", *COMPOSITE})
