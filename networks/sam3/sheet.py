"""Pictures that sum a video up: frames spread over it with the objects' numbers, and the objects' areas as curves."""

import itertools
from pathlib import Path
from typing import Any

from networks.sam3.model import Tracked
from networks.sam3.tracks import Summary

COLUMNS, CELLS, CELL = 4, 12, 320  # pictures across and in all; pixels of a picture's longer side


class ContactSheet:
    """Collects small pictures of some frames. `frames` are all that will come."""

    def __init__(self, frames: range):
        count = min(CELLS, len(frames))
        self.chosen = {frames[round(i * (len(frames) - 1) / max(1, count - 1))] for i in range(count)}
        self.cells: list[Any] = []

    def wants(self, frame: int) -> bool:
        return frame in self.chosen

    def add(self, frame: int, seconds: float, picture: Any, found: Tracked) -> None:
        """picture: the painted frame, a PIL image at the video's size."""
        from PIL import Image, ImageDraw, ImageFont

        scale = CELL / max(picture.size)
        cell = picture.convert("RGB").resize(
            tuple(max(1, round(side * scale)) for side in picture.size), Image.Resampling.BILINEAR
        )
        draw, font = ImageDraw.Draw(cell), ImageFont.load_default(size=14)
        for number, (x0, y0, x1, y1) in zip(found.ids, found.boxes, strict=True):
            # The middle of the box, so far from the border that the number can be read.
            centre = [
                min(max(middle * scale, 10), side - 10)
                for middle, side in zip(((x0 + x1 + 1) / 2, (y0 + y1 + 1) / 2), cell.size, strict=True)
            ]
            draw.text(centre, str(number), fill="white", stroke_fill="black", stroke_width=2, anchor="mm", font=font)
        label = f"{frame}  {seconds:.2f} s"
        draw.text((4, 2), label, fill="white", stroke_fill="black", stroke_width=2, font=font)
        self.cells.append(cell)

    def save(self, path: Path) -> None:
        from PIL import Image

        width, height = self.cells[0].size
        columns = min(COLUMNS, len(self.cells))
        rows = -(-len(self.cells) // columns)
        sheet = Image.new("RGB", (columns * (width + 4) + 4, rows * (height + 4) + 4), "white")
        for index, cell in enumerate(self.cells):
            sheet.paste(cell, (4 + index % columns * (width + 4), 4 + index // columns * (height + 4)))
        sheet.save(path, format="PNG")


def plot_areas(path: Path, summary: Summary, frames: range, colours: dict[int, str]) -> None:
    """Curves of the objects' areas (pixels) over the frames, with a legend: id, prompt, mean score."""
    from PIL import Image, ImageDraw, ImageFont

    rows = summary.rows()
    left, top, width, height, line = 80, 20, 720, 320, 18
    picture = Image.new("RGB", (left + width + 20, top + height + 40 + line * max(1, len(rows))), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=13)
    highest = max((area for areas in summary.areas.values() for _, area in areas), default=0) or 1
    draw.rectangle((left, top, left + width, top + height), outline="#808080")
    draw.text((left - 6, top), str(highest), fill="black", anchor="rm", font=font)
    draw.text((left - 6, top + height), "0", fill="black", anchor="rm", font=font)
    draw.text((left, top + height + 4), f"frame {frames[0]}", fill="black", font=font)
    draw.text((left + width, top + height + 4), str(frames[-1]), fill="black", anchor="ra", font=font)
    for index, row in enumerate(rows):
        colour = colours[row["id"]]
        for stretch in _stretches(summary.areas[row["id"]]):
            points = [
                (left + width * (frame - frames[0]) / max(1, len(frames) - 1), top + height * (1 - area / highest))
                for frame, area in stretch
            ]
            draw.line(points, fill=colour, width=2)
            x, y = points[0]
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
        y = top + height + 30 + index * line
        draw.rectangle((left, y, left + 10, y + 10), fill=colour)
        text = (
            f"{row['id']}  {row['prompt']}  frames {row['first_frame']}-{row['last_frame']}  score {row['mean_score']}"
        )
        draw.text((left + 18, y - 3), text[:110], fill="black", font=font)
    if not rows:
        draw.text((left, top + height + 30), "no object", fill="black", font=font)
    picture.save(path, format="PNG")


def _stretches(areas: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Frames and areas cut where the object is not to be seen for a while."""
    cuts = [0, *(i for i in range(1, len(areas)) if areas[i][0] > areas[i - 1][0] + 1), len(areas)]
    return [areas[begin:end] for begin, end in itertools.pairwise(cuts)]
