"""USD, USDA, USDC, USDZ -> Scene, at the default time (the earliest sample where there is none).

Prims that Scene has no place for are named in its warnings. Meshes that come from the same specs (references,
instances) are read once.
"""

import json
from pathlib import Path

import numpy as np
from pxr import Gf, Tf, Usd, UsdGeom, UsdLux, UsdShade, UsdSkel

from meshes.scene import Camera, Light, Node, Scene
from meshes.usd_common import BadValue, from_gf, get_extras, original_name
from meshes.usd_files import bounded_memory, open_stage, quiet, reason
from meshes.usd_read_clips import read_clips
from meshes.usd_read_materials import MaterialReader
from meshes.usd_read_mesh import MeshReader, read_skeleton
from shared_utils.errors import InvalidInputError

# Prims that hold no place of their own in the hierarchy.
_SILENT_TYPES = {
    "Material",
    "Shader",
    "NodeGraph",
    "GeomSubset",
    "SkelAnimation",
    "BlendShape",
    "RenderSettings",
    "RenderProduct",
}


def read_usd(path: Path, *, sort: bool = False) -> Scene:
    """Read any USD file; `sort` takes prims by name instead of in the file's order.

    Raises InvalidInputError (damaged, unsupported, points outside its folder) or MissingInputError.
    """
    stage, notes = open_stage(Path(path))
    with quiet() as more, bounded_memory(Path(path)):
        try:
            scene = _StageReader(stage, Path(path)).read(sort)
        except (Tf.ErrorException, UnicodeDecodeError, BadValue) as error:
            raise InvalidInputError(f"{path}: damaged ({reason(error)})") from error
    for note in [*notes, *more]:
        scene.warn(f"USD: {note[:200]}")
    return scene


