"""glTF 2.0 (.glb, .gltf) -> Scene.

Points stay the file's vertices: positions as stored, one skin row a vertex; texture coordinates, normals and colours are
face-varying values with the same indices as the faces. The primitives of a mesh become one mesh with materials per face.
Source: glTF 2.0 specification; the extensions of `gltf_schema.SUPPORTED_EXTENSIONS`.
"""

import dataclasses
from pathlib import Path

import numpy as np

from meshes.gltf_accessors import GltfFile, extras_of
from meshes.gltf_materials import read_images, read_materials
from meshes.gltf_read_mesh import read_mesh
from meshes.gltf_schema import SUPPORTED_EXTENSIONS
from meshes.gltf_skins import SkeletonLayout, node_transform
from meshes.scene import Animation, Camera, Channel, Light, Node, Scene
from meshes.transforms import decompose

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
    scene.extras = extras_of(document["scenes"][document.get("scene", 0)]) if gltf.list("scenes") else {}
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
        node.extras = extras_of(entry)
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
