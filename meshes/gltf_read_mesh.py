"""One glTF mesh -> Mesh: its primitives joined, with attributes, blend shapes and the skin of the node that shows it."""

import numpy as np

from meshes.gltf_accessors import GltfFile, extras_of
from meshes.gltf_materials import uv_name
from meshes.scene import BlendShape, FaceVarying, Mesh, Primvar, Scene, Skin
from meshes.skinning import influences_to_rows

_TRIANGLES, _STRIP, _FAN = 4, 5, 6
_MODE_NAMES = {0: "points", 1: "lines", 2: "line loop", 3: "line strip"}


def read_mesh(gltf: GltfFile, scene: Scene, layout, index: int, skin: int | None, node_weights: tuple) -> Mesh:
    """One glTF mesh as one Mesh, with the skin of the node that shows it."""
    entry = gltf.document["meshes"][index]
    name = entry.get("name", f"mesh{index}")
    blocks: dict[tuple, int] = {}  # attribute accessors -> which block of points
    block_attributes: list[dict[str, np.ndarray]] = []
    block_targets: list[list[dict[str, np.ndarray]]] = []
    faces, materials, face_block = [], [], []
    for number, primitive in enumerate(entry["primitives"]):
        where = f"mesh {index} primitive {number}"
        mode = primitive.get("mode", _TRIANGLES)
        if mode in _MODE_NAMES:
            scene.warn(f"mesh {name!r}: primitive {number} is made of {_MODE_NAMES[mode]} and is not kept")
            continue
        if mode not in (_TRIANGLES, _STRIP, _FAN):
            gltf.fail(f"{where} has the unknown mode {mode}")
        if "POSITION" not in primitive["attributes"]:
            scene.warn(f"mesh {name!r}: primitive {number} has no positions and is not kept")
            continue
        targets = primitive.get("targets", [])
        key = (tuple(sorted(primitive["attributes"].items())), tuple(tuple(sorted(t.items())) for t in targets))
        if key not in blocks:
            blocks[key] = len(block_attributes)
            attributes = _read_attributes(gltf, primitive["attributes"], where)
            block_attributes.append(attributes)
            block_targets.append(_read_targets(gltf, scene, targets, len(attributes["POSITION"]), name, where))
        count = len(block_attributes[blocks[key]]["POSITION"])
        triangles = _triangles(gltf, primitive, mode, count, where)
        faces.append(triangles)
        face_block.append(blocks[key])
        materials.append(np.full(len(triangles), primitive.get("material", -1), np.int32))
    return _assemble(
        gltf, scene, layout, (index, name, skin), entry | {"_weights": node_weights},
        block_attributes, block_targets, faces, face_block, materials,
    )  # fmt: skip


def _triangles(gltf: GltfFile, primitive: dict, mode: int, count: int, where: str) -> np.ndarray:
    """Triangle corners [T, 3] int64 of a primitive."""
    if "indices" in primitive:
        indices = gltf.accessor(primitive["indices"], kind="SCALAR", raw=True)
        if indices.dtype.kind != "u":
            gltf.fail(f"{where}: its indices are not unsigned integers")
        if len(indices) and int(indices.max()) >= count:
            gltf.fail(f"{where}: index {int(indices.max())}, there are {count} vertices")
        indices = indices.astype(np.int64)
    else:
        indices = np.arange(count, dtype=np.int64)
    if mode == _TRIANGLES:
        if len(indices) % 3:
            gltf.fail(f"{where}: {len(indices)} indices do not make whole triangles")
        return indices.reshape(-1, 3)
    if len(indices) < 3:
        gltf.fail(f"{where}: {len(indices)} indices do not make a triangle")
    if mode == _FAN:
        return np.stack([indices[1:-1], indices[2:], np.broadcast_to(indices[0], len(indices) - 2)], 1)
    strip = np.stack([indices[:-2], indices[1:-1], indices[2:]], 1)
    strip[1::2] = strip[1::2][:, [0, 2, 1]]
    stitches = (strip[:, 0] == strip[:, 1]) | (strip[:, 1] == strip[:, 2]) | (strip[:, 0] == strip[:, 2])
    return strip[~stitches]


_ATTRIBUTE_KINDS = {
    "POSITION": ("VEC3",),
    "NORMAL": ("VEC3",),
    "TANGENT": ("VEC4",),
    "TEXCOORD": ("VEC2",),
    "COLOR": ("VEC3", "VEC4"),
    "JOINTS": ("VEC4",),
    "WEIGHTS": ("VEC4",),
}


