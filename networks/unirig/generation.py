"""Token generation: one prompt, several beams, a grammar.

The beams of one prompt are computed as several queries of ONE sequence instead of as a batch. Keys and values of all
tokens of all beams lie in one pool, after those of the prompt, and a mask shows each beam its own ancestors. The prompt
is thus computed and stored once, nothing is copied when beams are reordered, and what no beam descends from is dropped
now and then. Scoring follows `transformers.generate` operation by operation: the same seed gives the same ids.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import OPTForCausalLM
from transformers.cache_utils import Cache, DynamicLayer
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from networks.unirig.grammar import Grammar

GROWTH = 256  # tokens by which the key and value buffers grow
UNREACHABLE = -1.0e9  # transformers' score of a beam that does not exist (yet)


@dataclass(frozen=True)
class GenerationSettings:
    """Defaults are the published ones. `seed` of the sampling is set by the caller, with `torch.manual_seed`."""

    max_new_tokens: int = 2048
    num_beams: int = 15
    do_sample: bool = True
    temperature: float = 1.5
    top_k: int = 5
    top_p: float = 0.95
    repetition_penalty: float = 3.0


class PooledLayer(DynamicLayer):
    """Keys and values (1, heads, tokens, dim) of one layer, in buffers which grow in steps and can drop tokens."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.used = 0
        self.key_buffer = key_states[..., :0, :]
        self.value_buffer = value_states[..., :0, :]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.used + key_states.shape[-2]
        if end > self.key_buffer.shape[-2]:
            self.key_buffer = self._grown(self.key_buffer, end)
            self.value_buffer = self._grown(self.value_buffer, end)
        self.key_buffer[..., self.used : end, :] = key_states
        self.value_buffer[..., self.used : end, :] = value_states
        self._show(end)
        return self.keys, self.values

    def keep(self, index: Tensor) -> None:
        """Drop all tokens but those of `index` int64 (n,), ascending."""
        self.key_buffer = self._grown(self.keys.index_select(-2, index), len(index))
        self.value_buffer = self._grown(self.values.index_select(-2, index), len(index))
        self._show(len(index))

    def _grown(self, buffer: Tensor, needed: int) -> Tensor:
        grown = buffer.new_empty((*buffer.shape[:-2], needed + GROWTH, buffer.shape[-1]))
        kept = min(buffer.shape[-2], needed)
        grown[..., :kept, :] = buffer[..., :kept, :]
        return grown

    def _show(self, used: int) -> None:
        self.used = used
        self.keys = self.key_buffer[..., :used, :]
        self.values = self.value_buffer[..., :used, :]


