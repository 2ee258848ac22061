"""Small mesh files for the tests, built without the code under test: GLB by hand, USD with usd-core, the rest as
text.

Every function writes one file (with the files it names beside it) and returns its path.
"""

import io
import json
import struct
from pathlib import Path

import numpy as np


def png(color: tuple[int, int, int] = (200, 80, 40), size: int = 4, alpha: int | None = None) -> bytes:
    """A small picture with one odd pixel, so that pictures of different colours differ in bytes."""
    from PIL import Image

    mode, fill = ("RGB", color) if alpha is None else ("RGBA", (*color, alpha))
    picture = Image.new(mode, (size, size), fill)
    picture.putpixel((0, 0), (255, 255, 255) if alpha is None else (255, 255, 255, 255))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


class GlbBuilder:
    """A glTF document with one buffer; `save` writes .glb, or .gltf with the buffer beside it."""

    def __init__(self):
        self.document: dict = {"asset": {"version": "2.0"}, "bufferViews": [], "accessors": []}
        self.binary = b""

    def view(self, data: bytes, **more) -> int:
        """A bufferView with these bytes."""
        self.binary += b"\0" * (-len(self.binary) % 4)
        entry = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data)} | more
        self.document["bufferViews"].append(entry)
        self.binary += data
        return len(self.document["bufferViews"]) - 1

    def array(self, values, kind: str, dtype: str = "<f4", bounds: bool = False, **more) -> int:
        """An accessor over values of a numpy dtype."""
        codes = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
        values = np.ascontiguousarray(values, dtype)
        entry = {"bufferView": self.view(values.tobytes()), "componentType": codes[np.dtype(dtype).str[1:]]}
        entry |= {"count": len(values), "type": kind} | more
        if bounds:
            rows = values.reshape(len(values), -1)
            entry |= {"min": rows.min(0).tolist(), "max": rows.max(0).tolist()}
        self.document["accessors"].append(entry)
        return len(self.document["accessors"]) - 1

    def data(self) -> bytes:
        """The GLB."""
        document = dict(self.document)
        if self.binary:
            document["buffers"] = [{"byteLength": len(self.binary)}]
        return pack_glb(document, self.binary)

    def save(self, path: Path) -> Path:
        """Write it."""
        path = Path(path)
        if path.suffix == ".glb":
            path.write_bytes(self.data())
        else:
            (path.parent / f"{path.stem}.bin").write_bytes(self.binary)
            buffers = [{"byteLength": len(self.binary), "uri": f"{path.stem}.bin"}]
            path.write_text(json.dumps(self.document | {"buffers": buffers}))
        return path


def pack_glb(document: dict, binary: bytes) -> bytes:
    """A GLB of this JSON and this binary chunk."""
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    if binary:
        chunks += struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


_CUBE_FACES = np.array([[0, 2, 3, 1], [4, 5, 7, 6], [0, 1, 5, 4], [2, 6, 7, 3], [0, 4, 6, 2], [1, 3, 7, 5]])
_CUBE_POINTS = np.array([[x, y, z] for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)], np.float64)


