# /// script
# requires-python = ">=3.11"
# dependencies = ["cyclopts>=4.0", "filelock>=3.16"]
# ///
"""Writes a text into a file, in capitals: the smallest script there can be, to try the frame with.

Examples:
  echo_script.py "hello"
  echo_script.py hello there --times 2
  echo_script.py --inputs-from texts.jsonl --json
"""

import dataclasses
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shared_utils.args import item_input, option
from shared_utils.errors import InvalidInputError, PostConditionError, UsageError
from shared_utils.options import CommonOptions
from shared_utils.run import Result, Script, Smoke, run_script


@dataclasses.dataclass(kw_only=True)
class Config(CommonOptions):
    text: str | None = item_input("The text to write.")
    times: int = option(1, "How often to write it.", group="Text", minimum=1, maximum=64, multiple_of=1)
    even: int = option(2, "An even number.", group="Text", multiple_of=2)
    nap: float = option(0.0, "Seconds to wait in the middle of writing.", group="Text", minimum=0.0)
    shout: bool = option(True, "Write capitals.", group="Text")
    per_run: str = option("x", "Something that holds for the whole run.", group="Text", per_item=False)
    attachment: Path | None = option(None, "A file to append.", group="Text")

    def check(self) -> None:
        if self.times > 1 and self.even == 4:
            raise UsageError("--times 2: not together with --even 4")


def generate(model, item: Config, out) -> Result:
    print("a library that talks on stdout")
    text = item.text.upper() if item.shout else item.text
    if "invalid" in item.text:
        raise InvalidInputError(f"{item.text!r}: cannot be written")
    if "broken" in item.text:
        raise RuntimeError("a bug")
    if "memory" in item.text:
        raise MemoryError("cannot allocate a lot")
    path = out.primary(out.stamped("echo", ".txt"))
    with path.open("w") as stream:
        stream.write(text[:1])
        stream.flush()
        time.sleep(item.nap)
        stream.write(text[1:] + f" {item.seed}" * item.times)
        if item.attachment:
            stream.write(item.attachment.read_text())
    out.file("note.txt" if not out.label else f"{out.label}_note.txt", role="report").write_text("n")
    if "fails check" in item.text:
        raise PostConditionError("the text is wrong")
    return Result(report={"letters": len(text)})


SCRIPT = Script(
    name="echo",
    file=__file__,
    docstring=__doc__,
    config=Config,
    generate=generate,
    smoke_test=lambda folder: Smoke(inputs=("smoke",), settings={"times": 3}),
)

if __name__ == "__main__":
    sys.exit(run_script(SCRIPT))
