"""Text before it is spoken: cleaned, cut into paragraphs and sentences, and further where a sentence is too long.

All cutting is by position in one string, so that the pieces put together are the text again: nothing gets lost here.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Iterator

from shared_utils.errors import InvalidInputError

# Zero-width and directional marks and the soft hyphen: they make no sound and would split words.
# The joiners U+200C and U+200D stay: Hindi and emoji mean something by them.
_SILENT = dict.fromkeys(
    map(ord, "\u00ad\u200b\u200e\u200f\u2060\ufeff\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
)
_LIGATURES = {
    code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB07)
}  # fi, fl as PDFs have them
_SPOKEN_MARKS = "%‰&@#§％＆＠＃"  # punctuation to Unicode, words to a reader
_BREAKS = {"\r\n": "\n", "\r": "\n", "\x85": "\n", "\u2028": "\n", "\u2029": "\n\n", "\f": "\n\n", "\v": "\n"}

_CLOSING = "\"'”’»)\\]）」』】》〉"
_CJK = r"\u3040-\u30ff\u3400-\u9fff\uff66-\uff9f\u3001-\u301f\uff01-\uff5e"
_SENTENCE_END = re.compile(rf"[。！？｡]+[{_CLOSING}]*|[.!?…।॥]+[{_CLOSING}]*(?=\s|$|[{_CJK}])|[…।॥]+(?=[{_CJK}])")
# A full stop after these does not end a sentence. Also after a single capital letter, and before a small one.
_ABBREVIATIONS = frozenset(
    re.split(
        " ",
        "mr mrs ms dr prof st sr jr vs e.g i.e cf gen col lt capt sgt rev hon gov sen rep mt ft approx dept est sra dra mme"
        " mlle dott ing",
    )
)
_BEFORE_NUMBERS = frozenset(re.split(" ", "no nos vol vols fig figs ch sec p pp pág núm art"))
_LAST_WORD = re.compile(r"([^\W\d_]+(?:\.[^\W\d_]+)*)$")
_CLAUSE_END = re.compile(rf"[,;:—–)\]»”](?=\s)|—|[、，；：）」』】]|[,;:](?=[{_CJK}])")
_SPACE = re.compile(r"\s+")
# In Japanese a phrase usually ends with kana, and the next begins with something else.
_PHRASE_BORDER = re.compile(r"(?<=[\u3040-\u309f])(?=[\u30a0-\u30ff\u3400-\u9fff])")
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*|\n")
_HEADING = re.compile(
    r"(?:chapter|part|book|prologue|epilogue|capítulo|chapitre|capitolo)\b.{0,60}$|第.{1,12}[章回部編編篇卷].{0,40}$",
    re.IGNORECASE,
)
WRAP_WIDTHS = range(50, 121)  # characters: lines of hard-wrapped text


def clean(text: str) -> str:
    """The text in NFC with plain line feeds and letters for ligatures, without marks that make no sound.

    Raises InvalidInputError for bytes that were no text (they reach Python as lone surrogates).
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"the text is not valid UTF-8 (at character {error.start})") from None
    for mark, line_feed in _BREAKS.items():
        text = text.replace(mark, line_feed)
    text = unicodedata.normalize("NFC", text).translate(_SILENT).translate(_LIGATURES)
    return "".join(" " if c != "\n" and unicodedata.category(c) == "Cc" else c for c in text)


