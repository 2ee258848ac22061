"""Golden cases and the comparison of tensors: what `parity.py` and its `parity_*.py` family modules share.

A case is a pair `case_<family>_<n>.json` and `.safetensors`. The tensors are named `weight/<key>`, `in/<name>`,
`out/<name>`, or the same with `w.`, `in.`, `out.`. The JSON holds `config`, notes, `extra` and sometimes `tolerance`.

A family module provides `CASES: dict[str, Callable[[Case], list[Check]]]`. A family function runs our code on
`case.inputs` and `case.weights` and returns one `Check` per output it compared:

    def run_sampler(case):
        points = sample(case.inputs["vertices"].numpy(), ...)
        return [close(case, "vertices", points, atol=1e-6), exact(case, "ids", ids)]

    CASES = {"sampler": run_sampler}
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

NETWORK_ATOL, NETWORK_RTOL = 2e-5, 1e-4
GEOMETRY_ATOL = 1e-5

_PREFIXES = {
    "weights": ("weight/", "w."),
    "inputs": ("in/", "in."),
    "outputs": ("out/", "out."),
}


class CaseError(Exception):
    """A case that cannot be read."""


@dataclass
class Case:
    """One golden case. The tensors are torch CPU tensors, named without their `in/`-like prefix."""

    name: str  # file stem, such as "case_subm_conv_gpu_rule_1"
    family: str  # "subm_conv_gpu_rule"
    config: dict
    meta: dict  # the whole JSON: config, notes, extra, tolerance
    weights: dict = field(repr=False)
    inputs: dict = field(repr=False)
    outputs: dict = field(repr=False)
    directory: Path = field(repr=False)

    @property
    def extra(self) -> dict:
        return self.meta.get("extra") or {}

    def sibling(self, stem: str) -> "Case":
        """Another case of the same folder, by file stem: where a `pipeline` case takes its weights from."""
        return load_case(self.directory / f"{stem}.json")


@dataclass
class Check:
    """One compared output. `error` and `tolerance` belong to the element that comes closest to (or goes most beyond)
    what is allowed there, so that `ok` is `error <= tolerance`."""

    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance

    @property
    def ratio(self) -> float:
        if self.error == 0:
            return 0.0
        return self.error / self.tolerance if self.tolerance > 0 else float("inf")


def family_of(stem: str) -> str:
    """`case_subm_conv_gpu_rule_1` -> `subm_conv_gpu_rule`. The last `_<n>` is the number, optionally with a letter."""
    match = re.fullmatch(r"case_(.+)_\d+[a-z]?", stem)
    if not match:
        raise CaseError(f"{stem}: not named case_<family>_<n>")
    return match.group(1)


def load_case(json_path: Path) -> Case:
    """Read `<stem>.json` and `<stem>.safetensors`. Raises CaseError when either is missing or malformed."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    json_path = Path(json_path)
    family = family_of(json_path.stem)
    tensor_path = json_path.with_suffix(".safetensors")
    try:
        meta = json.loads(json_path.read_text(encoding="utf-8"))
        tensors = load_file(tensor_path)
    except (OSError, ValueError, SafetensorError) as error:
        raise CaseError(f"{json_path.stem}: {error}") from error
    groups = {group: {} for group in _PREFIXES}
    for key, tensor in tensors.items():
        for group, prefixes in _PREFIXES.items():
            prefix = next((p for p in prefixes if key.startswith(p)), None)
            if prefix is not None:
                groups[group][key[len(prefix) :]] = tensor
                break
        else:
            raise CaseError(f"{json_path.stem}: tensor {key!r} has none of the prefixes of a golden case")
    config = meta.get("config") or {}
    return Case(json_path.stem, family, config, meta, **groups, directory=json_path.parent)


def tolerance_of(case: Case, name: str, atol: float, rtol: float) -> tuple[float, float]:
    """(atol, rtol) for one output: the case's own JSON `tolerance` if it names one, else the values given.

    The JSON has `"exact"`, a number, `{"atol":…, "rtol":…}`, or a mapping from output names to one of these; a name
    such as `vertices` there also covers `mesh0.vertices`.
    """
    own = case.meta.get("tolerance")
    if isinstance(own, dict) and "atol" not in own and "rtol" not in own:
        own = own.get(name, own.get(name.rsplit(".", 1)[-1]))
    if own is None:
        return atol, rtol
    if own == "exact":
        return 0.0, 0.0
    if isinstance(own, dict):
        return float(own.get("atol", 0.0)), float(own.get("rtol", 0.0))
    return float(own), 0.0


def close(
    case: Case, name: str, actual, *, expected=None, atol: float = NETWORK_ATOL, rtol: float = NETWORK_RTOL
) -> Check:
    """Compare one output within atol + rtol·|expected|; a wrong shape or a stray NaN is an infinite error.

    actual and expected: anything `numpy.asarray` takes. `expected` defaults to `case.outputs[name]`. The tolerance of
    the case's own JSON wins over `atol` and `rtol`.
    """
    atol, rtol = tolerance_of(case, name, atol, rtol)
    reference = _array(case.outputs[name] if expected is None else expected)
    value = _array(actual)
    if value.shape != reference.shape:
        return Check(f"{name} (shape {list(value.shape)}, expected {list(reference.shape)})", float("inf"), atol)
    if value.size == 0:
        return Check(name, 0.0, atol)
    equal = (value == reference) | (np.isnan(value) & np.isnan(reference))
    with np.errstate(invalid="ignore"):
        error = np.where(equal, 0.0, np.abs(value - reference))
    error = np.where(np.isnan(error), np.inf, error)
    allowed = atol + rtol * np.abs(np.nan_to_num(reference, posinf=0.0, neginf=0.0))
    worst = np.argmax(error / np.maximum(allowed, np.finfo(float).tiny))
    return Check(name, float(error.flat[worst]), float(allowed.flat[worst]))


def exact(case: Case, name: str, actual, *, expected=None) -> Check:
    """Compare a discrete output element by element; the error is the largest difference."""
    reference = _array(case.outputs[name] if expected is None else expected)
    check = close(case, name, actual, expected=reference)
    value = _array(actual)
    if value.shape != reference.shape or value.size == 0:
        return Check(check.name, check.error, 0.0)
    equal = (value == reference) | (np.isnan(value) & np.isnan(reference))
    worst = np.max(np.where(equal, 0.0, np.abs(value - reference)))
    return Check(name, float("inf") if np.isnan(worst) else float(worst), 0.0)


def same(name: str, actual, expected) -> Check:
    """Compare what is no tensor (names, labels): the error is the number of differing entries."""
    actual, expected = list(actual), list(expected)
    if len(actual) != len(expected):
        return Check(f"{name} ({len(actual)} entries, expected {len(expected)})", float("inf"), 0.0)
    return Check(name, float(sum(a != b for a, b in zip(actual, expected, strict=True))), 0.0)


def _array(value) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value).astype(np.float64)
