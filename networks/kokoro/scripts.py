"""Which writing system a character belongs to, and which front end reads a stretch of text."""

import functools
import unicodedata

# First word of a character's Unicode name -> the writing system it stands for here.
_SYSTEMS = {
    "LATIN": "latin",
    "FULLWIDTH": "latin",
    "CJK": "han",
    "IDEOGRAPHIC": "han",
    "HIRAGANA": "kana",
    "KATAKANA": "kana",
    "HALFWIDTH": "kana",
    "KATAKANA-HIRAGANA": "kana",
    "DEVANAGARI": "devanagari",
    "BOPOMOFO": "han",
}
OWN = {**dict.fromkeys("abefip", ("latin",)), "h": ("devanagari", "latin"), "j": ("han", "kana"), "z": ("han",)}


@functools.lru_cache(maxsize=4096)
def writing_system(character: str) -> str | None:
    """`latin`, `han`, `kana`, `devanagari`, another script's name in small letters, or None for what all scripts share."""
    if unicodedata.category(character)[0] != "L":
        return None
    name = unicodedata.name(character, "").split(" ")[0]
    if name in (
        "MODIFIER",
        "FEMININE",
        "MASCULINE",
        "SUPERSCRIPT",
        "SUBSCRIPT",
        "ROMAN",
        "MATHEMATICAL",
        "DOUBLE-STRUCK",
    ):
        return None
    return _SYSTEMS.get(name, name.lower())


def reader(system: str, language: str, kana: bool) -> str | None:
    """The language that reads a writing system within a text of `language`; None where none does.

    `kana`: the stretch has kana in it, so that its Chinese characters are Japanese.
    """
    if system in OWN[language]:
        return language
    if system == "kana" or (system == "han" and kana):
        return "j"
    return {"latin": "a", "han": "z", "devanagari": "h"}.get(system)


def split_by_reader(text: str, language: str) -> list[tuple[int, int, str | None]]:
    """Stretches (start, end, language that reads it) covering `text`; None for a script that nobody here reads.

    Spaces, digits and marks go with the text's own language, unless they stand between two stretches of one foreign reader.
    """
    kana = any(writing_system(c) == "kana" for c in text)
    readers: list[str | None] = []
    foreign_end = 0  # behind the last letter of another reader than the text's own
    for i, character in enumerate(text):
        system = writing_system(character)
        who = language if system is None else reader(system, language, kana)
        if system is not None and who != language:
            if (
                foreign_end
                and readers[foreign_end - 1] == who
                and all(writing_system(c) is None and not c.isdigit() for c in text[foreign_end:i])
            ):
                readers[foreign_end:i] = [who] * (i - foreign_end)
            foreign_end = i + 1
        readers.append(who)
    stretches = []
    start = 0
    for i in range(1, len(text) + 1):
        if i == len(text) or readers[i] != readers[start]:
            # An accent belongs to its letter.
            if i < len(text) and unicodedata.category(text[i])[0] == "M":
                readers[i] = readers[start]
                continue
            stretches.append((start, i, readers[start]))
            start = i
    return stretches
