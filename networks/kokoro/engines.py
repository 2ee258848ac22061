"""Bringing up what computes: which engine, from which files, on how many threads."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from networks.kokoro.speak import Engine

MOST_THREADS = 4  # the model is small: more threads wait for each other rather than work


def thread_count(wanted: int | None) -> int:
    """CPU threads to compute with: `wanted`, else OMP_NUM_THREADS, else the cores this process may use, up to four."""
    if wanted is not None:
        return wanted
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isascii() and given.isdigit() and int(given) > 0:
        return int(given)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_THREADS, cores)


def set_threads(count: int) -> None:
    """Settle the number of threads before any library starts its own."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    # Some operations of the decoder are missing on Apple GPUs.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def load_onnx(graph: Path, threads: int) -> "Engine":
    """ONNX Runtime on the CPU. Raises as `OnnxKokoro` does."""
    from networks.kokoro.onnx_engine import OnnxKokoro

    return OnnxKokoro(graph, threads)


def load_torch(checkpoint: Path | None, graph: Path | None, device: str) -> "Engine":
    """PyTorch, from a checkpoint folder or, without one, with the weights of an int8 graph. Raises as `load_kmodel` does."""
    from networks.kokoro.model import TorchKokoro

    if checkpoint is not None:
        return TorchKokoro.load(checkpoint, device)
    from networks.kokoro.checkpoint import empty_kmodel, fill
    from networks.kokoro.config import CONFIG_V1
    from networks.kokoro.dequantise import dequantise

    return TorchKokoro(fill(empty_kmodel(CONFIG_V1), dequantise(graph), str(graph)).to(device))
