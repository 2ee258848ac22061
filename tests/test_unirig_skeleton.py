"""UniRig's skeleton half: golden cases, the parity runner, and the properties of each stage."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
import types
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import parity
import parity_unirig
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_case import Case, CaseError, Check, close, exact, family_of, load_case
from safetensors.torch import load_file, save_file

from networks.unirig import generation
from networks.unirig.ar import LM_HEAD, SkeletonModel
from networks.unirig.checkpoint import load_weights, read_checkpoint
from networks.unirig.generation import GenerationSettings, generate
from networks.unirig.grammar import Grammar, State
from networks.unirig.mesh_prep import PreparedMesh, prepare_mesh, triangulate, y_up_to_z_up, z_up_to_y_up
from networks.unirig.michelangelo import MichelangeloEncoder, farthest_point_sampling
from networks.unirig.normalize import fit_matrix, inverse_transform, transform
from networks.unirig.pipeline import SkeletonSettings, generate_skeleton
from networks.unirig.sampler import draw, sample_mesh
from networks.unirig.skeleton_mesh import skeleton_mesh
from networks.unirig.tokenizer import Tokenizer, bone_tails
from shared_utils.errors import InvalidInputError, MissingInputError, PostConditionError

GOLDEN = Path(__file__).parent / "golden" / "unirig"
PUBLISHED = {"repetition_penalty": 3.0, "temperature": 1.5, "top_k": 5, "top_p": 0.95}
FAMILIES = set(parity_unirig.CASES)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny_case() -> Case:
    return load_case(GOLDEN / "case_ar_1.json")


@pytest.fixture(scope="module")
def tiny_model(tiny_case) -> SkeletonModel:
    model = SkeletonModel(tiny_case.config["llm"], tiny_case.config["mesh_encoder"])
    load_weights(model, tiny_case.weights, optional={LM_HEAD})
    return model


def creature() -> PreparedMesh:
    case = load_case(GOLDEN / "case_mesh_prep_1.json")
    return prepare_mesh(case.inputs["vertices"].numpy(), case.inputs["faces"].numpy())


# Golden cases and their runner


GOLDEN_CASES = sorted(p for p in GOLDEN.glob("case_*.json") if family_of(p.stem) in FAMILIES)


@pytest.mark.parametrize("path", GOLDEN_CASES, ids=lambda p: p.stem)
def test_golden(path):
    worst, remarks = parity.run_case(path, parity.load_families())
    assert worst.ok, remarks


def test_every_family_has_a_golden_case():
    assert {family_of(path.stem) for path in GOLDEN_CASES} == FAMILIES


def copy_case(folder: Path, stem: str) -> Path:
    for suffix in (".json", ".safetensors"):
        shutil.copy(GOLDEN / (stem + suffix), folder)
    return folder / f"{stem}.safetensors"


def run_parity(folder, capsys) -> tuple[int, list[str], str]:
    code = parity.main([str(folder)])
    output = capsys.readouterr()
    return code, output.out.splitlines(), output.err


def test_runner_from_any_folder(tmp_path):
    copy_case(tmp_path, "case_normalize_1")
    script = Path(parity.__file__)
    result = subprocess.run(
        [sys.executable, script, "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert result.returncode == 0, result.stderr
    name, error, tolerance, verdict = result.stdout.split()
    assert (name, verdict) == ("case_normalize_1", "ok")
    assert float(error) <= float(tolerance)


def test_runner_reports_a_changed_output(tmp_path, capsys):
    path = copy_case(tmp_path, "case_normalize_1")
    copy_case(tmp_path, "case_tokenizer_random_1")
    tensors = load_file(path)
    tensors["out/vertices_mesh_only"][3, 1] += 0.01
    save_file(tensors, path)
    code, lines, errors = run_parity(tmp_path, capsys)
    assert code == 1
    assert [line.split()[-1] for line in lines] == ["MISS", "ok"]
    assert float(lines[0].split()[1]) == pytest.approx(0.01, rel=1e-3)
    assert "vertices_mesh_only" in errors


@pytest.mark.parametrize("damage", ["unknown", "truncated", "no_tensors", "no_json", "bad_json", "unnamed", "raises"])
def test_runner_refuses(tmp_path, capsys, damage):
    path = copy_case(tmp_path, "case_normalize_1")
    description = path.with_suffix(".json")
    if damage == "unknown":
        path.rename(tmp_path / "case_nothing_like_it_1.safetensors")
        description.rename(tmp_path / "case_nothing_like_it_1.json")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "no_tensors":
        path.unlink()
    elif damage == "no_json":
        description.unlink()
    elif damage == "bad_json":
        description.write_text("{")
    elif damage == "unnamed":
        path.rename(tmp_path / "case_normalize.safetensors")
        description.rename(tmp_path / "case_normalize.json")
    elif damage == "raises":
        tensors = load_file(path)
        del tensors["in/joints"]
        save_file(tensors, path)
    code, lines, errors = run_parity(tmp_path, capsys)
    assert code == 1
    assert lines[-1].endswith("MISS")
    assert errors


def test_runner_refuses_an_empty_folder(tmp_path, capsys):
    assert parity.main([str(tmp_path)]) == 1
    assert "no case_" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stem", "family"),
    [
        ("case_ar_1", "ar"),
        ("case_tokenizer_random_12", "tokenizer_random"),
        ("case_subm_conv_gpu_rule_1", "subm_conv_gpu_rule"),
        ("case_geodesic_1b", "geodesic"),
    ],
)
def test_family_names(stem, family):
    assert family_of(stem) == family


def test_family_needs_a_number():
    with pytest.raises(CaseError):
        family_of("case_tokenizer")


def make_case(tolerance, **outputs) -> Case:
    return Case("case_x_1", "x", {}, {"tolerance": tolerance}, {}, {}, outputs, Path())


@pytest.mark.parametrize(
    ("tolerance", "ok"),
    [
        (None, True),
        ({"atol": 1e-3, "rtol": 0.0}, False),
        ({"atol": 1e-3, "rtol": 1e-2}, True),
        (0.02, True),
        ("exact", False),
        ({"y": "exact"}, True),
        ({"x": "exact"}, False),
        ({"x": {"atol": 0.02, "why": "rounding"}}, True),
    ],
)
def test_tolerance_of_the_case_wins(tolerance, ok):
    case = make_case(tolerance, **{"mesh0.x": torch.tensor([1.0, 2.0])})
    assert close(case, "mesh0.x", np.array([1.0, 2.01]), atol=0.05).ok is ok


def test_wrong_shapes_and_nan_are_misses():
    case = make_case(None, x=torch.tensor([1.0, float("nan")]))
    assert close(case, "x", [1.0, float("nan")]).ok
    assert not close(case, "x", [float("nan"), float("nan")]).ok
    assert not close(case, "x", [1.0, 0.0]).ok
    assert not close(case, "x", [1.0]).ok
    assert not exact(case, "x", [[1.0, 2.0]]).ok
    assert exact(make_case({"atol": 5}, x=torch.tensor([3])), "x", [4]) == Check("x", 1.0, 0.0)


# Tokens and grammar


skeletons = st.integers(1, 40).flatmap(
    lambda count: st.tuples(
        st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=count, max_size=count, unique=True),
        st.tuples(*(st.integers(0, max(0, i - 1)) for i in range(count))),
    )
)


@given(skeletons, st.sampled_from(["articulationxl", "vroid", "mixamo"]))
@settings(max_examples=60, deadline=None)
def test_skeleton_survives_the_tokens(skeleton, skeleton_class):
    tokenizer = Tokenizer()
    bins = np.array(skeleton[0])
    parents = np.array([-1, *skeleton[1][1:]])
    joints = tokenizer.dequantize(bins) - 1 / 256  # so that quantising gives these bins, whatever the rounding
    part_starts = {0: "body", min(len(bins) - 1, 5): None}
    ids = tokenizer.tokenize(joints, parents, skeleton_class, part_starts)
    again = tokenizer.detokenize(ids)
    assert np.array_equal(again.joints, tokenizer.dequantize(tokenizer.quantize(joints)))
    assert np.array_equal(again.parents, parents)
    assert np.array_equal(again.branch[1:], parents[1:] != np.arange(len(parents) - 1))
    assert len(again.names) == len(set(again.names)) == len(bins)
    # The grammar allows every token of what the tokenizer writes.
    states = Grammar(tokenizer).run(torch.from_numpy(ids))
    assert states[-1] == State.END


@given(st.integers(0, 2**32 - 1), st.sampled_from(["articulationxl", "vroid"]))
@settings(max_examples=60, deadline=None)
def test_whatever_the_grammar_allows_is_a_skeleton(seed, skeleton_class):
    tokenizer, random = Tokenizer(), np.random.default_rng(seed)
    grammar = Grammar(tokenizer)
    ids = [tokenizer.bos, tokenizer.class_ids[skeleton_class]]
    state = grammar.run(torch.tensor(ids))[-1]
    while ids[-1] != tokenizer.eos:
        choices = grammar.allowed[state].nonzero().squeeze(1).numpy()
        special = choices[choices >= tokenizer.num_discrete]
        ids.append(int(random.choice(special if len(special) and random.random() < 0.4 else choices)))
        state = grammar.advance(state, torch.tensor(ids[-1]))
    skeleton = tokenizer.detokenize(ids)
    assert len(skeleton.joints) >= 1
    assert all(-1 <= parent < i for i, parent in enumerate(skeleton.parents))
    assert np.isfinite(skeleton.tails).all()


def test_published_grammar_has_its_known_holes():
    tokenizer = Tokenizer()
    ours, published = Grammar(tokenizer), Grammar(tokenizer, published=True)

    def next_allowed(grammar, *ids):
        return grammar.allowed[grammar.run(torch.tensor([tokenizer.bos, tokenizer.class_ids["vroid"], *ids]))[-1]]

    joint, parent = [1, 2, 3], [tokenizer.branch, 4, 5, 6]
    hand = tokenizer.part_ids["hand"]
    assert next_allowed(published)[tokenizer.eos] and not next_allowed(ours)[tokenizer.eos]
    assert next_allowed(published, *joint, *parent)[tokenizer.eos]
    assert not next_allowed(ours, *joint, *parent)[tokenizer.eos]
    assert not next_allowed(published, *joint, hand)[tokenizer.branch]
    assert next_allowed(ours, *joint, hand)[tokenizer.branch]


@pytest.mark.parametrize(
    "ids",
    [
        [257, 266, 1, 2, 3],  # no eos: generation was cut off
        [257, 266, 258],  # no bone
        [257, 266, 1, 2, 258],
        [257, 266, 1, 2, 3, 256, 4, 5, 6, 258],  # a parent without its child
        [257, 266, 1, 2, 260, 258],
        [],
    ],
)
def test_broken_sequences_are_refused(ids):
    with pytest.raises(ValueError):
        Tokenizer().detokenize(ids)


def test_pads_after_eos_are_dropped():
    tokenizer = Tokenizer()
    ids = [257, 266, 1, 2, 3, 258]
    assert np.array_equal(tokenizer.detokenize([*ids, 259, 259]).joints, tokenizer.detokenize(ids).joints)


def test_branch_takes_the_nearest_joint_and_the_later_of_two_equal_ones():
    ids = [257, 266, 10, 10, 10, 50, 50, 50, 10, 10, 10, 256, 12, 9, 10, 90, 90, 90, 258]
    assert Tokenizer().detokenize(ids).parents.tolist() == [-1, 0, 1, 2]


def test_tails():
    joints = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 3], [0, 2, 1], [0, 2, 1]], dtype=np.float32)
    tails = bone_tails(joints, np.array([-1, 0, 1, 1, 3]))
    assert tails[0].tolist() == [0, 0, 1]  # one child: its head
    assert tails[1].tolist() == [0, 0, 1.5]  # two children: half the parent bone on
    assert tails[2].tolist() == [0, 0, 4]
    assert tails[4].tolist() == [0, 2, 1.5]  # on top of its parent: upwards
    assert bone_tails(joints[:1], np.array([-1])).tolist() == [[0, 0, 0.5]]


def test_root_tail_does_not_depend_on_the_origin():
    joints = np.array([[1, 1, 0], [1, 2, 0], [1, 0, 0]], dtype=np.float32)
    parents = np.array([-1, 0, 0])
    moved = bone_tails(joints + 5, parents) - 5
    assert np.allclose(moved, bone_tails(joints, parents), atol=1e-5)
    assert np.allclose(bone_tails(joints, parents)[0], [1, 1, 0.5])


# Generation


def reference_generate(model, prompt, grammar, start_state, **options):
    """`transformers.generate`, with the grammar run over the whole sequence at every step."""
    from transformers import LogitsProcessor, LogitsProcessorList

    class WholeSequence(LogitsProcessor):
        def __call__(self, ids, scores):
            states = torch.full((len(ids),), start_state)
            for column in ids.T:
                states = grammar.advance(states, column)
            return scores.masked_fill(~grammar.allowed[states], -float("inf"))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.transformer.generate(
            inputs_embeds=prompt,
            bos_token_id=257,
            eos_token_id=258,
            pad_token_id=259,
            logits_processor=LogitsProcessorList([WholeSequence()]),
            **options,
        )[0]


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 1, "do_sample": False, "repetition_penalty": 1.0},
        {"num_beams": 1, "do_sample": True, **PUBLISHED},
        {"num_beams": 3, "do_sample": False, "repetition_penalty": 3.0},
        {"num_beams": 4, "do_sample": True, "repetition_penalty": 1.5, "temperature": 1.0, "top_k": 50, "top_p": 0.9},
        {"num_beams": 15, "do_sample": True, **PUBLISHED},
    ],
    ids=lambda options: f"{options['num_beams']}-{'sample' if options['do_sample'] else 'search'}",
)
@pytest.mark.parametrize("published", [False, True], ids=["ours", "published"])
def test_same_ids_as_transformers(tiny_case, tiny_model, monkeypatch, options, published):
    """In float64: with a penalty of 3 many probabilities are near float32's smallest number, where rounding decides."""
    monkeypatch.setattr(generation, "GROWTH", 24)  # so that buffers grow and dead branches are dropped
    model = copy.deepcopy(tiny_model).double()
    grammar = Grammar(model.tokenizer, published=published)
    start = int(State.AFTER_CLASS)
    lengths = set()
    for seed in range(4):
        torch.manual_seed(seed)
        prompt = tiny_case.outputs["cond"] + 0.5 * torch.randn(1, 12, 48)
        prompt = model.prompt(prompt.double(), tiny_case.inputs["start_tokens"])
        torch.manual_seed(seed)
        expected = reference_generate(model, prompt, grammar, start, max_new_tokens=60, **options)
        torch.manual_seed(seed)
        ids = generate(
            model.transformer, prompt, grammar, start, GenerationSettings(max_new_tokens=60, **options), eos=258
        )
        assert ids.tolist() == expected.tolist()
        lengths.add(len(ids))
    assert len(lengths) > 1  # the prompts do differ


