"""Searching a Kokoro voice that sounds like a recording: by gradient, or by the known random walk.

A voice is a table [510, 1, 256] of which a text of n phonemes uses row n. Moving rows independently would learn noise, so one
offset [256], in units of the spread of real voices, is added to all rows (the walk can be told otherwise).
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from networks.kokoro.config import SAMPLE_RATE
from networks.kokoro.model import TextFeatures, TorchKokoro
from networks.kokoro.voices import style_row
from networks.resemblyzer import RATE, Resample24To16, SpeakerEncoder, louder, preprocess
from shared_utils.errors import InvalidInputError

LEARNING_RATE = 0.08  # Adam's step, in spreads of real voices
FIRST_DECAY, SECOND_DECAY = 0.9, 0.99  # Adam's memories: the second is short, for a search takes some hundred steps
WINDOW = 1.75  # seconds of sound that a gradient goes through; the encoder hears pieces of 1.6
FRAMES_A_SECOND = 40  # of the durations, 25 ms each
SELF_WEIGHT = 0.15  # of the likeness between texts, beside that to the target
PRIOR_WEIGHT = 0.002  # of the offset's mean square: stay among real voices
MIN_SPREAD = 1e-4  # where real voices hardly differ
# The known tool's score: harmonic mean with these weights; a candidate is dropped below 0.98 of the best target similarity.
WALK_WEIGHTS = {"target": 0.48, "self": 0.50, "feature": 0.02}
EARLY_REJECTION = 0.98
WALK_STEP = (0.01, 0.15)  # spreads


@dataclasses.dataclass
class Sentence:
    """A text ready to be spoken: phonemes, their numbers, and what depends on the text alone."""

    phonemes: str
    tokens: list[int]
    features: TextFeatures


class VoiceSearch:
    """What both methods share: synthesis from a style row, similarity to the target, the table of a result."""

    def __init__(
        self, model: TorchKokoro, encoder: SpeakerEncoder, target: np.ndarray, start: np.ndarray, spread: np.ndarray
    ):
        """`target` [256] embedding; `start` [510, 1, 256]; `spread` [256] of real voices."""
        self.model, self.encoder = model, encoder.to(model.device)
        self.target = torch.from_numpy(np.asarray(target, np.float32))
        self.start = np.asarray(start, np.float32)
        self.spread = torch.from_numpy(np.maximum(np.asarray(spread, np.float32), MIN_SPREAD))
        self.resample = Resample24To16().to(model.device)
        self.evaluations = 0

    def sentence(self, phonemes: str) -> Sentence:
        """Run the text encoders once. Raises InvalidInputError where no phoneme is one the model knows."""
        tokens = self.model.tokens(phonemes)[: self.model.max_phonemes]
        with torch.no_grad():
            return Sentence(phonemes, tokens, self.model.encode_text(tokens))

    def voice(self, offset: Tensor) -> np.ndarray:
        """The table with an offset in spreads, [256] for all rows or [510, 256]; float32 [510, 1, 256]."""
        moved = (offset.detach() * self.spread).numpy().reshape(-1, 1, 256)
        return (self.start + moved).astype(np.float32)

    def row(self, offset: Tensor, sentence: Sentence) -> Tensor:
        """The style row [1, 256] a sentence is spoken with."""
        return torch.from_numpy(style_row(self.start, len(sentence.tokens))) + offset * self.spread

    def audio(self, row: Tensor, sentence: Sentence, seed: int) -> Tensor:
        """Sound [n] at 24 kHz, on the model's device."""
        torch.manual_seed(seed)
        self.evaluations += 1
        row = row.to(self.model.device)
        frames, features = self.model.durations(sentence.features, row)
        return self.model.decode(sentence.features, features, frames, row).float()

    def heard(self, row: Tensor, sentence: Sentence, seed: int, seconds: float) -> Tensor:
        """Embedding [256] of a stretch of about `seconds` of a sentence, at a place that follows from the seed.

        Differentiable in `row`. Durations are whole steps, through which no gradient goes: they are taken as they are. A word
        knows its neighbours outside the stretch by the text encoders and the prosody; only the decoder does not see these.
        """
        torch.manual_seed(seed)
        self.evaluations += 1
        row = row.to(self.model.device)
        # cuDNN has no backward pass for LSTMs that are not in training mode.
        with torch.backends.cudnn.flags(enabled=False):
            frames, features = self.model.durations(sentence.features, row)
            frames = stretch(frames, int(seconds * FRAMES_A_SECOND), seed)
            audio = self.model.decode(sentence.features, features, frames, row).float()
            return self.encoder.embed(louder(self.resample(audio))).cpu()

    def embed(self, audio: Tensor) -> Tensor:
        """The embedding the package would give, for judging; no gradient. Sound without speech is like nobody (zeros)."""
        try:
            ready = preprocess(audio.detach().cpu().numpy(), SAMPLE_RATE)
        except InvalidInputError:
            return torch.zeros(256)
        with torch.inference_mode():
            return self.encoder.embed(torch.from_numpy(ready).to(self.model.device)).cpu()

    def judge(self, row: Tensor, sentence: Sentence, seed: int) -> tuple[float, Tensor, Tensor]:
        """Similarity to the target (-1..1), the embedding and the sound of a row on a sentence."""
        with torch.inference_mode():
            audio = self.audio(row.detach(), sentence, seed).cpu()
        embedding = self.embed(audio)
        return float(embedding @ self.target), embedding, audio


