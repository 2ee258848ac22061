"""What the USD writer's parts share: legal names and values in USD's types."""

import json

import numpy as np
from pxr import Gf, Tf, Usd, UsdGeom, Vt


class NameScope:
    """Hands out legal prim names, each once below one parent."""

    def __init__(self):
        self._taken: dict[object, set[str]] = {}

    def unique(self, parent: object, name: str) -> str:
        """A legal name like `name` that nothing else below `parent` has."""
        taken = self._taken.setdefault(parent, set())
        base = legal_name(name)
        candidate, number = base, 0
        while candidate in taken:
            number += 1
            candidate = f"{base}_{number}"
        taken.add(candidate)
        return candidate


def legal_name(name: str) -> str:
    """The name with everything but ASCII letters, digits and underscores replaced (readers older than 2024 know no
    other).
    """
    return Tf.MakeValidIdentifier("".join(c if c.isascii() else "_" for c in name)) if name else "_"


def set_display_name(thing, name: str) -> None:
    """Keep the original of a name that had to be changed, on a prim or a property."""
    if name and thing.GetName().rpartition(":")[2] != name and not any(ord(c) < 32 for c in name):
        thing.SetDisplayName(name)


def original_name(thing) -> str:
    """The inverse of `set_display_name`; Blender keeps the original in a property of its own."""
    if isinstance(thing, Usd.Prim) and not thing.GetDisplayName():
        kinds = ("data_name", "object_name") if thing.IsA(UsdGeom.Mesh) else ("object_name", "data_name")
        for kind in kinds:
            name = thing.GetAttribute(f"userProperties:blender:{kind}").Get()
            if isinstance(name, str) and name:
                return name
    return thing.GetDisplayName() or thing.GetName().rpartition(":")[2]


def set_extras(prim, extras: dict) -> None:
    """Keep a scene's free-form data as JSON text in the prim's custom data."""
    if extras:
        prim.SetCustomDataByKey("extras", json.dumps(extras, ensure_ascii=False))


def get_extras(prim) -> dict:
    """The inverse of `set_extras`; custom data of other makers is not touched."""
    text = prim.GetCustomDataByKey("extras")
    try:
        extras = json.loads(text) if isinstance(text, str) else {}
    except ValueError:
        return {}
    return extras if isinstance(extras, dict) else {}


def gf_matrix(matrix: np.ndarray) -> Gf.Matrix4d:
    """A column-vector matrix [4, 4] as USD's row-vector one."""
    return Gf.Matrix4d(np.asarray(matrix, np.float64).T.tolist())


def from_gf(matrix: Gf.Matrix4d) -> np.ndarray:
    """USD's row-vector matrix as a column-vector one [4, 4]."""
    return np.array(matrix, np.float64).T.copy()


def gf_matrices(matrices: np.ndarray) -> Vt.Matrix4dArray:
    """Matrices [N, 4, 4] as USD's row-vector ones."""
    return Vt.Matrix4dArray.FromNumpy(np.ascontiguousarray(np.asarray(matrices, np.float64).transpose(0, 2, 1)))


def from_gf_matrices(matrices) -> np.ndarray:
    """The inverse of `gf_matrices`: [N, 4, 4]."""
    return value_array(matrices, (-1, 4, 4), np.float64).transpose(0, 2, 1).copy()


class BadValue(ValueError):
    """A value in a USD file is not of the type or the shape that its schema says."""


def value_array(value, shape: tuple, dtype) -> np.ndarray:
    """A Vt array (or None) as numpy of this shape (-1: any number) and type. Raises BadValue if it is something else."""
    try:
        if value is None or len(value) == 0:
            return np.zeros([0 if length == -1 else length for length in shape], dtype)
        array = np.array(value)
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{array.dtype} values")
        return np.ascontiguousarray(array.reshape(shape), dtype)
    except (TypeError, ValueError) as error:
        raise BadValue(f"a {type(value).__name__} where {len(shape)}-dimensional numbers belong") from error


def floats(values: np.ndarray, kind):
    """Values as a Vt array of 32-bit floats (`kind`: Vt.FloatArray, Vt.Vec3fArray, ...)."""
    return kind.FromNumpy(np.ascontiguousarray(values, np.float32))


def ints(values: np.ndarray) -> Vt.IntArray:
    """Values as a Vt array of 32-bit integers."""
    return Vt.IntArray.FromNumpy(np.ascontiguousarray(values, np.int32))
