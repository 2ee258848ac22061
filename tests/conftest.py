import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

# Several OpenMP threads on a busy machine of two cores spin against each other and cost three times the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Where Python is told to keep no bytecode, as in some containers, every process would compile its libraries anew: two
# thirds of the time it takes to import them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests run only when asked for, by `-m slow` or by name."""
    if config.option.markexpr or any("::" in arg for arg in config.args):
        return
    skip = pytest.mark.skip(reason="slow; run with -m slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)