class _StageReader:
    def __init__(self, stage: Usd.Stage, path: Path):
        self.stage, self.path = stage, path
        self.scene = Scene(
            up_axis="Z" if UsdGeom.GetStageUpAxis(stage) == UsdGeom.Tokens.z else "Y",
            metres_per_unit=UsdGeom.GetStageMetersPerUnit(stage),
        )
        self.time = Usd.TimeCode.EarliestTime()
        self.materials = MaterialReader(self)
        self.meshes = MeshReader(self)
        self.shown: set = set()  # paths of the prims that become nodes
        self.node_of: dict[object, int] = {}  # prim path -> node
        self.skeleton_of: dict[object, int] = {}  # Skeleton prim path -> skeleton

    def fail(self, text: str):
        """Raise InvalidInputError with this file's name in front."""
        raise InvalidInputError(f"{self.path}: {text}")

    def read(self, sort: bool) -> Scene:
        """Everything, skeletons before the meshes that hang on them."""
        if not np.isfinite(self.scene.metres_per_unit) or self.scene.metres_per_unit <= 0:
            self.fail(f"metersPerUnit is {self.scene.metres_per_unit}")
        prims = sorted(self._prims(), key=lambda prim: prim.GetPath()) if sort else list(self._prims())
        for prim in prims:
            if prim.IsA(UsdShade.Material):
                self.materials.index(UsdShade.Material(prim))
        for prim in prims:
            if prim.IsA(UsdSkel.Skeleton):
                skeleton = read_skeleton(self, UsdSkel.Skeleton(prim))
                if skeleton is not None:
                    self.skeleton_of[prim.GetPath()] = len(self.scene.skeletons)
                    self.scene.skeletons.append(skeleton)
        self.shown = self._with_ancestors(prims)
        for prim in prims:
            if prim.GetPath() in self.shown:
                self._add(prim)
        self._restore_joint_riders()
        read_clips(self, prims)
        data = self.stage.GetRootLayer().customLayerData.get("extras")
        if isinstance(data, str):
            try:
                self.scene.extras = json.loads(data)
            except ValueError:
                self.scene.extras = {}
        for mesh in self.scene.meshes:
            if problem := mesh.problem():
                self.fail(f"mesh {mesh.name!r}: {problem}")
        return self.scene

    def _prims(self):
        iterator = iter(Usd.PrimRange(self.stage.GetPseudoRoot(), Usd.TraverseInstanceProxies()))
        for prim in iterator:
            if prim.IsPseudoRoot():
                continue
            kind = prim.GetTypeName()
            if prim.IsA(UsdGeom.PointInstancer):
                self.scene.warn(f"{prim.GetPath()}: point instances are not kept")
                iterator.PruneChildren()
                continue
            if prim.IsA(UsdGeom.Gprim) and not prim.IsA(UsdGeom.Mesh):
                self.scene.warn(f"{prim.GetPath()}: a {kind} is not kept (meshes are)")
                iterator.PruneChildren()
                continue
            for name in prim.GetVariantSets().GetNames():
                chosen = prim.GetVariantSets().GetVariantSelection(name)
                self.scene.warn(f"{prim.GetPath()}: of the variants {name!r} only {chosen!r} is kept")
            yield prim

    def _with_ancestors(self, prims: list[Usd.Prim]) -> set:
        """Paths of the prims that become nodes: everything with a place, and what lies above it."""
        shown = set()
        for prim in prims:
            if not prim.IsA(UsdGeom.Xformable) and not prim.IsA(UsdLux.NonboundableLightBase):
                kind = prim.GetTypeName()
                if kind and kind not in _SILENT_TYPES and kind != "Scope":
                    self.scene.warn(f"{prim.GetPath()}: a {kind} is not kept")
                continue
            if prim.IsA(UsdSkel.Skeleton) and prim.GetPath() not in self.skeleton_of:
                continue
            while not prim.IsPseudoRoot() and prim.GetPath() not in shown:
                shown.add(prim.GetPath())
                prim = prim.GetParent()
        return shown

    def _add(self, prim: Usd.Prim) -> None:
        scene, path = self.scene, prim.GetPath()
        parent = self.node_of.get(prim.GetParent().GetPath(), -1)
        content = self._content(prim)
        matrix = self._local_matrix(prim)
        if content and parent >= 0 and self._fits(prim, content, parent, matrix):
            for name, value in content.items():
                setattr(scene.nodes[parent], name, value)
            self.node_of[path] = parent
            return
        synthetic = prim.GetCustomDataByKey("synthetic") and not content and (matrix == np.eye(4)).all()
        if synthetic and parent < 0:
            self.node_of[path] = -1
            return
        visible = True
        if UsdGeom.Imageable(prim):
            visible = UsdGeom.Imageable(prim).GetVisibilityAttr().Get(self.time) != UsdGeom.Tokens.invisible
        self.node_of[path] = len(scene.nodes)
        node = Node(original_name(prim), parent, matrix, visible=visible, extras=get_extras(prim), **content)
        scene.nodes.append(node)

    def _fits(self, prim: Usd.Prim, content: dict, parent: int, matrix: np.ndarray) -> bool:
        """Whether a mesh, camera, light or skeleton without a transform of its own is just what its parent Xform
        shows.
        """
        above, node = prim.GetParent(), self.scene.nodes[parent]
        plain = (matrix == np.eye(4)).all() and not get_extras_of_node(prim)
        free = all(getattr(node, name) is None for name in ("mesh", "camera", "light", "skeleton") if name in content)
        only = "skeleton" in content or (node.mesh is None and node.camera is None and node.light is None)
        # A root is a place to stand on, not a thing, as soon as it has more than one child.
        only = only and ("skeleton" in content or node.parent >= 0 or len(self._shown_children(above)) == 1)
        bare = not self._shown_children(prim)
        shown = not UsdGeom.Imageable(prim).GetVisibilityAttr().HasAuthoredValue()
        return plain and free and only and bare and shown and above.IsA(UsdGeom.Xformable)

    def _shown_children(self, prim: Usd.Prim) -> list[Usd.Prim]:
        children = prim.GetFilteredChildren(Usd.TraverseInstanceProxies())
        return [child for child in children if child.GetPath() in self.shown]

    def _content(self, prim: Usd.Prim) -> dict:
        scene = self.scene
        if prim.IsA(UsdGeom.Mesh):
            return {"mesh": self.meshes.index(UsdGeom.Mesh(prim))}
        if prim.IsA(UsdSkel.Skeleton):
            return {"skeleton": self.skeleton_of[prim.GetPath()]}
        if prim.IsA(UsdGeom.Camera):
            scene.cameras.append(_camera(UsdGeom.Camera(prim), original_name(prim)))
            return {"camera": len(scene.cameras) - 1}
        if UsdLux.LightAPI(prim):
            light = _light(prim)
            if light is None:
                scene.warn(f"{prim.GetPath()}: a {prim.GetTypeName()} is not kept")
                return {}
            scene.lights.append(light)
            return {"light": len(scene.lights) - 1}
        return {}

    def _local_matrix(self, prim: Usd.Prim) -> np.ndarray:
        form = UsdGeom.Xformable(prim)
        if not form:
            return np.eye(4)
        matrix = from_gf(form.GetLocalTransformation(self.time))
        if form.GetResetXformStack():
            above = UsdGeom.XformCache(self.time).GetParentToWorldTransform(prim)
            matrix = from_gf(Gf.Matrix4d(above).GetInverse()) @ matrix
        if not np.isfinite(matrix).all():
            self.fail(f"{prim.GetPath()}: its transform is not finite")
        return matrix

    def _restore_joint_riders(self) -> None:
        """Nodes that our own writer took off a joint go back to it (see UsdWriter._write_node)."""
        for path, index in self.node_of.items():
            joint = self.stage.GetPrimAtPath(path).GetCustomDataByKey("joint") if index >= 0 else None
            node = self.scene.nodes[index] if index >= 0 else None
            if not isinstance(joint, str) or node.parent < 0 or self.scene.nodes[node.parent].skeleton is None:
                continue
            skeleton = self.scene.skeletons[self.scene.nodes[node.parent].skeleton]
            if joint not in skeleton.joints:
                continue
            node.parent_joint = skeleton.joints.index(joint)
            node.matrix = np.linalg.inv(skeleton.pose()[node.parent_joint]) @ node.matrix
            below = {index}
            for number in range(index, len(self.scene.nodes)):
                if number == index or self.scene.nodes[number].parent in below:
                    below.add(number)
                    mesh = self.scene.nodes[number].mesh
                    if mesh is not None and mesh in self.meshes.rigid:
                        self.scene.meshes[mesh].skin = None


