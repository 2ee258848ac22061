"""Golden cases of UniRig's skeleton half."""

import re

import numpy as np
import torch
from parity_case import GEOMETRY_ATOL, Case, Check, close, exact, same

from networks.unirig.ar import LM_HEAD, SkeletonModel
from networks.unirig.checkpoint import load_weights
from networks.unirig.generation import GenerationSettings, generate
from networks.unirig.grammar import Grammar, State
from networks.unirig.mesh_prep import TARGET_FACES, PreparedMesh, prepare_mesh
from networks.unirig.michelangelo import (
    MichelangeloEncoder,
    farthest_point_sampling,
    fourier_features,
    presample_index,
)
from networks.unirig.normalize import connect_tails, fit_matrix, inverse_transform, transform
from networks.unirig.pipeline import SkeletonSettings, move_skeleton, predict_ids, sample_skeleton_stage
from networks.unirig.sampler import SampleDraws, draw, sample_mesh
from networks.unirig.skeleton_mesh import skeleton_mesh
from networks.unirig.skin import SkinModel
from networks.unirig.skinning import SkinSettings, run_skin_stage
from networks.unirig.tokenizer import Tokenizer


def run_michelangelo(case: Case) -> list[Check]:
    model = MichelangeloEncoder.from_config(case.config).eval()
    model.load_state_dict(case.weights)
    points, feats = case.inputs["pc"], case.inputs.get("feats")
    stages = {}
    encoder = model.encoder
    encoder.cross_attn.register_forward_hook(lambda _m, _i, out: stages.__setitem__("after_cross", out))
    encoder.self_attn.resblocks[0].register_forward_hook(lambda _m, _i, out: stages.__setitem__("after_resblock0", out))
    encoder.register_forward_pre_hook(lambda _m, args: stages.update(query_proj=args[0], data_proj=args[1]))
    stages["latents"] = model(points, feats)
    stages["fourier"] = fourier_features(points, encoder.num_freqs, encoder.include_pi)

    presample = presample_index(points.shape[1], model.token_num)
    chosen = [farthest_point_sampling(cloud[presample].numpy(), model.token_num) for cloud in points]
    offset = [torch.from_numpy(index) + i * len(presample) for i, index in enumerate(chosen)]
    # One pre-sample serves the whole batch; a recording may hold it once or once an item.
    recorded = case.outputs["presample_index"]
    repeats = recorded.numel() // len(presample)
    return [
        exact(case, "presample_index", np.tile(presample, repeats).reshape(recorded.shape)),
        exact(case, "fps_index", torch.cat(offset)),
        close(case, "fourier", stages.pop("fourier"), atol=1e-6, rtol=0),
        *(close(case, name, stages[name], atol=1e-4, rtol=0) for name in sorted(stages)),
    ]


def run_tokenizer(case: Case) -> list[Check]:
    tokenizer = _tokenizer(case.config)
    extra = case.extra
    part_starts = {int(i): part for i, part in (extra.get("parts_bias") or {}).items()}
    joints, parents = case.inputs["joints"].numpy(), case.inputs["parents"].numpy()
    ids = tokenizer.tokenize(joints, parents, case.config["cls"], part_starts)
    checks = [exact(case, "ids", ids), *_check_skeleton(case, "detok_", tokenizer, case.outputs["ids"])]
    skeleton = tokenizer.detokenize(case.outputs["ids"])
    checks += [
        exact(case, "branch", skeleton.branch),
        same("detok_names", skeleton.names, extra["detok_names"]),
        same("detok_parts", skeleton.parts, extra["detok_parts"]),
        same("detok_cls", [skeleton.skeleton_class], [extra["detok_cls"]]),
    ]
    if extra.get("legal", True):
        checks += _check_grammar(case, Grammar(tokenizer, published=True), case.outputs["ids"])
    return checks


def run_tokenizer_random(case: Case) -> list[Check]:
    tokenizer = _tokenizer(case.config)
    checks = [
        exact(case, "ids", tokenizer.quantize(case.inputs["values"].numpy())),
        close(case, "table", tokenizer.dequantize(range(tokenizer.num_discrete)), atol=1e-6, rtol=0),
    ]
    for name, ids in case.inputs.items():
        if name.startswith("seq"):
            checks += _check_skeleton(case, f"{name}_", tokenizer, ids)
    return checks


