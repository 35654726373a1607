"""`alight doctor`: all checks; one that fails does not prevent the others."""

from importlib import import_module
from pathlib import Path
from typing import Any

from alight.config import DoctorConfig
from alight.doctor import environment
from alight.doctor.findings import Examination, attempt
from alight.runtime.cache_folder import cache_folder


def run(config: DoctorConfig) -> Examination:
    """Examine the installation, and a recipe, a run and a tokenizer if given; a problem is exit code 1.

    Uses the network only if the configuration asks for it.
    """
    recipe, folder, tokenizer, images = config.recipe, config.run, config.tokenizer, config.images
    findings = [
        *attempt("packages", environment.packages),
        *attempt("torchvision", environment.torchvision),
        *attempt("device", lambda: environment.accelerator(config.device)),
        *attempt("threads", environment.threads),
        *attempt("output", lambda: environment.disk("output", config.output)),
        *attempt("cache", lambda: environment.disk("cache", cache_folder())),
    ]
    if config.network:
        findings += attempt("network", environment.network)
    if recipe is not None and folder is None:  # what a run needed may be gone
        findings += attempt("recipe", lambda: _part("recipe_needs").needs(recipe))
    if folder is not None:
        findings += attempt("run", lambda: _part("run_check").run_findings(folder, recipe))
    if tokenizer is not None and images is not None:
        findings += attempt(
            "tokenizer",
            lambda: _part("round_trip").round_trip(Path(tokenizer), images, config.num_images, config.device),
        )
    return Examination(tuple(findings))


def _part(name: str) -> Any:
    """Import a module that needs torch and diffusers; within an attempt, since these may be broken."""
    return import_module(f"alight.doctor.{name}")
