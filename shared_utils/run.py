"""The frame every script runs in: parse, validate, load once, go through the items, report, exit.

A script describes itself with a `Script` and ends with `sys.exit(run_script(SCRIPT))`. It supplies the domain functions;
flags, batches, resuming, signals, atomic files, records and exit codes are the frame's.
"""

import contextlib
import dataclasses
import os
import secrets
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

from shared_utils import __version__, device
from shared_utils.args import ArgsParser, coerce, input_field, options_of, takes_many, validate
from shared_utils.config_file import ConfigFile
from shared_utils.console import Console
from shared_utils.errors import (
    BatchError,
    ConfigError,
    InvalidInputError,
    MissingInputError,
    OutputExistsError,
    OutputWriteError,
    ScriptError,
    TemporaryError,
    UnavailableError,
    UsageError,
)
from shared_utils.items import Item, read_items, recordable, take_shard
from shared_utils.manifest import Manifest
from shared_utils.options import ModelOptions
from shared_utils.output_dir import ItemOutput, OutputDir, inside, is_full_disk, write_errors
from shared_utils.report import Report, print_plan, result_record, run_record


@dataclasses.dataclass
class Result:
    """What an item produced: its report (merged into `--json` and `run.json`) and, where the answer is text, that text."""

    report: dict[str, Any] = dataclasses.field(default_factory=dict)
    stdout: str | None = None


