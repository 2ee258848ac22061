# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///
"""Make one script a single self-contained file, to be copied alone to another machine.

Examples:
  uv run bundle.py zimage_generation.py                 # writes dist/zimage_generation.py
  uv run bundle.py zimage_generation.py -o - | ssh box 'cat > zimage_generation.py'
  uv run bundle.py --all --check                        # exit 1 when a file in dist/ is not what the sources give

The bundle is the script itself, its PEP 723 header on top, with the modules of this repository that it reaches put in front
of its first import as plain text. They are imported from memory; nothing is written to disk. Same sources, same bytes.
"""

import argparse
import ast
import base64
import re
import sys
from pathlib import Path

from shared_utils.output_dir import atomic

ROOT = Path(__file__).resolve().parent
# shared_utils goes in whole (it is small, and looks its classes up by name); of the others what is reached.
WHOLE = "shared_utils"
PACKAGES = (WHOLE, "meshes", "networks", "tiny_checkpoints")
HEADER = re.compile(r"(?m)^# /// script$\s(?:^#(?:| .*)$\s)+^# ///$")

BOOTSTRAP = """\
# --- Modules of the toolbox, put here by bundle.py. Do not edit: change the sources and bundle again. ---
def _import_from_memory(sources, data):
    import base64, importlib.abc, importlib.resources.abc, importlib.util, io, linecache, sys, traceback

    class File(importlib.resources.abc.Traversable):
        def __init__(self, path): self.path = path
        @property
        def name(self): return self.path.rpartition("/")[2]
        def _below(self): return [p for p in (*sources, *data) if p.startswith(self.path + "/")]
        def is_file(self): return self.path in sources or self.path in data
        def is_dir(self): return bool(self._below())
        def iterdir(self):
            return iter([File(self.path + "/" + n) for n in sorted({p[len(self.path) + 1:].split("/")[0] for p in self._below()})])
        def joinpath(self, *parts): return File("/".join([self.path, *map(str, parts)]))
        __truediv__ = joinpath
        def read_bytes(self):
            if not self.is_file(): raise FileNotFoundError(self.path)
            return sources[self.path].encode() if self.path in sources else base64.b85decode(data[self.path])
        def open(self, mode="r", **kwargs):
            stream = io.BytesIO(self.read_bytes())
            return stream if "b" in mode else io.TextIOWrapper(stream, **(kwargs or {"encoding": "utf-8"}))

    class Loader(importlib.abc.InspectLoader):
        def __init__(self, path): self.path = path
        def is_package(self, name): return self.path.endswith("/__init__.py")
        def get_source(self, name): return sources[self.path]
        def get_resource_reader(self, name): return self
        def files(self): return File(self.path.rpartition("/")[0])
        def exec_module(self, module):
            text, name = sources[self.path], __file__ + "!/" + self.path
            module.__file__ = name
            linecache.cache[name] = (len(text), None, text.splitlines(True), name)
            exec(compile(text, name, "exec", dont_inherit=True), module.__dict__)

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            base = name.replace(".", "/")
            for candidate in (base + "/__init__.py", base + ".py"):
                if candidate in sources:
                    return importlib.util.spec_from_loader(name, Loader(candidate), origin=__file__ + "!/" + candidate)

    sys.meta_path.insert(0, Finder())
    if sys.version_info < (3, 13):  # before 3.13 uncaught exceptions are printed without asking linecache
        sys.excepthook = lambda kind, value, tb: traceback.print_exception(kind, value, tb)


_import_from_memory({
%s}, {
%s})
del _import_from_memory
# --- End of the bundled modules. ---

"""


def scripts() -> list[Path]:
    """The scripts of the repository: files in its root with a PEP 723 header that import the toolbox."""
    found = [p for p in sorted(ROOT.glob("*.py")) if p.name != Path(__file__).name]
    return [p for p in found if HEADER.search(p.read_text(encoding="utf-8")) and reached_by(p)]


def module_path(name: str) -> Path | None:
    """File of a module of this repository, or None for anything else."""
    if name.split(".")[0] not in PACKAGES:
        return None
    base = ROOT / name.replace(".", "/")
    return next((p for p in (base / "__init__.py", base.with_suffix(".py")) if p.is_file()), None)


def imports_of(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere in it, inside functions too; `from a import b` counts as `a` and `a.b`."""
    names = set()
    package = path.parent.relative_to(ROOT).parts if path.is_relative_to(ROOT) else ()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def reached_by(script: Path) -> set[Path]:
    """All files of this repository's packages that a script needs, data files beside its modules included."""
    queue, files = [script], set()
    if any(name.split(".")[0] == WHOLE for name in imports_of(script)):
        queue += (ROOT / WHOLE).glob("*.py")
    while queue:
        path = queue.pop()
        if path in files:
            continue
        if path != script:
            files.add(path)
        for name in imports_of(path):
            parts = name.split(".")
            chain = [module_path(".".join(parts[: i + 1])) for i in range(len(parts))]
            queue += [p for p in chain if p is not None and p not in files]
    folders = {p.parent for p in files}
    data = {p for folder in folders for p in folder.iterdir() if p.is_file() and p.suffix not in (".py", ".pyc")}
    return files | data


def body_line(source: str) -> int:
    """Number of lines in front of the first import: header, docstring and `from __future__`."""
    line = 0
    for node in ast.parse(source).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and line == 0
        if not is_docstring and not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            break
        line = node.end_lineno
    header = HEADER.search(source)
    return max(line, source[: header.end()].count("\n") + 1 if header else 0)


def bundle(script: Path) -> str:
    """The text of the self-contained script."""
    source = script.read_text(encoding="utf-8")
    lines = source.splitlines(True)
    at = body_line(source)
    modules, data = [], []
    for path in sorted(reached_by(script)):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == ".py":
            text = (
                "".join(f"        {line!r}\n" for line in path.read_text(encoding="utf-8").splitlines(True))
                or "        ''\n"
            )
            modules.append(f"    {name!r}: (\n{text}    ),\n")
        else:
            data.append(f"    {name!r}: {base64.b85encode(path.read_bytes()).decode()!r},\n")
    text = "".join(lines[:at]) + BOOTSTRAP % ("".join(modules), "".join(data)) + "".join(lines[at:])
    compile(text, str(script), "exec")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog=__doc__[__doc__.index("Examples:") :],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("script", nargs="*", type=Path, help="scripts to bundle")
    parser.add_argument("--all", action="store_true", help="all scripts of the repository")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when a bundle is missing or out of date"
    )
    parser.add_argument("-o", "--output", help="file to write, - for stdout (one script); default dist/<script>")
    args = parser.parse_args()
    chosen = scripts() if args.all else args.script
    if not chosen or (args.all and args.script):
        parser.error("name scripts, or --all")
    if args.output and len(chosen) > 1:
        parser.error(f"--output takes one script, not {len(chosen)}")
    stale = []
    for script in chosen:
        if not script.is_file():
            print(f"error: {script}: no such file", file=sys.stderr)
            return 66
        text = bundle(script.resolve())
        target = Path(args.output) if args.output else ROOT / "dist" / script.name
        if args.output == "-":
            sys.stdout.buffer.write(text.encode())
        elif args.check:
            if not target.is_file() or target.read_text(encoding="utf-8") != text:
                stale.append(target)
        else:
            with atomic(target) as partial:
                partial.write_text(text, encoding="utf-8", newline="\n")
            print(target)
    for target in stale:
        print(f"error: {target}: missing or out of date; run bundle.py again", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
