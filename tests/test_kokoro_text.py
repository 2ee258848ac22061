"""Kokoro's front half: text is cut and turned into phonemes, and no word of it gets lost."""

import random
import re
import socket
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from networks.kokoro import text as texts
from networks.kokoro.chunks import LONG, fit, make_chunks, spoken
from networks.kokoro.config import LANGUAGES, MAX_PHONEMES, VOCAB, find_language, voice_language
from networks.kokoro.document import read_document
from networks.kokoro.g2p import Phonemizer, Unspoken
from networks.kokoro.lexicon import Lexicon, take_inline
from networks.kokoro.scripts import split_by_reader
from shared_utils.errors import InvalidInputError, MissingInputError, UnavailableError

_PHONEMIZERS: dict[str, Phonemizer] = {}


def phonemizer(language: str) -> Phonemizer:
    """One per language for all tests; loading takes seconds."""
    found = _PHONEMIZERS.setdefault(language, Phonemizer(language, VOCAB))
    found.unspoken = Unspoken()
    return found


def chunks(text: str, language: str, limit: int = MAX_PHONEMES):
    document = read_document(text, False, VOCAB, None, pytest.fail)
    reader = phonemizer(language)
    made = [
        chunk
        for number, paragraph in enumerate(document.paragraphs())
        for chunk in make_chunks(document.text, paragraph, number, document.pronunciations, reader, limit)
    ]
    return document, made, reader.unspoken


def bare(text: str) -> str:
    return "".join(text.split())


def phonemes(text: str, language: str) -> str:
    return spoken(phonemizer(language).words(text))


# --- cleaning and cutting


def test_cleaning_keeps_every_character_that_is_heard():
    assert texts.clean("a\r\nb\rc\u2029d\u200be\u00adf\ufeff\x00g") == "a\nb\nc\n\ndef g"
    assert texts.clean("e\u0301") == "é"


def test_text_that_is_no_unicode_is_refused():
    with pytest.raises(InvalidInputError, match="UTF-8"):
        texts.clean("caf\udce9")


def paragraphs(text: str, pattern: str | None = None) -> list[str]:
    found = texts.paragraphs(text, re.compile(pattern) if pattern is not None else None)
    return [text[p.start : p.end] for p in found]


def test_line_feeds_end_paragraphs_but_wrapped_lines_do_not():
    assert paragraphs("One.\nTwo\n\n\nThree ") == ["One.", "Two", "Three"]
    wrapped = (
        "It was the best of times, it was the worst of times, it was the age\n"
        "of wisdom, it was the age of foolishness, it was the epoch of belief,\n"
        "it was the epoch of incredulity.\n\nNext one."
    )
    assert paragraphs(wrapped) == [wrapped.split("\n\n")[0], "Next one."]
    poem = "Two roads diverged\nin a yellow wood,\nand sorry I could not"
    assert len(paragraphs(poem)) == 3


def test_a_split_pattern_loses_nothing_it_matches():
    assert paragraphs("one; two; three", r";\s*") == ["one;", "two;", "three"]
    assert paragraphs("aXXb", "(?=X)") == ["a", "X", "Xb"]


@pytest.mark.parametrize(
    "heading", ["Chapter 1", "CHAPTER XII. The Storm", "第一章 はじまり", "Prologue", "Chapitre deux"]
)
def test_headings_are_known_by_their_words(heading):
    first, second = texts.paragraphs(f"{heading}\nIt rained. Chapter 2 was better, and this goes on and on.")
    assert first.heading and not second.heading


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Dr. Smith met J. K. Rowling at 3.30 p.m. in the U.S. embassy. Really? Yes!", 3),
        ("He said “Stop.” Then he left... quietly.", 2),
        ("今日は。元気？はい！『本当』です。", 4),
        ("你好！我叫小明。你呢？", 3),
        ("यह एक वाक्य है। यह दूसरा है।", 2),
        ("No full stop at all", 1),
        ("Wait… what? No.", 2),
    ],
)
def test_sentences(text, expected):
    found = [text[a:b] for a, b in texts.sentences(text, 0, len(text))]
    assert len(found) == expected and bare("".join(found)) == bare(text)


@given(st.text(alphabet=st.sampled_from("ab .,;:。、日あア\u0301é👩\u200d\n"), min_size=2, max_size=60))
@settings(max_examples=200, deadline=None)
def test_cuts_are_inside_and_never_before_an_accent(text):
    position = texts.cut(text, 0, len(text), [])
    assert 0 < position < len(text)
    if any(not texts._joined(text, p) for p in range(1, len(text))):
        assert not texts._joined(text, position)


