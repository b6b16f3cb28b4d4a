"""Devices: the only place that knows CUDA from CPU. Imports torch when called."""

import ctypes
import os
import platform
import re
import resource
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from clipbench.errors import UsageError
from clipbench.types import Precision

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_AMD = Path("/dev/kfd")


@dataclass(frozen=True)
class Resources:
    """What a session encodes with. `device` is resolved ("cpu", "cuda", "cuda:1", "mps"); `batch_size` is in items.

    `workers` threads decode and preprocess images (0: the calling one). `text_positions`: how many token positions a batch of
    texts cut to their length has (0: as many as `batch_size` whole texts).
    """

    device: str = "cpu"
    precision: Precision = "fp32"
    batch_size: int = 4
    workers: int = 0
    text_positions: int = 0


def resolve_resources(device: str, precision: Precision, batch_size: int | None, workers: int | None) -> Resources:
    """Return the device looked up, the rest as it was chosen or as that device likes it best.

    Raises: as `resolve_device`; UsageError for TF32 where it cannot be.
    """
    found = resolve_device(device)
    if precision == "tf32" and not _has_tf32(found):
        raise UsageError(f"--precision tf32: {found} multiplies no TF32 (CUDA from Ampere on does); use fp32")
    on_cpu = found == "cpu"
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return Resources(
        found,
        precision,
        batch_size or (4 if on_cpu else 64),  # on a CPU a large batch gains nothing
        min(8, len(cores)) if workers is None else workers,
        # Measured on 2 cores with ViT-B/32 (1,280 texts of 9 tokens): 512 to 4,096 positions are within 5 % of each other, 8,192 take a
        # quarter longer (the activations no longer fit the processor's cache).
        2048 if on_cpu and not batch_size else 0,
    )


def resolve_device(option: str) -> str:
    """Return the device that an option means on this machine: `auto` is CUDA, else MPS, else the CPU.

    Raises: UsageError for a device that does not exist here.
    """
    if not _DEVICE.fullmatch(option):
        raise UsageError(f"--device {option}: expected auto, cpu, cuda, cuda:N or mps")
    if option == "cpu" or (option == "auto" and not _may_have_accelerator()):
        return "cpu"
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


def _has_tf32(device: str) -> bool:
    if not device.startswith("cuda"):
        return False
    import torch

    return torch.cuda.get_device_capability(device) >= (8, 0)


def _may_have_accelerator() -> bool:
    """False without the driver's library and without AMD's device: nobody waits seconds for torch to be imported and say no."""
    if sys.platform != "linux" or _AMD.exists():
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


AHEAD_BYTES = 1 << 28
"""Prepared images that wait for the model take no more than this, or one for each worker: 256 MiB are 1,700 of 224 x 224."""


class Feed:
    """How images reach a device: this one a CPU or MPS, `CudaFeed` a CUDA device.

    `is_queue`: whether the device works while the calling thread goes on. A CPU does not; there both want the same cores.
    """

    def __init__(self, device: str) -> None:
        self.device, self.is_queue = device, device != "cpu"

    def images_at_once(self, batch_size: int, workers: int) -> int:
        """Return how many images are prepared at most before the model is called, or on a device with a queue, beside it.

        On a CPU the preparing threads wait for the model's to fall asleep each time: with ViT-B/32 on 2 cores, 4 at once reach .92 of
        the bare model's rate, 16 .93 and 32 .95; preparing while the model runs reaches .90 to .92.
        """
        return 3 * max(batch_size, 2 * workers) if self.is_queue else max(batch_size, 16 * workers)

    def upload(self, arrays: Sequence[npt.NDArray[Any]]) -> "torch.Tensor":
        """Return arrays of one shape as one tensor on the device; what is started on it afterwards finds it whole."""
        import torch

        return torch.from_numpy(np.stack(arrays)).to(self.device)

    def alone(self) -> AbstractContextManager[None]:
        """Let the calling thread run torch's operations as it should while others prepare images."""
        return nullcontext()


