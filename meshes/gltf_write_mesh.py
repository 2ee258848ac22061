"""One Mesh as a glTF mesh: polygons cut into triangles, face-varying values into vertices, materials into primitives."""

import numpy as np

from meshes.scene import FaceVarying, Mesh
from meshes.skinning import influence_table
from meshes.triangulate import newell_normals, triangulate
from shared_utils.errors import InvalidInputError

_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963


def write_mesh(mesh: Mesh, writer, materials) -> int | None:
    """Add the mesh to a GltfWriter; its index, or None for a mesh without faces (glTF has no empty meshes)."""
    if not len(mesh.face_sizes):
        writer.warn(f"mesh {mesh.name!r} has no faces and is left out of the glTF file")
        return None
    if not np.isfinite(mesh.points).all():
        raise InvalidInputError(f"mesh {mesh.name!r} has a position that is not a finite number; glTF cannot hold it")
    _name_losses(mesh, writer)
    corners, corner_of = _vertices(mesh)
    point_of = mesh.face_vertices[corner_of] if corner_of is not None else np.arange(len(mesh.points))
    attributes = {"POSITION": _vertex_array(writer, mesh.points[point_of], "VEC3", bounds=True)}

    def at_vertices(varying: FaceVarying) -> np.ndarray:
        return varying.values[varying.indices[corner_of]] if corner_of is not None else varying.values

    if mesh.normals is not None:
        normals = _unit_normals(mesh, at_vertices(mesh.normals), corners)
        attributes["NORMAL"] = _vertex_array(writer, normals, "VEC3")
    for number, varying in enumerate(mesh.uv_sets.values()):
        uv = np.array(at_vertices(varying))
        uv[:, 1] = 1.0 - uv[:, 1]
        if not np.isfinite(uv).all():
            writer.warn(f"mesh {mesh.name!r}: texture coordinates that are not finite numbers became 0")
            uv = np.where(np.isfinite(uv), uv, 0.0)
        attributes[f"TEXCOORD_{number}"] = _vertex_array(writer, uv, "VEC2")
    if not mesh.uv_sets and any(materials.has_texture(index) for index in np.unique(mesh.face_material)):
        # A texture without coordinates shows its corner in USD; glTF wants that written out.
        attributes["TEXCOORD_0"] = _vertex_array(writer, np.zeros((len(point_of), 2)), "VEC2")
    for number, varying in enumerate(mesh.colors.values()):
        values = at_vertices(varying)
        attributes[f"COLOR_{number}"] = _vertex_array(
            writer, np.nan_to_num(values), "VEC3" if values.shape[1] == 3 else "VEC4"
        )
    _add_primvars(mesh, writer, attributes, at_vertices, point_of)
    if mesh.skin is not None:
        _add_influences(mesh, writer, attributes, point_of)
    targets = [_target(shape, len(mesh.points), point_of, writer) for shape in mesh.blend_shapes]
    triangles, face_of = triangulate(mesh)
    triangles = corners[triangles]
    primitives = []
    for material in np.unique(mesh.face_material):
        own = triangles[mesh.face_material[face_of] == material].reshape(-1)
        dtype = "<u2" if len(point_of) < 65535 else "<u4"
        primitive = {
            "attributes": attributes,
            "indices": writer.add_array(own.astype(dtype), "SCALAR", _ELEMENT_ARRAY_BUFFER),
        }
        if material >= 0:
            primitive["material"] = materials.index(int(material), list(mesh.uv_sets), mesh.double_sided)
        elif mesh.double_sided:
            primitive["material"] = materials.plain_double_sided()
        if targets:
            primitive["targets"] = targets
        primitives.append(primitive)
    entry = {"name": mesh.name} if mesh.name else {}
    extras = dict(mesh.extras)
    if targets:
        entry["weights"] = [shape.weight for shape in mesh.blend_shapes]
        extras["targetNames"] = [shape.name for shape in mesh.blend_shapes]
    entry |= {"extras": extras} if extras else {}
    return writer.add("meshes", entry | {"primitives": primitives})