def _tokenizer(config: dict) -> Tokenizer:
    low, high = config.get("continuous_range") or config.get("range") or (-1, 1)
    return Tokenizer(num_discrete=config.get("num_discrete", 256), continuous_range=(low, high))


def _check_skeleton(case: Case, prefix: str, tokenizer: Tokenizer, ids: torch.Tensor) -> list[Check]:
    """Compare the outputs `<prefix>joints`, … with what the ids say."""
    skeleton = tokenizer.detokenize(ids.tolist(), published_root_tail=True)
    checks = [exact(case, f"{prefix}parents", skeleton.parents)]
    for name in ("joints", "parent_joints", "tails"):
        if f"{prefix}{name}" in case.outputs:
            checks.append(close(case, f"{prefix}{name}", getattr(skeleton, name), atol=1e-6, rtol=0))
    return checks


def _check_grammar(case: Case, grammar: Grammar, ids: torch.Tensor) -> list[Check]:
    states = grammar.run(ids)[:-1]
    complete = torch.cat([torch.zeros(1, dtype=torch.int64), (states[1:] == int(State.BONE)).long()])
    return [
        exact(case, "next_token_counts", grammar.allowed[states].sum(dim=-1)),
        exact(case, "bones_in_sequence", complete.cumsum(0)),
    ]


def run_ar(case: Case) -> list[Check]:
    model = SkeletonModel(case.config["llm"], case.config["mesh_encoder"])
    load_weights(model, case.weights, optional={LM_HEAD})
    points, normals, start = case.inputs["vertices"], case.inputs["normals"], case.inputs["start_tokens"]
    condition = model.encode(points[None], normals[None])
    greedy = case.outputs["greedy_ids"]
    prompt = model.prompt(condition, torch.cat([start, greedy]))
    logits = model.transformer(inputs_embeds=prompt).logits[0, condition.shape[1] :]
    grammar = Grammar(model.tokenizer, published=True)
    states = grammar.run(torch.cat([start, greedy]))[len(start) : -1]
    checks = [
        close(case, "cond", condition, atol=1e-4, rtol=0),
        close(case, "teacher_forced_logits", logits, atol=2e-5, rtol=1e-4),
        exact(case, "greedy_allowed_mask", grammar.allowed[states]),
        *_check_skeleton(case, "detok_", model.tokenizer, torch.cat([start, greedy])),
    ]
    if "names" in case.extra:
        names = model.tokenizer.detokenize(torch.cat([start, greedy]).tolist()).names
        checks.append(same("names", names, case.extra["names"]))
    for name, expected in case.outputs.items():
        if not name.endswith("_ids"):
            continue
        settings, seed = _recorded_settings(name)
        # A recording that does not end with eos was cut off at its length.
        cut_off = int(expected[-1]) != model.tokenizer.eos
        limit = len(expected) if cut_off else model.max_new_tokens
        torch.manual_seed(seed)
        ids = generate(
            model.transformer,
            model.prompt(condition, start),
            grammar,
            int(grammar.run(start)[-1]),
            GenerationSettings(max_new_tokens=limit, **settings),
            eos=model.tokenizer.eos,
        )
        checks.append(exact(case, name, ids))
    return checks


def _recorded_settings(name: str) -> tuple[dict, int]:
    """`beam5_rep3_ids`, `beam15_sample_seed1234_ids`, … -> generation settings and seed."""
    beams = re.search(r"beam(\d+)", name)
    penalty = re.search(r"rep(\d+(?:\.\d+)?)", name)
    seed = re.search(r"seed(\d+)", name)
    sample = "sample" in name
    settings = {
        "num_beams": int(beams[1]) if beams else 1,
        "do_sample": sample,
        "repetition_penalty": float(penalty[1]) if penalty else (3.0 if sample else 1.0),
    }
    return settings, int(seed[1]) if seed else 0


