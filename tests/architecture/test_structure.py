"""The package's own rules: who may import whom, what may not happen at import, and words that models must not use."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "alight"
FILES = sorted(PACKAGE.rglob("*.py"))

# a part may import those of the floors below its own, and of its own floor those that SIDEWAYS names
FLOORS = [
    {"options", "runtime"},
    {"config", "artifacts", "outputs", "device_settings", "lineage", "next_command"},
    {"models", "losses", "flow"},
    {"training", "data", "metrics", "reporting", "interop", "evaluation"},
    {"stages", "pipelines"},
    {"tune", "plan", "doctor", "sharing", "show", "bench"},
    {"cli", "web", "studies", "completion", "__main__", "__init__"},
]
SIDEWAYS = {
    "options": {"runtime"},
    "artifacts": {"config"},
    "outputs": {"artifacts"},
    "device_settings": {"config", "outputs"},
    "lineage": {"artifacts", "config"},
    "next_command": {"config", "artifacts", "lineage"},
    "data": {"interop"},  # published statistics of latents
    "training": {"data", "interop"},
    "evaluation": {"reporting", "metrics", "data", "interop"},
    "stages": {"pipelines"},
    "cli": {"completion"},
    "__main__": {"cli"},
}
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
QUESTION_WORDS = {"What", "Whether", "How", "Where", "Which", "Who", "Whose", "When", "That", "Those"}
OPTIONAL = {
    "gradio",
    "fastapi",
    "uvicorn",
    "datasets",
    "webdataset",
    "timm",
    "torchvision",
    "torch_fidelity",
    "torchmetrics",
    "wandb",
}


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """All modules that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"alight.{alias.name}" for alias in node.names} if node.module == "alight" else {node.module}
    return found


def own_parts(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("alight.")}


def length(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    own = part_of(path)
    allowed = {own, *SIDEWAYS.get(own, ())}
    wrong = {name for name in own_parts(path) if LEVEL[name] >= LEVEL[own] and name not in allowed}
    assert not wrong, f"{own} must not import {wrong}"


def test_every_part_has_a_floor():
    assert {part_of(path) for path in FILES} <= set(LEVEL)


def test_stages_meet_only_through_artifacts():
    for path in (PACKAGE / "stages").glob("*.py"):
        assert not any(name.startswith("alight.stages") for name in imports(path)), path


def test_metrics_know_no_models():
    for path in (PACKAGE / "metrics").glob("*.py"):
        assert not own_parts(path) & {"models", "training", "data", "flow"}, path


def test_metrics_are_numbers_and_know_no_reports():
    for path in (PACKAGE / "metrics").glob("*.py"):
        assert "reporting" not in own_parts(path), path


@pytest.mark.parametrize("part", ["flow", "losses"])
def test_flow_and_losses_need_torch_alone(part):
    allowed = {"torch", "torchdiffeq", "alight"} | sys.stdlib_module_names
    for path in (PACKAGE / part).glob("*.py"):
        foreign = {name.split(".")[0] for name in imports(path)} - allowed
        assert not foreign, f"{path.name} imports {foreign}"


def test_only_the_browser_app_knows_of_gradio():
    for path in FILES:
        if part_of(path) != "web":
            assert not {name for name in imports(path) if name.split(".")[0] in ("gradio", "fastapi", "uvicorn")}, path


def test_optional_packages_are_never_imported_at_the_top():
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            names |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
            assert not {name.split(".")[0] for name in names} & OPTIONAL, path


@pytest.mark.parametrize("part", ["models", "losses", "flow"])
def test_networks_leave_policy_to_the_runtime(part):
    """Devices, precision and compilation are decided in `runtime` and nowhere else."""
    banned = {"cuda", "autocast", "compile", "set_float32_matmul_precision", "allow_tf32"}
    for path in (PACKAGE / part).glob("*.py"):
        used = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not used & banned, f"{path.name} uses {used & banned}"


def test_files_stay_readable():
    for path in FILES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_stay_readable(path):
    """A class within a function, whose methods are counted by themselves, is no part of the function's length."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef):
            inner = sum(length(each) for each in ast.walk(node) if isinstance(each, ast.ClassDef))
            assert length(node) - inner <= 60, node.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings_open_with_a_noun_or_a_verb(path):
    """So that the first word says what a thing is or does."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        text = ast.get_docstring(node) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) else None
        assert not text or text.split()[0] not in QUESTION_WORDS, text


ISOLATED = """
import socket, sys
def refuse(*a, **k): raise AssertionError("network at import")
socket.socket.connect = refuse; socket.getaddrinfo = refuse
import torch
before = (torch.get_rng_state().sum().item(), torch.is_grad_enabled(), torch.get_default_dtype(),
          torch.backends.cuda.matmul.allow_tf32, torch.get_num_threads())
import importlib, pkgutil, alight
for module in pkgutil.walk_packages(alight.__path__, "alight."):
    if module.name != "alight.__main__":
        importlib.import_module(module.name)
after = (torch.get_rng_state().sum().item(), torch.is_grad_enabled(), torch.get_default_dtype(),
         torch.backends.cuda.matmul.allow_tf32, torch.get_num_threads())
assert before == after, "an import changed global state"
assert "torchvision" not in sys.modules
"""


def test_importing_everything_has_no_side_effect():
    result = subprocess.run([sys.executable, "-c", ISOLATED], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


def test_the_command_line_answers_without_heavy_imports():
    code = "import sys, alight.cli; assert not {'torch', 'diffusers', 'transformers', 'tyro'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_public_names_are_where_users_expect_them():
    import alight
    import alight.flow
    import alight.interop.reference
    import alight.losses
    import alight.metrics

    for name in ("LightningDiT", "VAVAE", "LightningDiTPipeline", "load_config"):
        assert getattr(alight, name).__name__ == name
    for name in ("LinearPath", "GVPPath", "VPPath", "sample_timesteps", "flow_matching_loss", "GuidedVelocity"):
        assert hasattr(alight.flow, name)
    for name in ("solve_ode", "solve_sde"):
        assert hasattr(alight.flow, name)
    for name in ("marginal_cosine_loss", "marginal_distance_matrix_loss", "adaptive_weight"):
        assert callable(getattr(alight.losses, name))
    for name in ("frechet_distance", "FeatureStatistics", "GenerationMetrics", "ReconstructionMetrics"):
        assert hasattr(alight.metrics, name)