def has_sound(text: str) -> bool:
    """Whether there is anything to say: a letter, a digit or a symbol, not only punctuation."""
    return any(unicodedata.category(c)[0] in "LNS" or c in _SPOKEN_MARKS for c in text)


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Part of a text from `start` to `end`, spoken without interruption. `heading`: it opens a chapter."""

    start: int
    end: int
    heading: bool = False


def paragraphs(text: str, pattern: re.Pattern | None = None) -> Iterator[Paragraph]:
    """Paragraphs in order; together they are the text, up to white space around them.

    Without a pattern they end at line feeds, but for those that wrap a line. What a pattern matches stays with the paragraph
    before it, so that it is spoken.
    """
    start = 0
    borders = _line_borders(text) if pattern is None else (match.end() for match in pattern.finditer(text))
    for border in (*borders, len(text)):
        low, high = _stripped(text, start, border)
        start = max(start, border)
        if low < high:
            yield Paragraph(low, high, _HEADING.match(text, low, high) is not None)


def _line_borders(text: str) -> Iterator[int]:
    """Ends of paragraphs: blank lines, and ends of lines that were not broken to fit a width."""
    block = 0
    ends: list[re.Match] = []
    for match in _PARAGRAPH.finditer(text):
        if match[0].count("\n") > 1:
            yield from _unwrapped(text, block, match.start(), ends)
            yield match.end()
            block, ends = match.end(), []
        else:
            ends.append(match)
    yield from _unwrapped(text, block, len(text), ends)


def _unwrapped(text: str, start: int, end: int, line_feeds: list[re.Match]) -> Iterator[int]:
    """The line feeds of one block that do end a paragraph.

    A line was wrapped where the first word of the next one would not have fitted into the width of the block.
    """
    starts = [start, *(m.end() for m in line_feeds)]
    ends = [*(m.start() for m in line_feeds), end]
    width = max((b - a for a, b in zip(starts, ends, strict=True)), default=0)
    for i, feed in enumerate(line_feeds):
        following = text[starts[i + 1] : ends[i + 1]].split(maxsplit=1)
        if width in WRAP_WIDTHS and following and not _HEADING.match(text, starts[i], ends[i]):
            length = len(text[starts[i] : ends[i]].rstrip())
            if length + 1 + len(following[0]) > width:
                continue
        yield feed.end()


def sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Sentences of `text[start:end]` as positions, without the white space between them."""
    begin = start
    for match in _SENTENCE_END.finditer(text, start, end):
        if match.start() < begin or _goes_on(text, begin, match, end):
            continue
        low, high = _stripped(text, begin, match.end())
        begin = match.end()
        if low < high:
            yield low, high
    low, high = _stripped(text, begin, end)
    if low < high:
        yield low, high


def _goes_on(text: str, begin: int, match: re.Match, end: int) -> bool:
    """Whether the sentence goes on behind the mark: with a small letter, or because of an abbreviation."""
    after = text[match.end() : min(end, match.end() + 16)].lstrip()
    if after[:1].islower():
        return True
    word = _LAST_WORD.search(text, max(begin, match.start() - 24), match.start())
    if match[0] != "." or word is None or not after:
        return False
    if word[1].lower() in _BEFORE_NUMBERS:
        return after[0].isdigit()
    return word[1].lower() in _ABBREVIATIONS or (len(word[1]) == 1 and word[1].isupper() and word[1] != "I")


def cut(text: str, start: int, end: int, kept: list[tuple[int, int]], words: list[int] | None = None) -> int:
    """Where to cut `text[start:end]` in two: behind a clause, else between words, else anywhere; near the middle.

    `words`: positions between words, for languages that write no spaces. Not inside the stretches of `kept`, unless they
    fill the whole; never inside a character with its accents.
    """
    middle = (start + end) / 2
    length = end - start

    def allowed(position: int, margin: float) -> bool:
        low, high = start + max(1, margin * length), end - max(1, margin * length)
        return low <= position <= high and not any(a < position < b for a, b in kept) and not _joined(text, position)

    def nearest(positions: list[int]) -> int:
        return min(positions, key=lambda p: (abs(p - middle), p))

    window = text[start:end]
    clauses = [start + m.end() for m in _CLAUSE_END.finditer(window)]
    spaces = [start + m.end() for m in _SPACE.finditer(window)]
    phrases = words or [start + m.end() for m in _PHRASE_BORDER.finditer(window)]
    for positions, margin in ((clauses, 0.2), (spaces, 0.1), (phrases, 0.1), (spaces, 0.0)):
        if found := [p for p in positions if allowed(p, margin)]:
            return nearest(found)
    if found := [p for p in range(start + 1, end) if allowed(p, 0.0)]:
        return nearest(found)
    borders = [p for p in range(start + 1, end) if not _joined(text, p)]
    return nearest(borders or [(start + end) // 2])


def _joined(text: str, position: int) -> bool:
    """Whether the character at `position` belongs to the one before: an accent, a joiner, a variation selector."""
    return unicodedata.category(text[position])[0] == "M" or "\u200d" in text[position - 1 : position + 1]


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