def get_extras_of_node(prim: Usd.Prim) -> dict:
    """Free-form data that would be lost if the prim were folded into its parent (a mesh keeps its own)."""
    return {} if prim.IsA(UsdGeom.Mesh) or prim.IsA(UsdSkel.Skeleton) else get_extras(prim)


def _camera(prim: UsdGeom.Camera, name: str) -> Camera:
    lens = prim.GetCamera(Usd.TimeCode.EarliestTime())
    near, far = lens.clippingRange.min, lens.clippingRange.max
    camera = Camera(name, aspect=lens.aspectRatio or 1.0, near=near, far=far if 0 < far < 1e7 else None)
    if lens.projection == Gf.Camera.Perspective:
        camera.fov = float(np.radians(lens.GetFieldOfView(Gf.Camera.FOVVertical)))
    else:
        camera.kind, camera.height = "orthographic", lens.verticalAperture * Gf.Camera.APERTURE_UNIT
    return camera


def _light(prim: Usd.Prim) -> Light | None:
    api = UsdLux.LightAPI(prim)
    if prim.IsA(UsdLux.DistantLight):
        kind = "sun"
    elif prim.IsA(UsdLux.SphereLight):
        kind = "point"
    else:
        return None
    exposure = 2.0 ** (api.GetExposureAttr().Get() or 0.0)
    color, intensity = api.GetColorAttr().Get(), api.GetIntensityAttr().Get()
    light = Light(original_name(prim), kind, tuple(color), float(intensity) * exposure)
    shaping = UsdLux.ShapingAPI(prim)
    cone = shaping.GetShapingConeAngleAttr()
    if kind == "point" and cone and cone.HasAuthoredValue():
        light.kind, light.outer_angle = "spot", float(np.radians(cone.Get()))
        light.inner_angle = light.outer_angle * (1 - float(shaping.GetShapingConeSoftnessAttr().Get() or 0.0))
    return light