def run_mesh_prep(case: Case) -> list[Check]:
    vertices, faces = case.inputs["vertices"].numpy(), case.inputs["faces"].numpy()
    checks = []
    for key, target in case.config.items():
        if not key.startswith("target_count_"):
            continue
        name = key.removeprefix("target_count_")
        mesh = prepare_mesh(vertices, faces, target_faces=target)
        checks.append(exact(case, f"{name}_faces", mesh.faces))
        for part in ("vertices", "vertex_normals", "face_normals"):
            checks.append(close(case, f"{name}_{part}", getattr(mesh, part), atol=GEOMETRY_ATOL, rtol=0))
    return checks


def run_normalize(case: Case) -> list[Check]:
    vertices, joints, tails, parents = (case.inputs[k].numpy() for k in ("vertices", "joints", "tails", "parents"))
    low, high = case.config["normalize_into"]
    mesh_only = fit_matrix(vertices, low, high)
    with_joints = fit_matrix(np.concatenate([vertices, joints]), low, high)
    moved_joints = transform(with_joints, joints)
    results = {
        "matrix_mesh_only": mesh_only,
        "vertices_mesh_only": transform(mesh_only, vertices),
        "matrix_with_joints": with_joints,
        "vertices_with_joints": transform(with_joints, vertices),
        "joints_with_joints": moved_joints,
        "tails_connected": connect_tails(moved_joints, transform(with_joints, tails), parents),
    }
    return [close(case, name, value, atol=1e-6, rtol=0) for name, value in results.items()]


def run_sampler(case: Case) -> list[Check]:
    given = {name: tensor.numpy() for name, tensor in case.inputs.items()}
    mesh = PreparedMesh(given["vertices"], given["faces"], given["vertex_normals"], given["face_normals"])
    draws = SampleDraws(given["rand_perm_vertices"], given["rand_face"], given["rand_bary"])
    num_samples, vertex_samples = case.config["num_samples"], case.config["vertex_samples"]
    samples = sample_mesh(mesh, num_samples, vertex_samples, draws, given.get("group"))
    checks = [
        close(case, "vertices", samples.points, atol=1e-6, rtol=0),
        close(case, "normals", samples.normals, atol=1e-6, rtol=0),
    ]
    if samples.groups is not None:
        checks.append(close(case, "group", samples.groups, atol=1e-6, rtol=0))
    if "numpy_seed" in case.config:
        random = np.random.RandomState(case.config["numpy_seed"])
        own = draw(random, len(mesh.vertices), num_samples, vertex_samples)
        checks += [
            exact(case, "in/rand_perm_vertices", own.vertex_order, expected=draws.vertex_order),
            exact(case, "in/rand_face", own.face, expected=draws.face),
            exact(case, "in/rand_bary", own.barycentric, expected=draws.barycentric),
        ]
    return checks


def run_skeleton_mesh(case: Case) -> list[Check]:
    vertices, faces, skin = skeleton_mesh(case.inputs["bones"].numpy())
    return [
        close(case, "vertices", vertices, atol=GEOMETRY_ATOL, rtol=0),
        exact(case, "faces", faces),
        exact(case, "skin", skin),
    ]


