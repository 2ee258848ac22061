"""Peak memory of sam3_video_segmentation.py on a short and on a long video of the same size, beside the plain approach:
transformers with all frames in memory at once and all masks kept until the end.

    uv run python benchmarks/sam3_memory.py [--frames 60 480] [--size 640 360]

Small random weights that follow up to three objects; what grows with the length is frames, masks and tracker state, and not
the weights. Prints the peak resident memory of each process and the ratio of the long video's to the short one's. Takes three
minutes of one core.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import ONE_THREAD, ROOT

sys.path.insert(0, str(ROOT))

PLAIN = """
import sys, av, torch
from transformers import Sam3VideoModel, Sam3VideoProcessor
checkpoint, path = sys.argv[1:]
with av.open(path) as container:
    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
model = Sam3VideoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
processor = Sam3VideoProcessor.from_pretrained(checkpoint)
session = processor.init_video_session(video=frames, inference_device="cpu", dtype=torch.float32)
processor.add_text_prompt(session, "person")
masks = [processor.postprocess_outputs(session, out)["masks"] for out in model.propagate_in_video_iterator(session)]
"""


def make_video(path: Path, frames: int, size: tuple[int, int]) -> Path:
    import av
    import numpy as np

    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            picture = np.full((height, width, 3), 60, np.uint8)
            left = index * 5 % (width - 80)
            picture[height // 3 : height // 3 + 80, left : left + 80] = (220, 60, 30)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def peak_memory(command: list[str], folder: Path) -> int:
    """Peak resident bytes of one process."""
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}: exit status {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, nargs=2, default=(60, 480))
    parser.add_argument("--size", type=int, nargs=2, default=(640, 360))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        from tiny_checkpoints import sam3

        checkpoint = str(sam3.build(folder / "checkpoint", image_size=56))
        peaks: dict[str, list[int]] = {"ours": [], "plain": []}
        for frames in options.frames:
            video = str(make_video(folder / f"{frames}.mp4", frames, tuple(options.size)))
            script = [sys.executable, str(ROOT / "sam3_video_segmentation.py"), video, "--prompt", "person"]
            ours = [*script, "--model", checkpoint, "--dtype", "fp32", "--seed", "0", "--masks", "rle", "-q"]
            peaks["ours"].append(peak_memory(ours, folder))
            peaks["plain"].append(peak_memory([sys.executable, "-c", PLAIN, checkpoint, video], folder))
    for name, (short, long) in peaks.items():
        print(
            f"{name}: {short / 1e6:.0f} MB at {options.frames[0]} frames, {long / 1e6:.0f} MB at {options.frames[1]},"
            f" ratio {long / short:.3f}"
        )


if __name__ == "__main__":
    main()