def test_beams_share_what_they_share(tiny_case, tiny_model, monkeypatch):
    """The pool must not grow by one entry a beam and step: dead branches go."""
    monkeypatch.setattr(generation, "GROWTH", 30)
    held = []
    step = generation.BeamDecoder.step

    def watched(self, tokens, origin):
        logits = step(self, tokens, origin)
        held.append(self.cache.get_seq_length() - self.prompt_length)
        return logits

    monkeypatch.setattr(generation.BeamDecoder, "step", watched)
    torch.manual_seed(1)
    prompt = tiny_model.prompt(tiny_case.outputs["cond"], tiny_case.inputs["start_tokens"])
    grammar = Grammar(Tokenizer())
    grammar.allowed[:, 258] = False  # never ends
    generate(tiny_model.transformer, prompt, grammar, int(State.AFTER_CLASS), GenerationSettings(200), eos=258)
    assert len(held) == 199
    assert held[-1] < 199 * 15 / 4


def test_progress_counts_tokens(tiny_case, tiny_model):
    counts = []
    points, normals = tiny_case.inputs["vertices"], tiny_case.inputs["normals"]
    settings_ = GenerationSettings(num_beams=2, do_sample=False, max_new_tokens=20)
    tiny_model.generate(points, normals, settings_, progress=counts.append)
    assert counts == list(range(1, len(counts) + 1))