def test_cuts_prefer_clauses_then_words_and_spare_given_words():
    text = "alpha beta, gamma delta epsilon"
    assert text[: texts.cut(text, 0, len(text), [])] == "alpha beta,"
    text = "alpha beta gamma"
    assert text[: texts.cut(text, 0, len(text), [])] in ("alpha ", "alpha beta ")
    assert texts.cut("aaaaNEWYORKbb", 0, 13, [(4, 11)]) in (4, 11)
    assert texts.cut("今日はとても良い天気で散歩", 0, 13, []) in (6, 8, 11)


# --- phonemes


@pytest.mark.parametrize(
    "language, text, expected",
    [
        ("a", "Hello, it's $4.50 in 2024.", "həlˈO, ɪts fˈɔɹ dˈɑləɹz ænd fˈɪfti sˈɛnts ɪn twˈɛnti twˈɛnti fˈɔɹ."),
        ("b", "Colour, can't.", "kˈʌlə, kˈɑːnt."),
        ("e", "¿Cómo estás?", "kˈomo estˈas?"),
        ("f", "L'été est arrivé; ça va?", "letˈe ɛt aʁivˈe; sa vˈa?"),
        ("h", "नमस्ते दुनिया।", "nəmˈʌsteː dˈʊnɪjˌaː"),
        ("i", "Ciao, perché no?", "ʧˈao, perkˌe nˈɔ?"),
        ("j", "こんにちは。世界です。", "koɲɲiʨiβa. sekai desɨ."),
        ("p", "Olá, não há pão.", "olˈa, nˌɐ̃ʊ̃ a pˈɐ̃ʊ̃."),
        ("z", "你好，世界。", "ni↓xau↓,ʂɨ↘ʨje↘."),
    ],
)
def test_each_language_reads_without_any_connection(language, text, expected, monkeypatch):
    def refuse(*args):
        raise AssertionError("a connection was asked for")

    before = sys.exit, subprocess.run
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert phonemes(text, language) == expected
    assert (sys.exit, subprocess.run) == before
    assert set(expected) <= set(VOCAB)


@pytest.mark.parametrize(
    "language, text, part, foreign",
    [
        ("j", "これはHello Worldです", "həlˈO wˈɜɹld", "a"),
        ("z", "我喜欢Python语言", "pˈIθˌɑn", "a"),
        ("a", "He wrote 東京 and カタカナ here", "katakana", "j"),
        ("a", "She said 你好 to me", "ni↓xau↓", "z"),
        ("f", "Le mot नमस्ते ici", "nəmˈʌsteː", "h"),
    ],
)
def test_words_in_another_script_are_read_by_their_own_language(language, text, part, foreign):
    assert foreign in {who for _, _, who in split_by_reader(text, language)}
    assert part in phonemes(text, language)


@pytest.mark.parametrize(
    "language, text, expected",
    [
        ("j", "3.14", "saɴ teɴ iʨi joɴ"),
        ("j", "気温は-5度", "mainasɨ ɡo"),
        ("z", "-5℃", "fu↘u↓ʂɤ↘ʂɨ↘tu↘"),
        ("z", "①②", "ʂɨ↗ɚ↘"),
        ("a", "1" * 40, " ".join(["wˈʌn"] * 40)),
        ("j", "９" * 30, " ".join(["kʲɨː"] * 30)),
    ],
)
def test_numbers_are_read(language, text, expected):
    found = phonemes(text, language)
    assert expected.replace(" ", "") in found.replace(" ", "")


@pytest.mark.parametrize(
    "language, symbols, words",
    [
        ("j", "$5は50%です", "5ドルは50パーセントです"),
        ("j", "￥1,000", "1000円"),
        ("j", "½カップ", "2分の1カップ"),
        ("j", "2024/5/3", "2024年5月3日"),
        ("j", "3~5個", "3から5個"),
        ("z", "$5是50 %", "5美元是50%"),
        ("z", "1,234元", "1234元"),
        ("z", "二〇二四年", "二零二四年"),
        ("z", "好→人", "好箭头人"),
        ("z", "3~5", "3到5"),
        ("a", "ﬁve oﬃces", "five offices"),
    ],
)
def test_symbols_and_numbers_are_read_as_the_words_they_stand_for(language, symbols, words):
    found, expected = (phonemes(texts.clean(text), language).replace(" ", "") for text in (symbols, words))
    assert found == expected and not _PHONEMIZERS[language].unspoken.counts