def textured_glb(path: Path) -> Path:
    """A cube of 12 triangles whose 24 vertices are split at every seam: two primitives with different materials (the
    first with a picture, a texture transform and a second UV set), vertex colours, two nodes which show the one
    mesh, a turned parent.
    """
    glb = GlbBuilder()
    primitives = []
    for material, sides in enumerate((_CUBE_FACES[:4], _CUBE_FACES[4:])):
        points = _CUBE_POINTS[sides].reshape(-1, 3)
        corners = points.reshape(-1, 4, 3)
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normals = np.repeat(normals / np.linalg.norm(normals, axis=1, keepdims=True), 4, axis=0)
        uv = np.tile([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]], (len(sides), 1))
        quads = np.arange(len(points)).reshape(-1, 4)
        triangles = quads[:, [0, 1, 2, 0, 2, 3]].reshape(-1)
        attributes = {
            "POSITION": glb.array(points, "VEC3", bounds=True),
            "NORMAL": glb.array(normals, "VEC3"),
            "TEXCOORD_0": glb.array(uv, "VEC2"),
            "TEXCOORD_1": glb.array(uv * 0.5, "VEC2"),
            "COLOR_0": glb.array(np.tile([[255, 128, 0, 255]], (len(points), 1)), "VEC4", "u1", normalized=True),
        }
        primitives.append(
            {"attributes": attributes, "indices": glb.array(triangles, "SCALAR", "<u2"), "material": material}
        )
    glb.document |= {
        "extensionsUsed": ["KHR_texture_transform"],
        "images": [{"bufferView": glb.view(png()), "mimeType": "image/png", "name": "paint"}],
        "samplers": [{"wrapS": 33071}],
        "textures": [{"source": 0, "sampler": 0}],
        "materials": [
            {
                "name": "Painted",
                "doubleSided": True,
                "pbrMetallicRoughness": {
                    "baseColorFactor": [1, 0.5, 0.5, 1],
                    "metallicFactor": 0.25,
                    "roughnessFactor": 0.75,
                    "baseColorTexture": {
                        "index": 0,
                        "texCoord": 1,
                        "extensions": {
                            "KHR_texture_transform": {"offset": [0.25, 0.5], "rotation": 0.5, "scale": [2, 3]}
                        },
                    },
                },
            },
            {"name": "Plain é", "alphaMode": "MASK", "alphaCutoff": 0.25, "emissiveFactor": [0, 1, 0]},
        ],
        "meshes": [{"name": "Cube", "primitives": primitives, "extras": {"made by": "hand"}}],
        "nodes": [
            {"name": "Top node", "children": [1, 2], "rotation": [0, 0.6, 0, 0.8]},
            {"name": "Left", "mesh": 0, "translation": [-2, 0, 0]},
            {"name": "Right", "mesh": 0, "translation": [2, 0, 0], "scale": [1, 2, 3], "extras": {"side": "right"}},
        ],
        "scenes": [{"nodes": [0]}],
        "scene": 0,
    }
    return glb.save(path)