def test_too_many_tokens_are_refused(tiny_case, tiny_model):
    points, normals = tiny_case.inputs["vertices"], tiny_case.inputs["normals"]
    assert tiny_model.max_new_tokens == 256 - 12 - 2
    for limit in (0, 243):
        with pytest.raises(ValueError, match="max_new_tokens"):
            tiny_model.generate(points, normals, GenerationSettings(max_new_tokens=limit))


# Model and checkpoint


def test_state_dict_is_the_published_one():
    manifest = json.loads((GOLDEN / "skeleton_model.json").read_text())
    with torch.device("meta"):
        model = SkeletonModel()
    shapes = {f"model.{name}": list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == {name: shape for name, (shape, _) in manifest["state_dict"].items()}
    assert sum(p.numel() for p in model.parameters()) == manifest["parameters"]


class Box(dict):
    """python-box's `Box`, as far as pickling goes: items and instance state."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def __reduce_ex__(self, protocol):
        import copyreg

        return copyreg.__newobj__, (type(self),), {"_box_config": {"frozen_box": False}}, None, iter(self.items())


def write_checkpoint(folder: Path, case: Case, hyper_parameters, monkeypatch) -> Path:
    """A Lightning checkpoint of a case's weights, with the sizes beside it."""
    module = types.ModuleType("box.box")
    module.Box = Box
    monkeypatch.setattr(Box, "__module__", "box.box")
    monkeypatch.setitem(sys.modules, "box", types.ModuleType("box"))
    monkeypatch.setitem(sys.modules, "box.box", module)
    state = OrderedDict((f"model.{name}", tensor) for name, tensor in case.weights.items())
    state[f"model.{LM_HEAD}"] = state["model.transformer.model.decoder.embed_tokens.weight"]
    path = folder / "model.ckpt"
    content = {"epoch": 3, "state_dict": state, "hyper_parameters": hyper_parameters, "loops": {}}
    torch.save(content, path)
    monkeypatch.delitem(sys.modules, "box.box")
    monkeypatch.delitem(sys.modules, "box")
    sizes = {name: case.config[name] for name in ("llm", "mesh_encoder")}
    (folder / "config.json").write_text(json.dumps(sizes))
    return path


def test_checkpoint_with_boxes(tmp_path, tiny_case, tiny_model, monkeypatch):
    boxes = Box(model=Box(name="unirig", layers=[Box(width=3), 4]), lr=1e-4)
    path = write_checkpoint(tmp_path, tiny_case, boxes, monkeypatch)
    expected = tiny_model.encode(tiny_case.inputs["vertices"][None], tiny_case.inputs["normals"][None])
    for attempt in ("pickle", "cache"):
        model = SkeletonModel.from_checkpoint(path)
        condition = model.encode(tiny_case.inputs["vertices"][None], tiny_case.inputs["normals"][None])
        assert torch.equal(condition, expected), attempt
        assert model.transformer.lm_head.weight is model.transformer.get_input_embeddings().weight
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.ckpt", "model.ckpt.safetensors"]


def test_cache_follows_the_checkpoint(tmp_path, tiny_case, monkeypatch):
    path = write_checkpoint(tmp_path, tiny_case, {}, monkeypatch)
    before = read_checkpoint(path)
    cache = tmp_path / "model.ckpt.safetensors"
    cached = cache.read_bytes()
    torch.save({"state_dict": {"model.x": torch.ones(2)}}, path)
    assert read_checkpoint(path).keys() == {"x"}
    cache.write_bytes(cached[:100])  # a damaged cache is made again
    assert read_checkpoint(path).keys() == {"x"}
    assert read_checkpoint(cache).keys() == {"x"}
    assert len(before) == len(tiny_case.weights) + 1


def test_read_only_folder_is_no_obstacle(tmp_path, tiny_case, monkeypatch):
    path = write_checkpoint(tmp_path, tiny_case, {}, monkeypatch)

    def refuse(*_args, **_kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr("networks.unirig.checkpoint.save_file", refuse)
    assert len(read_checkpoint(path)) == len(tiny_case.weights) + 1
    assert not list(tmp_path.glob("*.safetensors")) and not list(tmp_path.glob(".*"))


class Trap:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_checkpoint_that_wants_to_run_code_is_refused(tmp_path):
    marker = tmp_path / "ran"
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"x": torch.ones(1)}, "hyper_parameters": Trap(marker)}, path)
    with pytest.raises(InvalidInputError, match="refused"):
        read_checkpoint(path)
    assert not marker.exists()
    path.write_bytes(pickle.dumps(Trap(marker)))
    with pytest.raises(InvalidInputError):
        read_checkpoint(path)
    assert not marker.exists()
    assert not list(tmp_path.glob("*.safetensors"))


