"""Materials and images of a Scene as glTF. Pictures other than PNG and JPEG are re-coded as PNG, and metallic and roughness
maps that are not yet one picture are put into one, as glTF wants them."""

import dataclasses

from meshes.gltf_materials import unflip_uv_transform
from meshes.pictures import encode_for, open_picture, png_bytes
from meshes.scene import Image, Material, Scene, Texture

_WRAP = {"repeat": 10497, "clamp": 33071, "mirror": 33648, "black": 33071}


class MaterialWriter:
    """Adds each material once per way the meshes name its texture coordinates."""

    def __init__(self, scene: Scene, writer):
        self.scene, self.writer = scene, writer
        self.images = list(scene.images)
        self._materials: dict[tuple, int] = {}
        self._images: dict[int, int | None] = {}
        self._textures: dict[tuple, int] = {}
        self._packed: dict[tuple, int] = {}

    def index(self, material: int, uv_sets: list[str], double_sided: bool) -> int:
        """The glTF material for one of the scene's on a mesh with these UV sets."""
        source = self.scene.materials[material]
        used = sorted({texture.uv_set for texture in source.textures().values()})
        double_sided = double_sided or source.double_sided
        key = (material, tuple(uv_sets.index(name) if name in uv_sets else 0 for name in used), double_sided)
        if key not in self._materials:
            entry = self._entry(source, dict(zip(used, key[1], strict=True)))
            entry |= {"doubleSided": True} if double_sided else {}
            self._materials[key] = self.writer.add("materials", entry)
        return self._materials[key]

    def has_texture(self, material: int) -> bool:
        """Whether a face's material (-1: none) shows any image."""
        return material >= 0 and bool(self.scene.materials[material].textures())

    def add_unused(self) -> None:
        """Add the materials that no face has."""
        used = {key[0] for key in self._materials}
        for material in range(len(self.scene.materials)):
            if material not in used:
                self.index(material, [], False)

    def plain_double_sided(self) -> int:
        """glTF says "double sided" on materials only: the default material with that."""
        if ("plain",) not in self._materials:
            self._materials[("plain",)] = self.writer.add("materials", {"doubleSided": True})
        return self._materials[("plain",)]

    def _entry(self, material: Material, uv_numbers: dict[str, int]) -> dict:
        def info(texture: Texture | None, **more) -> dict | None:
            if texture is None or (number := self._texture(texture)) is None:
                return None
            entry = {"index": number} | more
            if uv_numbers[texture.uv_set]:
                entry["texCoord"] = uv_numbers[texture.uv_set]
            if texture.uv_offset != (0, 0) or texture.uv_rotation or texture.uv_scale != (1, 1):
                entry["extensions"] = {"KHR_texture_transform": unflip_uv_transform(texture)}
                self.writer.use_extension("KHR_texture_transform")
            return entry

        clamp = lambda values: [min(max(float(value), 0.0), 1.0) for value in values]  # noqa: E731
        pbr = {"baseColorFactor": clamp(material.base_color)}
        base = self._base_texture(material)
        if (entry := info(base)) is not None:
            pbr["baseColorTexture"] = entry
        combined, metallic, roughness = self._metallic_roughness(material)
        pbr |= {"metallicFactor": clamp([metallic])[0], "roughnessFactor": clamp([roughness])[0]}
        if (entry := info(combined)) is not None:
            pbr["metallicRoughnessTexture"] = entry
        result = {"name": material.name, "pbrMetallicRoughness": pbr}
        scale = {} if material.normal_scale == 1 else {"scale": material.normal_scale}
        if (entry := info(material.normal_texture, **scale)) is not None:
            result["normalTexture"] = entry
        strength = {} if material.occlusion_strength == 1 else {"strength": clamp([material.occlusion_strength])[0]}
        occlusion = self._single_channel(material, material.occlusion_texture, 0, "occlusion")
        if (entry := info(occlusion, **strength)) is not None:
            result["occlusionTexture"] = entry
        if (entry := info(material.emissive_texture)) is not None:
            result["emissiveTexture"] = entry
        extensions = {}
        brightest = max(material.emissive)
        if brightest > 1:
            extensions["KHR_materials_emissive_strength"] = {"emissiveStrength": brightest}
        if brightest > 0:
            result["emissiveFactor"] = clamp(value / max(brightest, 1) for value in material.emissive)
        if material.alpha_mode != "OPAQUE":
            result["alphaMode"] = material.alpha_mode
        if material.alpha_mode == "MASK" and material.alpha_cutoff != 0.5:
            result["alphaCutoff"] = material.alpha_cutoff
        if material.ior != 1.5 and (material.ior == 0 or material.ior >= 1):
            extensions["KHR_materials_ior"] = {"ior": material.ior}
        if material.clearcoat > 0:
            extensions["KHR_materials_clearcoat"] = {
                "clearcoatFactor": clamp([material.clearcoat])[0],
                "clearcoatRoughnessFactor": clamp([material.clearcoat_roughness])[0],
            }
        if material.unlit:
            extensions["KHR_materials_unlit"] = {}
        for name in extensions:
            self.writer.use_extension(name)
        result |= {"extensions": extensions} if extensions else {}
        return result | ({"extras": material.extras} if material.extras else {})

    def _texture(self, texture: Texture) -> int | None:
        image = self._image(texture.image)
        if image is None:
            return None
        if texture.wrap_s == "black" or texture.wrap_t == "black":
            self.writer.warn(f"texture {self.images[texture.image].name!r}: glTF repeats its edge instead of black")
        key = (image, _WRAP[texture.wrap_s], _WRAP[texture.wrap_t])
        if key not in self._textures:
            samplers = self.writer.document.setdefault("samplers", [])
            sampler = {"magFilter": 9729, "minFilter": 9987, "wrapS": key[1], "wrapT": key[2]}
            if sampler not in samplers:
                samplers.append(sampler)
            self._textures[key] = self.writer.add("textures", {"sampler": samplers.index(sampler), "source": image})
        return self._textures[key]

    def _image(self, index: int) -> int | None:
        if index not in self._images:
            image = self.images[index]
            try:
                data, mime = encode_for(image, ("image/png", "image/jpeg"))
            except ValueError as error:
                self.writer.warn(f"image {error} cannot go into glTF and is left out")
                self._images[index] = None
                return None
            view = self.writer.add_bytes(data)
            self._images[index] = self.writer.add("images", {"name": image.name, "mimeType": mime, "bufferView": view})
        return self._images[index]

    def _picture(self, index: int):
        """An image as a Pillow picture, or None with a warning if Pillow cannot read it."""
        try:
            return open_picture(self.images[index])
        except ValueError as error:
            self.writer.warn(f"image {error} cannot go into glTF and is left out")
            return None

    def _channel(self, texture: Texture):
        """The channel a texture uses as an 8-bit grey picture with its scale and bias applied, or None."""
        picture = self._picture(texture.image)
        if picture is None:
            return None
        place = "rgba".index(texture.channel[0])
        band = picture.convert("RGBA").getchannel(place)
        scale, bias = texture.scale[place], texture.bias[place]
        if (scale, bias) != (1, 0):
            band = band.point([round(min(max(value / 255 * scale + bias, 0), 1) * 255) for value in range(256)])
        return band

    def _add_picture(self, key: tuple, name: str, picture) -> int:
        """A picture made here, as an index into `self.images`."""
        if key not in self._packed:
            self._packed[key] = len(self.images)
            self.images.append(Image(name, "image/png", png_bytes(picture)))
        return self._packed[key]

    def _base_texture(self, material: Material) -> Texture | None:
        """Base colour with opacity in its alpha channel."""
        from PIL import Image as Pillow

        base, opacity = material.base_color_texture, material.opacity_texture
        if opacity is None or (base is not None and base.image == opacity.image and opacity.channel == "a"):
            if base is not None and (base.scale != (1.0,) * 4 or base.bias != (0.0,) * 4):
                self.writer.warn(
                    f"material {material.name!r}: scale and bias of its base colour map have no place in glTF"
                )
            return base
        alpha = self._channel(opacity)
        if alpha is None:
            return base
        color = self._picture(base.image) if base is not None else Pillow.new("RGB", alpha.size, "white")
        if color is None:
            return None
        color = color.convert("RGB")
        if alpha.size != color.size:
            alpha = alpha.resize(color.size)
        color.putalpha(alpha)
        key = ("alpha", base.image if base else -1, opacity.image, opacity.channel, opacity.scale, opacity.bias)
        texture = base if base is not None else opacity
        return dataclasses.replace(texture, image=self._add_picture(key, f"{material.name}_base_alpha.png", color))

    def _metallic_roughness(self, material: Material) -> tuple[Texture | None, float, float]:
        """One texture with roughness in green and metallic in blue, and the two factors that go with it."""
        from PIL import Image as Pillow

        rough, metal = material.roughness_texture, material.metallic_texture
        if rough is None and metal is None:
            return None, material.metallic, material.roughness
        ready = _plain(rough, "g") and _plain(metal, "b")
        if ready and rough is not None and metal is not None and rough.image == metal.image:
            return rough, material.metallic, material.roughness
        bands = [self._channel(texture) if texture is not None else None for texture in (rough, metal)]
        if all(band is None for band in bands):
            return None, material.metallic, material.roughness
        size = next(band.size for band in bands if band is not None)
        green, blue = (Pillow.new("L", size, 255) if band is None else band.resize(size) for band in bands)
        picture = Pillow.merge("RGB", [Pillow.new("L", size, 255), green, blue])
        key = ("mr", *((t.image, t.channel, t.scale, t.bias) if t is not None else None for t in (rough, metal)))
        image = self._add_picture(key, f"{material.name}_metallic_roughness.png", picture)
        texture = dataclasses.replace(rough or metal, image=image)
        if rough is not None and metal is not None and _place(rough) != _place(metal):
            self.writer.warn(f"material {material.name!r}: glTF places its metallic map like its roughness map")
        return texture, material.metallic, material.roughness

    def _single_channel(self, material: Material, texture: Texture | None, place: int, what: str) -> Texture | None:
        """A texture whose channel number `place` holds the values."""
        if texture is None or (_plain(texture, "rgb"[place]) or texture.channel in ("rgb", "rgba")):
            return texture
        band = self._channel(texture)
        if band is None:
            return None
        key = (what, texture.image, texture.channel, texture.scale, texture.bias)
        return dataclasses.replace(
            texture, image=self._add_picture(key, f"{material.name}_{what}.png", band.convert("RGB"))
        )


def _plain(texture: Texture | None, channel: str) -> bool:
    return texture is None or (
        texture.channel == channel and texture.scale == (1.0,) * 4 and texture.bias == (0.0,) * 4
    )


def _place(texture: Texture) -> tuple:
    return (texture.uv_set, texture.uv_offset, texture.uv_rotation, texture.uv_scale, texture.wrap_s, texture.wrap_t)
