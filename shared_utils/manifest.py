"""`items.jsonl`: one line per finished or failed item of a run folder; what `--resume` reads."""

import json
from pathlib import Path
from typing import Any

from shared_utils.output_dir import append_line, size


class Manifest:
    """The manifest of one run folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / "items.jsonl"

    def append(self, record: dict[str, Any], base_seed: int | None, stamp: str) -> None:
        """Add one item's record, with what a resumed run has to take over: the run's seed and its time stamp."""
        append_line(self.path, {**record, "base_seed": base_seed, "stamp": stamp})

    def records(self) -> list[dict[str, Any]]:
        """All records in order. A last line that a kill cut short is left out."""
        if not self.path.is_file():
            return []
        rows = []
        for line in self.path.read_text(encoding="utf-8").split("\n"):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and "key" in row:
                rows.append(row)
        return rows

    def begun_with(self, name: str) -> Any:
        """`base_seed` or `stamp` of the run that began this folder; None for a new folder."""
        return next((row[name] for row in self.records() if row.get(name) is not None), None)

    def finished(self) -> dict[str, dict[str, Any]]:
        """Records of items that are done and whose files are there with their recorded sizes, by the item's key."""
        done = {}
        for row in self.records():
            if (
                row.get("status") == "ok"
                and row.get("outputs") is not None
                and all(self._present(output) for output in row["outputs"])
            ):
                done[row["key"]] = row
            else:
                done.pop(row["key"], None)
        return done

    def _present(self, output: dict[str, Any]) -> bool:
        path = self.folder / output["path"]
        return path.exists() and size(path) == output["bytes"]
