"""From a text to the chunks that are synthesised one by one: whole sentences as long as they fit, nothing left out."""

import bisect
import dataclasses
from collections.abc import Iterator

from networks.kokoro.g2p import Phonemizer, Word
from networks.kokoro.lexicon import Pronunciation
from networks.kokoro.text import Paragraph, cut, sentences

# "Goldilocks range of 100-200 tokens"; below 20 voices get weak, above 400 they rush (VOICES.md of hexgrad/Kokoro-82M).
GOOD = 200
LONG = 400
# Few, for the language; 0.9 for those not listed.
PHONEMES_PER_CHARACTER = {"j": 1.7, "z": 3.0}


@dataclasses.dataclass
class Piece:
    """A sentence or a part of one: `text[start:end]` and its words."""

    start: int
    end: int
    words: list[Word]

    @property
    def length(self) -> int:
        return len(spoken(self.words))


@dataclasses.dataclass
class Chunk:
    """What is synthesised in one go, of one paragraph. `pause` seconds of silence come before it."""

    start: int
    end: int
    pieces: list[Piece]
    paragraph: int
    pause: float = 0.0

    @property
    def words(self) -> list[Word]:
        return [word for piece in self.pieces for word in piece.words]

    @property
    def phonemes(self) -> str:
        return spoken(self.words)


def spoken(words: list[Word]) -> str:
    """The phonemes of words put together, with single spaces."""
    return "".join(symbols for symbols, _ in with_words(words))


def with_words(words: list[Word]) -> list[tuple[str, Word | None]]:
    """Runs of phonemes with the word they belong to; spaces belong to none. No space comes first, last or twice."""
    runs: list[tuple[str, Word | None]] = []
    space = False
    for word in words:
        phonemes = " ".join(word.phonemes.split())
        if not phonemes:
            space = space or word.space or bool(word.phonemes)
            continue
        if runs and (space or word.phonemes[0].isspace()):
            runs.append((" ", None))
        runs.append((phonemes, word))
        space = word.space or word.phonemes[-1].isspace()
    return runs


def make_chunks(
    text: str,
    paragraph: Paragraph,
    number: int,
    pronunciations: list[Pronunciation],
    phonemizer: Phonemizer,
    limit: int,
) -> Iterator[Chunk]:
    """Chunks of a paragraph, in order; together they are its text. None is longer than `limit` phonemes."""
    waiting: list[Piece] = []
    inside = within(pronunciations, paragraph.start, paragraph.end)
    for start, end in _sentences(text, paragraph, inside):
        for piece in fit(text, start, end, inside, phonemizer, limit):
            if waiting and spoken_length(waiting) + 1 + piece.length > min(GOOD, limit):
                yield _chunk(waiting, number)
                waiting = []
            waiting.append(piece)
    if waiting:
        yield _chunk(waiting, number)


def within(pronunciations: list[Pronunciation], start: int, end: int) -> list[Pronunciation]:
    """Those that lie wholly in a stretch; they come in order and do not overlap."""
    low = bisect.bisect_left(pronunciations, start, key=lambda p: p.start)
    high = bisect.bisect_right(pronunciations, end, key=lambda p: p.end)
    return pronunciations[low:high]


def _sentences(text: str, paragraph: Paragraph, kept: list[Pronunciation]) -> Iterator[tuple[int, int]]:
    """Sentences, joined again where the border lies inside a word with a given pronunciation."""
    begin = None
    for start, end in sentences(text, paragraph.start, paragraph.end):
        begin = start if begin is None else begin
        if not any(p.start < end < p.end for p in kept):
            yield begin, end
            begin = None
    if begin is not None:
        yield begin, paragraph.end


def spoken_length(pieces: list[Piece]) -> int:
    return len(spoken([word for piece in pieces for word in piece.words]))


def _chunk(pieces: list[Piece], paragraph: int) -> Chunk:
    # The white space between sentences separates their words.
    for piece in pieces[:-1]:
        if piece.words:
            piece.words[-1].space = True
    return Chunk(pieces[0].start, pieces[-1].end, pieces, paragraph)


def fit(
    text: str, start: int, end: int, pronunciations: list[Pronunciation], phonemizer: Phonemizer, limit: int
) -> list[Piece]:
    """`text[start:end]` as pieces that are short enough to be spoken well, at worst to be spoken at all."""
    good = min(LONG, limit)
    inside = within(pronunciations, start, end)
    # What is far too long need not be tried: front ends take their time for it.
    if (end - start) * PHONEMES_PER_CHARACTER.get(phonemizer.language, 0.9) <= good:
        # Only what ends up being spoken goes into the report.
        before = phonemizer.unspoken.copy()
        words = phonemizer.words(text[start:end], inside, offset=start)
        piece = Piece(start, end, words)
        if piece.length <= good:
            return [piece]
        if end - start == 1 or (len(inside) == 1 and (inside[0].start, inside[0].end) == (start, end)):
            return _cut_phonemes(piece, limit)
        phonemizer.unspoken = before
    kept = [(p.start, p.end) for p in inside]
    middle = cut(text, start, end, kept, [start + position for position in phonemizer.borders(text[start:end])])
    pieces = []
    for low, high in ((start, middle), (middle, end)):
        pieces += fit(text, low, high, inside, phonemizer, limit) if low < high else []
    return pieces


def _cut_phonemes(piece: Piece, limit: int) -> list[Piece]:
    """A single character or a given pronunciation with more phonemes than fit: they are divided among several pieces."""
    phonemes = spoken(piece.words)
    text = piece.words[0].text if piece.words else ""
    parts = [phonemes[i : i + limit] for i in range(0, len(phonemes), limit)]
    return [Piece(piece.start, piece.end, [Word(text if i == 0 else "", part, False)]) for i, part in enumerate(parts)]