def skinned_glb(path: Path, *, joints: int = 12, influences: int = 8, rest_turned: bool = True) -> Path:
    """A bending tube: `joints` joints in a chain, listed in another order than the hierarchy's; `influences` joints
    a vertex; two JOINTS_n sets where needed; a rest pose unlike the bind pose; a mesh which rides on the last joint;
    two blend shapes; a clip with linear, stepped and curved keys; an armature node that is scaled and turned.
    """
    rng = np.random.default_rng(7)
    rings, around = 2 * joints, 8
    heights = np.linspace(0, joints, rings)
    angles = np.linspace(0, 2 * np.pi, around, endpoint=False)
    points = np.array([[np.cos(a), h, np.sin(a)] for h in heights for a in angles])
    at = np.arange(rings - 1)[:, None] * around + np.arange(around)
    after = np.arange(rings - 1)[:, None] * around + (np.arange(around) + 1) % around
    quads = np.stack([at, at + around, after + around, after], -1).reshape(-1, 4)
    triangles = quads[:, [0, 1, 2, 0, 2, 3]].reshape(-1)
    order = rng.permutation(joints)  # order[i]: the chain's joint at place i of the skin
    place = np.argsort(order)
    distance = np.abs(points[:, 1:2] - (np.arange(joints) + 0.5))
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :influences]
    weights = 1 / (0.2 + np.take_along_axis(distance, nearest, 1))
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    sets = -(-influences // 4)
    table = np.zeros((2, len(points), 4 * sets))
    table[0, :, :influences], table[1, :, :influences] = place[nearest], weights
    glb = GlbBuilder()
    attributes = {"POSITION": glb.array(points, "VEC3", bounds=True)}
    attributes["NORMAL"] = glb.array(points * [1, 0, 1], "VEC3")
    for number in range(sets):
        span = slice(4 * number, 4 * number + 4)
        attributes[f"JOINTS_{number}"] = glb.array(table[0][:, span], "VEC4", "u1")
        attributes[f"WEIGHTS_{number}"] = glb.array(table[1][:, span], "VEC4")
    bulge = points * [0.3, 0, 0.3] * (np.abs(points[:, 1:2] - joints / 2) < 2)
    targets = [
        {"POSITION": glb.array(bulge, "VEC3", bounds=True)},
        {"POSITION": glb.array(bulge * [0, 0, -1], "VEC3", bounds=True)},
    ]
    bind = np.tile(np.eye(4), (joints, 1, 1))
    bind[:, 1, 3] = -np.arange(joints)
    inverse_bind = bind[order].transpose(0, 2, 1).reshape(-1, 16)
    turn = [0.0, 0.0, np.sin(0.05), np.cos(0.05)] if rest_turned else [0.0, 0.0, 0.0, 1.0]
    first = 3
    chain = [
        {"name": f"bone.{i:03}", "translation": [0, min(i, 1), 0], "rotation": turn, "children": [first + i + 1]}
        for i in range(joints)
    ]
    times = glb.array(np.array([0.0, 0.5, 1.0]), "SCALAR", bounds=True)
    half = np.sqrt(0.5)
    swing = glb.array([turn, [half, 0, 0, half], turn], "VEC4")
    steps = glb.array([[0, 1, 0], [0, 1.5, 0], [0, 1, 0]], "VEC3")
    curve = glb.array(
        [[0, 0, 0], turn[:3], [0, 0, 0]] * 3, "VEC3"
    )  # tangents, values and scale-free numbers for translation
    shape_weights = glb.array(np.array([0, 0, 1, 0.5, 0, 0]), "SCALAR")
    node = glb.array([[0, 0, 0], [1, 0, 0], [0, 0, 0]], "VEC3")
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    hat = {"POSITION": glb.array(corners, "VEC3", bounds=True)}
    glb.document |= {
        "meshes": [
            {
                "name": "Tube",
                "primitives": [
                    {"attributes": attributes, "indices": glb.array(triangles, "SCALAR", "<u2"), "targets": targets}
                ],
                "weights": [0.25, 0],
                "extras": {"targetNames": ["Bulge out", "Flat"]},
            },
            {"name": "Hat", "primitives": [{"attributes": hat}]},
        ],
        "nodes": [
            {"name": "Armature", "children": [1, 3], "scale": [0.5, 0.5, 0.5], "rotation": [0, 0.6, 0, 0.8]},
            {"name": "Body", "mesh": 0, "skin": 0},
            {"name": "Mover", "translation": [0, 0, 1]},
            *chain,
            {"name": "Hat", "mesh": 1, "translation": [0, 1, 0]},
        ],
        "skins": [
            {
                "name": "Rig",
                "joints": [first + int(i) for i in order],
                "inverseBindMatrices": glb.array(inverse_bind, "MAT4"),
            }
        ],
        "animations": [
            {
                "name": "Wave",
                "samplers": [
                    {"input": times, "output": swing},
                    {"input": times, "output": steps, "interpolation": "STEP"},
                    {"input": times, "output": curve, "interpolation": "CUBICSPLINE"},
                    {"input": times, "output": shape_weights},
                    {"input": times, "output": node},
                ],
                "channels": [
                    {"sampler": 0, "target": {"node": first + 2, "path": "rotation"}},
                    {"sampler": 1, "target": {"node": first + 1, "path": "translation"}},
                    {"sampler": 2, "target": {"node": first, "path": "translation"}},
                    {"sampler": 3, "target": {"node": 1, "path": "weights"}},
                    {"sampler": 4, "target": {"node": 2, "path": "translation"}},
                ],
            }
        ],
        "scenes": [{"nodes": [0, 2]}],
        "scene": 0,
    }
    return glb.save(path)


def rigged_usd(path: Path) -> Path:
    """A Z-up box column in centimetres, made with usd-core: quads and one pentagon, two GeomSubsets with materials
    (one with a picture beside the file), a skeleton of three joints with a SkelAnimation, six influences a point in
    the mesh's own joint order, creases, two UV sets, a blend shape, a camera and a light.
    """
    from pxr import Gf, Sdf, Usd, UsdGeom, UsdLux, UsdShade, UsdSkel, Vt

    path = Path(path)
    stage = Usd.Stage.CreateNew(str(path))
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z)
    UsdGeom.SetStageMetersPerUnit(stage, 0.01)
    stage.SetTimeCodesPerSecond(30)
    root = UsdSkel.Root.Define(stage, "/Model")
    stage.SetDefaultPrim(root.GetPrim())
    body = UsdGeom.Xform.Define(stage, "/Model/Body")
    body.AddTranslateOp().Set(Gf.Vec3d(0, 0, 5))
    mesh = UsdGeom.Mesh.Define(stage, "/Model/Body/Column")
    levels = 4
    points = [(x, y, z) for z in range(levels) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))] + [(0.5, -0.5, 0)]
    counts, indices = [], []
    for level in range(levels - 1):
        for side in range(4):
            a, b = 4 * level + side, 4 * level + (side + 1) % 4
            counts.append(4)
            indices += [a, b, b + 4, a + 4]
    top = 4 * (levels - 1)
    counts += [4, 5]
    indices += [top, top + 1, top + 2, top + 3, 3, 2, 1, 16, 0]
    mesh.CreatePointsAttr([Gf.Vec3f(*p) for p in points])
    mesh.CreateFaceVertexCountsAttr(counts)
    mesh.CreateFaceVertexIndicesAttr(indices)
    mesh.CreateSubdivisionSchemeAttr("catmullClark")
    mesh.CreateCreaseIndicesAttr([0, 1, 2, 4, 5])
    mesh.CreateCreaseLengthsAttr([3, 2])
    mesh.CreateCreaseSharpnessesAttr([2.0, 10.0])
    mesh.CreateCornerIndicesAttr([16])
    mesh.CreateCornerSharpnessesAttr([3.0])
    primvars = UsdGeom.PrimvarsAPI(mesh)
    corners = np.array([[points[i][0] + points[i][1], points[i][2]] for i in indices], np.float32)
    for name, factor in (("st", 0.25), ("lightmap", 0.5)):
        uv = primvars.CreatePrimvar(name, Sdf.ValueTypeNames.TexCoord2fArray, "faceVarying")
        values, inverse = np.unique(corners * factor, axis=0, return_inverse=True)
        uv.Set(Vt.Vec2fArray.FromNumpy(np.ascontiguousarray(values, np.float32)))
        uv.SetIndices(Vt.IntArray.FromNumpy(inverse.reshape(-1).astype(np.int32)))
    primvars.CreatePrimvar("temperature", Sdf.ValueTypeNames.FloatArray, "vertex").Set(
        [float(i) for i in range(len(points))]
    )
    primvars.CreatePrimvar("part", Sdf.ValueTypeNames.IntArray, "uniform").Set(list(range(len(counts))))
    primvars.CreatePrimvar("label", Sdf.ValueTypeNames.String, "constant").Set("column")
    (path.parent / "pictures").mkdir(exist_ok=True)
    (path.parent / "pictures" / "wood.png").write_bytes(png((90, 60, 20)))
    materials = []
    for name, color in (("Wood", (0.5, 0.3, 0.1)), ("Stone", (0.4, 0.4, 0.4))):
        material = UsdShade.Material.Define(stage, f"/Model/Looks/{name}")
        surface = UsdShade.Shader.Define(stage, f"/Model/Looks/{name}/Surface")
        surface.CreateIdAttr("UsdPreviewSurface")
        surface.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f).Set(Gf.Vec3f(*color))
        surface.CreateInput("roughness", Sdf.ValueTypeNames.Float).Set(0.7)
        material.CreateSurfaceOutput().ConnectToSource(surface.ConnectableAPI(), "surface")
        if name == "Wood":
            reader = UsdShade.Shader.Define(stage, "/Model/Looks/Wood/UV")
            reader.CreateIdAttr("UsdPrimvarReader_float2")
            reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("st")
            picture = UsdShade.Shader.Define(stage, "/Model/Looks/Wood/Picture")
            picture.CreateIdAttr("UsdUVTexture")
            picture.CreateInput("file", Sdf.ValueTypeNames.Asset).Set("./pictures/wood.png")
            picture.CreateInput("wrapS", Sdf.ValueTypeNames.Token).Set("repeat")
            picture.CreateInput("wrapT", Sdf.ValueTypeNames.Token).Set("mirror")
            picture.CreateInput("sourceColorSpace", Sdf.ValueTypeNames.Token).Set("sRGB")
            st = picture.CreateInput("st", Sdf.ValueTypeNames.Float2)
            st.ConnectToSource(reader.ConnectableAPI(), "result")
            picture.CreateOutput("rgb", Sdf.ValueTypeNames.Float3)
            surface.GetInput("diffuseColor").ConnectToSource(picture.ConnectableAPI(), "rgb")
        materials.append(material)
    api = UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim())
    for material, faces in zip(materials, ([0, 1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12, 13]), strict=True):
        subset = api.CreateMaterialBindSubset(material.GetPath().name, Vt.IntArray(faces))
        UsdShade.MaterialBindingAPI.Apply(subset.GetPrim()).Bind(material)
    api.SetMaterialBindSubsetsFamilyType(UsdGeom.Tokens.partition)
    skeleton = UsdSkel.Skeleton.Define(stage, "/Model/Skeleton")
    joints = ["hip", "hip/spine", "hip/spine/head"]
    skeleton.CreateJointsAttr(joints)
    skeleton.CreateBindTransformsAttr([Gf.Matrix4d().SetTranslate(Gf.Vec3d(0, 0, z)) for z in (5, 6, 7)])
    turned = Gf.Matrix4d().SetRotate(Gf.Rotation(Gf.Vec3d(1, 0, 0), 10))
    skeleton.CreateRestTransformsAttr([turned * Gf.Matrix4d().SetTranslate(Gf.Vec3d(0, 0, z)) for z in (5, 1, 1)])
    binding = UsdSkel.BindingAPI.Apply(mesh.GetPrim())
    binding.CreateSkeletonRel().SetTargets([skeleton.GetPath()])
    binding.CreateJointsAttr([joints[2], joints[0], joints[1]])
    binding.CreateGeomBindTransformAttr(Gf.Matrix4d().SetTranslate(Gf.Vec3d(0, 0, 5)))
    weights = np.tile([0.1, 0.2, 0.3, 0.15, 0.05, 0.2], (len(points), 1)) * (1 + np.arange(len(points))[:, None] % 3)
    weights = weights / weights.sum(1, keepdims=True)
    binding.CreateJointIndicesPrimvar(False, 6).Set(Vt.IntArray([0, 1, 2, 0, 1, 2] * len(points)))
    binding.CreateJointWeightsPrimvar(False, 6).Set(Vt.FloatArray([float(w) for w in weights.reshape(-1)]))
    shape = UsdSkel.BlendShape.Define(stage, "/Model/Body/Column/Lean")
    shape.CreateOffsetsAttr([Gf.Vec3f(0.5, 0, 0)] * 4)
    shape.CreatePointIndicesAttr([12, 13, 14, 15])
    half = shape.CreateInbetween("half")
    half.SetWeight(0.5)
    half.SetOffsets([Gf.Vec3f(0.1, 0, 0)] * 4)
    binding.CreateBlendShapesAttr(["lean"])
    binding.CreateBlendShapeTargetsRel().SetTargets([shape.GetPath()])
    clip = UsdSkel.Animation.Define(stage, "/Model/Nod")
    clip.CreateJointsAttr([joints[1]])
    clip.CreateTranslationsAttr([Gf.Vec3f(0, 0, 1)])
    clip.CreateScalesAttr([Gf.Vec3h(1, 1, 1)])
    rotations = clip.CreateRotationsAttr()
    rotations.Set([Gf.Quatf(1, 0, 0, 0)], 0)
    rotations.Set([Gf.Quatf(0.8, 0.6, 0, 0)], 15)
    clip.CreateBlendShapesAttr(["lean"])
    shape_weights = clip.CreateBlendShapeWeightsAttr()
    shape_weights.Set([0.0], 0)
    shape_weights.Set([1.0], 15)
    UsdSkel.BindingAPI.Apply(skeleton.GetPrim()).CreateAnimationSourceRel().SetTargets([clip.GetPath()])
    camera = UsdGeom.Camera.Define(stage, "/Model/Eye")
    camera.AddTranslateOp().Set(Gf.Vec3d(0, -20, 5))
    UsdLux.DistantLight.Define(stage, "/Model/Sun").CreateIntensityAttr(3.0)
    stage.SetStartTimeCode(0)
    stage.SetEndTimeCode(15)
    stage.Save()
    return path


