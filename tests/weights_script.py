"""Lists the weights it was given: the smallest script that needs some, to try downloads with.

Examples:
  weights_script.py "hello"
  weights_script.py "hello" --dry-run
  weights_script.py "hello" --model other/repository --offline
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shared_utils.args import item_input
from shared_utils.hugging_face import Weights
from shared_utils.options import ModelOptions
from shared_utils.run import Result, Script, run_script


@dataclasses.dataclass(kw_only=True)
class Config(ModelOptions):
    text: str | None = item_input("A text.")


def generate(model, item: Config, out) -> Result:
    path = out.primary(out.stamped("weights", ".txt"))
    path.write_text("\n".join(model.files))
    return Result()


SCRIPT = Script(
    name="weights",
    file=__file__,
    docstring=__doc__,
    config=Config,
    load=lambda config, run: run.weights(),
    generate=generate,
    weights={"model": Weights("org/model")},
)

if __name__ == "__main__":
    raise SystemExit(run_script(SCRIPT))