class CudaFeed(Feed):
    """Through a ring of pinned buffers, so that a copy waits for nobody. Tests put a stand-in for `pinned`, `copy` and `alone`.

    A buffer is filled again only when its copy is done: before that, the device would read the next batch's pixels.
    """

    BUFFERS = 4

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self._ring: deque[tuple[torch.Tensor, Any]] = deque()

    def upload(self, arrays: Sequence[npt.NDArray[Any]]) -> "torch.Tensor":
        n, shape = len(arrays), arrays[0].shape
        buffer = self._free_buffer()
        if buffer is None or len(buffer) < n or (buffer.shape[1:], buffer.numpy().dtype) != (shape, arrays[0].dtype):
            buffer = self.pinned(np.empty((n, *shape), arrays[0].dtype))
        np.stack(arrays, out=buffer.numpy()[:n])
        on_device, copied = self.copy(buffer[:n])
        self._ring.append((buffer, copied))
        return on_device

    def _free_buffer(self) -> "torch.Tensor | None":
        if len(self._ring) < self.BUFFERS:
            return None
        buffer, copied = self._ring.popleft()
        copied.synchronize()
        return buffer

    def pinned(self, like: npt.NDArray[Any]) -> "torch.Tensor":
        """Return a buffer in pinned memory."""
        import torch

        return torch.from_numpy(like).pin_memory()

    def copy(self, buffer: "torch.Tensor") -> "tuple[torch.Tensor, Any]":
        """Start a copy to the device; return it with the event that is done when the buffer has been read."""
        import torch

        return buffer.to(self.device, non_blocking=True), torch.cuda.current_stream(self.device).record_event()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One thread for torch in the calling thread, then as before: its OpenMP team would fight the others for the cores.

        Measured with ViT-B/32 on 16 cores and an H200: 320 images/s against 817 with one thread.
        """
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


FEEDS: dict[str, type[Feed]] = {"cuda": CudaFeed}


def feed_of(device: str) -> Feed:
    """Return a feed of its own for a device."""
    return FEEDS.get(device.partition(":")[0], Feed)(device)


def keep_to_one_thread() -> None:
    """Let the calling thread run torch's operations by itself: for threads that prepare images beside each other.

    Otherwise each has a team of OpenMP's threads, more than there are cores, and then OpenMP lets all of them sleep between any two
    operations, the model's included: measured with ViT-B/32 on 2 cores, .88 of the bare model's rate in place of .93.
    """
    torch_here = sys.modules.get("torch")
    if torch_here is not None:
        torch_here.get_num_threads()  # the first call in a thread sets its number, and would do so later
        _thread_pools().limit(limits=1, user_api="openmp")


@cache
def _thread_pools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextmanager
def float32_as_asked(device: str, precision: str) -> Iterator[None]:
    """Multiply float32 on CUDA as IEEE float32 (fp32) or in TF32 (tf32) while this is entered, then as before; all else is left alone.

    By default cuDNN convolves in TF32, and its result depends on the batch's size: on an H100 a ViT-B/32's rows differed by 1.6e-4.
    torch has two sets of switches and refuses to mix them. The older is used, which torch.compile reads, unless somebody has used
    the newer one.
    """
    if not device.startswith("cuda") or precision not in ("fp32", "tf32"):
        yield
        return
    import torch

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    older: list[Any] = [matmul, cudnn]
    newer: list[Any] = [matmul, cudnn, cudnn.conv, cudnn.rnn] if hasattr(cudnn, "conv") else []
    with warnings.catch_warnings(action="ignore"):  # some releases call the older switches deprecated
        names = [place.fp32_precision for place in newer]
        try:
            flags, matmul_precision = [place.allow_tf32 for place in older], torch.get_float32_matmul_precision()
            for place in older:
                place.allow_tf32 = precision == "tf32"
        except RuntimeError:  # the host has used the newer switches, and torch does not answer for the older ones
            flags, matmul_precision = [], ""
            for place in newer:
                place.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        with warnings.catch_warnings(action="ignore"):
            for place, flag in zip(older, flags, strict=False):  # no flags where the newer switches were used
                place.allow_tf32 = flag
            if matmul_precision == "medium":
                torch.set_float32_matmul_precision(matmul_precision)  # the flag made it "high"
            for place, name in zip(newer, names, strict=True):
                place.fp32_precision = name


def synchronized(output: T, device: str) -> T:
    """Return `output` once all queued work on the device is done, so that a clock read afterwards counts it. A CPU has no queue."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
    elif device == "mps":
        import torch

        torch.mps.synchronize()
    return output


