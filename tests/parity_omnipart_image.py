"""Golden cases of OmniPart's image and box half."""

import numpy as np
import torch
from parity_case import Case, Check, close, exact
from PIL import Image

from networks.omnipart.bbox_tokens import BoxTokenizer
from networks.omnipart.box_planner import BoxPrompt, build_opt
from networks.omnipart.box_sampling import generate_tokens
from networks.omnipart.images import crop_object, fill_transparent, resize_and_pad
from networks.omnipart.masks import clean_segment_edges, group_masks, regroup, split_disconnected
from networks.omnipart.part_layout import lay_out_parts, point_voxels, voxel_points
from networks.omnipart.partfield import PartField, to_partfield_space

OPT_NAMES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "ffn_dim",
    "max_position_embeddings",
    "num_attention_heads",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)


def run_resize_pad(case: Case) -> list[Check]:
    pixels = case.inputs["rgba"].numpy()
    image, size = Image.fromarray(pixels), case.config["target_size"]
    side = case.config["preprocess_size"]
    black = Image.fromarray(fill_transparent(pixels, 0)).resize((side, side), Image.Resampling.BILINEAR)
    return [
        exact(case, "rgba", np.asarray(resize_and_pad(image, size))),
        exact(case, "rgb", np.asarray(resize_and_pad(image.convert("RGB"), size))),
        exact(case, "preprocess_black", np.asarray(black)),
    ]


def run_load_img_mask(case: Case) -> list[Check]:
    config = case.config
    crop = crop_object(
        case.inputs["rgba"].numpy(),
        case.inputs["mask"].numpy(),
        size=tuple(config["size"]),
        grid=config["grid"],
        margin=config["aug_size_ratio"],
    )
    return [
        close(case, "white", crop.white),
        close(case, "black", crop.black, atol=2 / 255, rtol=0),
        exact(case, "ordered_mask", crop.grid),
    ]


def candidates(case: Case) -> tuple[list[np.ndarray], list[int], np.ndarray, int]:
    masks = [mask.astype(bool) for mask in case.inputs["masks"].numpy()]
    areas = [int(mask.sum()) for mask in masks]
    return masks, areas, case.inputs["alpha"].numpy(), case.config["size_threshold"]


def run_segment(case: Case) -> list[Check]:
    masks, areas, alpha, threshold = candidates(case)
    groups = case.config["merge_groups"]
    ids = group_masks(masks, areas, alpha, threshold)
    known = case.outputs["group_ids"].numpy()
    return [
        exact(case, "group_ids", ids),
        exact(case, "cleaned", clean_segment_edges(known)),
        exact(case, "merged_existing", regroup(known, alpha, threshold, groups)),
        exact(case, "merged_fresh", group_masks(masks, areas, alpha, threshold, groups)),
        exact(case, "split", split_disconnected(case.outputs["split_input"].numpy(), threshold)),
    ]


def run_segment_union(case: Case) -> list[Check]:
    return [exact(case, "group_ids", group_masks(*candidates(case)))]


def run_bbox_tokenizer(case: Case) -> list[Check]:
    config = case.config
    low, high = config["coord_rg"]
    tokenizer = BoxTokenizer(config["bins"], config["BOS"], config["EOS"], config["PAD"], low, high)
    return [
        exact(case, "tokens", tokenizer.encode(case.inputs["bounds"].numpy())),
        close(case, "decoded", tokenizer.decode(case.outputs["tokens"].numpy()), atol=1e-12, rtol=0),
    ]


def run_prepare_inputs(case: Case) -> list[Check]:
    voxels, boxes = case.inputs["voxel_coords"].numpy(), case.inputs["bboxes"].numpy()
    bins = case.config["bins"]
    layout = lay_out_parts(voxels, boxes, bins, case.config["padding_size"], published_leftovers=True)
    points = voxel_points(voxels[:, 1:], bins).astype(np.float16)[None]
    return [
        exact(case, "coords", layout.coords),
        exact(case, "layout", [[part.start, part.stop] for part in layout.slices]),
        exact(case, "points", points),
        exact(case, "whole_voxel_index", point_voxels(points, bins)),
    ]


def run_partfield(case: Case) -> list[Check]:
    model = PartField(**case.config).eval()
    model.load_state_dict(case.weights)
    points = case.inputs["points"]
    rotated = to_partfield_space(points)
    planes = model.pvcnn(rotated)
    return [
        close(case, "rotated", rotated),
        close(case, "point_feats", model.pvcnn.point_features(rotated)),
        close(case, "pvcnn_planes", planes),
        close(case, "planes", model.triplane_transformer(planes)),
        close(case, "features", model(points)),
    ]


def run_bbox_prompt(case: Case) -> list[Check]:
    latents, grid, volume = (case.inputs[name] for name in ("image_latents", "masks", "volume"))
    groups = case.weights["group_embedding.group_embedding.weight"].shape[0] - 1
    model = BoxPrompt(**case.config, voxel_in_channels=volume.shape[1], max_group_size=groups).eval()
    model.load_state_dict(case.weights)
    return [
        close(case, "image_tokens", model.image_tokens(latents, grid)),
        close(case, "volume_out", model.partfield_voxel_encoder(volume)),
        close(case, "prompt", model(latents, grid, volume)),
    ]


def run_bbox_decoder(case: Case) -> list[Check]:
    config, prompt = case.config, case.inputs["prompt"]
    decoder = build_opt(**{name: config[name] for name in OPT_NAMES})
    weights = case.weights | {"lm_head.weight": case.weights["model.decoder.embed_tokens.weight"]}
    decoder.load_state_dict(weights)
    special = {name: config[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    tokenizer = BoxTokenizer(bins=min(special.values()), **special)
    seen: list[torch.Tensor] = []
    expected = case.outputs["tokens"][0]

    def greedy(probabilities: torch.Tensor) -> int:
        seen.append(probabilities)
        return int(probabilities.argmax()) if len(seen) < len(expected) else tokenizer.eos

    limits = {name: config[name] for name in ("temperature", "top_k", "top_p")}
    generate_tokens(decoder, prompt, tokenizer, greedy, **limits)
    tokens = torch.stack([probabilities.argmax() for probabilities in seen])
    # The raw logits come from one pass over the whole sequence, without the cache that generation used.
    whole = torch.cat([prompt, decoder.get_input_embeddings()(tokens[None, :-1])], dim=1)
    return [
        exact(case, "tokens", tokens[None]),
        close(case, "probs", torch.stack(seen)),
        close(case, "raw_logits", decoder(inputs_embeds=whole).logits[0, prompt.shape[1] - 1 :]),
    ]


CASES = {
    "bbox_decoder": run_bbox_decoder,
    "bbox_prompt": run_bbox_prompt,
    "bbox_tokenizer": run_bbox_tokenizer,
    "load_img_mask": run_load_img_mask,
    "partfield": run_partfield,
    "prepare_inputs": run_prepare_inputs,
    "resize_pad": run_resize_pad,
    "segment": run_segment,
    "segment_union": run_segment_union,
}
