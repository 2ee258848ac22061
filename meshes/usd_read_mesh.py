"""UsdGeomMesh and UsdSkel prims -> Mesh, Skin, BlendShape, Skeleton."""

import numpy as np
from pxr import Usd, UsdGeom, UsdShade, UsdSkel

from meshes.gltf_skins import unique_names
from meshes.scene import BlendShape, FaceVarying, InBetween, Mesh, Primvar, Skeleton, Skin
from meshes.skinning import influences_to_rows
from meshes.usd_common import from_gf, from_gf_matrices, get_extras, original_name, value_array

_VARYING = ("vertex", "varying", "faceVarying", "uniform", "constant")


class MeshReader:
    """Reads each mesh once, however many places show it. `rigid` holds meshes bound to one joint as a whole."""

    def __init__(self, reader):
        self.reader, self.scene = reader, reader.scene
        self._known: dict[tuple, int] = {}
        self.rigid: set[int] = set()

    def index(self, prim: UsdGeom.Mesh) -> int:
        """The scene's mesh for a prim."""
        key = self._identity(prim.GetPrim())
        if key not in self._known:
            self._known[key] = len(self.scene.meshes)
            self.scene.meshes.append(None)
            self.scene.meshes[self._known[key]] = self._read(prim, self._known[key])
        return self._known[key]

    def _identity(self, prim: Usd.Prim) -> tuple:
        """Equal for prims whose contents come from the same places: specs with anything to say, materials, skeleton."""
        specs = [
            (spec.layer.identifier, str(spec.path))
            for spec in prim.GetPrimStack()
            if any(not p.name.startswith("xformOp") and p.name != "visibility" for p in spec.properties)
            or spec.nameChildren
        ]
        bound, _ = UsdShade.MaterialBindingAPI(prim).ComputeBoundMaterial()
        skeleton = UsdSkel.BindingAPI(prim).GetInheritedSkeleton()
        paths = [str(thing.GetPath()) if thing else "" for thing in (bound, skeleton)]
        return (tuple(specs) or str(prim.GetPath()), *paths)

    def _fail(self, prim, text: str):
        self.reader.fail(f"{prim.GetPath()}: {text}")

    def _get(self, attribute: Usd.Attribute):
        """A value at the default time, else at the first sample."""
        if attribute.GetNumTimeSamples() > 1 and attribute.GetName() in ("points", "normals", "faceVertexIndices"):
            self.scene.warn(f"{attribute.GetPath()}: its motion is not kept (the first frame is)")
        value = attribute.Get()
        return value if value is not None else attribute.Get(self.reader.time)

    def _read(self, prim: UsdGeom.Mesh, number: int) -> Mesh:
        points = value_array(self._get(prim.GetPointsAttr()), (-1, 3), np.float64)
        sizes = value_array(self._get(prim.GetFaceVertexCountsAttr()), (-1,), np.int32)
        vertices = value_array(self._get(prim.GetFaceVertexIndicesAttr()), (-1,), np.int32)
        if len(sizes) and int(sizes.min()) < 0:
            self._fail(prim, f"a face has {int(sizes.min())} corners")
        if int(sizes.sum(dtype=np.int64)) != len(vertices):
            self._fail(
                prim, f"faceVertexCounts add up to {sizes.sum(dtype=np.int64)}, there are {len(vertices)} corners"
            )
        if len(vertices) and not 0 <= int(vertices.min()) <= int(vertices.max()) < len(points):
            self._fail(prim, f"a face names point {int(vertices.min())}..{int(vertices.max())} of {len(points)}")
        mesh = Mesh(
            original_name(prim.GetPrim()),
            points,
            sizes,
            vertices,
            subdivision=str(self._get(prim.GetSubdivisionSchemeAttr()) or "catmullClark"),
            double_sided=bool(self._get(prim.GetDoubleSidedAttr())),
            extras=get_extras(prim.GetPrim()),
        )
        layout = _Layout(mesh, prim, self)
        self._read_normals(prim, mesh, layout)
        self._read_primvars(prim, mesh, layout)
        self._read_materials(prim, mesh)
        self._read_edges(prim, mesh)
        layout.finish()
        self._read_skin(prim, mesh, number)
        self._read_blend_shapes(prim, mesh)
        return mesh

    def _read_normals(self, prim: UsdGeom.Mesh, mesh: Mesh, layout) -> None:
        primvar = UsdGeom.PrimvarsAPI(prim).GetPrimvar("normals")
        if primvar and primvar.HasAuthoredValue():
            mesh.normals = layout.varying(primvar, 3)
            return
        values = self._get(prim.GetNormalsAttr())
        if values is None or not len(values):
            return
        values = value_array(values, (-1, 3), np.float64)
        mesh.normals = layout.varying_values(values, None, prim.GetNormalsInterpolation(), "normals")

    def _read_primvars(self, prim: UsdGeom.Mesh, mesh: Mesh, layout) -> None:
        opacity = None
        for primvar in UsdGeom.PrimvarsAPI(prim).GetPrimvarsWithAuthoredValues():
            name, type_name = primvar.GetPrimvarName(), str(primvar.GetTypeName()).removesuffix("[]")
            shown = original_name(primvar.GetAttr())
            if name == "normals" or name.startswith("skel:"):
                continue
            if name == "sharpEdges" and type_name == "int2":
                mesh.sharp_edges = value_array(primvar.Get(), (-1, 2), np.int32)
            elif type_name in ("texCoord2f", "texCoord2d", "texCoord2h") or (name == "st" and type_name == "float2"):
                if (varying := layout.varying(primvar, 2)) is not None:
                    mesh.uv_sets[shown] = varying
            elif name == "displayOpacity":
                opacity = layout.varying(primvar, 1)
            elif type_name.startswith("color") and type_name[5:6] in "34":
                if (varying := layout.varying(primvar, int(type_name[5]))) is not None:
                    mesh.colors[shown] = varying
            else:
                layout.primvar(primvar, shown, type_name)
        self._order_sets(mesh)
        if opacity is not None:
            _join_opacity(mesh, opacity)

    def _order_sets(self, mesh: Mesh) -> None:
        """USD lists primvars by name; the one that viewers use by default goes first."""
        for sets, first in ((mesh.uv_sets, ("st", "UVMap", "st0")), (mesh.colors, ("displayColor",))):
            for name in reversed([name for name in first if name in sets]):
                rest = {key: sets.pop(key) for key in [key for key in sets if key != name]}
                sets.update(rest)

    def _read_materials(self, prim: UsdGeom.Mesh, mesh: Mesh) -> None:
        index = self.reader.materials.bound_index(prim.GetPrim())
        mesh.face_material = np.full(len(mesh.face_sizes), index, np.int32)
        for subset in UsdGeom.Subset.GetAllGeomSubsets(prim):
            family = subset.GetFamilyNameAttr().Get()
            element = subset.GetElementTypeAttr().Get()
            faces = value_array(self._get(subset.GetIndicesAttr()), (-1,), np.int64)
            if element != "face":
                self.scene.warn(f"{subset.GetPath()}: a subset of {element}s is not kept")
                continue
            if len(faces) and not 0 <= int(faces.min()) <= int(faces.max()) < len(mesh.face_sizes):
                self._fail(subset, f"names face {int(faces.min())}..{int(faces.max())} of {len(mesh.face_sizes)}")
            material = self.reader.materials.direct_index(subset.GetPrim())
            if family in ("materialBind", "", None) and material is not None:
                mesh.face_material[faces] = material
            else:
                mesh.face_groups[original_name(subset.GetPrim())] = np.unique(faces).astype(np.int32)

    def _read_edges(self, prim: UsdGeom.Mesh, mesh: Mesh) -> None:
        indices = value_array(self._get(prim.GetCreaseIndicesAttr()), (-1,), np.int32)
        lengths = value_array(self._get(prim.GetCreaseLengthsAttr()), (-1,), np.int64)
        sharpness = value_array(self._get(prim.GetCreaseSharpnessesAttr()), (-1,), np.float64)
        if len(lengths):
            edges = int((lengths - 1).sum())
            if (
                int(lengths.min()) < 2
                or int(lengths.sum()) != len(indices)
                or len(sharpness) not in (len(lengths), edges)
            ):
                self._fail(prim, "its creases contradict themselves")
            starts = np.ones(len(indices), bool)
            starts[np.cumsum(lengths)[:-1]] = False
            pairs = np.stack([indices[:-1], indices[1:]], 1)[starts[1:]]
            mesh.crease_edges = pairs
            per_edge = len(sharpness) == edges
            mesh.crease_sharpness = sharpness if per_edge else np.repeat(sharpness, lengths - 1)
        corners = value_array(self._get(prim.GetCornerIndicesAttr()), (-1,), np.int32)
        if len(corners):
            mesh.corner_points = corners
            mesh.corner_sharpness = value_array(self._get(prim.GetCornerSharpnessesAttr()), (-1,), np.float64)
            if len(mesh.corner_sharpness) != len(corners):
                self._fail(prim, "its corner sharpnesses contradict its corners")
        holes = value_array(self._get(prim.GetHoleIndicesAttr()), (-1,), np.int32)
        if len(holes):
            mesh.face_groups["holes"] = np.unique(holes).astype(np.int32)
            self.scene.warn(f"{prim.GetPath()}: its hole faces are kept as the face group 'holes'")

    def _read_skin(self, prim: UsdGeom.Mesh, mesh: Mesh, number: int) -> None:
        binding, primvars = UsdSkel.BindingAPI(prim), UsdGeom.PrimvarsAPI(prim)
        indices = primvars.FindPrimvarWithInheritance("skel:jointIndices")
        weights = primvars.FindPrimvarWithInheritance("skel:jointWeights")
        if not indices or not weights or not indices.HasAuthoredValue():
            return
        skeleton_prim = binding.GetInheritedSkeleton()
        skeleton = self.reader.skeleton_of.get(skeleton_prim.GetPath()) if skeleton_prim else None
        if skeleton is None:
            self.scene.warn(f"{prim.GetPath()}: has joint weights and no skeleton; they are not kept")
            return
        if binding.GetSkinningMethodAttr() and binding.GetSkinningMethodAttr().Get() == "dualQuaternion":
            self.scene.warn(f"{prim.GetPath()}: dual quaternion skinning is kept as linear blend skinning")
        joints = value_array(self._get(indices.GetAttr()), (-1,), np.int64)
        values = value_array(self._get(weights.GetAttr()), (-1,), np.float64)
        size, points = max(1, indices.GetElementSize()), len(mesh.points)
        constant = indices.GetInterpolation() == UsdGeom.Tokens.constant
        rows = 1 if constant else points
        if len(joints) != len(values) or len(joints) != rows * size:
            self._fail(prim, f"{len(joints)} joint indices and {len(values)} weights for {rows} x {size}")
        if not np.isfinite(values).all() or (values < 0).any():
            self._fail(prim, "a joint weight is negative or not finite")
        joint_map = self._joint_map(prim, skeleton, skeleton_prim)
        used = values != 0
        if used.any() and not 0 <= int(joints[used].min()) <= int(joints[used].max()) < len(joint_map):
            self._fail(prim, f"names joint {int(joints[used].min())}..{int(joints[used].max())} of {len(joint_map)}")
        row, column = np.nonzero(used.reshape(rows, size))
        joint, weight = joint_map[joints.reshape(rows, size)[row, column]], values.reshape(rows, size)[row, column]
        if constant:
            self.rigid.add(number)
            row, joint, weight = (
                np.repeat(np.arange(points), len(joint)),
                np.tile(joint, points),
                np.tile(weight, points),
            )
        bind = self._get(binding.GetGeomBindTransformAttr()) if binding.GetGeomBindTransformAttr() else None
        transform = np.eye(4) if bind is None else from_gf(bind)
        mesh.skin = Skin(skeleton, *influences_to_rows(row, joint, weight, points), transform)

    def _joint_map(self, prim: UsdGeom.Mesh, skeleton: int, skeleton_prim) -> np.ndarray:
        """The mesh's joint numbers as the skeleton's: a mesh may list its own joints in its own order."""
        tokens = list(skeleton_prim.GetJointsAttr().Get() or [])
        own = UsdSkel.BindingAPI(prim).GetJointsAttr()
        own = list(own.Get() or []) if own and own.HasAuthoredValue() else tokens
        place = {token: number for number, token in enumerate(tokens)}
        if missing := [token for token in own if token not in place]:
            self._fail(prim, f"names the joint {missing[0]!r}, which its skeleton does not have")
        return np.array([place[token] for token in own], np.int64)

    def _read_blend_shapes(self, prim: UsdGeom.Mesh, mesh: Mesh) -> None:
        binding = UsdSkel.BindingAPI(prim)
        targets = binding.GetBlendShapeTargetsRel().GetForwardedTargets() if binding.GetBlendShapeTargetsRel() else []
        for target in targets:
            shape = UsdSkel.BlendShape(self.reader.stage.GetPrimAtPath(target))
            if not shape:
                self._fail(prim, f"names the blend shape {target}, which is not there")
            indices = value_array(shape.GetPointIndicesAttr().Get(), (-1,), np.int32)
            normals = value_array(shape.GetNormalOffsetsAttr().Get(), (-1, 3), np.float64)
            offsets = value_array(shape.GetOffsetsAttr().Get(), (-1, 3), np.float64)
            read = BlendShape(
                original_name(shape.GetPrim()),
                offsets,
                indices if len(indices) else None,
                normals if len(normals) == len(offsets) and len(normals) else None,
            )
            for between in shape.GetInbetweens():
                normals = between.GetNormalOffsets()
                normals = value_array(normals, (-1, 3), np.float64) if normals else None
                name = between.GetAttr().GetName().rpartition(":")[2]
                values = value_array(between.GetOffsets(), (-1, 3), np.float64)
                read.inbetweens.append(InBetween(name, float(between.GetWeight() or 0.0), values, normals))
            mesh.blend_shapes.append(read)


