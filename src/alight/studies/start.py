"""`alight start`: from a folder of images to a report in a given time, by one command."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from alight.artifacts import Artifact, differences
from alight.config import ImagesConfig, Job, QuickstartConfig, StartConfig
from alight.config.recipes import changes, load_config, validate
from alight.data.loading import open_source
from alight.data.survey import ImageSurvey, survey
from alight.outputs import check_output, require_apart
from alight.runtime.checked_json import read_checked, write_checked
from alight.runtime.console import log
from alight.runtime.device import resolve_device
from alight.runtime.errors import InputError
from alight.runtime.files import explained_disk_errors, locked_folder, write_text
from alight.runtime.hardware import QUIET, available_cores, free_disk, leave_busy_cores
from alight.runtime.units import size_text
from alight.studies import quickstart
from alight.studies.budget import Costs, fit, fitting_factor, measure_costs
from alight.studies.plan_text import describe_plan
from alight.studies.proposal import Proposal, choose_held_out, propose, require_trainable, split_remarks
from alight.studies.stock import with_published_networks

PLAN, RECIPE = "start.json", "recipe.yaml"  # in the folder of the run: the request and its recipe, for people too


class Shipped(NamedTuple):
    """A shipped recipe.

    Attributes:
        minutes: that it is made for.
        expectation: the quality in words, with measured figures.
        steps: with which these were measured, as a share of the recipe's; 0 = nothing was measured.
    """

    minutes: int
    expectation: str
    steps: float = 0.0


RECIPES = {  # from the most ambitious on
    "own_images/overnight_cpu": Shipped(480, "not measured"),
    "own_images/hour": Shipped(60, "right colours and shapes; 27.3 dB measured on clip art", steps=0.55),
    "own_images/quick": Shipped(10, "right colours and rough shapes; 24.8 dB measured on clip art", steps=1.0),
}
ON_GPU = {"own_images/gpu": Shipped(720, "not measured")} | RECIPES
WORTH_IT = 0.5  # share of a recipe's steps that must fit into the time, or a smaller recipe learns more
MEASURED_FROM = 0.25  # share of a recipe's minutes, below which it is not worth a measurement
IN_RESERVE = 500 * 2**20  # bytes of disk for checkpoints, samples and reports of a small model
LATENT_BYTES = 4  # of a number
SAME_LENGTH = 0.2  # relative difference of steps, up to which the measured quality is to be expected
MORE = 60  # minutes that are proposed after a shorter run


@dataclass(frozen=True)
class Started:
    """The result: the report, or the plan alone.

    Attributes:
        folder: of the run.
        plan: lines of text.
        report: None where only the plan was wanted.
    """

    folder: Path
    plan: tuple[str, ...]
    report: Artifact | None

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        return {
            "folder": str(self.folder),
            "plan": list(self.plan),
            "report": None if self.report is None else self.report.as_data(),
        }

    def __str__(self) -> str:
        return "\n".join(self.plan) if self.report is None else f"Report: {self.report.path}/report.html"


def run(config: StartConfig) -> Started:
    """Survey the images, fit a recipe to images and time, and run it; what is finished already is kept.

    Raises:
        InputError: the images cannot be used, the time or the disk is too small, or the folder holds another run.
    """
    if config.source is None:
        raise InputError("'alight start' needs images: alight start FOLDER, with one subfolder per class or none.")
    folder, load = config.folder, load_remarks(config)
    if (folder / PLAN).is_file() and not config.plan_only:
        recipe, plan = resume(config, folder)
    else:
        require_apart(folder, {"source": config.source})
        if not config.plan_only:
            require_new(folder)
            check_output(folder / "foundation", {}, "foundation")
        recipe, plan = prepare(config, folder, load)
        if config.plan_only:
            return Started(folder, plan, None)
        recipe, plan = store(config, recipe, plan, folder)
    for line in plan:
        log.info(line)
    started = Started(folder, plan, quickstart.run(recipe))
    if config.minutes < MORE and config.recipe is None:
        log.info("More time makes better images, such as --minutes %d.", MORE)
    return started


def prepare(config: StartConfig, folder: Path, load: Sequence[str]) -> tuple[QuickstartConfig, tuple[str, ...]]:
    """Look at images and machine, and make the recipe and the plan in words.

    Args:
        config: of the command.
        folder: of the run.
        load: remarks on other programs.
    """
    started = time.perf_counter()
    recipes = candidates(config)
    looked_at = ImagesConfig(
        source=str(config.source),
        size=config.size or ImagesConfig().size,
        unconditional=config.unconditional,
        image_column=config.image_column,
        label_column=config.label_column,
    )
    source = open_source(looked_at, "all")
    log.info("start: looking at %s.", source.description)
    found = survey(source)
    require_trainable(found, str(config.source))
    held_out = choose_held_out(source, config.held_out_fraction)
    name, proposal, costs = choose(config, recipes, found, held_out, folder)
    spent = (time.perf_counter() - started) / 60
    recipe = fit(proposal.recipe, costs, config.minutes, spent).model_copy(update={"output": folder})
    require_disk(recipe, found.count, folder)
    more = [*split_remarks(source, found, held_out), *load]
    plan = [*describe_plan(recipe, name, config.minutes, costs.seconds(recipe), [*proposal.remarks, *more])]
    if name in ON_GPU:
        made, planned = ON_GPU[name], recipe.transformer.training.steps
        measured = made.steps * load_config(name).transformer.training.steps / planned
        differs = bool(measured) and abs(measured - 1) > SAME_LENGTH
        than = "" if not differs else "less than: " if measured > 1 else "more than: "
        steps = f", after {measured:.2g} times these steps" if differs else ""
        plan.append(f"  {'expect':<12} {than}{made.expectation}{steps}")
    return recipe, tuple(plan)


def load_remarks(config: StartConfig) -> list[str]:
    """Remarks on other programs, whose cores are left to them."""
    if resolve_device(config.device).type != "cpu" or (share := leave_busy_cores()) >= QUIET:
        return []
    return [
        f"Other programs leave {share:.0%} of the cores, so this one computes with {torch.get_num_threads()} of "
        f"{available_cores()}. On a quiet machine, more steps would fit."
    ]


def candidates(config: StartConfig) -> dict[str, QuickstartConfig]:
    """The recipes to choose from, by name, the most ambitious first.

    Raises:
        InputError: there is no such device or recipe, or it is not one of a whole arrow on one set of images.
    """
    device = resolve_device(config.device)
    shipped = RECIPES if device.type == "cpu" else ON_GPU
    fitting = [name for name, made in shipped.items() if config.minutes >= MEASURED_FROM * made.minutes]
    recipes = {}
    for name in (config.recipe,) if config.recipe else fitting or [list(shipped)[-1]]:
        recipe = load_config(name)
        if not isinstance(recipe, QuickstartConfig):
            raise InputError(f"The recipe {name} is not of a whole arrow, 'job: quickstart'. Give such a one.")
        for stage in quickstart.STAGES:
            if getattr(getattr(recipe, stage), "images", ImagesConfig()) != ImagesConfig():
                raise InputError(
                    f"The recipe {name} has a section {stage}.images, but all stages of 'alight start' take the "
                    "images of the command. Move what it sets to the section images, or remove it."
                )
        recipes[name] = recipe
    return recipes


def choose(
    config: StartConfig, recipes: Mapping[str, QuickstartConfig], found: ImageSurvey, held_out: float, folder: Path
) -> tuple[str, Proposal, Costs]:
    """The most ambitious recipe that the time allows, filled in for the images, and its costs."""
    for name, recipe in recipes.items():
        proposal = propose(config, found, recipe, held_out)
        if not config.plan_only:
            recipe = with_published_networks(config, proposal.recipe, folder)
            proposal = Proposal(recipe, proposal.remarks)
        require_valid(proposal.recipe, name)
        log.info("start: timing the training steps of %s.", name)
        costs = measure_costs(proposal.recipe)
        if fitting_factor(proposal.recipe, costs, config.minutes) >= WORTH_IT:
            break
    return name, proposal, costs


def require_valid(recipe: QuickstartConfig, name: str) -> None:
    """Refuse what only shows when a stage has its images, such as a size that does not fit the network.

    Raises:
        InputError: names what does not fit.
    """
    for stage, job in quickstart.wire(recipe).items():
        if isinstance(job, Job):
            validate(type(job), job.model_dump(), f"The {stage} of {name} with images of {recipe.images.size} pixels")


def resume(config: StartConfig, folder: Path) -> tuple[QuickstartConfig, tuple[str, ...]]:
    """The recipe and the plan of an earlier start with the same request.

    Raises:
        InputError: it was another request.
    """
    try:
        stored = read_checked(folder / PLAN)
    except InputError as error:
        raise InputError(f"{error} {other_ways(folder)}") from error
    if changed := differences(stored["request"], request(config)):
        raise InputError(
            f"{folder} was started with other options ({'; '.join(changed[:4])}). Choose another --output, give the "
            "same options to go on, or delete that folder."
        )
    log.info("start: going on in %s, as planned before.", folder)
    recipe = validate(QuickstartConfig, stored["recipe"], str(folder / PLAN)).model_copy(update={"output": folder})
    plan = tuple(stored["plan"])
    if not (folder / RECIPE).is_file():
        write_recipe(folder, recipe, plan)
    return recipe, plan


def request(config: StartConfig) -> dict[str, Any]:
    """The options that decide on the recipe."""
    return config.model_dump(mode="json", exclude={"output", "plan_only"})


def require_new(folder: Path) -> None:
    """Refuse a folder with a run whose plan is gone: another plan would not fit what is there.

    Raises:
        InputError: says how to go on.
    """
    for stage in quickstart.STAGES:
        if (folder / stage).exists():
            raise InputError(
                f"{folder} holds a run ({folder / stage}), but not the plan of one that 'alight start' began "
                f"({PLAN}). {other_ways(folder)}"
            )


def other_ways(folder: Path) -> str:
    """A sentence on how to go on where the plan of a run cannot be used."""
    begin = f"Go on with 'alight quickstart --config {folder / RECIPE}', choose"
    return f"{begin if (folder / RECIPE).is_file() else 'Choose'} another --output, or delete that folder."


def store(
    config: StartConfig, recipe: QuickstartConfig, plan: tuple[str, ...], folder: Path
) -> tuple[QuickstartConfig, tuple[str, ...]]:
    """Write the request with its recipe, for going on later, and the recipe for people.

    Returns:
        Recipe and plan of the run: those of another process that was started with the same options and was faster, or
        these.

    Raises:
        InputError: a stage cannot write there, or the other process had other options.
    """
    with locked_folder(folder), explained_disk_errors(folder):
        if (folder / PLAN).is_file():
            return resume(config, folder)
        for stage, job in quickstart.wire(recipe).items():
            check_output(job.output, job.model_dump(mode="json"), stage)
        write_recipe(folder, recipe, plan)
        values = {"request": request(config), "recipe": recipe.model_dump(mode="json"), "plan": list(plan)}
        write_checked(folder / PLAN, values)
    return recipe, plan


def write_recipe(folder: Path, recipe: QuickstartConfig, plan: tuple[str, ...]) -> None:
    """Write for people what the recipe changes of the defaults, with the plan above it."""
    comment = "".join(f"# {line}\n" for line in plan)
    command = f"# Run it by hand, or change it and run it: alight quickstart --config {folder / RECIPE}\n"
    values = {"job": "quickstart", **changes(recipe, QuickstartConfig())}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    write_text(folder / RECIPE, f"{comment}#\n{command}{text}")


def require_disk(recipe: QuickstartConfig, num_images: int, folder: Path) -> None:
    """Refuse a disk that latents and checkpoints would fill.

    Raises:
        InputError: names what is needed and what is free.
    """
    model, side = recipe.tokenizer.model, recipe.images.size // recipe.tokenizer.model.downsampling_factor
    latents = num_images * (1 + recipe.latents.flips) * model.latent_channels * side**2 * LATENT_BYTES
    needed = latents + IN_RESERVE
    if needed > (free := free_disk(folder)):
        raise InputError(
            f"The disk of {folder} has {size_text(free)} free, but the latents of {num_images:,} images take "
            f"{size_text(latents)}, and checkpoints and reports up to {size_text(IN_RESERVE)}. Free some space, or "
            "put the run on another disk with --output."
        )
