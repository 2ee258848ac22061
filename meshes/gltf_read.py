"""glTF 2.0 (.glb, .gltf) -> Scene.

Points stay the file's vertices: positions as stored, one skin row a vertex; texture coordinates, normals and colours are
face-varying values with the same indices as the faces. The primitives of a mesh become one mesh with materials per face.
Source: glTF 2.0 specification; the extensions of `gltf_schema.SUPPORTED_EXTENSIONS`.
"""

import dataclasses
from pathlib import Path

import numpy as np

from meshes.gltf_accessors import GltfFile
from meshes.gltf_materials import read_images, read_materials
from meshes.gltf_schema import SUPPORTED_EXTENSIONS
from meshes.gltf_skins import SkeletonLayout
from meshes.scene import (
    Animation,
    BlendShape,
    Camera,
    Channel,
    FaceVarying,
    Light,
    Mesh,
    Node,
    Parts,
    Primvar,
    Scene,
    Skin,
)
from meshes.transforms import compose, decompose

_TRIANGLES, _STRIP, _FAN = 4, 5, 6
_MODE_NAMES = {0: "points", 1: "lines", 2: "line loop", 3: "line strip"}
# Unknown extensions which only refine a look; any other unknown one in extensionsRequired is refused.
_LOOK_PREFIXES = ("KHR_materials_", "EXT_materials_", "KHR_texture_", "EXT_texture_", "EXT_lights_")


def read_gltf(path: Path) -> Scene:
    """Read a .glb or .gltf file. Raises InvalidInputError (damaged, unsupported) or MissingInputError (a file it names)."""
    gltf = GltfFile(Path(path))
    scene = Scene(up_axis="Y", metres_per_unit=1.0)
    _check_extensions(gltf, scene)
    read_images(gltf, scene)
    read_materials(gltf, scene)
    _read_cameras(gltf, scene)
    _read_lights(gltf, scene)
    _Nodes(gltf, scene).read()
    document = gltf.document
    scene.extras = _extras(document["scenes"][document.get("scene", 0)]) if gltf.list("scenes") else {}
    if "copyright" in document["asset"]:
        scene.extras["copyright"] = document["asset"]["copyright"]
    for mesh in scene.meshes:
        if problem := mesh.problem():
            gltf.fail(f"mesh {mesh.name!r}: {problem}")
    return scene


def _check_extensions(gltf: GltfFile, scene: Scene) -> None:
    for name in gltf.document.get("extensionsRequired", []):
        if name not in SUPPORTED_EXTENSIONS and not name.startswith(_LOOK_PREFIXES):
            gltf.fail(f"it needs the extension {name[:60]}, which is not supported")
    for name in gltf.document.get("extensionsUsed", []):
        if name not in SUPPORTED_EXTENSIONS:
            scene.warn(f"the glTF extension {name[:60]} is not kept")


def _extras(entry: dict) -> dict:
    extras = entry.get("extras", {})
    return extras if isinstance(extras, dict) else {"value": extras}


def _read_cameras(gltf: GltfFile, scene: Scene) -> None:
    for index, entry in enumerate(gltf.list("cameras")):
        name, kind = entry.get("name", f"camera{index}"), entry["type"]
        if kind not in ("perspective", "orthographic") or kind not in entry:
            gltf.fail(f"camera {index} is of type {kind[:20]!r} without the values of a known one")
        lens = entry[kind]
        camera = Camera(name, kind, near=lens["znear"], far=lens.get("zfar"))
        if kind == "perspective":
            camera.fov, camera.aspect = lens["yfov"], lens.get("aspectRatio", 16 / 9)
        else:
            camera.height, camera.aspect = 2 * lens["ymag"], lens["xmag"] / lens["ymag"] if lens["ymag"] else 1.0
        scene.cameras.append(camera)


