"""Sampling of box tokens: the grammar of a box list and the truncated distribution its tokens are drawn from."""

from collections.abc import Callable

import torch
from torch import Tensor

from networks.omnipart.bbox_tokens import VALUES_PER_BOX, BoxTokenizer

TEMPERATURE = 0.5
TOP_K = 5
TOP_P = 0.95
MAX_BOXES = 50
FIRST_STEP_OF_END = 8  # at least one coordinate beyond the first box, hence at least two boxes


def allowed_tokens(step: int, tokenizer: BoxTokenizer, vocab_size: int, may_end: bool = True) -> Tensor:
    """Which tokens may come at `step` (0 = first): bool [vocab_size].

    BOS first; then coordinates, until the list may end after any whole box but the first; not with `may_end` False.
    """
    allowed = torch.zeros(vocab_size, dtype=torch.bool)
    if step == 0:
        allowed[tokenizer.bos] = True
        return allowed
    allowed[: tokenizer.bins] = True
    allowed[tokenizer.eos] = may_end and step >= FIRST_STEP_OF_END and (step - 1) % VALUES_PER_BOX == 0
    return allowed


def truncated_probabilities(
    logits: Tensor, allowed: Tensor, temperature: float = TEMPERATURE, top_k: int = TOP_K, top_p: float = TOP_P
) -> Tensor:
    """Probabilities float32 [V] from raw logits [V]: grammar mask, temperature, the k best, then the nucleus top_p.

    The nucleus drops tokens from the least likely on while their cumulative probability stays <= 1 - top_p (Holtzman et
    al., "The Curious Case of Neural Text Degeneration", 2020); the best token is always kept.
    """
    scores = logits.float().masked_fill(~allowed, float("-inf")) / temperature
    weakest = scores.topk(min(top_k, scores.numel())).values[-1]
    scores = scores.masked_fill(scores < weakest, float("-inf"))
    ascending, order = scores.sort()
    dropped = ascending.softmax(dim=0).cumsum(dim=0) <= 1 - top_p
    dropped[-1] = False
    scores[order[dropped]] = float("-inf")
    return scores.softmax(dim=0)


@torch.inference_mode()
def generate_tokens(
    decoder,
    prompt: Tensor,
    tokenizer: BoxTokenizer,
    choose: Callable[[Tensor], int],
    max_boxes: int = MAX_BOXES,
    temperature: float = TEMPERATURE,
    top_k: int = TOP_K,
    top_p: float = TOP_P,
    progress: Callable[[int, int], None] | None = None,
    boxes: int | None = None,
) -> Tensor:
    """Let an OPT language model continue `prompt` (embeddings [1, T, D]) by a list of boxes.

    `choose` picks a token from probabilities (float32 [V], on the CPU). Stops at EOS or after `max_boxes` boxes, or with
    `boxes` after exactly so many; returns int64 tokens [n], BOS first. `progress(step, limit)` is called after every token.
    """
    limit = 1 + VALUES_PER_BOX * (max_boxes if boxes is None else boxes)
    cache, embeddings = None, prompt
    tokens: list[int] = []
    for step in range(limit):
        output = decoder(inputs_embeds=embeddings, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        logits = output.logits[0, -1].float().cpu()
        allowed = allowed_tokens(step, tokenizer, logits.numel(), may_end=boxes is None)
        token = choose(truncated_probabilities(logits, allowed, temperature, top_k, top_p))
        tokens.append(token)
        if progress:
            progress(step + 1, limit)
        if token == tokenizer.eos:
            break
        embeddings = decoder.get_input_embeddings()(torch.tensor([[token]], device=prompt.device))
    return torch.tensor(tokens, dtype=torch.int64)
