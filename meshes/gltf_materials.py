"""glTF images and materials -> Scene. Source: glTF 2.0 specification, sections 3.8 and 3.9."""

import math

from meshes.paths import image_mime, image_suffix
from meshes.scene import Image, Material, Scene, Texture

_WRAP = {10497: "repeat", 33071: "clamp", 33648: "mirror"}


def read_images(gltf, scene: Scene) -> None:
    """All images with their bytes. Raises MissingInputError for a picture file that is not there."""
    for index, entry in enumerate(gltf.list("images")):
        uri = entry.get("uri", "")
        if "bufferView" in entry:
            data = bytes(gltf.view(entry["bufferView"]))
        elif uri:
            data = gltf.uri_bytes(uri)
        else:
            gltf.fail(f"image {index} has no data")
        named = "" if uri.startswith("data:") else uri.rsplit("/", 1)[-1]
        mime = image_mime(data, named)
        if mime == "application/octet-stream":
            mime = entry.get("mimeType", mime)
        name = entry.get("name") or named or f"image{index}"
        if not name.lower().endswith((image_suffix(mime), ".jpeg")):
            name += image_suffix(mime)
        scene.images.append(Image(name, mime, data))


def read_materials(gltf, scene: Scene) -> None:
    """All materials; what has no place in Material is named in a warning."""
    for index, entry in enumerate(gltf.list("materials")):
        scene.materials.append(_material(gltf, scene, entry, entry.get("name") or f"material{index}"))


def _material(gltf, scene: Scene, entry: dict, name: str) -> Material:
    pbr, extensions = entry.get("pbrMetallicRoughness", {}), entry.get("extensions", {})
    extras = entry.get("extras", {})
    material = Material(
        name,
        base_color=tuple(pbr.get("baseColorFactor", (1.0, 1.0, 1.0, 1.0))),
        metallic=pbr.get("metallicFactor", 1.0),
        roughness=pbr.get("roughnessFactor", 1.0),
        emissive=tuple(entry.get("emissiveFactor", (0.0, 0.0, 0.0))),
        alpha_mode=entry.get("alphaMode", "OPAQUE"),
        alpha_cutoff=entry.get("alphaCutoff", 0.5),
        double_sided=entry.get("doubleSided", False),
        unlit="KHR_materials_unlit" in extensions,
        extras=extras if isinstance(extras, dict) else {"value": extras},
    )
    if material.alpha_mode not in ("OPAQUE", "MASK", "BLEND"):
        gltf.fail(f"material {name!r} has the unknown alphaMode {material.alpha_mode[:20]!r}")

    def texture(holder: dict, key: str, channel: str, color_space: str) -> Texture | None:
        return _texture(gltf, scene, holder[key], channel, color_space) if key in holder else None

    material.base_color_texture = texture(pbr, "baseColorTexture", "rgba", "sRGB")
    material.metallic_texture = texture(pbr, "metallicRoughnessTexture", "b", "raw")
    material.roughness_texture = texture(pbr, "metallicRoughnessTexture", "g", "raw")
    material.normal_texture = texture(entry, "normalTexture", "rgb", "raw")
    material.normal_scale = entry.get("normalTexture", {}).get("scale", 1.0)
    material.occlusion_texture = texture(entry, "occlusionTexture", "r", "raw")
    material.occlusion_strength = entry.get("occlusionTexture", {}).get("strength", 1.0)
    material.emissive_texture = texture(entry, "emissiveTexture", "rgb", "sRGB")
    strength = extensions.get("KHR_materials_emissive_strength", {}).get("emissiveStrength", 1.0)
    material.emissive = tuple(value * strength for value in material.emissive)
    material.ior = extensions.get("KHR_materials_ior", {}).get("ior", 1.5)
    clearcoat = extensions.get("KHR_materials_clearcoat", {})
    material.clearcoat = clearcoat.get("clearcoatFactor", 0.0)
    material.clearcoat_roughness = clearcoat.get("clearcoatRoughnessFactor", 0.0)
    if any(key.endswith("Texture") for key in clearcoat):
        scene.warn(f"material {name!r}: the textures of its clear coat are not kept")
    glossiness = extensions.get("KHR_materials_pbrSpecularGlossiness")
    if glossiness is not None:
        _apply_glossiness(material, glossiness, texture)
        scene.warn(f"material {name!r}: its specular colour (KHR_materials_pbrSpecularGlossiness) is not kept")
    return material


