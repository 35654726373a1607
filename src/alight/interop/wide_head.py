"""Published transformers with a wide head (RAE's `DiTwDDTHead`): their names as those of a LightningDiT, and back.

There the narrow blocks and the head's blocks are numbered through, the embedding of the latent that the narrow blocks
see is called `s_embedder`, and `x_embedder` is the head's own. Here the parts of the head get the prefix `wide_head.`.
The published network predicts noise - data at noise time; the time embedding of this package sees noise time too, and
the output layer is negated, which is exact.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from alight.interop.transformer_files import count_blocks, has_auxiliary_output
from alight.runtime.errors import InputError

HEAD = "wide_head."
_NARROW = "s_embedder.proj.weight"  # no other published layout has it
_NAMES = {  # beginning of a published name -> that in the layout of a LightningDiT
    "s_embedder.": "x_embedder.",
    "x_embedder.": f"{HEAD}x_embedder.",
    "enc_feat_rope.": "feat_rope.",
    "dec_feat_rope.": f"{HEAD}feat_rope.",
}
_NEGATED = ("final_layer.linear.weight", "final_layer.linear.bias")


def has_wide_head(published: Mapping[str, Tensor]) -> bool:
    """Tell if published weights have a wide head, under the names of their own code."""
    return _NARROW in published


def with_plain_names(
    published: Mapping[str, Tensor], head: Any = None, source: Any = "this state dict"
) -> Mapping[str, Tensor]:
    """Weights with a wide head in the layout of a LightningDiT, and its parts beside; others as they are.

    Args:
        published: tensors under their published names.
        head: sizes of the head, whose number of layers counts where narrow blocks and head are equally wide.
        source: what an error message names as the origin.

    Raises:
        InputError: blocks are missing, or nothing tells which blocks are those of the head.
    """
    if not has_wide_head(published):
        return published
    if "pos_embed" not in published:
        raise InputError(
            f"{source} has a wide head and no 'pos_embed'. Models without fixed positions are not supported; take one "
            "that was trained with them, as the published ones are, or get a complete file."
        )
    if has_auxiliary_output(published):
        raise InputError(f"{source} has a wide head and an auxiliary output, a layout that is unknown here.")
    return renamed(published, count_blocks(published, source) - _head_layers(published, head, source))


def renamed(published: Mapping[str, Tensor], narrow_blocks: int) -> dict[str, Tensor]:
    """The tensors, or gradients, of a model with a wide head in the layout of a LightningDiT."""
    plain = {}
    for name, value in published.items():
        old = next((old for old in _NAMES if name.startswith(old)), None)
        if old is not None:
            name = _NAMES[old] + name.removeprefix(old)
        elif name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            number_in_head = int(number) - narrow_blocks
            name = name if number_in_head < 0 else f"{HEAD}blocks.{number_in_head}.{rest}"
        plain[name] = -value if name in _NEGATED else value
    return plain


def with_published_names(plain: Mapping[str, Tensor], narrow_blocks: int) -> dict[str, Tensor]:
    """The inverse of `renamed`."""
    published = {}
    for name, value in plain.items():
        old = next((old for old, new in _NAMES.items() if name.startswith(new)), None)
        if old is not None:
            name = old + name.removeprefix(_NAMES[old])
        elif name.startswith(f"{HEAD}blocks."):
            _, _, number, rest = name.split(".", 3)
            name = f"blocks.{int(number) + narrow_blocks}.{rest}"
        published[name] = -value if name in _NEGATED else value
    return published


def implied_head(plain: Mapping[str, Tensor], given: Any, source: Any) -> dict[str, Any]:
    """The argument `head` of the model that weights in the layout of a LightningDiT belong to; nothing without one.

    Args:
        plain: what `with_plain_names` gives.
        given: sizes that the caller knows; they are taken as they are.
        source: what an error message names as the origin.

    Raises:
        InputError: nothing tells the number of attention heads of the head, or one was given and there is none.
    """
    width = plain.get(f"{HEAD}x_embedder.proj.weight")
    if width is None:
        if given is not None:
            raise InputError(f"{source} has no wide head, but head is {given!r}. Leave it out.")
        return {}
    if given is not None:
        return {"head": dict(given)}
    tells = (f"{HEAD}feat_rope.freqs_cos", f"{HEAD}blocks.0.attn.q_norm.weight")
    heads = next((plain[name].shape[-1] for name in tells if name in plain), None)
    if heads is None:
        raise InputError(
            f"{source} does not tell the number of attention heads of its wide head (it has neither rotary positions "
            "nor query norms); give head, its sizes: load_transformer(..., head={...})."
        )
    within = {name: value for name, value in plain.items() if name.startswith(f"{HEAD}blocks.")}
    layers = count_blocks({name.removeprefix(HEAD): value for name, value in within.items()}, source)
    return {"head": {"num_layers": layers, "hidden_size": len(width), "num_heads": len(width) // heads}}


def refuse_second_output(has_auxiliary_output: bool) -> None:
    """Refuse to export a wide head beside an auxiliary output.

    Raises:
        InputError: there are both.
    """
    if has_auxiliary_output:
        raise InputError(
            "The published layout of a transformer with a wide head has no auxiliary output, which this one has too. "
            "Keep it in the folder format of this package."
        )


def _head_layers(published: Mapping[str, Tensor], head: Any, source: Any) -> int:
    """The number of blocks, counted from the last, that belong to the head."""
    if isinstance(head, Mapping) and isinstance(head.get("num_layers"), int):
        return int(head["num_layers"])
    narrow, own = len(published[_NARROW]), published.get("x_embedder.proj.weight")
    if own is not None and len(own) != narrow:
        widths = [value.shape[-1] for name, value in published.items() if name.endswith(".attn.qkv.weight")]
        return sum(width == len(own) for width in widths)
    raise InputError(
        f"{source} has a wide head that is as wide as its other blocks, so that its weights do not tell which blocks "
        "are those of the head. Give its sizes: load_transformer(..., head={'num_layers': 2, 'hidden_size': "
        f"{narrow}, 'num_heads': 16}})."
    )
