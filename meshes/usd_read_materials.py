"""UsdPreviewSurface networks -> Material, with the bytes of their pictures. Source: the UsdPreviewSurface
specification 2.6.
"""

import math
from pathlib import PurePosixPath

from pxr import Sdf, Usd, UsdShade

from meshes.paths import image_mime
from meshes.scene import Image, Material, Texture
from meshes.usd_common import get_extras, original_name
from meshes.usd_files import read_asset, resolve_beside
from shared_utils.errors import InvalidInputError

_WRAPS = {"repeat", "clamp", "mirror", "black"}
_CHANNELS = {"rgb": "rgb", "rgba": "rgba", "r": "r", "g": "g", "b": "b", "a": "a"}


class MaterialReader:
    """Reads each material and each picture once."""

    def __init__(self, reader):
        self.reader, self.scene = reader, reader.scene
        self._materials: dict[str, int] = {}
        self._images: dict[str, int] = {}

    def bound_index(self, prim: Usd.Prim) -> int:
        """The material a prim shows, inherited or its own (-1: none)."""
        material, _ = UsdShade.MaterialBindingAPI(prim).ComputeBoundMaterial()
        return self.index(material) if material else -1

    def direct_index(self, prim: Usd.Prim) -> int | None:
        """The material bound to the prim itself, or None."""
        binding = UsdShade.MaterialBindingAPI(prim).GetDirectBinding()
        material = binding.GetMaterial()
        return self.index(material) if material else None

    def index(self, material: UsdShade.Material) -> int:
        """The scene's material for a prim."""
        prim = material.GetPrim()
        key = str((prim.GetPrimInPrototype() if prim.IsInstanceProxy() else prim).GetPath())
        if key not in self._materials:
            self._materials[key] = len(self.scene.materials)
            self.scene.materials.append(self._read(material))
        return self._materials[key]

    def _read(self, material: UsdShade.Material) -> Material:
        prim = material.GetPrim()
        read = Material(original_name(prim), base_color=(0.18, 0.18, 0.18, 1.0), extras=get_extras(prim))
        read.unlit = bool(prim.GetCustomDataByKey("unlit"))
        read.double_sided = bool(prim.GetCustomDataByKey("double_sided"))
        surface, _, _ = material.ComputeSurfaceSource()
        if not surface or surface.GetIdAttr().Get() != "UsdPreviewSurface":
            read.base_color = (0.8, 0.8, 0.8, 1.0)
            self.scene.warn(f"{prim.GetPath()}: is no UsdPreviewSurface; only its name is kept")
            return read
        if (surface.GetInput("useSpecularWorkflow") and self._number(surface, "useSpecularWorkflow", 0)) or (
            surface.GetInput("displacement") and self._source(surface, "displacement")[1] is not None
        ):
            self.scene.warn(f"{prim.GetPath()}: its specular workflow or displacement is not kept")
        color, read.base_color_texture = self._color(surface, "diffuseColor", (0.18, 0.18, 0.18))
        read.metallic, read.metallic_texture = self._factor(surface, "metallic", 0.0, "raw")
        read.roughness, read.roughness_texture = self._factor(surface, "roughness", 0.5, "raw")
        read.emissive, read.emissive_texture = self._color(surface, "emissiveColor", (0.0, 0.0, 0.0))
        opacity, read.opacity_texture = self._factor(surface, "opacity", 1.0, "raw")
        read.base_color = (*color, opacity)
        threshold = self._number(surface, "opacityThreshold", 0.0)
        if threshold > 0:
            read.alpha_mode, read.alpha_cutoff = "MASK", threshold
        elif read.opacity_texture is not None or opacity < 1:
            read.alpha_mode = "BLEND"
        base, alpha = read.base_color_texture, read.opacity_texture
        if base is not None and alpha is not None and (base.image, "a") == (alpha.image, alpha.channel):
            base.channel, read.opacity_texture = "rgba", None
        self._normal(surface, read)
        self._occlusion(surface, read)
        read.ior = self._number(surface, "ior", 1.5)
        read.clearcoat = self._number(surface, "clearcoat", 0.0)
        read.clearcoat_roughness = self._number(surface, "clearcoatRoughness", 0.01) if read.clearcoat else 0.0
        return read

    def _source(self, shader: UsdShade.Shader, name: str):
        """(value, shader, output name) that an input comes from, through interfaces and node graphs."""
        given = shader.GetInput(name)
        for attribute in given.GetValueProducingAttributes() if given else []:
            if UsdShade.Utils.GetType(attribute.GetName()) == UsdShade.AttributeType.Output:
                return None, UsdShade.Shader(attribute.GetPrim()), attribute.GetName().rpartition(":")[2]
            value = attribute.Get()
            if value is None:
                value = attribute.Get(self.reader.time)
            return value, None, ""
        return None, None, ""

    def _number(self, shader: UsdShade.Shader, name: str, default: float) -> float:
        value, source, _ = self._source(shader, name)
        if source is not None:
            self.scene.warn(f"{shader.GetPath()}: the texture of its {name} is not kept")
        if value is None:
            return default
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidInputError(f"{self.reader.path}: {shader.GetPath()}: {name} is not a finite number")
        return float(value)

    def _color(self, shader: UsdShade.Shader, name: str, default: tuple) -> tuple[tuple, Texture | None]:
        value, source, output = self._source(shader, name)
        texture = self._texture(source, output, "sRGB") if source is not None else None
        if texture is None:
            return tuple(map(float, value)) if value is not None else default, None
        if any(texture.bias):
            return (1.0, 1.0, 1.0), texture
        factor, texture.scale = texture.scale[:3], (1.0,) * 4
        return factor, texture

    def _factor(self, shader: UsdShade.Shader, name: str, default: float, space: str) -> tuple[float, Texture | None]:
        _, source, output = self._source(shader, name)
        texture = self._texture(source, output, space) if source is not None else None
        if texture is None:
            return (self._number(shader, name, default) if source is None else default), None
        place = "rgba".index(texture.channel[0])
        if any(texture.bias):
            return 1.0, texture
        factor, texture.scale = texture.scale[place], (1.0,) * 4
        return factor, texture

    def _normal(self, surface: UsdShade.Shader, read: Material) -> None:
        _, source, output = self._source(surface, "normal")
        texture = self._texture(source, output, "raw") if source is not None else None
        if texture is not None:
            # Bytes hold normals as n / 2 + 1 / 2; what scale goes beyond the 2 that undoes it is the strength.
            if any(texture.bias):
                read.normal_scale = texture.scale[0] / 2
            texture.scale, texture.bias = (1.0,) * 4, (0.0,) * 4
            read.normal_texture = texture

    def _occlusion(self, surface: UsdShade.Shader, read: Material) -> None:
        _, source, output = self._source(surface, "occlusion")
        texture = self._texture(source, output, "raw") if source is not None else None
        if texture is not None:
            strength, bias = texture.scale[0], texture.bias[0]
            if abs(1 - strength - bias) < 1e-5:
                read.occlusion_strength = strength
                texture.scale, texture.bias = (1.0,) * 4, (0.0,) * 4
            read.occlusion_texture = texture

    def _texture(self, shader: UsdShade.Shader, output: str, space: str) -> Texture | None:
        kind = shader.GetIdAttr().Get() if shader else None
        if kind != "UsdUVTexture":
            self.scene.warn(f"{shader.GetPath()}: a {kind} shader is not kept")
            return None
        file, _, _ = self._source(shader, "file")
        if not isinstance(file, Sdf.AssetPath) or not file.path:
            self.scene.warn(f"{shader.GetPath()}: names no picture and is not kept")
            return None
        texture = Texture(self._image(shader, file), channel=_CHANNELS.get(output, "rgb"), color_space=space)
        for name in ("wrapS", "wrapT"):
            wrap = str(self._source(shader, name)[0] or "repeat")
            setattr(texture, "wrap_" + name[-1].lower(), wrap if wrap in _WRAPS else "repeat")
        authored = str(self._source(shader, "sourceColorSpace")[0] or "auto")
        texture.color_space = authored if authored in ("sRGB", "raw") else space
        scale, bias = self._source(shader, "scale")[0], self._source(shader, "bias")[0]
        texture.scale = tuple(map(float, scale)) if scale is not None else texture.scale
        texture.bias = tuple(map(float, bias)) if bias is not None else texture.bias
        self._coordinates(shader, texture)
        return texture

    def _coordinates(self, shader: UsdShade.Shader, texture: Texture) -> None:
        _, source, _ = self._source(shader, "st")
        if source is not None and source.GetIdAttr().Get() == "UsdTransform2d":
            rotation = self._source(source, "rotation")[0]
            scale, move = self._source(source, "scale")[0], self._source(source, "translation")[0]
            texture.uv_rotation = math.radians(rotation or 0.0)
            texture.uv_scale = tuple(map(float, scale)) if scale is not None else (1.0, 1.0)
            texture.uv_offset = tuple(map(float, move)) if move is not None else (0.0, 0.0)
            _, source, _ = self._source(source, "in")
        if source is not None and str(source.GetIdAttr().Get()).startswith("UsdPrimvarReader"):
            name = self._source(source, "varname")[0]
            texture.uv_set = str(name) if name else texture.uv_set

    def _image(self, shader: UsdShade.Shader, file: Sdf.AssetPath) -> int:
        """The picture's index; read from the folder of the layer which names it, or from its package."""
        reference = file.path
        if "<UDIM>" in reference:
            raise InvalidInputError(
                f"{self.reader.path}: {reference[:80]!r} is a UDIM tile set, which is not supported"
            )
        _, specs = None, shader.GetInput("file").GetValueProducingAttributes()[0].GetPropertyStack(self.reader.time)
        layer = next((spec.layer for spec in specs if spec.HasInfo("default")), self.reader.stage.GetRootLayer())
        identifier = resolve_beside(layer, reference, self.reader.path)
        if identifier not in self._images:
            data = read_asset(identifier, self.reader.path)
            name = PurePosixPath(reference.replace("\\", "/")).name
            self._images[identifier] = len(self.scene.images)
            self.scene.images.append(Image(name, image_mime(data, name), data))
        return self._images[identifier]
