"""The binary side of a glTF 2.0 file: the GLB container, buffers, and accessors as numpy arrays.

Every length is checked against the bytes that are really there before memory is taken for it.
Source: glTF 2.0 specification, sections 3.6 (binary data storage) and 4 (GLB).
"""

import base64
import binascii
import json
import struct
from pathlib import Path

import numpy as np

from meshes.gltf_schema import check
from meshes.paths import path_beside, read_file
from shared_utils.errors import InvalidInputError

COMPONENT_TYPES = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_MATRIX_ROWS = {"MAT2": 2, "MAT3": 3, "MAT4": 4}
# An accessor without a bufferView is all zeros and costs the file nothing: this bounds what it may cost the reader.
MAX_ZERO_ELEMENTS = 1 << 24


class GltfFile:
    """A glTF document with its buffers. `document` has passed the schema check; `accessor()` decodes."""

    def __init__(self, path: Path):
        self.path = path
        data = read_file(path)
        if data[:4] == b"glTF":
            text, self._binary = _split_glb(data, path)
        else:
            text, self._binary = data, None
        self.document = _parse(text, path)
        self._buffers: dict[int, bytes] = {}

    def list(self, name: str) -> list:
        """A top-level list of the document, empty if absent."""
        return self.document.get(name, [])

    def fail(self, text: str):
        """Raise InvalidInputError with this file's name in front."""
        raise InvalidInputError(f"{self.path}: {text}")

    def buffer(self, index: int) -> bytes:
        """The bytes of a buffer, at least as many as it claims."""
        if index not in self._buffers:
            entry = self.document["buffers"][index]
            if "uri" in entry:
                data = self.uri_bytes(entry["uri"])
            elif index == 0 and self._binary is not None:
                data = self._binary
            else:
                self.fail(f"buffer {index} has no data")
            if len(data) < entry["byteLength"]:
                self.fail(f"buffer {index} claims {entry['byteLength']} bytes, there are {len(data)}")
            self._buffers[index] = data
        return self._buffers[index]

    def uri_bytes(self, uri: str) -> bytes:
        """What a URI stands for: a data: URI's own bytes, or a file in this file's folder."""
        if uri[:5].lower() == "data:":
            head, comma, body = uri.partition(",")
            if not comma or not head.endswith(";base64"):
                self.fail("a data: URI is not base64")
            try:
                return base64.b64decode(body, validate=True)
            except (binascii.Error, ValueError):
                self.fail("a data: URI is not valid base64")
        return read_file(path_beside(self.path, uri, percent_encoded=True), named_by=self.path)

    def view(self, index: int) -> memoryview:
        """The bytes of a bufferView."""
        entry = self.document["bufferViews"][index]
        data = self.buffer(entry["buffer"])
        start, length = entry.get("byteOffset", 0), entry["byteLength"]
        if start + length > len(data):
            self.fail(f"bufferView {index} needs bytes {start}..{start + length}, its buffer has {len(data)}")
        return memoryview(data)[start : start + length]

    def accessor(self, index: int, *, kind: str | tuple = (), raw: bool = False) -> np.ndarray:
        """An accessor's values, [count, components] ([count] for SCALAR, [count, n, n] for matrices).

        Integers stay integers of their own type with `raw`, or when not normalised; normalised ones become float64 in
        [0, 1] or [-1, 1]; floats stay float32. `kind` names the element types allowed.
        """
        entry = self.document["accessors"][index]
        element, count = entry["type"], entry["count"]
        kinds = (kind,) if isinstance(kind, str) else kind
        if element not in COMPONENTS or (kinds and element not in kinds):
            self.fail(
                f"accessor {index} is of type {element!r}" + (f", needed is {' or '.join(kinds)}" if kinds else "")
            )
        dtype = self._component_type(entry["componentType"], f"accessor {index}")
        if "bufferView" in entry:
            values = self._elements(index, entry, dtype, element)
        else:
            if count > MAX_ZERO_ELEMENTS:
                self.fail(f"accessor {index} claims {count} elements and has no data")
            values = np.zeros((count, COMPONENTS[element]), dtype)
        if "sparse" in entry:
            values = self._with_sparse(index, entry, values, dtype, element)
        if entry.get("normalized") and not raw and dtype is not np.float32:
            values = np.maximum(values / float(np.iinfo(dtype).max), -1.0)
        if element == "SCALAR":
            return values[:, 0]
        if element in _MATRIX_ROWS:
            size = _MATRIX_ROWS[element]
            return values.reshape(count, size, size).transpose(0, 2, 1)
        return values

    def _component_type(self, code: int, where: str) -> type:
        if code not in COMPONENT_TYPES:
            self.fail(f"{where} has the unknown componentType {code}")
        return COMPONENT_TYPES[code]

    def _elements(self, index: int, entry: dict, dtype: type, element: str) -> np.ndarray:
        view = self.view(entry["bufferView"])
        rows, size = _MATRIX_ROWS.get(element, 1), np.dtype(dtype).itemsize
        # Matrix columns start at multiples of four bytes (section 3.6.2.4).
        column = COMPONENTS[element] // rows * size
        pitch = -(-column // 4) * 4 if rows > 1 else column
        packed = pitch * rows
        stride = self.document["bufferViews"][entry["bufferView"]].get("byteStride", packed)
        start, count = entry.get("byteOffset", 0), entry["count"]
        if stride < packed:
            self.fail(f"accessor {index} has elements of {packed} bytes every {stride} bytes")
        needed = start + stride * (count - 1) + packed
        if needed > len(view):
            self.fail(f"accessor {index} needs {needed} bytes ({count} elements), its bufferView has {len(view)}")
        little = np.dtype(dtype).newbyteorder("<")
        shape, strides = (count, rows, COMPONENTS[element] // rows), (stride, pitch, size)
        array = np.ndarray(shape, little, buffer=view, offset=start, strides=strides)
        return np.ascontiguousarray(array, dtype).reshape(count, COMPONENTS[element])

    def _with_sparse(self, index: int, entry: dict, values: np.ndarray, dtype: type, element: str) -> np.ndarray:
        sparse = entry["sparse"]
        if sparse["count"] > entry["count"]:
            self.fail(f"accessor {index} replaces {sparse['count']} of its {entry['count']} elements")
        where = f"accessor {index} sparse indices"
        places = self._elements(
            index,
            sparse["indices"] | {"count": sparse["count"]},
            self._component_type(sparse["indices"]["componentType"], where),
            "SCALAR",
        )[:, 0].astype(np.int64)
        if places.min() < 0 or places.max() >= entry["count"]:
            self.fail(f"{where} go up to {places.max()}, it has {entry['count']} elements")
        values = values.copy()
        values[places] = self._elements(index, sparse["values"] | {"count": sparse["count"]}, dtype, element)
        return values


def _split_glb(data: bytes, path: Path) -> tuple[bytes, bytes | None]:
    """The JSON and the binary chunk of a GLB."""
    if len(data) < 20:
        raise InvalidInputError(f"{path}: GLB cut off after {len(data)} bytes")
    _, version, length = struct.unpack_from("<4sII", data)
    if version != 2:
        raise InvalidInputError(f"{path}: GLB version {version}; only version 2 is supported")
    if length > len(data):
        raise InvalidInputError(f"{path}: GLB cut off: it claims {length} bytes, there are {len(data)}")
    chunks, position = [], 12
    while position + 8 <= length:
        size, kind = struct.unpack_from("<I4s", data, position)
        position += 8
        if position + size > length:
            raise InvalidInputError(
                f"{path}: GLB chunk {len(chunks)} claims {size} bytes, {length - position} are left"
            )
        chunks.append((kind, data[position : position + size]))
        position += size + -size % 4
    if not chunks or chunks[0][0] != b"JSON":
        raise InvalidInputError(f"{path}: GLB without a JSON chunk")
    return chunks[0][1], next((body for kind, body in chunks[1:] if kind == b"BIN\x00"), None)


def _parse(text: bytes, path: Path) -> dict:
    if not text.strip(b" \t\r\n\x00"):
        raise InvalidInputError(f"{path}: empty file")
    try:
        document = json.loads(text.decode("utf-8-sig").rstrip("\x00"))
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path}: not a glTF file (no GLB magic, and no UTF-8 text)") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path}: its JSON is damaged ({' '.join(str(error).split())[:100]})") from error
    if isinstance(document, dict) and isinstance(asset := document.get("asset", {}), dict):
        version = str(asset.get("version", "none"))
        if not version.startswith("2"):
            raise InvalidInputError(f"{path}: glTF version {version[:20]}; only version 2 is supported")
    return check(document, path)


def extras_of(entry: dict) -> dict:
    """The `extras` of a glTF object as a dict."""
    extras = entry.get("extras", {})
    return extras if isinstance(extras, dict) else {"value": extras}
