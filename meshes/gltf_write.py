"""Scene -> GLB (glTF 2.0), byte for byte the same for the same scene.

glTF knows triangles only, up is Y and lengths are metres: polygons are cut, and a scene in other units or with another up axis
gets one root node that converts it, so that every number below stays as it is.
Source: glTF 2.0 specification.
"""

import json
import math
import struct

import numpy as np

from meshes.gltf_write_materials import MaterialWriter
from meshes.gltf_write_mesh import write_mesh
from meshes.scene import Camera, Channel, Light, Parts, Scene, Skeleton
from meshes.transforms import decompose, has_shear, quaternions
from shared_utils.errors import InvalidInputError

_COMPONENT_CODES = {"u1": 5121, "u2": 5123, "u4": 5125, "f4": 5126}
_Y_UP_FROM_Z_UP = np.array([[1.0, 0, 0, 0], [0, 0, 1.0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1.0]])


class GltfWriter:
    """A glTF document under construction with its one binary buffer."""

    def __init__(self):
        self.document: dict = {"asset": {"version": "2.0", "generator": "generation-scripts"}}
        self.warnings: list[str] = []
        self._parts: list[bytes] = []
        self._length = 0

    def warn(self, text: str) -> None:
        """Note what the format cannot keep, once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def add(self, name: str, entry: dict) -> int:
        """Append to a top-level list; its index."""
        entries = self.document.setdefault(name, [])
        entries.append(entry)
        return len(entries) - 1

    def use_extension(self, name: str) -> None:
        """Declare an extension as used."""
        used = self.document.setdefault("extensionsUsed", [])
        if name not in used:
            used.append(name)
            used.sort()

    def add_bytes(self, data: bytes, target: int | None = None) -> int:
        """A bufferView with these bytes, aligned to four."""
        padding = -self._length % 4
        self._parts += [b"\0" * padding, data]
        entry = {"buffer": 0, "byteOffset": self._length + padding, "byteLength": len(data)}
        self._length += padding + len(data)
        if target is not None:
            entry["target"] = target
        return self.add("bufferViews", entry)

    def add_array(self, values: np.ndarray, kind: str, target: int | None = None, bounds: bool = False) -> int:
        """An accessor over values [N, ...] of dtype uint8/16/32 or float32; `bounds` writes min and max."""
        values = np.ascontiguousarray(values)
        code = _COMPONENT_CODES[values.dtype.str[1:]]
        entry = {"bufferView": self.add_bytes(values.tobytes(), target), "componentType": code}
        entry |= {"count": len(values), "type": kind}
        if bounds:
            rows = values.reshape(len(values), -1)
            entry |= {"min": rows.min(0).tolist(), "max": rows.max(0).tolist()}
        return self.add("accessors", entry)

    def glb(self) -> bytes:
        """The finished file."""
        if self._length:
            self.document["buffers"] = [{"byteLength": self._length}]
        text = json.dumps(self.document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        binary = b"".join(self._parts) + b"\0" * (-self._length % 4)
        chunks = [struct.pack("<I4s", len(text), b"JSON"), text]
        if binary:
            chunks += [struct.pack("<I4s", len(binary), b"BIN\0"), binary]
        total = 12 + sum(map(len, chunks))
        if total >= 1 << 32:
            raise InvalidInputError(f"the scene needs {total} bytes as GLB; the format ends at 4 GiB")
        return b"".join([struct.pack("<4sII", b"glTF", 2, total), *chunks])


def gltf_bytes(scene: Scene) -> tuple[bytes, list[str]]:
    """The scene as a GLB file, and one line for each thing that glTF cannot keep.

    Raises InvalidInputError for positions that are not finite numbers.
    """
    writer = GltfWriter()
    _SceneWriter(scene, writer).write()
    return writer.glb(), writer.warnings


class _SceneWriter:
    def __init__(self, scene: Scene, writer: GltfWriter):
        self.scene, self.writer = scene, writer
        self.materials = MaterialWriter(scene, writer)
        self.children: dict[int, list[int]] = {}
        self.nodes: list[int] = []  # scene node -> glTF node that holds its content
        self.joints: list[list[int]] = [[] for _ in scene.skeletons]
        self.meshes: dict[int, int | None] = {}
        self.skins: dict[tuple[int, bytes], int] = {}
        self.animated = {
            (channel.node, channel.skeleton, channel.joint)
            for animation in scene.animations
            for channel in animation.channels
            if channel.path != "weights"
        }

    def write(self) -> None:
        scene, writer = self.scene, self.writer
        roots: list[int] = []
        top = self._conversion_root(roots)
        for light in scene.lights:
            self._add_light(light)
        for camera in scene.cameras:
            writer.add("cameras", _camera(camera))
        for index, node in enumerate(scene.nodes):
            siblings = roots if top is None else self.children.setdefault(top, [])
            if node.parent_joint >= 0:
                siblings = self.children.setdefault(
                    self.joints[scene.nodes[node.parent].skeleton][node.parent_joint], []
                )
            elif node.parent >= 0:
                siblings = self.children.setdefault(self.nodes[node.parent], [])
            animated = (index, -1, -1) in self.animated
            self.nodes.append(self._add_node(node.name, node.matrix, node.parts, siblings, animated, node.extras))
            if node.skeleton is not None:
                self._add_joints(node.skeleton, self.nodes[index])
            if not node.visible:
                writer.warn(f"node {node.name!r} is hidden; glTF shows it")
        for number in sorted({number for _, number in scene.mesh_nodes()}):
            self.meshes[number] = write_mesh(scene.meshes[number], writer, self.materials)
        for index, node in enumerate(scene.nodes):
            self._add_content(index, node)
        self.materials.add_unused()
        for skeleton in range(len(scene.skeletons)):
            if self.joints[skeleton] and not any(key[0] == skeleton for key in self.skins):
                self._skin(skeleton, np.eye(4))
        for parent, children in self.children.items():
            writer.document["nodes"][parent]["children"] = children
        for animation in scene.animations:
            self._add_animation(animation)
        entry = {"nodes": roots} if roots else {}
        extras = dict(scene.extras)
        if isinstance(extras.get("copyright"), str):
            writer.document["asset"]["copyright"] = extras.pop("copyright")
        writer.document["scene"] = writer.add("scenes", entry | ({"extras": extras} if extras else {}))

    def _conversion_root(self, roots: list[int]) -> int | None:
        matrix = _Y_UP_FROM_Z_UP if self.scene.up_axis == "Z" else np.eye(4)
        matrix = matrix @ np.diag([self.scene.metres_per_unit] * 3 + [1.0])
        if (matrix == np.eye(4)).all():
            return None
        return self._add_node("Y_up_metres", matrix, None, roots, False, {})

    def _add_node(
        self, name: str, matrix, parts: Parts | None, siblings: list[int], animated: bool, extras: dict
    ) -> int:
        """A node under `siblings`' parent; a sheared matrix becomes two nodes (rotation and scale, then a rotation)."""
        entry = {"name": name} if name else {}
        entry |= {"extras": extras} if extras else {}
        if not np.isfinite(matrix).all():
            raise InvalidInputError(f"node {name!r} has a transform that is not finite; glTF cannot hold it")
        if parts is None and not animated and has_shear(matrix):
            u, scale, vt = np.linalg.svd(matrix[:3, :3])
            if np.linalg.det(u) < 0:
                u[:, 2], scale[2] = -u[:, 2], -scale[2]
            if np.linalg.det(vt) < 0:
                vt[2], scale[2] = -vt[2], -scale[2]
            outer = self.writer.add(
                "nodes", {"name": f"{name}_shear"} | _trs(Parts(matrix[:3, 3], quaternions(u), scale))
            )
            siblings.append(outer)
            siblings = self.children.setdefault(outer, [])
            parts = Parts(np.zeros(3), quaternions(vt), np.ones(3))
        parts = decompose(matrix) if parts is None else parts
        siblings.append(self.writer.add("nodes", entry | _trs(parts)))
        return siblings[-1]

    def _add_joints(self, index: int, place: int) -> None:
        skeleton = self.scene.skeletons[index]
        for joint, parent in enumerate(skeleton.parents):
            above = place if parent < 0 else self.joints[index][parent]
            own = skeleton.rest_parts
            parts = None if own is None else Parts(own.translation[joint], own.rotation[joint], own.scale[joint])
            animated = (-1, index, joint) in self.animated
            siblings = self.children.setdefault(above, [])
            self.joints[index].append(
                self._add_node(skeleton.joints[joint], skeleton.rest[joint], parts, siblings, animated, {})
            )

    def _add_content(self, index: int, node) -> None:
        entry, scene = self.writer.document["nodes"][self.nodes[index]], self.scene
        if node.camera is not None:
            entry["camera"] = node.camera
        if node.light is not None:
            entry["extensions"] = {"KHR_lights_punctual": {"light": node.light}}
        if node.mesh is None:
            return
        mesh = scene.meshes[node.mesh]
        if self.meshes[node.mesh] is None:
            return
        entry["mesh"] = self.meshes[node.mesh]
        if mesh.skin is not None:
            entry["skin"] = self._skin(mesh.skin.skeleton, mesh.skin.bind_transform)

    def _skin(self, index: int, bind_transform: np.ndarray) -> int:
        key = (index, np.asarray(bind_transform, np.float64).tobytes())
        if key not in self.skins:
            skeleton: Skeleton = self.scene.skeletons[index]
            determinants = np.abs(np.linalg.det(skeleton.bind))
            if not np.isfinite(skeleton.bind).all() or (determinants == 0).any():
                raise InvalidInputError(f"skeleton {skeleton.name!r} has a bind matrix that cannot be inverted")
            inverse = np.linalg.inv(skeleton.bind) @ bind_transform
            inverse[:, 3] = [0, 0, 0, 1]
            # What is rounding noise beside a matrix's own numbers is zero, whatever the library that inverted it.
            inverse[np.abs(inverse) < 1e-12 * np.abs(inverse).max((1, 2), keepdims=True)] = 0.0
            columns = inverse.transpose(0, 2, 1).reshape(-1, 16).astype("<f4")
            self.skins[key] = self.writer.add(
                "skins",
                {
                    "name": skeleton.name,
                    "joints": self.joints[index],
                    "inverseBindMatrices": self.writer.add_array(columns, "MAT4"),
                },
            )
        return self.skins[key]

    def _add_light(self, light: Light) -> None:
        kinds = {"sun": "directional", "point": "point", "spot": "spot"}
        entry = {
            "name": light.name,
            "type": kinds[light.kind],
            "color": list(light.color),
            "intensity": light.intensity,
        }
        if light.kind == "spot":
            outer = min(light.outer_angle, math.pi / 2)
            entry["spot"] = {"innerConeAngle": min(light.inner_angle, outer * 0.999), "outerConeAngle": outer}
        extension = self.writer.document.setdefault("extensions", {}).setdefault("KHR_lights_punctual", {"lights": []})
        extension["lights"].append(entry)
        self.writer.use_extension("KHR_lights_punctual")

    def _add_animation(self, animation) -> None:
        samplers, channels = [], []
        inputs: dict[bytes, int] = {}
        targets = set()
        for channel in animation.channels:
            target = self._target(channel)
            if target is None or not len(channel.times):
                continue
            if (target, channel.path) in targets:
                self.writer.warn(f"clip {animation.name!r} moves one thing twice; the first is kept")
                continue
            targets.add((target, channel.path))
            times = channel.times.astype("<f4")
            key = times.tobytes()
            if key not in inputs:
                if (np.diff(times) <= 0).any() or times[0] < 0:
                    raise InvalidInputError(f"clip {animation.name!r} has times that do not increase from 0")
                inputs[key] = self.writer.add_array(times, "SCALAR", bounds=True)
            values = channel.values
            if channel.path == "weights":
                output = self.writer.add_array(values.reshape(-1).astype("<f4"), "SCALAR")
            else:
                kind = "VEC4" if channel.path == "rotation" else "VEC3"
                output = self.writer.add_array(values.reshape(-1, values.shape[-1]).astype("<f4"), kind)
            channels.append({"sampler": len(samplers), "target": {"node": target, "path": channel.path}})
            samplers.append({"input": inputs[key], "interpolation": channel.interpolation, "output": output})
        if channels:
            entry = {"name": animation.name} if animation.name else {}
            self.writer.add("animations", entry | {"channels": channels, "samplers": samplers})
        else:
            self.writer.warn(f"clip {animation.name!r} moves nothing and is left out")

    def _target(self, channel: Channel) -> int | None:
        if channel.skeleton >= 0:
            return self.joints[channel.skeleton][channel.joint]
        node = self.nodes[channel.node]
        if channel.path == "weights" and "mesh" not in self.writer.document["nodes"][node]:
            return None
        return node


def _trs(parts: Parts) -> dict:
    entry = {}
    rotation = np.asarray(parts.rotation, np.float64)
    length = float(np.linalg.norm(rotation))
    rotation = rotation / length if length and abs(length - 1) > 1e-6 else rotation
    if np.any(parts.translation):
        entry["translation"] = np.asarray(parts.translation, np.float64).tolist()
    if length and not (rotation == [0, 0, 0, 1]).all():
        entry["rotation"] = np.clip(rotation, -1, 1).tolist()
    if not np.all(np.asarray(parts.scale) == 1):
        entry["scale"] = np.asarray(parts.scale, np.float64).tolist()
    return entry


def _camera(camera: Camera) -> dict:
    if camera.kind == "orthographic":
        half = camera.height / 2
        far = camera.far if camera.far is not None else camera.near + 1000.0
        lens = {"xmag": half * camera.aspect, "ymag": half, "znear": camera.near, "zfar": far}
    else:
        lens = {"yfov": camera.fov, "aspectRatio": camera.aspect, "znear": camera.near}
        lens |= {} if camera.far is None else {"zfar": camera.far}
    return {"name": camera.name, "type": camera.kind, camera.kind: lens}
