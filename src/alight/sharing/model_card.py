"""The model card: README.md of an exported folder, written only from the run's records.

The card claims nothing beyond the records, and shows every figure with its conditions.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from alight.artifacts import Artifact
from alight.options import LatentSpace
from alight.pipelines.selection import Selection, selection_text
from alight.reporting.page import plain_text
from alight.runtime.units import duration
from alight.sharing.escaping import Markup, code, markdown, plain
from alight.sharing.source import nested, portable

PAPER = "arXiv [2501.01423](https://arxiv.org/abs/2501.01423)"
OWN_CLASS = "RepresentationAutoencoder"  # of tokenizers that diffusers does not know
THROUGH_THE_SPHERE = [
    "latents = vae.encode(images).latent_dist.mode()",
    "latents = latents / latents.square().mean(1, keepdim=True).sqrt()  # onto the sphere",
    "reconstructions = vae.decode(latents).sample",
]
NAMED_CLASSES = 30  # more are in model_index.json
FOREMOST = {  # the most important settings, with their names in the card
    "training.global_batch_size": "batch",
    "optimizer.name": "optimizer",
    "optimizer.lr": "learning rate",
    "optimizer.betas": "Adam betas",
    "training.ema_decay": "EMA decay",
    "average.width": "width of the average",
    "training.precision": "precision",
    "alignment.foundation": "aligned with",
    "alignment.weight": "alignment weight",
    "frozen_encoder.foundation": "frozen encoder",
    "flow.path": "path",
    "flow.prediction": "prediction",
    "flow.time_sampling": "time sampling",
    "seed": "seed",
}


@dataclass(frozen=True)
class Shared:
    """The content of a model card.

    Attributes:
        name: of the model.
        license: of the weights, as the hub spells it; None if not chosen yet.
        tokenizer: its record.
        transformer: its record; None if only the tokenizer is shared.
        shape: of the latents, such as f16d32.
        image_size: in pixels.
        parameters: by kind.
        class_names: by label; empty if there are no classes.
        sampling: the settings of the pictured samples; None if there are none.
        report: figures of these networks, and the configuration they were measured with.
        selection: record of the search that chose the recommended settings; None if there is none.
        pictures: file name -> caption.
        address: argument for `from_pretrained`.
        tokenizer_class: that its configuration names: diffusers' own, or one of this package.
        latent_space: of the tokenizer.
    """

    name: str
    license: str | None
    tokenizer: Artifact
    transformer: Artifact | None
    shape: str
    image_size: int
    parameters: Mapping[str, int]
    class_names: Sequence[str] = ()
    sampling: Mapping[str, Any] | None = None
    report: Mapping[str, Any] | None = None
    selection: Selection | None = None
    pictures: Mapping[str, str] = field(default_factory=dict)
    address: str = "FOLDER"
    tokenizer_class: str = "AutoencoderKL"
    latent_space: LatentSpace = "gaussian"

    @property
    def records(self) -> list[Artifact]:
        """The records in the order of training."""
        return [record for record in (self.tokenizer, self.transformer) if record is not None]


def model_card(shared: Shared) -> str:
    """The whole card, its metadata first."""
    sections = [
        f"# {markdown(shared.name)}\n\n{_summary(shared)}",
        *(f"![{markdown(caption)}]({file})\n\n*{markdown(caption)}*" for file, caption in shared.pictures.items()),
        f"## Use\n\n{_use(shared)}",
        _classes(shared),
        f"## Training\n\n{_training(shared)}",
        f"## Figures\n\n{_figures(shared)}",
        f"## Files and identity\n\n{_identity(shared)}",
        f"## Licence\n\n{_licence(shared)}",
        f"## Method\n\n{_method()}",
    ]
    card = ModelCard(f"---\n{metadata(shared).to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n")
    return str(card)


def metadata(shared: Shared) -> ModelCardData:
    """The metadata by which the hub lists the model."""
    kind = "vavae" if shared.tokenizer_class == "AutoencoderKL" else "rae"
    tags = [kind, "tokenizer"] if shared.transformer is None else ["lightningdit", kind, "flow-matching"]
    if shared.class_names:
        tags.append("class-conditional")
    results = list(_results(shared))
    return ModelCardData(
        license=shared.license,
        library_name="diffusers",
        pipeline_tag=None if shared.transformer is None else "unconditional-image-generation",
        tags=["alight", *tags],
        datasets=_hub_dataset(shared.tokenizer),
        model_name=plain(shared.name) if results else None,
        eval_results=results or None,
    )


def _hub_dataset(tokenizer: Artifact) -> list[str] | None:
    """The data set if it is on the hub (hf:owner/name or hf:owner/name:split)."""
    kind, _, name = _image_source(tokenizer).partition(":")
    return [name.split(":")[0]] if kind == "hf" else None


def _image_source(record: Artifact) -> str:
    return plain(portable(nested(record.config, "images", "source") or ""))


def _results(shared: Shared) -> list[EvalResult]:
    """The headline figures for the hub's tables, with their conditions."""
    if shared.report is None:
        return []
    measured_on = nested(shared.report, "configuration", "evaluate", "images", "source")
    images = plain(portable(measured_on or "unknown"))
    return [
        EvalResult(
            task_type="unconditional-image-generation" if "transformer" in figure["conditions"] else "image-to-image",
            dataset_type=images,
            dataset_name=images,
            metric_type=plain(figure["name"]),
            metric_name=plain(figure["label"]),
            metric_value=figure["value"],
            metric_args={plain(name): _metadata(value) for name, value in portable(figure["conditions"]).items()},
        )
        for figure in shared.report["figures"]
        if figure["headline"] and figure["value"] is not None
    ]


