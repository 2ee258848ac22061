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
from networks.resemblyzer import Resample24To16, SpeakerEncoder, louder, preprocess
from shared_utils.errors import InvalidInputError

LEARNING_RATE = 0.08  # Adam's step, in spreads of real voices
CLIP = 1.0  # length of a gradient
REFRESH = 5  # steps for which phoneme durations are held
SELF_WEIGHT = 0.15  # of the likeness between texts, beside that to the target
PRIOR_WEIGHT = 0.002  # of the offset's mean square: stay among real voices
MIN_SPREAD = 1e-4  # where real voices hardly differ
# The known tool's score: harmonic mean with these weights; a candidate is dropped below 0.98 of the best target similarity.
WALK_WEIGHTS = {"target": 0.48, "self": 0.50, "feature": 0.02}
EARLY_REJECTION = 0.98
WALK_STEP = (0.01, 0.15)  # spreads


@dataclasses.dataclass
class Sentence:
    """A text ready to be spoken: token numbers and what depends on the text alone."""

    text: str
    tokens: list[int]
    features: TextFeatures


class VoiceSearch:
    """What both methods share: synthesis from a style row, similarity to the target, the table of a result."""

    def __init__(
        self, model: TorchKokoro, encoder: SpeakerEncoder, target: np.ndarray, start: np.ndarray, spread: np.ndarray
    ):
        """`target` [256] embedding; `start` [510, 1, 256]; `spread` [256] of real voices."""
        for parameter in model.kmodel.parameters():
            parameter.requires_grad_(False)
        self.model, self.encoder = model, encoder
        self.target = torch.from_numpy(np.asarray(target, np.float32))
        self.start = np.asarray(start, np.float32)
        self.spread = torch.from_numpy(np.maximum(np.asarray(spread, np.float32), MIN_SPREAD))
        self.resample = Resample24To16()
        self.evaluations = 0

    def sentence(self, text: str, phonemes: str) -> Sentence:
        """Run the text encoders once."""
        tokens = self.model.tokens(phonemes)[: self.model.max_phonemes]
        with torch.no_grad():
            return Sentence(text, tokens, self.model.encode_text(tokens))

    def voice(self, offset: Tensor) -> np.ndarray:
        """The table with an offset [256] (spreads) on every row, float32 [510, 1, 256]."""
        return (self.start + (offset.detach() * self.spread).numpy()).astype(np.float32)

    def row(self, offset: Tensor, sentence: Sentence) -> Tensor:
        """The style row [1, 256] a sentence is spoken with."""
        return torch.from_numpy(style_row(self.start, len(sentence.tokens))) + offset * self.spread

    def audio(self, row: Tensor, sentence: Sentence, seed: int, frames: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sound [n] at 24 kHz and the durations used. Differentiable in `row` where gradients are on."""
        torch.manual_seed(seed)
        self.evaluations += 1
        fresh, features = self.model.durations(sentence.features, row)
        frames = fresh if frames is None else frames
        return self.model.decode(sentence.features, features, frames, row).float(), frames

    def embed(self, audio: Tensor) -> Tensor:
        """The embedding the package would give, for judging; no gradient. Sound without speech is like nobody (zeros)."""
        try:
            ready = preprocess(audio.detach().cpu().numpy(), SAMPLE_RATE)
        except InvalidInputError:
            return torch.zeros(256)
        with torch.inference_mode():
            return self.encoder.embed(torch.from_numpy(ready))

    def judge(self, row: Tensor, sentence: Sentence, seed: int) -> tuple[float, Tensor, Tensor]:
        """Similarity to the target (-1..1), the embedding and the sound of a row on a sentence."""
        with torch.inference_mode():
            audio, _ = self.audio(row.detach(), sentence, seed)
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


def gradient_steps(search: VoiceSearch, sentences: list[Sentence], state: GradientState, seed: int) -> Iterator[float]:
    """Endless steps of Adam on the offset; yields the similarity to the target after each, with `state` up to date.

    Sentences take turns, so that one synthesis a step serves the target and, through the embedding of the step before, the
    likeness between texts. Durations are held for `REFRESH` rounds; the excitation's noise follows from seed and step.
    """
    frames: dict[int, tuple[int, Tensor]] = {}
    while True:
        which = state.step % len(sentences)
        sentence = sentences[which]
        period = state.step // (REFRESH * len(sentences))
        offset = state.offset.clone().requires_grad_(True)
        row = search.row(offset, sentence)
        if which not in frames or frames[which][0] != period:
            # From the offset at the start of the period, so that a resumed run holds the same durations.
            with torch.inference_mode():
                settled, _ = search.model.durations(sentence.features, row.detach())
            frames[which] = (period, settled.clone())
        audio, _ = search.audio(row, sentence, seed + state.step, frames[which][1])
        embedding = search.encoder.embed(louder(search.resample(audio)))
        likeness = embedding @ search.target
        loss = -likeness - SELF_WEIGHT * (embedding @ state.last) + PRIOR_WEIGHT * offset.square().mean()
        (gradient,) = torch.autograd.grad(loss, offset)
        state.step += 1
        _adam(state, gradient)
        state.last = embedding.detach()
        yield float(likeness)


def _adam(state: GradientState, gradient: Tensor) -> None:
    """Kingma and Ba's update (2015) with the customary 0.9 and 0.999, the gradient no longer than `CLIP`."""
    gradient = torch.nan_to_num(gradient)
    gradient = gradient * min(1.0, CLIP / max(float(gradient.norm()), 1e-12))
    state.first = 0.9 * state.first + 0.1 * gradient
    state.second = 0.999 * state.second + 0.001 * gradient.square()
    mean = state.first / (1 - 0.9**state.step)
    scale = (state.second / (1 - 0.999**state.step)).sqrt() + 1e-8
    state.offset = state.offset - LEARNING_RATE * mean / scale


@dataclasses.dataclass
class WalkState:
    """`table` [256], or [510, 256] with `per_row`: the best offset so far, in spreads."""

    step: int
    table: Tensor
    best: float
    best_target: float

    def tensors(self) -> dict[str, np.ndarray]:
        return {
            "step": np.array([self.step]),
            "table": self.table.numpy(),
            "best": np.array([self.best, self.best_target]),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray]) -> "WalkState":
        best, target = (float(v) for v in tensors["best"])
        return cls(int(tensors["step"][0]), torch.from_numpy(np.array(tensors["table"], np.float32)), best, target)


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
        score = walk_score(search, state.table, first, second, target_features, seed, -1.0)
        state.best, state.best_target = score or (0.0, -1.0)
    while True:
        rng = torch.Generator().manual_seed(seed * 1_000_003 + state.step)
        low, high = WALK_STEP
        size = low + (high - low) * float(torch.rand((), generator=rng))
        shape = (rows, 256) if per_row else (256,)
        candidate = state.table + size * torch.randn(shape, generator=rng)
        found = walk_score(
            search, candidate, first, second, target_features, seed + state.step, EARLY_REJECTION * state.best_target
        )
        state.step += 1
        if found is not None and found[0] > state.best:
            state.table, (state.best, state.best_target) = candidate, found
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
    """The known tool's score (0..100) and the target similarity, or None below `least`."""

    def offset(sentence: Sentence) -> Tensor:
        return table if table.dim() == 1 else table[min(len(sentence.tokens), len(table)) - 1]

    similarity, embedding, audio = search.judge(search.row(offset(first), first), first, seed)
    if similarity < least:
        return None
    _, other, _ = search.judge(search.row(offset(second), second), second, seed)
    likeness = feature_similarity(speech_features(audio.numpy(), SAMPLE_RATE), target_features)
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
    search: VoiceSearch, voices: dict[str, np.ndarray], sentence: Sentence, seed: int, progress: Callable[[str], None]
) -> list[tuple[float, str]]:
    """Similarity of every voice to the target on one sentence, best first."""
    found = []
    for name, voice in sorted(voices.items()):
        row = torch.from_numpy(style_row(voice, len(sentence.tokens)))
        found.append((search.judge(row, sentence, seed)[0], name))
        progress(name)
    return sorted(found, key=lambda pair: (-pair[0], pair[1]))


def adjacent_jump(voice: np.ndarray) -> float:
    """Mean step between neighbouring rows over their mean length: near 0 for stock voices, about 1 for noise."""
    rows = voice[:, 0].astype(np.float64)
    return float(np.linalg.norm(np.diff(rows, axis=0), axis=1).mean() / np.linalg.norm(rows, axis=1).mean())