class _Layout:
    """Turns primvars into values a corner, and left-handed or degenerate faces into what Mesh holds."""

    def __init__(self, mesh: Mesh, prim: UsdGeom.Mesh, reader: MeshReader):
        self.mesh, self.prim, self.reader = mesh, prim, reader

    def varying(self, primvar: UsdGeom.Primvar, width: int) -> FaceVarying | None:
        """A numeric primvar as one value a face corner."""
        value = self.reader._get(primvar.GetAttr())
        if value is None:
            return None
        values = value_array(value, (-1, width), np.float64)
        indices = value_array(primvar.GetIndices(), (-1,), np.int32) if primvar.IsIndexed() else None
        return self.varying_values(values, indices, primvar.GetInterpolation(), primvar.GetPrimvarName())

    def varying_values(self, values, indices, interpolation: str, name: str) -> FaceVarying:
        """Values of any interpolation as one value a face corner."""
        mesh = self.mesh
        corner_to_element = {
            "constant": lambda: np.zeros(len(mesh.face_vertices), np.int32),
            "uniform": mesh.corner_faces,
            "vertex": lambda: mesh.face_vertices,
            "varying": lambda: mesh.face_vertices,
            "faceVarying": lambda: np.arange(len(mesh.face_vertices), dtype=np.int32),
        }
        if interpolation not in corner_to_element:
            self.reader._fail(self.prim, f"{name} has the unknown interpolation {interpolation!r}")
        elements = corner_to_element[interpolation]()
        count = len(values) if indices is None else len(indices)
        if len(elements) and int(elements.max()) >= count:
            self.reader._fail(self.prim, f"{name} has {count} values, its {interpolation} interpolation needs more")
        picked = elements if indices is None else indices[elements]
        if len(picked) and not 0 <= int(picked.min()) <= int(picked.max()) < len(values):
            self.reader._fail(self.prim, f"{name} has an index outside 0..{len(values) - 1}")
        return FaceVarying(values, np.ascontiguousarray(picked, np.int32))

    def primvar(self, primvar: UsdGeom.Primvar, name: str, type_name: str) -> None:
        """Any other primvar, kept as it is."""
        value = self.reader._get(primvar.GetAttr())
        interpolation = str(primvar.GetInterpolation()).replace("varying", "vertex")
        if value is None or interpolation not in _VARYING or primvar.GetElementSize() > 1:
            self.reader.scene.warn(f"{primvar.GetAttr().GetPath()}: is not kept")
            return
        if not str(primvar.GetTypeName()).endswith("[]"):
            value = [value]
        values = np.array(value, object if type_name in ("string", "token", "asset") else None)
        if values.dtype.kind not in "fiubO" or (values.dtype == object and type_name not in ("string", "token")):
            self.reader.scene.warn(f"{primvar.GetAttr().GetPath()}: a {type_name} is not kept")
            return
        indices = value_array(primvar.GetIndices(), (-1,), np.int32) if primvar.IsIndexed() else None
        self.mesh.primvars[name] = Primvar(values, indices, interpolation, type_name)

    def finish(self) -> None:
        """Counter-clockwise front faces, and no faces of fewer than three corners."""
        mesh = self.mesh
        sizes, offsets = mesh.face_sizes.astype(np.int64), mesh.face_offsets()
        order = np.arange(len(mesh.face_vertices), dtype=np.int64)
        left_handed = self.prim.GetOrientationAttr().Get() == UsdGeom.Tokens.leftHanded
        if left_handed:  # Keep each face's first corner and turn the rest round.
            place = order - np.repeat(offsets[:-1], sizes)
            turned = (np.repeat(sizes, sizes) - place) % np.maximum(np.repeat(sizes, sizes), 1)
            order = np.repeat(offsets[:-1], sizes) + turned
        keep = sizes >= 3
        if not keep.all():
            self.reader.scene.warn(
                f"{self.prim.GetPath()}: {int((~keep).sum())} faces with fewer than 3 corners are not kept"
            )
            order = order[np.repeat(keep, sizes)]
        if left_handed or not keep.all():
            self._reorder(order, keep)

    def _reorder(self, order: np.ndarray, keep: np.ndarray) -> None:
        mesh = self.mesh
        mesh.face_vertices = mesh.face_vertices[order]
        for varying in [mesh.normals, *mesh.uv_sets.values(), *mesh.colors.values()]:
            if varying is not None:
                varying.indices = varying.indices[order]
        for primvar in mesh.primvars.values():
            pick = {"faceVarying": order, "uniform": np.flatnonzero(keep)}.get(primvar.interpolation)
            if pick is not None:
                old = np.arange(len(primvar.values), dtype=np.int32) if primvar.indices is None else primvar.indices
                primvar.indices = old[pick]
        number = np.cumsum(keep) - 1
        groups = mesh.face_groups.items()
        mesh.face_groups = {name: number[faces[keep[faces]]].astype(np.int32) for name, faces in groups}
        mesh.face_sizes, mesh.face_material = mesh.face_sizes[keep], mesh.face_material[keep]


