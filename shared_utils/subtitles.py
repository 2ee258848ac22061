"""Subtitles: SubRip (srt), WebVTT (vtt) and JSON, written cue by cue."""

import dataclasses
import json
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

LINE = (
    42  # characters: a usual limit for subtitles in Latin script (Netflix Timed Text Style Guide, General Requirements)
)
CUE = 2 * LINE  # two lines
CUE_SECONDS = 7.0  # the longest a subtitle stays (same source)


@dataclasses.dataclass
class TimedText:
    """A word, or a stretch without finer times, from `start` to `end` seconds. `space`: white space follows."""

    start: float
    end: float
    text: str
    space: bool = True


@dataclasses.dataclass
class Cue:
    """What is shown at once."""

    parts: list[TimedText]

    @property
    def start(self) -> float:
        return self.parts[0].start

    @property
    def end(self) -> float:
        return self.parts[-1].end

    @property
    def text(self) -> str:
        return joined(self.parts)


def joined(parts: Iterable[TimedText]) -> str:
    return "".join(p.text + (" " if p.space else "") for p in parts).strip()


def cues(parts: list[TimedText], single: bool = False) -> Iterator[Cue]:
    """Group the parts of a sentence into cues that fit two lines and seven seconds; `single` makes one of each part.

    Breaks come before the part that would not fit, or after a comma or the like in the second half of what did.
    """
    waiting: list[TimedText] = []
    for part in parts:
        if waiting and (single or len(joined([*waiting, part])) > CUE or part.end - waiting[0].start > CUE_SECONDS):
            at = 0 if single else _clause_end(waiting)
            yield Cue(waiting[:at] if at else waiting)
            waiting = waiting[at:] if at else []
        # Marks are no words: they stay with what they follow.
        if single and waiting and not any(c.isalnum() for c in part.text):
            waiting.append(part)
            continue
        waiting.append(part)
    if waiting:
        yield Cue(waiting)


def _clause_end(parts: list[TimedText]) -> int:
    """How many parts go before a break: up to the last clause mark in the second half, or 0 for all of them."""
    for i in range(len(parts) - 1, len(parts) // 2, -1):
        if parts[i - 1].text[-1:] in ",;:—、，；：)":
            return i
    return 0


class SubtitleWriter:
    """Writes cues into one file; use as a context manager. `kind` is `srt`, `vtt` or `json`."""

    def __init__(self, path: Path, kind: str):
        self.kind = kind
        self.count = 0
        self._file: TextIO = path.open("w", encoding="utf-8", newline="\n")
        if kind == "vtt":
            self._file.write("WEBVTT\n")
        elif kind == "json":
            self._file.write('{"cues": [')

    def __enter__(self) -> "SubtitleWriter":
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        if kind is None and self.kind == "json":
            self._file.write("\n]}\n")
        self._file.close()

    def write(self, cue: Cue) -> None:
        self.count += 1
        if self.kind == "json":
            words = [{"start": round(p.start, 3), "end": round(p.end, 3), "text": p.text} for p in cue.parts]
            record = {"start": round(cue.start, 3), "end": round(cue.end, 3), "text": cue.text, "words": words}
            self._file.write((",\n" if self.count > 1 else "\n") + json.dumps(record, ensure_ascii=False))
        elif self.kind == "srt":
            times = f"{timestamp(cue.start, ',')} --> {timestamp(cue.end, ',')}"
            self._file.write(f"{self.count}\n{times}\n{_lines(cue.text)}\n\n")
        else:
            times = f"{timestamp(cue.start, '.')} --> {timestamp(cue.end, '.')}"
            self._file.write(f"\n{times}\n{_vtt_text(cue)}\n")


def timestamp(seconds: float, mark: str) -> str:
    """`00:01:02,345`, with `mark` before the milliseconds."""
    total = round(1000 * seconds)
    return f"{total // 3_600_000:02}:{total // 60_000 % 60:02}:{total // 1000 % 60:02}{mark}{total % 1000:03}"


def _lines(text: str) -> str:
    return "\n".join(textwrap.wrap(text, LINE, break_long_words=False, break_on_hyphens=False)) or text


def _vtt_text(cue: Cue) -> str:
    """The text with the time of each word inside (WebVTT cue timestamp tags), escaped."""
    shown = ""
    for i, part in enumerate(cue.parts):
        text = part.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        # Tags have to lie inside the cue and rise.
        if i and part.start > cue.parts[i - 1].start:
            shown += f"<{timestamp(part.start, '.')}>"
        shown += text + (" " if part.space else "")
    return shown.strip()
