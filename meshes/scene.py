"""The scene every mesh script works on: polygons, materials, skeletons and their hierarchy, as dataclasses over
numpy.

Conventions, the same whatever file a scene came from:

- Matrices act on column vectors, `p' = M[:3, :3] @ p + M[:3, 3]`. Quaternions are (x, y, z, w).
- Texture coordinates have their origin at the bottom left (as in USD and OBJ; glTF's v is flipped by its reader and
  writer).
- Front faces run counter-clockwise.
- Lengths are in the scene's own unit (`Scene.metres_per_unit`), the vertical axis is `Scene.up_axis`; nothing is
  converted while reading. Angles are in radians, times in seconds.
- Floating-point arrays are float64, index arrays int32, unless said otherwise. V = points, F = faces, L = face
  corners (the sum of all face sizes), J = joints, K = any number of values.

A point keeps the identity it has in its file: a glTF vertex which was split at a seam stays split (its position, its
skin row). Tools which need connected surfaces weld coincident positions for themselves.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class FaceVarying:
    """One value per face corner, stored once and indexed: `values` [K, C] float64, `indices` [L] int32 into
    `values`.
    """

    values: np.ndarray
    indices: np.ndarray

    def corners(self) -> np.ndarray:
        """The value of every corner, [L, C]."""
        return self.values[self.indices]


@dataclass
class Primvar:
    """Any further data a mesh carries, under the name it has in its file.

    `interpolation` says what it belongs to: "constant" (the mesh), "uniform" (a face), "vertex" (a point) or
    "faceVarying" (a face corner). `values` [K, ...]; `indices` (int32, or None: one value each in order) is as long
    as there are faces, points or corners. `type_name` is the value type in USD's words ("float", "int", "color3f[]"
    is written "color3f", "token" ...).
    """

    values: np.ndarray
    indices: np.ndarray | None
    interpolation: str
    type_name: str


@dataclass
class Skin:
    """Which joints move a point, and how much: any number of influences per point, in compressed rows.

    Point i is moved by `joints[offsets[i]:offsets[i + 1]]` (indices into the skeleton's joints) with the `weights`
    of the same range. `offsets` [V + 1] int32, `joints` [K] int32, `weights` [K] float64. `bind_transform` [4, 4]
    takes the mesh's points to the space of the skeleton's bind matrices (USD's geomBindTransform). A posed point, in
    the skeleton's space, is `sum_k weight_k * pose[joint_k] @ inverse(skeleton.bind[joint_k]) @ bind_transform @
    point` with joint-to-skeleton matrices `pose`.
    """

    skeleton: int
    offsets: np.ndarray
    joints: np.ndarray
    weights: np.ndarray
    bind_transform: np.ndarray = field(default_factory=lambda: np.eye(4))


@dataclass
class InBetween:
    """A shape passed on the way to a blend shape's full effect (USD): `offsets` [M, 3], reached at `weight`."""

    name: str
    weight: float
    offsets: np.ndarray
    normal_offsets: np.ndarray | None = None


@dataclass
class BlendShape:
    """A morph target: `offsets` [M, 3] added to the points `indices` [M] (None: to all points, M = V) at weight 1.

    `normal_offsets` [M, 3] change the normals of the same points. `weight` is the value at rest.
    """

    name: str
    offsets: np.ndarray
    indices: np.ndarray | None = None
    normal_offsets: np.ndarray | None = None
    weight: float = 0.0
    inbetweens: list[InBetween] = field(default_factory=list)


@dataclass
class Mesh:
    """A polygon mesh. Faces may have any size from 3 on; all faces' corners lie behind one another in
    `face_vertices`.

    points [V, 3] float64; face_sizes [F] int32; face_vertices [L] int32; face_material [F] int32 (index into
    Scene.materials, -1: none). The first entry of `uv_sets` and of `colors` (linear RGB or RGBA, values [K, 3 or 4])
    is the one tools use by default. `sharp_edges` [E, 2] int32 point pairs with a hard break in shading;
    `crease_edges` [E, 2] with `crease_sharpness` [E] and `corner_points` [C] with `corner_sharpness` [C] steer
    subdivision (`subdivision`: "none", "catmullClark", "loop", "bilinear"). `face_groups` names sets of faces
    (sorted int32 face indices) other than the materials; a face may be in several.
    """

    name: str
    points: np.ndarray
    face_sizes: np.ndarray
    face_vertices: np.ndarray
    face_material: np.ndarray | None = None
    uv_sets: dict[str, FaceVarying] = field(default_factory=dict)
    normals: FaceVarying | None = None
    colors: dict[str, FaceVarying] = field(default_factory=dict)
    sharp_edges: np.ndarray | None = None
    crease_edges: np.ndarray | None = None
    crease_sharpness: np.ndarray | None = None
    corner_points: np.ndarray | None = None
    corner_sharpness: np.ndarray | None = None
    face_groups: dict[str, np.ndarray] = field(default_factory=dict)
    skin: Skin | None = None
    blend_shapes: list[BlendShape] = field(default_factory=list)
    primvars: dict[str, Primvar] = field(default_factory=dict)
    subdivision: str = "none"
    double_sided: bool = False
    extras: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.face_material is None:
            self.face_material = np.full(len(self.face_sizes), -1, np.int32)

    def face_offsets(self) -> np.ndarray:
        """Where each face's corners start in `face_vertices`, with the total at the end: [F + 1] int64."""
        return np.concatenate([[0], np.cumsum(self.face_sizes, dtype=np.int64)])

    def corner_faces(self) -> np.ndarray:
        """The face each corner belongs to, [L] int32."""
        return np.repeat(np.arange(len(self.face_sizes), dtype=np.int32), self.face_sizes)

    def problem(self) -> str | None:
        """What contradicts itself in this mesh (lengths, index ranges), or None. Readers refuse a file for it; NaN
        is no problem here.
        """
        corners, faces, points = len(self.face_vertices), len(self.face_sizes), len(self.points)
        if faces and int(self.face_sizes.min()) < 3:
            return "a face has fewer than 3 corners"
        if int(self.face_sizes.sum(dtype=np.int64)) != corners:
            return f"face sizes add up to {int(self.face_sizes.sum(dtype=np.int64))}, there are {corners} corners"
        if not _in_range(self.face_vertices, points):
            return f"a face names a point outside 0..{points - 1}"
        if len(self.face_material) != faces:
            return f"{len(self.face_material)} face materials for {faces} faces"
        varying = {f"UV set {name!r}": value for name, value in self.uv_sets.items()}
        varying |= {f"colour set {name!r}": value for name, value in self.colors.items()}
        varying |= {"normals": self.normals} if self.normals is not None else {}
        for what, value in varying.items():
            if len(value.indices) != corners:
                return f"{what}: {len(value.indices)} indices for {corners} corners"
            if not _in_range(value.indices, len(value.values)):
                return f"{what}: an index outside 0..{len(value.values) - 1}"
        counts = {"constant": None, "uniform": faces, "vertex": points, "faceVarying": corners}
        for name, primvar in self.primvars.items():
            count = counts[primvar.interpolation]
            length = len(primvar.values) if primvar.indices is None else len(primvar.indices)
            if count is not None and length != count:
                return f"primvar {name!r}: {length} values for {count}"
            if primvar.indices is not None and not _in_range(primvar.indices, len(primvar.values)):
                return f"primvar {name!r}: an index outside 0..{len(primvar.values) - 1}"
        for name, group in self.face_groups.items():
            if not _in_range(group, faces):
                return f"face group {name!r}: a face outside 0..{faces - 1}"
        for what, ids in (("sharp", self.sharp_edges), ("crease", self.crease_edges), ("corner", self.corner_points)):
            if ids is not None and not _in_range(ids, points):
                return f"a {what} edge or corner names a point outside 0..{points - 1}"
        for shape in self.blend_shapes:
            count = points if shape.indices is None else len(shape.indices)
            if len(shape.offsets) != count or (shape.indices is not None and not _in_range(shape.indices, points)):
                return f"blend shape {shape.name!r} does not fit the {points} points"
        if self.skin is not None:
            offsets = self.skin.offsets
            if (
                len(offsets) != points + 1
                or len(self.skin.joints) != len(self.skin.weights)
                or (np.diff(offsets) < 0).any()
            ):
                return f"skin rows do not fit the {points} points"
            if offsets[0] != 0 or offsets[-1] != len(self.skin.joints):
                return "skin rows do not cover the influences"
        return None


def _in_range(indices: np.ndarray, count: int) -> bool:
    return indices.size == 0 or (int(indices.min()) >= 0 and int(indices.max()) < count)


@dataclass
class Parts:
    """Translation [..., 3], rotation quaternion xyzw [..., 4] and scale [..., 3] which a matrix was composed of (T @
    R @ S).

    Animation replaces one part and leaves the others, so a file's own parts are kept where it has them.
    """

    translation: np.ndarray
    rotation: np.ndarray
    scale: np.ndarray


@dataclass
class Skeleton:
    """Joints with their hierarchy. A parent comes before its children.

    `joints` are names (unique within the skeleton); `parents` [J] int32 (-1: root); `rest` [J, 4, 4] joint-to-parent
    matrices of the pose the file shows (roots: to the skeleton's node); `bind` [J, 4, 4] joint-to-skeleton matrices
    at the moment the skin was bound.
    """

    name: str
    joints: list[str]
    parents: np.ndarray
    rest: np.ndarray
    bind: np.ndarray
    rest_parts: Parts | None = None
    extras: dict = field(default_factory=dict)

    def pose(self, local: np.ndarray | None = None) -> np.ndarray:
        """Joint-to-skeleton matrices [J, 4, 4] for joint-to-parent matrices `local` [J, 4, 4] (default: the rest
        pose).
        """
        local = self.rest if local is None else local
        world = np.array(local, np.float64)
        for joint, parent in enumerate(self.parents):
            if parent >= 0:
                world[joint] = world[parent] @ local[joint]
        return world


@dataclass
class Image:
    """A picture file as its own bytes. `mime` like "image/png"; `name` is the file name to use when it is written
    out.
    """

    name: str
    mime: str
    data: bytes


@dataclass
class Texture:
    """One use of an image by a material.

    `channel`: "rgb", "rgba", "r", "g", "b" or "a". The value used is `sample * scale + bias` per channel. A texture
    coordinate uv becomes `rotate(uv * uv_scale, uv_rotation counter-clockwise) + uv_offset` (USD's UsdTransform2d,
    origin bottom left). `wrap_s`, `wrap_t`: "repeat", "clamp", "mirror" or "black". `color_space`: "sRGB", "raw" or
    "auto".
    """

    image: int
    uv_set: str = "st"
    channel: str = "rgb"
    wrap_s: str = "repeat"
    wrap_t: str = "repeat"
    scale: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    bias: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    uv_offset: tuple[float, float] = (0.0, 0.0)
    uv_rotation: float = 0.0
    uv_scale: tuple[float, float] = (1.0, 1.0)
    color_space: str = "auto"


@dataclass
class Material:
    """A metallic-roughness surface (glTF 2.0 PBR, UsdPreviewSurface). A texture multiplies its factor, except the
    normal map.
    """

    name: str
    base_color: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    base_color_texture: Texture | None = None
    metallic: float = 0.0
    metallic_texture: Texture | None = None
    roughness: float = 0.5
    roughness_texture: Texture | None = None
    normal_texture: Texture | None = None
    normal_scale: float = 1.0
    occlusion_texture: Texture | None = None
    occlusion_strength: float = 1.0
    emissive: tuple[float, float, float] = (0.0, 0.0, 0.0)
    emissive_texture: Texture | None = None
    opacity_texture: Texture | None = None
    alpha_mode: str = "OPAQUE"  # "OPAQUE", "MASK" (cut off below alpha_cutoff) or "BLEND"
    alpha_cutoff: float = 0.5
    ior: float = 1.5
    clearcoat: float = 0.0
    clearcoat_roughness: float = 0.0
    unlit: bool = False
    double_sided: bool = False
    extras: dict = field(default_factory=dict)

    def textures(self) -> dict[str, Texture]:
        """The textures in use, by field name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Texture)}


@dataclass
class Camera:
    """`kind` "perspective" (`fov` vertical, radians) or "orthographic" (`height` of the view, scene units). It looks
    along -Z, Y is up.
    """

    name: str
    kind: str = "perspective"
    fov: float = 0.8
    height: float = 2.0
    aspect: float = 1.0
    near: float = 0.1
    far: float | None = None


@dataclass
class Light:
    """`kind` "sun", "point" or "spot" (cone half-angles in radians), shining along -Z. `intensity` in the unit of
    glTF (lux, candela).
    """

    name: str
    kind: str = "point"
    color: tuple[float, float, float] = (1.0, 1.0, 1.0)
    intensity: float = 1.0
    inner_angle: float = 0.0
    outer_angle: float = 0.7853981633974483


@dataclass
class Node:
    """A place in the hierarchy. `matrix` [4, 4] is local-to-parent; `parent` (-1: root) comes earlier in
    Scene.nodes.

    `mesh`, `camera`, `light`, `skeleton` index the scene's lists; several nodes may show one mesh. A skinned mesh is
    placed by the node of its skeleton, as in glTF and USD, whatever its own node says. `parent_joint` >= 0: the node
    rides on that joint of its parent node's skeleton, and `matrix` is local-to-joint.
    """

    name: str
    parent: int = -1
    matrix: np.ndarray = field(default_factory=lambda: np.eye(4))
    parts: Parts | None = None
    mesh: int | None = None
    camera: int | None = None
    light: int | None = None
    skeleton: int | None = None
    parent_joint: int = -1
    visible: bool = True
    extras: dict = field(default_factory=dict)


@dataclass
class Channel:
    """Key frames of one part of one thing: `times` [T] seconds, `values` [T, C] (CUBICSPLINE: [T, 3, C], in-tangent,
    value, out-tangent).

    The target is node `node`, or joint `joint` of skeleton `skeleton`; `path` is "translation", "rotation" (xyzw),
    "scale", or "weights" (one column per blend shape of the node's mesh). `interpolation`: "LINEAR", "STEP" or
    "CUBICSPLINE", as in glTF.
    """

    path: str
    times: np.ndarray
    values: np.ndarray
    node: int = -1
    skeleton: int = -1
    joint: int = -1
    interpolation: str = "LINEAR"


@dataclass
class Animation:
    """A named clip."""

    name: str
    channels: list[Channel] = field(default_factory=list)


@dataclass
class Scene:
    """Everything a file holds. `warnings` names, one line each, what its reader could not keep."""

    nodes: list[Node] = field(default_factory=list)
    meshes: list[Mesh] = field(default_factory=list)
    skeletons: list[Skeleton] = field(default_factory=list)
    materials: list[Material] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    cameras: list[Camera] = field(default_factory=list)
    lights: list[Light] = field(default_factory=list)
    animations: list[Animation] = field(default_factory=list)
    up_axis: str = "Y"
    metres_per_unit: float = 1.0
    extras: dict = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Note what was lost, once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def world_matrices(self) -> np.ndarray:
        """Local-to-world matrices of all nodes, [N, 4, 4], with skeletons in their rest pose."""
        world = np.zeros((len(self.nodes), 4, 4))
        poses = [skeleton.pose() for skeleton in self.skeletons]
        for index, node in enumerate(self.nodes):
            base = np.eye(4) if node.parent < 0 else world[node.parent]
            if node.parent_joint >= 0:
                base = base @ poses[self.nodes[node.parent].skeleton][node.parent_joint]
            world[index] = base @ node.matrix
        return world

    def mesh_nodes(self) -> list[tuple[int, int]]:
        """(node index, mesh index) of every node that shows a mesh, in node order."""
        return [(index, node.mesh) for index, node in enumerate(self.nodes) if node.mesh is not None]

    def skeleton_node(self, skeleton: int) -> int:
        """The node a skeleton stands at."""
        return next(index for index, node in enumerate(self.nodes) if node.skeleton == skeleton)
