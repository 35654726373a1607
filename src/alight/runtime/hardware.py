"""The capabilities of this machine, measured: cores, memory, disk, and the rate of matrix products."""

import ctypes
import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

QUIET = 0.8  # share of the cores' time, below which other programs are busy
_CGROUP = Path("/sys/fs/cgroup")
_SAMPLING_INTERVAL = 0.002  # seconds between looks at the memory in use
_RATE_SECONDS, _GPU_RATE_SECONDS = 0.2, 0.5  # that measuring a rate takes; a GPU reaches its clock after a while
_SHARE_SECONDS = 0.5  # that measuring a share of the cores takes
_SMALLEST_PRODUCT = 256  # side of the matrices to begin with
_LONG_ENOUGH = 0.01  # seconds of one product, from which larger matrices tell nothing new


def available_cores() -> int:
    """Cores that this process may use: those it is bound to, or fewer where a container has a share of their time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no control group, or one without a limit
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        cores = min(cores, max(round(int(quota) / int(period)), 1))
    return cores


def share_of_cores() -> float:
    """Share of their time that the processor's cores give to this process: less than 1 beside other busy programs."""
    matrix = torch.ones(512, 512)
    started, used = time.perf_counter(), time.process_time()
    while (seconds := time.perf_counter() - started) < _SHARE_SECONDS:
        torch.mm(matrix, matrix)
    return (time.process_time() - used) / (seconds * torch.get_num_threads())


def leave_busy_cores() -> float:
    """Compute with as many threads as other programs leave cores, and return the share that they leave.

    Threads that wait for each other on busy cores make a small network twenty times slower.
    """
    share = share_of_cores()
    if share < QUIET:
        torch.set_num_threads(max(int(share * torch.get_num_threads()), 1))
    return share


def existing_folder(folder: Path) -> Path:
    """The folder, or its nearest existing parent."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())


def free_disk(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(existing_folder(folder)).free


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device, with those that PyTorch keeps for itself and does not use."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except OSError:  # not Linux
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):
        used, limit = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("current", "max"))
        free = min(free, limit - used)
    return free


def synchronise(device: torch.device) -> None:
    """Wait until a device has finished its work; needed before reading a clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def matrix_product_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations per second of one product of square matrices, the best of several.

    The matrices are as large as fills a device, or smaller where a product is slow: a CPU without bf16 instructions
    takes a minute for what others do in tens of milliseconds.
    """
    largest = 8192 if device.type == "cuda" else 2048
    dtype, size = torch.bfloat16 if precision == "bf16" else torch.float32, _SMALLEST_PRODUCT
    while (seconds := _product_seconds(*_factors(device, dtype, size), products=2)) < _LONG_ENOUGH and size < largest:
        size *= 2
    factors = _factors(device, dtype, size)
    end = time.perf_counter() + (_GPU_RATE_SECONDS if device.type == "cuda" else _RATE_SECONDS)
    while time.perf_counter() < end:
        seconds = min(seconds, _product_seconds(*factors))
    return 2 * size**3 / seconds


def _factors(device: torch.device, dtype: torch.dtype, size: int) -> tuple[Tensor, Tensor]:
    """Two matrices of random numbers: products of equal ones take less power, so that a GPU's clock stays higher."""
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    return a, b


def _product_seconds(a: Tensor, b: Tensor, products: int = 1) -> float:
    """The least time of some products of the same matrices; the first ever also chooses a kernel."""
    times = []
    for _ in range(products):
        synchronise(a.device)
        started = time.perf_counter()
        torch.mm(a, b)
        synchronise(a.device)
        times.append(time.perf_counter() - started)
    return min(times)


class PeakMemory:
    """Measure the rise of the memory in use within a block, above its start.

    CUDA keeps count itself. On other devices a thread samples the memory in use: on the CPU, the resident set, after
    freed memory has been returned to the system.

        with PeakMemory(device) as peak:
            ...
        peak.growth  # in bytes
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.growth = device, 0

    def __enter__(self) -> Self:
        _give_back_freed_memory()
        self._before = self._peak = self._in_use()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._ended = threading.Event()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        synchronise(self.device)
        if self.device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self._ended.set()
            self._thread.join()
        self.growth = self._peak - self._before

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLING_INTERVAL):
            self._peak = max(self._peak, self._in_use())

    def _in_use(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        if self.device.type == "mps":
            return torch.mps.current_allocated_memory()
        return resident_set()


def resident_set() -> int:
    """Resident bytes of this process; their maximum so far on systems that do not report the current value."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux; macOS counts bytes here
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _give_back_freed_memory() -> None:
    with suppress(OSError, AttributeError):  # of the GNU C library alone
        ctypes.CDLL(None).malloc_trim(0)
