"""Materials as UsdPreviewSurface networks, with their pictures beside the layer or in the package.

Source: the UsdPreviewSurface specification 2.6 (UsdPreviewSurface, UsdUVTexture, UsdPrimvarReader_float2,
UsdTransform2d).
"""

import math
from pathlib import PurePosixPath

from pxr import Gf, Sdf, UsdGeom, UsdShade

from meshes.paths import image_suffix
from meshes.pictures import encode_for
from meshes.scene import Material, Texture
from meshes.usd_common import legal_name, set_display_name, set_extras

# What every USD viewer opens; a package may hold nothing else (USDZ specification, "File Types").
_PICTURE_TYPES = ("image/png", "image/jpeg", "image/x-exr", "image/avif")
_types = Sdf.ValueTypeNames


def write_materials(writer, scope: Sdf.Path) -> list[Sdf.Path]:
    """Author all materials below `scope`; their paths."""
    paths: list[Sdf.Path] = []
    if writer.scene.materials:
        UsdGeom.Scope.Define(writer.stage, scope)
    pictures = _Pictures(writer)
    for material in writer.scene.materials:
        path = scope.AppendChild(writer.names.unique(scope, material.name))
        paths.append(path)
        _write_material(writer, material, path, pictures)
    return paths


class _Pictures:
    """Puts each image that is used under a file name of its own."""

    def __init__(self, writer):
        self.writer, self._paths = writer, {}

    def path(self, index: int) -> str | None:
        """The image's path as seen from the layer, or None if it cannot be written."""
        if index not in self._paths:
            image = self.writer.scene.images[index]
            try:
                data, mime = encode_for(image, _PICTURE_TYPES)
            except ValueError as error:
                self.writer.warn(f"image {error} cannot go into USD and is left out")
                self._paths[index] = None
                return None
            stem = legal_name(PurePosixPath(image.name.replace("\\", "/")).stem)[:80]
            name, number = stem + image_suffix(mime), 0
            while self.writer.textures.get(name, data) != data:
                number += 1
                name = f"{stem}_{number}{image_suffix(mime)}"
            self.writer.textures[name] = data
            self._paths[index] = f"{self.writer.texture_folder}/{name}"
        return self._paths[index]


def _write_material(writer, material: Material, path: Sdf.Path, pictures: _Pictures) -> None:
    stage = writer.stage
    prim = UsdShade.Material.Define(stage, path)
    set_display_name(prim.GetPrim(), material.name)
    set_extras(prim.GetPrim(), material.extras)
    for flag in ("unlit", "double_sided"):
        if getattr(material, flag):
            prim.GetPrim().SetCustomDataByKey(flag, True)
    surface = UsdShade.Shader.Define(stage, path.AppendChild("Surface"))
    surface.CreateIdAttr("UsdPreviewSurface")
    prim.CreateSurfaceOutput().ConnectToSource(surface.ConnectableAPI(), "surface")
    network = _Network(stage, prim, surface, pictures)

    r, g, b, a = material.base_color
    base, opaque = material.base_color_texture, material.alpha_mode == "OPAQUE"
    network.color("diffuseColor", (r, g, b), base, a)
    if not opaque:
        if material.opacity_texture is not None:
            network.number("opacity", a, material.opacity_texture)
        elif base is not None:
            network.number("opacity", a, base, channel="a", share="diffuseColor")
        else:
            network.number("opacity", a, None)
    if material.alpha_mode == "MASK":
        surface.CreateInput("opacityThreshold", _types.Float).Set(max(material.alpha_cutoff, 1e-6))
    network.number("metallic", material.metallic, material.metallic_texture)
    network.number("roughness", material.roughness, material.roughness_texture)
    network.color("emissiveColor", material.emissive, material.emissive_texture)
    if material.normal_texture is not None:
        s = material.normal_scale
        network.texture(
            "normal", material.normal_texture, "rgb", (2 * s, 2 * s, 2.0, 1.0), (-s, -s, -1.0, 0.0), _types.Normal3f
        )
    if material.occlusion_texture is not None:
        s = material.occlusion_strength
        network.texture("occlusion", material.occlusion_texture, None, (s,) * 4, (1.0 - s,) * 4, _types.Float)
    surface.CreateInput("ior", _types.Float).Set(material.ior)
    if material.clearcoat > 0:
        surface.CreateInput("clearcoat", _types.Float).Set(material.clearcoat)
        surface.CreateInput("clearcoatRoughness", _types.Float).Set(material.clearcoat_roughness)