class BeamDecoder:
    """Feeds a decoder one token per beam and step."""

    def __init__(self, transformer: OPTForCausalLM, num_beams: int):
        self.transformer = transformer
        self.num_beams = num_beams
        self.cache = Cache(layer_class_to_replicate=PooledLayer)
        self.prompt_length = 0
        self.steps = 0

    def prefill(self, prompt: Tensor) -> Tensor:
        """(1, P, hidden) prompt embeddings -> float32 (1, vocab) logits of the first new token."""
        self.prompt_length = prompt.shape[1]
        self.device = prompt.device
        # Which pooled tokens (columns, those after the prompt) each beam descends from.
        self.ancestry = torch.zeros(self.num_beams, 0, dtype=torch.bool, device=self.device)
        output = self.transformer(inputs_embeds=prompt, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1].float()

    def step(self, tokens: Tensor, origin: Tensor) -> Tensor:
        """Append one token to every beam.

        tokens: int64 (beams,). origin: int64 (beams,), the beam of the previous step each one continues.
        Returns float32 (beams, vocab) logits.
        """
        own = torch.eye(self.num_beams, dtype=torch.bool, device=self.device)
        self.ancestry = torch.cat([self.ancestry[origin], own], dim=1)
        visible = torch.ones(self.num_beams, self.prompt_length, dtype=torch.bool, device=self.device)
        position = self.prompt_length + self.steps
        self.steps += 1
        output = self.transformer(
            input_ids=tokens[None],
            position_ids=torch.full((1, self.num_beams), position, device=self.device),
            attention_mask=torch.cat([visible, self.ancestry], dim=1)[None, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        if self.num_beams > 1 and self.steps % max(1, GROWTH // self.num_beams) == 0:
            self._drop_dead_branches()
        return output.logits[0].float()

    def _drop_dead_branches(self) -> None:
        alive = self.ancestry.any(dim=0).nonzero().squeeze(1)
        prompt = torch.arange(self.prompt_length, device=self.device)
        index = torch.cat([prompt, self.prompt_length + alive])
        for layer in self.cache.layers:
            layer.keep(index)
        self.ancestry = self.ancestry[:, alive]


@torch.no_grad()
def generate(
    transformer: OPTForCausalLM,
    prompt: Tensor,
    grammar: Grammar,
    state: int,
    settings: GenerationSettings,
    *,
    eos: int,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Continue a prompt.

    prompt: (1, P, hidden) embeddings. state: the grammar's state after the prompt. progress: called with the number of
    tokens so far after every step. Returns int64 (n,), n <= max_new_tokens, eos included when it was reached. Random
    numbers come from torch's default generator of the prompt's device.
    """
    report = progress or (lambda count: None)
    search = _single if settings.num_beams == 1 else _beam_search
    decoder = BeamDecoder(transformer, settings.num_beams)
    return search(decoder, prompt, grammar, state, settings, eos, report)


class _Scores:
    """Repetition penalty, grammar mask, then the warpers of sampling, in the order of `transformers.generate`."""

    def __init__(self, grammar: Grammar, settings: GenerationSettings):
        self.grammar = grammar
        self.penalty = None
        if settings.repetition_penalty != 1.0:
            self.penalty = RepetitionPenaltyLogitsProcessor(settings.repetition_penalty)
        # A beam needs a second candidate in case the first is eos.
        least = 2 if settings.num_beams > 1 else 1
        self.warpers = []
        if settings.do_sample and settings.temperature != 1.0:
            self.warpers.append(TemperatureLogitsWarper(settings.temperature))
        if settings.do_sample and settings.top_k > 0:
            self.warpers.append(TopKLogitsWarper(settings.top_k, min_tokens_to_keep=least))
        if settings.do_sample and settings.top_p < 1.0:
            self.warpers.append(TopPLogitsWarper(settings.top_p, min_tokens_to_keep=least))

    def __call__(self, sequences: Tensor, states: Tensor, scores: Tensor) -> Tensor:
        """int64 (beams, n) tokens so far, int64 (beams,) states, float32 (beams, vocab) -> float32 (beams, vocab)."""
        if self.penalty is not None:
            scores = self.penalty(sequences, scores)
        scores = scores.masked_fill(~self.grammar.allowed[states], float("-inf"))
        for warper in self.warpers:
            scores = warper(sequences, scores)
        return scores


def _single(decoder, prompt, grammar, state, settings, eos, report) -> Tensor:
    """Greedy search, or sampling without beams."""
    scoring = _Scores(grammar, settings)
    states = torch.tensor([state], device=prompt.device)
    sequence = torch.empty(1, 0, dtype=torch.int64, device=prompt.device)
    logits = decoder.prefill(prompt)
    origin = torch.zeros(1, dtype=torch.int64, device=prompt.device)
    while True:
        scores = scoring(sequence, states, logits)
        if settings.do_sample:
            token = torch.multinomial(F.softmax(scores, dim=-1), num_samples=1)[0]
        else:
            token = scores.argmax(dim=-1)
        sequence = torch.cat([sequence, token[None]], dim=1)
        report(sequence.shape[1])
        if token.item() == eos or sequence.shape[1] == settings.max_new_tokens:
            return sequence[0]
        states = grammar.advance(states, token)
        logits = decoder.step(token, origin)


def _beam_search(decoder, prompt, grammar, state, settings, eos, report) -> Tensor:
    """Beam search or beam sampling with length-normalised scores and transformers' default stopping rule.

    Candidates are twice as many as beams, so that enough remain when half of them end. A sequence counts as finished
    only when it is among the best half. The search ends when no running beam, at its present length, could beat the
    worst of as many finished sequences as there are beams.
    """
    beams, device = settings.num_beams, prompt.device
    scoring = _Scores(grammar, settings)
    states = torch.full((beams,), state, device=device)
    sequences = torch.empty(beams, 0, dtype=torch.int64, device=device)
    running = torch.full((beams,), UNREACHABLE, device=device)
    running[0] = 0.0
    finished: list[Tensor] = [sequences[0]] * beams
    finished_scores = torch.full((beams,), UNREACHABLE, device=device)
    is_finished = torch.zeros(beams, dtype=torch.bool, device=device)
    logits = decoder.prefill(prompt).expand(beams, -1)

    while True:
        scores = scoring(sequences, states, F.log_softmax(logits, dim=-1)) + running[:, None]
        vocab = scores.shape[-1]
        flat = scores.reshape(1, -1)
        if settings.do_sample:
            chosen = torch.multinomial(F.softmax(flat, dim=-1), num_samples=2 * beams)
            candidate_scores = flat.gather(1, chosen)[0]
        else:
            candidate_scores, chosen = torch.topk(flat, k=2 * beams)
            candidate_scores = candidate_scores[0]
        origin, tokens = chosen[0] // vocab, chosen[0] % vocab
        candidates = torch.cat([sequences[origin], tokens[:, None]], dim=1)
        length = candidates.shape[1]
        ends = (tokens == eos) | (length == settings.max_new_tokens)

        # The beams that go on: the best candidates which have not ended.
        best = torch.topk(candidate_scores + ends.float() * UNREACHABLE, k=beams)
        going_on, running = best.indices, best.values

        # The sequences that ended, merged with those which ended before.
        just_finished = ends.clone()
        just_finished[beams:] = False
        ended_scores = candidate_scores / length + (~just_finished).float() * UNREACHABLE
        merged = torch.topk(torch.cat([finished_scores, ended_scores]), k=beams)
        finished = [finished[i] if i < beams else candidates[i - beams] for i in merged.indices.tolist()]
        finished_scores = merged.values
        is_finished = torch.cat([is_finished, just_finished])[merged.indices]

        report(length)
        worst = torch.where(is_finished, finished_scores.min(), UNREACHABLE)
        can_improve = bool((running[0] / length > worst).any())
        if not can_improve or bool(ends.all()):
            return finished[0]
        sequences, origin, tokens = candidates[going_on], origin[going_on], tokens[going_on]
        states = grammar.advance(states[origin], tokens)
        logits = decoder.step(tokens, origin)