def read_skeleton(reader, prim: UsdSkel.Skeleton) -> Skeleton | None:
    """A Skeleton prim, or None if it has no joints (such a one only carries blend shape weights)."""
    tokens = [str(token) for token in prim.GetJointsAttr().Get() or []]
    if not tokens:
        return None
    place = {token: number for number, token in enumerate(tokens)}
    if len(place) != len(tokens):
        reader.fail(f"{prim.GetPath()}: names a joint twice")
    parents = np.full(len(tokens), -1, np.int32)
    for number, token in enumerate(tokens):
        while "/" in token:
            token = token.rpartition("/")[0]
            if token in place:
                parents[number] = place[token]
                break
        if parents[number] >= number:
            reader.fail(f"{prim.GetPath()}: joint {tokens[number]!r} comes before its parent")
    rest, bind = (
        from_gf_matrices(attribute.Get() or [])
        for attribute in (prim.GetRestTransformsAttr(), prim.GetBindTransformsAttr())
    )
    if len(rest) not in (0, len(tokens)) or len(bind) not in (0, len(tokens)) or len(rest) + len(bind) == 0:
        reader.fail(f"{prim.GetPath()}: {len(rest)} rest and {len(bind)} bind transforms for {len(tokens)} joints")
    if not np.isfinite(rest).all() or not np.isfinite(bind).all():
        reader.fail(f"{prim.GetPath()}: a joint's transform is not finite")
    names = list(prim.GetJointNamesAttr().Get() or [])
    if len(names) != len(tokens) or len(set(names)) != len(names):
        names = unique_names([token.rpartition("/")[2] for token in tokens])
    skeleton = Skeleton(original_name(prim.GetPrim()), names, parents, rest, bind, extras=get_extras(prim.GetPrim()))
    if len(bind) and (np.abs(np.linalg.det(bind)) == 0).any():
        reader.fail(f"{prim.GetPath()}: a joint's bind transform cannot be inverted")
    if not len(rest):
        above = np.where((parents >= 0)[:, None, None], bind[parents], np.eye(4))
        skeleton.rest = np.linalg.inv(above) @ bind
    if not len(bind):
        skeleton.bind = skeleton.pose()
    return skeleton


def _join_opacity(mesh: Mesh, opacity: FaceVarying) -> None:
    """`displayOpacity` becomes the fourth number of `displayColor` (white where there is no colour)."""
    color = mesh.colors.get("displayColor")
    if color is None:
        rgb = np.ones((len(opacity.values), 3))
        mesh.colors["displayColor"] = FaceVarying(np.concatenate([rgb, opacity.values], 1), opacity.indices)
    elif len(color.values) == len(opacity.values) and np.array_equal(color.indices, opacity.indices):
        mesh.colors["displayColor"] = FaceVarying(np.concatenate([color.values, opacity.values], 1), color.indices)
    else:
        corners = np.concatenate([color.corners(), opacity.corners()], 1)
        mesh.colors["displayColor"] = FaceVarying(corners, np.arange(len(corners), dtype=np.int32))
