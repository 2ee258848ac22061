"""PLY and STL -> Scene (OBJ has its own modules). Neither format says which way is up or how long a unit is: Y and
metres are assumed and no number is changed.

Sources: Turk, "The PLY Polygon File Format" (1994); "StL Interface Specification", 3D Systems (1989).
"""

import re
import struct
from pathlib import Path

import numpy as np

from meshes.obj_read import read_obj
from meshes.paths import read_file
from meshes.scene import FaceVarying, Mesh, Node, Primvar, Scene
from shared_utils.errors import InvalidInputError

_PLY_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_FACE_LISTS = ("vertex_indices", "vertex_index")


def read_polygons(path: Path) -> Scene:
    """Read .obj, .ply or .stl. Raises InvalidInputError or MissingInputError with one line."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".obj":
        return read_obj(path)
    data = read_file(path)
    if not data.strip():
        raise InvalidInputError(f"{path}: empty file")
    scene = Scene()
    mesh = _read_ply(data, path, scene) if suffix == ".ply" else _read_stl(data, path, scene)
    if problem := mesh.problem():
        raise InvalidInputError(f"{path}: {problem}")
    scene.meshes.append(mesh)
    scene.nodes.append(Node(mesh.name, mesh=0))
    return scene


def _read_stl(data: bytes, path: Path, scene: Scene) -> Mesh:
    """Triangles; corners at one position become one point, as the format has no other way to say so."""
    count = struct.unpack_from("<I", data, 80)[0] if len(data) >= 84 else -1
    groups: dict[str, np.ndarray] = {}
    if count >= 0 and len(data) == 84 + 50 * count:
        corners = _binary_stl(data, count, path, scene)
    elif data.lstrip()[:5].lower() == b"solid":
        corners, groups = _ascii_stl(data, path)
    elif count > 0 and len(data) > 84 + 50 * count:
        corners = _binary_stl(data, count, path, scene)
        scene.warn(f"{len(data) - 84 - 50 * count} bytes behind the last triangle are not kept")
    else:
        raise InvalidInputError(
            f"{path}: no STL file, or cut off: {len(data)} bytes, its header speaks of {max(count, 0)} triangles"
        )
    corners = corners + 0.0  # -0.0 and 0.0 are one position.
    rows = np.ascontiguousarray(corners).view(np.dtype((np.void, 24)))[:, 0]
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))  # Points in the order in which the file first names them.
    points = corners[np.sort(first)]
    sizes = np.full(len(corners) // 3, 3, np.int32)
    vertices = rank[inverse.reshape(-1)].astype(np.int32)
    return Mesh(path.stem, points, sizes, vertices, face_groups=groups)


def _binary_stl(data: bytes, count: int, path: Path, scene: Scene) -> np.ndarray:
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    triangles = np.frombuffer(data, record, count, 84)
    if triangles["attribute"].any():
        scene.warn("the attribute numbers of its triangles (colours, in some programs) are not kept")
    return triangles["corners"].reshape(-1, 3).astype(np.float64)


def _ascii_stl(data: bytes, path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    text = data.decode("utf-8", "replace")
    found = re.findall(r"^\s*vertex\s+(\S+)\s+(\S+)\s+(\S+)\s*$", text, re.MULTILINE | re.IGNORECASE)
    try:
        corners = np.array(found, np.float64).reshape(-1, 3)
    except ValueError as error:
        raise InvalidInputError(f"{path}: a vertex is not made of three numbers") from error
    loops = len(re.findall(r"^\s*endloop", text, re.MULTILINE | re.IGNORECASE))
    mentioned = len(re.findall(r"^\s*vertex\b", text, re.MULTILINE | re.IGNORECASE))
    closed = re.search(r"^\s*endsolid", text, re.MULTILINE | re.IGNORECASE)
    if mentioned != len(found) or len(corners) != 3 * loops or not closed:
        raise InvalidInputError(f"{path}: damaged or cut off: {mentioned} vertices, {loops} closed triangles")
    groups: dict[str, np.ndarray] = {}
    solids = list(re.finditer(r"^\s*solid\b[ \t]*(.*)$", text, re.MULTILINE | re.IGNORECASE))
    if len(solids) > 1:
        starts = [len(re.findall(r"^\s*endloop", text[: s.start()], re.MULTILINE | re.IGNORECASE)) for s in solids]
        for number, (solid, start) in enumerate(zip(solids, starts, strict=True)):
            end = starts[number + 1] if number + 1 < len(starts) else loops
            name = solid.group(1).strip() or f"solid{number}"
            name = name if name not in groups else f"{name}_{number}"
            groups[name] = np.arange(start, end, dtype=np.int32)
    return corners, groups


class _Property:
    """One `property` line: a scalar, or a list with the type of its length."""

    def __init__(self, words: list[str]):
        self.name = words[-1]
        self.is_list = words[0] == "list"
        self.count_type = _PLY_TYPES[words[1]] if self.is_list else ""
        self.type = _PLY_TYPES[words[2] if self.is_list else words[0]]


def _read_ply(data: bytes, path: Path, scene: Scene) -> Mesh:
    order, elements, body = _ply_header(data, path)
    columns: dict[str, dict] = {}
    rest: list[str] | bytes = body.split(b"\n") if order is None else body
    position = 0
    for name, count, properties in elements:
        if order is None:
            columns[name], position = _ascii_element(rest, position, count, properties, path, name)
        else:
            columns[name], position = _binary_element(rest, position, count, properties, path, name, order)
    for name, count, _ in elements:
        if name not in ("vertex", "face") and count:
            scene.warn(f"{count} entries of the PLY element {name!r} are not kept")
    return _ply_mesh(columns.get("vertex", {}), columns.get("face", {}), path, scene)


def _ply_header(data: bytes, path: Path):
    if not re.match(rb"ply[ \t]*\r?\n", data):
        raise InvalidInputError(f"{path}: no PLY file (it does not start with 'ply')")
    end = re.search(rb"(?:^|\n)end_header[ \t]*\r?\n", data[: 1 << 20])
    if end is None:
        raise InvalidInputError(f"{path}: PLY header without an end")
    orders = {"ascii": None, "binary_little_endian": "<", "binary_big_endian": ">"}
    order, elements = "missing", []
    for line in data[: end.start()].decode("ascii", "replace").splitlines()[1:]:
        words = line.split()
        try:
            if not words or words[0] in ("comment", "obj_info"):
                continue
            if words[0] == "format" and words[1] in orders:
                order = orders[words[1]]
            elif words[0] == "element" and int(words[2]) >= 0:
                elements.append((words[1], int(words[2]), []))
            elif words[0] == "property" and (len(words) == 3 or (words[1] == "list" and len(words) == 5)):
                elements[-1][2].append(_Property(words[1:]))
            else:
                raise ValueError(line)
        except (KeyError, IndexError, ValueError) as error:
            raise InvalidInputError(f"{path}: PLY header line {line.strip()[:60]!r} makes no sense") from error
    if order == "missing":
        raise InvalidInputError(f"{path}: PLY header without a format")
    return order, elements, data[end.end() :]


def _ascii_element(lines: list[bytes], position: int, count: int, properties, path: Path, name: str):
    """The element's columns, and the line behind it. Empty lines do not count."""
    taken: list[list[bytes]] = []
    while len(taken) < count:
        if position >= len(lines):
            raise InvalidInputError(f"{path}: cut off: {len(taken)} of {count} entries of {name!r}")
        words = lines[position].split()
        position += 1
        if words:
            taken.append(words)
    columns: dict = {}
    try:
        if not any(p.is_list for p in properties):
            if any(len(words) < len(properties) for words in taken):
                raise ValueError("too few numbers")
            table = np.array([words[: len(properties)] for words in taken], np.float64).reshape(count, len(properties))
            return {p.name: table[:, number] for number, p in enumerate(properties)}, position
        rows: dict[str, list] = {p.name: [] for p in properties}
        for words in taken:
            at = 0
            for p in properties:
                length = int(words[at]) if p.is_list else 1
                at += p.is_list
                if length < 0 or at + length > len(words):
                    raise ValueError("too few numbers")
                values = [float(word) for word in words[at : at + length]]
                rows[p.name].append(values if p.is_list else values[0])
                at += length
        for p in properties:
            if p.is_list:
                sizes = np.array([len(row) for row in rows[p.name]], np.int64)
                columns[p.name] = (sizes, np.array([value for row in rows[p.name] for value in row], np.float64))
            else:
                columns[p.name] = np.array(rows[p.name], np.float64)
    except (ValueError, IndexError, OverflowError) as error:
        raise InvalidInputError(f"{path}: an entry of {name!r} is not what the header says") from error
    return columns, position


