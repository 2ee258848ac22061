"""omnipart_generation.py end to end on the tiny checkpoint, and the functions between networks and files."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from processes import everything_in, json_lines, run, run_record
from warm import Warm

from networks.omnipart.box_files import read_boxes
from networks.omnipart.part_meshes import PartMesh, explode, remove_cavities, simplify
from networks.omnipart.segmentation import (
    Segmentation,
    from_mask,
    limit_parts,
    plain_foreground,
    read_state,
    with_foreground,
    write_state,
)
from networks.omnipart.texture import bake
from shared_utils.errors import InvalidInputError, MissingInputError
from tiny_checkpoints import omnipart as tiny

SCRIPT = "omnipart_generation.py"
QUICK = ("--num-inference-steps", 2, "--points-per-side", 4)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    paths = tiny.build(tmp_path_factory.mktemp("omnipart"))
    roles = {
        "model": paths.omnipart,
        "modules": paths.modules,
        "segmenter": paths.segmenter,
        "image_encoder": paths.image_encoder,
    }
    return {role: ("--model", f"{role}={folder}") for role, folder in roles.items()}


@pytest.fixture(scope="module")
def warm():
    classes = "from transformers import SamModel, Dinov2WithRegistersModel, OPTForCausalLM"
    with Warm("torch", "scipy.ndimage", "OpenEXR", "xatlas", "pxr.Usd", classes) as server:
        yield server


@pytest.fixture(scope="module")
def make(warm, models):
    def call(cwd, *args, roles=("model", "modules", "segmenter", "image_encoder")):
        flags = [flag for role in roles for flag in models[role]]
        return warm.run(SCRIPT, *args, *flags, *QUICK, cwd=cwd)

    return call


@pytest.fixture(scope="module")
def totem(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "totem.png"
    tiny.example_image().save(path)
    return path


@pytest.fixture(scope="module")
def finished(make, totem, tmp_path_factory):
    """Run folder and `--json` line of a whole run."""
    folder = tmp_path_factory.mktemp("finished")
    done = make(folder, totem, "--textured", "--texture-size", 256, "--json")
    assert done.returncode == 0, done.stderr
    (line,) = json_lines(done.stdout)
    return Path(line["folder"]), line, done.stderr


def ply(path: Path) -> np.ndarray:
    """float32 [n, 17] of a PLY file, read by its header."""
    data = path.read_bytes()
    header, _, body = data.partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    count = int(next(line for line in lines if line.startswith("element vertex")).split()[-1])
    columns = [line.split()[-1] for line in lines if line.startswith("property float")]
    assert len(body) == 4 * count * len(columns)
    return np.frombuffer(body, "<f4").reshape(count, len(columns))


def predicted(mesh: trimesh.Trimesh) -> np.ndarray:
    """Linear RGB at the points, [V, 3] in 0..1."""
    colours = np.asarray(mesh.visual.vertex_attributes["color"], np.float64)[:, :3]
    return colours / 255 if colours.max() > 1 else colours


def test_everything_is_written_and_opens(finished):
    folder, line, _ = finished
    names = {"mesh_segment.glb", "mesh.glb", "mesh_textured.glb", "exploded.glb", "bboxes_vis.glb", "preview.png"}
    names |= {"merged_gs.ply", "part0_gs.ply", "exploded_gs.ply", "voxel_coords.npy", "bboxes.npy"}
    names |= {"mask.exr", "mask.png", "mask.npy", "mask_segments.png", "segmentation_state.json", "run.json"}
    names |= {f"parts/part_{number:02d}.glb" for number in (1, 2, 3)}
    assert names <= set(everything_in(folder))
    assert [Path(o["path"]).name for o in line["outputs"] if o["role"] == "primary"] == ["mesh_segment.glb"]
    for name in (n for n in names if n.endswith(".glb")):
        scene = trimesh.load(folder / name)
        assert len(scene.geometry) == (1 if name.startswith("parts/") else 3), name
        for mesh in scene.geometry.values():
            assert len(mesh.faces) and np.isfinite(mesh.vertices).all(), name
    parts = ply(folder / "merged_gs.ply")
    assert len(parts) == line["gaussians"] and np.isfinite(parts).all()
    assert len(ply(folder / "exploded_gs.ply")) == len(parts) and len(ply(folder / "part0_gs.ply")) > 0
    assert np.abs(parts[:, :3]).max() < 0.6 and np.allclose(np.linalg.norm(parts[:, 13:], axis=1), 1, atol=1e-5)
    assert np.load(folder / "bboxes.npy").shape == (3, 2, 3)
    assert np.load(folder / "voxel_coords.npy").shape == (line["voxels"], 4)


def test_parts_have_names_colours_and_their_place(finished):
    folder, line, _ = finished
    assert [part["name"] for part in line["parts"]] == ["part_01", "part_02", "part_03"]
    segment, whole = (trimesh.load(folder / name) for name in ("mesh_segment.glb", "mesh.glb"))
    assert set(segment.geometry) == {"part_01", "part_02", "part_03"} == set(whole.geometry)
    colours = {tuple(mesh.visual.material.baseColorFactor) for mesh in segment.geometry.values()}
    assert len(colours) == 3
    assert all(predicted(mesh).std(0).min() > 0.01 for mesh in whole.geometry.values())
    # The same frame: y is up, where the model's z was; the boxes stand where their parts stand.
    boxes, planned = trimesh.load(folder / "bboxes_vis.glb"), np.load(folder / "bboxes.npy")
    for number, box in enumerate(planned, 1):
        assert np.allclose(boxes.geometry[f"box_{number:02d}"].bounds[:, 1], box[:, 2], atol=1e-6)
        part = whole.geometry[f"part_{number:02d}"].bounds
        assert (part[0] > boxes.geometry[f"box_{number:02d}"].bounds[0] - 0.06).all()
        assert (part[1] < boxes.geometry[f"box_{number:02d}"].bounds[1] + 0.06).all()
    exploded = trimesh.load(folder / "exploded.glb")
    for name, mesh in exploded.geometry.items():
        moved = mesh.vertices.mean(0) - whole.geometry[name].vertices.mean(0)
        assert np.linalg.norm(moved) == pytest.approx(0.3, abs=1e-3)
    for row, mesh in zip(line["parts"], segment.geometry.values(), strict=True):
        assert row["watertight"] == mesh.is_watertight and row["faces"] == len(mesh.faces)


def test_texture_carries_the_predicted_colours(finished):
    folder, _, _ = finished
    textured, plain = trimesh.load(folder / "mesh_textured.glb"), trimesh.load(folder / "mesh.glb")
    for name, mesh in textured.geometry.items():
        picture = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB"))
        assert picture.shape == (256, 256, 3)
        x, y = (np.clip(mesh.visual.uv * [1, -1] + [0, 1], 0, 0.999) * 256).astype(int).T
        baked = picture[y, x] / 255
        near = trimesh.proximity.ProximityQuery(plain.geometry[name]).vertex(mesh.vertices)[1]
        linear = predicted(plain.geometry[name])[near]
        srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        assert np.abs(baked - srgb).mean() < 0.08


def test_record_names_licence_stages_and_plan(finished):
    folder, line, stderr = finished
    assert stderr.count("PartField") == 1 and "non-commercial" in stderr
    assert "plan: 1 object(s), 2 steps" in stderr
    assert "PartField" in line["licence_notice"] and "PartField" in (folder / "run.json").read_text()
    stages = {"segment", "encode", "structure", "boxes", "latents", "decode_meshes", "decode_gaussians", "export"}
    assert set(line["stages"]) == stages
    assert all(stage["peak_memory_bytes"] > 1e7 for stage in line["stages"].values())
    assert line["seed"] == 42 and line["mask_parts"] == 3 and line["boxes"] == 3


def test_parts_are_joined_across_runs_and_separated_again(make, totem, tmp_path):
    done = make(tmp_path, totem, "--segment-only", roles=["segmenter"])
    assert done.returncode == 0, done.stderr
    mask = Path(done.stdout.strip())
    state = mask.parent
    assert mask.name == "mask.exr" and "PartField" not in done.stderr
    first = np.load(state / "mask.npy")
    assert set(np.unique(first)) == {0, 1, 2, 3}
    merge = ("--state", state, "--apply-merge", "--merge-groups")

    done = make(tmp_path, *merge, "0,1", roles=[])
    assert done.returncode == 0, done.stderr
    joined = np.load(state / "mask.npy")
    assert set(np.unique(joined)) == {0, 1, 2} and ((joined > 0) == (first > 0)).mean() > 0.999
    assert np.array_equal(joined, np.load(Path(done.stdout.strip()).parent / "mask.npy"))
    # Numbers stay those of the first picture, so a second merge names them anew.
    done = make(tmp_path, *merge, "1,2", roles=[])
    assert done.returncode == 0, done.stderr
    assert json.loads((state / "segmentation_state.json").read_text())["merge_groups"] == [[1, 2]]
    second = np.load(state / "mask.npy")
    assert set(np.unique(second)) == {0, 1, 2} and not np.array_equal(second, joined)
    assert len(np.unique(second[first == 2])) < 3 and len(np.unique(second[(first == 2) | (first == 3)])) < 3

    for groups, code in (("0,9", 2), ("0,0", 2), ("0;x", 2)):
        done = make(tmp_path, *merge, groups, roles=[])
        assert done.returncode == code and done.stderr.startswith("error: "), done.stderr
    assert np.array_equal(second, np.load(state / "mask.npy"))

    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps([[[-0.3, -0.3, -0.4], [0.3, 0.3, 0.0]], [[-0.3, -0.3, 0.0], [0.3, 0.3, 0.4]]]))
    flags = ("--boxes", boxes, "--format", "usdc", "--textured", "--texture-size", 128, "--simplify-ratio", 0.5)
    done = make(tmp_path, state / "segmentation_state.json", *flags, "--json", roles=["model", "image_encoder"])
    assert done.returncode != 0, "a state is no picture"
    done = make(tmp_path, "--state", state, *flags, "--json", roles=["model", "image_encoder"])
    assert done.returncode == 0, done.stderr
    assert "PartField" not in done.stderr
    (line,) = json_lines(done.stdout)
    folder = Path(line["folder"])
    assert line["mask_parts"] == line["boxes"] == len(line["parts"]) == 2 and line["merge_groups"] == [[1, 2]]
    from meshes.io import read_scene

    for name in ("mesh_segment.usdc", "exploded.usdc", "mesh_textured/mesh_textured.usdc"):
        assert len(read_scene(folder / name).mesh_nodes()) == 2
    assert read_scene(folder / "mesh_textured/mesh_textured.usdc").images
    assert np.array_equal(np.load(folder / "mask.npy"), second)

    done = make(tmp_path, *merge, "none", "-o", "again.png", roles=[])
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(state / "mask.npy"), first)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "again.png")), first)


@pytest.mark.slow
def test_same_seed_same_bytes_and_batches(make, totem, tmp_path, finished):
    (tmp_path / "list.jsonl").write_text(
        "\n".join([json.dumps({"image": str(totem)}), json.dumps({"image": str(totem), "seed": 7}), "none.png"])
    )
    flags = ("--textured", "--texture-size", 256)
    done = make(tmp_path, "--inputs-from", "list.jsonl", *flags, "--json")
    assert done.returncode == 3, done.stderr
    lines = json_lines(done.stdout)
    assert sorted(line["status"] for line in lines) == ["error", "ok", "ok"]
    one, two = (
        next(Path(o["path"]).parent for o in line["outputs"] if o["role"] == "primary")
        for line in lines
        if line["status"] == "ok"
    )
    same = [n for n in everything_in(one) if (finished[0] / n).read_bytes() == (one / n).read_bytes()]
    assert same == everything_in(one)
    assert (two / "mesh.glb").read_bytes() != (one / "mesh.glb").read_bytes()


def test_bad_input_has_its_code_and_leaves_nothing(warm, totem, tmp_path):
    shutil.copy(totem, tmp_path / "totem.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "flat.npy", np.zeros((3, 3)))
    np.save(tmp_path / "zero.npy", np.zeros((512, 512), np.int32))
    np.save(tmp_path / "turned.npy", np.array([[[0.1, 0.1, 0.1], [0.0, 0.2, 0.2]]]))
    cases = [
        ([], 2),
        (["none.png"], 66),
        (["text.png"], 65),
        (["totem.png", "--apply-merge", "--merge-groups", "0,1"], 2),
        (["totem.png", "--merge-groups", "a"], 2),
        (["totem.png", "--simplify-ratio", 0], 2),
        (["totem.png", "--max-parts", 51], 2),
        (["totem.png", "-o", "a.fbx"], 2),
        (["totem.png", "-o", "a.glb", "--format", "usdc"], 2),
        (["totem.png", "--segment-only", "-o", "a.glb"], 2),
        (["--state", "empty"], 66),
        (["--state", "nowhere"], 66),
        (["totem.png", "--state", "empty"], 2),
        (["totem.png", "--mask", "none.exr"], 66),
        (["totem.png", "--mask", "zero.npy"], 65),
        (["totem.png", "--boxes", "flat.npy"], 65),
        (["totem.png", "--boxes", "turned.npy"], 65),
        (["totem.png", "--boxes", "none.json"], 66),
        (["totem.png", "--offline", "--weights-dir", "empty"], 69),
    ]
    before = everything_in(tmp_path)
    for args, code in cases:
        done = warm.run(SCRIPT, *args, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (code, ""), (args, done.stderr)
        assert done.stderr.strip().splitlines()[-1].startswith("error: "), (args, done.stderr)
    assert everything_in(tmp_path) == before


def test_own_mask_gives_foreground_and_parts(make, tmp_path):
    """A picture without transparency and a mask of its size; no segmenter is loaded."""
    tiny.example_image().convert("RGB").save(tmp_path / "totem.png")
    values = np.zeros((512, 512), np.uint8)
    values[64:300, 200:320], values[300:464, 100:400] = 7, 3
    Image.fromarray(values).save(tmp_path / "mask.png")
    done = make(tmp_path, "totem.png", "--mask", "mask.png", "--segment-only", roles=[])
    assert done.returncode == 0, done.stderr
    state = read_state(Path(done.stdout.strip()).parent)
    assert set(np.unique(state.original)) == {-1, 0, 1}
    assert ((state.alpha > 127) != (state.original >= 0)).mean() < 0.01
    Image.new("RGB", (300, 300)).save(tmp_path / "small.png")
    done = make(tmp_path, "small.png", "--mask", "mask.png", "--segment-only", roles=[])
    assert done.returncode == 65 and "512 x 512" in done.stderr


def test_a_background_of_many_colours_goes_to_the_segmenter(make, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    picture.paste(tiny.example_image().convert("RGB"), mask=tiny.example_image().getchannel("A"))
    picture.save(tmp_path / "photo.png")
    done = make(tmp_path, "photo.png", "--segment-only", "--size-threshold", 100, roles=["segmenter"])
    assert done.returncode == 0, done.stderr
    assert "removed by the segmenter" in done.stderr
    shown = read_state(Path(done.stdout.strip()).parent).alpha > 0
    assert 0 < shown.mean() < 1


def test_dry_run_says_what_is_needed_and_how_long_it_takes(make, totem, tmp_path):
    done = make(tmp_path, totem, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    (plan,) = json_lines(done.stdout)
    assert len(plan["weights"]) == 4 and "2 steps" in plan["plan"]
    done = make(tmp_path, totem, "--dry-run", "--json", "--segment-only", roles=["segmenter"])
    assert len(json_lines(done.stdout)[0]["weights"]) == 1
    assert everything_in(tmp_path) == []


@pytest.mark.slow
def test_smoke_test_as_a_real_process(tmp_path):
    done = run(SCRIPT, "--smoke-test", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = json_lines(done.stdout)
    assert line["model"] == "smoke-test" and len(line["parts"]) == 3
    assert "smoke-test-" not in json.dumps(run_record(tmp_path / "output"))


# --- segmentation


def test_background_of_one_colour_is_removed_and_holes_stay():
    rgb = np.full((60, 80, 3), 240, np.uint8)
    rgb += np.random.default_rng(0).integers(0, 8, rgb.shape, dtype=np.uint8)  # noise
    rgb[20:50, 20:60] = (200, 30, 30)
    rgb[30:40, 30:40] = 240  # of the background's colour, but inside
    inside = plain_foreground(rgb)
    expected = np.zeros((60, 80), bool)
    expected[20:50, 20:60] = True
    assert np.array_equal(inside, expected)
    noise = np.random.default_rng(1).integers(0, 256, rgb.shape, dtype=np.uint8)
    assert plain_foreground(noise) is None
    asked = []

    def segmenter(image):
        asked.append(image.size)
        return expected

    for background, picture, how in [
        ("auto", Image.fromarray(rgb), "plain colour"),
        ("auto", Image.fromarray(noise), "segmenter"),
        ("keep", Image.fromarray(noise), "kept"),
    ]:
        image, found = with_foreground(picture, background, segmenter)
        assert found == how and image.mode == "RGBA"
        shown = np.asarray(image)[..., 3] > 0
        assert shown.all() if how == "kept" else np.array_equal(shown, expected)
    assert asked == [(80, 60)]
    image.putalpha(Image.fromarray(expected.astype(np.uint8) * 255))
    assert with_foreground(image, "auto", segmenter)[1] == "alpha"


def test_too_many_parts_join_their_neighbours():
    ids = np.full((40, 60), -1, np.int16)
    ids[5:35, 2:20], ids[5:35, 20:40], ids[10:14, 40:44], ids[0:2, 57:59] = 0, 1, 2, 3
    three = limit_parts(ids, 3)  # the lonely speck goes to the part nearest to it
    assert set(np.unique(three)) == {-1, 0, 1, 2} and three[0, 57] == three[12, 42] == 2
    two = limit_parts(ids, 2)
    assert two[12, 42] == two[10, 30] != two[10, 10]
    assert np.array_equal(limit_parts(ids, 4), ids)


def test_state_survives_and_damage_is_named(tmp_path):
    ids = np.full((518, 518), -1, np.int16)
    ids[100:200, 100:200], ids[200:300, 100:200], ids[300:400, 100:200] = 0, 1, 2
    alpha = (ids >= 0).astype(np.uint8) * 255
    picture = Image.merge("RGBA", [Image.fromarray(alpha)] * 4)
    segmentation = Segmentation(picture, ids, 500, [[2, 0]])
    write_state(segmentation, lambda name: tmp_path / name)
    again = read_state(tmp_path)
    assert again.groups == [[2, 0]] and again.size_threshold == 500 and np.array_equal(again.original, ids)
    merged = again.ids()
    assert merged[150, 150] == merged[350, 150] != merged[250, 150]
    shown = again.numbered(merged)
    assert shown[150, 150] == 2 and shown[250, 150] == 1
    assert np.array_equal(dataclasses.replace(again, groups=[]).ids(), ids)
    text = (tmp_path / "segmentation_state.json").read_text()
    for damage in ("{", text.replace("omnipart-state/1", "other/1"), text.replace('"size_threshold"', '"x"')):
        (tmp_path / "segmentation_state.json").write_text(damage)
        with pytest.raises(InvalidInputError):
            read_state(tmp_path)
    (tmp_path / "segmentation_state.json").write_text(text)
    np.save(tmp_path / "mask_original.npy", ids[:100])
    with pytest.raises(InvalidInputError):
        read_state(tmp_path)
    with pytest.raises(MissingInputError):
        read_state(tmp_path / "nowhere")


def test_mask_must_fit_the_picture():
    image = Image.new("RGB", (200, 100), "red")
    ids = np.full((100, 200), -1, np.int16)
    ids[:50] = 0
    picture, squared = from_mask(image, ids, "auto")
    assert picture.size == (518, 518) and squared.shape == (518, 518)
    covered = np.asarray(picture)[..., 3] > 127
    assert (covered != (squared == 0)).mean() < 0.01
    assert (np.asarray(from_mask(image, ids, "keep")[0])[..., 3] > 0).mean() == pytest.approx(0.5, abs=0.01)
    with pytest.raises(InvalidInputError, match="200 x 100"):
        from_mask(image, ids[:, :50], "auto")


def test_boxes_file(tmp_path):
    boxes = np.array([[[-0.5, -0.1, 0], [0.5, 0.1, 0.25]]])
    np.save(tmp_path / "a.npy", boxes)
    (tmp_path / "a.json").write_text(json.dumps(boxes.tolist()))
    assert np.array_equal(read_boxes(tmp_path / "a.npy"), read_boxes(tmp_path / "a.json"))
    for number, bad in enumerate(
        ["{}", "[[[0, 0, 0]]]", "[[[0, 0, 0], [1, 1, 1]]]", '[[["a", 0, 0], [1, 1, 1]]]', "[["]
    ):
        path = tmp_path / f"{number}.json"
        path.write_text(bad)
        with pytest.raises(InvalidInputError):
            read_boxes(path)


# --- meshes


def ball(radius: float = 0.3, subdivisions: int = 4) -> PartMesh:
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return PartMesh(mesh.vertices.copy(), mesh.faces.astype(np.int64), np.clip(mesh.vertices / radius / 2 + 0.5, 0, 1))


def joined(*meshes: PartMesh) -> PartMesh:
    offsets = np.cumsum([0, *(len(mesh.points) for mesh in meshes)])
    faces = [mesh.faces + offset for mesh, offset in zip(meshes, offsets[:-1], strict=True)]
    return PartMesh(
        np.concatenate([m.points for m in meshes]), np.concatenate(faces), np.concatenate([m.colours for m in meshes])
    )


def test_walls_of_hollows_are_removed_and_nothing_else():
    outer, inner, far = ball(0.3), ball(0.2), ball(0.1)
    far.points += 0.5
    inner.faces = inner.faces[:, ::-1].copy()
    mesh, removed = remove_cavities(joined(inner, outer, far))
    assert removed == 1 and len(mesh.faces) == 2 * len(outer.faces)
    assert np.linalg.norm(mesh.points, axis=1).min() > 0.29 and mesh.is_watertight()
    open_inner = inner.select(np.arange(len(inner.faces)) > 10)
    assert remove_cavities(joined(outer, open_inner))[1] == 0


def test_simplified_share_of_faces_closed_and_coloured():
    mesh = ball(subdivisions=5)
    simple = simplify(mesh, 0.1)
    assert len(simple.faces) == pytest.approx(0.1 * len(mesh.faces), rel=0.02)
    assert simple.is_watertight() and simplify(mesh, 1.0) is mesh
    assert np.abs(simple.colours - (simple.points / 0.3 / 2 + 0.5)).max() < 0.06
    assert not mesh.select(np.arange(len(mesh.faces)) > 0).is_watertight()
    normals = mesh.normals()
    assert np.allclose(normals, mesh.points / 0.3, atol=0.02)


def test_explode_moves_by_the_same_length():
    left, right = ball(0.1, 1), ball(0.1, 1)
    left.points -= [1, 0, 0]
    apart = explode([left, right])
    assert np.allclose(apart[0].centre, [-1.3, 0, 0]) and np.allclose(apart[1].centre, [0.3, 0, 0])
    (alone,) = explode([left])
    assert np.array_equal(alone.points, left.points)


def test_baked_texture_is_the_colour_of_the_surface():
    mesh = ball(subdivisions=5)
    simple = simplify(mesh, 0.1)
    baked = bake({4: simple}, {4: mesh}, 128)
    part, uv = baked.parts[4], baked.uvs[4]
    assert uv.min() >= 0 and uv.max() <= 1 and baked.texture.shape == (128, 128, 3)
    middles, places = uv[part.faces].mean(1), part.points[part.faces].mean(1)
    column, row = (middles * 128).astype(int).T
    colours = baked.texture[127 - row, column] / 255
    expected = places / np.linalg.norm(places, axis=1, keepdims=True) / 2 + 0.5
    assert np.abs(colours - expected).max() < 0.12 and np.abs(colours - expected).mean() < 0.03
