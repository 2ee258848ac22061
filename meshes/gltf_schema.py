"""The shape a glTF 2.0 JSON must have before anything reads it: types, ranges and index bounds.

Source: Khronos glTF 2.0 specification, https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html, and the extensions
named in `SUPPORTED_EXTENSIONS`. Properties the readers do not use are not looked at.
"""

import math
from dataclasses import dataclass

from shared_utils.errors import InvalidInputError

SUPPORTED_EXTENSIONS = {
    "EXT_texture_webp",
    "KHR_lights_punctual",
    "KHR_materials_clearcoat",
    "KHR_materials_emissive_strength",
    "KHR_materials_ior",
    "KHR_materials_pbrSpecularGlossiness",
    "KHR_materials_unlit",
    "KHR_mesh_quantization",
    "KHR_texture_transform",
}


@dataclass(frozen=True)
class Index:
    """An index into one of the document's top-level lists."""

    of: str


@dataclass(frozen=True)
class Integer:
    """A whole number from `least` on."""

    least: int = 0


@dataclass(frozen=True)
class Vector:
    """A list of `length` finite numbers."""

    length: int


@dataclass(frozen=True)
class Each:
    """A list (or, with `mapping`, an object with any keys) whose entries all have one shape."""

    shape: object
    mapping: bool = False
    least: int = 0


NUMBER, TEXT, FLAG, ANY, OBJECT = "a number", "a string", "true or false", "anything", "an object"

_transform = {"offset": Vector(2), "rotation": NUMBER, "scale": Vector(2), "texCoord": Integer()}
_texture_info = {
    "index!": Index("textures"),
    "texCoord": Integer(),
    "scale": NUMBER,
    "strength": NUMBER,
    "extensions": {"KHR_texture_transform": _transform},
}
_attributes = Each(Index("accessors"), mapping=True)
_ibm = Index("accessors")
SCHEMA = {
    "asset!": {"version!": TEXT, "minVersion": TEXT, "copyright": TEXT},
    "scene": Index("scenes"),
    "extensionsUsed": Each(TEXT),
    "extensionsRequired": Each(TEXT),
    "buffers": Each({"uri": TEXT, "byteLength!": Integer(1)}),
    "bufferViews": Each(
        {"buffer!": Index("buffers"), "byteOffset": Integer(), "byteLength!": Integer(1), "byteStride": Integer(1)}
    ),
    "accessors": Each(
        {
            "bufferView": Index("bufferViews"),
            "byteOffset": Integer(),
            "componentType!": Integer(),
            "normalized": FLAG,
            "count!": Integer(1),
            "type!": TEXT,
            "sparse": {
                "count!": Integer(1),
                "indices!": {
                    "bufferView!": Index("bufferViews"),
                    "byteOffset": Integer(),
                    "componentType!": Integer(),
                },
                "values!": {"bufferView!": Index("bufferViews"), "byteOffset": Integer()},
            },
        }
    ),
    "images": Each({"uri": TEXT, "mimeType": TEXT, "bufferView": Index("bufferViews"), "name": TEXT}),
    "samplers": Each({"wrapS": Integer(), "wrapT": Integer()}),
    "textures": Each(
        {
            "sampler": Index("samplers"),
            "source": Index("images"),
            "extensions": {"EXT_texture_webp": {"source!": Index("images")}},
        }
    ),
    "materials": Each(
        {
            "name": TEXT,
            "pbrMetallicRoughness": {
                "baseColorFactor": Vector(4),
                "baseColorTexture": _texture_info,
                "metallicFactor": NUMBER,
                "roughnessFactor": NUMBER,
                "metallicRoughnessTexture": _texture_info,
            },
            "normalTexture": _texture_info,
            "occlusionTexture": _texture_info,
            "emissiveTexture": _texture_info,
            "emissiveFactor": Vector(3),
            "alphaMode": TEXT,
            "alphaCutoff": NUMBER,
            "doubleSided": FLAG,
            "extensions": {
                "KHR_materials_emissive_strength": {"emissiveStrength": NUMBER},
                "KHR_materials_ior": {"ior": NUMBER},
                "KHR_materials_clearcoat": {"clearcoatFactor": NUMBER, "clearcoatRoughnessFactor": NUMBER},
                "KHR_materials_pbrSpecularGlossiness": {
                    "diffuseFactor": Vector(4),
                    "diffuseTexture": _texture_info,
                    "glossinessFactor": NUMBER,
                    "specularGlossinessTexture": _texture_info,
                },
            },
        }
    ),
    "meshes": Each(
        {
            "name": TEXT,
            "primitives!": Each(
                {
                    "attributes!": _attributes,
                    "indices": Index("accessors"),
                    "material": Index("materials"),
                    "mode": Integer(),
                    "targets": Each(_attributes),
                }
            ),
            "weights": Each(NUMBER),
        }
    ),
    "skins": Each({"name": TEXT, "joints!": Each(Index("nodes"), least=1), "inverseBindMatrices": _ibm}),
    "cameras": Each(
        {
            "name": TEXT,
            "type!": TEXT,
            "perspective": {"yfov!": NUMBER, "aspectRatio": NUMBER, "znear!": NUMBER, "zfar": NUMBER},
            "orthographic": {"xmag!": NUMBER, "ymag!": NUMBER, "znear!": NUMBER, "zfar!": NUMBER},
        }
    ),
    "nodes": Each(
        {
            "name": TEXT,
            "children": Each(Index("nodes")),
            "matrix": Vector(16),
            "translation": Vector(3),
            "rotation": Vector(4),
            "scale": Vector(3),
            "mesh": Index("meshes"),
            "skin": Index("skins"),
            "camera": Index("cameras"),
            "weights": Each(NUMBER),
            "extensions": {"KHR_lights_punctual": {"light!": Integer()}},
        }
    ),
    "scenes": Each({"name": TEXT, "nodes": Each(Index("nodes"))}),
    "animations": Each(
        {
            "name": TEXT,
            "samplers!": Each({"input!": Index("accessors"), "output!": Index("accessors"), "interpolation": TEXT}),
            "channels!": Each({"sampler!": Integer(), "target!": {"node": Index("nodes"), "path!": TEXT}}),
        }
    ),
    "extensions": {
        "KHR_lights_punctual": {
            "lights": Each(
                {
                    "name": TEXT,
                    "type!": TEXT,
                    "color": Vector(3),
                    "intensity": NUMBER,
                    "range": NUMBER,
                    "spot": {"innerConeAngle": NUMBER, "outerConeAngle": NUMBER},
                }
            )
        }
    },
}