@dataclasses.dataclass
class Smoke:
    """What `--smoke-test` puts in place of the user's choices: inputs, smaller settings, tiny checkpoints by role."""

    inputs: tuple = ()
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    models: dict[str, Path] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Script:
    """One script. Only `name`, `file`, `docstring`, `config`, `generate` and `smoke_test` are needed by all.

    - `load(config, run) -> model` is called once, before the first item.
    - `generate(model, item, out) -> Result` makes one item; `item` is the config with this item's values.
    - `generate_batch(model, items, outs)` instead yields one `Result` or `ScriptError` per item, in order; `group(items)`
      says which items go together.
    - `check(item)` validates an item's input before anything is loaded; `plan(config, items, run)` adds to `--dry-run`.
    - `arrange(config) -> config` sorts out the positional values of a job (tuple inputs) after parsing; `expand(config)` then
      may make several jobs of it.
    - `finish(run, out)` writes what belongs to the run as a whole.
    - `answer(config, run) -> text or None` answers a question, such as what voices there are: the text goes to stdout and
      nothing is made. `roles(config)` says which rows of the weight table this configuration needs (default: all).
    - `weights` maps a role to its row of the weight table; the first role is the one a bare `--model` replaces.
    - `prints_result`: stdout carries `Result.stdout` instead of paths. `seed`: the default seed, None to draw one.
    """

    name: str
    file: str
    docstring: str
    config: type
    generate: Callable[[Any, Any, ItemOutput], Result] | None = None
    smoke_test: Callable[[Path], Smoke] | None = None
    load: Callable[[Any, "Run"], Any] | None = None
    generate_batch: Callable[[Any, list, list[ItemOutput]], Iterable[Result | ScriptError]] | None = None
    group: Callable[[list[Any], Any], list[list[int]]] | None = None
    check: Callable[[Any], None] | None = None
    arrange: Callable[[Any], Any] | None = None
    expand: Callable[[Any], list[Any]] | None = None
    plan: Callable[[Any, list[Any], "Run"], dict[str, Any]] | None = None
    finish: Callable[["Run", ItemOutput], None] | None = None
    answer: Callable[[Any, "Run"], str | None] | None = None
    roles: Callable[[Any], Iterable[str]] | None = None
    weights: dict[str, Any] = dataclasses.field(default_factory=dict)
    line_field: str | None = None
    prints_result: bool = False
    item_folders: bool = False
    seed: int | None = None
    without: tuple[str, ...] = ()


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived. Not an `Exception`, so that no library swallows it."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Run:
    """What a script's functions see of the run they are in. `items`, the configs still to be made, is set before `load`; `download_plans`, by role, before `plan`."""

    def __init__(self, script: Script, config: Any, console: Console, stdout: Any):
        self.script = script
        self.config = config
        self.console = console
        self.stdout = stdout
        self.report = Report()
        self.output = OutputDir(config.output_dir, config.resume)
        self.smoke: Smoke | None = None
        self.snapshots: dict[str, Any] = {}
        self.download_plans: dict[str, Any] = {}
        self.items: list[Any] = []
        self.results: list[dict[str, Any]] = []
        self.started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._device: str | None = None
        self.telemetry: Any = None
        self.spans: Any = None
        self.log: Any = None

    @property
    def device(self) -> str:
        """Torch name of the device, chosen on first use. Raises `UnavailableError`."""
        if self._device is None:
            self._device = device.choose_device(self.config.device)
            if self._device.startswith("cuda"):
                import torch

                torch.cuda.reset_peak_memory_stats(self._device)
        return self._device

    def dtype(self) -> Any:
        """The torch dtype `--dtype` stands for on this device."""
        return device.choose_dtype(self.config.dtype, self.device)

    def warn(self, message: str) -> None:
        """Tell the user and the record about something they should know and that is no failure."""
        if message not in self.report.warnings:
            self.report.warnings.append(message)
            self.console.warning(message)
            # The text may hold a path or a prompt, which telemetry carries only when asked to.
            self.log.warning("{message}", content={"message": message})

    def info(self, message: str) -> None:
        """A line for the user."""
        self.console.info(message)

    @contextlib.contextmanager
    def phase(self, name: str, **attributes: Any) -> Iterator[None]:
        """Time a phase: its seconds go to the report, a span `<script>.<name>` to telemetry."""
        start = time.monotonic()
        try:
            with self.spans.track_span(f"{self.script.name}.{name}", attributes):
                yield
        finally:
            seconds = time.monotonic() - start
            self.report.seconds[name] = self.report.seconds.get(name, 0.0) + seconds
            self.spans.record_metric(f"{self.script.name}.{name}.duration", seconds, "s", attributes)

    def weights(self, role: str | None = None) -> Any:
        """The verified local snapshot of a role's weights, fetched if need be."""
        role = role or next(iter(self.script.weights))
        if role not in self.snapshots:
            with self.phase("download_weights"):
                self.snapshots[role] = self.downloader().fetch(self.wanted(role))
        return self.snapshots[role]

    @contextlib.contextmanager
    def loading(self, role: str | None = None) -> Iterator[None]:
        """Around what loads a role's weights: a model of the user's choosing that does not load is theirs to fix.

        Raises `InvalidInputError`. What goes wrong with the model of the weight table is a bug, and keeps its traceback.
        """
        role = role or next(iter(self.script.weights))
        try:
            yield
        except (ScriptError, ImportError):
            raise
        except Exception as error:  # libraries raise whatever a file leads them to
            repo = self.wanted(role).repo
            if self.smoke is not None or repo == self.script.weights[role].repo or device.is_out_of_memory(error):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InvalidInputError(f"--model {repo}: cannot be loaded ({reason})") from error

    def downloader(self) -> Any:
        """The downloader for this run's weights folder."""
        from shared_utils.hugging_face import HuggingFaceDownloader

        offline = self.config.offline or self.smoke is not None
        return HuggingFaceDownloader(self.config.weights_dir, offline=offline, console=self.console)

    def wanted(self, role: str) -> Any:
        """The weight-table row of a role with `--model` and `--revision` applied."""
        row = self.script.weights[role]
        if self.smoke is not None and role in self.smoke.models:
            return dataclasses.replace(row, repo=str(self.smoke.models[role]))
        model = _by_role("--model", self.config.model, self.script.weights).get(role)
        revision = _by_role("--revision", self.config.revision, self.script.weights).get(role)
        return row.choose(model, revision)


def _by_role(name: str, values: tuple[str, ...], roles: dict[str, Any]) -> dict[str, str]:
    chosen = {}
    for value in values:
        role, equals, rest = value.partition("=")
        if equals and role in roles:
            chosen[role] = rest
        elif equals and "/" not in role and not os.path.exists(value):  # noqa: PTH110 - takes any text
            raise UsageError(f"{name} {value}: no such role; this script has {', '.join(roles)}")
        else:
            chosen[next(iter(roles))] = value
    return chosen


