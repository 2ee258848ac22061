"""Kokoro as an ONNX graph on the CPU, with ONNX Runtime: the exports of kokoro-onnx and onnx-community.

Token durations are inside the graph; where its rounding node can be told, they become a second output.
"""

from pathlib import Path

import numpy as np

from networks.kokoro.config import FRAME, MAX_PHONEMES, VOCAB
from networks.kokoro.speech import Speech, checked
from shared_utils.errors import InvalidInputError, MissingInputError


class OnnxKokoro:
    """An exported model; `vocab` is that of version 1.0. The graph draws no random numbers."""

    name = "onnx"

    def __init__(self, path: Path, threads: int = 0):
        """Read `path`. `threads`: of the CPU, 0 for as many as it has cores.

        Raises MissingInputError, or InvalidInputError for a file that is no Kokoro graph.
        """
        import onnxruntime

        self.vocab = VOCAB
        self.max_phonemes = MAX_PHONEMES
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        content, self._durations = _with_durations(Path(path))
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's classes have no common base of their own
            raise InvalidInputError(f"{path}: onnxruntime cannot load it ({str(error).splitlines()[0]})") from error
        types = {entry.name: entry.type for entry in self._session.get_inputs()}
        self._tokens = next((name for name in ("tokens", "input_ids") if name in types), None)
        if self._tokens is None or not {"style", "speed"} <= set(types):
            raise InvalidInputError(f"{path}: takes {', '.join(types)}; Kokoro takes tokens, style and speed")
        self._speed_type = np.int32 if "int" in types["speed"] else np.float32
        self._audio = self._session.get_outputs()[0].name

    def tokens(self, phonemes: str) -> list[int]:
        """Numbers of the symbols the model knows; the others are left out."""
        return [self.vocab[symbol] for symbol in phonemes if symbol in self.vocab]

    def synthesize(self, tokens: list[int], style: np.ndarray, speed: float = 1.0) -> Speech:
        """Speak `tokens` with a row of a voice, float32 [1, 256].

        Raises InvalidInputError for too many tokens, PostConditionError when the sound is not finite.
        """
        if not 0 < len(tokens) <= self.max_phonemes:
            raise InvalidInputError(f"{len(tokens)} phonemes: must be 1 to {self.max_phonemes}")
        inputs = {
            self._tokens: np.array([[0, *tokens, 0]], dtype=np.int64),
            "style": np.ascontiguousarray(style, dtype=np.float32).reshape(1, -1),
            "speed": np.array([speed], dtype=self._speed_type),
        }
        audio, *rest = self._session.run([self._audio, *([self._durations] if self._durations else [])], inputs)
        audio = np.asarray(audio, dtype=np.float32).reshape(-1)
        frames = np.maximum(1, rest[0].reshape(-1)).astype(np.int64) if rest else None
        # A graph whose rounding node is another one gives no durations rather than wrong ones.
        if frames is not None and (len(frames) != len(tokens) + 2 or FRAME * int(frames.sum()) != len(audio)):
            frames = None
        return checked(Speech(audio, frames))

    def seed(self, seed: int) -> None:
        """Nothing to settle: the graph has no random numbers."""


def _with_durations(path: Path) -> tuple[bytes | str, str | None]:
    """The graph with the rounded durations as an output, and that output's name; the bare path where there is none."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError:
        raise MissingInputError(f"{path}: no such file") from None
    except (OSError, DecodeError, ValueError) as error:
        raise InvalidInputError(f"{path}: is no ONNX model ({error})") from error
    rounding = [node for node in model.graph.node if node.op_type == "Round"]
    has_outside_data = any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    if len(rounding) != 1 or has_outside_data or not model.graph.output:
        return str(path), None
    name = rounding[0].output[0]
    if all(output.name != name for output in model.graph.output):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return model.SerializeToString(), name
