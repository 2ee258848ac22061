"""A picture of speech: waveform and mel spectrogram with marks where words begin. Memory does not grow with the sound."""

from pathlib import Path

import numpy as np

WIDTH = 1200  # pixels
WAVE_HEIGHT = 160
MEL_HEIGHT = 256
WORDS_HEIGHT = 28
DETAIL_SECONDS = 12.0  # of sound shown as spectrogram, from the beginning
RANGE_DB = 70.0  # below the loudest, what is still shown
_BACKGROUND, _WAVE, _MARK, _TEXT = (18, 18, 24), (96, 180, 255), (255, 200, 80), (235, 235, 235)
# From dark to bright, in the order of perceived lightness.
_COLOURS = np.array([(10, 8, 30), (70, 20, 110), (150, 40, 110), (220, 80, 70), (250, 160, 50), (252, 250, 190)], float)


class AudioPreview:
    """Collects what the picture needs while the sound goes by: its outline, the beginning in full, the first words."""

    def __init__(self, sample_rate: int):
        self.sample_rate = sample_rate
        self._per_bin = 256  # samples; doubled whenever the outline gets twice as fine as the picture
        self._low = np.zeros(0, np.float32)
        self._high = np.zeros(0, np.float32)
        self._rest = np.zeros(0, np.float32)
        self._head: list[np.ndarray] = []
        self._head_samples = 0
        self._words: list[tuple[float, str]] = []
        self.samples = 0

    def add(self, samples: np.ndarray) -> None:
        """Take notice of samples, float32 [n]."""
        room = int(DETAIL_SECONDS * self.sample_rate) - self._head_samples
        if room > 0:
            self._head.append(samples[:room].copy())
            self._head_samples += len(self._head[-1])
        self.samples += len(samples)
        block = np.concatenate([self._rest, samples])
        bins = len(block) // self._per_bin
        whole = block[: bins * self._per_bin].reshape(bins, self._per_bin)
        self._rest = block[bins * self._per_bin :].copy()
        self._low = np.concatenate([self._low, whole.min(axis=1, initial=0)])
        self._high = np.concatenate([self._high, whole.max(axis=1, initial=0)])
        while len(self._low) >= 4 * WIDTH:
            even = len(self._low) // 2 * 2
            self._low = self._low[:even].reshape(-1, 2).min(axis=1)
            self._high = self._high[:even].reshape(-1, 2).max(axis=1)
            self._per_bin *= 2

    def word(self, start: float, text: str) -> None:
        """A word that begins at `start` seconds."""
        if start < DETAIL_SECONDS:
            self._words.append((start, text))

    def save(self, path: Path) -> None:
        """Write the picture as PNG. Same sound, same bytes."""
        from PIL import Image, ImageDraw, ImageFont

        head = np.concatenate(self._head) if self._head else np.zeros(0, np.float32)
        picture = Image.new("RGB", (WIDTH, WAVE_HEIGHT + MEL_HEIGHT + WORDS_HEIGHT), _BACKGROUND)
        draw = ImageDraw.Draw(picture)
        self._draw_wave(draw)
        picture.paste(Image.fromarray(_mel_picture(head, self.sample_rate)), (0, WAVE_HEIGHT))
        font = ImageFont.load_default(13)
        seconds = max(len(head) / self.sample_rate, 1e-6)
        right = 0.0
        for start, text in self._words:
            x = WIDTH * start / seconds
            draw.line([(x, WAVE_HEIGHT), (x, WAVE_HEIGHT + MEL_HEIGHT)], fill=_MARK)
            if x >= right and text.isascii():  # the built-in font has Latin letters only
                draw.text((x + 2, WAVE_HEIGHT + MEL_HEIGHT + 6), text, fill=_TEXT, font=font)
                right = x + 8 + draw.textlength(text, font=font)
        label = f"{self.samples / self.sample_rate:.2f} s; spectrogram: first {seconds:.1f} s, 0-{self.sample_rate // 2000} kHz (mel)"
        draw.text((6, 4), label, fill=_TEXT, font=font)
        picture.save(path, format="PNG")

    def _draw_wave(self, draw) -> None:
        middle = WAVE_HEIGHT / 2
        bins = max(1, len(self._low))
        scale = max(1.0, float(np.abs(self._low).max(initial=0)), float(np.abs(self._high).max(initial=0)))
        for x in range(WIDTH):
            a = x * bins // WIDTH
            b = max(a + 1, (x + 1) * bins // WIDTH)
            if a >= len(self._low):
                break
            low, high = self._low[a:b].min() / scale, self._high[a:b].max() / scale
            draw.line([(x, middle - middle * high), (x, middle - middle * low)], fill=_WAVE)


def _mel_picture(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Log-mel spectrogram as uint8 [MEL_HEIGHT, WIDTH, 3], low frequencies at the bottom."""
    from shared_utils.mel import mel_spectrogram

    hop = max(1, len(audio) // WIDTH)
    power = mel_spectrogram(audio, sample_rate, 1024, hop, 128)
    decibels = 10 * np.log10(np.maximum(power, 1e-10))
    level = np.clip(1 + (decibels - decibels.max()) / RANGE_DB, 0, 1)[::-1]
    columns = np.linspace(0, level.shape[1] - 1, WIDTH).round().astype(int)
    level = np.repeat(level[:, columns], MEL_HEIGHT // 128, axis=0)
    position = level * (len(_COLOURS) - 1)
    index = np.minimum(position.astype(int), len(_COLOURS) - 2)
    fraction = (position - index)[..., None]
    return (_COLOURS[index] * (1 - fraction) + _COLOURS[index + 1] * fraction).round().astype(np.uint8)