@pytest.mark.parametrize(
    "language, text, lost",
    [
        ("j", "한국어と日本語", ["한국어"]),
        ("j", "良い😀です", ["😀"]),
        ("z", "𠀀是字", ["𠀀"]),
        ("z", "好😀", ["😀"]),
        ("f", "gauche → droite ∞ fois", ["→", "∞"]),
        ("h", "नमस्ते ₹ दुनिया", ["₹"]),
        ("f", "→", ["→"]),
        ("a", "a < b", ["<"]),
    ],
)
def test_what_has_no_sound_is_reported(language, text, lost):
    reader = phonemizer(language)
    reader.words(text)
    assert reader.unspoken.counts == dict.fromkeys(lost, 1)
    assert next(iter(reader.unspoken.messages())).count("'") == 2 * len(lost)


def test_a_script_nobody_reads_is_reported_once():
    _, made, unspoken = chunks("The word Привет is Russian.", "a")
    assert unspoken.spelled == {"Привет": 1} and not unspoken.counts
    assert "ɪz ɹˈʌʃən" in made[0].phonemes


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "unidic_lite", None)
    with pytest.raises(UnavailableError, match=r"Japanese needs the package unidic_lite: .*pip install misaki fugashi"):
        Phonemizer("j", VOCAB).words("はい")


ANYTHING = st.text(
    alphabet=st.one_of(
        st.sampled_from("aB9 .,'\"-$%()[]日本あアー你好éअ।Ж한😀½²٣\n\u0301\u200d"),
        st.characters(exclude_categories=("Cs",)),
    ),
    max_size=60,
)


@pytest.mark.parametrize("language", LANGUAGES)
def test_any_text_is_covered_and_fits(language):
    @given(ANYTHING)
    @settings(max_examples=25, deadline=None, derandomize=True)
    def holds(text):
        document, made, _ = chunks(text, language)
        assert bare("".join(document.text[c.start : c.end] for c in made)) == bare(document.text)
        for chunk in made:
            assert len(chunk.phonemes) <= MAX_PHONEMES and set(chunk.phonemes) <= set(VOCAB)

    holds()


# --- long texts

SENTENCES = {
    "a": ("The quick brown fox number {} jumps over the lazy dog, near the old river bank. ", "fˈɑks"),
    "j": ("今日は{}番目のとても良い天気ですね。東京は大きな都市で、日本の首都です！", "toːkʲoː"),
    "z": ("今天是第{}天，天气很好，我们去公园散步吧。北京是中国的首都！", "pei↓ʨi→ŋ"),
}


@pytest.mark.parametrize("language", SENTENCES)
def test_100_kilobytes_reach_the_synthesiser(language):
    pattern, sign = SENTENCES[language]
    count = 100_000 // len(pattern.encode()) + 1
    text = "".join(pattern.format(i % 97) + ("\n\n" if i % 10 == 9 else "") for i in range(count))
    assert len(text.encode()) >= 100_000
    document, made, unspoken = chunks(text, language)
    assert bare("".join(document.text[c.start : c.end] for c in made)) == bare(text)
    assert bare("".join(word.text for c in made for word in c.words)) == bare(text)
    assert sum(c.phonemes.count(sign) for c in made) == count
    assert all(0 < len(c.phonemes) <= MAX_PHONEMES for c in made)
    assert unspoken == Unspoken()


@pytest.mark.parametrize("language", SENTENCES)
def test_a_sentence_without_an_end_is_cut_until_it_fits(language):
    pattern, sign = SENTENCES[language]
    text = re.sub(r"[.,。，！、]", "", "".join(pattern.format(i) for i in range(30)))
    document, made, _ = chunks(text, language)
    assert bare("".join(document.text[c.start : c.end] for c in made)) == bare(text)
    assert sum(c.phonemes.count(sign) for c in made) == 30
    assert all(0 < len(c.phonemes) <= LONG for c in made)


@pytest.mark.parametrize("language, text", [("a", "supercalifragilistic" * 60), ("z", "好" * 700), ("j", "あ" * 900)])
def test_a_word_without_an_end_is_cut_as_well(language, text):
    document, made, unspoken = chunks(text, language)
    assert "".join(document.text[c.start : c.end] for c in made) == text and len(made) > 1
    assert not unspoken.counts


def test_a_pronunciation_longer_than_the_model_takes_is_divided():
    given_phonemes = "həlˈO " * 120
    _, made, _ = chunks(f"Say [this](/{given_phonemes.strip()}/) now.", "a", limit=100)
    assert all(len(c.phonemes) <= 100 for c in made)
    assert sum(c.phonemes.count("həlˈO") for c in made) >= 100


def test_short_sentences_share_a_chunk_and_the_report_counts_once():
    _, made, _ = chunks("Yes. No. Maybe. I do not know.", "a")
    assert len(made) == 1 and len(made[0].pieces) == 4
    reader = phonemizer("j")
    fit("한국어、" * 90, 0, 360, [], reader, MAX_PHONEMES)
    assert sum(reader.unspoken.counts.values()) == 90