def _metadata(value: Any) -> Any:
    return plain(value) if isinstance(value, str) else value


def _summary(shared: Shared) -> str:
    foundation = shared.tokenizer.facts.get("foundation")
    aligned = f", aligned with a vision foundation model ({markdown(portable(foundation))})" if foundation else ""
    kind = "a variational autoencoder"
    if shared.tokenizer_class != "AutoencoderKL":
        kind = "a representation autoencoder"
    if encoder := shared.tokenizer.facts.get("frozen_encoder"):
        kind += f", whose frozen encoder is {markdown(portable(encoder))},"
    size = f"images of {shared.image_size} pixels"
    if shared.transformer is None:
        return (
            f"An {shared.shape} tokenizer for {size} ({_millions(shared, 'tokenizer')}){aligned}: {kind} "
            f"in the format of {_format(shared)}."
        )
    conditional = f" in {len(shared.class_names)} classes" if len(shared.class_names) > 1 else ""
    return (
        f"A latent diffusion transformer, LightningDiT, of {_millions(shared, 'transformer')} that makes {size}"
        f"{conditional}, on the latents of an {shared.shape} tokenizer ({_millions(shared, 'tokenizer')}){aligned}."
    )


def _millions(shared: Shared, kind: str) -> str:
    return f"{shared.parameters[kind] / 1e6:.1f} million parameters"


def _is_own(shared: Shared) -> bool:
    """Tell if diffusers alone cannot open the tokenizer."""
    return shared.tokenizer_class == OWN_CLASS


def _format(shared: Shared) -> str:
    return "alight" if _is_own(shared) else f"diffusers' `{shared.tokenizer_class}`"


def _use_of_tokenizer(shared: Shared, subfolder: str = "") -> str:
    """Code that opens the tokenizer, and encodes and decodes with it where it is all that is shared."""
    name, package = shared.tokenizer_class, "alight" if _is_own(shared) else "diffusers"
    opened = f"vae = {name}.from_pretrained({_quoted(shared.address)}{subfolder})"
    if shared.transformer is not None:
        return _code(f"from {package} import {name}", opened)
    images, between = f"torch.zeros(1, 3, {shared.image_size}, {shared.image_size})", "[-1, 1]"
    used = ["reconstructions = vae.decode(vae.encode(images).latent_dist.mode()).sample"]
    if name == "AutoencoderRAE":
        between, used = "[0, 1]", ["reconstructions = vae.decode(vae.encode(images).latent).sample"]
    elif package == "alight":
        used = ["reconstructions = vae.decode_latents(vae.encode_latents(images))"]
    elif shared.latent_space == "sphere":
        used = THROUGH_THE_SPHERE
    lines = opened, f"images = {images}  # in {between}", *used
    return _code(f"import torch\nfrom {package} import {name}", *lines)


def _use(shared: Shared) -> str:
    if shared.transformer is None:
        return _use_of_tokenizer(shared)
    settings = nested(shared.sampling, "sampling") or {}
    named: tuple[str, ...] = ("num_inference_steps", "guidance_scale", "guidance_interval", "timestep_shift", "solver")
    named += ("internal_scale", "internal_interval") if settings.get("internal_scale", 1) != 1 else ()
    named += ("last_time",) if settings.get("last_time", 1) != 1 else ()
    options = {name: settings[name] for name in named if settings.get(name) is not None}
    options.setdefault("num_inference_steps", 50)
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    label = _quoted(shared.class_names[0].split(",")[0]) if shared.class_names else "0"
    return (
        _code(
            "from alight import LightningDiTPipeline",
            f"pipeline = LightningDiTPipeline.from_pretrained({_quoted(shared.address)})",
            f"images = pipeline(class_labels=[{label}], seeds=[0], {given}).images",
        )
        + "\n\nWith alight installed, diffusers opens it too:\n\n"
        + _code(
            "from diffusers import DiffusionPipeline",
            f"pipeline = DiffusionPipeline.from_pretrained({_quoted(shared.address)}, trust_remote_code=True)",
        )
        + "\n\nThe code to trust is `pipeline.py` here, which imports the class from alight. The tokenizer "
        + ("by itself" if _is_own(shared) else "needs only diffusers")
        + ":\n\n"
        + _use_of_tokenizer(shared, ', subfolder="tokenizer"')
    )


