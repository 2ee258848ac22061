"""Scene -> USD stage, the same for the same scene.

Layout: one default prim (an Xform, or a SkelRoot where anything is deformed) holds the node hierarchy and a
`Materials` scope. Skeletons and blend shapes are UsdSkel, materials UsdPreviewSurface, materials of single faces
GeomSubsets. Names that USD does not allow for prims are made legal, with the original in the display name. Source:
the OpenUSD schemas UsdGeom, UsdShade, UsdSkel and UsdLux.
"""

import json
import math

import numpy as np
from pxr import Gf, Sdf, Usd, UsdGeom, UsdLux, UsdSkel

from meshes.scene import Scene
from meshes.usd_common import NameScope, gf_matrix, set_display_name, set_extras
from meshes.usd_write_clips import TIME_CODES_PER_SECOND, ClipWriter
from meshes.usd_write_materials import write_materials
from meshes.usd_write_mesh import write_mesh
from shared_utils.errors import InvalidInputError


class UsdWriter:
    """Builds the stage of one scene. `textures` maps file names below `texture_folder` to the bytes that belong
    there.
    """

    def __init__(self, scene: Scene, texture_folder: str, *, package: bool):
        self.scene, self.texture_folder, self.package = scene, texture_folder, package
        self.warnings: list[str] = []
        self.textures: dict[str, bytes] = {}
        self.stage = Usd.Stage.CreateInMemory()
        self.names = NameScope()
        self.node_paths: list[Sdf.Path] = []
        self.skeleton_paths: dict[int, Sdf.Path] = {}
        self.material_paths: list[Sdf.Path] = []
        self.mesh_paths: dict[int, list[tuple[int, Sdf.Path]]] = {}  # mesh -> (node, prim) of each place

    def warn(self, text: str) -> None:
        """Note what the format cannot keep, once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def write(self) -> Usd.Stage:
        """Author everything; the finished stage. Raises InvalidInputError for transforms that are not finite."""
        scene, stage = self.scene, self.stage
        UsdGeom.SetStageUpAxis(stage, scene.up_axis)
        UsdGeom.SetStageMetersPerUnit(stage, scene.metres_per_unit)
        stage.SetTimeCodesPerSecond(TIME_CODES_PER_SECOND)
        stage.SetFramesPerSecond(TIME_CODES_PER_SECOND)
        synthetic = not self._has_bare_root()
        root = Sdf.Path("/" + self.names.unique("/", "Root" if synthetic else scene.nodes[0].name))
        self._write_root(root, synthetic)
        self.names.unique(root, "Materials")
        self._name_prims(root, synthetic)
        self.material_paths = write_materials(self, root.AppendChild("Materials"))
        clips = ClipWriter(self)
        for index in range(len(scene.nodes)):
            self._write_node(index, clips)
        clips.write()
        if scene.extras:
            stage.GetRootLayer().customLayerData = {"extras": json.dumps(scene.extras, ensure_ascii=False)}
        return stage

    def _has_bare_root(self) -> bool:
        """Whether the scene's only root node shows nothing itself, so that it can be the default prim."""
        roots = [node for node in self.scene.nodes if node.parent < 0]
        return len(roots) == 1 and roots[0].mesh is None and roots[0].camera is None and roots[0].light is None

    def _write_root(self, path: Sdf.Path, synthetic: bool) -> None:
        deformed = any(mesh.skin is not None or mesh.blend_shapes for mesh in self.scene.meshes)
        kind = UsdSkel.Root if deformed or self.scene.skeletons else UsdGeom.Xform
        prim = kind.Define(self.stage, path).GetPrim()
        self.stage.SetDefaultPrim(prim)
        Usd.ModelAPI(prim).SetKind("component")
        if synthetic:
            prim.SetCustomDataByKey("synthetic", True)

    def _name_prims(self, root: Sdf.Path, synthetic: bool) -> None:
        for index, node in enumerate(self.scene.nodes):
            if index == 0 and not synthetic:
                self.node_paths.append(root)
                continue
            parent = root if node.parent < 0 else self.node_paths[node.parent]
            self.node_paths.append(parent.AppendChild(self.names.unique(parent, node.name)))
        for index, node in enumerate(self.scene.nodes):
            if node.skeleton is not None:
                path = self.node_paths[index]
                name = self.names.unique(path, self.scene.skeletons[node.skeleton].name)
                self.skeleton_paths[node.skeleton] = path.AppendChild(name)

    def _write_node(self, index: int, clips: ClipWriter) -> None:
        scene, node, path = self.scene, self.scene.nodes[index], self.node_paths[index]
        prim = self.stage.GetPrimAtPath(path) or UsdGeom.Xform.Define(self.stage, path).GetPrim()
        set_display_name(prim, node.name)
        set_extras(prim, node.extras)
        matrix = node.matrix
        if node.parent_joint >= 0:  # USD cannot hang a prim on a joint; a mesh is bound to it rigidly instead.
            skeleton = scene.skeletons[scene.nodes[node.parent].skeleton]
            prim.SetCustomDataByKey("joint", skeleton.joints[node.parent_joint])
            matrix = skeleton.pose()[node.parent_joint] @ matrix
            if node.camera is not None or node.light is not None:
                self.warn(f"node {node.name!r} rides on a joint; in USD it stays where the joint rests")
        if not np.isfinite(matrix).all():
            raise InvalidInputError(
                f"node {node.name!r} has a transform that is not finite; USD viewers cannot place it"
            )
        if not clips.write_node_ops(index, prim) and not (matrix == np.eye(4)).all():
            UsdGeom.Xformable(prim).AddTransformOp().Set(gf_matrix(matrix))
        if not node.visible:
            UsdGeom.Imageable(prim).MakeInvisible()
        if node.skeleton is not None:
            clips.write_skeleton(node.skeleton)
        if node.mesh is not None:
            self._write_node_mesh(index, path)
        if node.camera is not None:
            self._write_camera(scene.cameras[node.camera], path)
        if node.light is not None:
            self._write_light(scene.lights[node.light], path)

    def _write_node_mesh(self, index: int, path: Sdf.Path) -> None:
        number = self.scene.nodes[index].mesh
        mesh = self.scene.meshes[number]
        child = path.AppendChild(self.names.unique(path, mesh.name or "mesh"))
        joint = self._joint_above(index) if mesh.skin is None else None
        places = self.mesh_paths.setdefault(number, [])
        if places and joint is None and mesh.skin is None and not mesh.blend_shapes:
            # The same mesh at another place is a reference to the first, so that there is one mesh in the file.
            self.stage.DefinePrim(child).GetReferences().AddInternalReference(places[0][1])
        else:
            write_mesh(self, mesh, child, joint)
        if joint is None:
            places.append((index, child))

    def _joint_above(self, index: int) -> tuple[int, int, np.ndarray] | None:
        """(skeleton, joint, node-to-joint matrix [4, 4]) where the node or a node above it rides on a joint."""
        nodes, matrix = self.scene.nodes, np.eye(4)
        while index >= 0:
            matrix = nodes[index].matrix @ matrix
            if nodes[index].parent_joint >= 0:
                return nodes[nodes[index].parent].skeleton, nodes[index].parent_joint, matrix
            index = nodes[index].parent
        return None

    def _write_camera(self, camera, path: Sdf.Path) -> None:
        prim = UsdGeom.Camera.Define(self.stage, path.AppendChild(self.names.unique(path, camera.name)))
        set_display_name(prim.GetPrim(), camera.name)
        lens = Gf.Camera()
        if camera.kind == "perspective":
            fov = math.degrees(camera.fov)
            lens.SetPerspectiveFromAspectRatioAndFieldOfView(camera.aspect, fov, Gf.Camera.FOVVertical)
        else:
            lens.SetOrthographicFromAspectRatioAndSize(camera.aspect, camera.height, Gf.Camera.FOVVertical)
            prim.CreateProjectionAttr(UsdGeom.Tokens.orthographic)
        prim.CreateHorizontalApertureAttr(lens.horizontalAperture)
        prim.CreateVerticalApertureAttr(lens.verticalAperture)
        prim.CreateFocalLengthAttr(lens.focalLength)
        prim.CreateClippingRangeAttr(Gf.Vec2f(camera.near, camera.far if camera.far is not None else 1e7))

    def _write_light(self, light, path: Sdf.Path) -> None:
        path = path.AppendChild(self.names.unique(path, light.name))
        prim = (UsdLux.DistantLight if light.kind == "sun" else UsdLux.SphereLight).Define(self.stage, path)
        set_display_name(prim.GetPrim(), light.name)
        prim.CreateColorAttr(Gf.Vec3f(*light.color))
        prim.CreateIntensityAttr(light.intensity)
        if light.kind != "sun":
            prim.CreateTreatAsPointAttr(True)
            prim.CreateNormalizeAttr(True)
        if light.kind == "spot":
            shaping = UsdLux.ShapingAPI.Apply(prim.GetPrim())
            shaping.CreateShapingConeAngleAttr(math.degrees(light.outer_angle))
            softness = 1 - light.inner_angle / light.outer_angle if light.outer_angle else 0.0
            shaping.CreateShapingConeSoftnessAttr(softness)
