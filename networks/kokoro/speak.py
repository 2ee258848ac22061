"""A document spoken chunk by chunk, with the times of its words."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from networks.kokoro.chunks import Chunk, make_chunks, with_words
from networks.kokoro.config import FRAME, SAMPLE_RATE
from networks.kokoro.document import Document
from networks.kokoro.g2p import Phonemizer, Word
from networks.kokoro.speech import Speech
from networks.kokoro.voices import style_row
from shared_utils.subtitles import TimedText

# Steps of 25 ms by which the sound of a phoneme begins before its duration says. Measured at 46 pauses in 20 English clips of
# two voices: with 2 the difference is -3 ms on average, with a standard deviation of 23 ms.
LEAD = 2


class Engine(Protocol):
    """What speaks: `TorchKokoro` or `OnnxKokoro`."""

    name: str
    vocab: dict[str, int]
    max_phonemes: int

    def tokens(self, phonemes: str) -> list[int]: ...

    def synthesize(self, tokens: list[int], style: np.ndarray, speed: float = 1.0) -> Speech: ...

    def seed(self, seed: int) -> None: ...


@dataclasses.dataclass
class Pauses:
    """Seconds of silence between paragraphs, and around headings."""

    paragraph: float = 0.0
    chapter: float = 0.0


def chunks_of(
    document: Document, phonemizer: Phonemizer, limit: int, pattern: re.Pattern | None, pauses: Pauses
) -> Iterator[Chunk]:
    """The chunks of a document in order, as they are needed. Chunks without any phoneme come as well, for the record."""
    was_heading = False
    for number, paragraph in enumerate(document.paragraphs(pattern)):
        pause = pauses.chapter if paragraph.heading or was_heading else pauses.paragraph
        was_heading = paragraph.heading
        for chunk in make_chunks(document.text, paragraph, number, document.pronunciations, phonemizer, limit):
            chunk.pause, pause = (pause if number else 0.0), 0.0
            yield chunk


def synthesize_chunk(engine: Engine, chunk: Chunk, voice: np.ndarray, speed: float) -> Speech:
    """The sound of one chunk; nothing for one without phonemes."""
    tokens = engine.tokens(chunk.phonemes)
    if not tokens:
        return Speech(np.zeros(0, np.float32), np.zeros(0, np.int64))
    return engine.synthesize(tokens, style_row(voice, len(tokens)), speed)


def timed_words(chunk: Chunk, speech: Speech, offset: float) -> list[list[TimedText]]:
    """Words with their times in seconds, sentence by sentence; `offset` is where the chunk's sound begins.

    Marks go with the word they stand at. Without durations the chunk is one stretch.
    """
    if speech.frames is None or not len(speech.frames):
        end = offset + len(speech.audio) / SAMPLE_RATE
        text = "".join(w.text + (" " if w.space else "") for w in chunk.words).strip()
        return [[TimedText(offset, end, text)]]
    # Token 0 is the padding in front.
    steps = np.maximum(0, np.concatenate([[0], np.cumsum(speech.frames)]) - LEAD)
    borders = offset + steps * (FRAME / SAMPLE_RATE)
    position = 1
    times: dict[int, tuple[float, float]] = {}
    for symbols, word in with_words(chunk.words):
        if word is not None:
            times[id(word)] = (float(borders[position]), float(borders[position + len(symbols)]))
        position += len(symbols)
    now = float(borders[1])
    sentences = []
    for piece in chunk.pieces:
        parts: list[TimedText] = []
        before = ""
        for word in piece.words:
            start, end = times.get(id(word), (now, now))
            now = end
            if _is_mark(word) and parts and not parts[-1].space:
                parts[-1].text += word.text
                parts[-1].space = word.space
            elif _is_mark(word):
                before += word.text + (" " if word.space else "")
            else:
                parts.append(TimedText(start, end, before + word.text, word.space))
                before = ""
        if before and parts:
            parts[-1].text += " " + before.rstrip()
        if parts:
            sentences.append(parts)
    return sentences


def _is_mark(word: Word) -> bool:
    return not any(c.isalnum() for c in word.text)