class _Network:
    """The shaders around one UsdPreviewSurface."""

    def __init__(self, stage, material: UsdShade.Material, surface: UsdShade.Shader, pictures: _Pictures):
        self.stage, self.material, self.surface, self.pictures = stage, material, surface, pictures
        self.readers: dict[str, UsdShade.Shader] = {}

    def color(self, name: str, value, texture: Texture | None, alpha: float = 1.0) -> None:
        """A colour input: the value, or the texture times the value."""
        if texture is None or not self.texture(name, texture, "rgb", (*value, alpha), None, _types.Color3f):
            self.surface.CreateInput(name, _types.Color3f).Set(Gf.Vec3f(*map(float, value)))

    def number(self, name: str, value: float, texture: Texture | None, channel=None, share: str | None = None) -> None:
        """A number input: the value, or one channel of a texture times the value. `share`: use that input's texture
        shader.
        """
        if share is not None:
            shader = UsdShade.Shader(self.stage.GetPrimAtPath(self._texture_path(share)))
            if shader:
                shader.CreateOutput(channel, _types.Float)
                self.surface.CreateInput(name, _types.Float).ConnectToSource(shader.ConnectableAPI(), channel)
                return
            texture = None
        if texture is None or not self.texture(name, texture, channel, (value,) * 4, None, _types.Float):
            self.surface.CreateInput(name, _types.Float).Set(float(value))

    def _texture_path(self, name: str) -> Sdf.Path:
        return self.material.GetPath().AppendChild(f"{name}_texture")

    def texture(self, name: str, texture: Texture, channel: str | None, factor, bias, kind) -> bool:
        """Connect a UsdUVTexture; False if its picture cannot be written. The value is sample * scale + bias."""
        file = self.pictures.path(texture.image)
        if file is None:
            return False
        if channel is None:
            channel = texture.channel if len(texture.channel) == 1 else "r"
        scale = [t * f for t, f in zip(texture.scale, factor, strict=True)]
        bias = [t * f for t, f in zip(texture.bias, factor, strict=True)] if bias is None else bias
        shader = UsdShade.Shader.Define(self.stage, self._texture_path(name))
        shader.CreateIdAttr("UsdUVTexture")
        shader.CreateInput("file", _types.Asset).Set(file)
        shader.CreateInput("st", _types.Float2).ConnectToSource(self._coordinates(name, texture), "result")
        shader.CreateInput("wrapS", _types.Token).Set(texture.wrap_s)
        shader.CreateInput("wrapT", _types.Token).Set(texture.wrap_t)
        shader.CreateInput("sourceColorSpace", _types.Token).Set(texture.color_space)
        if scale != [1.0] * 4 or any(bias):
            shader.CreateInput("scale", _types.Float4).Set(Gf.Vec4f(*map(float, scale)))
        if any(bias):
            shader.CreateInput("bias", _types.Float4).Set(Gf.Vec4f(*map(float, bias)))
        shader.CreateOutput(channel, _types.Float3 if channel == "rgb" else _types.Float)
        self.surface.CreateInput(name, kind).ConnectToSource(shader.ConnectableAPI(), channel)
        return True

    def _coordinates(self, name: str, texture: Texture) -> UsdShade.ConnectableAPI:
        if texture.uv_set not in self.readers:
            suffix = "" if not self.readers else f"_{legal_name(texture.uv_set)}"
            reader = UsdShade.Shader.Define(self.stage, self.material.GetPath().AppendChild(f"UV{suffix}"))
            reader.CreateIdAttr("UsdPrimvarReader_float2")
            reader.CreateInput("varname", _types.String).Set(legal_name(texture.uv_set))
            reader.CreateOutput("result", _types.Float2)
            self.readers[texture.uv_set] = reader
        reader = self.readers[texture.uv_set]
        if texture.uv_offset == (0, 0) and not texture.uv_rotation and texture.uv_scale == (1, 1):
            return reader.ConnectableAPI()
        transform = UsdShade.Shader.Define(self.stage, self.material.GetPath().AppendChild(f"{name}_uv"))
        transform.CreateIdAttr("UsdTransform2d")
        transform.CreateInput("in", _types.Float2).ConnectToSource(reader.ConnectableAPI(), "result")
        transform.CreateInput("rotation", _types.Float).Set(math.degrees(texture.uv_rotation))
        transform.CreateInput("scale", _types.Float2).Set(Gf.Vec2f(*map(float, texture.uv_scale)))
        transform.CreateInput("translation", _types.Float2).Set(Gf.Vec2f(*map(float, texture.uv_offset)))
        transform.CreateOutput("result", _types.Float2)
        return transform.ConnectableAPI()
