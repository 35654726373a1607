"""The commands of `alight`: where the code of each is, and how the command line treats it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A subcommand: where its code is, and what it is for."""

    module: str  # has a function `run(config)`
    summary: str
    report: str = ""  # what to say when it is done; {path} is the artifact's folder, empty = what `run` returns
    distributed: bool = False  # whether several processes can share the work
    operand: str = ""  # the option that words before the first option belong to


COMMANDS = {
    "quickstart": Command(
        "alight.quickstart",
        "the whole arrow on embedded digits, in minutes, without a GPU",
        "Report: {path}/report.html",
    ),
    "foundation train": Command(
        "alight.stages.train_foundation", "a small vision foundation model of your own images", "Foundation: {path}"
    ),
    "tokenizer train": Command(
        "alight.stages.train_tokenizer",
        "a tokenizer aligned with a foundation model",
        "Tokenizer: {path}",
        distributed=True,
    ),
    "tokenizer evaluate": Command(
        "alight.stages.evaluate_tokenizer",
        "how well tokenizers reconstruct images, side by side",
        "Report: {path}/report.html",
        distributed=True,
    ),
    "tokenizer study": Command(
        "alight.study", "what alignment changes: a plain and an aligned tokenizer", "Report: {path}/report.html"
    ),
    "latents extract": Command(
        "alight.stages.extract_latents", "images to latents, once", "Latents: {path}", distributed=True
    ),
    "latents inspect": Command("alight.stages.inspect_latents", "what is in a folder of latents"),
    "transformer train": Command(
        "alight.stages.train_transformer", "LightningDiT on latents", "Transformer: {path}", distributed=True
    ),
    "sample": Command(
        "alight.stages.generate_samples",
        "images from a trained transformer",
        "Samples: {path}/images",
        distributed=True,
    ),
    "evaluate": Command(
        "alight.stages.evaluate", "figures and a report", "Report: {path}/report.html", distributed=True
    ),
    "evaluate reference": Command(
        "alight.stages.evaluate_reference",
        "statistics of real images, for many evaluations",
        "Reference: {path}",
        distributed=True,
    ),
    "tune": Command(
        "alight.tune.search",
        "the best sampling settings for every cost",
        "Report: {path}/report.html",
        distributed=True,
        operand="--pipeline",
    ),
    "convert": Command("alight.stages.convert", "published checkpoints and latents, in and out", "Converted: {path}"),
    "export": Command(
        "alight.stages.export", "a folder for others, with a model card", "Exported: {path}", operand="--pipeline"
    ),
    "report": Command("alight.show.reports", "the figures of reports, side by side", operand="--folders"),
    "info": Command("alight.show.info", "what a file or folder is, and how it was made", operand="--path"),
    "bench": Command("alight.bench", "the library against a plain version of the same maths", operand="--work"),
    "plan": Command("alight.plan.estimate", "what a training recipe costs on this machine"),
    "doctor": Command("alight.doctor.examine", "what is wrong, and its mend"),
    "serve": Command("alight.web.serve", "a pipeline in the browser", operand="--pipeline"),
}