def _vertex_array(writer, values: np.ndarray, kind: str, bounds: bool = False) -> int:
    with np.errstate(over="ignore"):
        single = values.astype("<f4")
    if not np.isfinite(single).all():
        raise InvalidInputError("a number of the scene is too large for the 32-bit floats of glTF")
    return writer.add_array(single, kind, _ARRAY_BUFFER, bounds)


def _name_losses(mesh: Mesh, writer) -> None:
    larger = int((mesh.face_sizes > 3).sum())
    if larger:
        writer.warn(
            f"mesh {mesh.name!r}: glTF knows triangles only; {larger} quads and larger faces were cut (USD and OBJ keep them)"
        )
    if mesh.face_groups:
        writer.warn(f"mesh {mesh.name!r}: the face groups {', '.join(sorted(mesh.face_groups))} have no place in glTF")
    if mesh.subdivision != "none" or mesh.crease_edges is not None or mesh.corner_points is not None:
        writer.warn(f"mesh {mesh.name!r}: subdivision and creases have no place in glTF")
    for shape in mesh.blend_shapes:
        if shape.inbetweens:
            writer.warn(f"mesh {mesh.name!r}: the in-betweens of blend shape {shape.name!r} have no place in glTF")


def _vertices(mesh: Mesh) -> tuple[np.ndarray, np.ndarray | None]:
    """For every corner its vertex [L], and for every vertex one of its corners (None: the vertices are the points)."""
    varying = [mesh.normals] if mesh.normals is not None else []
    varying += [*mesh.uv_sets.values(), *mesh.colors.values()]
    columns = [value for value in varying if not _follows_points(mesh, value.indices, len(value.values))]
    extra = [p for p in mesh.primvars.values() if p.interpolation == "faceVarying" and p.values.dtype.kind in "fiu"]
    columns += [
        FaceVarying(p.values, indices)
        for p in extra
        if not _follows_points(mesh, indices := _primvar_indices(p), len(p.values))
    ]
    if not columns:
        return mesh.face_vertices.astype(np.int64), None
    keys = mesh.face_vertices.astype(np.int64)
    for value in columns:
        own = _merge_equal(value)
        _, keys = np.unique(keys * (int(own.max()) + 1) + own, return_inverse=True)
    # Vertices in the order of their points: `unique` sorted by the point first, and renumbering kept that order.
    _, corner_of, corners = np.unique(keys, return_index=True, return_inverse=True)
    return corners.astype(np.int64), corner_of


def _primvar_indices(primvar) -> np.ndarray:
    return np.arange(len(primvar.values), dtype=np.int32) if primvar.indices is None else primvar.indices


def _follows_points(mesh: Mesh, indices: np.ndarray, count: int) -> bool:
    return count == len(mesh.points) and np.array_equal(indices, mesh.face_vertices)


def _merge_equal(varying: FaceVarying) -> np.ndarray:
    """The corners' indices [L] int64 with equal values (as 32-bit floats) numbered alike."""
    single = np.ascontiguousarray(varying.values.astype("<f4").reshape(len(varying.values), -1))
    rows = single.view(np.dtype((np.void, single.dtype.itemsize * single.shape[1])))[:, 0]
    _, inverse = np.unique(rows, return_inverse=True)
    return inverse.reshape(-1)[varying.indices].astype(np.int64)


