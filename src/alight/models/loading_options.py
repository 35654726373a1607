"""Keywords of `from_pretrained`, as in diffusers: each is supported or refused, none is silently ignored."""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from alight.options import suggestion
from alight.runtime.errors import InputError

# Keywords of downloads, and of ways to read files that lead to the same model.
IDLE = {
    *("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision"),
    *("low_cpu_mem_usage", "use_safetensors", "disable_mmap"),
    *("max_memory", "offload_folder", "offload_state_dict", "provider", "sess_options", "provider_options"),
}
# Keywords that would change the model or its device, with an alternative.
UNKNOWN_HERE = {
    "device_map": "Open the model and move it with .to(device)",
    "quantization_config": "Quantise the model once it is open",
    "ignore_mismatched_sizes": "Give weights and configuration that were saved together",
    "use_flashpack": "Save the weights as safetensors",
    "parallel_config": "Open the model and call enable_parallelism",
}
HONOURED = {"dtype", "torch_dtype", "variant", "output_loading_info"}


def check_options(options: Mapping[str, Any], what: str, more: Collection[str] = ()) -> None:
    """Refuse keywords that would have no effect.

    Raises:
        InputError: names the first such keyword, and what was probably meant.
    """
    known = {*IDLE, *HONOURED, *UNKNOWN_HERE, *more}
    for name, value in options.items():
        if name not in known:
            meant = suggestion(name, known, cutoff=0.6) or f" Known are {', '.join(sorted(HONOURED | set(more)))}."
            raise InputError(f"{what} has no keyword {name!r}.{meant}")
        if name in UNKNOWN_HERE and value and name not in more:
            raise InputError(f"{what} does not support {name!r}. {UNKNOWN_HERE[name]}, and leave the keyword out.")
        if name == "use_safetensors" and value is False:
            raise InputError(
                f"{what} reads only safetensors, since a pickle can execute code. Leave use_safetensors out."
            )


def resolve_dtype(options: Mapping[str, Any], what: str) -> torch.dtype | str | None:
    """Read the type from `dtype`, or from its older name `torch_dtype`.

    Returns:
        A floating-point type, "auto" for that of the stored weights, or None for float32.

    Raises:
        InputError: it is none of these, or the two names contradict each other.
    """
    given = {name: options[name] for name in ("dtype", "torch_dtype") if options.get(name) is not None}
    values = {name: _as_dtype(value, name, what) for name, value in given.items()}
    if len(set(values.values())) > 1:
        raise InputError(f"{what} got two types, {' and '.join(map(str, values.values()))}. Give only dtype.")
    return next(iter(values.values()), None)


def _as_dtype(value: Any, name: str, what: str) -> torch.dtype | str:
    if value == "auto":
        return "auto"
    dtype = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
        raise InputError(
            f"{what} got {name}={value!r}, but takes a floating-point type such as torch.bfloat16, or 'auto' for that "
            "of the stored weights."
        )
    return dtype