def run_script(script: Script, argv: list[str] | None = None) -> int:
    """Run a script and return its exit code. Failures a user can fix are shown as one line."""
    _install_signal_handlers()
    stdout = _keep_stdout_clean()
    parser = ArgsParser(_config_class(script), Path(script.file).name, script.docstring, __version__)
    console = Console()
    json_wanted = False
    try:
        with contextlib.redirect_stdout(stdout):
            given = parser.parse(sys.argv[1:] if argv is None else argv)
        if given is None:
            return 0
        json_wanted = given.get("json", False)
        console = Console(
            quiet=given.get("quiet", False), verbose=given.get("verbose", False), color=not given.get("no_color", False)
        )
        return _Frame(script, parser.config, given, console, stdout).run()
    except ScriptError as error:
        console.error(str(error))
        if json_wanted and not isinstance(error, BatchError):
            stdout.write(Report.error_line(script.name, error))
        return error.exit_code
    except Interrupted as interrupted:
        console.error(f"interrupted by {interrupted}")
        return interrupted.exit_code
    except BrokenPipeError:
        # The reader of our results went away, as `head` does; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        return 128 + 13
    finally:
        with contextlib.suppress(BrokenPipeError):
            stdout.flush()


def _install_signal_handlers() -> None:
    received = []

    def handle(signum: int, frame: Any) -> None:
        received.append(signum)
        if len(received) > 1:
            os._exit(128 + signum)
        raise Interrupted(signum)

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)


def _keep_stdout_clean() -> Any:
    """Return a stream on the real stdout and point descriptor 1 at stderr, so that no library can write into our results."""
    sys.stdout.flush()
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogateescape", newline="")
    os.dup2(2, 1)
    return stream


def _config_class(script: Script) -> type:
    """The script's config class without the flags that make no sense for it."""
    if not script.without:
        return script.config
    fields = []
    for field in dataclasses.fields(script.config):
        if field.name in script.without:
            # The attribute stays, for the frame reads it; without metadata it is no flag.
            fields.append((field.name, field.type, dataclasses.field(default=field.default)))
    return dataclasses.make_dataclass(
        script.config.__name__,
        fields,
        bases=(script.config,),
        kw_only=True,
        namespace={"__module__": script.config.__module__},
    )


