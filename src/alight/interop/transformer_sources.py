"""Open any transformer to start training from: an artifact, a diffusers folder, or a published checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alight.artifacts import Artifact, is_complete, read_artifact
from alight.config import TransformerModelConfig
from alight.interop.reference import load_transformer
from alight.models.lightning_dit import LightningDiT
from alight.models.pretrained import CONFIG_FILE, WEIGHTS_FILE
from alight.runtime.console import log
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash

SUBFOLDER = "transformer"  # of the folder of a pipeline
_CLASSES = "class_embed.weight"
_SIZES = ("hidden_size", "num_layers", "num_heads", "patch_size")
_FREE = ("preset", "class_dropout_prob")  # fields of the section 'model' that fine-tuning may choose
_OUTPUTS = tuple(
    f"{layer}.proj.{part}" for layer in ("output_layer", "auxiliary_layer") for part in ("weight", "bias")
)
_AUXILIARY, _INTERVAL = "auxiliary_layer.", "interval_embed."


class OpenTransformer(NamedTuple):
    """A transformer in eval mode, and its identity: hash, configuration and facts."""

    model: LightningDiT
    artifact: Artifact


def open_transformer(source: str | Path) -> OpenTransformer:
    """Open a transformer from any source.

    Args:
        source: one of
            - a transformer artifact of this package;
            - a folder that `LightningDiT.save_pretrained` wrote, or of a whole pipeline with one in `transformer/`;
            - a published LightningDiT checkpoint (`.pt` or `.safetensors`), with its averaged weights if it has them.

    Returns:
        The model, and its artifact; the hash of a foreign one is that of its weights file.

    Raises:
        InputError: there is no transformer, or an incomplete one.
    """
    path = Path(source)
    if path.is_file():
        model = load_transformer(path)
        config = json.loads(model.to_json_string())
        return OpenTransformer(model, Artifact(path, "transformer", config, file_hash(path)))
    places = (path, path / SUBFOLDER)
    place = next((each for each in places if (each / CONFIG_FILE).is_file() and (each / WEIGHTS_FILE).is_file()), None)
    if place is None or is_complete(place):
        artifact = read_artifact(place or path, "transformer")
        return OpenTransformer(LightningDiT.from_pretrained(artifact.path), artifact)
    model = LightningDiT.from_pretrained(place)
    config = json.loads(model.to_json_string())
    return OpenTransformer(model, Artifact(place, "transformer", config, file_hash(place / WEIGHTS_FILE)))


def architecture_of(model: LightningDiT, wanted: TransformerModelConfig, source: Any) -> TransformerModelConfig:
    """The section `model` of an architecture that fits the weights of `model`.

    Args:
        model: source of the weights.
        wanted: the section as configured; the default means the architecture of `model`, and an interval embedding
            alone means that beside it.
        source: the origin, for messages.

    Raises:
        InputError: the section has another architecture.
    """
    own = model.arguments
    if wanted == TransformerModelConfig(interval_embedding=True):
        own, wanted = own | {"interval_embedding": True}, TransformerModelConfig()
    shared = set(TransformerModelConfig.model_fields) - {*_FREE, *_SIZES}
    given = {"auxiliary_block": None, "head": None} | wanted.arguments()
    if wanted.preset and wanted != TransformerModelConfig():
        with torch.device("meta"):
            given |= {name: LightningDiT.from_preset(wanted.preset).config[name] for name in _SIZES}
    if wanted != TransformerModelConfig():
        added = {"auxiliary_block"} if own["auxiliary_block"] is None else set()  # a new one learns beside the rest
        added |= {"interval_embedding"} if not own["interval_embedding"] else set()
        other = [
            f"{name} {own[name]} -> {given[name]}"
            for name in (*_SIZES, *sorted(shared - added))
            if own[name] != given[name]
        ]
        if other:
            raise InputError(
                f"The transformer in {source} does not have the architecture of the section 'model' "
                f"({'; '.join(other[:4])}). Leave the section out to keep the transformer's architecture."
            )
        return wanted
    kept = {name: own[name] for name in (*_SIZES, *shared, "class_dropout_prob")}
    return TransformerModelConfig(preset=None, **kept | {"head": own["head"] or {}})


@torch.no_grad()
def adopt_weights(model: LightningDiT, origin: OpenTransformer) -> None:
    """Start a model from the weights of another one, in place.

    If the number of classes differs, the class embeddings keep their initial values, and the log says so; the null
    class's embedding is always taken. Of an output that also predicts a variance, the velocity's part is taken.

    Raises:
        InputError: the latents have another shape, or the architectures differ.
    """
    state, own = dict(origin.model.state_dict()), model.state_dict()
    source, place = origin.model.config, origin.artifact.path
    if source.in_channels != model.config.in_channels or origin.model.grid != model.grid:
        raise InputError(
            f"The transformer in {place} was trained on latents of {_shape(origin.model)}, but these latents are "
            f"{_shape(model)}. Start from a transformer for latents of this shape."
        )
    if source.learn_sigma and not model.config.learn_sigma:
        outputs = [name for name in _OUTPUTS if name in state]
        state |= {name: _without_variance(state[name], source.in_channels) for name in outputs}
    if model.has_auxiliary_output and not origin.model.has_auxiliary_output:
        state |= {name: value for name, value in own.items() if name.startswith(_AUXILIARY)}
        log.info("init_from: %s has no auxiliary output, so that of this model begins with new weights.", place)
    if model.has_interval_embedding and not origin.model.has_interval_embedding:
        state |= {name: value for name, value in own.items() if name.startswith(_INTERVAL)}
    state[_CLASSES] = _class_embeddings(state[_CLASSES], own[_CLASSES], origin.model, model, place)
    wrong = [name for name in own if name not in state or state[name].shape != own[name].shape]
    if wrong or len(state) != len(own):
        raise InputError(
            f"The weights of the transformer in {place} do not fit this model ({len(wrong)} of other shapes, such as "
            f"{', '.join(wrong[:3]) or 'those that this model lacks'}). Leave the section 'model' out, so that its "
            "architecture is taken as well."
        )
    model.load_state_dict(state)


def warn_of_other_training(origin: Artifact, facts: Mapping[str, Any]) -> None:
    """Warn if the weights were trained for another flow, or on latents with other statistics."""
    for name, now in facts.items():
        before = origin.facts.get(name)
        if name in ("path", "prediction") and before is not None and before != now:
            log.warning("init_from: %s was trained with the %s '%s', now '%s'.", origin.path, name, before, now)
        if name in ("latents_mean", "latents_std") and before is not None and not _close(before, now):
            log.warning(
                "init_from: %s was trained on latents with another %s; take latents of the same tokenizer, or expect "
                "training to adapt to these first.",
                origin.path,
                name,
            )


def _class_embeddings(given: Tensor, fresh: Tensor, source: LightningDiT, model: LightningDiT, place: Path) -> Tensor:
    """The table of class embeddings: that of the source, or fresh rows and its null class."""
    classes, wanted = source.config.num_classes, model.config.num_classes
    if classes == wanted and given.shape == fresh.shape:
        return given
    result = fresh.clone()
    both_have_null = len(given) > classes and len(fresh) > wanted
    if both_have_null:
        result[wanted] = given[classes]
    if classes == wanted:  # one of them has no null class
        result[:wanted] = given[:classes]
        return result
    log.info(
        "init_from: %s has %d classes and the latents have %d, so the class embeddings begin with new values%s.",
        place,
        classes,
        wanted,
        "; that of the null class is kept" if both_have_null else "",
    )
    return result


def _without_variance(value: Tensor, channels: int) -> Tensor:
    """Rows (p p 2C, ...) of an output with a variance -> (p p C, ...); the channel is the fastest axis."""
    return value.unflatten(0, (-1, 2 * channels))[:, :channels].flatten(0, 1)


def _shape(model: LightningDiT) -> str:
    patch = model.config.patch_size
    return f"{model.config.in_channels} x {model.grid.height * patch} x {model.grid.width * patch}"


def _close(one: Any, other: Any) -> bool:
    try:
        first, second = torch.tensor(one, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
        return first.shape == second.shape and torch.allclose(first, second, rtol=1e-3, atol=1e-3)
    except (TypeError, ValueError):
        return False