def test_damaged_checkpoints(tmp_path, tiny_case, monkeypatch):
    path = write_checkpoint(tmp_path, tiny_case, {}, monkeypatch)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInputError):
        read_checkpoint(path)
    path.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(InvalidInputError):
        read_checkpoint(path)
    torch.save({"epoch": 1}, path)
    with pytest.raises(InvalidInputError, match="no tensors"):
        read_checkpoint(path)
    with pytest.raises(MissingInputError):
        read_checkpoint(tmp_path / "other.ckpt")


def test_weights_that_do_not_fit(tiny_case, caplog):
    model = SkeletonModel(tiny_case.config["llm"], tiny_case.config["mesh_encoder"])
    weights = dict(tiny_case.weights)
    weights["extra.weight"] = torch.ones(1)
    load_weights(model, weights, optional={LM_HEAD})
    assert "extra.weight" in caplog.text
    del weights["output_proj.bias"]
    with pytest.raises(InvalidInputError, match=r"output_proj\.bias"):
        load_weights(model, weights, optional={LM_HEAD})
    weights["output_proj.bias"] = torch.ones(7)
    with pytest.raises(InvalidInputError, match=r"output_proj\.bias has shape \[7\]"):
        load_weights(model, weights, optional={LM_HEAD})


# Encoder


