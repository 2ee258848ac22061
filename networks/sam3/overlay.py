"""Painting objects into frames without leaving the video's own colour space, so that the rest of the picture stays as it is."""

from dataclasses import dataclass
from typing import Any

import numpy as np

# Colours that are told apart easily, also from each other (Sasha Trubetskoy's list of distinct colours).
PALETTE = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45", "#469990", "#9a6324")
# Weights of red and blue in luma (ITU-R BT.709, BT.601, BT.2020), by FFmpeg's numbers of the matrix.
_LUMA = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
_LUMA_601 = (0.299, 0.114)
FULL_RANGE = 2


@dataclass
class Planes:
    """A YUV picture of 8 bits: y [H, W], u and v of the same size or of half the sides."""

    y: np.ndarray
    u: np.ndarray
    v: np.ndarray

    @property
    def halved(self) -> bool:
        return self.u.shape != self.y.shape

    def copy(self) -> "Planes":
        return Planes(self.y.copy(), self.u.copy(), self.v.copy())

    def array(self) -> np.ndarray:
        """As PyAV takes it: yuv420p stacked [H * 3 / 2, W], or yuv444p [3, H, W]."""
        if not self.halved:
            return np.stack([self.y, self.u, self.v])
        flat = np.concatenate([plane.reshape(-1) for plane in (self.y, self.u, self.v)])
        return flat.reshape(-1, self.y.shape[1])


def pixel_format(width: int, height: int) -> str:
    """yuv420p, or for odd sides, which it cannot have, yuv444p."""
    return "yuv420p" if width % 2 == height % 2 == 0 else "yuv444p"


