"""From the command line to a list of items: positionals, stdin, a batch file, shards."""

import dataclasses
import hashlib
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any, get_type_hints

from shared_utils.args import coerce, flag, input_field, options_of, takes_many
from shared_utils.errors import ConfigError, InvalidInputError, MissingInputError, ScriptError, UsageError
from shared_utils.output_dir import slug


@dataclasses.dataclass
class Item:
    """One thing to generate: its position in the whole list, its own settings, and the failure found before it ran."""

    index: int
    config: Any
    label: str = ""
    error: ScriptError | None = None

    def key(self) -> str:
        """Hash of the settings that decide the result; the manifest recognises finished work by it."""
        values = {name: value for name, value in recordable(self.config).items() if name != "inputs_from"}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def recordable(config: Any) -> dict[str, Any]:
    """The settings a replay takes over, as JSON values; paths absolute, so that a replay works from anywhere."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value) if str(value) == "-" else os.path.abspath(value)
        return [plain(v) for v in value] if isinstance(value, tuple) else value

    return {name: plain(getattr(config, name)) for name, opt in options_of(config).items() if opt.replay}


def read_items(config: Any, inputs: tuple, line_field: str | None, expand: Any = None) -> list[Item]:
    """All items of a run, before sharding. `inputs` are the values given for the positional field; `expand` may make several
    jobs of one.

    Raises `UsageError` when there is no input at all; a bad line of a batch becomes an item that carries its error.
    """
    name = input_field(config)
    if config.inputs_from is not None:
        if inputs and not takes_many(config, name):
            raise UsageError(f"{flag(name)} and --inputs-from exclude each other")
        lines = _batch_lines(config.inputs_from)
        base = Path() if str(config.inputs_from) == "-" else config.inputs_from.parent
        items = [
            _item_of_line(i, line, number, config, inputs, line_field, base) for i, (number, line) in enumerate(lines)
        ]
    elif name is None:
        items = [Item(0, config)]
    elif takes_many(config, name):
        job = dataclasses.replace(config, **{name: inputs})
        jobs = expand(job) if expand else [job]
        items = [Item(i, _seeded(job, i)) for i, job in enumerate(jobs)]
    else:
        values = [v for value in inputs for v in ([value] if str(value) != "-" else _stdin_values(config, name))]
        if not values and stdin_is_pipe():
            values = _stdin_values(config, name)
        if not values:
            raise UsageError(f"no input: give {flag(name)} or --inputs-from (see --help)")
        items = [Item(i, dataclasses.replace(_seeded(config, i), **{name: value})) for i, value in enumerate(values)]
    _label(items, line_field or name)
    return items


def stdin_is_pipe() -> bool:
    """Whether something was piped or redirected into this process."""
    if sys.stdin is None or sys.stdin.closed:
        return False
    mode = os.fstat(sys.stdin.fileno()).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def read_stdin(what: str) -> str:
    """All of stdin as UTF-8 text. Raises `InvalidInputError` when it is not text."""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{what} from stdin: not UTF-8 text ({error.reason} at byte {error.start})") from None


def _stdin_values(config: Any, name: str) -> list:
    """Stdin as input values: text is one value, paths are one a line."""
    text = read_stdin(flag(name))
    wants_path = Path in _types(config, name)
    values = [Path(line.strip()) for line in text.splitlines() if line.strip()] if wants_path else [text.strip()]
    return [v for v in values if str(v)]


def _types(config: Any, name: str) -> tuple:
    from typing import get_args

    hint = get_type_hints(type(config))[name]
    return (hint, *get_args(hint), *(inner for a in get_args(hint) for inner in get_args(a)))


def _batch_lines(source: Path) -> list[tuple[int, str]]:
    """Numbered non-empty lines of a batch file. Raises `MissingInputError`, `InvalidInputError`."""
    if str(source) == "-":
        text = read_stdin("--inputs-from")
    else:
        try:
            text = source.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise MissingInputError(f"--inputs-from {source}: no such file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"--inputs-from {source}: cannot be read as UTF-8 text ({error})") from None
    # Not splitlines: a prompt may hold U+2028 or a form feed.
    lines = [(n, line.strip()) for n, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1) if line.strip()]
    if not lines:
        raise InvalidInputError(f"--inputs-from {source}: no item in it")
    return lines


def _item_of_line(
    index: int, line: str, number: int, config: Any, inputs: tuple, line_field: str | None, base: Path
) -> Item:
    name = input_field(config)
    common = _seeded(dataclasses.replace(config, **{name: inputs}) if inputs else config, index)
    try:
        values = _line_values(line, number, line_field or name, config)
        return Item(
            index,
            dataclasses.replace(common, **{k: _resolve(v, base) if k != "output" else v for k, v in values.items()}),
        )
    except ScriptError as error:
        return Item(index, common, error=type(error)(f"line {number}: {error}"))


def _seeded(config: Any, index: int) -> Any:
    """Item i of a run uses seed + i, counted before sharding; after the largest seed comes 0."""
    return config if config.seed is None else dataclasses.replace(config, seed=(config.seed + index) % 2**32)


def _line_values(line: str, number: int, line_field: str, config: Any) -> dict[str, Any]:
    hints = get_type_hints(type(config))
    if not line.startswith("{"):
        return {line_field: coerce(line, hints[line_field], line_field)}
    try:
        given = json.loads(line)
    except ValueError as error:
        raise InvalidInputError(f"not valid JSON ({error})") from None
    options = options_of(config)
    for key in given:
        if key not in options:
            raise UsageError(f"unknown key {key!r}: keys are long flag names with _ for -")
        if not options[key].per_item:
            raise UsageError(f"key {key!r} holds for the whole run; give {flag(key)} on the command line")
    return {key: coerce(value, hints[key], key) for key, value in given.items()}


def _resolve(value: Any, base: Path) -> Any:
    """Relative paths of a batch file are relative to its folder."""
    if isinstance(value, tuple):
        return tuple(_resolve(v, base) for v in value)
    return base / value if isinstance(value, Path) else value


def _label(items: list[Item], name: str | None) -> None:
    """Give the items of a batch names that are unique in the whole list, so that shards agree on them."""
    if len(items) == 1:
        return
    for item in items:
        value = getattr(item.config, name) if name else None
        value = value[0] if isinstance(value, tuple) and value else value
        words = value.stem if isinstance(value, Path) else str(value or "")
        item.label = f"{item.index:04d}_{slug(words, 32)}" if words else f"{item.index:04d}"


def take_shard(items: list[Item], shard: str | None, environ: dict[str, str]) -> list[Item]:
    """Every N-th item starting at I. Raises `ConfigError` for `slurm` outside a Slurm array job."""
    if shard is None:
        return items
    if shard == "slurm":
        try:
            task, low, count = (int(environ[f"SLURM_ARRAY_TASK_{part}"]) for part in ("ID", "MIN", "COUNT"))
            step = int(environ.get("SLURM_ARRAY_TASK_STEP", "1"))
        except (KeyError, ValueError):
            raise ConfigError(
                "--shard slurm: SLURM_ARRAY_TASK_ID, _MIN and _COUNT are not set; run it as a Slurm array job"
            ) from None
        start = (task - low) // step
        if not 0 <= start < count:
            raise ConfigError(f"--shard slurm: task {task} lies outside the array of {count} task(s) from {low}")
    else:
        start, count = (int(part) for part in shard.split("/"))
    return [item for item in items if item.index % count == start]