def _quoted(text: str) -> str:
    """A text as a Python literal; characters that could end it, or the block of code, are escaped."""
    return json.dumps(text).replace("`", "\\x60").replace("<", "\\x3c")


def _code(imports: str, *lines: str) -> str:
    return "\n".join(["```python", imports, "", *lines, "```"])


def _classes(shared: Shared) -> str:
    if not shared.class_names:
        return ""
    names = [markdown(name.split(",")[0]) for name in shared.class_names[:NAMED_CLASSES]]
    more = len(shared.class_names) - len(names)
    rest = f", and {more:,} more, listed in `model_index.json`" if more else ""
    return f"## Classes\n\n{', '.join(names)}{rest}."


def _training(shared: Shared) -> str:
    return "\n\n".join(map(_recipe, shared.records))


def _recipe(record: Artifact) -> str:
    """The most important settings of a record, and a folded table of all of them."""
    config, facts = portable(record.config), portable(record.facts)
    settings = {name: value for name, value in _flat(config).items() if value not in (None, [], "")}
    if "average.width" in settings:  # chosen after training, in place of the EMA
        settings.pop("training.ema_decay", None)
    first: dict[str, Any] = {
        "images": settings.get("images.source"),
        "converted from": facts.get("converted_from"),
        "SHA-256 of that file": facts.get("converted_from_sha256"),
        "steps": facts.get("steps"),
        **{FOREMOST[name]: value for name, value in settings.items() if name in FOREMOST},
        "time": duration(record.seconds) if record.seconds and "training" in config else None,
        "versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()) or None,
    }
    rows = [(name, setting_text(value)) for name, value in first.items() if value is not None]
    if not rows:
        return f"There are no records of the {record.kind}'s training."
    table = _table(("", record.kind), rows)
    if "training" not in config:
        return table
    everything = _table(("Setting", "Value"), [(name, setting_text(value)) for name, value in settings.items()])
    return f"{table}\n\n<details><summary>All settings of the {record.kind}</summary>\n\n{everything}\n\n</details>"


def setting_text(value: Any) -> str:
    """A setting as text; lists keep their brackets."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {setting_text(item)}" for name, item in value.items())
    return f"[{plain_text(value)}]" if isinstance(value, list | tuple) else plain_text(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _figures(shared: Shared) -> str:
    if shared.report is None:
        return "No figures were measured, or none were given when this folder was exported."
    rows = []
    for figure in shared.report["figures"]:
        for each in filter(None, (figure, figure.get("compare"))):
            conditions = "; ".join(
                f"{name} {plain_text(value)}" for name, value in portable(each["conditions"]).items()
            )
            rows.append((each["label"], _number(each), conditions))
    remarks = [*shared.report.get("notes", ())]
    if shared.selection is not None and (remark := selection_text(shared.selection)) not in remarks:
        remarks.append(remark)
    notes = [f"- {markdown(remark)}" for remark in remarks]
    return _table(("Figure", "Value", "Conditions"), rows) + ("\n\n" + "\n".join(notes) if notes else "")


def _number(figure: Mapping[str, Any]) -> str:
    value = figure["value"]
    if value is None or not math.isfinite(value):
        return "not finite"
    return f"{value:.{figure['digits']}f} {figure['unit']}".rstrip()


def _identity(shared: Shared) -> str:
    rows = [(record.kind, code(record.hash)) for record in shared.records]
    return _table(("Network", "SHA-256 of its `diffusion_pytorch_model.safetensors`"), rows)


def _licence(shared: Shared) -> str:
    if shared.license is None:
        return "The authors of this model have not chosen a licence for its weights. Ask them before you use it."
    return f"The weights: {markdown(shared.license)}. The data and the foundation model may have their own terms."


def _method() -> str:
    return (
        f"VA-VAE and LightningDiT: Yao, Yang, Wang, *Reconstruction vs. Generation: Taming Optimization Dilemma in "
        f"Latent Diffusion Models*, CVPR 2025, {PAPER}. Made with alight, an independent implementation."
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of plain texts or `Markup`."""
    cells: list[list[Markup]] = [[markdown(cell) for cell in row] for row in rows]
    lines = [heads, ["---"] * len(heads), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