@dataclasses.dataclass
class GradientState:
    """Everything a resumed search needs: the same state gives the same next step."""

    step: int
    offset: Tensor
    first: Tensor
    second: Tensor
    last: Tensor  # embedding of the latest sound, zeros before the first step

    @classmethod
    def new(cls) -> "GradientState":
        zero = torch.zeros(256)
        return cls(0, zero.clone(), zero.clone(), zero.clone(), zero.clone())

    def tensors(self) -> dict[str, np.ndarray]:
        return {"step": np.array([self.step])} | {
            n: getattr(self, n).detach().numpy() for n in ("offset", "first", "second", "last")
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray]) -> "GradientState":
        rest = {n: torch.from_numpy(np.array(tensors[n], np.float32)) for n in ("offset", "first", "second", "last")}
        return cls(int(tensors["step"][0]), **rest)


def stretch(frames: Tensor, length: int, seed: int) -> Tensor:
    """`frames` [n] with all tokens silenced (0 steps) but those in a stretch of about `length` steps, drawn by the seed."""
    end = frames.cumsum(0)
    total = int(end[-1])
    if total <= length:
        return frames
    first = int(torch.randint(0, total - length + 1, (), generator=torch.Generator().manual_seed(seed)))
    middle = end - frames / 2
    kept = torch.where((middle >= first) & (middle < first + length), frames, 0)
    return kept if int(kept.sum()) else frames


def gradient_steps(
    search: VoiceSearch, sentences: list[Sentence], state: GradientState, seed: int, window: float = WINDOW
) -> Iterator[float]:
    """Endless steps of Adam on the offset; yields the similarity to the target after each, with `state` up to date.

    Sentences take turns, so that one synthesis a step serves the target and, through the embedding of the step before, the
    likeness between texts. Everything random follows from seed and step.
    """
    while True:
        sentence = sentences[state.step % len(sentences)]
        offset = state.offset.clone().requires_grad_(True)
        embedding = search.heard(search.row(offset, sentence), sentence, noise_seed(seed, state.step), window)
        likeness = embedding @ search.target
        loss = -likeness - SELF_WEIGHT * (embedding @ state.last) + PRIOR_WEIGHT * offset.square().mean()
        with torch.backends.cudnn.flags(enabled=False):
            (gradient,) = torch.autograd.grad(loss, offset)
        state.step += 1
        _adam(state, torch.nan_to_num(gradient))
        state.last = embedding.detach()
        yield float(likeness.detach())


def noise_seed(seed: int, step: int) -> int:
    """A seed of its own for every step of every search."""
    return seed * 1_000_003 + step