def planes(frame: Any, turns: int, alpha: bool, colour: tuple[int, int, int, int]) -> Planes:
    """A PyAV frame, upright, as planes; what shows through it is white."""
    height, width = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
    target = pixel_format(width, height)
    if alpha:
        frame = over_white(frame)
    if frame.format.name != target:
        source = None if frame.format.is_rgb else colour[0] or 1
        frame = frame.reformat(
            format=target,
            src_colorspace=_matrix(colour),
            dst_colorspace=_matrix(colour),
            src_color_range=source,
            dst_color_range=colour[0] or 1,
        )
    data = frame.to_ndarray()
    if target == "yuv444p":
        y, u, v = data
    else:
        flat, area = data.reshape(-1), frame.width * frame.height
        half = (frame.height // 2, frame.width // 2)
        y = flat[:area].reshape(frame.height, frame.width)
        u, v = flat[area : area * 5 // 4].reshape(half), flat[area * 5 // 4 :].reshape(half)
    return Planes(*(np.ascontiguousarray(np.rot90(plane, turns)) for plane in (y, u, v)))


def over_white(frame: Any) -> Any:
    """A frame with transparency as an opaque RGB frame on white."""
    from av import VideoFrame

    rgba = frame.to_ndarray(format="rgba").astype(np.uint16)
    share = rgba[..., 3:]
    opaque = (rgba[..., :3] * share + 255 * (255 - share) + 127) // 255
    return VideoFrame.from_ndarray(opaque.astype(np.uint8), format="rgb24")


def yuv(rgb: tuple[int, int, int], colour: tuple[int, int, int, int]) -> tuple[float, float, float]:
    """An RGB colour (0 to 255) in the video's matrix and range (ITU-R BT.601, BT.709)."""
    red, green, blue = (c / 255 for c in rgb)
    wr, wb = _LUMA.get(colour[1], _LUMA_601)
    y = wr * red + (1 - wr - wb) * green + wb * blue
    u, v = (blue - y) / (2 - 2 * wb), (red - y) / (2 - 2 * wr)
    if colour[0] == FULL_RANGE:
        return 255 * y, 128 + 255 * u, 128 + 255 * v
    return 16 + 219 * y, 128 + 224 * u, 128 + 224 * v


def coverage(mask: np.ndarray, halved: bool) -> np.ndarray:
    """Share (0 to 1, float32) of each chroma sample that a mask [H, W] covers."""
    if not halved:
        return mask.astype(np.float32)
    height, width = mask.shape
    return mask.reshape(height // 2, 2, width // 2, 2).mean((1, 3), dtype=np.float32)


def _window(mask: np.ndarray, margin: int) -> tuple[slice, slice] | None:
    """Rows and columns around what is set, on even borders, `margin` wider."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return None
    return tuple(
        slice(max(0, int(places[0]) - margin) // 2 * 2, min(side, (int(places[-1]) + margin + 2) // 2 * 2))
        for places, side in ((rows, mask.shape[0]), (columns, mask.shape[1]))
    )


def _mix(picture: Planes, window: tuple[slice, slice], mask: np.ndarray, target: Planes | tuple, share: float) -> None:
    """Move the pixels under a mask (given inside the window) towards a colour or another picture."""
    half = tuple(slice(s.start // 2, s.stop // 2) for s in window) if picture.halved else window
    for name, index, part, cover in (
        ("y", 0, window, mask.astype(np.float32)),
        ("u", 1, half, None),
        ("v", 2, half, None),
    ):
        cover = coverage(mask, picture.halved) if cover is None else cover
        plane = getattr(picture, name)
        towards = getattr(target, name)[part] if isinstance(target, Planes) else target[index]
        old = plane[part].astype(np.float32)
        plane[part] = np.rint(old + share * cover * (towards - old)).clip(0, 255).astype(np.uint8)


def tint(picture: Planes, mask: np.ndarray, colour: tuple[float, float, float], opacity: float, outline: bool) -> None:
    """Colour an object in place, `opacity` 0 to 1, with an opaque outline inside its border."""
    width = max(1, round(min(mask.shape) / 360))
    window = _window(mask, 0)
    if window is None:
        return
    inner = mask[window]
    _mix(picture, window, inner, colour, opacity)
    if outline:
        _mix(picture, window, border(mask, width)[window], colour, 1.0)


def border(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask at most `width` steps away from its outside (the frame's edge is no outside)."""
    core = np.pad(mask, 1, mode="edge")
    for _ in range(width):
        core[1:-1, 1:-1] &= core[:-2, 1:-1] & core[2:, 1:-1] & core[1:-1, :-2] & core[1:-1, 2:]
        core = np.pad(core[1:-1, 1:-1], 1, mode="edge")
    return mask & ~core[1:-1, 1:-1]


def cut_out(picture: Planes, mask: np.ndarray, background: tuple[float, float, float]) -> Planes:
    """What is under the mask, on a plain background."""
    result = Planes(*(np.empty_like(plane) for plane in (picture.y, picture.u, picture.v)))
    for plane, value in zip((result.y, result.u, result.v), background, strict=True):
        plane[:] = round(value)
    window = _window(mask, 0)
    if window is not None:
        _mix(result, window, mask[window], picture, 1.0)
    return result


def black_and_white(mask: np.ndarray, colour: tuple[int, int, int, int]) -> Planes:
    """A mask as a picture, white on black."""
    black, white = (yuv((level,) * 3, colour)[0] for level in (0, 255))
    y = np.where(mask, np.uint8(round(white)), np.uint8(round(black)))
    shape = mask.shape if pixel_format(mask.shape[1], mask.shape[0]) == "yuv444p" else tuple(s // 2 for s in mask.shape)
    grey = np.full(shape, 128, np.uint8)
    return Planes(y, grey, grey.copy())


def alpha_of(mask: np.ndarray) -> Any:
    """A mask as a PIL image of opacity."""
    from PIL import Image

    return Image.fromarray(mask.astype(np.uint8) * 255)


def image(picture: Planes, colour: tuple[int, int, int, int]) -> Any:
    """Planes as a PIL image in RGB."""
    from av import VideoFrame

    frame = VideoFrame.from_ndarray(picture.array(), format="yuv420p" if picture.halved else "yuv444p")
    rgb = frame.reformat(
        format="rgb24",
        src_colorspace=_matrix(colour),
        dst_colorspace=_matrix(colour),
        src_color_range=colour[0] or 1,
        dst_color_range=FULL_RANGE,
    )
    return rgb.to_image()


def frame_with_alpha(picture: Planes, mask: np.ndarray, ten_bits: bool) -> Any:
    """A PyAV frame with the mask as opacity: yuva420p (of any size), or yuva444p10le for ProRes."""
    from av import VideoFrame

    # FFmpeg's `scale` has no path that keeps our opacity, so the planes are put together here.
    height, width = picture.y.shape
    if ten_bits:
        chroma = [np.repeat(np.repeat(p, 2, 0), 2, 1) if picture.halved else p for p in (picture.u, picture.v)]
        parts = [p.astype("<u2") << 2 for p in (picture.y, *chroma)] + [np.where(mask, 1023, 0).astype("<u2")]
        frame = VideoFrame(width, height, "yuva444p10le")
    else:
        chroma = [p if picture.halved else _halved(p) for p in (picture.u, picture.v)]
        parts = [picture.y, *chroma, mask.astype(np.uint8) * 255]
        frame = VideoFrame(width, height, "yuva420p")
    for plane, part in zip(frame.planes, parts, strict=True):
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        data = np.ascontiguousarray(part).view(np.uint8).reshape(plane.height, -1)
        rows[:, : data.shape[1]] = data
        plane.update(rows.tobytes())
    return frame


def _halved(plane: np.ndarray) -> np.ndarray:
    """A chroma plane at half the size, rounded up: the mean of every 2 x 2 samples."""
    height, width = plane.shape
    even = np.pad(plane, ((0, height % 2), (0, width % 2)), mode="edge")
    return np.rint(even.reshape(-(-height // 2), 2, -(-width // 2), 2).mean((1, 3))).astype(np.uint8)


def _matrix(colour: tuple[int, int, int, int]) -> int:
    """FFmpeg's number of the matrix; what is not said is BT.601, as FFmpeg takes it."""
    return colour[1] if colour[1] not in (0, 2, 3) else 5
