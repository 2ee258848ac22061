"""ArgsParser: a dataclass becomes a command line.

A script declares its knobs once, as dataclass fields made with `option(...)` or `item_input(...)`. The same declaration
serves the command line (parsed by cyclopts), a line of a batch file and a recorded configuration: `coerce` brings a JSON
value to the field's type, `validate` checks the rules. A violation is a `UsageError` with one line naming value and rule.
"""

import dataclasses
import inspect
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from shared_utils.errors import UsageError

_KEY = "option"
_LAST = ("Model", "Run", "Output")
_DASH = "\0stdin"


@dataclasses.dataclass(frozen=True)
class Option:
    """What is known of a field beyond its type: help text, group, rules, and where it may be given."""

    help: str
    group: str = "Options"
    aliases: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    multiple_of: int | None = None
    check: Callable[[Any], str | None] | None = None
    positional: bool = False
    per_item: bool = True
    replay: bool = True
    hidden: bool = False


def option(default: Any, help: str, **kwargs: Any) -> Any:
    """A dataclass field that is a flag.

    Keywords are those of `Option`: `group`, `aliases` (such as `("-o",)`), `minimum`, `maximum`, `multiple_of`, `check`
    (value -> None or the rule it breaks), `per_item=False` (a batch line may not set it), `replay=False` (not taken over
    from a recorded run). State units in `help`.
    """
    return dataclasses.field(default=default, metadata={_KEY: Option(help, **kwargs)})


def item_input(help: str, **kwargs: Any) -> Any:
    """The field that carries a script's input; positional arguments and its flag are the same parameter.

    A scalar type (`str`, `Path`) makes every value an item of its own, a tuple type takes all values as one job.
    """
    return dataclasses.field(default=None, metadata={_KEY: Option(help, group="Input", positional=True, **kwargs)})


def options_of(config: Any) -> dict[str, Option]:
    """The declared options of a config class or instance, in the order of its fields."""
    return {f.name: f.metadata[_KEY] for f in dataclasses.fields(config) if _KEY in f.metadata}


def flag(name: str) -> str:
    """The long flag of a field: `max_angle` -> `--max-angle`."""
    return "--" + name.replace("_", "-")


def input_field(config: Any) -> str | None:
    """Name of the positional field, if the config has one."""
    return next((name for name, opt in options_of(config).items() if opt.positional), None)


def takes_many(config: Any, name: str) -> bool:
    """Whether a field's type is a tuple, so that a flag may be repeated and all values belong together."""
    cls = config if isinstance(config, type) else type(config)
    return _tuple_type(get_type_hints(cls)[name]) is not None


def command_line(config: Any) -> list[str]:
    """Arguments that bring a config about: every replayable flag that differs from its default, the input first."""
    inputs, flags = [], []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if _KEY not in field.metadata or not field.metadata[_KEY].replay or value == field.default:
            continue
        if isinstance(value, bool):
            flags.append(flag(field.name if value else "no_" + field.name))
            continue
        arguments = [f"{flag(field.name)}={v}" for v in (value if isinstance(value, tuple) else (value,))]
        (inputs if field.metadata[_KEY].positional else flags).extend(arguments)
    return inputs + flags


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _tuple_type(annotation: Any) -> Any:
    return next((a for a in _alternatives(annotation) if get_origin(a) is tuple), None)


def coerce(value: Any, annotation: Any, name: str) -> Any:
    """Bring a JSON value to a field's type. Raises `UsageError` naming the flag and the type it takes."""
    for alternative in _alternatives(annotation):
        if alternative is type(None):
            if value is None:
                return None
        elif get_origin(alternative) is tuple:
            if value is not None:
                values = value if isinstance(value, list | tuple) else [value]
                return tuple(coerce(v, get_args(alternative)[0], name) for v in values)
        elif get_origin(alternative) is Literal:
            if value in get_args(alternative):
                return value
        elif alternative is Path and isinstance(value, str):
            return Path(value)
        elif alternative is bool or isinstance(value, bool):
            if alternative is bool and isinstance(value, bool):
                return value
        elif alternative is float and isinstance(value, int | float):
            return float(value)
        elif alternative is int and isinstance(value, float) and value.is_integer():
            return int(value)
        elif isinstance(value, alternative):
            return value
    raise UsageError(f"{flag(name)}: {value!r} is not {_describe(annotation)}")


def _describe(annotation: Any) -> str:
    words = []
    for alternative in _alternatives(annotation):
        if get_origin(alternative) is Literal:
            words.append("one of " + ", ".join(map(str, get_args(alternative))))
        elif get_origin(alternative) is tuple:
            words.append("a list of " + _describe(get_args(alternative)[0]).removeprefix("a "))
        elif alternative is not type(None):
            names = {int: "a whole number", float: "a number", str: "text", Path: "a path", bool: "true or false"}
            words.append(names[alternative])
    return " or ".join(words)


def validate(config: Any) -> None:
    """Check every field's rules, then the config's own `check()` for rules between fields. Raises `UsageError`."""
    for name, opt in options_of(config).items():
        value = getattr(config, name)
        for v in value if isinstance(value, tuple) else (value,):
            if v is not None:
                _check_value(name, v, opt)
    if hasattr(config, "check"):
        config.check()


