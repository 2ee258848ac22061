"""Sentences on which a voice is judged in each language: one while it is sought, another for the end."""

_ENGLISH = (
    "Fresh ginger may be peeled before eating, and then sliced thin.",
    "The ferry leaves at seven, so we should be at the harbour before the sun goes down.",
)

# (held out during the search, unseen until the end), by Kokoro's letter of the language
PHRASES = {
    "a": _ENGLISH,
    "b": _ENGLISH,
    "e": (
        "El jengibre fresco se puede pelar y cortar antes de comer.",
        "El tren sale a las siete, así que debemos llegar temprano a la estación.",
    ),
    "f": (
        "Le gingembre frais se pèle avant d'être coupé en tranches fines.",
        "Le bateau part à sept heures, il faut donc arriver au port avant la nuit.",
    ),
    "h": ("ताज़ा अदरक खाने से पहले छीला और काटा जाता है।", "नाव सात बजे निकलती है, इसलिए हमें जल्दी पहुँचना चाहिए।"),
    "i": (
        "Lo zenzero fresco si può sbucciare e tagliare a fette sottili.",
        "Il traghetto parte alle sette, quindi dobbiamo arrivare presto al porto.",
    ),
    "j": ("新鮮な生姜は、皮をむいて薄く切ります。", "船は七時に出るので、早めに港へ着きましょう。"),
    "p": (
        "O gengibre fresco pode ser descascado e cortado em fatias finas.",
        "A balsa sai às sete, então devemos chegar cedo ao porto.",
    ),
    "z": ("新鲜的生姜可以先去皮，再切成薄片。", "渡船七点出发，所以我们要早点到码头。"),
}
