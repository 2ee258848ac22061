"""Mel spectrograms with numpy: Slaney's scale, as librosa and most speech models have it."""

import functools

import numpy as np


@functools.lru_cache(maxsize=8)
def mel_filters(sample_rate: int, n_fft: int, n_mels: int, low: float = 0.0, high: float | None = None) -> np.ndarray:
    """Triangular filters of equal area, float32 [n_mels, n_fft // 2 + 1], from `low` to `high` Hz (default: half the rate).

    Source: M. Slaney, Auditory Toolbox (1998): linear below 1 kHz, logarithmic above.
    """
    centers = _to_hertz(np.linspace(_to_mel(low), _to_mel(high or sample_rate / 2), n_mels + 2))
    bins = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)
    rising = (bins[None] - centers[:-2, None]) / (centers[1:-1] - centers[:-2])[:, None]
    falling = (centers[2:, None] - bins[None]) / (centers[2:] - centers[1:-1])[:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * (2 / (centers[2:] - centers[:-2]))[:, None]).astype(np.float32)


_LINEAR = 200 / 3  # Hz per mel below 1 kHz
_KNEE = 1000 / _LINEAR  # mels at 1 kHz
_STEP = np.log(6.4) / 27  # natural logarithm of the ratio per mel above


def _to_mel(hertz: float) -> float:
    return hertz / _LINEAR if hertz < 1000 else _KNEE + np.log(hertz / 1000) / _STEP


def _to_hertz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < _KNEE, mels * _LINEAR, 1000 * np.exp(_STEP * (mels - _KNEE)))


def power_spectrogram(audio: np.ndarray, n_fft: int, hop: int) -> np.ndarray:
    """Power of windowed frames (periodic Hann, centred, zeros around), float32 [n_fft // 2 + 1, 1 + len // hop]."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    padded = np.pad(np.asarray(audio, dtype=np.float32), n_fft // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]
    spectra = np.fft.rfft(frames * window, axis=1)
    return (spectra.real**2 + spectra.imag**2).T.astype(np.float32)


def mel_spectrogram(audio: np.ndarray, sample_rate: int, n_fft: int, hop: int, n_mels: int) -> np.ndarray:
    """Power per mel band, float32 [n_mels, frames]."""
    return mel_filters(sample_rate, n_fft, n_mels) @ power_spectrogram(audio, n_fft, hop)