def ngon_obj(path: Path) -> Path:
    """A house: a pentagon gable, quads and triangles; two materials in a library of its own, one with a picture;
    negative indices; smoothing groups; groups.
    """
    path = Path(path)
    (path.parent / f"{path.stem} bricks.png").write_bytes(png((150, 40, 30)))
    (path.parent / f"{path.stem}.mtl").write_text(
        f"newmtl Bricks\nKd 0.8 0.4 0.3\nPr 0.9\nmap_Kd {path.stem} bricks.png\n\nnewmtl Roof\nKd 0.1 0.1 0.1\nd 0.5\n"
    )
    path.write_text(
        f"mtllib {path.stem}.mtl\no House\n"
        "v 0 0 0\nv 2 0 0\nv 2 1 0\nv 1 2 0\nv 0 1 0\nv 0 0 3\nv 2 0 3\nv 2 1 3\nv 1 2 3\nv 0 1 3\n"
        "vt 0 0\nvt 1 0\nvt 1 0.5\nvt 0.5 1\nvt 0 0.5\n"
        "usemtl Bricks\ng front\ns 1\nf 5/5 4/4 3/3 2/2 1/1\ng back\nf -5/1 -4/2 -3/3 -2/4 -1/5\n"
        "g walls\ns 2\nf 1/1 6/2 10/3 5/4\nf 2/1 3/2 8/3 7/4\nf 1/1 2/2 7/3 6/4\n"
        "usemtl Roof\ng roof\ns 3\nf 3 4 9\nf 3 9 8\nf 5/1 10/2 9/3 4/4\n"
    )
    return path


