"""Generation parameters from UniRig's own task files (YAML)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared_utils.errors import ConfigError, MissingInputError

# Keys of `generate_kwargs` and what each must be.
_NUMBERS: dict[str, tuple[type, float, float]] = {
    "max_new_tokens": (int, 1, 2048),
    "num_beams": (int, 1, 64),
    "temperature": (float, 1e-3, 100),
    "top_k": (int, 0, 267),
    "top_p": (float, 1e-6, 1),
    "repetition_penalty": (float, 1e-3, 100),
}
_CLASS_KEYS = ("assign_cls", "cls")
_WITHOUT_EFFECT = {"num_return_sequences", "no_cls", "use_dir_cls", "use_cache", "pad_token_id", "eos_token_id"}


@dataclass
class TaskSettings:
    """What a task file says. generation: fields of `GenerationSettings`; skeleton_class: None when it says nothing;
    ignored: keys without a meaning here."""

    generation: dict[str, Any] = field(default_factory=dict)
    skeleton_class: str | None = None
    ignored: list[str] = field(default_factory=list)


def read_task(path: Path) -> TaskSettings:
    """Read a task file: `generate_kwargs` in it, in its `system`, or in the system file it names.

    A task names its system under `components: system: NAME`; that file is looked for as in UniRig's repository, at
    `../system/NAME.yaml` beside the task's folder. Raises MissingInputError, or ConfigError for anything that is not a
    task file or a value out of range.
    """
    content = _load(path)
    blocks = [content]
    components = content.get("components")
    name = components.get("system") if isinstance(components, dict) else None
    if isinstance(name, str) and name == Path(name).name and name not in (".", ".."):
        system = path.resolve().parent.parent / "system" / f"{name}.yaml"
        if system.is_file():
            blocks.insert(0, _load(system))  # what the task says itself is stronger
    if isinstance(content.get("system"), dict):
        blocks.append(content["system"])
    settings = TaskSettings()
    for block in blocks:
        values = block.get("generate_kwargs")
        if values is None:
            continue
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: generate_kwargs must be a mapping")
        _take(settings, values, path)
    return settings


def _load(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingInputError(f"{path}: no such task file") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not a readable task file ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: not a task file, which is a YAML mapping")
    return content


def _take(settings: TaskSettings, values: dict[str, Any], path: Path) -> None:
    for key, value in values.items():
        if key in _NUMBERS:
            kind, low, high = _NUMBERS[key]
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole or (kind is float and isinstance(value, float))) or not low <= value <= high:
                raise ConfigError(
                    f"{path}: {key} {value!r} must be {'a whole number' if kind is int else 'a number'} from {low:g} to {high:g}"
                )
            settings.generation[key] = kind(value)
        elif key == "do_sample":
            if not isinstance(value, bool):
                raise ConfigError(f"{path}: do_sample {value!r} must be true or false")
            settings.generation[key] = value
        elif key in _CLASS_KEYS:
            if value not in ("articulationxl", "vroid", "mixamo", None):
                raise ConfigError(f"{path}: {key} {value!r} must be articulationxl, vroid or mixamo")
            settings.skeleton_class = value
        elif key not in _WITHOUT_EFFECT:
            settings.ignored.append(str(key))
