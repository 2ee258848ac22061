"""Small tokenizers in the true on-disk format, trained on a few lines of text."""

import json
from typing import Any

# Enough for a vocabulary of a few hundred pieces; every other text falls back to bytes.
_CORPUS = (
    "a photo of a red fox in the snow, soft light, detailed",
    "describe the picture in one sentence, please",
    "system user assistant 0123456789",
    "what is the person in the middle of the image doing?",
)


def qwen_tokenizer(special_tokens: tuple[str, ...], chat_template: str, vocabulary: int = 400) -> Any:
    """A byte-level BPE tokenizer of Qwen's class.

    `special_tokens` begin with the padding token `<|endoftext|>`, then `<|im_start|>` and `<|im_end|>`, the end of a
    turn; further ones follow. They take the first ids. `vocabulary` counts all tokens.
    """
    from tokenizers import ByteLevelBPETokenizer
    from transformers import Qwen2Tokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        _CORPUS, vocab_size=vocabulary, min_frequency=1, special_tokens=list(special_tokens), show_progress=False
    )
    model = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        unk_token=None,
        bos_token=None,
        pad_token=special_tokens[0],
        eos_token=special_tokens[2],
        additional_special_tokens=list(special_tokens[1:]),
        model_max_length=131072,
        padding_side="right",
    )
    tokenizer.chat_template = chat_template
    return tokenizer