# --- given pronunciations


def test_inline_pronunciations_in_any_language():
    warned = []
    text, found = take_inline("See [Kokoro](/kˈOkəɹO/) in [docs](/usr/bin/) and [a](b).", VOCAB, warned.append)
    assert text == "See Kokoro in [docs](/usr/bin/) and [a](b)."
    assert [(text[p.start : p.end], p.phonemes) for p in found] == [("Kokoro", "kˈOkəɹO")]
    assert len(warned) == 1 and "/usr/bin/" in warned[0]
    _, made, _ = chunks("I said [Tomato](/təmˈɑɾO/), twice.", "a")
    assert made[0].phonemes == "ˌI sˈɛd təmˈɑɾO, twˈIs."
    _, made, _ = chunks("これは[東京](/eddo/)です。", "j")
    assert "eddo" in made[0].phonemes and "toːkʲoː" not in made[0].phonemes


def test_what_looks_like_a_link_is_spoken_whole():
    assert "pˈæθ" in phonemes("Open [here](path) now", "a")


def test_a_lexicon_in_lines_and_in_json(tmp_path):
    lines = tmp_path / "words.txt"
    lines.write_text("# mine\nKokoro /kˈOkəɹO/\nnew york = /nujˈɔɹk/\nUS\t/jˌuˈɛs/\n東京, /eddo/\n", encoding="utf-8")
    lexicon = Lexicon.read(lines, VOCAB)
    text = "kokoro, Kokoro! New York; the US told us: 東京都 newyork"
    found = lexicon.find(text, [])
    assert [text[p.start : p.end] for p in found] == ["Kokoro", "New York", "US", "東京"]
    as_json = tmp_path / "words.json"
    as_json.write_text('{"kokoro": "/kˈOkəɹO/"}', encoding="utf-8")
    found = Lexicon.read(as_json, VOCAB).find(text, [])
    assert [text[p.start : p.end] for p in found] == ["kokoro", "Kokoro"]


@pytest.mark.parametrize(
    "content, message",
    [
        ("kokoro", "line 1"),
        ("ok /ˈOk/\nbad /日本/", "line 2.*no phoneme"),
        ("a /A/\na /I/", "twice"),
        ("{broken", "JSON"),
        ('{"a": 3}', "'a'"),
    ],
)
def test_a_bad_lexicon_is_refused_with_its_line(tmp_path, content, message):
    path = tmp_path / "lexicon.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidInputError, match=message):
        Lexicon.read(path, VOCAB)


def test_a_missing_lexicon(tmp_path):
    with pytest.raises(MissingInputError):
        Lexicon.read(tmp_path / "none.txt", VOCAB)


# --- documents


def test_markdown_is_read_as_it_is_meant():
    raw = (
        "---\ntitle: x\n---\n# The *Storm*\n\nA **bold** word, a [link](https://example.com) and\na wrapped line.\n\n"
        "- first\n- [Kokoro](/kˈOkəɹO/)\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n<p>html <b>text</b></p>\n\n![a cat](x.png)\n"
        "\n```\ncode here\n```\n<!-- not this -->\n"
    )
    warned = []
    document = read_document(raw, True, VOCAB, None, warned.append)
    found = list(document.paragraphs())
    assert [document.text[p.start : p.end] for p in found] == [
        "The Storm",
        "A bold word, a link and a wrapped line.",
        "first",
        "Kokoro",
        "a, b",
        "1, 2",
        "html text",
        "a cat",
        "code here",
    ]
    assert [p.heading for p in found] == [True] + [False] * 8
    (given_word,) = document.pronunciations
    assert document.text[given_word.start : given_word.end] == "Kokoro"
    assert "front matter" in warned[0]


def test_languages_and_voices_by_name():
    assert find_language("EN-GB").code == "b" and find_language("ja").code == "j" and find_language("x") is None
    assert voice_language("zf_xiaobei").code == "z" and voice_language("mine") is None
    assert len(VOCAB) == 114 and len(set(VOCAB.values())) == 114


def test_random_texts_of_mixed_scripts_do_not_crash_a_reader():
    draw = random.Random(7)
    pool = "abc XYZ 012 .,:-+/% $£€ '\" ()[] 日本々〆 あっょー ヴヵ 你好 éñß हिं। Жя 한 😀👩‍👧 ½²①℃ \u0301\u200d ٣१"
    for language in LANGUAGES:
        for _ in range(5):
            chunks("".join(draw.choice(pool) for _ in range(80)), language)
