"""One Mesh as a UsdGeomMesh prim with its primvars, subsets, skin and blend shapes."""

import numpy as np
from pxr import Sdf, Usd, UsdGeom, UsdShade, UsdSkel, Vt

from meshes.scene import FaceVarying, Mesh, Primvar
from meshes.skinning import influence_table
from meshes.usd_common import NameScope, floats, gf_matrix, ints, legal_name, set_display_name, set_extras

_FLOAT_ARRAYS = {1: Vt.FloatArray, 2: Vt.Vec2fArray, 3: Vt.Vec3fArray, 4: Vt.Vec4fArray}


def write_mesh(writer, mesh: Mesh, path: Sdf.Path, joint: tuple | None) -> None:
    """Author the mesh at `path`. `joint` (skeleton, joint, mesh-to-joint matrix) binds a mesh without skin to one
    joint.
    """
    prim = UsdGeom.Mesh.Define(writer.stage, path)
    set_display_name(prim.GetPrim(), mesh.name)
    set_extras(prim.GetPrim(), mesh.extras)
    prim.CreatePointsAttr(floats(mesh.points, Vt.Vec3fArray))
    prim.CreateFaceVertexCountsAttr(ints(mesh.face_sizes))
    prim.CreateFaceVertexIndicesAttr(ints(mesh.face_vertices))
    prim.CreateSubdivisionSchemeAttr(mesh.subdivision)
    if mesh.double_sided:
        prim.CreateDoubleSidedAttr(True)
    finite = mesh.points[np.isfinite(mesh.points).all(1)]
    if len(finite):
        prim.CreateExtentAttr(floats(np.stack([finite.min(0), finite.max(0)]), Vt.Vec3fArray))
    if mesh.normals is not None:
        at_points = _follows_points(mesh, mesh.normals)
        values = mesh.normals.values if at_points else mesh.normals.corners()
        prim.CreateNormalsAttr(floats(values, Vt.Vec3fArray))
        prim.SetNormalsInterpolation("vertex" if at_points else "faceVarying")
    primvars, names = UsdGeom.PrimvarsAPI(prim), NameScope()
    for name, uv in mesh.uv_sets.items():
        _write_varying(mesh, primvars, names, name, uv, Sdf.ValueTypeNames.TexCoord2fArray)
    for name, color in mesh.colors.items():
        _write_color(mesh, primvars, names, name, color)
    for name, primvar in mesh.primvars.items():
        _write_primvar(writer, mesh, primvars, names, name, primvar)
    _write_edges(prim, mesh)
    _write_materials(writer, prim, mesh)
    for name, faces in mesh.face_groups.items():
        subset = UsdGeom.Subset.CreateUniqueGeomSubset(prim, legal_name(name), "face", ints(faces))
        subset.CreateFamilyNameAttr("faceGroup")
        set_display_name(subset.GetPrim(), name)
    if mesh.face_groups:
        UsdGeom.Subset.SetFamilyType(prim, "faceGroup", UsdGeom.Tokens.unrestricted)
    if mesh.skin is not None or joint is not None:
        _write_skin(writer, prim, mesh, joint)
    if mesh.blend_shapes:
        _write_blend_shapes(prim, mesh)


def _follows_points(mesh: Mesh, varying: FaceVarying) -> bool:
    """Whether there is one value a point, so that "vertex" interpolation says it all."""
    return len(varying.values) == len(mesh.points) and np.array_equal(varying.indices, mesh.face_vertices)


def _write_varying(
    mesh: Mesh, primvars, names: NameScope, name: str, varying: FaceVarying, type_name
) -> UsdGeom.Primvar:
    at_points = _follows_points(mesh, varying)
    interpolation = UsdGeom.Tokens.vertex if at_points else UsdGeom.Tokens.faceVarying
    primvar = primvars.CreatePrimvar(names.unique("", name), type_name, interpolation)
    primvar.Set(floats(varying.values, _FLOAT_ARRAYS[varying.values.shape[1]]))
    if not at_points:
        primvar.SetIndices(ints(varying.indices))
    set_display_name(primvar.GetAttr(), name)
    return primvar


def _write_color(mesh: Mesh, primvars, names: NameScope, name: str, color: FaceVarying) -> None:
    """`displayColor` is three numbers in USD, with the fourth in `displayOpacity`; other sets keep four."""
    alpha = color.values.shape[1] == 4
    if name == "displayColor":
        rgb = FaceVarying(color.values[:, :3], color.indices)
        _write_varying(mesh, primvars, names, name, rgb, Sdf.ValueTypeNames.Color3fArray)
        if alpha:
            opacity = FaceVarying(color.values[:, 3:], color.indices)
            _write_varying(mesh, primvars, names, "displayOpacity", opacity, Sdf.ValueTypeNames.FloatArray)
    else:
        kind = Sdf.ValueTypeNames.Color4fArray if alpha else Sdf.ValueTypeNames.Color3fArray
        _write_varying(mesh, primvars, names, name, color, kind)


