"""UniRig's stages at full size with random weights: our way against the straightforward way, in the same run.

    python benchmarks/unirig.py                    # all stages, full size: half an hour and 9 GB on two cores
    python benchmarks/unirig.py --small            # tiny sizes: does everything run?
    python benchmarks/unirig.py --stages decode    # only this one

Every measurement is a process of its own, so that the peak of its memory is its own too. Prints a table, and the whole
as one JSON object with --json. With all of the skeleton's stages run at full size it ends with exit 1 when the targets
are missed: prefill for 15 beams at least 8 times as fast, peak memory of the decoder at most 60 %.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from unirig_skin import SKIN_STAGES  # noqa: E402

PREFILL_SPEEDUP = 8.0  # at least
DECODE_MEMORY = 0.6  # at most, of the straightforward way
SEED = 0


@dataclass(frozen=True)
class Sizes:
    points: int = 65_536
    faces: int = 200_000  # of the mesh to prepare
    beams: int = 15
    new_tokens: int = 24
    sequence: int = 200  # tokens, for the grammar alone
    skin_faces: int = 20_000
    skin_points: int = 32_768
    head_points: int = 8_192  # all pairs at once take 12 GB at 32 768
    joints: int = 50
    voxel_grid: int = 196
    llm: tuple = ()
    mesh_encoder: tuple = ()
    skin: tuple = ()


SMALL = Sizes(
    points=512,
    faces=2_000,
    beams=4,
    new_tokens=8,
    sequence=100,
    llm=(
        ("vocab_size", 267),
        ("hidden_size", 64),
        ("word_embed_proj_dim", 64),
        ("ffn_dim", 128),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 4),
        ("max_position_embeddings", 256),
    ),
    mesh_encoder=(("width", 32), ("heads", 4), ("num_encoder_layers", 2), ("token_num", 32)),
    skin_faces=1_000,
    skin_points=500,
    head_points=500,
    joints=6,
    voxel_grid=24,
    skin=(
        ("feat_dim", 32),
        ("num_heads", 4),
        ("bone_embed_dim", 16),
        ("mlp_dim", 16),
        ("num_bone_attn", 1),
        ("num_mesh_bone_attn", 2),
        ("grid_size", 0.05),
        ("mesh_encoder", {"enc_depths": (1, 1), "enc_channels": (8, 16), "enc_num_head": (2, 2)}),
        ("global_encoder", {"width": 24, "heads": 2, "num_encoder_layers": 1, "token_num": 16}),
    ),
)


def random_model(model_class, *arguments):
    """A model with random weights, made without the slow initialisation of its layers."""
    import torch

    torch.manual_seed(SEED)
    with torch.device("meta"):
        model = model_class(*arguments)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            else:
                parameter.fill_(1.0 if "weight" in name else 0.0)
        for name, buffer in model.named_buffers():
            buffer.fill_(1 if name.endswith("running_var") else 0)
    for module in model.modules():
        if hasattr(module, "tie_weights"):
            module.tie_weights()
    return model.eval().requires_grad_(False)


def skeleton_model(sizes: Sizes):
    from networks.unirig.ar import SkeletonModel

    return random_model(SkeletonModel, dict(sizes.llm) or None, dict(sizes.mesh_encoder) or None)


def timed(work: Callable) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


# Mesh preparation and sampling have no other way: the libraries do the work. They are here for their share of the whole.


def bumpy_sphere(faces: int):
    """A closed, irregular mesh of about `faces` triangles as float32 vertices and int64 faces, not welded."""
    import numpy as np
    import trimesh

    rings = max(8, int((faces / 4) ** 0.5))
    sphere = trimesh.creation.uv_sphere(count=[rings, 2 * rings])
    direction = np.asarray(sphere.vertices)
    radius = 1 + 0.15 * np.sin(5 * direction[:, :1]) * np.cos(7 * direction[:, 1:2]) + 0.1 * direction[:, 2:]
    vertices = (direction * radius).astype(np.float32)
    return vertices[sphere.faces].reshape(-1, 3), np.arange(3 * len(sphere.faces)).reshape(-1, 3)


def mesh_prep(sizes: Sizes) -> dict:
    from networks.unirig.mesh_prep import prepare_mesh

    vertices, faces = bumpy_sphere(sizes.faces)
    seconds, mesh = timed(lambda: prepare_mesh(vertices, faces))
    return {"seconds": seconds, "faces": len(mesh.faces)}


def sampling(sizes: Sizes) -> dict:
    import numpy as np

    from networks.unirig.mesh_prep import prepare_mesh
    from networks.unirig.sampler import draw, sample_mesh

    mesh = prepare_mesh(*bumpy_sphere(sizes.faces))
    random = np.random.RandomState(SEED)
    seconds, _ = timed(
        lambda: sample_mesh(mesh, sizes.points, 8192, draw(random, len(mesh.vertices), sizes.points, 8192))
    )
    return {"seconds": seconds}


# The encoder: fused attention and a numpy loop for the farthest points, against written-out formulas.


def random_cloud(count: int):
    import torch

    torch.manual_seed(SEED)
    points = torch.nn.functional.normalize(torch.randn(1, count, 3), dim=-1)
    return points * (0.5 + 0.5 * torch.rand(1, count, 1)), points


def encode(sizes: Sizes) -> dict:

    model = skeleton_model(sizes)
    cloud = random_cloud(sizes.points)
    seconds, latents = timed(lambda: model.encode(*cloud))
    return {"seconds": seconds, "checksum": float(latents.double().abs().mean())}


def encode_plain(sizes: Sizes) -> dict:
    import torch
    import torch.nn.functional as F

    from networks.unirig import michelangelo

    def written_out_attention(q, k, v):
        return ((q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v

    def one_distance_matrix(points, count):
        points = torch.from_numpy(points)
        distance = torch.cdist(points, points).square()
        chosen = [0]
        for _ in range(count - 1):
            chosen.append(int(distance[chosen].amin(dim=0).argmax()))
        return torch.tensor(chosen).numpy()

    F.scaled_dot_product_attention = written_out_attention
    michelangelo.farthest_point_sampling = one_distance_matrix
    return encode(sizes)


# The decoder: prompt once, beams as queries of one sequence, against a batch of beams as `transformers` has it.


def random_prompt(model, sizes: Sizes):
    import torch

    torch.manual_seed(SEED)
    tokens = model.tokenizer
    condition = torch.randn(1, model.mesh_encoder.token_num, model.output_proj.out_features)
    return model.prompt(condition, torch.tensor([tokens.bos, tokens.class_ids["articulationxl"]]))


def prefill(sizes: Sizes) -> dict:

    from networks.unirig.generation import BeamDecoder

    model = skeleton_model(sizes)
    prompt = random_prompt(model, sizes)
    seconds, logits = timed(lambda: BeamDecoder(model.transformer, sizes.beams).prefill(prompt))
    return {"seconds": seconds, "checksum": float(logits.double().abs().mean())}


def prefill_plain(sizes: Sizes) -> dict:

    model = skeleton_model(sizes)
    prompt = random_prompt(model, sizes).repeat_interleave(sizes.beams, dim=0)
    seconds, output = timed(lambda: model.transformer(inputs_embeds=prompt, use_cache=True, logits_to_keep=1))
    return {"seconds": seconds, "checksum": float(output.logits[0].double().abs().mean())}


def endless_grammar(model):
    """The grammar without its end, so that every run has the same number of tokens."""
    from networks.unirig.grammar import Grammar

    grammar = Grammar(model.tokenizer)
    grammar.allowed[:, model.tokenizer.eos] = False
    return grammar


def decode(sizes: Sizes) -> dict:
    """Beam sampling with the published settings; seconds a step do not count the prompt."""
    import torch

    from networks.unirig.generation import GenerationSettings, generate
    from networks.unirig.grammar import State

    model = skeleton_model(sizes)
    prompt = random_prompt(model, sizes)
    settings = GenerationSettings(num_beams=sizes.beams, max_new_tokens=sizes.new_tokens)
    moments = []
    torch.manual_seed(SEED)
    generate(
        model.transformer,
        prompt,
        endless_grammar(model),
        int(State.AFTER_CLASS),
        settings,
        eos=model.tokenizer.eos,
        progress=lambda _count: moments.append(time.perf_counter()),
    )
    return {"seconds": (moments[-1] - moments[0]) / (len(moments) - 1), "tokens": len(moments)}


def decode_plain(sizes: Sizes) -> dict:
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    from networks.unirig.generation import GenerationSettings
    from networks.unirig.grammar import State

    model = skeleton_model(sizes)
    grammar = endless_grammar(model)
    moments = []

    class WholeSequence(LogitsProcessor):
        def __call__(self, ids, scores):
            moments.append(time.perf_counter())
            for row, tokens in enumerate(ids):
                state = torch.tensor(int(State.AFTER_CLASS))
                for token in tokens:
                    state = grammar.advance(state, token)
                scores[row].masked_fill_(~grammar.allowed[state], -float("inf"))
            return scores

    published = GenerationSettings()
    torch.manual_seed(SEED)
    model.transformer.generate(
        inputs_embeds=random_prompt(model, sizes),
        max_new_tokens=sizes.new_tokens,
        num_beams=sizes.beams,
        do_sample=True,
        temperature=published.temperature,
        top_k=published.top_k,
        top_p=published.top_p,
        repetition_penalty=published.repetition_penalty,
        bos_token_id=model.tokenizer.bos,
        eos_token_id=model.tokenizer.eos,
        pad_token_id=model.tokenizer.pad,
        logits_processor=LogitsProcessorList([WholeSequence()]),
    )
    return {"seconds": (moments[-1] - moments[0]) / (len(moments) - 1), "tokens": len(moments)}


def walk_grammar(sizes: Sizes, step: Callable) -> dict:
    import torch

    from networks.unirig.grammar import Grammar
    from networks.unirig.tokenizer import Tokenizer

    grammar = Grammar(Tokenizer())
    tokens = torch.tensor([257, 266, *torch.randint(0, 256, (sizes.sequence,)).tolist()])

    def walk():
        states = torch.zeros(sizes.beams, dtype=torch.int64)
        for i in range(len(tokens)):
            states = step(grammar, states, tokens, i)
            grammar.allowed[states]

    return {"seconds": timed(walk)[0] / len(tokens)}


def grammar_step(sizes: Sizes) -> dict:
    return walk_grammar(sizes, lambda grammar, states, tokens, i: grammar.advance(states, tokens[i].expand_as(states)))


def grammar_step_plain(sizes: Sizes) -> dict:
    import torch

    def all_over_again(grammar, states, tokens, i):
        again = torch.zeros_like(states)
        for beam in range(len(states)):
            for token in tokens[: i + 1]:
                again[beam] = grammar.advance(again[beam], token)
        return again

    return walk_grammar(sizes, all_over_again)


STAGES: dict[str, tuple[Callable, Callable | None]] = {
    "mesh_prep": (mesh_prep, None),
    "sampling": (sampling, None),
    "encode": (encode, encode_plain),
    "prefill": (prefill, prefill_plain),
    "decode": (decode, decode_plain),
    "grammar_step": (grammar_step, grammar_step_plain),
    **SKIN_STAGES,
}


def measure(stage: str, plain: bool, small: bool) -> dict:
    """Run one measurement in a child process: seconds, peak_bytes, and what the stage adds."""
    command = [sys.executable, __file__, "--child", stage]
    command += ["--plain"] * plain + ["--small"] * small
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(child.stdout.splitlines()[-1])


def run_child(stage: str, plain: bool, small: bool) -> None:
    import torch

    with torch.no_grad():
        result = STAGES[stage][plain](SMALL if small else Sizes())
    unit = 1 if sys.platform == "darwin" else 1024
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps(result))


def report(stage: str, ours: dict, plain: dict | None) -> str:
    line = f"{stage:14} {ours['seconds']:10.4f} s {ours['peak_bytes'] / 1e9:7.2f} GB"
    if plain:
        line += f"   {plain['seconds']:10.4f} s {plain['peak_bytes'] / 1e9:7.2f} GB"
        line += f"   {plain['seconds'] / ours['seconds']:6.1f} x  {ours['peak_bytes'] / plain['peak_bytes']:6.0%}"
    return line


def missed_targets(results: dict) -> list[str]:
    missed = []
    if "prefill" in results:
        speedup = results["prefill"]["plain"]["seconds"] / results["prefill"]["ours"]["seconds"]
        if speedup < PREFILL_SPEEDUP:
            missed.append(f"prefill is {speedup:.1f} times as fast, the target is {PREFILL_SPEEDUP:.0f}")
    if "decode" in results:
        share = results["decode"]["ours"]["peak_bytes"] / results["decode"]["plain"]["peak_bytes"]
        if share > DECODE_MEMORY:
            missed.append(f"the decoder takes {share:.0%} of the memory, the target is {DECODE_MEMORY:.0%}")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes; says nothing about speed")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.add_argument("--child", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(options.child, options.plain, options.small)
        return 0
    print(f"{'':14} {'ours':>12} {'peak':>10}   {'straightforward':>12} {'peak':>7}", file=sys.stderr)
    results = {}
    for stage in options.stages:
        ours = measure(stage, False, options.small)
        plain = measure(stage, True, options.small) if STAGES[stage][1] else None
        results[stage] = {"ours": ours, "plain": plain}
        print(report(stage, ours, plain), file=sys.stderr if options.json else sys.stdout, flush=True)
    missed = [] if options.small else missed_targets(results)
    if options.json:
        print(json.dumps({"sizes": asdict(SMALL if options.small else Sizes()), "results": results, "missed": missed}))
    for line in missed:
        print(f"target missed: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
