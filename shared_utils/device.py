"""Which device and number type to compute with, how much memory is free, and how much was used."""

import sys
import threading
from pathlib import Path

from shared_utils.errors import UnavailableError


def choose_device(wanted: str) -> str:
    """Resolve `auto`, `cuda`, `cuda:N`, `mps` or `cpu` to a torch device name. `auto` takes cuda, then mps, then cpu.

    Raises `UnavailableError` when the device asked for is not there.
    """
    if wanted == "cpu":
        return "cpu"
    import torch

    cuda = torch.cuda.is_available()
    mps = torch.backends.mps.is_available()
    if wanted == "auto":
        return "cuda:0" if cuda else "mps" if mps else "cpu"
    if wanted == "mps":
        if not mps:
            raise UnavailableError("--device mps: this machine has no usable Apple GPU (--device cpu works everywhere)")
        return "mps"
    if not cuda:
        raise UnavailableError(
            f"--device {wanted}: this machine has no usable CUDA GPU (--device cpu works everywhere)"
        )
    index = int(wanted.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        raise UnavailableError(
            f"--device {wanted}: this machine has only {torch.cuda.device_count()} CUDA device(s), counted from 0"
        )
    return f"cuda:{index}"


def check_device_name(value: str) -> str | None:
    """The rule a `--device` value breaks, or None."""
    kind, colon, index = value.partition(":")
    if value in ("auto", "cuda", "mps", "cpu") or (kind == "cuda" and colon and index.isascii() and index.isdigit()):
        return None
    return "must be auto, cuda, cuda:N, mps or cpu"


def choose_dtype(wanted: str, device: str):
    """Resolve `auto`, `bf16`, `fp16` or `fp32` to a torch dtype; `auto` is bf16 wherever the device computes with it.

    Raises `UnavailableError` for bf16 on a GPU that lacks it and for fp16 on a CPU.
    """
    import torch

    bf16 = not device.startswith("cuda") or torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "auto":
        return torch.bfloat16 if bf16 else torch.float16
    if wanted == "bf16" and not bf16:
        raise UnavailableError(f"--dtype bf16: {device} does not compute with bfloat16 (use --dtype fp16 or fp32)")
    if wanted == "fp16" and device == "cpu":
        raise UnavailableError("--dtype fp16: not on a CPU, where it is slow and overflows (use --dtype bf16 or fp32)")
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[wanted]


def free_memory(device: str) -> int:
    """Bytes that can still be allocated on the device; for cpu and mps the available main memory."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return available_ram()


def available_ram() -> int:
    """Bytes of main memory available to this process, respecting a cgroup limit where one is set (Linux)."""
    if sys.platform != "linux":
        import psutil

        return psutil.virtual_memory().available
    rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(rows["MemAvailable"].split()[0]) * 1024
    limit, used, stat = (Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "current", "stat"))
    if limit.is_file() and used.is_file() and stat.is_file() and (cap := limit.read_text().strip()) != "max":
        # Cached file contents count as used and are given up on demand.
        cached = sum(int(v) for k, v in map(str.split, stat.read_text().splitlines()) if k.endswith("active_file"))
        available = min(available, max(0, int(cap) - int(used.read_text()) + cached))
    return available


def peak_memory(device: str = "cpu") -> int:
    """Largest number of bytes held so far: on the GPU for a cuda device, else this process's resident set."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class MemoryWatch:
    """The largest memory held while it is open, sampled 20 times a second: on the GPU, else of this process (bytes)."""

    def __init__(self, device_name: str):
        self.device, self.peak, self._done = device_name, 0, threading.Event()

    def now(self) -> int:
        if self.device.startswith("cuda"):
            import torch

            return torch.cuda.memory_allocated(self.device)
        import psutil

        return psutil.Process().memory_info().rss

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, self.now())
            if self._done.wait(0.05):
                return

    def __enter__(self) -> "MemoryWatch":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, or torch on any device, could not get the memory it asked for."""
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))


def release() -> None:
    """Give memory of dropped models back to the device."""
    import gc

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def gigabytes(count: float) -> str:
    """A byte count as people say it: `12.3 GB` (10^9 bytes), small ones in MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