def check(document: object, file: object) -> dict:
    """The document, once it has the shape of `SCHEMA`; a property name with "!" must be there.

    Raises InvalidInputError naming `file`, the place and the rule.
    """

    def fail(where: str, rule: str):
        raise InvalidInputError(f"{file}: glTF {where or 'document'} {rule}")

    def is_number(value: object) -> bool:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) < 1e300
            and math.isfinite(value)
        )

    def visit(value: object, shape: object, where: str) -> None:
        if isinstance(shape, dict):
            if not isinstance(value, dict):
                fail(where, "must be an object")
            for key, inner in shape.items():
                name = key.rstrip("!")
                if name in value:
                    visit(value[name], inner, f"{where}.{name}" if where else name)
                elif key != name:
                    fail(where, f"has no {name!r}")
        elif isinstance(shape, Each):
            if not isinstance(value, dict if shape.mapping else list):
                fail(where, "must be an object" if shape.mapping else "must be a list")
            if len(value) < shape.least:
                fail(where, f"must have at least {shape.least} entry")
            for key, item in value.items() if shape.mapping else enumerate(value):
                visit(item, shape.shape, f"{where}[{key}]")
        elif isinstance(shape, Index):
            there = document.get(shape.of)
            count = len(there) if isinstance(there, list) else 0
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
                fail(where, f"is {_brief(value)}; the file has {count} {shape.of}")
        elif isinstance(shape, Integer):
            if not isinstance(value, int) or isinstance(value, bool) or not shape.least <= value < 2**53:
                fail(where, f"is {_brief(value)}; it must be a whole number, at least {shape.least}")
        elif isinstance(shape, Vector):
            if not isinstance(value, list) or len(value) != shape.length or not all(map(is_number, value)):
                fail(where, f"must be a list of {shape.length} numbers")
        elif shape == NUMBER and not is_number(value):
            fail(where, f"is {_brief(value)}; it must be a number")
        elif shape == TEXT and not isinstance(value, str):
            fail(where, f"is {_brief(value)}; it must be a string")
        elif shape == FLAG and not isinstance(value, bool):
            fail(where, f"is {_brief(value)}; it must be true or false")

    if not isinstance(document, dict):
        fail("", "must be an object")
    visit(document, SCHEMA, "")
    return document


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
