"""Pronunciations the user gives: inline as `[word](/phonemes/)`, or in a lexicon file."""

import dataclasses
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

from shared_utils.errors import InvalidInputError, MissingInputError

_INLINE = re.compile(r"\[([^\[\]\n]+)\]\(/([^()\n]+?)/\)")
_LINE = re.compile(r"\s*(?P<word>\S(?:.*?\S)?)\s*(?:\t|=|,|\s)\s*/(?P<phonemes>[^/]+)/\s*")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")


@dataclasses.dataclass(frozen=True)
class Pronunciation:
    """The stretch of a text that is spoken with given phonemes."""

    start: int
    end: int
    phonemes: str


def unknown_symbols(phonemes: str, vocab: dict[str, int]) -> str:
    """Symbols of `phonemes` that the model does not know, each once."""
    return "".join(sorted({symbol for symbol in phonemes if symbol not in vocab}))


def take_inline(text: str, vocab: dict[str, int], warn: Callable[[str], None]) -> tuple[str, list[Pronunciation]]:
    """The text without the markup of `[word](/phonemes/)`, and the pronunciations it gave.

    What looks like one and has symbols that Kokoro does not know, such as a link to a path, stays text; `warn` hears of it.
    """
    plain, found, last = "", [], 0
    for match in _INLINE.finditer(text):
        if unknown := unknown_symbols(match[2], vocab):
            warn(f"{match[0]}: {' '.join(unknown)} is no phoneme of Kokoro's; read as text")
            continue
        plain += text[last : match.start()]
        found.append(Pronunciation(len(plain), len(plain) + len(match[1]), match[2].strip()))
        plain += match[1]
        last = match.end()
    return plain + text[last:], found


class Lexicon:
    """Words with their phonemes. A word in small letters stands for any case, one with capitals for itself alone."""

    def __init__(self, entries: dict[str, str]):
        self.entries = entries
        words = sorted(entries, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(_bounded, words)), re.IGNORECASE) if words else None

    @classmethod
    def read(cls, path: Path, vocab: dict[str, int]) -> "Lexicon":
        """Read a JSON object {word: phonemes}, or lines `word /phonemes/` (also with =, a comma or a tab; # begins a remark).

        Raises MissingInputError, or InvalidInputError naming the line.
        """
        try:
            content = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise MissingInputError(f"--lexicon {path}: no such file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"--lexicon {path}: cannot be read as UTF-8 text ({error})") from None
        if content.lstrip().startswith("{"):
            rows = [(f"{path}: {word!r}", word, phonemes) for word, phonemes in _read_json(content, path).items()]
        else:
            rows = list(_read_lines(content, path))
        entries: dict[str, str] = {}
        for where, given, phonemes in rows:
            word = unicodedata.normalize("NFC", given)  # as the text is
            if unknown := unknown_symbols(phonemes, vocab):
                raise InvalidInputError(f"--lexicon {where}: {' '.join(unknown)} is no phoneme of Kokoro's")
            if word in entries:
                raise InvalidInputError(f"--lexicon {where}: {word!r} is given twice")
            entries[word] = phonemes
        return cls(entries)

    def find(self, text: str, taken: list[Pronunciation]) -> list[Pronunciation]:
        """Pronunciations for the words of `text`, with those of `taken`, which come first, in order."""
        found = list(taken)
        for match in self._pattern.finditer(text) if self._pattern else ():
            phonemes = self.entries.get(match[0], self.entries.get(match[0].lower()))
            if phonemes is not None and not any(p.start < match.end() and match.start() < p.end for p in taken):
                found.append(Pronunciation(match.start(), match.end(), phonemes))
        return sorted(found, key=lambda p: p.start)


def _bounded(word: str) -> str:
    """A pattern for the whole word; Chinese and Japanese words have no borders to go by."""
    before = "" if _CJK.match(word[0]) or not word[0].isalnum() else r"(?<!\w)"
    after = "" if _CJK.match(word[-1]) or not word[-1].isalnum() else r"(?!\w)"
    return before + re.escape(word) + after


def _read_json(content: str, path: Path) -> dict[str, str]:
    try:
        entries = json.loads(content)
    except ValueError as error:
        raise InvalidInputError(f"--lexicon {path}: not valid JSON ({error})") from None
    for word, phonemes in entries.items():
        if not word.strip() or not isinstance(phonemes, str) or not phonemes.strip("/ "):
            raise InvalidInputError(f"--lexicon {path}: {word!r}: must be a word with its phonemes as text")
    return {word.strip(): phonemes.strip().strip("/").strip() for word, phonemes in entries.items()}


def _read_lines(content: str, path: Path) -> list[tuple[str, str, str]]:
    rows = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise InvalidInputError(f"--lexicon {path}: line {number}: must be a word and /its phonemes/")
        rows.append((f"{path}: line {number}", match["word"].rstrip("=,").rstrip(), match["phonemes"].strip()))
    return rows