def test_farthest_points_are_farthest():
    points = np.random.default_rng(3).normal(size=(80, 3)).astype(np.float32)
    chosen = farthest_point_sampling(points, 20)
    for i in range(1, 20):
        distance = np.linalg.norm(points[:, None] - points[chosen[:i]], axis=2).min(axis=1)
        assert distance[chosen[i]] == pytest.approx(distance.max(), rel=1e-6)


@pytest.mark.parametrize("count", [300, 40])  # more and fewer points than the pre-sample takes
@torch.no_grad()
def test_encoder_treats_batch_items_alone(count):
    torch.manual_seed(0)
    model = MichelangeloEncoder(width=24, heads=3, num_encoder_layers=2, token_num=16).eval()
    points, normals = torch.randn(2, 2, count, 3).unbind()
    together = model(points, normals)
    assert together.shape == (2, 16, 24)
    alone = torch.cat([model(points[i : i + 1], normals[i : i + 1]) for i in range(2)])
    assert torch.allclose(together, alone, atol=1e-5)


@torch.no_grad()
def test_encoder_in_bfloat16_stays_close():
    torch.manual_seed(0)
    model = MichelangeloEncoder(width=64, heads=4, num_encoder_layers=2, token_num=16).eval()
    points, normals = torch.rand(2, 1, 400, 3).unbind()
    exact_latents = model(points, normals)
    rounded = model.bfloat16()(points, normals)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact_latents).abs().mean() < 0.05