def run_pipeline(case: Case) -> list[Check]:
    """Stages 1 to 8 on the weights of two sibling cases, each stage on what our own stage before it made."""
    config, given = case.config, {name: tensor.numpy() for name, tensor in case.inputs.items()}
    skeleton_case, skin_case = (case.sibling(config[name]) for name in ("weights_skeleton", "weights_skin"))
    skeleton_model = SkeletonModel(skeleton_case.config["llm"], skeleton_case.config["mesh_encoder"])
    load_weights(skeleton_model, skeleton_case.weights, optional={LM_HEAD})
    skin_model = SkinModel.from_config(skin_case.config).eval()
    load_weights(skin_model, skin_case.weights)

    mesh = prepare_mesh(given["vertices"], given["faces"], config.get("faces_target_count", TARGET_FACES))
    settings = SkeletonSettings(
        seed=config["skeleton_numpy_seed"],
        skeleton_class=config["cls"],
        num_samples=config["skeleton_num_samples"],
        vertex_samples=config["skeleton_vertex_samples"],
        generation=_described_generation(config["generation"]),
        published_rules=True,
    )
    first = sample_skeleton_stage(mesh, settings)
    ids = predict_ids(skeleton_model, first.samples, settings)
    closed = _closed(skeleton_model.tokenizer, ids, len(case.outputs["joints"]))
    skeleton = skeleton_model.tokenizer.detokenize(closed, published_root_tail=True)
    if len(closed) == len(case.outputs["ids"]):
        ids = closed
    in_input_space = move_skeleton(skeleton, lambda points: inverse_transform(first.matrix, points))

    skin_settings = SkinSettings(
        seed=config["skin_numpy_seed"],
        num_samples=config["skin_num_samples"],
        vertex_samples=config["skin_vertex_samples"],
        voxel_grid=config["voxel_grid"],
    )
    second = run_skin_stage(
        skin_model, first.mesh, skeleton.joints, skeleton.parents, skin_settings, order_perm=case.inputs["order_perm"]
    )
    discrete = {"welded_faces": mesh.faces, "ids": ids, "parents": skeleton.parents}
    geometry = {
        "welded_vertices": mesh.vertices,
        "matrix_stage1": first.matrix,
        "normalized_vertices": first.mesh.vertices,
        "joints": skeleton.joints,
        "tails": skeleton.tails,
        "matrix_stage2": second.matrix,
        "stage2_vertices": second.mesh.vertices,
        "stage2_joints": second.joints,
        "stage2_tails": transform(second.matrix, skeleton.tails),
        "joints_in_input_space": in_input_space.joints,
        "tails_in_input_space": in_input_space.tails,
    }
    weights = {
        "voxel_skin_mesh": second.voxel_skin,
        "voxel_skin_samples": second.samples.groups,
        "skin_samples": second.sampled_skin,
        "skin_mesh": second.weights,
    }
    samples = {
        "sk_sample_vertices": first.samples.points,
        "sk_sample_normals": first.samples.normals,
        "skin_sample_vertices": second.samples.points,
        "skin_sample_normals": second.samples.normals,
    }
    return [
        *(exact(case, name, value) for name, value in discrete.items() if name in case.outputs),
        *(
            close(case, name, value, atol=GEOMETRY_ATOL, rtol=0)
            for name, value in geometry.items()
            if name in case.outputs
        ),
        *(close(case, name, value, atol=1e-4, rtol=0) for name, value in weights.items() if name in case.outputs),
        *(
            close(case, f"in/{name}", value, expected=given[name], atol=GEOMETRY_ATOL, rtol=0)
            for name, value in samples.items()
            if name in given
        ),
    ]


def _closed(tokenizer: Tokenizer, ids: np.ndarray, bones: int) -> np.ndarray:
    """Sequences that never reached eos were recorded up to some bone, and closed there."""
    if ids[-1] == tokenizer.eos:
        return ids
    for end in range(len(ids), 0, -1):
        closed = np.concatenate([ids[:end], [tokenizer.eos]])
        try:
            if len(tokenizer.detokenize(closed).joints) == bones:
                return closed
        except ValueError:  # cut inside a bone
            continue
    return ids


def _described_generation(text: str) -> GenerationSettings:
    """Settings of words such as "greedy, repetition_penalty 3.0, max_new_tokens 64"."""
    numbers = dict(re.findall(r"(\w+)[ =:]+([\d.]+)", text))
    greedy = "greedy" in text
    return GenerationSettings(
        max_new_tokens=int(numbers.get("max_new_tokens", 64)),
        num_beams=int(numbers.get("num_beams", 1 if greedy else 15)),
        do_sample="sampl" in text,
        repetition_penalty=float(numbers.get("repetition_penalty", 1.0)),
    )


CASES = {
    "pipeline": run_pipeline,
    "mesh_prep": run_mesh_prep,
    "normalize": run_normalize,
    "sampler": run_sampler,
    "skeleton_mesh": run_skeleton_mesh,
    "michelangelo": run_michelangelo,
    "tokenizer": run_tokenizer,
    "tokenizer_random": run_tokenizer_random,
    "ar": run_ar,
}