def _check_value(name: str, value: Any, opt: Option) -> None:
    if isinstance(value, str) and any(0xD800 <= ord(c) < 0xE000 for c in value):
        # Bytes of an argument that are not UTF-8, or half a character in a batch file.
        raise UsageError(f"{flag(name)} {value!r}: is not valid text")
    if opt.minimum is not None or opt.maximum is not None:
        low, high = opt.minimum, opt.maximum
        # Written so that NaN fails as well.
        if not ((low is None or value >= low) and (high is None or value <= high)):
            rule = (
                f"from {low} to {high}"
                if None not in (low, high)
                else f"at least {low}"
                if high is None
                else f"at most {high}"
            )
            raise UsageError(f"{flag(name)} {value}: must be {rule}")
    if opt.multiple_of is not None and value % opt.multiple_of:
        raise UsageError(f"{flag(name)} {value}: must be a multiple of {opt.multiple_of}")
    if opt.check is not None and (rule := opt.check(value)) is not None:
        raise UsageError(f"{flag(name)} {value}: {rule}")


@dataclasses.dataclass(frozen=True)
class ArgsParser:
    """Builds the command line of a script from its config dataclass.

    `docstring` is the script's module docstring: the first paragraph describes it, the part from a line `Examples:` on is
    printed below the flags.
    """

    config: type
    name: str
    docstring: str
    version: str

    def parse(self, argv: Sequence[str]) -> dict[str, Any] | None:
        """Return the values given explicitly, by field name, or None when `--help` or `--version` was answered.

        The positional field comes as a tuple, whatever its type. Raises `UsageError` for anything the script does not take.
        """
        from cyclopts import App, CycloptsError

        def values(**given: Any) -> None:
            """Carries the signature that cyclopts reads; never called."""

        values.__signature__ = inspect.Signature(self._parameters())
        values.__annotations__ = {p.name: p.annotation for p in self._parameters()}
        summary, _, examples = self.docstring.partition("Examples:")
        app = App(
            name=self.name,
            help=" ".join(summary.split()),
            help_epilogue=("Examples:" + examples).rstrip() + "\n" if examples else None,
            help_format="plaintext",
            version=f"{self.name.removesuffix('.py')} {self.version}",
        )
        app.default(values)
        try:
            # cyclopts takes a lone dash for a flag; it travels as a value that nobody types.
            tokens = [_DASH if token == "-" else token for token in argv]
            command, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
        except CycloptsError as error:
            raise UsageError(" ".join(str(error).split()) + " (see --help)") from None
        if command is not values:
            command(*bound.args, **bound.kwargs)
            return None
        return {name: _with_dash(value) for name, value in bound.arguments.items()}

    def _parameters(self) -> list[inspect.Parameter]:
        from cyclopts import Group, Parameter

        hints = get_type_hints(self.config)
        # What is particular to the script comes first, what all scripts share last.
        own = dict.fromkeys(opt.group for opt in options_of(self.config).values())
        order = {group: _LAST.index(group) + len(own) if group in _LAST else i for i, group in enumerate(own)}
        order["Input"] = -1
        parameters = []
        for field in dataclasses.fields(self.config):
            if _KEY not in field.metadata:
                continue
            opt: Option = field.metadata[_KEY]
            group = Group(opt.group, sort_key=order[opt.group])
            annotation = hints[field.name]
            default = field.default
            if opt.positional:
                annotation = (
                    _tuple_type(annotation)
                    or tuple[next(a for a in _alternatives(annotation) if a is not type(None)), ...]
                )
            is_switch = annotation is bool and default is False
            spec = Parameter(
                name=[flag(field.name), *opt.aliases],
                help=opt.help + _rules(opt),
                group=group,
                negative=() if is_switch or _tuple_type(annotation) or opt.positional else None,
                show=not opt.hidden,
                show_default=not (default is None or default == () or is_switch),
                # A text or path may begin with a dash when it follows its own flag.
                allow_leading_hyphen=annotation in (str, str | None, Path, Path | None),
            )
            kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if opt.positional else inspect.Parameter.KEYWORD_ONLY
            parameters.append(
                inspect.Parameter(
                    field.name, kind, default=() if opt.positional else default, annotation=Annotated[annotation, spec]
                )
            )
        return sorted(parameters, key=lambda p: p.kind)


def _with_dash(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_with_dash(v) for v in value)
    return type(value)("-") if isinstance(value, str | Path) and str(value) == _DASH else value


def _rules(opt: Option) -> str:
    rules = []
    if opt.minimum is not None and opt.maximum is not None:
        rules.append(f"{opt.minimum} to {opt.maximum}")
    elif opt.minimum is not None:
        rules.append(f"at least {opt.minimum}")
    elif opt.maximum is not None:
        rules.append(f"at most {opt.maximum}")
    if opt.multiple_of is not None:
        rules.append(f"a multiple of {opt.multiple_of}")
    return f" ({', '.join(rules)})" if rules else ""
