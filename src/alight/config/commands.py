"""The one table of commands: the configuration of each, where its code is, and how the command line treats it."""

from dataclasses import dataclass

from alight.config import evaluation, latents, studies, tokenizer, tools, transformer
from alight.config.base import Section
from alight.config.sampling import SampleConfig


@dataclass(frozen=True)
class Command:
    """A subcommand of `alight`."""

    config: type[Section]
    module: str  # has a function `run(config)`
    summary: str  # in the list of commands
    makes: str = ""  # kind of the artifact, where the command makes one
    report: str = ""  # printed at the end; {path} is the artifact's folder, empty = the text of the result
    distributed: bool = False  # several processes can share the work
    operand: str = ""  # the option that words before the first option belong to
    recipe: str | None = None  # read where no other is given


COMMANDS = {
    "quickstart": Command(
        studies.QuickstartConfig,
        "alight.studies.quickstart",
        "run the whole arrow on embedded digits, in minutes, without a GPU",
        report="Report: {path}/report.html",
        recipe="quickstart",
    ),
    "start": Command(
        studies.StartConfig,
        "alight.studies.start",
        "train a generator of your own images, planned to fit the time",
        operand="--source",
    ),
    "foundation train": Command(
        tokenizer.TrainFoundationConfig,
        "alight.stages.train_foundation",
        "train a small vision foundation model on your own images",
        makes="foundation",
        report="Foundation: {path}",
    ),
    "tokenizer train": Command(
        tokenizer.TrainTokenizerConfig,
        "alight.stages.train_tokenizer",
        "train a tokenizer aligned with a foundation model",
        makes="tokenizer",
        report="Tokenizer: {path}",
        distributed=True,
    ),
    "tokenizer evaluate": Command(
        evaluation.EvaluateTokenizerConfig,
        "alight.stages.evaluate_tokenizer",
        "measure how well tokenizers reconstruct images, side by side",
        report="Report: {path}/report.html",
        distributed=True,
    ),
    "latents extract": Command(
        latents.ExtractLatentsConfig,
        "alight.stages.extract_latents",
        "encode images to latents, once",
        makes="latents",
        report="Latents: {path}",
        distributed=True,
    ),
    "latents inspect": Command(
        latents.InspectLatentsConfig, "alight.stages.inspect_latents", "check and describe a folder of latents"
    ),
    "latents meter": Command(
        latents.MeterLatentsConfig,
        "alight.stages.meter_latents",
        "say which of several tokenizers will be easier to generate",
        operand="--tokenizers",
    ),
    "transformer train": Command(
        transformer.TrainTransformerConfig,
        "alight.stages.train_transformer",
        "train LightningDiT on latents",
        makes="transformer",
        report="Transformer: {path}",
        distributed=True,
    ),
    "sample": Command(
        SampleConfig,
        "alight.stages.generate_samples",
        "generate images with a trained transformer",
        makes="samples",
        report="Samples: {path}/images",
        distributed=True,
    ),
    "evaluate": Command(
        evaluation.EvaluateConfig,
        "alight.stages.evaluate",
        "measure generated images and write a report",
        makes="report",
        report="Report: {path}/report.html",
        distributed=True,
    ),
    "evaluate reference": Command(
        evaluation.EvaluateReferenceConfig,
        "alight.stages.evaluate_reference",
        "store the statistics of real images, for many evaluations",
        makes="reference",
        report="Reference: {path}",
        distributed=True,
    ),
    "tune": Command(
        tools.TuneConfig,
        "alight.tune.search",
        "find the best sampling settings for every cost",
        report="Report: {path}/report.html",
        distributed=True,
        operand="--pipeline",
    ),
    "average": Command(
        tools.AverageConfig,
        "alight.stages.average",
        "choose the length of the average of the weights after training",
        report="Transformer: {path}",
        operand="--run",
    ),
    "study alignment": Command(
        studies.AlignmentStudyConfig,
        "alight.studies.alignment",
        "compare a plain and an aligned tokenizer",
        report="Report: {path}/report.html",
    ),
    "study frontier": Command(
        studies.FrontierStudyConfig,
        "alight.studies.frontier",
        "reconstruction against generation over latent widths, plain and aligned",
        report="Report: {path}/report.html",
        distributed=True,
        recipe="digits/frontier",
    ),
    "study ablation": Command(
        studies.AblationStudyConfig,
        "alight.studies.ablation",
        "the effect of every ingredient, alone and cumulated",
        report="Report: {path}/report.html",
        distributed=True,
    ),
    "convert": Command(
        tools.ConvertConfig,
        "alight.stages.convert",
        "convert published checkpoints and latents, in and out",
        report="Converted: {path}",
    ),
    "export": Command(
        tools.ExportConfig,
        "alight.sharing.export",
        "write a folder for others, with a model card",
        makes="pipeline",
        report="Exported: {path}",
        operand="--pipeline",
    ),
    "report": Command(
        tools.ReportConfig, "alight.show.reports", "show the figures of reports side by side", operand="--folders"
    ),
    "info": Command(
        tools.InfoConfig, "alight.show.info", "describe a file or folder, and how it was made", operand="--path"
    ),
    "info images": Command(
        tools.InfoImagesConfig,
        "alight.show.images",
        "describe images: classes, sizes, duplicates",
        operand="--source",
    ),
    "bench": Command(
        tools.BenchConfig,
        "alight.bench",
        "time the library against a plain version of the same mathematics",
        operand="--work",
    ),
    "bench accelerator": Command(
        tools.BenchAcceleratorConfig,
        "alight.bench",
        "measure training, sampling and encoding at the published sizes on a GPU",
        operand="--parts",
    ),
    "plan": Command(tools.PlanConfig, "alight.plan.estimate", "estimate the time of a recipe on this machine"),
    "doctor": Command(tools.DoctorConfig, "alight.doctor.examine", "diagnose problems and suggest fixes"),
    "serve": Command(tools.ServeConfig, "alight.web.serve", "try a pipeline in the browser", operand="--pipeline"),
}
FORMER_NAMES = {"tokenizer study": "study alignment"}  # commands of earlier versions, which recipes and scripts hold


def command_for(kind: str) -> str:
    """The name of the command that makes artifacts of a kind; an unknown kind may stand in a damaged manifest."""
    return next((name for name, command in COMMANDS.items() if command.makes == kind), f"{kind} train")