def device_seconds(start: Callable[[], object], device: str) -> float | None:
    """Return the seconds that a CUDA device took for what `start` queued, by its own events; None where a device has no such clock.

    The host is in it where the device had to wait for the next launch, and nowhere else.
    """
    if not device.startswith("cuda"):
        return None
    import torch

    stream = torch.cuda.current_stream(device)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch's
    before.record(stream)
    start()
    after.record(stream)
    after.synchronize()
    return float(before.elapsed_time(after)) / 1000


_CARD = {
    "clocks.sm": "clock_mhz",
    "clocks.max.sm": "highest_clock_mhz",
    "power.draw": "power_watts",
    "power.limit": "power_limit_watts",
    "temperature.gpu": "temperature_celsius",
}


def card_state(device: str) -> dict[str, float]:
    """Return what a CUDA card is doing now, as its driver says: clock, power, temperature, and `processes` that compute on it, this
    one among them. What cannot be had is absent."""
    if not device.startswith("cuda"):
        return {}
    import torch

    card = f"--id=GPU-{getattr(torch.cuda.get_device_properties(device), 'uuid', '')}"
    found = {}
    for name, value in zip(
        _CARD.values(), _nvidia_smi(card, f"--query-gpu={','.join(_CARD)}").split(","), strict=False
    ):
        with suppress(ValueError):  # "[N/A]"
            found[name] = float(value)
    return found | ({"processes": float(len(_nvidia_smi(card, "--query-compute-apps=pid").split()))} if found else {})


def _nvidia_smi(*options: str) -> str:
    """What the driver's program answers, "" where there is none or it fails."""
    try:
        command = ["nvidia-smi", *options, "--format=csv,noheader,nounits"]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout  # noqa: S603  # its own options
    except (OSError, subprocess.SubprocessError):
        return ""


def release(device: str) -> None:
    """Give the allocator's unused memory back, after a model was freed, so that the next one's peak is its own."""
    if device == "cpu" and sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)
    elif device.startswith("cuda"):
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
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_in_use(device: str) -> int:
    """Return what is in use now, in bytes: allocated on CUDA, resident in this process on a CPU; 0 where the machine does not say."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.memory_allocated(device))
    return _status("VmRSS")


def _status(name: str) -> int:
    """A size of this process in bytes, as proc(5) calls it; 0 where the system does not say."""
    for line in _STATUS.read_text().splitlines() if _STATUS.exists() else ():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def device_kind(device: str) -> str:
    """Return what decides the last digits of a row beside software: the processor, or the GPU and its matmul precision."""
    if device.startswith("cuda"):
        import torch

        return f"cuda {torch.cuda.get_device_name(device)} {_tf32()}"
    torch_here = sys.modules.get("torch")
    return f"{device} {_processor()} {torch_here.get_float32_matmul_precision() if torch_here else 'highest'}"


def device_name(device: str) -> str:
    """Return what people call a device: "cpu", "mps", or the card's name, "NVIDIA L4"."""
    if not device.startswith("cuda"):
        return device
    import torch

    return str(torch.cuda.get_device_name(device))


def _tf32() -> str:
    """How float32 is multiplied: newer releases of torch name it, and refuse the older flags once a name was set."""
    import torch

    parts: dict[str, Any] = {"matmul": torch.backends.cuda.matmul, "cudnn": torch.backends.cudnn}
    return ", ".join(f"{n} {getattr(p, 'fp32_precision', None) or p.allow_tf32}" for n, p in parts.items())


def describe_machine(device: str) -> dict[str, Any]:
    """Return what decides speed on this machine: processor, threads, accelerator, driver."""
    import psutil

    torch = sys.modules.get("torch")  # absent where no model was loaded: nothing to say of threads
    described: dict[str, Any] = {
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=True) or 0,
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "accelerator": f"Apple GPU of {_processor()}" if device == "mps" else "",
        "driver": "",
    }
    if torch:
        described["threads"] = torch.get_num_threads()
    if device.startswith("cuda") and torch:
        version = Path("/proc/driver/nvidia/version")
        driver = re.search(r"Kernel Module.*?(\d+\.\d+[.\d]*)", version.read_text()) if version.exists() else None
        described["accelerator"] = torch.cuda.get_device_name(device)
        described["driver"] = driver.group(1) if driver else ""
        described["cuda"] = str(torch.version.cuda or "")
        described["tf32"] = _tf32()
    return described


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
