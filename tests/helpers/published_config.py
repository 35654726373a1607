"""The constructor arguments of the published transformer, as ours."""

from typing import Any

FLAGS = {"use_rope": "rope", "use_qknorm": "qk_norm", "learn_sigma": "learn_sigma"}
SIZES = {"input_size": "sample_size", "depth": "num_layers"}


def our_config(published: dict[str, Any], **common: Any) -> dict[str, Any]:
    """Translate a recorded `config`; an absent flag is off, as in the published constructor."""
    flags = {ours: published.get(theirs, False) for theirs, ours in FLAGS.items()}
    sizes = {SIZES.get(name, name): value for name, value in published.items() if not name.startswith(("use_", "wo_"))}
    choices = {
        "feed_forward": "swiglu" if published.get("use_swiglu") else "gelu",
        "norm": "rms_norm" if published.get("use_rmsnorm") else "layer_norm",
        "adaln_shift": not published.get("wo_shift", False),
    }
    return {**common, **sizes, **flags, **choices}
