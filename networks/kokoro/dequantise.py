"""The original checkpoint back from the int8 ONNX export, so that PyTorch speaks with it.

The export (kokoro-onnx, `kokoro-v1.0.int8.onnx`) has folded weight normalisation, stored matrices transposed, the gates of
LSTMs in ONNX's order, and most weights as 8-bit numbers with scale and zero point. What it lost by rounding stays lost.
"""

import dataclasses
import re
from pathlib import Path

import numpy as np

from networks.kokoro.config import CONFIG_V1
from shared_utils.errors import InvalidInputError


@dataclasses.dataclass
class Graph:
    """What the graph holds, by module of the PyTorch model.

    plain: float weights, by state-dict name. dense: weights of matrix products, convolutions and embeddings in PyTorch's
    layout. recurrent: input weights, recurrent weights and biases of LSTMs in ONNX's layout.
    """

    plain: dict[str, np.ndarray]
    dense: dict[str, np.ndarray]
    recurrent: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


def dequantise(onnx_path: Path) -> dict[str, dict]:
    """State dicts by part, in the layout of `kokoro-v1_0.pth`, float32.

    Raises InvalidInputError when a weight of the model is not in the graph, or has another shape.
    """
    import torch

    from networks.kokoro.checkpoint import PARTS, empty_kmodel

    graph = read_graph(onnx_path)
    model = empty_kmodel(CONFIG_V1)
    parts = {}
    for part in PARTS:
        module = getattr(model, part)
        state = {}
        for name, wanted in module.state_dict().items():
            if _stays_out(module, name):
                continue
            found = _weight(graph, f"{part}.{name}")
            if found is None or found.shape != tuple(wanted.shape):
                shape = "nothing" if found is None else f"shape {list(found.shape)}"
                raise InvalidInputError(f"{onnx_path}: {part}.{name}: {shape} where {list(wanted.shape)} is needed")
            state[name] = torch.tensor(found, dtype=torch.float32)
        parts[part] = state
    return parts


def _stays_out(module, name: str) -> bool:
    """Scale and shift of instance norms are the identity; nothing reads BERT's pooler."""
    from torch import nn

    return isinstance(module.get_submodule(name.rpartition(".")[0]), nn.InstanceNorm1d) or name.startswith("pooler.")


def read_graph(onnx_path: Path) -> Graph:
    """Collect and dequantise the weights of an export."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(onnx_path)
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    zero_of_gather = {n.input[0]: n.input[2] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    graph = Graph({}, {}, {})
    for name, value in values.items():
        if value.dtype == np.float32 and name.startswith(("encoder.", "decoder.decoder.")):
            graph.plain[_part_name(name.replace("decoder.decoder.", "decoder.").removeprefix("encoder."))] = value

    def real(weight: str, zero: str, per_row: int) -> np.ndarray:
        """(q - zero) * scale, where scale and zero may differ along the first `per_row` axes."""
        quantised = values[weight].astype(np.float32)
        scale = values[weight.removesuffix("_quantized") + "_scale"].astype(np.float32)
        shape = scale.shape + (1,) * (quantised.ndim - per_row)
        offset = values[zero].astype(np.float32)
        return (quantised - (offset.reshape(shape) if offset.ndim else offset)) * (
            scale.reshape(shape) if scale.ndim else scale
        )

    for node in model.graph.node:
        module = _module(node.name)
        source = node.input[1] if len(node.input) > 1 else ""
        if node.op_type == "MatMulInteger" and source in values:
            # Quantised per column, if at all: the columns are the last axis already.
            graph.dense[module] = real(source, node.input[3], values[source].ndim).T
        elif node.op_type == "ConvInteger" and source in values:
            graph.dense[module] = real(source, node.input[3], 1)
        elif node.op_type in ("Conv", "ConvTranspose") and source in values:
            graph.dense[module] = values[source].astype(np.float32)
        elif node.op_type == "MatMul" and source in values:
            graph.dense[module] = values[source].astype(np.float32).T
        elif node.op_type == "Gather" and node.input[0].endswith("_quantized"):
            graph.dense[module] = real(node.input[0], zero_of_gather[node.output[0]], 1)
        elif node.op_type == "DynamicQuantizeLSTM":
            graph.recurrent[module] = (
                real(node.input[1], node.input[9], 1),
                real(node.input[2], node.input[11], 1),
                values[node.input[3]].astype(np.float32),
            )
    return graph


def _module(node: str) -> str:
    """The PyTorch module a node belongs to: `/encoder/bert/.../query/MatMul_quant` -> `bert....query`."""
    path = node.lstrip("/").removeprefix("encoder/").replace("decoder/decoder/", "decoder/").rpartition("/")[0]
    name = path.replace("/", ".")
    name = re.sub(r"(albert_layers\.0\..*?)_\d+$", r"\1", name)  # the shared layer, repeated
    # Modules inside nn.Sequential are numbered twice.
    name = re.sub(r"cnn\.(\d)\.cnn\.\d\.0$", r"cnn.\1.0", name).replace("asr_res.asr_res.0", "asr_res.0")
    return _part_name(name)


def _part_name(name: str) -> str:
    """The export calls some children of the predictor by their bare names."""
    return f"predictor.{name}" if re.match(r"(F0|N)\.\d|F0_proj|N_proj|shared", name) else name


def _weight(graph: Graph, name: str) -> np.ndarray | None:
    """The weight of a state-dict name, None where the graph has none."""
    module, _, last = name.rpartition(".")
    if name in graph.plain:
        return graph.plain[name]
    if last == "weight_v" and module in graph.dense:
        return _direction(graph.dense[module])
    if last == "weight_g" and module in graph.dense:
        return _length(graph.dense[module])
    if last == "weight":
        return graph.dense.get(module)
    if match := re.fullmatch(r"(weight|bias)_(ih|hh)_l0(_reverse)?", last):
        return _lstm(graph.recurrent.get(module), *match.groups())
    return None


def _direction(weight: np.ndarray) -> np.ndarray:
    """The weight itself; rows rounded to zero get any direction, for theirs would be 0/0. Their length is zero."""
    zero = ~weight.reshape(len(weight), -1).any(axis=1)
    weight = weight.copy()
    weight[zero] = 1.0
    return weight


def _length(weight: np.ndarray) -> np.ndarray:
    axes = tuple(range(1, weight.ndim))
    return np.sqrt((weight.astype(np.float64) ** 2).sum(axis=axes, keepdims=True)).astype(np.float32)


def _lstm(weights: tuple | None, what: str, which: str, reverse: str | None) -> np.ndarray | None:
    """One of PyTorch's matrices: gates input, forget, cell, output. ONNX has input, output, forget, cell."""
    if weights is None:
        return None
    into, recurrent, bias = weights
    direction = 1 if reverse else 0
    width = recurrent.shape[1]
    if what == "weight":
        values = (into if which == "ih" else recurrent)[direction].T
    else:
        values = bias[direction][: 4 * width] if which == "ih" else bias[direction][4 * width :]
    i, o, f, c = np.split(values, 4)
    return np.concatenate([i, f, c, o])