class _Frame:
    """One invocation, step by step."""

    def __init__(self, script: Script, config_class: type, given: dict[str, Any], console: Console, stdout: Any):
        self.script = script
        self.config_class = config_class
        self.given = given
        self.console = console
        self.stdout = stdout
        self.field = input_field(config_class)
        self.inputs: tuple = ()

    def run(self) -> int:
        with contextlib.ExitStack() as stack:
            config = self.build_config()
            if config.lock:
                stack.enter_context(_lock(config.lock))
            run = Run(self.script, config, self.console, self.stdout)
            self.start_telemetry(run, stack)
            if config.smoke_test:
                config = self.apply_smoke(run, config, stack)
            if self.script.answer is not None and (text := self.script.answer(config, run)) is not None:
                self.stdout.write(text)
                return 0
            items = self.read_items(run, config)
            if config.dry_run:
                return self.dry_run(run, items)
            return self.execute(run, items)

    def build_config(self) -> Any:
        """Defaults, then the recorded run, then the flags given; the seed is settled here."""
        recorded = self.recorded_values()
        if self.field in self.given or "inputs_from" in self.given:
            recorded.pop(self.field, None)
            recorded.pop("inputs_from", None)
        values = recorded | self.given
        if self.field is not None:
            self.inputs = tuple(values.pop(self.field, ()))
        self.explicit = set(values)
        config = self.config_class(**values)
        config.check_common()
        validate(config)
        if config.seed is None:
            config.seed = self.default_seed(config)
        return config

    def recorded_values(self) -> dict[str, Any]:
        path = self.given.get("config")
        if path is None:
            return {}
        hints, options, values = get_type_hints(self.config_class), options_of(self.config_class), {}
        for name, value in ConfigFile(path).values(self.script.name).items():
            if name not in options:
                raise ConfigError(f"--config {path}: unknown setting {name!r}")
            if not options[name].replay or value is None:
                continue
            try:
                if name == self.field:
                    value = value if isinstance(value, list) else [value]
                    many = takes_many(self.config_class, name)
                    values[name] = (
                        coerce(value, hints[name], name) if many else tuple(coerce(v, hints[name], name) for v in value)
                    )
                else:
                    values[name] = coerce(value, hints[name], name)
            except UsageError as error:
                raise ConfigError(f"--config {path}: {error}") from None
        return values

    def default_seed(self, config: Any) -> int:
        if config.resume is not None and (seed := Manifest(config.resume).begun_with("base_seed")) is not None:
            return seed
        if self.script.seed is not None:
            return self.script.seed
        seed = secrets.randbelow(2**32)
        self.console.info(f"seed {seed}")
        return seed

    def start_telemetry(self, run: Run, stack: contextlib.ExitStack) -> None:
        from shared_utils.telemetry import OtelSetup

        config = run.config
        run.telemetry = OtelSetup(
            self.script.name,
            __version__,
            enabled=not config.disable_telemetry,
            send_content=config.telemetry_content,
            say=self.console.info,
        )
        run.spans, run.log = run.telemetry.spans, run.telemetry.logger
        stack.callback(run.telemetry.shutdown)

    def apply_smoke(self, run: Run, config: Any, stack: contextlib.ExitStack) -> Any:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="smoke-test-")))
        run.smoke = self.script.smoke_test(folder)
        config = dataclasses.replace(config, **{k: v for k, v in run.smoke.settings.items() if k not in self.explicit})
        run.config = config
        self.inputs_given = bool(self.inputs)
        self.inputs = self.inputs or run.smoke.inputs
        return config

    def read_items(self, run: Run, config: Any) -> list[Item]:
        """The items of this shard, each validated; a bad one carries its error. A single bad item raises it."""
        if self.script.arrange is not None and config.inputs_from is None:
            config = self.script.arrange(dataclasses.replace(config, **{self.field: self.inputs}))
            self.inputs, run.config = tuple(getattr(config, self.field) or ()), config
        items = read_items(config, self.inputs, self.script.line_field, self.script.expand)
        self.total = len(items)
        if (
            self.field is not None
            and not takes_many(config, self.field)
            and config.inputs_from is None
            and not self.inputs
        ):
            # What came through stdin is recorded like an argument, so that a replay needs no stdin.
            self.inputs = tuple(getattr(item.config, self.field) for item in items)
        if config.output is not None:
            if self.total > 1:
                raise UsageError(f"--output {config.output}: takes one item, not {self.total} (use --output-dir)")
            if config.output.is_dir():
                raise UsageError(f"--output {config.output}: is a folder (use --output-dir)")
        items = take_shard(items, config.shard, dict(os.environ))
        for item in items:
            try:
                if item.error is None:
                    self.check_item(item.config, own_output=item.config.output != config.output)
            except ScriptError as error:
                item.error = error
        if self.total == 1 and items and items[0].error is not None:
            raise items[0].error
        return items

    def check_item(self, config: Any, own_output: bool) -> None:
        validate(config)
        if own_output:
            inside(Path("run folder").absolute(), str(config.output))
        for name, opt in options_of(config).items():
            value = getattr(config, name)
            for v in value if isinstance(value, tuple) else (value,):
                if opt.positional and isinstance(v, Path) and not os.path.exists(v):  # noqa: PTH110 - takes any text
                    raise MissingInputError(f"{v}: no such file")
        if self.script.check is not None:
            self.script.check(config)

    def dry_run(self, run: Run, items: list[Item]) -> int:
        plan = {
            "tool": self.script.name,
            "items": len(items),
            "bad_items": [f"item {i.index}: {i.error}" for i in items if i.error],
        }
        if isinstance(run.config, ModelOptions):
            plan["device"] = run.device
            plan["free_memory_bytes"] = device.free_memory(run.device)
            downloader = run.downloader()
            roles = self.script.roles(run.config) if self.script.roles else self.script.weights
            run.download_plans = {role: downloader.plan(run.wanted(role)) for role in roles}
            plan["weights"] = list(run.download_plans.values())
        if self.script.plan is not None:
            plan.update(self.script.plan(run.config, [i.config for i in items if not i.error], run))
        plan["output_dir"] = str(run.config.resume or run.config.output_dir)
        print_plan(plan, self.stdout, run.config.json)
        return BatchError.exit_code if plan["bad_items"] else 0

    def execute(self, run: Run, items: list[Item]) -> int:
        config = run.config
        if config.output is not None and config.output.exists() and not config.overwrite:
            raise OutputExistsError(f"--output {config.output}: exists already (--overwrite replaces it)")
        folder = run.output.create()
        manifest = Manifest(folder)
        run.output.timestamp = manifest.begun_with("stamp") or run.output.timestamp
        status = "error"
        try:
            with run.spans.track_span(f"{self.script.name}.run", {"items": len(items)}):
                failed = self.process(run, items, manifest)
            status = "partial" if failed else "ok"
        except Interrupted:
            status = "interrupted"
            raise
        finally:
            self.close(run, items, status)
        if failed:
            raise BatchError(
                f"{failed} of {len(items)} item(s) failed; the others are in {folder} (rerun with --resume {folder})"
            )
        if config.keep_last is not None:
            for removed in run.output.keep_last(config.keep_last, self.script.name):
                self.console.detail(f"removed {removed}")
        return 0

    def process(self, run: Run, items: list[Item], manifest: Manifest) -> int:
        """Go through the items; return how many failed. A run of a single item raises its failure instead."""
        done = manifest.finished()
        pending, failed = [], 0
        for item in items:
            if item.error is not None:
                failed += self.failed(run, item, item.error, manifest)
            elif (earlier := done.get(item.key())) is not None:
                self.publish(run, item, {**earlier, "status": "skipped"}, None)
            else:
                pending.append(item)
        if pending:
            if isinstance(run.config, ModelOptions):
                self.console.info(f"device {run.device}")
            run.items = [item.config for item in pending]
            with _explained(run):
                model = self.script.load(run.config, run) if self.script.load else run
            run.model = model
            for group in self.groups(pending, model):
                failed += self.process_group(run, model, group, manifest)
        if self.script.finish is not None:
            out = self.item_output(run, None)
            try:
                with _explained(run):
                    self.script.finish(run, out)
                    out.commit()
            finally:
                out.discard()
            run.report.outputs += out.record(run.output.path)
        return failed

    def groups(self, pending: list[Item], model: Any) -> list[list[Item]]:
        if self.script.group is None:
            return [[item] for item in pending] if self.script.generate_batch is None else [pending]
        return [[pending[i] for i in group] for group in self.script.group([item.config for item in pending], model)]

    def process_group(self, run: Run, model: Any, group: list[Item], manifest: Manifest) -> int:
        outs = [self.item_output(run, item) for item in group]
        produce = self.script.generate_batch or (
            lambda model, items, outs: (self.script.generate(model, i, o) for i, o in zip(items, outs, strict=True))
        )
        results = iter(produce(model, [item.config for item in group], outs))
        failed, broken = 0, None
        try:
            for item, out in zip(group, outs, strict=True):
                start = time.monotonic()
                try:
                    if broken is not None:
                        raise broken
                    result = next(results)
                    if isinstance(result, ScriptError):
                        raise result
                    out.commit()
                except Exception as error:
                    error = _explain(error, run)
                    # A generator that raised has ended, and the rest of its group with it; one that yielded an error goes on.
                    if getattr(results, "gi_frame", None) is None:
                        broken = error
                    out.discard()
                    failed += self.failed(run, item, error, manifest)
                    continue
                record = result_record(run, item, out, result, time.monotonic() - start)
                manifest.append(record, run.config.seed, run.output.timestamp)
                self.publish(run, item, record, result)
        finally:
            for out in outs:
                out.discard()
        return failed

    def failed(self, run: Run, item: Item, error: Exception, manifest: Manifest) -> int:
        """Record a failed item of a batch; a single item's failure is the run's own."""
        if self.total == 1:
            raise error
        if isinstance(error, ScriptError):
            self.console.error(f"item {item.index}: {error}")
        else:
            traceback.print_exception(error)
        record = {
            "index": item.index,
            "key": item.key(),
            "status": "error",
            "error": str(error) or type(error).__name__,
            "exit_code": getattr(error, "exit_code", 1),
            "outputs": [],
            "seed": item.config.seed,
        }
        manifest.append(record, run.config.seed, run.output.timestamp)
        run.results.append(record)
        if run.config.json:
            self.stdout.write(Report.json_line(run, record))
            self.stdout.flush()
        return 1

    def publish(self, run: Run, item: Item, record: dict[str, Any], result: Result | None) -> None:
        """Tell stdout about a finished item as soon as it is finished."""
        run.results.append(record)
        run.report.outputs += record["outputs"]
        if run.config.json:
            self.stdout.write(Report.json_line(run, record))
        elif result is not None and result.stdout is not None:
            self.stdout.write(result.stdout)
        elif not self.script.prints_result:
            for output in record["outputs"]:
                if output["role"] == "primary":
                    self.stdout.write(f"{(run.output.path / output['path']).absolute()}\n")
        self.stdout.flush()

    def item_output(self, run: Run, item: Item | None) -> ItemOutput:
        folder = run.output.path
        label = item.label if item is not None else ""
        primary = run.config.output
        if item is not None and item.config.output != run.config.output:
            primary = inside(folder, str(item.config.output))
        if self.script.item_folders and label:
            folder = folder / label
        return ItemOutput(
            folder,
            index=item.index if item else 0,
            label=label,
            stamp=run.output.timestamp,
            primary=primary if item is not None else None,
            overwrite=run.config.overwrite or primary != run.config.output,
        )

    def close(self, run: Run, items: list[Item], status: str) -> None:
        """Write the records, or leave nothing behind where nothing came of the run."""
        folder = run.output.path
        if not any(folder.iterdir()) and status in ("error", "interrupted"):
            run.output.discard_if_empty()
            return
        config = recordable(run.config)
        if run.smoke is not None:
            # Its files are gone with its temporary folder; another smoke test makes its own.
            paths = [name for name, value in run.smoke.settings.items() if _has_path(value)]
            config = {n: v for n, v in config.items() if n not in paths or n in self.explicit}
        if self.field is not None:
            given = self.inputs if run.smoke is None or self.inputs_given else ()
            values = [os.path.abspath(v) if isinstance(v, Path) else v for v in given]
            config[self.field] = values
        ConfigFile(folder / "run.json").write(run_record(run, items, config, status))
        run.telemetry.write_trace(folder / "opentelemetry_trace.json")


def _has_path(value: Any) -> bool:
    return any(isinstance(v, Path) for v in (value if isinstance(value, tuple) else (value,)))


@contextlib.contextmanager
def _explained(run: Run) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if (explained := _explain(error, run)) is error:
            raise
        raise explained from error


def _explain(error: Exception, run: Run) -> Exception:
    """Out of memory or disk is a failure the user can fix; everything else stays what it is."""
    if isinstance(error, OSError) and is_full_disk(error):
        return OutputWriteError(f"no space left for the output ({error.strerror})")
    text = str(error)
    if device.is_out_of_memory(error):
        where = run.device if isinstance(run.config, ModelOptions) else "cpu"
        free = device.gigabytes(device.free_memory(where))
        return UnavailableError(
            f"not enough memory on {where} ({free} free): {text.splitlines()[0] if text else 'allocation failed'}"
        )
    return error


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0)
    with write_errors(path):
        try:
            lock.acquire()
        except Timeout:
            raise TemporaryError(f"--lock {path}: another process holds it") from None
    try:
        yield
    finally:
        lock.release()
