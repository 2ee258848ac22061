"""OmniPart's image and box half: masks, crops, layout, PartField, the box planner, SAM and DINOv2 around them."""

import contextlib
import json
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_case import load_case
from parity_omnipart_image import CASES
from PIL import Image
from scipy import ndimage

from networks.checkpoints import load_checkpoint, read_pickled_tensors
from networks.omnipart import images, mask_files, masks, part_layout, parts
from networks.omnipart import segment_anything as sam
from networks.omnipart.bbox_tokens import BoxTokenizer
from networks.omnipart.box_planner import BoxPlanner, PlannerSizes, partfield_of_planner, plan_boxes
from networks.omnipart.box_sampling import allowed_tokens, truncated_probabilities
from networks.omnipart.image_tokens import encode_image, load_image_encoder
from networks.omnipart.partfield import UNUSED_PREFIXES, PartField, voxel_features
from shared_utils.errors import InvalidInputError, MissingInputError, UsageError

GOLDEN = Path(__file__).parent / "golden" / "omnipart"
FAMILIES = {path.stem: path for path in sorted(GOLDEN.glob("case_*.json"))}


@pytest.mark.parametrize("family", sorted(CASES))
def test_golden_case(family):
    found = [path for stem, path in FAMILIES.items() if stem.startswith(f"case_{family}_")]
    cases = [case for case in map(load_case, found) if case.family == family]
    assert cases
    for case in cases:
        with torch.no_grad():
            missed = [check for check in CASES[family](case) if not check.ok]
        assert not missed


# --- part masks