def _unit_normals(mesh: Mesh, normals: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Normals of length 1, as glTF demands; zero or broken ones take the normal of a face at their vertex."""
    lengths = np.linalg.norm(normals, axis=1)
    if len(lengths) and (np.abs(lengths - 1) < 1e-4).all():
        return normals
    broken = ~np.isfinite(lengths) | (lengths < 1e-12)
    unit = np.array(normals / np.where(broken, 1, lengths)[:, None])
    if broken.any():
        fallback = np.zeros_like(unit)
        fallback[corners] = newell_normals(mesh)[mesh.corner_faces()]
        fallback_lengths = np.linalg.norm(fallback, axis=1, keepdims=True)
        usable = fallback_lengths[:, 0] > 0
        fallback = np.where(usable[:, None], fallback / np.where(usable[:, None], fallback_lengths, 1), [0.0, 0.0, 1.0])
        unit[broken] = fallback[broken]
    return unit


def _add_primvars(mesh: Mesh, writer, attributes: dict, at_vertices, point_of: np.ndarray) -> None:
    for name, primvar in mesh.primvars.items():
        numbers = primvar.values.dtype.kind in "fiu" and np.isfinite(primvar.values).all()
        indices = _primvar_indices(primvar)
        if not numbers or primvar.interpolation not in ("vertex", "faceVarying"):
            writer.warn(f"mesh {mesh.name!r}: the primvar {name!r} has no place in glTF")
            continue
        rows = primvar.values.reshape(len(primvar.values), -1).astype(np.float64)
        if rows.shape[1] > 4:
            writer.warn(f"mesh {mesh.name!r}: the primvar {name!r} has no place in glTF")
            continue
        values = (
            rows[indices][point_of] if primvar.interpolation == "vertex" else at_vertices(FaceVarying(rows, indices))
        )
        kind = ("SCALAR", "VEC2", "VEC3", "VEC4")[rows.shape[1] - 1]
        if name == "tangents" and rows.shape[1] == 4:
            if _valid_tangents(values) and mesh.normals is not None:
                attributes["TANGENT"] = _vertex_array(writer, values, "VEC4")
            else:
                writer.warn(f"mesh {mesh.name!r}: its tangents are not of length 1 and are left out")
            continue
        safe = "".join(character if character.isalnum() and character.isascii() else "_" for character in name).upper()
        if f"_{safe}" in attributes:
            writer.warn(f"mesh {mesh.name!r}: two primvars would be called _{safe} in glTF; {name!r} is left out")
            continue
        attributes[f"_{safe}"] = _vertex_array(writer, values[:, 0] if kind == "SCALAR" else values, kind)


def _valid_tangents(values: np.ndarray) -> bool:
    lengths = np.linalg.norm(values[:, :3], axis=1)
    return bool((np.abs(lengths - 1) < 1e-3).all() and np.isin(values[:, 3], [-1.0, 1.0]).all())


def _add_influences(mesh: Mesh, writer, attributes: dict, point_of: np.ndarray) -> None:
    """JOINTS_n and WEIGHTS_n, as many sets as the point with most influences needs; weights add up to 1."""
    joints, weights = influence_table(mesh.skin, len(mesh.points))
    sums = weights.sum(1)
    empty = sums <= 0
    if empty.any():
        writer.warn(f"mesh {mesh.name!r}: {int(empty.sum())} points follow no joint; in glTF they follow the first one")
        weights[empty, 0], joints[empty, 0] = 1.0, 0
        sums = weights.sum(1)
    off = np.abs(sums - 1) > 1e-6
    weights[off] /= sums[off, None]
    largest = int(joints.max()) if joints.size else 0
    joints = joints.astype("<u1" if largest < 256 else "<u2")
    for number in range(joints.shape[1] // 4):
        span = slice(4 * number, 4 * number + 4)
        attributes[f"JOINTS_{number}"] = writer.add_array(joints[point_of, span], "VEC4", _ARRAY_BUFFER)
        attributes[f"WEIGHTS_{number}"] = _vertex_array(writer, weights[point_of, span], "VEC4")


def _target(shape, points: int, point_of: np.ndarray, writer) -> dict:
    def dense(values: np.ndarray) -> np.ndarray:
        if shape.indices is None:
            return values[point_of]
        full = np.zeros((points, 3))
        full[shape.indices] = values
        return full[point_of]

    target = {"POSITION": _vertex_array(writer, dense(shape.offsets), "VEC3", bounds=True)}
    if shape.normal_offsets is not None:
        target["NORMAL"] = _vertex_array(writer, dense(shape.normal_offsets), "VEC3")
    return target