def _binary_element(data: bytes, position: int, count: int, properties, path: Path, name: str, order: str):
    """The element's columns, and the byte behind it. Lists of one length are read at once, others one by one."""

    def cut_off():
        raise InvalidInputError(f"{path}: cut off: {len(data)} bytes are too few for {count} entries of {name!r}")

    fields, lengths = [], {}
    at = position
    for p in properties:  # A record as wide as the first one.
        if p.is_list:
            if count == 0:
                return {p.name: (np.zeros(0, np.int64), np.zeros(0)) for p in properties}, position
            size = np.dtype(p.count_type).itemsize
            if at + size > len(data):
                cut_off()
            lengths[p.name] = int(np.frombuffer(data, order + p.count_type, 1, at)[0])
            if lengths[p.name] < 0 or lengths[p.name] * np.dtype(p.type).itemsize > len(data):
                cut_off()
            fields += [(f"{p.name} length", order + p.count_type), (p.name, order + p.type, (lengths[p.name],))]
            at += size + lengths[p.name] * np.dtype(p.type).itemsize
        else:
            fields.append((p.name, order + p.type))
            at += np.dtype(p.type).itemsize
    record = np.dtype(fields)
    if not lengths and position + record.itemsize * count > len(data):
        cut_off()
    if position + record.itemsize * count <= len(data):
        table = np.frombuffer(data, record, count, position)
        if all((table[f"{key} length"] == length).all() for key, length in lengths.items()):
            columns: dict = {}
            for p in properties:
                values = table[p.name].astype(np.float64)
                columns[p.name] = (np.full(count, lengths[p.name]), values.reshape(-1)) if p.is_list else values
            return columns, position + record.itemsize * count
    return _binary_lists(data, position, count, properties, order, cut_off)


