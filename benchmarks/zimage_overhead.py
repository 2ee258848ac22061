"""What zimage_generation.py adds to the bare diffusers loop, and what it saves over one process for each prompt.

    uv run benchmarks/zimage_overhead.py                     # about five minutes on an idle machine
    uv run benchmarks/zimage_overhead.py --pairs 11 --size 256
    uv run benchmarks/zimage_overhead.py --separate 0        # leave out one process for each prompt

The same tiny checkpoint, prompts and seeds; 8 steps on the CPU in bfloat16. The bare loop imports diffusers, loads the
pipeline, calls it for each prompt and saves PNG files; ours also checks, records, traces, hashes and shows what it makes.
Unit: CPU seconds of the whole process with its imports, one thread, median of interleaved pairs. One process for each prompt
is measured on a few prompts and scaled up to all. The pictures of both are compared, and have to be equal.

What is added is nearly constant, so it weighs most here: the model is tiny and the pictures are small. The default size is
where the work of twenty pictures is about that of the imports.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from measure import ROOT, cpu_seconds, interleaved, ratio

PROMPTS = 20
STEPS = 8


def bare_loop(checkpoint: str, size: str) -> None:
    """The shortest program that makes the pictures. Runs as a process of its own, in the folder for its files."""
    import torch
    from diffusers import ZImagePipeline

    pipeline = ZImagePipeline.from_pretrained(checkpoint, dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    for seed, prompt in enumerate(prompts()):
        image = pipeline(
            prompt,
            width=int(size),
            height=int(size),
            num_inference_steps=STEPS,
            guidance_scale=0.0,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]
        image.save(f"bare_{seed:02d}.png")


def prompts() -> list[str]:
    return [f"a red fox, picture {n} of a series, soft light" for n in range(PROMPTS)]


def make_checkpoint(folder: str) -> None:
    sys.path.insert(0, str(ROOT))
    from tiny_checkpoints.zimage import make_zimage

    make_zimage(Path(folder))


def check_equal(folder: Path) -> None:
    """Raise `SystemExit` when a picture of ours is not that of the bare loop."""
    from PIL import Image

    run = max((folder / "output").iterdir())
    for bare, ours in zip(sorted(folder.glob("bare_*.png")), sorted(run.glob("zimage_*.png")), strict=True):
        if Image.open(bare).tobytes() != Image.open(ours).tobytes():
            sys.exit(f"{ours.name} is not the picture of the bare loop")


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU seconds of zimage_generation.py and of the bare diffusers loop.")
    parser.add_argument("--pairs", type=int, default=7, help="measurements of each (default: 7)")
    parser.add_argument("--size", type=int, default=128, help="width and height in pixels (default: 128)")
    parser.add_argument("--separate", type=int, default=3, help="prompts to run in processes of their own (default: 3)")
    arguments = parser.parse_args()
    python, script = sys.executable, str(ROOT / "zimage_generation.py")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = str(folder / "checkpoint")
        cpu_seconds([python, __file__, "--checkpoint", checkpoint])
        (folder / "prompts.txt").write_text("\n".join(prompts()) + "\n", encoding="utf-8")
        size = str(arguments.size)
        flags = ["--model", checkpoint, "--width", size, "--height", size, "--device", "cpu"]
        ours = [python, script, "--inputs-from", "prompts.txt", "--seed", "0", *flags]
        bare = [python, __file__, "--bare", checkpoint, size]
        seconds = interleaved([ours, bare], arguments.pairs, cwd=folder)
        check_equal(folder)
        alone = [cpu_seconds([python, script, p, *flags], cwd=folder) for p in prompts()[: arguments.separate]]
    medians = [statistics.median(values) for values in seconds]
    print(f"{PROMPTS} prompts, {size} x {size}, {STEPS} steps, {arguments.pairs} pairs, CPU seconds (median)")
    print(f"zimage_generation.py        {medians[0]:8.2f}")
    added = statistics.median(ours - bare for ours, bare in zip(*seconds, strict=True))
    print(
        f"bare diffusers loop         {medians[1]:8.2f}   ratio {ratio(*seconds):.3f} (median of the pairs), {added:+.2f} s"
    )
    if alone:
        separate = PROMPTS * statistics.mean(alone)
        print(
            f"one process for each prompt {separate:8.2f}   ratio {medians[0] / separate:.3f} ({len(alone)} measured, scaled)"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        bare_loop(*sys.argv[2:])
    elif sys.argv[1:2] == ["--checkpoint"]:
        make_checkpoint(*sys.argv[2:])
    else:
        main()
