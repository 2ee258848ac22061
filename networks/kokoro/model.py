"""Kokoro in PyTorch, step by step: text features, durations, sound.

The steps are those of `kokoro.KModel.forward_with_tokens`, taken apart so that what depends on the text alone can be kept,
durations can be had, and gradients can flow. Random numbers (the noise of the excitation) come from torch's own generator.
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from kokoro import KModel
from torch import Tensor

from networks.kokoro.checkpoint import load_kmodel
from networks.kokoro.config import MAX_PHONEMES
from networks.kokoro.speech import Speech, checked
from shared_utils.errors import InvalidInputError


@dataclasses.dataclass
class TextFeatures:
    """What depends on the text alone. `ids` [1, n] with padding at either end, `prosody` [1, 512, n], `sound` [1, 512, n]."""

    ids: Tensor
    lengths: Tensor
    mask: Tensor
    prosody: Tensor
    sound: Tensor


class TorchKokoro:
    """The original model. `vocab` maps a phoneme symbol to its number."""

    name = "torch"

    def __init__(self, kmodel: KModel):
        self.kmodel = kmodel
        self.vocab: dict[str, int] = kmodel.vocab
        self.max_phonemes = min(MAX_PHONEMES, kmodel.context_length - 2)

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> "TorchKokoro":
        """Read a checkpoint folder; raises as `load_kmodel` does."""
        return cls(load_kmodel(folder, device))

    @property
    def device(self) -> torch.device:
        return self.kmodel.device

    def tokens(self, phonemes: str) -> list[int]:
        """Numbers of the symbols the model knows; the others are left out."""
        return [self.vocab[symbol] for symbol in phonemes if symbol in self.vocab]

    def encode_text(self, tokens: list[int]) -> TextFeatures:
        """Run both text encoders. `tokens` come without padding. Raises InvalidInputError for more than the context takes."""
        if not 0 < len(tokens) <= self.max_phonemes:
            raise InvalidInputError(f"{len(tokens)} phonemes: must be 1 to {self.max_phonemes}")
        model = self.kmodel
        ids = torch.tensor([[0, *tokens, 0]], dtype=torch.long, device=self.device)
        lengths = torch.tensor([ids.shape[1]])
        mask = torch.zeros(ids.shape, dtype=torch.bool, device=self.device)
        bert = model.bert(ids, attention_mask=(~mask).int())
        prosody = model.bert_encoder(bert).transpose(-1, -2)
        return TextFeatures(ids, lengths, mask, prosody, model.text_encoder(ids, lengths, mask))

    def durations(self, text: TextFeatures, style: Tensor, speed: float = 1.0) -> tuple[Tensor, Tensor]:
        """Steps of 25 ms per token, int64 [n], each at least 1, and the prosody features [1, n, 640] that led to them.

        `style` [1, 256] is a row of a voice on the model's device; its second half is used.
        """
        predictor = self.kmodel.predictor
        features = predictor.text_encoder(text.prosody, style[:, 128:], text.lengths, text.mask)
        hidden, _ = predictor.lstm(features)
        expected = torch.sigmoid(predictor.duration_proj(hidden)).sum(-1) / speed
        return torch.round(expected).clamp(min=1).long()[0], features

    def decode(self, text: TextFeatures, features: Tensor, frames: Tensor, style: Tensor) -> Tensor:
        """Sound, float32 [600 x sum of frames]. Differentiable in `style` [1, 256] and `features`."""
        # Repeating columns is the product with the 0/1 alignment matrix, without the matrix.
        aligned = torch.repeat_interleave(features.transpose(-1, -2), frames, dim=2)
        pitch, energy = self.kmodel.predictor.F0Ntrain(aligned, style[:, 128:])
        sound = torch.repeat_interleave(text.sound, frames, dim=2)
        return self.kmodel.decoder(sound, pitch, energy, style[:, :128]).reshape(-1)

    @torch.inference_mode()
    def synthesize(self, tokens: list[int], style: np.ndarray, speed: float = 1.0) -> Speech:
        """Speak `tokens` with a row of a voice, float32 [1, 256].

        Raises InvalidInputError for too many tokens, PostConditionError when the sound is not finite.
        """
        text = self.encode_text(tokens)
        row = torch.from_numpy(np.ascontiguousarray(style, dtype=np.float32)).to(self.device)
        frames, features = self.durations(text, row, speed)
        audio = self.decode(text, features, frames, row).float().cpu().numpy()
        return checked(Speech(audio, frames.cpu().numpy()))

    def seed(self, seed: int) -> None:
        """Settle the noise of the excitation."""
        torch.manual_seed(seed)
