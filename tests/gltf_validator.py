"""Khronos' own glTF validator (npm package `gltf-validator`), run by node. Installed once into the repository's cache folder."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

_FOLDER = Path(__file__).resolve().parent.parent / ".cache" / "gltf-validator"
_VERSION = "2.0.0-dev.3.10"
_SCRIPT = """
const validator = require('gltf-validator'), fs = require('fs');
(async () => {
  const reports = [];
  for (const path of process.argv.slice(1)) {
    const report = await validator.validateBytes(new Uint8Array(fs.readFileSync(path)), {maxIssues: 1000});
    reports.push({path, errors: report.issues.messages.filter(issue => issue.severity === 0)});
  }
  console.log(JSON.stringify(reports));
})();
"""


def _installed() -> Path:
    module = _FOLDER / "node_modules" / "gltf-validator"
    if not (module / "package.json").is_file():
        node, npm = shutil.which("node"), shutil.which("npm")
        if not node or not npm:
            pytest.skip("node and npm are not installed: Khronos' glTF validator cannot run")
        from filelock import FileLock

        _FOLDER.mkdir(parents=True, exist_ok=True)
        with FileLock(_FOLDER / "lock"):
            if not (module / "package.json").is_file():
                command = [
                    npm,
                    "install",
                    "--prefix",
                    str(_FOLDER),
                    "--no-audit",
                    "--no-fund",
                    f"gltf-validator@{_VERSION}",
                ]
                done = subprocess.run(command, capture_output=True, text=True, timeout=180)
                if done.returncode:
                    pytest.skip(f"npm could not install gltf-validator: {done.stderr.strip().splitlines()[-1:]}")
    return _FOLDER / "node_modules"


def assert_valid_glb(*paths: Path) -> None:
    """No errors in any of these files. Skips the test, with the reason, where the validator cannot be had."""
    environment = os.environ | {"NODE_PATH": str(_installed())}
    command = ["node", "-e", _SCRIPT, "--", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout)
    assert len(reports) == len(paths)
    for report in reports:
        assert report["errors"] == [], report["path"]
