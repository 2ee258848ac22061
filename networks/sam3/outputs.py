"""The files of one input while they are being written: overlay, masks, tracks, contact sheet, summary, archive."""

import contextlib
import zipfile
from pathlib import Path
from typing import Any

from PIL import ImageColor

from networks.sam3 import overlay
from networks.sam3.encode import VideoWriter, check_video
from networks.sam3.sheet import ContactSheet, plot_areas
from networks.sam3.source import Source
from networks.sam3.tracks import MaskFiles, Summary, TracksFile
from shared_utils.output_dir import remove


class Outputs:
    """The files of one item while they are being written. Enter it, `add` every frame in order, leave it, then `finish`.

    `item` are the settings (`mask_only`, `masks`, …), `main` is the name of the main result, `names` are the prompts and the
    names of seeded objects.
    """

    def __init__(self, run: Any, item: Any, source: Source, out: Any, main: str, names: list[str]):
        self.run, self.item, self.source, self.out = run, item, source, out
        self.names = [*dict.fromkeys(names)]
        self.colours: dict[int, str] = {}
        self.summary, self.sheet = Summary(), ContactSheet(source.frames)
        self.paths: list[Path] = []
        clip = source.clip
        self.main = self.path(main, "primary")
        self.mask_video = self.path("mask.png" if source.is_still else "mask.mp4") if item.mask_video else None
        head = {
            "schema": "generation-scripts/tracks/1",
            "source": item.input.absolute().name,
            "width": clip.width,
            "height": clip.height,
            "frames_per_second": round(float(clip.rate), 6),
            "prompts": self.names,
        }
        self.tracks = TracksFile(self.path("tracks.json"), head, with_masks=item.masks != "png")
        self.mask_files = None
        if item.masks != "rle":
            self.mask_files = MaskFiles(self.directory("masks"), (clip.height, clip.width))
        self.stack = contextlib.ExitStack()
        self.writers: dict[Path, Any] = {}

    def path(self, name: str, role: str = "file") -> Path:
        """The partial path of a result, which also goes into the archive. A main result without a suffix is a folder."""
        path = self.out.primary(name) if role == "primary" else self.out.file(name, role)
        if role == "primary" and not Path(name).suffix:
            remove(path)
            path.mkdir()
        self.paths.append(path)
        return path

    def directory(self, name: str) -> Path:
        path = self.out.directory(name)
        self.paths.append(path)
        return path

    def __enter__(self) -> "Outputs":
        if self.source.is_still:
            return self
        source, clip = self.source, self.source.clip
        plain = overlay.pixel_format(clip.width, clip.height)
        if plain != "yuv420p":
            self.run.info(f"{clip.width} x {clip.height} is odd: the video has full colour resolution ({plain})")
        h264 = ("libx264", plain, {"crf": str(self.item.crf), "preset": "medium"})
        codec = h264
        if self.transparent:
            codec = {
                "webm": ("libvpx-vp9", "yuva420p", {"crf": "24", "b": "0", "auto-alt-ref": "0"}),
                "prores": ("prores_ks", "yuva444p10le", {"profile": "4444"}),
                "png": None,
            }[self.item.alpha]
        if codec:
            self.open(self.main, codec, source.audio)
        if self.mask_video:
            self.open(self.mask_video, h264, None)
        return self

    def open(self, path: Path, codec: tuple, audio: Path | None) -> None:
        source = self.source
        self.writers[path] = self.stack.enter_context(
            VideoWriter(path, source.clip, source.first, source.last, *codec, audio)
        )

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def close(self) -> None:
        self.tracks.close()

    @property
    def transparent(self) -> bool:
        return self.item.mask_only and self.item.background == "transparent"

    def colour(self, number: int, name: str) -> str:
        """Colour of an object: of its prompt where there are several, otherwise of its place among the objects seen."""
        if number not in self.colours:
            place = self.names.index(name) if len(self.names) > 1 else len(self.colours)
            given = self.item.mask_color or ("auto",)
            chosen = given[place % len(given)]
            self.colours[number] = overlay.PALETTE[place % len(overlay.PALETTE)] if chosen == "auto" else chosen
        return self.colours[number]

    def add(self, index: int, frame: Any, found: Any) -> None:
        """Write frame `index` in all its forms."""
        clip, item = self.source.clip, self.item
        seconds = clip.seconds(index)
        self.summary.add(index, found)
        self.tracks.add(index, seconds, found)
        if self.mask_files:
            self.mask_files.add(index, found)
        together = found.masks.any(0)
        picture = overlay.planes(frame, clip.turns, clip.alpha, clip.colour)
        colours = [
            overlay.yuv(ImageColor.getrgb(self.colour(number, name))[:3], clip.colour)
            for number, name in zip(found.ids, found.prompts, strict=True)
        ]
        if item.mask_only and not self.transparent:
            background = overlay.yuv(ImageColor.getrgb(item.background)[:3], clip.colour)
            picture = overlay.cut_out(picture, together, background)
        elif not item.mask_only:
            for mask, colour in zip(found.masks, colours, strict=True):
                overlay.tint(picture, mask, colour, item.mask_opacity, item.outline)
        self.write_main(index, picture, together)
        if self.mask_video:
            self.write(self.mask_video, index, overlay.black_and_white(together, clip.colour))
        if self.sheet.wants(index):
            self.sheet.add(index, seconds, overlay.image(picture, clip.colour), found)

    def write_main(self, index: int, picture: Any, mask: Any) -> None:
        if not self.transparent:
            self.write(self.main, index, picture)
            return
        cut = overlay.image(picture, self.source.clip.colour)
        cut.putalpha(overlay.alpha_of(mask))
        if self.source.is_still:
            cut.save(self.main, format="PNG")
        elif self.item.alpha == "png":
            cut.save(self.main / f"{index:06d}.png", format="PNG")
        else:
            self.writers[self.main].add(index, overlay.frame_with_alpha(picture, mask, self.item.alpha == "prores"))

    def write(self, path: Path, index: int, picture: Any) -> None:
        if self.source.is_still:
            overlay.image(picture, self.source.clip.colour).save(path, format="PNG")
        else:
            self.writers[path].add(index, picture)

    def finish(self) -> None:
        """What can be written only at the end, and the post-conditions."""
        source = self.source
        for path in self.writers:
            check_video(path, self.out.final(path).name, source.clip, source.first, source.last)
        self.tracks.finish(self.summary.rows())
        if self.mask_files:
            self.mask_files.finish(source.frames)
        sheet = self.path("contact_sheet.png", "preview")
        self.sheet.save(sheet)
        plot_areas(self.path("summary.png", "preview"), self.summary, source.frames, self.colours)
        if self.item.return_zip:
            self.archive(self.out.file("results.zip"))

    def archive(self, target: Path) -> None:
        """All results of this item, under their final names; the same results give the same bytes."""
        with zipfile.ZipFile(target, "w") as archive:
            for path in self.paths:
                files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
                for file in files:
                    name = Path(self.out.final(path).name) / file.relative_to(path) if path.is_dir() else None
                    info = zipfile.ZipInfo((name or Path(self.out.final(path).name)).as_posix(), (1980, 1, 1, 0, 0, 0))
                    info.compress_type = zipfile.ZIP_DEFLATED if file.suffix == ".json" else zipfile.ZIP_STORED
                    with file.open("rb") as source, archive.open(info, "w", force_zip64=True) as stream:
                        while block := source.read(1 << 20):
                            stream.write(block)
