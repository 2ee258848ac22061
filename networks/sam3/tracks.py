"""What was found, as data: COCO's run lengths, mask files, tracks.json, a summary of the objects."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from networks.sam3.model import Tracked


def rle(mask: np.ndarray) -> dict[str, Any]:
    """A mask [H, W] as COCO's compressed run-length encoding (cocoapi, maskApi.c): runs down the columns, zeros first."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    if counts[-1] == 0 and len(counts) > 1:
        counts.pop()
    return {"size": list(mask.shape), "counts": _letters(counts)}


def _letters(counts: list[int]) -> str:
    """Each count, from the fourth on less the one two before, in groups of 5 bits, the least significant first; bit 5 says that more follows."""
    text = []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            last = value == (-1 if bits & 16 else 0)
            text.append(chr(48 + bits + (0 if last else 32)))
            if last:
                break
    return "".join(text)


def mask_of(encoded: dict[str, Any]) -> np.ndarray:
    """The mask [H, W] (bool) that `rle` has encoded."""
    counts: list[int] = []
    value = shift = 0
    for letter in encoded["counts"]:
        code = ord(letter) - 48
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(encoded["size"], order="F")


class Summary:
    """What is remembered of every object: a few numbers, and its area in each frame."""

    def __init__(self) -> None:
        self.objects: dict[int, dict[str, Any]] = {}
        self.areas: dict[int, list[tuple[int, int]]] = {}

    def add(self, frame: int, found: Tracked) -> None:
        for number, prompt, score, mask in zip(found.ids, found.prompts, found.scores, found.masks, strict=True):
            row = self.objects.setdefault(
                number, {"id": number, "prompt": prompt, "first_frame": frame, "frames": 0, "scores": 0.0}
            )
            row["last_frame"] = frame
            row["frames"] += 1
            row["scores"] += score
            self.areas.setdefault(number, []).append((frame, int(mask.sum())))

    def rows(self) -> list[dict[str, Any]]:
        """One row per object, by id: first and last frame, number of frames, mean score and mean area (pixels)."""
        return [
            {
                "id": row["id"],
                "prompt": row["prompt"],
                "first_frame": row["first_frame"],
                "last_frame": row["last_frame"],
                "frames": row["frames"],
                "mean_score": round(row["scores"] / row["frames"], 4),
                "mean_area": round(sum(area for _, area in self.areas[row["id"]]) / row["frames"], 1),
            }
            for row in sorted(self.objects.values(), key=lambda row: row["id"])
        ]


class TracksFile:
    """tracks.json, written frame by frame: `head`, then `frames`, at the end `objects`."""

    def __init__(self, path: Path, head: dict[str, Any], with_masks: bool):
        self.stream = path.open("w", encoding="utf-8")
        self.with_masks, self.empty = with_masks, True
        self.stream.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "frames": [')

    def add(self, frame: int, seconds: float, found: Tracked) -> None:
        rows = []
        for number, prompt, score, box, mask in zip(
            found.ids, found.prompts, found.scores, found.boxes, found.masks, strict=True
        ):
            row = {"id": number, "prompt": prompt, "score": round(score, 5), "box": box}
            if self.with_masks:
                row["segmentation"] = rle(mask)
            rows.append(row)
        line = json.dumps({"frame": frame, "time": round(seconds, 6), "objects": rows}, ensure_ascii=False)
        self.stream.write(("\n" if self.empty else ",\n") + line)
        self.empty = False

    def finish(self, objects: list[dict[str, Any]]) -> None:
        self.stream.write('\n], "objects": ' + json.dumps(objects, ensure_ascii=False) + "}\n")
        self.stream.close()

    def close(self) -> None:
        self.stream.close()


class MaskFiles:
    """A folder with one folder per object and in it one black and white PNG per frame, also where the object is not to be seen."""

    def __init__(self, folder: Path, shape: tuple[int, int]):
        self.folder, self.shape = folder, shape

    def add(self, frame: int, found: Tracked) -> None:
        for number, mask in zip(found.ids, found.masks, strict=True):
            self._write(number, frame, mask)

    def _write(self, number: int, frame: int, mask: np.ndarray) -> Path:
        from PIL import Image

        path = self.folder / str(number) / f"{frame:06d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(mask.astype(np.uint8) * 255).save(path, format="PNG")
        return path

    def finish(self, frames: range) -> None:
        """Add the empty masks."""
        for folder in sorted(self.folder.iterdir()):
            empty = None
            for frame in frames:
                path = folder / f"{frame:06d}.png"
                if path.exists():
                    continue
                if empty is None:
                    empty = self._write(int(folder.name), frame, np.zeros(self.shape, bool)).read_bytes()
                path.write_bytes(empty)
