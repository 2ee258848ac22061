"""A small random SAM 3 video model in the layout of facebook/sam3: one safetensors file, tokenizer, processors.

Some sizes have to agree. With S pixels of picture and patches of 14, G = S / 14: the feature maps have 4G, 2G and G a side,
low-resolution masks 4G, and the tracker's rotary positions G x G.
"""

import json
from pathlib import Path

PATCH = 14
# The width of the tracker's memories is fixed in transformers' code; the model's own has to be a larger multiple of it.
MEMORY_WIDTH = 64
CONTEXT = 32  # tokens of a prompt, as in the published model
_CORPUS = ("a person walking a dog", "red car on the road", "white cat, tree, player, ball")


def build(folder: Path, seed: int = 0, image_size: int = 112, detect: bool = True, hotstart_delay: int = 15) -> Path:
    """Write the checkpoint (8 MB, bfloat16) into `folder` and return it.

    Random weights find nothing; with `detect` the thresholds are low and some weights lively, so that up to three objects
    with changing masks are found in every picture.
    """
    import torch
    from transformers import (
        Sam2VideoVideoProcessor,
        Sam3ImageProcessor,
        Sam3VideoConfig,
        Sam3VideoModel,
        Sam3VideoProcessor,
    )

    torch.manual_seed(seed)
    tokens = clip_tokenizer()
    grid, width = image_size // PATCH, 2 * MEMORY_WIDTH
    vision = {
        "model_type": "sam3_vision_model",
        "fpn_hidden_size": width,
        "backbone_feature_sizes": [[4 * grid] * 2, [2 * grid] * 2, [grid] * 2],
        "scale_factors": [4.0, 2.0, 1.0, 0.5],
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": image_size,
            "patch_size": PATCH,
            "window_size": 4,
            "global_attn_indexes": [1],
            "pretrain_image_size": image_size // 2,
        },
    }
    layers = {"hidden_size": width, "num_attention_heads": 2, "intermediate_size": 48}
    text = {
        "model_type": "clip_text_model",
        "vocab_size": len(tokens),
        "hidden_size": 32,
        "intermediate_size": 48,
        "projection_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "gelu",
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }
    low = {
        "score_threshold_detection": 0.05,
        "new_det_thresh": 0.1,
        "det_nms_thresh": 0.9,
        "assoc_iou_thresh": 0.05,
        "trk_assoc_iou_thresh": 0.05,
        "max_num_objects": 3,
    }
    config = Sam3VideoConfig(
        detector_config={
            "model_type": "sam3",
            "vision_config": vision,
            "text_config": text,
            "geometry_encoder_config": {"num_layers": 1, "roi_size": 1, **layers},
            "detr_encoder_config": {"num_layers": 2, **layers},
            "detr_decoder_config": {"num_layers": 2, "num_queries": 4, **layers},
            "mask_decoder_config": {"hidden_size": width, "num_upsampling_stages": 3, "num_attention_heads": 2},
        },
        tracker_config={
            "model_type": "sam3_tracker_video",
            # Left out, everything below falls back to 1008.
            "image_size": image_size,
            "vision_config": vision,
            "prompt_encoder_config": {
                "hidden_size": width,
                "image_size": image_size,
                "patch_size": PATCH,
                "mask_input_channels": 4,
            },
            "mask_decoder_config": {
                "hidden_size": width,
                "mlp_dim": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "iou_head_hidden_dim": width,
            },
            "memory_attention_hidden_size": width,
            "memory_attention_num_layers": 1,
            "memory_attention_feed_forward_hidden_size": 48,
            "memory_attention_rope_feat_sizes": [grid, grid],
            "memory_encoder_hidden_size": width,
            "memory_encoder_output_channels": MEMORY_WIDTH,
            "mask_downsampler_embed_dim": width,
            "memory_fuser_embed_dim": width,
            "memory_fuser_intermediate_dim": 48,
        },
        low_res_mask_size=4 * grid,
        hotstart_delay=hotstart_delay,
        **(low if detect else {}),
    )
    model = Sam3VideoModel(config).eval()
    if detect:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1 and any(part in name for part in ("mask_embedder", "mask_decoder", "hypernet")):
                    parameter.mul_(6.0)
                if "pred_obj_score_head.proj_out.bias" in name:
                    parameter.fill_(5.0)  # the tracker would say "gone" from the second frame on
    model.to(torch.bfloat16).save_pretrained(folder)
    side = {"height": image_size, "width": image_size}
    Sam3VideoProcessor(
        image_processor=Sam3ImageProcessor(size=side, mask_size={"height": 4 * grid, "width": 4 * grid}),
        video_processor=Sam2VideoVideoProcessor(size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer=tokens,
        target_size=image_size,
    ).save_pretrained(folder)
    return Path(folder)


def clip_tokenizer(vocabulary: int = 600):
    """A byte-level tokenizer of CLIP's class with a context of `CONTEXT` tokens."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    end = "</w>"
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix=end))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=alphabet,
        end_of_word_suffix=end,
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS * 4, trainer)
    model = json.loads(bpe.to_str())["model"]
    pieces = dict(model["vocab"])
    for character in alphabet:  # every byte may end a word, as in CLIP's own vocabulary
        pieces.setdefault(character + end, len(pieces))
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    return CLIPTokenizer(vocab=pieces, merges=merges, model_max_length=CONTEXT)