def _read_attributes(gltf: GltfFile, attributes: dict[str, int], where: str) -> dict[str, np.ndarray]:
    """All vertex attributes of a primitive, each with one row a vertex."""
    count = gltf.document["accessors"][attributes["POSITION"]]["count"]
    read = {}
    for name, index in sorted(attributes.items()):
        if gltf.document["accessors"][index]["count"] != count:
            gltf.fail(
                f"{where}: {gltf.document['accessors'][index]['count']} values of {name[:30]} for {count} positions"
            )
        base = name.rsplit("_", 1)[0] if not name.startswith("_") else name
        raw = base == "JOINTS"
        values = gltf.accessor(index, kind=_ATTRIBUTE_KINDS.get(base, ()), raw=raw)
        if raw and values.dtype.kind != "u":
            gltf.fail(f"{where}: {name} is not of unsigned integers")
        if base in ("WEIGHTS", "COLOR") and values.dtype.kind == "u":  # Integers that forgot their "normalized".
            values = values / float(np.iinfo(values.dtype).max)
        read[name] = values
    return read


def _read_targets(
    gltf: GltfFile, scene: Scene, targets: list[dict], count: int, mesh: str, where: str
) -> list[dict[str, np.ndarray]]:
    read = []
    for number, target in enumerate(targets):
        values = {}
        for name, index in target.items():
            if name not in ("POSITION", "NORMAL"):
                scene.warn(f"mesh {mesh!r}: blend shapes of {name[:20]} are not kept")
                continue
            values[name] = gltf.accessor(index, kind="VEC3").astype(np.float64)
            if len(values[name]) != count:
                gltf.fail(f"{where} target {number}: {len(values[name])} values of {name} for {count} positions")
        read.append(values)
    return read


def _assemble(gltf, scene, layout, identity, entry, attributes, targets, faces, face_block, materials) -> Mesh:
    """Join the primitives' points and faces."""
    index, name, skin = identity
    counts = [len(block["POSITION"]) for block in attributes]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    total = int(starts[-1])
    triangles = [corners + starts[block] for corners, block in zip(faces, face_block, strict=True)]
    triangles = np.concatenate(triangles) if triangles else np.zeros((0, 3), np.int64)
    face_vertices = triangles.astype(np.int32).reshape(-1)
    names = sorted({key for block in attributes for key in block}, key=_attribute_order)

    def joined(key: str, fill: np.ndarray | float, width: int) -> np.ndarray:
        values = np.empty((total, width))
        for number, block in enumerate(attributes):
            part = values[starts[number] : starts[number + 1]]
            if key not in block:
                part[:] = fill
                continue
            source = block[key] if block[key].ndim == 2 else block[key].reshape(len(part), -1)
            part[:, : source.shape[1]] = source
            part[:, source.shape[1] :] = 1.0  # An RGB colour among RGBA ones is opaque.
        return values

    mesh = Mesh(
        name,
        joined("POSITION", 0.0, 3),
        np.full(len(triangles), 3, np.int32),
        face_vertices,
        np.concatenate(materials) if materials else np.zeros(0, np.int32),
        extras=extras_of(entry),
    )
    for key in names:
        base, _, number = key.rpartition("_")
        width = max(block[key].reshape(len(block[key]), -1).shape[1] for block in attributes if key in block)
        if key == "NORMAL":
            normals = joined(key, 0.0, 3)
            for block_number, block in enumerate(attributes):
                if key not in block:
                    _fill_flat_normals(mesh, normals, triangles, starts[block_number : block_number + 2])
            mesh.normals = FaceVarying(normals, face_vertices)
        elif base == "TEXCOORD":
            values = joined(key, 0.0, 2)
            values[:, 1] = 1.0 - values[:, 1]
            mesh.uv_sets[uv_name(int(number)) if number.isdigit() else key] = FaceVarying(values, face_vertices)
        elif base == "COLOR":
            set_name = "displayColor" if number == "0" else f"displayColor{number}"
            mesh.colors[set_name] = FaceVarying(joined(key, 1.0, width), face_vertices)
        elif key == "TANGENT":
            mesh.primvars["tangents"] = Primvar(joined(key, [1, 0, 0, 1], 4), face_vertices, "faceVarying", "float4")
        elif key != "POSITION" and base not in ("JOINTS", "WEIGHTS"):
            kinds = {1: "float", 2: "float2", 3: "float3", 4: "float4"}
            if width not in kinds:
                scene.warn(f"mesh {name!r}: the attribute {key[:30]} ({width} numbers a vertex) is not kept")
                continue
            values = joined(key, 0.0, width)
            primvar_name = key.lstrip("_") or "attribute"
            mesh.primvars[primvar_name] = Primvar(values[:, 0] if width == 1 else values, None, "vertex", kinds[width])
    mesh.blend_shapes = _blend_shapes(gltf, scene, entry, targets, starts, index)
    materials_used = set(np.unique(mesh.face_material).tolist()) - {-1}
    mesh.double_sided = bool(materials_used) and all(scene.materials[i].double_sided for i in materials_used)
    if skin is not None:
        mesh.skin = _skin(gltf, layout, attributes, starts, skin, name)
    elif any(key.startswith("JOINTS_") for key in names):
        scene.warn(f"mesh {name!r} has joint weights and no skin; they are not kept")
    return mesh


