"""Writing video with PyAV: every frame at its own time, the colours labelled as they are, the audio copied."""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from networks.sam3.overlay import Planes
from shared_utils.errors import PostConditionError
from shared_utils.video import Clip


class VideoWriter:
    """A video file that is being written. Use it as a context manager; frames come in order through `add`.

    codec: libx264, libvpx-vp9 or prores_ks, with its pixel format and options. audio: the file whose audio tracks go along;
    `first` and `last` are the indices of the first frame and the one after the last in `clip`.
    """

    def __init__(
        self,
        path: Path,
        clip: Clip,
        first: int,
        last: int,
        codec: str,
        pixel_format: str,
        options: dict[str, str],
        audio: Path | None,
    ):
        self.clip, self.pixel_format = clip, pixel_format
        begin = clip.pts[first] * clip.time_base
        if first == 0 and audio is not None and clip.audio_start is not None:
            begin = min(begin, Fraction(clip.audio_start).limit_denominator(1_000_000))
        end = (clip.pts[last - 1] + clip.duration(last - 1)) * clip.time_base
        self.offset = round(begin / clip.time_base)
        self.durations: dict[int, int] = {}
        # Absolute, for FFmpeg takes what comes before a colon as a protocol.
        self.container = av.open(os.path.abspath(path), "w")
        if codec == "libx264" and clip.is_variable:
            # MP4 adds its duration up from the times of decoding, which with B-frames are not those of display.
            options = options | {"bf": "0"}
        stream = self.container.add_stream(codec, rate=clip.rate, options=options)
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, pixel_format
        stream.time_base = stream.codec_context.time_base = clip.time_base
        if clip.aspect:
            stream.codec_context.sample_aspect_ratio = clip.aspect
        context = stream.codec_context
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = clip.colour
        self.stream = stream
        starts, ends = begin if first else None, end if last < len(clip.pts) else None
        self.audio = audio_tracks(self.container, audio, begin, starts, ends) if audio else []

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        try:
            if kind is None:
                self._mux(self.stream.encode(None))
                for track in self.audio:
                    track.copy_until(None)
        finally:
            for track in self.audio:
                track.source.close()
            self.container.close()

    def add(self, index: int, picture: Planes | av.VideoFrame) -> None:
        """Frame `index` of the clip."""
        if isinstance(picture, Planes):
            picture = av.VideoFrame.from_ndarray(picture.array(), format=self.pixel_format)
        frame = picture
        pts = self.clip.pts[index] - self.offset
        frame.pts, frame.time_base = pts, self.clip.time_base
        frame.color_range, frame.colorspace = self.clip.colour[:2]
        self.durations[pts] = self.clip.duration(index)
        self._mux(self.stream.encode(frame))
        for track in self.audio:
            track.copy_until(self.clip.pts[index] * self.clip.time_base)

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            # The encoder knows when a frame begins, not when the last one ends.
            pts = round(packet.pts * packet.time_base / self.clip.time_base)
            packet.duration = round(self.durations.pop(pts) * self.clip.time_base / packet.time_base)
            self.container.mux(packet)


def audio_tracks(
    container: Any, path: Path, zero: Fraction, starts: Fraction | None, ends: Fraction | None
) -> list["AudioTrack"]:
    """All audio tracks of a file, on their way into `container`."""
    with av.open(os.path.abspath(path)) as source:
        count = len(source.streams.audio)
    return [AudioTrack(container, path, number, zero, starts, ends) for number in range(count)]


class AudioTrack:
    """An audio track of a file on its way into another, packet by packet.

    `zero` is the time in the source that is 0 in the target; what begins before `starts` or from `ends` on stays out
    (seconds in the source; None: nothing does).
    """

    def __init__(
        self,
        container: Any,
        path: Path,
        number: int,
        zero: Fraction,
        starts: Fraction | None,
        ends: Fraction | None,
    ):
        self.container, self.zero, self.starts, self.ends = container, zero, starts, ends
        self.source = av.open(os.path.abspath(path))
        self.input = self.source.streams.audio[number]
        self.copied = self.input.codec_context.name in container.supported_codecs
        if self.copied:
            self.output = container.add_stream_from_template(self.input)
            self.packets = self._copies()
        else:
            # FFmpeg's own Opus encoder is experimental, and Opus knows 48 kHz best.
            webm = container.default_audio_codec in ("opus", "vorbis")
            codec, rate = ("libopus", 48000) if webm else (container.default_audio_codec, self.input.rate)
            self.output = container.add_stream(codec, rate=rate)
            # Bare samples name no layout, only a number of channels.
            self.layout = {1: "mono", 2: "stereo"}.get(self.input.channels, self.input.layout.name)
            self.output.layout = self.layout
            self.packets = self._encoded()
        self.waiting: Any = None

    def copy_until(self, time: Fraction | None) -> None:
        """Hand on what begins up to `time` (seconds in the source), or all the rest."""
        while True:
            self.waiting = self.waiting or next(self.packets, None)
            if self.waiting is None:
                return
            begins, packet = self.waiting
            if time is not None and begins > time:
                return
            self.container.mux(packet)
            self.waiting = None

    def _copies(self) -> Iterator[tuple[Fraction, Any]]:
        for packet in self.source.demux(self.input):
            if packet.dts is None or packet.pts is None:
                continue
            begins = packet.pts * packet.time_base
            if self._outside(begins):
                continue
            shift = round(self.zero / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, self.output
            yield begins, packet

    def _encoded(self) -> Iterator[tuple[Fraction, Any]]:
        begins = self.zero
        context = self.output.codec_context
        # The encoder's own sample format, rate and frame length, whatever the sound comes in.
        formats = [f.name for f in context.codec.audio_formats]
        context.format = "fltp" if "fltp" in formats else formats[0]
        fitted = av.AudioResampler(context.format, self.layout, context.sample_rate, 1024)
        for frame in self.source.decode(self.input):
            begins = frame.pts * frame.time_base
            if self._outside(begins):
                continue
            frame.pts -= round(self.zero / frame.time_base)
            for part in fitted.resample(frame):
                for packet in self.output.encode(part):
                    yield begins, packet
        for packet in self.output.encode(None):
            yield begins, packet

    def _outside(self, begins: Fraction) -> bool:
        return (self.starts is not None and begins < self.starts) or (self.ends is not None and begins >= self.ends)


def check_video(path: Path, name: str, clip: Clip, first: int, last: int) -> None:
    """The file has the frames, size and duration it should. Raises `PostConditionError`."""
    with av.open(os.path.abspath(path)) as container:
        stream = container.streams.video[0]
        size = stream.codec_context.width, stream.codec_context.height
        times = sorted(float(p.pts * p.time_base) for p in container.demux(stream) if p.pts is not None)
    if len(times) != last - first:
        raise PostConditionError(f"{name}: {len(times)} frames written, {last - first} read")
    if size != (clip.width, clip.height):
        raise PostConditionError(f"{name}: {size[0]} x {size[1]} written, {clip.width} x {clip.height} read")
    wanted = clip.seconds(last - 1) - clip.seconds(first)
    if abs(times[-1] - times[0] - wanted) > float(1 / clip.rate):
        raise PostConditionError(f"{name}: lasts {times[-1] - times[0]:.3f} s up to the last frame, not {wanted:.3f} s")
