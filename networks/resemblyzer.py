"""Resemblyzer's speaker encoder in plain PyTorch: a voice as a point on the unit sphere, and a way for gradients to get there.

Network and numbers: Wan et al., "Generalized End-to-End Loss for Speaker Verification" (2018), as the package resemblyzer 0.1.4
(Apache-2.0) sets them: three LSTM layers of 256, a linear layer with ReLU, length 1; 40 mel bands of power at 16 kHz, windows of
25 ms every 10 ms, partial utterances of 1.6 s. The weights are the `pretrained.pt` that package ships.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from shared_utils.errors import InvalidInputError, UnavailableError

RATE = 16000  # Hz
WINDOW, HOP, MELS = 400, 160, 40
PARTIAL = 160  # frames of a partial utterance
PARTIALS_A_SECOND, LEAST_COVERAGE = 1.3, 0.75
LOUDNESS = -30.0  # dB of full scale; quieter speech is raised to it
VAD_WINDOW, VAD_AVERAGE, VAD_GAP = 480, 8, 6  # samples (30 ms), windows, windows of silence that are kept


def packaged_weights() -> Path:
    """The file of the installed package, which is not imported. Raises `UnavailableError`."""
    spec = find_spec("resemblyzer")
    path = Path(spec.origin).parent / "pretrained.pt" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise UnavailableError("the speaker encoder's weights are missing: pip install --no-deps resemblyzer")
    return path


class SpeakerEncoder(nn.Module):
    """Embeds speech at 16 kHz. State-dict keys are those of the package's `model_state`."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(MELS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        from transformers.audio_utils import mel_filter_bank

        bank = mel_filter_bank(WINDOW // 2 + 1, MELS, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
        self.register_buffer("mel", torch.from_numpy(bank.astype(np.float32)), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    @classmethod
    def load(cls, path: Path | None = None) -> "SpeakerEncoder":
        """The trained encoder, from a file in the package's format (default: the package's own)."""
        state = torch.load(path or packaged_weights(), map_location="cpu", weights_only=True)["model_state"]
        encoder = cls()
        encoder.load_state_dict({k: v for k, v in state.items() if k.startswith(("lstm.", "linear."))})
        for parameter in encoder.parameters():
            parameter.requires_grad_(False)
        return encoder.eval()

    def frames(self, audio: Tensor) -> Tensor:
        """Mel power of audio [n], [1 + n // 160, 40]."""
        spectrum = torch.stft(
            audio, WINDOW, HOP, WINDOW, self.window, center=True, pad_mode="constant", return_complex=True
        )
        return spectrum.abs().square().T @ self.mel

    def embed_partials(self, frames: Tensor) -> Tensor:
        """Embeddings of partial utterances [b, 160, 40], each of length 1: [b, 256]."""
        _, (hidden, _) = self.lstm(frames)
        return functional.normalize(torch.relu(self.linear(hidden[-1])), dim=1)

    def embed(self, audio: Tensor) -> Tensor:
        """The embedding [256] of preprocessed audio [n] (see `preprocess`), of length 1. Differentiable in `audio`."""
        starts = partial_starts(len(audio))
        needed = (starts[-1] + PARTIAL) * HOP
        frames = self.frames(functional.pad(audio, (0, max(0, needed - len(audio)))))
        partials = self.embed_partials(torch.stack([frames[s : s + PARTIAL] for s in starts]))
        return functional.normalize(partials.mean(0), dim=0)


def partial_starts(samples: int) -> list[int]:
    """First frames of the partial utterances of `samples` samples; the last is dropped when little of it is speech."""
    count = -(-(samples + 1) // HOP)
    step = round(RATE / PARTIALS_A_SECOND / HOP)
    starts = list(range(0, max(1, count - PARTIAL + step + 1), step))
    coverage = (samples - starts[-1] * HOP) / (PARTIAL * HOP)
    return starts[:-1] if coverage < LEAST_COVERAGE and len(starts) > 1 else starts


def preprocess(audio: np.ndarray, rate: int) -> np.ndarray:
    """Mono float audio [n] at `rate` Hz as the encoder likes it: 16 kHz, loud enough, long silences cut.

    Raises `InvalidInputError` when nothing but silence is left.
    """
    import soxr

    audio = np.asarray(audio, np.float32)
    if rate != RATE:
        audio = soxr.resample(audio, rate, RATE, quality="HQ")
    power = float(np.mean(audio.astype(np.float64) ** 2)) if len(audio) else 0.0
    if power <= 0:
        raise InvalidInputError("the audio is silent")
    raise_by = LOUDNESS - 10 * np.log10(power)
    if raise_by > 0:
        audio = audio * np.float32(10 ** (raise_by / 20))
    audio = trim_silences(audio)
    if not len(audio):
        raise InvalidInputError("no speech is heard in the audio")
    return audio


def trim_silences(audio: np.ndarray) -> np.ndarray:
    """Cut what WebRTC's voice detector (strictest mode) finds silent, short gaps aside."""
    import webrtcvad
    from scipy.ndimage import binary_dilation

    audio = audio[: len(audio) // VAD_WINDOW * VAD_WINDOW]
    pulses = np.round(audio * 32767).clip(-32768, 32767).astype("<i2").reshape(-1, VAD_WINDOW)
    detector = webrtcvad.Vad(mode=3)
    voiced = np.array([detector.is_speech(window.tobytes(), sample_rate=RATE) for window in pulses], float)
    padded = np.pad(voiced, ((VAD_AVERAGE - 1) // 2, VAD_AVERAGE // 2))
    smooth = np.convolve(padded, np.ones(VAD_AVERAGE) / VAD_AVERAGE, mode="valid") if len(voiced) else voiced
    kept = binary_dilation(np.round(smooth).astype(bool), np.ones(VAD_GAP + 1))
    return audio[np.repeat(kept, VAD_WINDOW)]


class Resample24To16(nn.Module):
    """24 kHz to 16 kHz with a windowed sinc, differentiable: up by 2, low pass, down by 3."""

    def __init__(self, zeros: int = 16) -> None:
        super().__init__()
        reach = 3 * zeros
        n = torch.arange(-reach, reach + 1, dtype=torch.float64)
        kernel = torch.sinc(n / 3) * torch.hann_window(2 * reach + 3, periodic=False, dtype=torch.float64)[1:-1]
        self.register_buffer("kernel", (2 * kernel / kernel.sum()).float()[None, None], persistent=False)
        self.reach = reach

    def forward(self, audio: Tensor) -> Tensor:
        """[n] -> [ceil(2 n / 3)]."""
        doubled = torch.stack([audio, torch.zeros_like(audio)], 1).reshape(1, 1, -1)
        return functional.conv1d(doubled, self.kernel, stride=3, padding=self.reach)[0, 0]


def louder(audio: Tensor) -> Tensor:
    """`preprocess`'s loudness rule, differentiable."""
    gain = 10 ** (LOUDNESS / 20) / audio.square().mean().sqrt().clamp(min=1e-8)
    return audio * gain.clamp(min=1.0)