def _attribute_order(key: str) -> tuple:
    base, _, number = key.rpartition("_")
    return (base, int(number)) if number.isdigit() and base else (key, -1)


def _fill_flat_normals(mesh: Mesh, normals: np.ndarray, triangles: np.ndarray, span: np.ndarray) -> None:
    """Face normals for the points of primitives without normals (specification, section 3.7.2.1: flat shading)."""
    own = triangles[(triangles[:, 0] >= span[0]) & (triangles[:, 0] < span[1])]
    with np.errstate(invalid="ignore", over="ignore"):
        a, b, c = (mesh.points[own[:, i]] for i in range(3))
        cross = np.cross(b - a, c - a)
        for corner in range(3):
            np.add.at(normals, own[:, corner], cross)
        lengths = np.linalg.norm(normals[span[0] : span[1]], axis=1, keepdims=True)
        unit = normals[span[0] : span[1]] / np.where(lengths > 0, lengths, 1)
    normals[span[0] : span[1]] = np.where(lengths > 0, unit, [0.0, 0.0, 1.0])


def _blend_shapes(gltf, scene, entry, targets, starts, index) -> list[BlendShape]:
    count = max((len(block) for block in targets), default=0)
    names = extras_of(entry).get("targetNames", [])
    names = names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
    weights = entry["_weights"] or entry.get("weights", [])
    shapes = []
    for number in range(count):
        have_normals = any(number < len(block) and "NORMAL" in block[number] for block in targets)
        offsets = np.zeros((int(starts[-1]), 3))
        normals = np.zeros_like(offsets) if have_normals else None
        for block_number, block in enumerate(targets):
            values = block[number] if number < len(block) else {}
            span = slice(int(starts[block_number]), int(starts[block_number + 1]))
            if "POSITION" in values:
                offsets[span] = values["POSITION"]
            if "NORMAL" in values:
                normals[span] = values["NORMAL"]
        name = names[number] if number < len(names) else f"target{number}"
        weight = float(weights[number]) if number < len(weights) else 0.0
        shapes.append(BlendShape(name, offsets, normal_offsets=normals, weight=weight))
    return shapes


def _skin(gltf, layout, attributes, starts, skin: int, mesh_name: str) -> Skin:
    """Influences of all JOINTS_n/WEIGHTS_n sets; zero weights are left out, several of one joint added up."""
    joint_map, bind_transform, skeleton = layout.skin(skin)
    rows, joints, weights = [], [], []
    for number, block in enumerate(attributes):
        sets = sorted((key for key in block if key.startswith("JOINTS_")), key=_attribute_order)
        for key in sets:
            weight_key = "WEIGHTS_" + key.removeprefix("JOINTS_")
            if weight_key not in block:
                gltf.fail(f"mesh {mesh_name!r}: {key} without {weight_key}")
            own_weights = block[weight_key].astype(np.float64)
            own_joints = block[key].astype(np.int64)
            used = own_weights != 0
            if not np.isfinite(own_weights).all() or (own_weights < 0).any():
                gltf.fail(f"mesh {mesh_name!r}: {weight_key} holds a negative or non-finite weight")
            if used.any() and int(own_joints[used].max()) >= len(joint_map):
                largest = int(own_joints[used].max())
                gltf.fail(f"mesh {mesh_name!r}: {key} names joint {largest}; its skin has {len(joint_map)}")
            row, column = np.nonzero(used)
            rows.append(row + int(starts[number]))
            joints.append(joint_map[own_joints[row, column]])
            weights.append(own_weights[row, column])
    row, joint = (np.concatenate(part) if part else np.zeros(0, np.int64) for part in (rows, joints))
    weight = np.concatenate(weights) if weights else np.zeros(0)
    offsets, joint, weight = influences_to_rows(row, joint, weight, int(starts[-1]))
    return Skin(skeleton, offsets, joint, weight, bind_transform)