def _adam(state: GradientState, gradient: Tensor) -> None:
    """Kingma and Ba's update (2015)."""
    state.first = FIRST_DECAY * state.first + (1 - FIRST_DECAY) * gradient
    state.second = SECOND_DECAY * state.second + (1 - SECOND_DECAY) * gradient.square()
    mean = state.first / (1 - FIRST_DECAY**state.step)
    scale = (state.second / (1 - SECOND_DECAY**state.step)).sqrt() + 1e-8
    state.offset = state.offset - LEARNING_RATE * mean / scale


@dataclasses.dataclass
class WalkState:
    """`offset` [256], or [510, 256] with `per_row`: the best so far, in spreads."""

    step: int
    offset: Tensor
    best: float
    best_target: float

    def tensors(self) -> dict[str, np.ndarray]:
        return {
            "step": np.array([self.step]),
            "offset": self.offset.numpy(),
            "best": np.array([self.best, self.best_target]),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray]) -> "WalkState":
        best, target = (float(v) for v in tensors["best"])
        return cls(int(tensors["step"][0]), torch.from_numpy(np.array(tensors["offset"], np.float32)), best, target)


def walk_steps(
    search: VoiceSearch,
    first: Sentence,
    second: Sentence,
    target_features: np.ndarray,
    state: WalkState,
    seed: int,
    per_row: bool,
) -> Iterator[float]:
    """Endless steps of the random walk; yields the best score (0..100) after each, with `state` up to date.

    A step is normal in the spread of real voices, its size uniform in `WALK_STEP`. A candidate whose similarity on the first
    sentence falls below 0.98 of the best is dropped before the second sentence is spoken.
    """
    rows = len(search.start)
    if state.step == 0 and state.best < 0:
        score = walk_score(search, state.offset, first, second, target_features, noise_seed(seed, 0), -1.0)
        state.best, state.best_target = score or (0.0, -1.0)
    while True:
        rng = torch.Generator().manual_seed(noise_seed(seed, state.step))
        low, high = WALK_STEP
        size = low + (high - low) * float(torch.rand((), generator=rng))
        shape = (rows, 256) if per_row else (256,)
        candidate = state.offset + size * torch.randn(shape, generator=rng)
        found = walk_score(
            search,
            candidate,
            first,
            second,
            target_features,
            noise_seed(seed, state.step),
            EARLY_REJECTION * state.best_target,
        )
        state.step += 1
        if found is not None and found[0] > state.best:
            state.offset, (state.best, state.best_target) = candidate, found
        yield state.best


def walk_score(
    search: VoiceSearch,
    table: Tensor,
    first: Sentence,
    second: Sentence,
    target_features: np.ndarray,
    seed: int,
    least: float,
) -> tuple[float, float] | None:
    """The known tool's score (0..100) and the target similarity, or None below `least`. `table` as `WalkState.offset`."""

    def offset(sentence: Sentence) -> Tensor:
        return table if table.dim() == 1 else table[min(len(sentence.tokens), len(table)) - 1]

    similarity, embedding, audio = search.judge(search.row(offset(first), first), first, seed)
    if similarity < least:
        return None
    _, other, _ = search.judge(search.row(offset(second), second), second, seed)
    # The target is known at the encoder's rate, and brightness depends on it.
    with torch.inference_mode():
        lowered = search.resample(audio.to(search.model.device)).cpu().numpy()
    likeness = feature_similarity(speech_features(lowered, RATE), target_features)
    return 100 * harmonic_mean(
        {"target": similarity, "self": float(embedding @ other), "feature": likeness}
    ), similarity


def harmonic_mean(values: dict[str, float]) -> float:
    """Weighted harmonic mean with `WALK_WEIGHTS`; 0 when a value is not positive."""
    if min(values.values()) <= 0:
        return 0.0
    return sum(WALK_WEIGHTS.values()) / sum(WALK_WEIGHTS[name] / value for name, value in values.items())