def test_encoder_refuses_unknown_settings():
    with pytest.raises(ValueError, match="query_method"):
        MichelangeloEncoder.from_config({"query_method": True})
    with pytest.raises(TypeError):
        MichelangeloEncoder.from_config({"no_such_setting": 1})


# Mesh stages


def test_triangulate_keeps_area_and_winding():
    # A square, a triangle, and a concave arrow head whose fan from vertex 0 crosses its notch.
    points = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [3, 0], [5, 1], [3, 2], [3.5, 1], [7, 0], [8, 0], [8, 1]], float)
    points = np.concatenate([points, np.zeros((len(points), 1))], axis=1)
    sizes, corners = [4, 4, 3], [1, 2, 3, 0, 6, 7, 4, 5, 8, 9, 10]
    triangles = triangulate(points, sizes, corners)
    assert triangles.tolist()[:2] == [[0, 1, 2], [0, 2, 3]]
    assert triangles.tolist()[4:] == [[8, 9, 10]]
    normals = np.cross(
        points[triangles[:, 1]] - points[triangles[:, 0]], points[triangles[:, 2]] - points[triangles[:, 0]]
    )
    assert (normals[:, 2] >= 0).all()
    flipped = triangulate(points, [4], [0, 3, 2, 1])
    assert flipped.tolist() == [[0, 3, 2], [0, 2, 1]]


def test_frames_are_inverse():
    points = np.random.default_rng(0).normal(size=(5, 3))
    assert np.array_equal(z_up_to_y_up(y_up_to_z_up(points)), points)
    assert y_up_to_z_up(np.array([1.0, 2.0, 3.0])).tolist() == [1, -3, 2]


