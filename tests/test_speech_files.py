"""Sound files written in blocks, subtitles, spectrograms and their picture."""

import io
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile
from PIL import Image

from shared_utils import audio_files
from shared_utils.audio_files import AudioWriter, PcmStream, check_settings
from shared_utils.audio_preview import AudioPreview
from shared_utils.errors import OutputWriteError, PostConditionError, UsageError
from shared_utils.mel import mel_filters, mel_spectrogram
from shared_utils.subtitles import SubtitleWriter, TimedText, cues, timestamp

RATE = 24_000


def tone(seconds: float, hertz: float = 440.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def write(path, name, sound, rate=RATE, **settings) -> AudioWriter:
    with AudioWriter(path, name, RATE, rate, **settings) as writer:
        for start in range(0, len(sound), 5000):
            writer.write(sound[start : start + 5000])
    return writer


def pitch(path) -> tuple[float, float, int]:
    """Loudest frequency in Hz, length in seconds, sample rate, as another reader finds them."""
    sound, rate = soundfile.read(path)
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    return float(spectrum.argmax() * rate / len(sound)), len(sound) / rate, rate


@pytest.mark.parametrize("name", audio_files.FORMATS)
@pytest.mark.parametrize("rate", [24_000, 48_000, 16_000])
def test_every_format_keeps_pitch_and_length_at_every_rate(tmp_path, name, rate):
    path = tmp_path / f"sound.{name}"
    writer = write(path, name, tone(2.0), rate)
    hertz, seconds, found = pitch(path)
    assert found == rate and abs(hertz - 440) < 1 and abs(seconds - 2.0) < 0.06
    assert writer.clipped == 0 and abs(writer.peak - 0.5) < 0.01 and writer.samples == 2 * rate


@pytest.mark.parametrize("name, low, high", [("mp3", 48, 128), ("opus", 24, 96)])
def test_a_bit_rate_is_what_the_file_has(tmp_path, name, low, high):
    noise = (0.2 * np.random.default_rng(0).standard_normal(10 * RATE)).astype(np.float32)
    for kbps in (low, high):
        path = tmp_path / f"{kbps}.{name}"
        write(path, name, noise, bitrate=kbps)
        assert abs(path.stat().st_size * 8 / 10 / 1000 / kbps - 1) < 0.12


def test_more_quality_is_a_larger_file(tmp_path):
    noise = (0.2 * np.random.default_rng(0).standard_normal(5 * RATE)).astype(np.float32)
    for name in ("ogg", "mp3"):
        sizes = []
        for quality in (0.1, 0.9):
            write(tmp_path / f"q.{name}", name, noise, quality=quality)
            sizes.append((tmp_path / f"q.{name}").stat().st_size)
        assert sizes[0] < 0.8 * sizes[1]


@pytest.mark.parametrize(
    "name, rate, settings, message",
    [
        ("opus", 44_100, {}, "opus takes 8000"),
        ("mp3", 96_000, {}, "mp3 takes"),
        ("wav", RATE, {"bitrate": 64}, "wav has none"),
        ("mp3", RATE, {"bitrate": 320}, "from 8 to 160"),
        ("mp3", RATE, {"bitrate": 64, "quality": 0.5}, "exclude"),
        ("flac", RATE, {"quality": 0.5}, "flac has none"),
    ],
)
def test_settings_a_format_does_not_have_are_refused(name, rate, settings, message):
    with pytest.raises(UsageError, match=message):
        check_settings(name, rate, settings.get("bitrate"), settings.get("quality"))


def test_clipping_is_counted_and_normalising_avoids_it(tmp_path):
    loud = tone(1.0, level=1.5)
    clipped = write(tmp_path / "a.wav", "wav", loud)
    assert clipped.clipped == int((np.abs(loud) > 1).sum()) > 0
    normal = write(tmp_path / "b.wav", "wav", loud, normalize=True)
    assert normal.clipped == 0 and abs(normal.peak - 1.5) < 1e-3
    assert abs(np.abs(soundfile.read(tmp_path / "b.wav")[0]).max() - audio_files.PEAK_TARGET) < 1e-3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.wav", "b.wav"]


def test_silence_is_written_and_counted(tmp_path):
    with AudioWriter(tmp_path / "a.wav", "wav", RATE, RATE) as writer:
        writer.write(tone(0.1))
        assert writer.silence(4.0, RATE) == 96_000
    assert writer.samples == 98_400 and soundfile.info(tmp_path / "a.wav").frames == 98_400


def test_a_wav_file_ends_before_its_header_overflows(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_files, "WAV_BYTES", 20_000)
    with pytest.raises(OutputWriteError, match="4 GB"):
        write(tmp_path / "a.wav", "wav", tone(1.0))


def test_a_file_that_does_not_hold_what_was_written_is_an_error(tmp_path):
    writer = AudioWriter(tmp_path / "a.wav", "wav", RATE, RATE)
    writer.write(tone(0.5))
    writer.samples += 7
    with pytest.raises(PostConditionError, match="12000 samples"):
        writer.close()


def test_writing_in_blocks_is_writing_at_once(tmp_path):
    sound = tone(1.3, 523.0)
    write(tmp_path / "a.wav", "wav", sound, 44_100)
    with AudioWriter(tmp_path / "b.wav", "wav", RATE, 44_100) as writer:
        writer.write(sound)
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_a_stream_is_a_wav_of_unknown_length():
    pipe = io.BytesIO()
    stream = PcmStream(pipe, RATE, 48_000, header=True)
    stream.write(tone(0.5))
    stream.flush()
    data = pipe.getvalue()
    assert data[:4] == b"RIFF" and struct.unpack_from("<HHIIHH", data, 20) == (1, 1, 48_000, 96_000, 2, 16)
    assert struct.unpack_from("<I", data, 40)[0] > len(data) and len(data) == 44 + 2 * 24_000
    # A second recording follows without a second header.
    stream.write(tone(0.25))
    stream.flush()
    assert len(pipe.getvalue()) == len(data) + 2 * 12_000 and pipe.getvalue().count(b"RIFF") == 1
    again = np.frombuffer(pipe.getvalue()[len(data) :], "<i2")
    assert (again[:10_000] == np.frombuffer(data[44:], "<i2")[:10_000]).all()
    bare = io.BytesIO()
    PcmStream(bare, RATE, RATE, header=False).write(np.array([0.0, 1.0, -2.0], np.float32))
    assert np.frombuffer(bare.getvalue(), "<i2").tolist() == [0, 32767, -32767]


# --- subtitles


def sentence(text: str, start: float = 0.0, each: float = 0.3) -> list[TimedText]:
    return [TimedText(start + i * each, start + (i + 1) * each - 0.05, w) for i, w in enumerate(text.split())]


def test_timestamps():
    assert timestamp(3661.0625, ",") == "01:01:01,062" and timestamp(0.9996, ".") == "00:00:01.000"


def test_cues_fit_the_screen_and_lose_no_word():
    text = (
        "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness,"
        " it was the epoch of belief, it was the epoch of incredulity."
    )
    made = list(cues(sentence(text)))
    assert " ".join(cue.text for cue in made) == text
    assert all(len(cue.text) <= 84 and cue.end - cue.start <= 7 for cue in made)
    assert made[0].text.endswith(",")
    assert [c.text for c in cues(sentence("one two, three"), single=True)] == ["one", "two,", "three"]
    slow = list(cues(sentence("one two three four five six", each=2.0)))
    assert all(cue.end - cue.start <= 7 for cue in slow) and len(slow) == 2


def test_files_of_each_kind(tmp_path):
    import json

    parts = sentence("Tom & <Jerry> run.", start=3599.9)
    for kind in ("srt", "vtt", "json"):
        with SubtitleWriter(tmp_path / f"s.{kind}", kind) as writer:
            for cue in cues(parts):
                writer.write(cue)
    assert (tmp_path / "s.srt").read_text() == "1\n00:59:59,900 --> 01:00:01,050\nTom & <Jerry> run.\n\n"
    vtt = (tmp_path / "s.vtt").read_text()
    assert vtt.startswith("WEBVTT\n\n00:59:59.900 --> 01:00:01.050\nTom <01:00:00.200>&amp; ")
    assert "&lt;Jerry&gt;" in vtt
    (cue,) = json.loads((tmp_path / "s.json").read_text())["cues"]
    assert cue["text"] == "Tom & <Jerry> run." and cue["words"][2] == {
        "start": 3600.5,
        "end": 3600.75,
        "text": "<Jerry>",
    }
    with SubtitleWriter(tmp_path / "empty.json", "json"):
        pass
    assert json.loads((tmp_path / "empty.json").read_text()) == {"cues": []}


# --- spectrogram and picture


def test_mel_filters_by_their_definition():
    filters = mel_filters(16_000, 400, 40)
    assert filters.shape == (40, 201) and filters.dtype == np.float32 and (filters >= 0).all()
    peaks = filters.argmax(axis=1) * 40.0
    # 66.7 Hz a mel below 1 kHz, and a ratio of 6.4 in 27 mels above (Slaney).
    low = peaks[peaks < 900]
    assert np.ptp(np.diff(low)) <= 40
    assert (np.diff(peaks) >= 0).all() and peaks[-1] < 8000
    # Equal area, where the bins are dense enough for it to show.
    assert np.allclose(filters[20:].sum(axis=1) * 40, 1, atol=0.12)


@pytest.mark.slow
def test_mel_spectrogram_is_librosas():
    librosa = pytest.importorskip("librosa")
    sound = (tone(1.0) + tone(1.0, 3000.0)).astype(np.float32)
    theirs = librosa.feature.melspectrogram(
        y=sound, sr=RATE, n_fft=1024, hop_length=256, n_mels=80, pad_mode="constant"
    )
    ours = mel_spectrogram(sound, RATE, 1024, 256, 80)
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 1e-4 * theirs.max()


def preview(path, seconds: int) -> AudioPreview:
    picture = AudioPreview(RATE)
    for _ in range(seconds):
        picture.add(tone(1.0))
    picture.word(0.5, "word")
    picture.word(99.0, "later")
    picture.save(path)
    return picture


def test_a_picture_of_any_length_is_the_same_size_and_reproducible(tmp_path):
    short, long = preview(tmp_path / "a.png", 2), preview(tmp_path / "b.png", 300)
    preview(tmp_path / "c.png", 2)
    assert Image.open(tmp_path / "a.png").size == Image.open(tmp_path / "b.png").size
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "c.png").read_bytes()
    assert len(long._low) < 4 * 1200 and short.samples == 2 * RATE
    # A 440 Hz tone lies in the lower half, which is the bright one.
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("L"), float)[160:416]
    assert pixels[128:, 100:500].max() > 200 and pixels[128:].mean() > pixels[:128].mean()


def test_memory_of_the_picture_is_bounded():
    picture = AudioPreview(RATE)
    sound = tone(1.0)
    for _ in range(30):
        picture.add(sound)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(600):
        picture.add(sound)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 200_000