def speech_features(audio: np.ndarray, rate: int) -> np.ndarray:
    """Loudness, brightness and their movement, of frames of 43 ms: 8 numbers (dB, octaves, and ratios)."""
    size = int(rate * 0.043)
    count = max(1, len(audio) // size)
    frames = np.resize(audio, count * size).reshape(count, size) * np.hanning(size)
    power = np.abs(np.fft.rfft(frames)) ** 2 + 1e-10
    frequency = np.fft.rfftfreq(size, 1 / rate)
    level = 10 * np.log10(power.sum(1))
    loud = level > level.max() - 40
    share = power[loud] / power[loud].sum(1, keepdims=True)
    centre = np.log2((share @ frequency) + 1)
    width = np.log2(np.sqrt((share * (frequency - (2 ** centre[:, None] - 1)) ** 2).sum(1)) + 1)
    flatness = np.log10(np.exp(np.log(power[loud]).mean(1)) / power[loud].mean(1))
    crossings = (np.diff(np.signbit(frames[loud]), axis=1)).mean(1)
    return np.array(
        [
            level[loud].std() / 10,
            centre.mean(),
            centre.std(),
            width.mean(),
            width.std(),
            flatness.mean(),
            flatness.std(),
            10 * crossings.mean(),
        ]
    )


def feature_similarity(ours: np.ndarray, target: np.ndarray) -> float:
    """1 for equal features, falling to 0 with their mean distance (the features are scaled alike, no one of them divides)."""
    return float(np.exp(-np.abs(ours - target).mean()))


def best_start(
    search: VoiceSearch, voices: dict[str, np.ndarray], sentence: Sentence, seed: int, heard: Callable[[str], bool]
) -> list[tuple[float, str]]:
    """Similarity of every voice to the target on one sentence, best first. `heard(name)` after each says whether to go on."""
    found = []
    for name, voice in sorted(voices.items()):
        row = torch.from_numpy(style_row(voice, len(sentence.tokens)))
        found.append((search.judge(row, sentence, seed)[0], name))
        if not heard(name):
            break
    return sorted(found, key=lambda pair: (-pair[0], pair[1]))


class Best:
    """The best voice so far on a held-out text. `voice` [510, 1, 256]; `looks` since it was found."""

    def __init__(self, search: VoiceSearch, held_out: Sentence, seed: int, saved: dict[str, np.ndarray] | None = None):
        self.search, self.held_out, self.seed = search, held_out, seed
        self.value, self.voice, self.looks = -2.0, search.start, 0
        if saved is not None:
            self.value, self.looks = float(saved["best_value"][0]), int(saved["best_looks"][0])
            self.voice = np.array(saved["best_voice"], np.float32)

    def tensors(self) -> dict[str, np.ndarray]:
        return {
            "best_value": np.array([self.value]),
            "best_looks": np.array([self.looks]),
            "best_voice": self.voice,
        }

    def look(self, voice: np.ndarray) -> tuple[float, Tensor | None]:
        """Judge a voice and keep it when it is the best, whose sound is returned beside the similarity.

        The noise is the same for all, so that a lucky one does not win.
        """
        row = torch.from_numpy(style_row(voice, len(self.held_out.tokens)))
        value, _, audio = self.search.judge(row, self.held_out, self.seed)
        self.looks += 1
        if value <= self.value:
            return value, None
        self.value, self.voice, self.looks = value, voice, 0
        return value, audio


def cut_phonemes(phonemes: str, limit: int) -> str:
    """The first `limit` symbols at most, whole words where there are spaces."""
    if len(phonemes) <= limit:
        return phonemes
    space = phonemes.rfind(" ", 0, limit + 1)
    return phonemes[: space if space > 0 else limit]


def calibration(phonemes: list[str], limit: int, count: int = 3) -> list[str]:
    """Of sentences' phonemes up to `count` short ones, as near to `limit` symbols as there are: enough to hear a voice by."""
    short = dict.fromkeys(cut_phonemes(text, limit) for text in phonemes if text.strip())
    return sorted(short, key=lambda text: (-len(text), text))[:count]


def adjacent_jump(voice: np.ndarray) -> float:
    """Mean step between neighbouring rows over their mean length: near 0 for stock voices, about 1 for noise."""
    rows = voice[:, 0].astype(np.float64)
    return float(np.linalg.norm(np.diff(rows, axis=0), axis=1).mean() / np.linalg.norm(rows, axis=1).mean())
