"""What is fixed about Kokoro: its symbols, its layout, its languages.

Source: `config.json`, `VOICES.md` and the model card of hexgrad/Kokoro-82M (Apache-2.0).
"""

import dataclasses
import re

SAMPLE_RATE = 24_000  # Hz
FRAME = 600  # samples of one duration step: 25 ms
MAX_PHONEMES = 510  # the context of 512 less the padding token at either end
STYLE_WIDTH = 256  # numbers of one row of a voice: 128 for the decoder, 128 for the prosody

# Token number of the first symbol of each run; the numbers between the runs are not used.
_SYMBOLS = {
    1: ";:,.!?",
    9: '—…"()“” \u0303ʣʥʦʨᵝ\uab67AI',
    31: "O",
    33: "Q",
    35: "ST",
    39: "W",
    41: "Yᵊabcdef",
    50: "hijklmnopqrstuvwxyzɑɐɒæ",
    75: "βɔɕç",
    80: "ɖðʤə",
    85: "ɚɛɜ",
    90: "ɟ",
    92: "ɡ",
    99: "ɥ",
    101: "ɨɪʝ",
    110: "ɯɰŋɳɲɴø",
    118: "ɸθœ",
    123: "ɹ",
    125: "ɾɻ",
    128: "ʁɽʂʃʈʧ",
    135: "ʊʋ",
    138: "ʌɣɤ",
    142: "χʎ",
    147: "ʒʔ",
    156: "ˈˌː",
    162: "ʰ",
    164: "ʲ",
    169: "↓",
    171: "→↗↘",
    177: "ᵻ",
}
VOCAB = {symbol: first + i for first, symbols in _SYMBOLS.items() for i, symbol in enumerate(symbols)}

# config.json of the released v1.0 model.
CONFIG_V1 = {
    "istftnet": {
        "upsample_kernel_sizes": [20, 12],
        "upsample_rates": [10, 6],
        "gen_istft_hop_size": 5,
        "gen_istft_n_fft": 20,
        "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
        "resblock_kernel_sizes": [3, 7, 11],
        "upsample_initial_channel": 512,
    },
    "dim_in": 64,
    "dropout": 0.2,
    "hidden_dim": 512,
    "max_conv_dim": 512,
    "max_dur": 50,
    "multispeaker": True,
    "n_layer": 3,
    "n_mels": 80,
    "n_token": 178,
    "style_dim": 128,
    "text_encoder_kernel_size": 5,
    "plbert": {
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 2048,
        "max_position_embeddings": 512,
        "num_hidden_layers": 12,
        "dropout": 0.1,
    },
    "vocab": VOCAB,
}


@dataclasses.dataclass(frozen=True)
class Language:
    """A language of Kokoro. `espeak` is its name there, for those that espeak-ng reads; `voice` a good first choice."""

    code: str
    name: str
    voice: str
    aliases: tuple[str, ...]
    espeak: str | None = None


LANGUAGES = {
    language.code: language
    for language in (
        Language("a", "American English", "af_heart", ("en", "en-us")),
        Language("b", "British English", "bf_emma", ("en-gb",)),
        Language("e", "Spanish", "ef_dora", ("es",), "es"),
        Language("f", "French", "ff_siwis", ("fr", "fr-fr"), "fr-fr"),
        Language("h", "Hindi", "hf_alpha", ("hi",), "hi"),
        Language("i", "Italian", "if_sara", ("it",), "it"),
        Language("j", "Japanese", "jf_alpha", ("ja", "ja-jp")),
        Language("p", "Brazilian Portuguese", "pf_dora", ("pt", "pt-br"), "pt-br"),
        Language("z", "Mandarin Chinese", "zf_xiaobei", ("zh", "zh-cn", "cmn")),
    )
}
_VOICE_NAME = re.compile(r"([abefhijpz])([fm])_\w+")


def find_language(value: str) -> Language | None:
    """The language of a one-letter code or an alias such as `en-us`, None for anything else."""
    value = value.lower()
    return LANGUAGES.get(value) or next((row for row in LANGUAGES.values() if value in row.aliases), None)


def voice_language(name: str) -> Language | None:
    """The language a voice was trained for, by its name: `jf_alpha` is Japanese, female. None for other names."""
    match = _VOICE_NAME.fullmatch(name)
    return LANGUAGES[match[1]] if match else None


def voice_gender(name: str) -> str:
    """`female`, `male`, or empty for a name that does not say."""
    match = _VOICE_NAME.fullmatch(name)
    return {"f": "female", "m": "male"}[match[2]] if match else ""


# The voices of version 1.0, by language and gender (VOICES.md).
_VOICES = {
    "af": "alloy aoede bella heart jessica kore nicole nova river sarah sky",
    "am": "adam echo eric fenrir liam michael onyx puck santa",
    "bf": "alice emma isabella lily",
    "bm": "daniel fable george lewis",
    "ef": "dora",
    "em": "alex santa",
    "ff": "siwis",
    "hf": "alpha beta",
    "hm": "omega psi",
    "if": "sara",
    "im": "nicola",
    "jf": "alpha gongitsune nezumi tebukuro",
    "jm": "kumo",
    "pf": "dora",
    "pm": "alex santa",
    "zf": "xiaobei xiaoni xiaoxiao xiaoyi",
    "zm": "yunjian yunxi yunxia yunyang",
}
VOICES_V1 = tuple(f"{kind}_{name}" for kind, names in _VOICES.items() for name in names.split())