def _write_primvar(writer, mesh: Mesh, primvars, names: NameScope, name: str, primvar: Primvar) -> None:
    type_name = Sdf.ValueTypeNames.Find(primvar.type_name + "[]")
    if not type_name:
        writer.warn(f"mesh {mesh.name!r}: the primvar {name!r} of type {primvar.type_name!r} is left out")
        return
    written = primvars.CreatePrimvar(names.unique("", name), type_name, primvar.interpolation)
    values = primvar.values
    if values.dtype.kind == "O" or values.dtype.kind in "US":
        written.Set([str(value) for value in values])
    else:
        array = type(type_name.defaultValue)
        dtype = np.array(array(1)).dtype
        written.Set(array.FromNumpy(np.ascontiguousarray(values, dtype)))
    if primvar.indices is not None:
        written.SetIndices(ints(primvar.indices))
    set_display_name(written.GetAttr(), name)


def _write_edges(prim: UsdGeom.Mesh, mesh: Mesh) -> None:
    """Creases as pairs. Sharp edges have no schema of their own: they are custom data of this writer's, and read
    back by it.
    """
    if mesh.crease_edges is not None and len(mesh.crease_edges):
        prim.CreateCreaseIndicesAttr(ints(mesh.crease_edges.reshape(-1)))
        prim.CreateCreaseLengthsAttr(ints(np.full(len(mesh.crease_edges), 2)))
        prim.CreateCreaseSharpnessesAttr(floats(mesh.crease_sharpness, Vt.FloatArray))
    if mesh.corner_points is not None and len(mesh.corner_points):
        prim.CreateCornerIndicesAttr(ints(mesh.corner_points))
        prim.CreateCornerSharpnessesAttr(floats(mesh.corner_sharpness, Vt.FloatArray))
    if mesh.sharp_edges is not None and len(mesh.sharp_edges):
        primvar = UsdGeom.PrimvarsAPI(prim).CreatePrimvar("sharpEdges", Sdf.ValueTypeNames.Int2Array, "constant")
        primvar.Set(Vt.Vec2iArray.FromNumpy(np.ascontiguousarray(mesh.sharp_edges, np.int32)))


def _write_materials(writer, prim: UsdGeom.Mesh, mesh: Mesh) -> None:
    used = np.unique(mesh.face_material)
    if len(used) == 1 and used[0] >= 0:
        _bind(writer, prim.GetPrim(), int(used[0]))
    elif len(used) > 1:
        api = UsdShade.MaterialBindingAPI.Apply(prim.GetPrim())
        for material in used[used >= 0]:
            faces = np.flatnonzero(mesh.face_material == material)
            name = writer.material_paths[material].name
            subset = api.CreateMaterialBindSubset(name, ints(faces))
            _bind(writer, subset.GetPrim(), int(material))
        family = UsdGeom.Tokens.partition if used[0] >= 0 else UsdGeom.Tokens.nonOverlapping
        api.SetMaterialBindSubsetsFamilyType(family)


def _bind(writer, prim: Usd.Prim, material: int) -> None:
    bound = UsdShade.Material(writer.stage.GetPrimAtPath(writer.material_paths[material]))
    UsdShade.MaterialBindingAPI.Apply(prim).Bind(bound)


def _write_skin(writer, prim: UsdGeom.Mesh, mesh: Mesh, joint: tuple | None) -> None:
    binding = UsdSkel.BindingAPI.Apply(prim.GetPrim())
    if mesh.skin is not None:
        skeleton, bind_transform = mesh.skin.skeleton, mesh.skin.bind_transform
        joints, weights = influence_table(mesh.skin, len(mesh.points), multiple=1)
        size, constant = joints.shape[1], False
    else:
        skeleton, number, to_joint = joint
        bind_transform = writer.scene.skeletons[skeleton].bind[number] @ to_joint
        joints, weights, size, constant = np.array([number]), np.ones(1), 1, True
    binding.CreateSkeletonRel().SetTargets([writer.skeleton_paths[skeleton]])
    binding.CreateGeomBindTransformAttr(gf_matrix(bind_transform))
    binding.CreateJointIndicesPrimvar(constant, size).Set(ints(joints.reshape(-1)))
    binding.CreateJointWeightsPrimvar(constant, size).Set(floats(weights.reshape(-1), Vt.FloatArray))


def _write_blend_shapes(prim: UsdGeom.Mesh, mesh: Mesh) -> None:
    stage, names, targets = prim.GetPrim().GetStage(), NameScope(), []
    for shape in mesh.blend_shapes:
        path = prim.GetPath().AppendChild(names.unique("", shape.name))
        target = UsdSkel.BlendShape.Define(stage, path)
        set_display_name(target.GetPrim(), shape.name)
        target.CreateOffsetsAttr(floats(shape.offsets, Vt.Vec3fArray))
        if shape.normal_offsets is not None:
            target.CreateNormalOffsetsAttr(floats(shape.normal_offsets, Vt.Vec3fArray))
        if shape.indices is not None:
            target.CreatePointIndicesAttr(ints(shape.indices))
        for between in shape.inbetweens:
            authored = target.CreateInbetween(legal_name(between.name))
            authored.SetWeight(between.weight)
            authored.SetOffsets(floats(between.offsets, Vt.Vec3fArray))
            if between.normal_offsets is not None:
                authored.CreateNormalOffsetsAttr(floats(between.normal_offsets, Vt.Vec3fArray))
        targets.append(path)
    binding = UsdSkel.BindingAPI.Apply(prim.GetPrim())
    binding.CreateBlendShapesAttr([legal_name(path.name) for path in targets])
    binding.CreateBlendShapeTargetsRel().SetTargets(targets)