def brute_dilate(mask, size):
    """OpenCV's definition: pixel p is set when any of p + k - anchor is, anchor = size // 2."""
    result = np.zeros_like(mask)
    height, width = mask.shape
    for dy in range(-(size // 2), size - size // 2):
        for dx in range(-(size // 2), size - size // 2):
            rows, columns = np.arange(height) + dy, np.arange(width) + dx
            inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None]
            result |= inside & mask[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)[None]]
    return result


@pytest.mark.parametrize("size", [3, 4, 5])
def test_morphology_follows_opencv_anchor_and_borders(size):
    rng = np.random.default_rng(size)
    for _ in range(5):
        mask = rng.random((17, 23)) < 0.1
        assert np.array_equal(masks.dilate(mask, size), brute_dilate(mask, size))
        assert np.array_equal(masks.dilate(mask, size, 2), brute_dilate(brute_dilate(mask, size), size))
        if size % 2:
            # Duality, which also says that erosion does not eat into the picture from its border.
            assert np.array_equal(masks.erode(mask, size), ~brute_dilate(~mask, size))


def test_components_are_numbered_by_blocks_of_two():
    mask = np.zeros((6, 8), dtype=bool)
    mask[0, 6] = True  # higher up, but its 2x2 block comes after the one at the left
    mask[1, 0] = True
    mask[4:, 2:4] = True
    labels, count = masks.label_components(mask)
    assert count == 3
    assert (labels[1, 0], labels[0, 6], labels[4, 2]) == (1, 2, 3)


def test_split_drops_only_small_pieces_of_parts_in_several():
    ids = np.full((20, 20), -1, dtype=np.int16)
    ids[:6, :6] = 0
    ids[10, 10] = 0  # one pixel, less than a fifth of the threshold
    ids[15, 15] = 3  # small but whole
    result = masks.split_disconnected(ids, size_threshold=20)
    assert result[0, 0] == 0 and result[10, 10] == -1 and result[15, 15] == 1


def test_smaller_masks_are_painted_over_larger_and_transparent_ones_skipped():
    alpha = np.zeros((30, 30), dtype=np.uint8)
    alpha[:, :20] = 255
    large, small, off = (np.zeros((30, 30), dtype=bool) for _ in range(3))
    large[:, :20], small[5:15, 5:15], off[:, 17:25] = True, True, True
    ids = masks.group_masks([small, off, large], [100, 240, 600], alpha, size_threshold=50)
    assert ids[0, 0] == 0 and ids[10, 10] == 1 and (ids[:, 20:] == -1).all()
    assert masks.part_count(ids) == 2


def test_foreground_without_a_mask_becomes_parts_of_its_own():
    alpha = np.zeros((60, 60), dtype=np.uint8)
    alpha[5:55, 5:55] = 255
    known = np.zeros((60, 60), dtype=bool)
    known[5:55, 5:25] = True
    ids = masks.group_masks([known], [1000], alpha, size_threshold=200)
    assert masks.part_count(ids) == 2
    assert ids[30, 50] == 1 and ids[30, 10] == 0
    assert ids[30, 26] == -1  # the dilated border of a part stays background


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_part_maps_have_consecutive_ids_and_connected_parts(seed):
    rng = np.random.default_rng(seed)
    coarse = [np.kron(rng.random((6, 6)) < 0.3, np.ones((8, 8), dtype=bool)) for _ in range(4)]
    alpha = (np.kron(rng.random((4, 4)) < 0.8, np.ones((12, 12))) * 255).astype(np.uint8)
    ids = masks.group_masks(coarse, [int(mask.sum()) for mask in coarse], alpha, size_threshold=60)
    found = np.unique(ids[ids >= 0])
    assert np.array_equal(found, np.arange(len(found)))
    assert all(ndimage.label(ids == part, structure=np.ones((3, 3)))[1] == 1 for part in found)
    cleaned = masks.clean_segment_edges(ids)
    assert set(np.unique(cleaned)) <= set(np.unique(ids)) | {-1}


def test_merged_parts_stay_one_when_applied_and_split_again_when_found():
    ids = np.full((40, 40), -1, dtype=np.int16)
    ids[2:12, 2:12], ids[25:35, 2:12], ids[2:12, 25:35] = 0, 1, 2
    alpha = np.where(ids >= 0, 255, 0).astype(np.uint8)
    merged = parts.merge_parts(ids, alpha, 50, [[0, 2]])
    assert masks.part_count(merged) == 2 and merged[5, 5] == merged[5, 30] == 0 and merged[30, 5] == 1
    again = masks.group_masks([ids == part for part in range(3)], [100, 100, 100], alpha, 50, groups=[[0, 2]])
    assert masks.part_count(again) == 3


# --- pictures


def test_resize_and_pad_centres_and_squares_alpha():
    wide = Image.new("RGBA", (100, 50), (10, 20, 30, 128))
    result = np.asarray(images.resize_and_pad(wide, 64))
    assert result.shape == (64, 64, 4)
    assert (result[:16] == (255, 255, 255, 0)).all() and (result[48:] == (255, 255, 255, 0)).all()
    assert abs(int(result[32, 32, 3]) - 128 * 128 // 255) <= 1
    assert np.asarray(images.resize_and_pad(Image.new("RGB", (1, 500)), 64)).shape == (64, 64, 3)


def test_masks_of_the_original_picture_land_where_the_picture_does():
    ids = np.full((50, 100), -1, dtype=np.int16)
    ids[10:40, 20:80] = 2
    picture = np.zeros((50, 100, 4), dtype=np.uint8)
    picture[ids == 2] = 255
    alpha = np.asarray(images.resize_and_pad(Image.fromarray(picture), 64))[..., 3]
    assert ((images.resize_and_pad_ids(ids, 64) == 2) != (alpha > 127)).mean() < 0.02


def test_crop_leaves_the_picture_where_the_object_touches_its_border():
    rgba = np.zeros((40, 40, 4), dtype=np.uint8)
    rgba[:20, :20] = (200, 0, 0, 255)
    mask = np.zeros((40, 40), dtype=np.float32)
    mask[:20, :10], mask[:20, 10:20] = 5, 9
    crop = images.crop_object(rgba, mask, size=(56, 56), grid=8)
    assert crop.white.shape == crop.black.shape == (3, 56, 56)
    assert crop.white[:, 0, 0].tolist() == [1, 1, 1] and crop.black[:, 0, 0].tolist() == [0, 0, 0]
    assert set(np.unique(crop.grid)) == {1, 2} and crop.grid[4, 1] == 1 and crop.grid[4, 7] == 2
    assert (crop.white >= 0).all() and (crop.white <= 1).all()


def test_grid_numbers_lowest_part_first_and_takes_the_majority():
    mask = np.zeros((8, 8), dtype=np.int64)
    mask[0:3, :] = 1
    mask[3:8, :4], mask[3:6, 4:] = 7, 3
    mask[0, 0] = 3
    cells = images.mask_grid(mask, 4)
    assert cells[0, 0] == 1 and cells[3, 3] == 0 and cells[1, 0] == 1  # 1 and 7 tie: the smaller id
    ordered = images.order_grid(cells)
    assert ordered[3, 0] == 1 and ordered[2, 3] == 2 and ordered[0, 0] == 3


def test_picture_without_foreground_is_refused():
    with pytest.raises(ValueError, match="no foreground"):
        images.crop_object(np.zeros((10, 10, 4), dtype=np.uint8), np.ones((10, 10)))


# --- mask files


@pytest.mark.parametrize("suffix", [".exr", ".png", ".npy"])
@pytest.mark.parametrize("count", [3, 300])
def test_mask_files_round_trip(tmp_path, suffix, count):
    ids = (np.arange(40 * 50).reshape(40, 50) % (count + 1) - 1).astype(np.int16)
    path = tmp_path / f"mask{suffix}"
    mask_files.write_mask(path, ids)
    assert np.array_equal(mask_files.read_mask(path, max_parts=count), ids)
    first = path.read_bytes()
    mask_files.write_mask(path, ids)
    assert path.read_bytes() == first


def test_exr_mask_has_three_equal_float_channels(tmp_path):
    OpenEXR = pytest.importorskip("OpenEXR")
    ids = np.array([[-1, 0], [1, 1]], dtype=np.int16)
    mask_files.write_mask(tmp_path / "m.exr", ids)
    pixels = OpenEXR.File(str(tmp_path / "m.exr")).channels()["RGB"].pixels
    assert pixels.dtype == np.float32 and np.array_equal(pixels, np.repeat((ids + 1.0)[..., None], 3, axis=2))


def test_coloured_png_makes_a_part_of_every_colour(tmp_path):
    pixels = np.zeros((6, 6, 3), dtype=np.uint8)
    pixels[:2], pixels[4:] = (255, 0, 0), (0, 255, 0)
    Image.fromarray(pixels).save(tmp_path / "m.png")
    ids = mask_files.read_mask(tmp_path / "m.png")
    assert ids[0, 0] == 1 and ids[5, 5] == 0 and (ids[2:4] == -1).all()
    Image.fromarray(pixels).quantize().save(tmp_path / "p.png")
    assert np.array_equal(mask_files.read_mask(tmp_path / "p.png") >= 0, ids >= 0)


def bad_masks(folder):
    np.save(folder / "float.npy", np.full((4, 4), 0.5))
    np.save(folder / "nan.npy", np.full((4, 4), np.nan))
    np.save(folder / "negative.npy", np.full((4, 4), -1))
    np.save(folder / "empty.npy", np.zeros((4, 4)))
    np.save(folder / "many.npy", np.arange(100).reshape(10, 10))
    np.save(folder / "four_axes.npy", np.ones((2, 2, 2, 2)))
    np.save(folder / "text.npy", np.array([["a"]]))
    np.save(folder / "objects.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    (folder / "junk.png").write_bytes(b"\x89PNG\r\n\x1a\nnope")
    (folder / "junk.exr").write_bytes(b"nope")
    (folder / "junk.npy").write_bytes(b"nope")
    (folder / "mask.jpg").write_bytes(b"nope")
    mask_files.write_mask(folder / "cut.png", np.zeros((64, 64), dtype=np.int16))
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:60])
    return sorted(folder.iterdir())


def test_bad_mask_files_are_refused_in_one_line(tmp_path):
    for path in bad_masks(tmp_path):
        with pytest.raises(InvalidInputError) as caught:
            mask_files.read_mask(path)
        assert path.name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(MissingInputError):
        mask_files.read_mask(tmp_path / "nothing.png")


def test_merge_groups_as_text():
    assert mask_files.parse_merge_groups("0,1;3,4") == [[0, 1], [3, 4]]
    assert mask_files.parse_merge_groups(" 2 , 5 ;") == [[2, 5]]
    for text in ("", ";", "a,b", "0,1;1,2", "1,,2"):
        with pytest.raises(UsageError):
            mask_files.parse_merge_groups(text)
    with pytest.raises(UsageError, match="part 7"):
        mask_files.check_merge_groups([[0, 7]], np.array([[-1, 0, 1]]))


def test_palette_is_colorbrewers():
    matplotlib = pytest.importorskip("matplotlib")
    colours = [c for name in ("Set3", "Set2", "Set1") for c in matplotlib.colormaps[name].colors]
    assert np.allclose(np.array(mask_files.PALETTE) / 255, colours, atol=1 / 255)
    assert mask_files.part_colour(29) == mask_files.part_colour(0)


def test_numbered_picture_labels_lie_on_their_parts():
    ids = np.full((80, 80), -1, dtype=np.int16)
    ids[10:70, 5:35], ids[10:20, 50:78], ids[20:70, 68:78] = 0, 1, 1
    for part in (0, 1):
        x, y = mask_files.label_position(ids == part)
        assert ids[y, x] == part
    drawn = np.asarray(mask_files.draw_parts(Image.new("RGB", (80, 80), "white"), ids))
    assert (drawn[75, 2] == 255).all() and not (drawn[12, 6] == 255).all()


# --- boxes and layout


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-0.5, 0.5), min_size=6, max_size=60), st.sampled_from([16, 64, 128]))
def test_box_tokens_round_trip_within_a_bin(values, bins):
    boxes = np.array(values[: len(values) // 6 * 6]).reshape(-1, 2, 3)
    tokenizer = BoxTokenizer(bins, bins, bins + 1, bins + 2)
    tokens = tokenizer.encode(boxes)
    assert tokens[0] == bins and tokens[-1] == bins + 1
    assert ((tokens[1:-1] >= 0) & (tokens[1:-1] < bins)).all()
    decoded = tokenizer.decode(tokens)
    assert ((boxes - decoded >= -1e-12) & (boxes - decoded <= 1 / (bins - 1) + 1e-12)).all()


def test_box_tokens_refuse_what_is_no_box():
    tokenizer = BoxTokenizer()
    with pytest.raises(ValueError, match="whole boxes"):
        tokenizer.decode(np.array([64, 1, 2, 3, 65]))
    with pytest.raises(ValueError, match="must lie in"):
        tokenizer.encode(np.full((1, 2, 3), 0.6))
    assert tokenizer.decode(np.array([64, 65])).shape == (0, 2, 3)


def grid_of_voxels(low, high):
    axes = [np.arange(low, high)] * 3
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    return np.concatenate([np.zeros((len(points), 1)), points], axis=1).astype(np.int32)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_layout_gives_every_voxel_to_a_part(seed, count):
    rng = np.random.default_rng(seed)
    voxels = grid_of_voxels(20, 40)[rng.random(8000) < 0.3]
    corners = np.sort(rng.uniform(-0.3, 0.3, (count, 2, 3)), axis=1)
    try:
        layout = part_layout.lay_out_parts(voxels, corners)
    except ValueError:
        return  # no box holds a voxel
    assert layout.slices[0] == slice(0, len(voxels))
    assert np.array_equal(layout.coords[layout.slices[0]], voxels)
    ends = [part.stop for part in layout.slices]
    assert [part.start for part in layout.slices[1:]] == ends[:-1] and ends[-1] == len(layout.coords)
    assert len(layout.boxes) == len(layout.slices) - 1
    in_parts = {tuple(row) for row in layout.coords[len(voxels) :].tolist()}
    assert in_parts == {tuple(row) for row in voxels.tolist()}


def test_left_over_voxels_go_to_the_box_they_are_near_even_behind_an_empty_one():
    voxels = np.array([[0, 10, 10, 10], [0, 50, 50, 50], [0, 60, 60, 60]], dtype=np.int32)
    centre = (np.array([[10, 10, 10], [30, 30, 30], [50, 50, 50]]) + 0.5) / 64 - 0.5
    boxes = np.stack([centre, centre], axis=1)
    layout = part_layout.lay_out_parts(voxels, boxes)
    assert layout.boxes == [0, 2]
    assert layout.coords[layout.slices[2], 1].tolist() == [50, 60]
    published = part_layout.lay_out_parts(voxels, boxes, published_leftovers=True)
    assert published.coords[published.slices[2], 1].tolist() == [50]
    with pytest.raises(ValueError, match="no box"):
        part_layout.lay_out_parts(voxels, boxes[1:2])


# --- PartField and the planner


def manifest_shapes(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())["shapes"]


def test_partfield_has_the_published_keys_and_shapes():
    with torch.device("meta"):
        model = PartField()
    published = {k: v for k, v in manifest_shapes("partfield_encoder").items() if not k.startswith(UNUSED_PREFIXES)}
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == published


def test_planner_has_the_published_keys_and_shapes():
    with torch.device("meta"):
        planner = BoxPlanner(PlannerSizes())
    published = {
        name: shape
        for name, shape in manifest_shapes("bbox_gen").items()
        if not name.startswith(("image_encoder.", "partfield_encoder."))
    }
    assert {name: list(tensor.shape) for name, tensor in planner.state_dict().items()} == published
    meta = {name: torch.empty(shape, device="meta") for name, shape in published.items()}
    assert PlannerSizes.of_weights(meta) == PlannerSizes()
    assert planner.tokenizer == BoxTokenizer()


@pytest.fixture(scope="module")
def small_partfield():
    torch.manual_seed(0)
    return PartField(
        z_triplane_channels=8,
        z_triplane_resolution=16,
        unet_start_hidden_channels=4,
        unet_depth=2,
        transformer_dim=16,
        layers=1,
        heads=1,
        low_res=4,
        high_res=16,
        triplane_dim=64 + 13,
    )


@pytest.fixture(scope="module")
def small_planner():
    torch.manual_seed(0)
    sizes = PlannerSizes(
        image_dim=12,
        group_embedding_dim=4,
        max_group_size=10,
        decoder_hidden=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        ffn_dim=64,
        max_position_embeddings=700,
        voxel_in_channels=16,
        voxel_encoder_channels=(4, 4, 8, 64),
    )
    return BoxPlanner(sizes).eval()


def test_partfield_reads_its_sizes_off_the_weights(small_partfield):
    unused = {"logit_scale": torch.zeros(1), "sdf_decoder.layers.0.weight": torch.ones(2)}
    weights = small_partfield.state_dict() | unused
    loaded = PartField.from_weights(weights)
    voxels = grid_of_voxels(28, 36)
    features = voxel_features(loaded, voxels)
    assert features.shape == (len(voxels), 13) and features.isfinite().all()
    assert torch.equal(features, voxel_features(small_partfield.eval(), voxels))
    with pytest.raises(InvalidInputError, match="PartField"):
        PartField.from_weights({k: v for k, v in weights.items() if k != "triplane_transformer.mlp.2.bias"})
    with pytest.raises(InvalidInputError, match="PartField"):
        PartField.from_weights(weights | {"surplus": torch.ones(1)})


def test_planner_reads_its_sizes_off_the_weights_and_ignores_foreign_ones(small_planner):
    weights = dict(small_planner.state_dict())
    del weights["decoder.lm_head.weight"]
    foreign = {"image_encoder.x": torch.ones(1), "partfield_encoder.y": torch.ones(1)}
    loaded = BoxPlanner.from_weights(weights | foreign)
    assert loaded.sizes == small_planner.sizes
    assert loaded.decoder.lm_head.weight is loaded.decoder.model.decoder.embed_tokens.weight
    inside = {"partfield_encoder.a.weight": torch.ones(1), "decoder.x": torch.ones(1)}
    assert partfield_of_planner(inside, {"b": torch.ones(1)}).keys() == {"a.weight"}
    assert partfield_of_planner({"decoder.x": torch.ones(1)}, {"b": torch.ones(1)}).keys() == {"b"}
    with pytest.raises(InvalidInputError, match="box planner"):
        BoxPlanner.from_weights({k: v for k, v in weights.items() if "norm2" not in k})


def test_planned_boxes_obey_the_grammar_and_the_seed(small_planner):
    latents, voxels = torch.randn(1, 20, 12), grid_of_voxels(30, 34)
    grid, features = np.arange(16).reshape(4, 4) % 11, torch.randn(len(voxels), 13)
    steps = []
    plan = {"max_boxes": 6, "progress": lambda done, limit: steps.append((done, limit))}
    boxes = plan_boxes(small_planner, latents, grid, voxels, features, seed=0, **plan)
    assert boxes.shape[1:] == (2, 3) and 2 <= len(boxes) <= 6
    assert (boxes >= -0.51).all() and (boxes <= 0.5).all()
    assert steps[-1][0] in (6 * len(boxes) + 2, 37) and steps[-1][1] == 37
    assert np.array_equal(boxes, plan_boxes(small_planner, latents, grid, voxels, features, seed=0, **plan))
    others = [plan_boxes(small_planner, latents, grid, voxels, features, seed=s, max_boxes=6) for s in range(1, 4)]
    assert any(other.shape != boxes.shape or not np.array_equal(other, boxes) for other in others)
    for count in (1, 2, 9):
        exact = plan_boxes(small_planner, latents, grid, voxels, features, seed=0, boxes=count)
        assert exact.shape == (count, 2, 3)
    with pytest.raises(ValueError, match="11 parts"):
        plan_boxes(small_planner, latents, grid + 1, voxels, features, seed=0)


def test_planner_in_half_precision_stays_close(small_planner):
    half = BoxPlanner.from_weights(small_planner.state_dict(), dtype=torch.bfloat16)
    assert half.decoder.dtype == half.partfield_voxel_encoder.input_layer.weight.dtype == torch.bfloat16
    assert half.image_projector.norm1.weight.dtype == torch.float32
    torch.manual_seed(0)
    latents, grid, volume = torch.randn(1, 20, 12), torch.arange(16).reshape(1, 4, 4) % 11, torch.randn(1, 16, 8, 8, 8)
    with torch.no_grad():
        expected = small_planner(latents, grid, volume)
        prompt = half(latents, grid, volume)
        difference = (prompt - expected).abs()
        logits = half.decoder(inputs_embeds=prompt.bfloat16()).logits.float()
        assert difference.max() < 0.05 * expected.abs().max() and logits.isfinite().all()


def test_grammar_of_a_box_list():
    tokenizer = BoxTokenizer()
    for step in range(1, 40):
        allowed = allowed_tokens(step, tokenizer, 67)
        assert allowed[:64].all() and not allowed[64] and not allowed[66]
        assert bool(allowed[65]) == (step in (13, 19, 25, 31, 37))
    assert allowed_tokens(0, tokenizer, 67).nonzero().flatten().tolist() == [64]


def test_truncation_equals_transformers_logit_warpers():
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers = [TemperatureLogitsWarper(0.7), TopKLogitsWarper(6), TopPLogitsWarper(0.8)]
    for seed in range(20):
        logits = torch.randn(40, generator=torch.Generator().manual_seed(seed)) * 3
        allowed = torch.ones(40, dtype=torch.bool)
        allowed[seed] = False
        scores = logits.masked_fill(~allowed, float("-inf"))[None]
        for warper in warpers:
            scores = warper(None, scores)
        ours = truncated_probabilities(logits, allowed, temperature=0.7, top_k=6, top_p=0.8)
        assert torch.allclose(ours, scores.softmax(-1)[0], atol=1e-7)
    one = truncated_probabilities(torch.randn(40), torch.arange(40) == 5)
    assert one[5] == 1


# --- SAM and DINOv2


def small_sam():
    from transformers import SamConfig, SamModel

    torch.manual_seed(1)
    config = SamConfig(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 8,
            "output_channels": 16,
            "window_size": 4,
            "global_attn_indexes": [1],
            "mlp_dim": 64,
            "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 8, "image_embedding_size": 8},
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    )
    model = SamModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "mask_decoder" in name:
                parameter.normal_(0, 1.5 / parameter.shape[-1] ** 0.5)
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            mlp.proj_out.weight.mul_(20)
    return model


def test_masks_equal_those_of_transformers_own_pipeline():
    pytest.importorskip("torchvision")
    from transformers import SamImageProcessor, pipeline

    model = small_sam()
    rng = np.random.default_rng(0)
    image = Image.fromarray((np.kron(rng.random((8, 5, 3)), np.ones((8, 10, 1))) * 255).astype(np.uint8))
    processor = SamImageProcessor(
        size={"longest_edge": 64},
        mask_size={"longest_edge": 32},
        pad_size={"height": 64, "width": 64},
        mask_pad_size={"height": 32, "width": 32},
    )
    generator = pipeline("mask-generation", model=model, image_processor=processor)
    progress = []
    counts = []
    for iou, stability in ((-9.0, 0.6), (-9.0, 0.9), (0.5, 0.6)):
        expected = generator(
            image, points_per_batch=16, points_per_crop=8, pred_iou_thresh=iou, stability_score_thresh=stability
        )
        found = sam.generate_masks(
            model,
            image,
            points_per_side=8,
            points_per_batch=16,
            min_predicted_iou=iou,
            min_stability=stability,
            progress=lambda done, total: progress.append((done, total)),
        )
        counts.append(len(found))
        assert len(found) == len(expected["masks"])
        assert all(np.array_equal(ours.mask, theirs) for ours, theirs in zip(found, expected["masks"], strict=True))
        assert np.allclose([mask.predicted_iou for mask in found], expected["scores"])
        assert all(mask.area == mask.mask.sum() and mask.stability >= stability for mask in found)
    assert counts[0] > max(counts[1:]) > 0
    assert progress[:4] == [(16, 64), (32, 64), (48, 64), (64, 64)]


def test_box_suppression_equals_torchvisions():
    torchvision = pytest.importorskip("torchvision")
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        corner = torch.rand(80, 2, generator=generator) * 20
        boxes = torch.cat([corner, corner + torch.rand(80, 2, generator=generator) * 20], dim=1).round()
        scores = (torch.rand(80, generator=generator) * 10).round()
        assert torch.equal(sam.suppress_overlaps(boxes, scores, 0.4), torchvision.ops.nms(boxes, scores, 0.4))
    assert sam.suppress_overlaps(torch.zeros(0, 4), torch.zeros(0), 0.5).numel() == 0


def test_mask_boxes_are_inclusive_and_zero_for_empty_masks():
    stack = torch.zeros(2, 10, 12, dtype=torch.bool)
    stack[0, 2:5, 3:9] = True
    assert sam.mask_boxes(stack).tolist() == [[3, 2, 8, 4], [0, 0, 0, 0]]


def test_parts_are_found_in_a_picture_end_to_end():
    model = small_sam()
    rgba = np.zeros((64, 64, 4), dtype=np.uint8)
    rgba[8:56, 8:56] = (200, 40, 40, 255)
    rgba[8:56, 32:56, :3] = (20, 80, 220)
    image = Image.fromarray(rgba)
    options = {"points_per_side": 4, "min_predicted_iou": -9.0, "min_stability": 0.5}
    ids = parts.find_parts(model, image, 60, **options)
    assert ids.shape == (64, 64) and masks.part_count(ids) >= 1
    assert (ids[rgba[..., 3] == 0] == -1).mean() > 0.8
    assert np.array_equal(ids, parts.find_parts(model, image, 60, **options))
    nothing = parts.find_parts(model, Image.new("RGBA", (64, 64)), 60, points_per_side=2, min_predicted_iou=9.0)
    assert masks.part_count(nothing) == 0


@pytest.fixture
def dino_folder(tmp_path):
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    torch.manual_seed(0)
    config = Dinov2WithRegistersConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14
    )
    model = Dinov2WithRegistersModel(config)
    with torch.no_grad():
        model.layernorm.weight.uniform_(0.5, 2)
        model.layernorm.bias.normal_()
    model.save_pretrained(tmp_path / "dino")
    return tmp_path / "dino"


def test_image_tokens_before_and_after_the_final_norm(dino_folder):
    model = load_image_encoder(dino_folder)
    picture = np.random.default_rng(0).random((3, 56, 56), dtype=np.float32)
    before = []
    model.layernorm.register_forward_pre_hook(lambda _module, args: before.append(args[0]))
    tokens = encode_image(model, picture)
    assert tokens.condition.shape == tokens.normalised.shape == (1, 1 + 4 + 16, 24)
    assert torch.allclose(tokens.normalised, model.layernorm(before[0]), atol=1e-6)
    spread = (before[0].var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    standard = (before[0] - before[0].mean(-1, keepdim=True)) / spread
    assert torch.allclose(tokens.condition, standard, atol=1e-5)
    half = encode_image(load_image_encoder(dino_folder, dtype=torch.bfloat16), picture)
    assert half.condition.dtype == torch.float32 and (half.condition - tokens.condition).abs().mean() < 0.1


def test_incomplete_model_folder_is_refused(dino_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(dino_folder / "model.safetensors")
    del weights["encoder.layer.1.mlp.fc1.weight"]
    save_file(weights, dino_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidInputError, match=r"layer\.1\.mlp\.fc1\.weight"):
        load_image_encoder(dino_folder)
    (dino_folder / "model.safetensors").write_bytes(b"nope")
    with pytest.raises(InvalidInputError):
        load_image_encoder(dino_folder)
    with pytest.raises(InvalidInputError):
        load_image_encoder(tmp_path / "nothing")


# --- pickled checkpoints


class Exploding:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "it ran")


@pytest.fixture
def lightning_checkpoint(tmp_path):
    """A checkpoint as Lightning leaves it: hyper-parameters of a class that the reader cannot import."""
    module = types.ModuleType("yacs_like_config")

    class CfgNode(dict):
        def __init__(self, content):
            super().__init__(content)
            self.__dict__["frozen"] = False

    CfgNode.__module__, CfgNode.__qualname__ = module.__name__, "CfgNode"
    module.CfgNode = CfgNode
    sys.modules[module.__name__] = module
    path = tmp_path / "model.ckpt"
    weight = torch.arange(6.0).reshape(2, 3)
    content = {
        "epoch": 3,
        "state_dict": {"a.weight": weight, "b.weight": weight, "half": torch.ones(2, dtype=torch.float16)},
        "hyper_parameters": {"cfg": CfgNode({"layers": CfgNode({"n": 2})})},
        "callbacks": {},
    }
    torch.save(content, path)
    del sys.modules[module.__name__]
    return path


def test_lightning_checkpoint_is_read_and_remembered(lightning_checkpoint):
    copy = lightning_checkpoint.with_name("model.ckpt.safetensors")
    first = load_checkpoint(lightning_checkpoint)
    assert set(first) == {"a.weight", "b.weight", "half"} and first["half"].dtype == torch.float16
    assert copy.exists() and [p.name for p in copy.parent.iterdir() if "partial" in p.name] == []
    stamp = copy.stat().st_mtime_ns
    again = load_checkpoint(lightning_checkpoint)
    assert all(torch.equal(first[name], again[name]) for name in first) and copy.stat().st_mtime_ns == stamp

    torch.save({"a.weight": torch.zeros(1)}, lightning_checkpoint)  # replaced: the copy is stale
    assert set(load_checkpoint(lightning_checkpoint)) == {"a.weight"}


def test_checkpoint_that_would_run_code_is_refused(tmp_path):
    target = tmp_path / "it_ran"
    torch.save({"state_dict": {"w": torch.ones(1)}, "extra": Exploding(target)}, tmp_path / "bad.ckpt")
    with contextlib.suppress(InvalidInputError):  # refused, or read with a stand-in for the call: it must not run
        read_pickled_tensors(tmp_path / "bad.ckpt")
    assert not target.exists()

    class Shell:
        def __reduce__(self):
            import os

            return os.system, (f"touch {target}",)

    torch.save({"w": torch.ones(1), "x": Shell()}, tmp_path / "shell.ckpt")
    with pytest.raises(InvalidInputError):
        read_pickled_tensors(tmp_path / "shell.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps({"x": Shell()}))
    with pytest.raises(InvalidInputError):
        read_pickled_tensors(tmp_path / "plain.ckpt")
    assert not target.exists()


def test_damaged_checkpoints_are_refused(lightning_checkpoint, tmp_path):
    content = lightning_checkpoint.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 30):
        (tmp_path / "cut.ckpt").write_bytes(content[:length])
        with pytest.raises(InvalidInputError, match=r"cut\.ckpt"):
            load_checkpoint(tmp_path / "cut.ckpt")
    torch.save({"epoch": 1}, tmp_path / "none.ckpt")
    with pytest.raises(InvalidInputError, match="no tensors"):
        load_checkpoint(tmp_path / "none.ckpt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.ckpt", "model.ckpt", "none.ckpt"]
