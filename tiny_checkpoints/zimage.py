"""A small Z-Image checkpoint with random weights, in the layout of Tongyi-MAI/Z-Image-Turbo.

    model_index.json
    scheduler/scheduler_config.json
    text_encoder/config.json, model-0000N-of-0000M.safetensors, model.safetensors.index.json
    tokenizer/tokenizer.json, tokenizer_config.json, chat_template.jinja
    transformer/config.json, diffusion_pytorch_model-0000N-of-0000M.safetensors, diffusion_pytorch_model.safetensors.index.json
    vae/config.json, diffusion_pytorch_model.safetensors

Like the real repository it has no config.json at the top.
"""

from pathlib import Path

from tiny_checkpoints.tokenizers import qwen_tokenizer

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# Qwen3's turns; with thinking off the reply begins with an empty thought.
CHAT_TEMPLATE = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{%- if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)

SHARD_SIZE = "500KB"  # cuts text encoder and transformer into several files, as the real ones are


def make_zimage(folder: Path, seed: int = 0, dtype: str = "bfloat16") -> Path:
    """Write the checkpoint (about 1.4 million parameters) into `folder` and return it; the same seed gives the same files.

    `dtype` is a torch type name; the real files are bfloat16.
    """
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = qwen_tokenizer(SPECIAL_TOKENS, CHAT_TEMPLATE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = Qwen3Model(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=96,
                intermediate_size=256,
                num_hidden_layers=3,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=32,
                max_position_embeddings=2048,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                architectures=["Qwen3ForCausalLM"],
            )
        )
        transformer = ZImageTransformer2DModel(
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            in_channels=16,
            dim=96,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            norm_eps=1e-5,
            qk_norm=True,
            cap_feat_dim=96,
            rope_theta=256.0,
            t_scale=1000.0,
            axes_dims=[16, 16, 16],  # together the width of a head
            axes_lens=[1536, 512, 512],  # as in the real one: largest positions of captions, rows and columns
        )
        vae = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            latent_channels=16,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=1024,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=True,
        )
    wanted = getattr(torch, dtype)
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
        vae=vae.to(wanted),
        text_encoder=text_encoder.to(wanted),
        tokenizer=tokenizer,
        transformer=transformer.to(wanted),
    )
    pipeline.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    return folder
