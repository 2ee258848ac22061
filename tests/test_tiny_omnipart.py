"""OmniPart's stages one after another on the tiny checkpoint: picture to parts, boxes, voxels, latents, surfaces."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from networks.checkpoints import load_checkpoint
from networks.omnipart import generation, images, masks, parts
from networks.omnipart.box_planner import BoxPlanner, plan_boxes
from networks.omnipart.image_tokens import encode_image, load_image_encoder
from networks.omnipart.loading import load_role, read_pipeline
from networks.omnipart.part_layout import lay_out_parts
from networks.omnipart.partfield import PartField, voxel_features
from networks.omnipart.segment_anything import load_segmenter
from networks.omnipart.slat_flow import divide_slat
from tiny_checkpoints import omnipart as tiny


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("tiny"))


def test_files_have_the_published_layout(paths):
    pipeline = json.loads((paths.omnipart / "pipeline.json").read_text())
    stems = pipeline["args"]["models"].values()
    assert len(stems) == 5
    for stem in stems:
        assert {"name", "args"} == set(json.loads((paths.omnipart / f"{stem}.json").read_text()))
        tensors = load_file(paths.omnipart / f"{stem}.safetensors")
        dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        assert dtypes["input_layer.weight"] == torch.float32
        assert {torch.float16, torch.float32} == set(dtypes.values())
    content = (paths.modules / "partfield_encoder.ckpt").read_bytes()
    assert b"yacs.config" in content and b"state_dict" in content
    assert (paths.segmenter / "model.safetensors").exists() and (paths.image_encoder / "config.json").exists()


def test_same_seed_makes_the_same_weights(paths, tmp_path):
    again = tiny.build(tmp_path / "again")
    other = tiny.build(tmp_path / "other", seed=1)
    name = "ckpts/slat_flow_tiny.safetensors"
    assert (again.omnipart / name).read_bytes() == (paths.omnipart / name).read_bytes()
    assert (other.omnipart / name).read_bytes() != (paths.omnipart / name).read_bytes()


def test_all_stages_give_something_to_the_next(paths):
    picture = images.resize_and_pad(tiny.example_image())
    segmenter = load_segmenter(paths.segmenter)
    ids = parts.find_parts(segmenter, picture, 1000, points_per_side=4)
    assert masks.part_count(ids) == 3
    crop = images.crop_object(np.asarray(picture), ids + 1)
    assert set(np.unique(crop.grid)) == {0, 1, 2, 3}

    encoder = load_image_encoder(paths.image_encoder)
    condition = encode_image(encoder, crop.black).condition
    latents = encode_image(encoder, crop.white).normalised
    assert condition.shape == latents.shape == (1, tiny.IMAGE_TOKENS, tiny.WIDTH)

    pipeline = read_pipeline(paths.omnipart)
    settings = replace(pipeline.sparse_structure_sampler, steps=2)
    flow = load_role(pipeline, "sparse_structure_flow_model")
    latent = generation.sample_structure(flow, condition, settings, seed=42)
    voxels = generation.decode_structure(load_role(pipeline, "sparse_structure_decoder"), latent)
    assert 300 < len(voxels) < 3000

    partfield = PartField.from_weights(load_checkpoint(paths.modules / "partfield_encoder.ckpt"))
    features = voxel_features(partfield, voxels.numpy())
    planner = BoxPlanner.from_weights(load_checkpoint(paths.modules / "bbox_gen.ckpt"))
    boxes = plan_boxes(planner, latents, crop.grid, voxels.numpy(), features, seed=42)
    assert np.abs(boxes - tiny.totem_boxes()).max() < 0.08
    layout = lay_out_parts(voxels.numpy(), boxes)
    assert layout.boxes == [0, 1, 2]

    coords = torch.from_numpy(layout.coords)
    grid = torch.from_numpy(crop.grid)[None]
    slat_flow = load_role(pipeline, "slat_flow_model")
    slat = generation.sample_latents(slat_flow, coords, layout.slices, condition, grid, settings, seed=42)
    mean, std = pipeline.slat_normalization(9)
    coords, slat, sizes = divide_slat(coords, slat, layout.slices, mean, std)
    assert len(sizes) == 4 and min(sizes) > 50

    for mesh in generation.decode_parts(load_role(pipeline, "slat_decoder_mesh"), coords, slat, sizes):
        assert len(mesh.faces) > 500 and mesh.vertices.isfinite().all() and mesh.vertices.abs().max() < 0.5
        assert mesh.attributes[:, :3].std(dim=0).min() > 0.01
    splats = list(generation.decode_parts(load_role(pipeline, "slat_decoder_gs"), coords, slat, sizes))
    assert [len(part) for part in splats] == [8 * size for size in sizes]
