"""Checks of the installation: versions, torchvision, device, threads, disk, network."""

import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

from alight.doctor.findings import Finding

NAMED = ("torch", "diffusers", "transformers")  # their versions are always shown
LITTLE_DISK, SCARCE_DISK = 1 << 30, 10 << 30  # free bytes below which there is a problem, or a warning
FIRST_TORCHVISION = 15  # torch 2.N belongs to torchvision 0.(N + 15)
TIMEOUT = 10.0  # seconds


def packages() -> Iterator[Finding]:
    """Check Python and every package against the required versions."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    python = ".".join(map(str, sys.version_info[:3]))
    wanted = metadata.metadata("alight")["Requires-Python"] or ""
    if SpecifierSet(wanted).contains(python):
        yield Finding("ok", "python", f"{python} is in the range {wanted}.")
    else:
        yield Finding("problem", "python", f"{python} is not in the range {wanted}.", "Use another Python.")

    right, wrong = {}, False
    for requirement in map(Requirement, metadata.requires("alight") or ()):
        optional = requirement.marker is not None
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        if version is None and optional:
            continue
        if version is not None and requirement.specifier.contains(version, prereleases=True):
            right[requirement.name] = version
            continue
        wrong = True
        found = f"is version {version}" if version is not None else "is missing"
        yield Finding(
            "warning" if optional else "problem",
            "packages",
            f"{requirement.name} {found}, and {requirement.specifier or 'any version'} is needed.",
            f"pip install '{requirement.name}{requirement.specifier}'",
        )
    if not wrong:
        shown = ", ".join(f"{name} {right[name]}" for name in NAMED if name in right)
        others = len(right) - sum(name in right for name in NAMED)
        yield Finding("ok", "packages", f"{shown} and {others} others are in the ranges that alight needs.")


def torchvision() -> Iterator[Finding]:
    """Check torchvision: a broken one breaks diffusers and transformers, a missing one does no harm."""
    if util.find_spec("torchvision") is None:
        yield Finding("ok", "torchvision", "Not installed, and not needed.")
        return
    # in a separate process, since a mismatched library can crash the process
    result = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    if result.returncode == 0:
        yield Finding("ok", "torchvision", "Installed, not needed, and importable.")
        return
    lines = result.stderr.strip().splitlines()
    torch_version = metadata.version("torch")
    minor = int(torch_version.split(".")[1]) + FIRST_TORCHVISION
    yield Finding(
        "problem",
        "torchvision",
        f"It is installed but cannot be imported, and diffusers and transformers fail with it "
        f"({lines[-1][:200] if lines else f'exit code {result.returncode}'}).",
        "alight does not need it: pip uninstall torchvision. Or match the versions: "
        f"torch {torch_version} belongs to torchvision 0.{minor}, from the same index.",
    )


def accelerator(name: str) -> Iterator[Finding]:
    """Check that the device is found, and multiplies matrices correctly."""
    import torch

    from alight.runtime.device import resolve_device

    device = resolve_device(name)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    error = (torch.mm(a.to(device), b.to(device)).cpu() - a @ b).abs().max().item()
    if not error < 0.5:  # entries have size 16; TF32 and bf16 shortcuts are far below
        yield Finding(
            "problem", "device", f"{device} multiplies matrices with an error of {error:.3g}.", "Update its driver."
        )
        return
    if device.type == "cuda":
        yield Finding("ok", "device", f"{device} is {torch.cuda.get_device_name(device)} and works.")
    elif device.type == "mps":
        yield Finding("ok", "device", "mps works.")
    elif torch.version.cuda and not torch.cuda.is_available():
        yield Finding(
            "warning",
            "device",
            f"torch is built for CUDA {torch.version.cuda}, but sees no device, so everything runs on the CPU.",
            "If there is a GPU, update its driver to one for that CUDA version, or install a torch for the older one.",
        )
    elif torch.version.cuda is None and shutil.which("nvidia-smi"):
        yield Finding(
            "warning",
            "device",
            "This machine has an NVIDIA driver, but torch is built without CUDA, so everything runs on the CPU.",
            "Install a CUDA build of torch, see https://pytorch.org/get-started/locally.",
        )
    else:
        yield Finding("ok", "device", "The CPU works; no accelerator is in use.")


def threads() -> Iterator[Finding]:
    """Check that there are no more threads than cores; otherwise they wait for each other."""
    import torch

    from alight.runtime.hardware import available_cores

    used, cores = torch.get_num_threads(), available_cores()
    if used > cores:
        yield Finding(
            "warning",
            "threads",
            f"torch computes with {used} threads on {cores} available cores.",
            f"Set OMP_NUM_THREADS={cores}, divided by the number of processes.",
        )
    else:
        yield Finding("ok", "threads", f"torch computes with {used} threads on {cores} available cores.")


def disk(subject: str, folder: Path) -> Iterator[Finding]:
    """Check that a folder, or its future parent, can be written and has free space."""
    from alight.runtime.hardware import existing_folder, free_disk
    from alight.runtime.units import size_text

    place = existing_folder(folder)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        yield Finding(
            "problem",
            subject,
            f"{place} cannot be written: {error.strerror}.",
            "Change its permissions, free some space, or choose another folder "
            f"({'ALIGHT_CACHE' if subject == 'cache' else '--output'}).",
        )
        return
    free = free_disk(folder)
    sentence = f"{folder} can be written, and has {size_text(free)} free."
    if free >= SCARCE_DISK:
        yield Finding("ok", subject, sentence)
    else:
        fix = "Checkpoints of large models need tens of GiB: free some space, or choose another disk."
        yield Finding("problem" if free < LITTLE_DISK else "warning", subject, sentence, fix)


def network() -> Iterator[Finding]:
    """Check that the Hugging Face hub answers."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield Finding("warning", "network", "HF_HUB_OFFLINE is set: no downloads.", "Unset it to download.")
        return
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=TIMEOUT):
            yield Finding("ok", "network", f"{constants.ENDPOINT} can be reached.")
    except OSError as error:
        proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
        yield Finding(
            "warning",
            "network",
            f"{constants.ENDPOINT} cannot be reached ({error}){f' through the proxy {proxy}' if proxy else ''}.",
            "Check the network, or work from local folders with HF_HUB_OFFLINE=1.",
        )
