"""ConfigFile: `run.json`, the record of a run, written once and replayed with `--config`."""

import json
from pathlib import Path
from typing import Any

from shared_utils.errors import ConfigError, MissingInputError
from shared_utils.output_dir import atomic

SCHEMA = "generation-scripts/run/1"


class ConfigFile:
    """One `run.json`. Its `config` object holds a flag's value under the flag's long name with `_` for `-`."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, record: dict[str, Any]) -> None:
        """Write the record atomically as indented UTF-8 JSON with `schema` in front."""
        with atomic(self.path) as partial:
            partial.write_text(
                json.dumps({"schema": SCHEMA, **record}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )

    def load(self) -> dict[str, Any]:
        """Return the whole record.

        Raises `MissingInputError` when there is no such file and `ConfigError` when it is not a record of a run.
        """
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise MissingInputError(f"--config {self.path}: no such file") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"--config {self.path}: cannot be read as JSON ({error})") from None
        if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
            raise ConfigError(f"--config {self.path}: not the run.json of a run (no 'config' object)")
        return record

    def values(self, tool: str) -> dict[str, Any]:
        """Return the recorded flag values. Raises `ConfigError` when another tool recorded them."""
        record = self.load()
        if record.get("tool", tool) != tool:
            raise ConfigError(f"--config {self.path}: recorded by {record['tool']}, not by {tool}")
        return record["config"]
