"""Devices: the only place that knows CUDA from CPU. Imports torch when called."""

import ctypes
import platform
import re
import resource
import sys
from pathlib import Path
from typing import Any, TypeVar

from clipbench.errors import UsageError

T = TypeVar("T")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def resolve_device(option: str) -> str:
    """Return the device that an option means on this machine: `auto` is CUDA, else MPS, else the CPU.

    Raises: UsageError for a device that does not exist here.
    """
    if not _DEVICE.fullmatch(option):
        raise UsageError(f"--device {option}: expected auto, cpu, cuda, cuda:N or mps")
    if option == "cpu":
        return option
    import torch

    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if option == "auto":
        return "cuda" if has_cuda else "mps" if has_mps else "cpu"
    if option == "mps" and not has_mps:
        raise UsageError("--device mps: this machine or this torch has no MPS; use --device cpu")
    if option.startswith("cuda"):
        if not has_cuda:
            raise UsageError(
                f"--device {option}: torch {torch.__version__} finds no CUDA device here; use --device cpu"
            )
        index = int(option.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            raise UsageError(
                f"--device {option}: this machine has {torch.cuda.device_count()} CUDA device(s), counted from 0"
            )
    return option


def default_batch_size(device: str) -> int:
    """Return the batch size in items when none was asked for: small on a CPU, where a large batch gains nothing."""
    return 4 if device == "cpu" else 64


def synchronize(device: str) -> None:
    """Wait until all queued work on the device is done, so that a clock read afterwards counts it. A CPU has no queue."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
    elif device == "mps":
        import torch

        torch.mps.synchronize()


def synchronized(output: T, device: str) -> T:
    """Return `output` once the device has finished: what a timed call ends with."""
    synchronize(device)
    return output


def release(device: str) -> None:
    """Give the allocator's unused memory back, after a model was freed, so that the next one's peak is its own."""
    if device == "cpu":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        if trim is not None:
            trim(0)
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


def reset_peak_memory(device: str) -> bool:
    """Start counting peak memory anew. False where this machine cannot: then `peak_memory_bytes` means nothing."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return True
    if device != "cpu":
        return False
    try:
        _CLEAR_REFS.write_text("5")  # 5: reset the peak resident set, see proc(5)
    except OSError:
        return False
    return True


def peak_memory_bytes(device: str) -> int:
    """Return the peak since the last reset, in bytes: allocated on CUDA, resident in this process on a CPU."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    for line in _STATUS.read_text().splitlines() if _STATUS.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def describe_machine(device: str) -> dict[str, Any]:
    """Return what decides speed on this machine: processor, threads, accelerator, driver."""
    import psutil
    import torch

    described: dict[str, Any] = {
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=True) or 0,
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "accelerator": "",
        "driver": "",
    }
    if device.startswith("cuda"):
        described["accelerator"] = torch.cuda.get_device_name(device)
        described["driver"] = _nvidia_driver()
        described["cuda"] = str(torch.version.cuda or "")
        described["tf32"] = f"matmul {torch.backends.cuda.matmul.allow_tf32}, cudnn {torch.backends.cudnn.allow_tf32}"
    elif device == "mps":
        described["accelerator"] = f"Apple GPU of {_processor()}"
    return described


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _nvidia_driver() -> str:
    version = Path("/proc/driver/nvidia/version")
    found = re.search(r"Kernel Module.*?(\d+\.\d+[.\d]*)", version.read_text()) if version.exists() else None
    return found.group(1) if found else ""
