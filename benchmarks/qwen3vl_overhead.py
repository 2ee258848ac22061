"""What qwen3vl_inference.py adds to the bare transformers loop, and what answering in one process and in batches saves.

    uv run benchmarks/qwen3vl_overhead.py                    # about five minutes on an idle machine
    uv run benchmarks/qwen3vl_overhead.py --pairs 11 --tokens 256

The same tiny checkpoint, pictures and questions; greedy, float32 on the CPU. The bare loop imports transformers, loads model
and processor, and for each question reads the picture, generates and writes the answer to a file; ours also checks, streams,
records, traces, hashes. Unit: CPU seconds of the whole process with its imports, one thread, median of interleaved pairs. The
answers are compared and have to be equal: bare and ours, one by one and in a batch.

What a batch saves is also given for generation alone (seconds of that phase in run.json): on a CPU that is the library's time
from one token to the next, and hardly any arithmetic; on a GPU the weights are read once for all rows as well.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from measure import ROOT, cpu_seconds, interleaved, ratio

QUESTIONS = 8
SIDES = (320, 256)  # pixels of a picture


def bare_loop(checkpoint: str, tokens: str) -> None:
    """The shortest program that answers the questions. Runs as a process of its own, in the folder of the pictures."""
    import torch
    from PIL import Image
    from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

    processor = AutoProcessor.from_pretrained(checkpoint)
    model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    for number, job in enumerate(jobs()):
        content = [{"type": "image", "image": Image.open(job["image"])}, {"type": "text", "text": job["prompt"]}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=int(tokens))
        text = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        Path(f"bare_{number}.txt").write_text(text + "\n", encoding="utf-8")


def jobs() -> list[dict[str, str]]:
    return [{"image": f"{n}.png", "prompt": f"What is in picture {n}? Describe it."} for n in range(QUESTIONS)]


def prepare(folder: str) -> None:
    """Checkpoint and pictures."""
    sys.path.insert(0, str(ROOT))
    from PIL import Image

    from tiny_checkpoints.qwen3vl import build

    build(Path(folder) / "checkpoint")
    for number, job in enumerate(jobs()):
        Image.linear_gradient("L").resize(SIDES).rotate(40 * number).convert("RGB").save(Path(folder) / job["image"])


def answers(folder: Path, pattern: str) -> list[str]:
    """The texts of the files with names like that, in order."""
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob(pattern))]


def generate_seconds(run: Path) -> float:
    return json.loads((run / "run.json").read_text(encoding="utf-8"))["seconds"]["generate"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="CPU seconds of qwen3vl_inference.py and of the bare transformers loop."
    )
    parser.add_argument("--pairs", type=int, default=7, help="measurements of each (default: 7)")
    parser.add_argument("--tokens", type=int, default=128, help="length of an answer (default: 128)")
    parser.add_argument(
        "--separate", type=int, default=3, help="questions to ask in processes of their own (default: 3)"
    )
    arguments = parser.parse_args()
    python, script, tokens = sys.executable, str(ROOT / "qwen3vl_inference.py"), str(arguments.tokens)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cpu_seconds([python, __file__, "--prepare", name])
        (folder / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs())) + "\n", encoding="utf-8")
        flags = ["--model", "checkpoint", "--max-tokens", tokens, "--temperature", "0", "--dtype", "fp32"]
        flags += ["--device", "cpu", "--seed", "0"]
        ours = [python, script, "--inputs-from", "jobs.jsonl", *flags]
        bare = [python, __file__, "--bare", "checkpoint", tokens]
        commands = [
            [*ours, "--output-dir", "single"],
            bare,
            [*ours, "--batch-size", str(QUESTIONS), "--output-dir", "batch"],
        ]
        seconds = interleaved(commands, arguments.pairs, cwd=folder)
        runs = {kind: sorted((folder / kind).iterdir())[1:] for kind in ("single", "batch")}
        wanted = answers(folder, "bare_*.txt")
        for kind, made in runs.items():
            if answers(made[-1], "qwen3vl_*.txt") != wanted:
                sys.exit(f"{kind}: the answers are not those of the bare loop")
        phases = [[generate_seconds(run) for run in runs[kind]] for kind in ("single", "batch")]
        alone = [
            cpu_seconds([python, script, job["image"], job["prompt"], *flags], cwd=folder)
            for job in jobs()[: arguments.separate]
        ]
    single, bare_median, batch = (statistics.median(values) for values in seconds)
    added = statistics.median(ours - bare for ours, bare in zip(*seconds[:2], strict=True))
    print(f"{QUESTIONS} questions, {tokens} tokens each, {arguments.pairs} rounds, CPU seconds (median)")
    print(f"qwen3vl_inference.py          {single:8.2f}")
    print(
        f"bare transformers loop        {bare_median:8.2f}   ratio {ratio(*seconds[:2]):.3f} (median of the pairs), {added:+.2f} s"
    )
    print(
        f"--batch-size {QUESTIONS}                {batch:8.2f}   ratio {ratio(seconds[2], seconds[0]):.3f} to one by one"
    )
    print(
        f"  generation alone, wall      {statistics.median(phases[1]):8.2f}   ratio {ratio(phases[1], phases[0]):.3f}"
        f" ({statistics.median(phases[0]):.2f} s one by one)"
    )
    if alone:
        separate = QUESTIONS * statistics.mean(alone)
        print(
            f"{QUESTIONS} processes                   {separate:8.2f}   one batch takes {batch / separate:.3f} of it"
            f" ({len(alone)} measured, scaled)"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        bare_loop(*sys.argv[2:])
    elif sys.argv[1:2] == ["--prepare"]:
        prepare(*sys.argv[2:])
    else:
        main()