def _read_lights(gltf: GltfFile, scene: Scene) -> None:
    extension = gltf.document.get("extensions", {}).get("KHR_lights_punctual", {})
    for index, entry in enumerate(extension.get("lights", [])):
        kinds = {"directional": "sun", "point": "point", "spot": "spot"}
        if entry["type"] not in kinds:
            gltf.fail(f"light {index} is of the unknown type {entry['type'][:20]!r}")
        cone = entry.get("spot", {})
        if "range" in entry:
            scene.warn(f"light {index}: its range is not kept")
        scene.lights.append(
            Light(
                entry.get("name", f"light{index}"),
                kinds[entry["type"]],
                tuple(entry.get("color", (1.0, 1.0, 1.0))),
                entry.get("intensity", 1.0),
                cone.get("innerConeAngle", 0.0),
                cone.get("outerConeAngle", 0.7853981633974483),
            )
        )


def node_transform(entry: dict) -> tuple[np.ndarray, Parts | None]:
    """The matrix of a glTF node, and the parts it is written as (None where it is written as a matrix)."""
    if "matrix" in entry:
        return np.array(entry["matrix"], np.float64).reshape(4, 4).T, None
    parts = Parts(
        np.array(entry.get("translation", (0, 0, 0)), np.float64),
        np.array(entry.get("rotation", (0, 0, 0, 1)), np.float64),
        np.array(entry.get("scale", (1, 1, 1)), np.float64),
    )
    return compose(parts), parts