def _binary_lists(data: bytes, position: int, count: int, properties, order: str, cut_off):
    codes = {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "f4": "f", "f8": "d"}
    if count > len(data):
        cut_off()
    rows: dict[str, list] = {p.name: [] for p in properties}
    try:
        for _ in range(count):
            for p in properties:
                if p.is_list:
                    (length,) = struct.unpack_from(order + codes[p.count_type], data, position)
                    position += np.dtype(p.count_type).itemsize
                    size = length * np.dtype(p.type).itemsize
                    if length < 0 or position + size > len(data):
                        cut_off()
                    rows[p.name].append(np.frombuffer(data, order + p.type, length, position))
                    position += size
                else:
                    rows[p.name].append(struct.unpack_from(order + codes[p.type], data, position)[0])
                    position += np.dtype(p.type).itemsize
    except struct.error:
        cut_off()
    columns = {}
    for p in properties:
        if p.is_list:
            sizes = np.array([len(row) for row in rows[p.name]], np.int64)
            columns[p.name] = (sizes, np.concatenate([np.zeros(0), *rows[p.name]]).astype(np.float64))
        else:
            columns[p.name] = np.array(rows[p.name], np.float64)
    return columns, position


def _ply_mesh(vertex: dict, face: dict, path: Path, scene: Scene) -> Mesh:
    if not all(axis in vertex for axis in "xyz") or any(isinstance(vertex[axis], tuple) for axis in "xyz"):
        raise InvalidInputError(f"{path}: its vertices have no x, y and z")
    vertex, face = dict(vertex), dict(face)
    points = np.stack([vertex.pop(axis) for axis in "xyz"], 1)
    key = next((name for name in _FACE_LISTS if name in face), None)
    sizes, vertices = face.pop(key) if key else (np.zeros(0, np.int64), np.zeros(0))
    if len(vertices) and (not np.isfinite(vertices).all() or vertices.min() < 0 or vertices.max() >= len(points)):
        raise InvalidInputError(
            f"{path}: a face names vertex {vertices.min():.0f}..{vertices.max():.0f} of {len(points)}"
        )
    if len(sizes) == 0 and any(isinstance(value, tuple) for value in face.values()):
        scene.warn("the faces have no list of vertices and are not kept")
        face = {}
    keep = sizes >= 3
    if not keep.all():
        scene.warn(f"{int((~keep).sum())} faces with fewer than 3 corners are not kept")
    corner_keep = np.repeat(keep, sizes)
    mesh = Mesh(path.stem, points, sizes[keep].astype(np.int32), vertices[corner_keep].astype(np.int32))

    def take(source: dict, names: tuple[str, ...]) -> np.ndarray | None:
        usable = all(name in source and not isinstance(source[name], tuple) for name in names)
        return np.stack([source.pop(name) for name in names], 1) if usable else None

    if (normals := take(vertex, ("nx", "ny", "nz"))) is not None:
        mesh.normals = FaceVarying(normals, mesh.face_vertices)
    for names in (("s", "t"), ("u", "v"), ("texture_u", "texture_v")):
        if (uv := take(vertex, names)) is not None and "st" not in mesh.uv_sets:
            mesh.uv_sets["st"] = FaceVarying(uv, mesh.face_vertices)
    for names in (("red", "green", "blue", "alpha"), ("red", "green", "blue"), ("r", "g", "b")):
        if (color := take(vertex, names)) is not None and "displayColor" not in mesh.colors:
            mesh.colors["displayColor"] = FaceVarying(_unit_colors(color), mesh.face_vertices)
    if (color := take(face, ("red", "green", "blue"))) is not None and "displayColor" not in mesh.colors:
        mesh.colors["displayColor"] = FaceVarying(_unit_colors(color[keep]), mesh.corner_faces())
    if "texcoord" in face:
        lengths, values = face.pop("texcoord")
        if (lengths == 2 * sizes).all():
            rows = values.reshape(-1, 2)[corner_keep]
            mesh.uv_sets.setdefault("st", FaceVarying(rows, np.arange(len(rows), dtype=np.int32)))
        else:
            scene.warn("texture coordinates which are not two for each corner are not kept")
    for source, interpolation in ((vertex, "vertex"), (face, "uniform")):
        for name, values in source.items():
            if isinstance(values, tuple):
                scene.warn(f"the PLY list {name!r} is not kept")
            else:
                values = values if interpolation == "vertex" else values[keep]
                mesh.primvars[name] = Primvar(values, None, interpolation, "float")
    return mesh


def _unit_colors(values: np.ndarray) -> np.ndarray:
    """0..255 (the usual bytes) as 0..1; values that are fractions already stay. PLY does not say which."""
    return values / 255.0 if (values == np.round(values)).all() and values.max(initial=0) > 1 else values
