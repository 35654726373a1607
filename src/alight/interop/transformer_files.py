"""Facts about a published transformer that the shapes of its weights do not tell: its kind, and recorded settings."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from alight.runtime.errors import InputError

AUXILIARY = "final_layer_xr."  # prefix of the auxiliary output in published checkpoints of Internal Guidance
BLOCK_NAMES = ("auxiliary_block", "encoder_depth")  # the setting as this package records it, and as the published code


def refuse_other_transformers(published: Mapping[str, Tensor], source: Any) -> None:
    """Refuse the layout of the published DiT and SiT, whose names are those of LightningDiT.

    It is the same for both: no rotary positions, no weights in the norms, GELU, and a second half of the output
    channels for a variance. A DiT predicts noise over 1,000 integer times; nothing in the file tells it from a SiT.

    Raises:
        InputError: the weights are those of a DiT or SiT.
    """
    foreign = ("feat_rope.freqs_cos", "final_layer.norm_final.weight", "blocks.0.attn.q_norm.weight")
    patch, output = published.get("x_embedder.proj.weight"), published.get("final_layer.linear.weight")
    if patch is None or output is None or patch.dim() != 4 or any(name in published for name in foreign):
        return
    if "blocks.0.mlp.fc1.weight" in published and len(output) == 2 * patch[0].numel():
        raise InputError(
            f"{source} has the layout of DiT and SiT, not of LightningDiT: no rotary positions, plain norms, GELU, "
            "and twice the output channels, for a variance. A DiT predicts noise at integer times, and nothing here "
            "distinguishes it from a SiT, so sampled as a velocity its images would be wrong. Open it with diffusers "
            "(DiTPipeline) or with the code that it comes from."
        )


def recorded_learn_sigma(contents: Any) -> bool | None:
    """Tell if `export_transformer` recorded twice the output channels, so that the file is not of a DiT."""
    config = contents.get("config") if isinstance(contents, Mapping) else None
    model = config.get("model") if isinstance(config, Mapping) else None
    if not isinstance(model, Mapping) or "trained_size" not in model:  # recorded by this package alone
        return None
    found = model.get("learn_sigma")
    return found if isinstance(found, bool) else None


def recorded_auxiliary_block(contents: Any, published: Mapping[str, Tensor]) -> int | None:
    """The block that the auxiliary output of published weights follows, where their file records its configuration."""
    if not has_auxiliary_output(published):  # the published name of the setting has other meanings elsewhere
        return None
    config = contents.get("config") if isinstance(contents, Mapping) else None
    model = config.get("model") if isinstance(config, Mapping) else None
    found = [model.get(name) for name in BLOCK_NAMES] if isinstance(model, Mapping) else []
    return next((value for value in found if isinstance(value, int) and not isinstance(value, bool)), None)


def auxiliary_output(published: Mapping[str, Tensor], block: int | None, source: Any) -> dict[str, int]:
    """The argument `auxiliary_block` of the model that published weights belong to; nothing where they need none.

    Raises:
        InputError: it was not given and is needed, or was given for weights that have no auxiliary output.
    """
    there = has_auxiliary_output(published)
    if there and block is None:
        raise InputError(
            f"{source} has an auxiliary output (Internal Guidance), and its weights do not tell what block it "
            "follows. Give auxiliary_block (alight convert --auxiliary-block); it is 8 in the published XL/1."
        )
    if block is not None and not there:
        raise InputError(
            f"{source} has no auxiliary output, but auxiliary_block is {block}. Leave auxiliary_block out; weights of "
            f"Internal Guidance have tensors named {AUXILIARY}*."
        )
    return {} if block is None else {"auxiliary_block": block}


def has_auxiliary_output(published: Mapping[str, Tensor]) -> bool:
    """Tell if published weights have a second output, as those of Internal Guidance do."""
    return any(name.startswith(AUXILIARY) for name in published)


def recorded_head(contents: Any) -> Any:
    """The sizes of a wide head that `export_transformer` recorded; None where there are none."""
    config = contents.get("config") if isinstance(contents, Mapping) else None
    model = config.get("model") if isinstance(config, Mapping) else None
    found = model.get("head") if isinstance(model, Mapping) and "trained_size" in model else None
    return dict(found) if isinstance(found, Mapping) else None


def count_blocks(published: Mapping[str, Tensor], source: Any) -> int:
    """The number of blocks, counted from 0 without a gap.

    Raises:
        InputError: there is a gap.
    """
    parts = [name.split(".")[1] for name in published if name.startswith("blocks.")]
    numbers = {int(part) for part in parts if part.isdecimal()}
    if numbers != set(range(len(numbers))):
        raise InputError(
            f"{source} is an incomplete checkpoint of a LightningDiT: of its blocks up to {max(numbers)}, only "
            f"{len(numbers)} are there. Get a complete one."
        )
    return len(numbers)
