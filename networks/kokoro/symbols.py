"""Symbols and written forms of numbers in words, for the front ends of Japanese and Chinese, which leave most of them out."""

import re
import unicodedata

_CURRENCY = re.compile(r"([$€£¥￥＄￡])\s*([0-9０-９][0-9０-９,，]*(?:[.．][0-9０-９]+)?)")
_THOUSANDS = re.compile(r"(?<=[0-9０-９])[,，](?=[0-9０-９]{3}(?![0-9０-９]))")
_DATE = re.compile(r"(?<![0-9/])([0-9]{4})/([0-9]{1,2})/([0-9]{1,2})(?![0-9/])")
_RANGE = re.compile(r"(?<=[0-9０-９%％])\s*[~～〜]\s*(?=[0-9０-９])")
_SPACED_PERCENT = re.compile(r"(?<=[0-9０-９])\s+(?=[%％])")
_BARE_PERCENT = re.compile(r"(?<![0-9０-９])[%％]")

JAPANESE = {
    "%": "パーセント",
    "‰": "パーミル",
    "&": "アンド",
    "@": "アットマーク",
    "#": "シャープ",
    "+": "プラス",
    "=": "イコール",
    "×": "かける",
    "÷": "わる",
    "±": "プラスマイナス",
    "√": "ルート",
    "∞": "無限大",
    "°": "度",
    "$": "ドル",
    "€": "ユーロ",
    "£": "ポンド",
    "¥": "円",
    "№": "ナンバー",
    "♥": "ハート",
    "℃": "度",
}
CHINESE = {
    "‰": "千分号",
    "&": "和",
    "@": "艾特",
    "#": "井号",
    "+": "加",
    "=": "等于",
    "×": "乘",
    "÷": "除以",
    "±": "正负",
    "√": "根号",
    "∞": "无穷大",
    "°": "度",
    "$": "美元",
    "€": "欧元",
    "£": "英镑",
    "¥": "元",
    "№": "号码",
    "♥": "红心",
    "〇": "零",
    # Arrows are tones in the front end's phonemes.
    **dict.fromkeys("→↓↗↘", "箭头"),
}


def _with_wide_forms(table: dict[str, str]) -> dict[int, str]:
    """For `str.translate`, with the full-width forms of the keys."""
    wide = {chr(ord(key) + 0xFEE0): words for key, words in table.items() if "!" <= key <= "~"}
    return str.maketrans(table | wide | {"￥": table["¥"], "￡": table["£"]})


_JAPANESE = _with_wide_forms(JAPANESE)
_CHINESE = _with_wide_forms(CHINESE)


def read_japanese_symbols(text: str) -> str:
    """`$5は50%` as `5ドルは50パーセント`, `½` as `2分の1`, `1,000` as `1000`, `2024/5/3` as `2024年5月3日`."""
    return _fractions(_numbers(text, "から"), "{1}分の{0}").translate(_JAPANESE)


def read_chinese_symbols(text: str) -> str:
    """`$5` as `5美元`, `½` as `1/2`, which the front end reads, as it does `50%`; numbers as in Japanese."""
    text = _BARE_PERCENT.sub("百分号", _SPACED_PERCENT.sub("", _numbers(text, "到")))
    return _fractions(text, "{0}/{1}").translate(_CHINESE)


def _numbers(text: str, to: str) -> str:
    text = _THOUSANDS.sub("", _CURRENCY.sub(r"\2\1", text))
    return _RANGE.sub(to, _DATE.sub(r"\1年\2月\3日", text))


def _fractions(text: str, pattern: str) -> str:
    """Characters such as ½ put into `pattern`, numerator first; a number in front stays apart."""
    shown = ""
    for character in text:
        numerator, slash, denominator = unicodedata.normalize("NFKC", character).partition("\u2044")
        if slash and denominator:
            shown += (" " if shown[-1:].isdigit() else "") + pattern.format(numerator, denominator)
        else:
            shown += character
    return shown