def test_preparation_reaches_the_face_count():
    mesh = creature()
    assert len(mesh.faces) == 372
    smaller = prepare_mesh(mesh.vertices, mesh.faces, target_faces=100)
    assert 0 < len(smaller.faces) <= 100
    assert np.allclose(np.linalg.norm(smaller.face_normals, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "vertices", [np.zeros((3, 3)), np.full((3, 3), np.nan), np.array([[0, 0, 0], [1, 1, 1], [2, 2, 2]])]
)
def test_meshes_without_surface_are_refused(vertices):
    with pytest.raises(InvalidInputError, match="no surface"):
        prepare_mesh(vertices.astype(float), np.array([[0, 1, 2]]))


@given(st.lists(st.tuples(*[st.floats(-1e3, 1e3, width=32)] * 3), min_size=2, max_size=20))
@settings(max_examples=60, deadline=None)
def test_fit_and_its_inverse(points):
    points = np.array(points, dtype=np.float32)
    if np.ptp(points, axis=0).max() < 1e-2:
        with pytest.raises(InvalidInputError):
            fit_matrix(points[:1])
        return
    matrix = fit_matrix(points)
    fitted = transform(matrix, points)
    assert np.abs(fitted).max() == pytest.approx(1, abs=1e-3)
    back = inverse_transform(matrix, transform(matrix.astype(np.float64), points.astype(np.float64)))
    assert np.allclose(back, points, atol=1e-6)


def test_samples_follow_squared_area():
    # Two triangles in different planes, one twice as large: it gets four fifths of the points.
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 5], [2, 0, 5], [0, 1, 5]], dtype=np.float32)
    faces = np.array([[0, 1, 2], [3, 4, 5]])
    up = np.array([[0, 0, 1]], dtype=np.float32)
    mesh = PreparedMesh(vertices, faces, up.repeat(6, 0), up.repeat(2, 0))
    samples = sample_mesh(mesh, 4006, 8192, draw(np.random.RandomState(0), 6, 4006, 8192), vertices[:, 2:])
    assert sorted(map(tuple, samples.points[:6])) == sorted(map(tuple, vertices))
    surface = samples.points[6:]
    assert (surface[:, 2] == 5).mean() == pytest.approx(0.8, abs=0.03)
    assert np.allclose(samples.groups[:, 0], samples.points[:, 2])
    small = surface[surface[:, 2] == 0]
    assert (small >= 0).all() and (small[:, 0] + small[:, 1] <= 1 + 1e-6).all()
    assert small[:, :2].mean(axis=0) == pytest.approx(1 / 3, abs=0.03)


def test_fewer_samples_than_vertices():
    mesh = creature()
    samples = sample_mesh(mesh, 50, 100, draw(np.random.RandomState(0), len(mesh.vertices), 50, 100))
    assert samples.points.shape == samples.normals.shape == (50, 3)


def test_tube_around_an_upright_bone():
    vertices, faces, skin = skeleton_mesh(np.array([[0, 0, 0, 0, 0, 2.0], [0, 0, 2, 1, 0, 2.0]]))
    assert vertices.shape == (32, 3) and faces.max() == 31 and skin.sum(axis=1).tolist() == [1] * 32
    assert np.allclose(np.linalg.norm(vertices[:16, :2], axis=1), 0.02)


# The stage as a whole


SMALL = SkeletonSettings(
    seed=7, num_samples=200, vertex_samples=60, generation=GenerationSettings(num_beams=3, max_new_tokens=120)
)


def test_skeleton_moves_with_the_mesh(tiny_model):
    mesh = creature()
    skeleton = generate_skeleton(tiny_model, mesh, SMALL)
    assert len(skeleton.joints) == len(skeleton.names) > 0
    far = prepare_mesh(mesh.vertices.astype(float) * 4 + [8, -16, 4], mesh.faces)  # powers of two: no rounding
    moved = generate_skeleton(tiny_model, far, SMALL)
    assert moved.parents.tolist() == skeleton.parents.tolist()
    assert np.allclose(moved.joints, skeleton.joints * 4 + [8, -16, 4], atol=1e-4)
    assert np.allclose(moved.tails, skeleton.tails * 4 + [8, -16, 4], atol=1e-4)


def test_same_seed_same_skeleton(tiny_model):
    mesh = creature()
    first, second = (generate_skeleton(tiny_model, mesh, SMALL) for _ in range(2))
    assert np.array_equal(first.joints, second.joints)


def test_unfinished_sequence_is_an_error(tiny_model):
    short = SkeletonSettings(
        num_samples=200, vertex_samples=60, generation=GenerationSettings(num_beams=1, max_new_tokens=4)
    )
    with pytest.raises(PostConditionError, match="4 tokens"):
        generate_skeleton(tiny_model, creature(), short)