def cube_ply(path: Path, *, binary: bool = False, big_endian: bool = False) -> Path:
    """A cube of five quads and two triangles with vertex colours; as text, or with binary lists of different
    lengths.
    """
    order = ">" if big_endian else "<"
    form = f"binary_{'big' if big_endian else 'little'}_endian" if binary else "ascii"
    faces = [row.tolist() for row in _CUBE_FACES[:5]] + [
        _CUBE_FACES[5][[0, 1, 2]].tolist(),
        _CUBE_FACES[5][[0, 2, 3]].tolist(),
    ]
    header = (
        f"ply\nformat {form} 1.0\ncomment a cube\nelement vertex 8\nproperty float x\nproperty float y\nproperty float z\n"
        "property uchar red\nproperty uchar green\nproperty uchar blue\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    body = b""
    for number, point in enumerate(_CUBE_POINTS):
        if binary:
            body += struct.pack(f"{order}3f3B", *point, 255, number, 0)
        else:
            body += (" ".join(map(str, [*point, 255, number, 0])) + "\n").encode()
    for face in faces:
        if binary:
            body += struct.pack(f"{order}B{len(face)}i", len(face), *face)
        else:
            body += (" ".join(map(str, [len(face), *face])) + "\n").encode()
    Path(path).write_bytes(header.encode() + body)
    return Path(path)


def cube_stl(path: Path, *, binary: bool = True) -> Path:
    """A cube of twelve triangles."""
    triangles = _CUBE_POINTS[_CUBE_FACES[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)]
    if binary:
        body = b"".join(struct.pack("<12fH", 0, 0, 0, *triangle.reshape(-1), 0) for triangle in triangles)
        Path(path).write_bytes(b"\0" * 80 + struct.pack("<I", len(triangles)) + body)
    else:
        lines = ["solid cube"]
        for triangle in triangles:
            lines += [
                "facet normal 0 0 0",
                "outer loop",
                *("vertex {} {} {}".format(*p) for p in triangle),
                "endloop",
                "endfacet",
            ]
        Path(path).write_text("\n".join([*lines, "endsolid cube"]) + "\n")
    return Path(path)


def irregular_triangles(triangles: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """About that many Delaunay triangles over random points of a bumpy sheet: points [V, 3] float64, faces [F, 3]
    int32.
    """
    from scipy.spatial import Delaunay

    rng = np.random.default_rng(seed)
    flat = rng.random((triangles // 2 + 8, 2))
    faces = Delaunay(flat).simplices.astype(np.int32)
    heights = 0.05 * np.sin(9 * flat[:, 0]) * np.cos(7 * flat[:, 1])
    return np.column_stack([flat, heights]), faces
