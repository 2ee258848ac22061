"""What is asked beyond the question, and what is made of the answer: JSON that fits a schema, boxes in pixels, safe text."""

import json
import re
from pathlib import Path
from typing import Any, NoReturn

from shared_utils.errors import ConfigError, MissingInputError

BOXES_REQUEST = (
    '\nAnswer with JSON only: a list of {"bbox_2d": [x1, y1, x2, y2], "label": "..."}, one per object found,'
    " with coordinates from 0 to 1000 relative to the picture's width and height."
)
# Qwen3-VL gives coordinates as thousandths of the picture's sides.
GRID = 1000
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#000075")


class Unusable(str):
    """Why an answer cannot be used."""


def harmless(text: str) -> str:
    """Text with control characters shown instead of obeyed (line feeds and tabs stay): for terminals."""
    shown = {c: chr(0x2400 + c) for c in range(32) if chr(c) not in "\n\t"} | {0x7F: "\u2421"}
    # C1 controls, and the characters that turn the direction of text around.
    hidden = dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd")
    return text.translate(shown | hidden)


def load_schema(path: Path) -> dict | bool:
    """A JSON Schema from a file. References to other documents are not followed.

    Raises `MissingInputError` and `ConfigError`.
    """
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for

    try:
        schema = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(schema, bool) and not (
            isinstance(schema, dict) and isinstance(schema.get("$schema", ""), str)
        ):
            raise ConfigError(f"--schema {path}: not a JSON Schema (an object, or true or false)")
        kind = validator_for(schema)
        kind.check_schema(schema, format_checker=kind.FORMAT_CHECKER)
        _violation(None, schema)
    except FileNotFoundError:
        raise MissingInputError(f"--schema {path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--schema {path}: cannot be read as JSON ({error})") from None
    except SchemaError as error:
        raise ConfigError(f"--schema {path}: not a JSON Schema ({error.message})") from None
    return schema


def _violation(value: Any, schema: dict | bool) -> str | None:
    """The worst way in which a value does not fit, None when it does. Raises `ConfigError` for a schema that leads nowhere."""
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import EMPTY_REGISTRY

    # With a registry of its own jsonschema asks no server for references.
    validator = validator_for(schema)(schema, registry=EMPTY_REGISTRY)
    try:
        error = best_match(validator.iter_errors(value))
    except Unresolvable as error:
        raise ConfigError(f"--schema: the reference {error.ref!r} leads out of it") from None
    except RecursionError:
        raise ConfigError("--schema: its references go round in circles") from None
    return None if error is None else error.message[:200]


def schema_request(schema: dict | bool) -> str:
    """What is added to the question."""
    return "\nAnswer with JSON only, valid against this JSON Schema:\n" + json.dumps(schema, ensure_ascii=False)


def json_part(text: str) -> str:
    """The JSON in an answer: all of it, or what is inside its fenced block."""
    fenced = re.search(r"```(?:json)?\s*\n(.*?)```", text, re.DOTALL)
    return (fenced[1] if fenced else text).strip()


def parse_json(text: str) -> Any:
    """The JSON value an answer consists of, also inside a fenced block. Raises `ValueError`."""
    try:
        return json.loads(json_part(text), parse_constant=_no_number)
    except RecursionError:
        raise ValueError("brackets within brackets without end") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def check_schema(text: str, schema: dict | bool) -> Any:
    """The answer's value, or `Unusable` with the reason."""
    try:
        value = parse_json(text)
    except ValueError as error:
        return Unusable(f"is not JSON ({error})")
    problem = _violation(value, schema)
    return value if problem is None else Unusable(f"does not fit the schema ({problem})")


def read_boxes(text: str, size: tuple[int, int]) -> list[dict] | Unusable:
    """Boxes of an answer in pixels of a picture of `size` (width, height): [{"label", "box": [x0, y0, x1, y1]}]."""
    try:
        rows = parse_json(text)
    except ValueError as error:
        return Unusable(f"is not JSON ({error})")
    if not isinstance(rows, list):
        return Unusable("is not a list of boxes")
    width, height = size
    boxes = []
    for row in rows:
        corners = row.get("bbox_2d") if isinstance(row, dict) else None
        if (
            not isinstance(corners, list)
            or len(corners) != 4
            or not all(isinstance(c, int | float) and not isinstance(c, bool) and 0 <= c <= GRID for c in corners)
        ):
            return Unusable(f"has a box that is not four numbers from 0 to {GRID}: {str(row)[:100]}")
        x0, x1 = sorted(c / GRID * width for c in corners[::2])
        y0, y1 = sorted(c / GRID * height for c in corners[1::2])
        boxes.append({"label": str(row.get("label", "")), "box": [round(v, 2) for v in (x0, y0, x1, y1)]})
    return boxes


def draw_boxes(picture: Any, boxes: list[dict]) -> Any:
    """A copy of a PIL picture with boxes and labels drawn in."""
    from PIL import ImageDraw, ImageFont

    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    line = max(2, round(min(picture.size) / 200))
    font = ImageFont.load_default(size=max(12, round(min(picture.size) / 40)))
    for index, box in enumerate(boxes):
        colour = _COLOURS[index % len(_COLOURS)]
        x0, y0, _, _ = box["box"]
        draw.rectangle(box["box"], outline=colour, width=line)
        label = harmless(box["label"])
        left, top, right, bottom = draw.textbbox((x0 + line, y0 + line), label, font=font)
        draw.rectangle((left, top, right, bottom), fill=colour)
        draw.text((x0 + line, y0 + line), label, fill="white", font=font)
    return picture