class _Nodes:
    """Turns the node graph into Scene.nodes, skeletons, meshes and animations."""

    def __init__(self, gltf: GltfFile, scene: Scene):
        self.gltf, self.scene, self.entries = gltf, scene, gltf.list("nodes")
        self.parents = self._check_tree()
        self.order = self._visit_order()
        self.layout = SkeletonLayout(gltf, self.parents, self.order)
        self.node_of: dict[int, int] = {}  # glTF node -> index in scene.nodes
        self.meshes: dict[tuple, int] = {}  # (glTF mesh, skin, node weights) -> index in scene.meshes

    def read(self) -> None:
        scene, layout = self.scene, self.layout
        skeleton_nodes: dict[int, int] = {}
        for index, skeleton in enumerate(layout.skeletons):
            scene.skeletons.append(skeleton)
            if layout.places[index] < 0:
                skeleton_nodes[index] = len(scene.nodes)
                scene.nodes.append(Node(skeleton.name, skeleton=index))
        for entry_index in self.order:
            self._add_node(entry_index, skeleton_nodes)
        self._sort_meshes()
        self._read_animations()

    def _check_tree(self) -> list[int]:
        parents = [-1] * len(self.entries)
        for index, entry in enumerate(self.entries):
            for child in entry.get("children", []):
                if parents[child] >= 0 or child == index:
                    self.gltf.fail(f"node {child} has two parents")
                parents[child] = index
        for start in range(len(parents)):
            steps, at = 0, start
            while parents[at] >= 0:
                at, steps = parents[at], steps + 1
                if steps > len(parents):
                    self.gltf.fail(f"node {start} is its own ancestor")
        return parents

    def _visit_order(self) -> list[int]:
        """glTF nodes of the default scene, parents first, in file order (all nodes where there is no scene)."""
        scenes = self.gltf.list("scenes")
        if scenes:
            roots = scenes[self.gltf.document.get("scene", 0)].get("nodes", [])
            if len(scenes) > 1:
                self.scene.warn(f"{len(scenes) - 1} further glTF scenes are not kept")
        else:
            roots = [index for index, parent in enumerate(self.parents) if parent < 0]
        for index in roots:
            if self.parents[index] >= 0:
                self.gltf.fail(f"scene root {index} is a child of node {self.parents[index]}")
        order, stack, seen = [], list(reversed(roots)), set()
        while stack:
            index = stack.pop()
            if index in seen:
                continue
            seen.add(index)
            order.append(index)
            stack.extend(reversed(self.entries[index].get("children", [])))
        if missing := len(self.entries) - len(order):
            # A skin may name joints that no scene shows (the specification forbids it; some files do).
            self.scene.warn(f"{missing} glTF nodes belong to no shown scene and are not kept")
        return order

    def _add_node(self, index: int, skeleton_nodes: dict[int, int]) -> None:
        scene, layout, entry = self.scene, self.layout, self.entries[index]
        content = self._content(index)
        name, parent_entry = entry.get("name", f"node{index}"), self.parents[index]
        matrix, parts = node_transform(entry)
        if index in layout.joint_of:
            skeleton, joint = layout.joint_of[index]
            if content:  # A joint that also shows something: the thing rides on the joint.
                node = Node(name, skeleton_nodes[skeleton], parent_joint=joint, **content)
                self._append(node, None, entry)
            return
        node = Node(name, -1, matrix, parts, **content)
        skinned = node.mesh is not None and scene.meshes[node.mesh].skin is not None
        if parent_entry >= 0 and parent_entry in layout.joint_of:
            skeleton, joint = layout.joint_of[parent_entry]
            node.parent = skeleton_nodes[skeleton]
            if skinned and not entry.get("children"):  # Its place means nothing; it belongs to its skeleton.
                node.parent = skeleton_nodes[scene.meshes[node.mesh].skin.skeleton]
                node.matrix, node.parts = np.eye(4), None
            else:
                node.parent_joint = joint
        elif parent_entry >= 0:
            node.parent = self.node_of[parent_entry]
        self._append(node, index, entry)
        for skeleton, place in enumerate(layout.places):
            if place == index:
                if node.skeleton is None:
                    node.skeleton = skeleton
                    skeleton_nodes[skeleton] = self.node_of[index]
                else:
                    skeleton_nodes[skeleton] = len(scene.nodes)
                    extra = Node(scene.skeletons[skeleton].name, self.node_of[index], skeleton=skeleton)
                    scene.nodes.append(extra)

    def _sort_meshes(self) -> None:
        """Meshes in the file's order, not in that of the nodes which show them."""
        order = sorted(self.meshes.items(), key=lambda item: (item[0][0], item[1]))
        place = {old: new for new, (_, old) in enumerate(order)}
        self.scene.meshes = [self.scene.meshes[old] for _, old in order]
        for node in self.scene.nodes:
            node.mesh = None if node.mesh is None else place[node.mesh]
        unused = set(range(len(self.gltf.list("meshes")))) - {key[0] for key in self.meshes}
        if unused:
            self.scene.warn(f"{len(unused)} glTF meshes belong to no shown node and are not kept")

    def _append(self, node: Node, entry_index: int | None, entry: dict) -> None:
        if entry_index is not None:
            self.node_of[entry_index] = len(self.scene.nodes)
        node.extras = _extras(entry)
        self.scene.nodes.append(node)

    def _content(self, index: int) -> dict:
        """What a glTF node shows, as fields of Node."""
        entry, content = self.entries[index], {}
        if "camera" in entry:
            content["camera"] = entry["camera"]
        light = entry.get("extensions", {}).get("KHR_lights_punctual", {}).get("light")
        if light is not None:
            if light >= len(self.scene.lights):
                self.gltf.fail(f"node {index} names light {light}; the file has {len(self.scene.lights)}")
            content["light"] = light
        if "mesh" in entry:
            weights = tuple(entry.get("weights", ()))
            key = (entry["mesh"], entry.get("skin"), weights)
            if key not in self.meshes:
                self.meshes[key] = len(self.scene.meshes)
                self.scene.meshes.append(read_mesh(self.gltf, self.scene, self.layout, *key))
            content["mesh"] = self.meshes[key]
        elif "skin" in entry:
            self.scene.warn(f"node {index} has a skin and no mesh; it is not kept")
        return content

    def _read_animations(self) -> None:
        for index, entry in enumerate(self.gltf.list("animations")):
            animation = Animation(entry.get("name", f"animation{index}"))
            for number, channel in enumerate(entry["channels"]):
                where = f"animation {index} channel {number}"
                if (read := self._channel(entry, channel, where)) is not None:
                    animation.channels.append(read)
                    for copy in self.layout.copies.get(read.skeleton, []):
                        animation.channels.append(dataclasses.replace(read, skeleton=copy))
            self.scene.animations.append(animation)

    def _channel(self, entry: dict, channel: dict, where: str) -> Channel | None:
        gltf, target = self.gltf, channel["target"]
        if channel["sampler"] >= len(entry["samplers"]):
            gltf.fail(f"{where} names sampler {channel['sampler']}; there are {len(entry['samplers'])}")
        sampler, path = entry["samplers"][channel["sampler"]], target["path"]
        widths = {"translation": 3, "rotation": 4, "scale": 3, "weights": None}
        if path not in widths or "node" not in target:
            self.scene.warn(f"{where} moves {path[:20]!r}, which is not kept")
            return None
        node = target["node"]
        if node not in self.node_of and node not in self.layout.joint_of:
            self.scene.warn(f"{where} moves a node that no scene shows; it is not kept")
            return None
        interpolation = sampler.get("interpolation", "LINEAR")
        if interpolation not in ("LINEAR", "STEP", "CUBICSPLINE"):
            gltf.fail(f"{where} has the unknown interpolation {interpolation[:20]!r}")
        times = gltf.accessor(sampler["input"], kind="SCALAR").astype(np.float64)
        if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
            gltf.fail(f"{where}: its times do not increase")
        values = gltf.accessor(sampler["output"]).astype(np.float64)
        keys = len(times) * (3 if interpolation == "CUBICSPLINE" else 1)
        width = widths[path] or values.size // keys
        if width == 0 or values.size != keys * width or (path != "weights" and values.shape[1:] != (width,)):
            gltf.fail(f"{where}: {values.size} numbers for {len(times)} keys of {path}")
        shape = (len(times), 3, width) if interpolation == "CUBICSPLINE" else (len(times), width)
        read = Channel(path, times, values.reshape(shape), interpolation=interpolation)
        if path == "weights":
            mesh = self.entries[node].get("mesh")
            places = [i for i, n in enumerate(self.scene.nodes) if n.mesh is not None and i == self.node_of.get(node)]
            if (
                mesh is None
                or not places
                or width != len(self.scene.meshes[self.scene.nodes[places[0]].mesh].blend_shapes)
            ):
                self.scene.warn(f"{where} moves blend shapes of a node that has not as many; it is not kept")
                return None
        if node in self.layout.joint_of:
            read.skeleton, read.joint = self.layout.joint_of[node]
        else:
            read.node = self.node_of[node]
            if self.scene.nodes[read.node].parts is None:
                self.scene.nodes[read.node].parts = decompose(self.scene.nodes[read.node].matrix)
        return read


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
        extras=_extras(entry),
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


def uv_name(number: int) -> str:
    """The name of TEXCOORD_<number>, as USD's preview surfaces expect the first one."""
    return "st" if number == 0 else f"st{number}"


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
    names = _extras(entry).get("targetNames", [])
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


def influences_to_rows(row: np.ndarray, joint: np.ndarray, weight: np.ndarray, points: int) -> tuple:
    """(offsets, joints, weights) of a Skin from (point, joint, weight) triples in any order.

    Triples of one point stay in order of falling weight (ties: by joint); a joint named twice for a point counts once, with
    the sum.
    """
    order = np.lexsort((joint, row))
    row, joint, weight = row[order], joint[order], weight[order]
    first = np.ones(len(row), bool)
    first[1:] = (row[1:] != row[:-1]) | (joint[1:] != joint[:-1])
    weight = np.add.reduceat(weight, np.flatnonzero(first)) if len(row) else weight
    row, joint = row[first], joint[first]
    order = np.lexsort((joint, -weight, row))
    offsets = np.zeros(points + 1, np.int32)
    np.cumsum(np.bincount(row, minlength=points), out=offsets[1:])
    return offsets, joint[order].astype(np.int32), weight[order]
