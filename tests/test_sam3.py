"""sam3_video_segmentation.py end to end on a tiny random checkpoint, against direct calls of transformers; video in and out."""

import json
import subprocess
import time
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from fake_hub import FakeHub
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from processes import everything_in, json_lines
from warm import Warm

SCRIPT = "sam3_video_segmentation.py"
REPO = "facebook/sam3"
FP32 = ("--dtype", "fp32", "--seed", 1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from tiny_checkpoints import sam3

    folder = sam3.build(tmp_path_factory.mktemp("sam3"))
    # Confirm objects often and easily: conditioning frames pile up, as they do in long videos.
    config = json.loads((folder / "config.json").read_text())
    config |= {"recondition_every_nth_frame": 3, "high_conf_thresh": 0.1, "high_iou_thresh": 0.01}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def warm():
    with Warm("torch", "from transformers import Sam3VideoModel, Sam3VideoProcessor", "av") as server:
        yield server


@pytest.fixture(scope="module")
def loaded(checkpoint):
    import torch

    from networks.sam3.model import load_network

    return load_network(checkpoint, torch.float32, "cpu")


@pytest.fixture
def segment(warm, checkpoint, tmp_path):
    def call(*args, **env):
        return warm.run(SCRIPT, *args, "--model", checkpoint, *FP32, cwd=tmp_path, **env)

    return call


def picture(index: int, size: tuple[int, int]) -> np.ndarray:
    width, height = size
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 0], rgb[..., 1], rgb[..., 2] = 90, np.linspace(40, 200, width), 60 + index % 8 * 8
    rgb[height // 4 : height // 2, 4 + index % 20 * 2 : 24 + index % 20 * 2] = (220, 60, 30)
    return rgb


def video(
    path: Path,
    count: int = 6,
    size=(96, 64),
    fmt="yuv420p",
    codec="libx264",
    times=None,
    sound=None,
    rotation=0,
    colour=None,
    start=0.0,
) -> Path:
    """A film of a moving square; `times` in seconds, `sound` the audio codec, `rotation` in degrees, `colour` as in Clip."""
    with av.open(str(path), "w") as container:
        options = {"crf": "10", "bf": "0" if times else "3"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if colour:
            context = stream.codec_context
            context.color_range, context.colorspace, context.color_primaries, context.color_trc = colour
        audio = container.add_stream(sound, rate=48000) if sound else None
        if audio:
            audio.layout = "mono"
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(picture(index, size), format="rgb24").reformat(format=fmt)
            seconds = (times[index] if times else index / 25) + start
            frame.pts, frame.time_base = round(seconds * 1000), Fraction(1, 1000)
            if colour:
                frame.color_range, frame.colorspace = colour[:2]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio:
            wave = np.sin(np.arange(int(48000 * count / 25)) / 20).astype(np.float32)[None]
            for begin in range(0, wave.shape[1], 1024):
                piece = av.AudioFrame.from_ndarray(wave[:, begin : begin + 1024], format="fltp", layout="mono")
                piece.sample_rate, piece.pts, piece.time_base = 48000, begin, Fraction(1, 48000)
                container.mux(audio.encode(piece))
            container.mux(audio.encode(None))
    if rotation:
        turned = path.with_name("turned-" + path.name)
        ffmpeg("-display_rotation", rotation, "-i", path, "-c", "copy", turned)
        return turned
    return path


def ffmpeg(*args) -> str:
    """Run imageio-ffmpeg's ffmpeg and return what it says."""
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-y", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stderr


def facts(path: Path) -> dict:
    """What another reader sees of a video: times (seconds from the first frame), size, colour labels, audio."""
    with av.open(str(path)) as container:
        frames = list(container.decode(container.streams.video[0]))
        first = frames[0]
        seen = {
            "duration": container.duration / 1e6,
            "size": (first.width, first.height),
            "times": [float((f.pts - first.pts) * f.time_base) for f in frames],
            "colour": tuple(
                int(v) for v in (first.color_range, first.colorspace, first.color_primaries, first.color_trc)
            ),
            "format": first.format.name,
            "codec": container.streams.video[0].codec_context.name,
            "luma": [f.to_ndarray()[: f.height] for f in frames if f.format.name == "yuv420p"],
            "pictures": [f.to_ndarray(format="rgb24") for f in frames],
        }
    with av.open(str(path)) as container:
        packets = [bytes(p) for p in container.demux(audio=0) if p.size] if container.streams.audio else []
    return seen | {"audio": packets}


def folder_of(done) -> Path:
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[0]).parent


def masks_in(tracks: Path) -> dict[int, dict[int, np.ndarray]]:
    from networks.sam3.tracks import mask_of

    frames = json.loads(tracks.read_text())["frames"]
    return {f["frame"]: {o["id"]: mask_of(o["segmentation"]) for o in f["objects"]} for f in frames}


def direct(checkpoint: Path, path: Path, prompts: list[str], cleanup: bool) -> dict[int, dict[int, np.ndarray]]:
    """transformers as its documentation uses it: all frames in memory, nothing dropped."""
    import torch
    from transformers import Sam3VideoModel, Sam3VideoProcessor

    from networks.sam3.cleanup import install

    install(cleanup)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    model = Sam3VideoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    processor = Sam3VideoProcessor.from_pretrained(checkpoint)
    session = processor.init_video_session(video=frames, inference_device="cpu", dtype=torch.float32)
    processor.add_text_prompt(session, prompts)
    found = {}
    for output in model.propagate_in_video_iterator(session):
        result = processor.postprocess_outputs(session, output)
        found[output.frame_idx] = dict(zip(result["object_ids"].tolist(), result["masks"].numpy(), strict=True))
    conditioning = [len(o["cond_frame_outputs"]) for o in session.output_dict_per_obj.values()]
    assert max(conditioning) > model.config.tracker_config.max_cond_frame_num
    return found


@pytest.mark.parametrize("cleanup", [True, False])
def test_masks_equal_a_direct_run_over_more_frames_than_are_remembered(segment, checkpoint, tmp_path, cleanup):
    path = video(tmp_path / "long.mp4", 44)
    flags = [] if cleanup else ["--no-cleanup"]
    done = segment(path, "--prompt", "person", "--prompt", "red car", "--masks", "rle", *flags)
    ours = masks_in(folder_of(done) / "tracks.json")
    theirs = direct(checkpoint, path, ["person", "red car"], cleanup)
    assert list(ours) == list(theirs) == list(range(44))
    assert sum(mask.any() for masks in theirs.values() for mask in masks.values()) > 44
    for frame, masks in theirs.items():
        assert masks.keys() == ours[frame].keys()
        for number, mask in masks.items():
            assert np.array_equal(mask, ours[frame][number]), (frame, number)


def followed(loaded, count: int, prompts: tuple[str, ...], seeds=(), **options) -> list[dict[int, np.ndarray]]:
    """Masks by object, of every frame of a film of moving squares."""
    from networks.sam3.model import objects, track

    processor, network = loaded
    frames = (picture(index, (96, 64)) for index in range(count))
    found = []
    for session, output in track(network, processor, frames, count, (64, 96), prompts, seeds, **options):
        shown = objects(processor, session, output)
        assert output.frame_idx == len(found)
        found.append(dict(zip(shown.ids, shown.masks, strict=True)))
    return found


def test_boxes_and_points_begin_as_in_transformers_own_tracker(loaded, checkpoint):
    import torch
    from transformers import Sam3TrackerVideoModel, Sam3TrackerVideoProcessor

    from networks.sam3.model import track
    from networks.sam3.seeds import Seed

    processor, network = loaded
    frames = [picture(index, (96, 64)) for index in range(2)]
    seeds = (Seed.box("box 1", 0, (10, 10, 40, 40)), Seed("point 1", 0, ((20, 20), (60, 50)), (1, 0)))
    _, ours = next(track(network, processor, iter(frames), 2, (64, 96), (), seeds))
    tracker = Sam3TrackerVideoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    theirs = Sam3TrackerVideoProcessor(processor.image_processor, processor.video_processor, target_size=112)
    session = theirs.init_video_session(video=frames, inference_device="cpu", dtype=torch.float32)
    add = theirs.add_inputs_to_inference_session
    add(session, frame_idx=0, obj_ids=0, input_boxes=[[[10.0, 10.0, 40.0, 40.0]]])
    box = tracker(session, frame_idx=0).pred_masks[0]
    add(session, frame_idx=0, obj_ids=1, input_points=[[[[20.0, 20.0], [60.0, 50.0]]]], input_labels=[[[1, 0]]])
    point = tracker(session, frame_idx=0).pred_masks[1]
    for number, mask in enumerate((box, point)):
        assert torch.allclose(ours.obj_id_to_mask[number], mask, atol=1e-4)
        assert mask.std() > 0.1


def test_tracking_begins_anew_with_every_chunk_and_keeps_the_numbers(loaded):
    from networks.sam3.seeds import Seed

    seed = (Seed.box("box 1", 2, (10, 10, 40, 40)),)
    whole, chunks = (followed(loaded, 18, ("person",), seed, chunk=chunk) for chunk in (None, 6))
    (named,) = whole[2].keys() - whole[1].keys()
    for frame in range(6):  # until the first border nothing differs
        assert all(np.array_equal(whole[frame][number], chunks[frame][number]) for number in whole[frame])
    assert whole[5].keys() == {0, named}
    assert all({0, named} <= found.keys() for found in chunks[2:])
    assert any(not np.array_equal(whole[frame][0], chunks[frame][0]) for frame in range(6, 18))
    long = followed(loaded, 18, ("person",), seed, chunk=18)
    assert all(np.array_equal(a[n], b[n]) for a, b in zip(whole, long, strict=True) for n in a)
    alone = followed(loaded, 8, (), seed, chunk=3)
    assert [list(found) for found in alone] == [[], []] + [[0]] * 6


def test_detections_at_a_border_go_to_the_objects_they_overlap_most():
    from types import SimpleNamespace

    import torch

    from networks.sam3.model import redetected

    def stripe(begin, end):
        mask = torch.zeros(1, 4, 10, dtype=torch.bool)
        mask[..., begin:end] = True
        return mask

    masks = {3: stripe(0, 4), 5: stripe(1, 5), 8: stripe(6, 8), 9: stripe(0, 4)}
    detections = torch.cat([stripe(1, 5), stripe(0, 5)]).float() * 2 - 1
    session = SimpleNamespace(
        obj_id_to_prompt_id={3: 0, 5: 0, 8: 0, 9: 1},
        detections={0: {"mask": detections}, 1: {"mask": torch.zeros(0, 4, 10)}},
    )
    seen = redetected(masks, session, 0.5)
    # 5 is the first detection exactly, which is taken then for 3; nothing is where 8 is; 9 has another prompt.
    assert seen.keys() == {3, 5}
    assert torch.equal(seen[5], stripe(1, 5)) and torch.equal(seen[3], stripe(0, 5))


def test_no_more_objects_than_asked_for_at_a_time(loaded):
    from networks.sam3.seeds import Seed

    seeds = tuple(Seed.box(f"box {n}", n, (10, 10, 40, 40)) for n in (1, 3))
    found = followed(loaded, 6, ("person",), seeds, max_objects=2)
    assert [len(f) for f in found] == [0, 1, 1, 2, 2, 2]
    # Objects that are pointed at are followed whatever the model's own limit (3 here) is.
    seeds = tuple(Seed.box(f"box {n}", n, (10, 10, 40, 40)) for n in range(4))
    assert len(followed(loaded, 6, ("person",), seeds)[-1]) == 4


def test_results_of_a_run(segment, tmp_path):
    path = video(tmp_path / "clip.mp4", 5, sound="aac")
    done = segment(path, "--prompt", "person", "--mask-video", "--return-zip", "--json", "--crf", 0)
    assert done.returncode == 0, done.stderr
    (line,) = json_lines(done.stdout)
    folder = Path(line["folder"])
    names = everything_in(folder)
    assert {"overlay.mp4", "mask.mp4", "tracks.json", "contact_sheet.png", "summary.png", "results.zip"} <= set(names)
    assert [o["path"].rsplit("/", 1)[1] for o in line["outputs"] if o["role"] == "primary"] == ["overlay.mp4"]
    before, after, masks = facts(path), facts(folder / "overlay.mp4"), facts(folder / "mask.mp4")
    for result in (after, masks):
        assert result["size"] == before["size"] and result["codec"] == "h264" and result["format"] == "yuv420p"
        assert result["times"] == pytest.approx(before["times"], abs=0.001)
    assert after["audio"] == before["audio"] and len(before["audio"]) > 5 and not masks["audio"]
    encoded = masks_in(folder / "tracks.json")
    ids = {number for frame in encoded.values() for number in frame}
    assert ids == {o["id"] for o in line["objects"]} and line["frames"] == 5
    for number in ids:
        for frame in range(5):
            png = np.asarray(Image.open(folder / "masks" / str(number) / f"{frame:06d}.png"))
            assert np.array_equal(png > 0, encoded[frame].get(number, np.zeros((64, 96), bool)))
    for frame, shown in enumerate(masks["pictures"]):
        union = np.any(list(encoded[frame].values()), axis=0)
        assert ((shown[..., 0] > 127) == union).mean() > 0.97
        # Lossless, so that brightness outside the objects has to be exactly that of the input.
        assert np.array_equal(after["luma"][frame][~union], before["luma"][frame][~union])
    with zipfile.ZipFile(folder / "results.zip") as archive:
        inside = {n: archive.read(n) for n in archive.namelist()}
    assert inside["overlay.mp4"] == (folder / "overlay.mp4").read_bytes()
    assert sum(n.startswith("masks/") for n in inside) == 5 * len(ids)
    assert "frame=    5" in ffmpeg("-i", folder / "overlay.mp4", "-f", "null", "-")


def test_same_input_same_bytes(segment, tmp_path):
    path = video(tmp_path / "clip.mp4", 4)
    first, second = (folder_of(segment(path, "--prompt", "person", "--return-zip")) for _ in range(2))
    for name in ("overlay.mp4", "tracks.json", "results.zip", "contact_sheet.png", "summary.png"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_boxes_points_ranges_and_steps(segment, tmp_path):
    path = video(tmp_path / "clip.mp4", 10, sound="aac")
    flags = ["--box", "3:10,10,40,40", "--point", "5:20,20", "--point", "5:60,50,-", "--start", "0.1", "--masks", "rle"]
    folder = folder_of(segment(path, *flags))
    tracks = json.loads((folder / "tracks.json").read_text())
    assert [f["frame"] for f in tracks["frames"]] == list(range(3, 10))
    assert {o["prompt"]: o["first_frame"] for o in tracks["objects"]} == {"box 1": 3, "point 1": 5}
    result = facts(folder / "overlay.mp4")
    assert len(result["times"]) == 7 and 0 < len(result["audio"]) < len(facts(path)["audio"])
    # Sound ends with the picture: 0.2 seconds are 5 frames, and 10 packets of 1024 samples.
    begun = facts(folder_of(segment(path, "--prompt", "person", "--end", 0.2, "--masks", "rle")) / "overlay.mp4")
    assert len(begun["times"]) == 5 and 8 <= len(begun["audio"]) <= 11 < len(facts(path)["audio"])
    every = folder_of(segment(path, "--prompt", "person", "--every", 3, "--masks", "rle"))
    held = masks_in(every / "tracks.json")
    assert len(held) == 10 and len(facts(every / "overlay.mp4")["times"]) == 10
    for frame in range(10):
        assert all(np.array_equal(held[frame][n], held[frame // 3 * 3][n]) for n in held[frame])
    blended = folder_of(segment(path, "--prompt", "person", "--every", 3, "--between", "interpolate"))
    other = masks_in(blended / "tracks.json")
    assert all(np.array_equal(other[f][n], held[f][n]) for f in (0, 3, 6, 9) for n in held[f])
    assert any(not np.array_equal(other[f].get(n), held[f][n]) for f in (1, 2) for n in held[f])


def test_pictures_and_folders_of_pictures(segment, tmp_path):
    (tmp_path / "frames").mkdir()
    # Counted as people count: 10 comes after 2.
    for index, number in enumerate((0, 1, 2, 10)):
        Image.fromarray(picture(index, (61, 45))).save(tmp_path / "frames" / f"{number}.png")
    plain = ("--prompt", "person", "--mask-opacity", 0, "--no-outline")
    folder = folder_of(segment("frames", *plain, "--fps", 10))
    result = facts(folder / "overlay.mp4")
    assert result["size"] == (61, 45) and result["times"] == pytest.approx([0, 0.1, 0.2, 0.3], abs=0.002)
    for index, shown in enumerate(result["pictures"]):
        assert np.abs(shown.astype(int) - picture(index, (61, 45))).mean() < 3, index
    done = segment("frames/0.png", "--prompt", "person", "--mask-video", "--mask-opacity", 0, "--no-outline")
    still = folder_of(done)
    shown = np.asarray(Image.open(still / "overlay.png")).astype(int)
    assert np.abs(shown - picture(0, (61, 45))).max() <= 3
    assert Image.open(still / "mask.png").size == (61, 45)


def test_objects_alone_on_a_colour_or_on_nothing(segment, tmp_path):
    path = video(tmp_path / "clip.mp4", 3, sound="aac")
    green = folder_of(segment(path, "--prompt", "person", "--mask-only", "--background", "#00ff00", "--crf", 0))
    masks = masks_in(green / "tracks.json")
    for frame, shown in enumerate(facts(green / "mask_only.mp4")["pictures"]):
        outside = ~np.any(list(masks[frame].values()), axis=0)
        if outside.any():
            assert np.abs(np.median(shown[outside], axis=0) - (0, 255, 0)).max() < 8
    clear = ("--prompt", "person", "--mask-only", "--background", "transparent")
    done = segment(path, *clear, "--alpha", "png", "-o", "pngs", "--return-zip")
    assert done.returncode == 0 and Path(done.stdout.strip()) == tmp_path / "pngs", done.stderr
    pngs = tmp_path / "pngs"
    with zipfile.ZipFile(next(tmp_path.glob("output/*/results.zip"))) as archive:
        assert "pngs/000002.png" in archive.namelist()
    assert segment(path, *clear, "--alpha", "png", "-o", "pngs").returncode == 2
    assert len(list(pngs.iterdir())) == 3
    for frame in range(3):
        alpha = np.asarray(Image.open(pngs / f"{frame:06d}.png"))[..., 3]
        assert np.array_equal(alpha > 0, np.any(list(masks[frame].values()), axis=0))
    webm = folder_of(segment(path, *clear)) / "mask_only.webm"
    mov = folder_of(segment(path, *clear, "--alpha", "prores")) / "mask_only.mov"
    raw = tmp_path / "alpha.raw"
    for file, decoder in ((webm, ["-c:v", "libvpx-vp9"]), (mov, [])):
        ffmpeg(*decoder, "-i", file, "-vf", "alphaextract,format=gray", "-f", "rawvideo", raw)
        alpha = np.fromfile(raw, np.uint8).reshape(-1, 64, 96)
        assert len(alpha) == 3
        for frame in range(3):
            assert ((alpha[frame] > 127) == np.any(list(masks[frame].values()), axis=0)).mean() > 0.97
        assert facts(file)["audio"]


CASES = {
    "odd size": {"size": (95, 61), "fmt": "yuv444p"},
    "one frame": {"count": 1},
    "variable rate": {"times": [0, 0.04, 0.5, 0.52, 1.7, 1.9]},
    "late start": {"start": 1.4, "sound": "aac"},
    "full range, BT.709": {"fmt": "yuv420p", "colour": (2, 1, 1, 1)},
    "BT.601": {"colour": (1, 6, 6, 6)},
    "10 bits": {"fmt": "yuv420p10le"},
    "turned": {"rotation": 90},
    "alpha": {"fmt": "argb", "codec": "qtrle", "file": "clip.mov"},
    "sound that MP4 does not hold": {"file": "clip.mkv", "sound": "pcm_u8"},
    "a colon in its name": {"file": "a:b.mp4", "sound": "aac"},
    "palette": {"codec": "gif", "fmt": "rgb8", "file": "clip.gif"},
}


@pytest.mark.parametrize("name", CASES)
def test_video_goes_through_unchanged(tmp_path, name):
    """Frames, size, times, colours and sound of a video written without any object are those that were read."""
    from networks.sam3 import overlay
    from networks.sam3.encode import VideoWriter, check_video
    from networks.sam3.source import open_source

    options = dict(CASES[name])
    path = video(tmp_path / options.pop("file", "clip.mp4"), **options)
    source = open_source(path, 0, None, 1, 24, 10**7)
    clip, target = source.clip, tmp_path / "out.mp4"
    fmt = overlay.pixel_format(clip.width, clip.height)
    with VideoWriter(target, clip, source.first, source.last, "libx264", fmt, {"crf": "8"}, source.audio) as writer:
        for index, frame in enumerate(source.decoded()):
            writer.add(index, overlay.planes(frame, clip.turns, clip.alpha, clip.colour))
    check_video(target, "out", clip, source.first, source.last)
    before, after = facts(path), facts(target)
    turned = before["size"][::-1] if options.get("rotation") else before["size"]
    assert after["size"] == turned and (turned[0] % 2 or after["format"] == "yuv420p" or "colour" in options)
    # GIF counts time in hundredths of a second.
    assert after["times"] == pytest.approx(before["times"], abs=0.002)
    assert after["duration"] == pytest.approx(before["duration"], abs=0.04)
    if "colour" in options:
        assert after["colour"] == options["colour"]
    # Bare 8-bit samples cannot be copied into MP4 and come out as AAC.
    assert bool(after["audio"]) == bool(options.get("sound"))
    if options.get("sound") == "aac":
        assert after["audio"] == before["audio"]
    for index, expected in enumerate(before["pictures"]):
        expected = np.rot90(expected) if options.get("rotation") else expected
        shown = after["pictures"][index].astype(int)
        if name == "palette":  # dithered: its colours change from pixel to pixel, which 4:2:0 cannot
            shown, expected = shown.mean((0, 1)), expected.mean((0, 1))
        assert np.abs(shown - expected).mean() < 3, index


@pytest.mark.parametrize("alpha", ["webm", "prores"])
def test_odd_sizes_keep_their_transparency(segment, tmp_path, alpha):
    video(tmp_path / "odd.mp4", 2, size=(61, 45), fmt="yuv444p")
    clear = ("--mask-only", "--background", "transparent", "--alpha", alpha)
    file = Path(segment("odd.mp4", "--prompt", "person", "--box", "0:10,10,40,30", *clear).stdout.splitlines()[0])
    masks, raw = masks_in(file.parent / "tracks.json"), tmp_path / "raw"
    decoder = ["-c:v", "libvpx-vp9"] if alpha == "webm" else []
    ffmpeg(*decoder, "-i", file, "-vf", "format=rgba", "-f", "rawvideo", raw)
    shown = np.fromfile(raw, np.uint8).reshape(2, 45, 61, 4).astype(int)
    for frame in range(2):
        union = np.any(list(masks[frame].values()), axis=0)
        assert ((shown[frame, ..., 3] > 127) == union).mean() > 0.95 and union.any()
        assert np.abs(shown[frame, ..., :3] - picture(frame, (61, 45)))[union].mean() < 12


def test_every_audio_track_goes_along(tmp_path):
    from networks.sam3 import overlay
    from networks.sam3.encode import VideoWriter
    from networks.sam3.source import open_source

    first, second = video(tmp_path / "1.mp4", sound="aac"), video(tmp_path / "2.mp4", sound="mp3")
    path, target = tmp_path / "both.mkv", tmp_path / "out.mp4"
    ffmpeg("-i", first, "-i", second, "-map", "0", "-map", "1:a", "-c", "copy", path)
    source = open_source(path, 0, None, 1, 24, 10**7)
    with VideoWriter(target, source.clip, 0, 6, "libx264", "yuv420p", {}, source.audio) as writer:
        for index, frame in enumerate(source.decoded()):
            writer.add(index, overlay.planes(frame, 0, False, source.clip.colour))
    with av.open(str(path)) as before, av.open(str(target)) as after:
        for container in (before, after):
            assert [stream.codec_context.name for stream in container.streams.audio] == ["aac", "mp3float"]
        for number in range(2):
            packets = [[bytes(p) for p in c.demux(audio=number) if p.size] for c in (before, after)]
            assert packets[0] == packets[1] and len(packets[0]) > 5
            before.seek(0)
            after.seek(0)


def test_colours_belong_to_prompts_or_to_the_objects_of_the_only_one():
    from types import SimpleNamespace

    from networks.sam3.outputs import Outputs
    from networks.sam3.overlay import PALETTE

    def colours(names, given, objects):
        outputs = SimpleNamespace(names=names, colours={}, item=SimpleNamespace(mask_color=given))
        return [Outputs.colour(outputs, number, name) for number, name in objects]

    two = [(0, "dog"), (2, "cat"), (5, "dog")]
    assert colours(["cat", "dog"], (), two) == [PALETTE[1], PALETTE[0], PALETTE[1]]
    assert colours(["cat", "dog"], ("red", "#0000ff"), two) == ["#0000ff", "red", "#0000ff"]
    assert colours(["cat", "dog"], ("red",), two) == ["red"] * 3
    one = [(1, "cat"), (4, "cat"), (1, "cat"), (7, "cat")]
    assert colours(["cat"], (), one) == [PALETTE[0], PALETTE[1], PALETTE[0], PALETTE[2]]
    assert colours(["cat"], ("red", "auto"), one) == ["red", PALETTE[1], "red", "red"]


def test_bad_input_has_its_code_and_leaves_nothing(segment, tmp_path):
    whole = video(tmp_path / "whole.mkv", 30, size=(160, 120)).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 8])
    (tmp_path / "half.mkv").write_bytes(whole[: len(whole) // 2])
    faststart = tmp_path / "fast.mp4"
    ffmpeg("-i", tmp_path / "whole.mkv", "-c", "copy", "-movflags", "faststart", faststart)
    (tmp_path / "cut.mp4").write_bytes(faststart.read_bytes()[: faststart.stat().st_size // 2])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    with av.open(str(tmp_path / "sound.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (tmp_path / "none").mkdir()
    video(tmp_path / "ok.mp4", 4)
    person = ["--prompt", "person"]
    cases = [
        (["cut.mp4", *person], 65),
        (["text.mp4", *person], 65),
        (["empty.mp4", *person], 65),
        (["sound.m4a", *person], 65),
        (["none", *person], 65),
        (["ok.mp4", *person, "--max-pixels", 100], 65),
        (["missing.mp4", *person], 66),
        (["ok.mp4"], 2),
        (["ok.mp4", "--prompt", " "], 2),
        (["ok.mp4", "--prompt", "word " * 40], 2),
        (["ok.mp4", "--prompt", "incomprehensibilities" * 3], 2),
        (["ok.mp4", *person, "--box", "0:1,2,3"], 2),
        (["ok.mp4", *person, "--box", "0:30,20,10,40"], 2),
        (["ok.mp4", *person, "--box", "9:3,2,10,40"], 2),
        (["ok.mp4", *person, "--box", "0:3,2,1000,40"], 2),
        (["ok.mp4", *person, "--point", "0:3,2,-"], 2),
        (["ok.mp4", *person, "--start", 9], 2),
        (["ok.mp4", *person, "--max-objects", 1, "--box", "0:3,2,10,40", "--point", "1:3,2"], 2),
        (["ok.mp4", *person, "--alpha", "png"], 2),
        (["ok.mp4", *person, "--mask-color", "nocolour"], 2),
        (["ok.mp4", *person, "--background", "red"], 2),
        (["ok.mp4", *person, "-o", "x.avi"], 2),
    ]
    before = everything_in(tmp_path)
    for args, code in cases:
        done = segment(*args)
        assert done.returncode == code, (args, done.stderr)
        assert done.stdout == "" and done.stderr.strip().splitlines()[-1].startswith("error: "), done.stderr
        assert everything_in(tmp_path) == before, args


def test_nothing_found(warm, tmp_path):
    from tiny_checkpoints import sam3

    strict = sam3.build(tmp_path / "strict", detect=False)
    path = video(tmp_path / "clip.mp4", 3)
    args = (SCRIPT, path, "--prompt", "person", "--model", strict, *FP32)
    done = warm.run(*args, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = json_lines(done.stdout)
    assert line["objects"] == [] and "no object found" in line["warnings"][0]
    tracks = json.loads((Path(line["folder"]) / "tracks.json").read_text())
    assert [f["objects"] for f in tracks["frames"]] == [[], [], []]
    failed = warm.run(*args, "--fail-if-empty", cwd=tmp_path)
    assert failed.returncode == 70 and failed.stdout == ""
    assert len(list((tmp_path / "output").iterdir())) == 1


def test_batches_resume_and_have_a_folder_each(segment, tmp_path):
    for name in ("a.mp4", "b.mp4"):
        video(tmp_path / name, 3)
    (tmp_path / "broken.mp4").write_text("no video")
    (tmp_path / "list").write_text('a.mp4\nbroken.mp4\n{"input": "b.mp4", "prompt": ["dog", "cat"], "every": 2}\n')
    flags = ("--inputs-from", "list", "--prompt", "person", "--resume", "run", "--json")
    done = segment(*flags)
    assert done.returncode == 3, done.stderr
    lines = json_lines(done.stdout)
    assert {line["index"]: line["status"] for line in lines} == {0: "ok", 1: "error", 2: "ok"}
    assert (tmp_path / "run" / "0000_a" / "overlay.mp4").exists()
    assert json.loads((tmp_path / "run" / "0002_b" / "tracks.json").read_text())["prompts"] == ["dog", "cat"]
    video(tmp_path / "broken.mp4", 3)
    again = segment(*flags)
    assert again.returncode == 0, again.stderr
    states = {line["index"]: line["status"] for line in json_lines(again.stdout)}
    assert states == {0: "skipped", 1: "ok", 2: "skipped"}


def test_gated_weights(warm, checkpoint, tmp_path):
    video(tmp_path / "clip.mp4", 2)
    args = (SCRIPT, "clip.mp4", "--prompt", "person", *FP32)
    with FakeHub({REPO: checkpoint}, token="hf_good", gated=(REPO,)) as hub:
        env = {**hub.environment, "PRETRAINED_WEIGHTS_DIR": str(tmp_path / "weights")}
        refused = warm.run(*args, cwd=tmp_path, **env)
        assert refused.returncode == 77, refused.stderr
        assert REPO in refused.stderr and "HF_TOKEN" in refused.stderr
        done = warm.run(*args, cwd=tmp_path, HF_TOKEN="hf_good", **env)
        assert done.returncode == 0, done.stderr
        hub.log.clear()
        assert warm.run(*args, cwd=tmp_path, **env).returncode == 0 and not hub.log


def test_a_terminated_run_leaves_no_half_video(warm, checkpoint, tmp_path):
    video(tmp_path / "clip.mp4", 400)
    child = warm.start(SCRIPT, "clip.mp4", "--prompt", "person", "--model", checkpoint, *FP32, cwd=tmp_path)
    deadline = time.monotonic() + 300
    # The first masks are written when the first frames are settled; 400 frames take much longer than that.
    while not list(tmp_path.glob("output/*/.masks.partial/*/*.png")):
        assert time.monotonic() < deadline, child.stderr()
        time.sleep(0.05)
    child.terminate()
    done = child.wait()
    assert done.returncode == 143, done.stderr
    assert done.stdout == "" and everything_in(tmp_path) == ["clip.mp4"]


def test_state_does_not_grow(loaded):
    """What the session holds after 60 frames is what it holds after 30."""
    import torch

    from networks.sam3.model import track

    processor, network = loaded

    def held(value, seen):
        if id(value) in seen:
            return 0
        seen.add(id(value))
        if torch.is_tensor(value):
            return value.untyped_storage().nbytes()
        if isinstance(value, dict):
            return 64 + sum(held(v, seen) for v in value.values())
        if isinstance(value, list | tuple | set):
            return 8 * len(value) + sum(held(v, seen) for v in value)
        return held(vars(value), seen) if type(value).__module__.startswith("transformers") else 8

    sizes = []
    frames = (picture(i, (96, 64)) for i in range(80))
    for session, output in track(network, processor, frames, 80, (64, 96), ("person",)):
        if output.frame_idx in (30, 60):
            sizes.append(held(vars(session), set()) / len(session.obj_ids))
    assert sizes[1] < 1.05 * sizes[0]


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_run_lengths(mask):
    from networks.sam3.tracks import mask_of, rle

    encoded = rle(mask)
    assert encoded["size"] == list(mask.shape)
    assert np.array_equal(mask_of(encoded), mask)


def test_run_lengths_as_coco_writes_them():
    from networks.sam3.tracks import rle

    mask = np.zeros((3, 3), bool)
    mask[1, 1] = True
    assert rle(mask) == {"size": [3, 3], "counts": "414"}
    # Counts 5 40 5 50: 40 needs two letters, 50 is written as 10 more than the second count before it.
    mask = np.zeros((10, 10), bool).T.ravel()
    mask[5:45] = mask[50:] = True
    assert rle(mask.reshape(10, 10, order="F"))["counts"] == "5X15:"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 8), st.floats(0, 1), st.randoms(use_true_random=False))
def test_suppression_is_the_greedy_one(count, threshold, random):
    """What stays does not overlap by more than the threshold; what goes overlaps something that stays and scores higher."""
    import torch

    from networks.sam3.cleanup import suppress

    ious = torch.eye(count)
    for i in range(count):
        for j in range(i):
            ious[i, j] = ious[j, i] = random.choice((0, threshold, random.random()))
    scores = torch.tensor(random.sample(range(100), count)) / 100
    kept = suppress(ious, scores, threshold).tolist()
    limit = torch.tensor(threshold, dtype=torch.float32)
    assert kept == sorted(kept, key=lambda i: -scores[i])
    for i in range(count):
        stronger = [k for k in kept if scores[k] > scores[i] and ious[i, k] > limit]
        assert bool(stronger) == (i not in kept)


def test_holes_and_specks_in_random_masks():
    """Filled are the holes of at most 16 pixels, then removed the specks of at most 16 and half the mask (8-connected)."""
    import torch
    from scipy import ndimage
    from transformers.models.sam3_video import modeling_sam3_video as theirs

    from networks.sam3.cleanup import install

    def small(mask, largest):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        return mask & (sizes[labels] <= largest)

    install()
    rng = np.random.default_rng(1)
    scores = ndimage.gaussian_filter(rng.normal(size=(6, 41, 37)), (0, 1.2, 1.2)) * 4
    scores += np.linspace(-1.5, 1.5, 6)[:, None, None]
    cleaned = theirs.fill_holes_in_mask_scores(torch.from_numpy(scores)[:, None], max_area=16)[:, 0].numpy()
    changed = 0
    for before, after in zip(scores, cleaned, strict=True):
        filled = np.where(small(before <= 0, 16), 0.1, before)
        specks = small(filled > 0, min(16, (filled > 0).sum() // 2))
        assert np.allclose(after, np.where(specks, -0.1, filled))
        changed += (after != before).sum()
    assert changed > 50


def test_cleanup_is_what_it_says():
    import torch
    from scipy import ndimage
    from transformers.models.sam3_video import modeling_sam3_video as theirs

    from networks.sam3.cleanup import components, install, suppress

    rng = np.random.default_rng(0)
    spiral = np.zeros((33, 33), bool)
    for ring in range(0, 16, 2):
        spiral[ring, ring : 33 - ring] = spiral[32 - ring, ring : 33 - ring] = True
        spiral[ring : 33 - ring, ring] = spiral[ring : 33 - ring, 32 - ring] = True
        spiral[ring + 1, ring] = False
    masks = np.stack(
        [rng.random((33, 33)) < p for p in (0.1, 0.4, 0.6, 0.9)] + [spiral, spiral * 0 > 0, spiral * 0 == 0]
    )
    labels, areas = components(torch.from_numpy(masks)[:, None])
    for mask, label, area in zip(masks, labels[:, 0].numpy(), areas[:, 0].numpy(), strict=True):
        wanted, count = ndimage.label(mask, np.ones((3, 3)))
        sizes = np.bincount(wanted.ravel())
        assert np.array_equal(area, np.where(mask, sizes[wanted], 0))
        assert len(np.unique(label[mask])) == count and (label[~mask] == 0).all()
    install()
    scores = torch.full((1, 1, 20, 20), -3.0)
    scores[..., 2:15, 2:15] = 2.0
    scores[..., 5:8, 5:8] = -1.0  # a hole of 9 pixels
    scores[..., 18, 18] = 1.0  # a speck
    cleaned = theirs.fill_holes_in_mask_scores(scores, max_area=9)
    expected = scores.clone()
    expected[..., 5:8, 5:8], expected[..., 18, 18] = 0.1, -0.1
    assert torch.equal(cleaned, expected)
    ious = torch.tensor([[1, 0.8, 0.1], [0.8, 1, 0.6], [0.1, 0.6, 1]])
    assert suppress(ious, torch.tensor([0.5, 0.9, 0.7]), 0.7).tolist() == [1, 2]
    assert suppress(ious, torch.tensor([0.9, 0.5, 0.7]), 0.5).tolist() == [0, 2]
    probabilities, boxes = torch.tensor([0.9, 0.8, 0.01]), torch.ones(3, 8, 8)
    assert theirs.nms_masks(probabilities, boxes, 0.05, 0.5).tolist() == [True, False, False]
