"""Run golden cases through our networks and say how close each comes.

    python tests/parity.py tests/golden/unirig
    python tests/parity.py some/folder/of/cases

DIR holds `case_<family>_<n>.json` with a `.safetensors` beside each (see `parity_case.py`). Prints one line a case,

    case  max_abs_error  tolerance  ok|MISS

where error and tolerance belong to the output element that is worst for its tolerance. What missed, and which outputs
of a case were not compared, goes to stderr. Exit 0 when every case is ok; 1 on a miss, a case of an unknown family, a
case that cannot be read or raises, or a folder without cases; 2 on wrong usage.
"""

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from parity_case import Case, CaseError, Check, load_case  # noqa: E402


def load_families() -> dict[str, Callable[[Case], list[Check]]]:
    """Merge the `CASES` of every `parity_*.py` beside this file. A family named twice is a mistake."""
    families: dict[str, Callable[[Case], list[Check]]] = {}
    for path in sorted(HERE.glob("parity_*.py")):
        if path.stem == "parity_case":
            continue
        cases = importlib.import_module(path.stem).CASES
        twice = families.keys() & cases.keys()
        if twice:
            raise RuntimeError(f"{path.name}: families {sorted(twice)} are claimed by another module already")
        families |= cases
    return families


def run_case(json_path: Path, families: dict[str, Callable[[Case], list[Check]]]) -> tuple[Check, list[str]]:
    """The worst check of one case, and the remarks to print about it."""
    import torch

    failed = Check("", float("inf"), 0.0)
    try:
        case = load_case(json_path)
    except CaseError as error:
        return failed, [f"cannot be read: {error}"]
    if case.family not in families:
        return failed, [f"unknown family {case.family!r}; known: {', '.join(sorted(families))}"]
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            checks = families[case.family](case)
    except Exception:
        return failed, ["raised\n" + traceback.format_exc()]
    if not checks:
        return failed, ["nothing was compared"]
    remarks = [f"{c.name}: error {c.error:.3g} > {c.tolerance:.3g}" for c in checks if not c.ok]
    compared = {check.name for check in checks}
    skipped = [name for name in case.outputs if name not in compared and not any(n.startswith(name) for n in compared)]
    if skipped:
        remarks.append(f"not compared: {', '.join(skipped)}")
    return max(checks, key=lambda check: (not check.ok, check.ratio, check.tolerance)), remarks


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    paths = sorted(folder.glob("case_*.json"))
    orphans = sorted(p for p in folder.glob("case_*.safetensors") if not p.with_suffix(".json").exists())
    if not paths and not orphans:
        print(f"{folder}: no case_*.json in this folder", file=sys.stderr)
        return 1

    import torch

    torch.set_num_threads(1)  # the cases are tiny: threads would cost more than they save
    families = load_families()
    misses = 0
    for path in paths:
        worst, remarks = run_case(path, families)
        misses += not worst.ok
        print(f"{path.stem}  {worst.error:.3e}  {worst.tolerance:.3e}  {'ok' if worst.ok else 'MISS'}", flush=True)
        for remark in remarks:
            print(f"  {path.stem}: {remark}", file=sys.stderr)
    for path in orphans:
        misses += 1
        print(f"{path.stem}  {float('inf'):.3e}  {0.0:.3e}  MISS", flush=True)
        print(f"  {path.stem}: cannot be read: no {path.stem}.json beside it", file=sys.stderr)
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