def _apply_glossiness(material: Material, entry: dict, texture) -> None:
    """The older specular-glossiness model: diffuse becomes the base colour, roughness = 1 - glossiness."""
    material.base_color = tuple(entry.get("diffuseFactor", (1.0, 1.0, 1.0, 1.0)))
    material.base_color_texture = texture(entry, "diffuseTexture", "rgba", "sRGB")
    material.metallic, material.metallic_texture = 0.0, None
    gloss = entry.get("glossinessFactor", 1.0)
    material.roughness_texture = texture(entry, "specularGlossinessTexture", "a", "raw")
    if material.roughness_texture is None:
        material.roughness = 1.0 - gloss
    else:
        material.roughness = 1.0
        material.roughness_texture.scale, material.roughness_texture.bias = (-gloss,) * 4, (1.0,) * 4


def _texture(gltf, scene: Scene, info: dict, channel: str, color_space: str) -> Texture | None:
    entry = gltf.document["textures"][info["index"]]
    image = entry.get("extensions", {}).get("EXT_texture_webp", {}).get("source", entry.get("source"))
    if image is None:
        scene.warn(f"texture {info['index']} has no image that can be read and is not kept")
        return None
    sampler = gltf.document["samplers"][entry["sampler"]] if "sampler" in entry else {}
    wraps = [sampler.get(axis, 10497) for axis in ("wrapS", "wrapT")]
    if any(wrap not in _WRAP for wrap in wraps):
        gltf.fail(f"texture {info['index']} has an unknown wrap mode")
    transform = info.get("extensions", {}).get("KHR_texture_transform", {})
    texture = Texture(
        image,
        uv_name(transform.get("texCoord", info.get("texCoord", 0))),
        channel,
        _WRAP[wraps[0]],
        _WRAP[wraps[1]],
        color_space=color_space,
    )
    if transform:
        texture.uv_offset, texture.uv_rotation, texture.uv_scale = flip_uv_transform(
            tuple(transform.get("offset", (0.0, 0.0))),
            transform.get("rotation", 0.0),
            tuple(transform.get("scale", (1.0, 1.0))),
        )
    return texture


def flip_uv_transform(offset, rotation: float, scale) -> tuple[tuple[float, float], float, tuple[float, float]]:
    """A KHR_texture_transform (offset, rotation, scale; origin top left) with the origin at the bottom left.

    From u' = ox + sx cos(r) u + sy sin(r) v, v' = oy - sx sin(r) u + sy cos(r) v with v = 1 - V on both sides.
    """
    sine, cosine = math.sin(rotation), math.cos(rotation)
    return (offset[0] + scale[1] * sine, 1.0 - offset[1] - scale[1] * cosine), rotation, tuple(scale)


def unflip_uv_transform(texture: Texture) -> dict:
    """The inverse of `flip_uv_transform`: a texture's transform as a KHR_texture_transform object."""
    sine, cosine = math.sin(texture.uv_rotation), math.cos(texture.uv_rotation)
    scale = texture.uv_scale
    offset = [texture.uv_offset[0] - scale[1] * sine, 1.0 - texture.uv_offset[1] - scale[1] * cosine]
    return {"offset": offset, "rotation": texture.uv_rotation, "scale": list(scale)}


def uv_name(number: int) -> str:
    """The name of TEXCOORD_<number>, as USD's preview surfaces expect the first one."""
    return "st" if number == 0 else f"st{number}"
