"""What `ZImagePipeline` itself makes of the same arguments: the pictures that zimage_generation.py has to equal.

    zimage_reference.py make FOLDER            # a tiny checkpoint, and a LoRA for it beside
    zimage_reference.py break FOLDER           # that checkpoint, with a number that is none in its decoder
    zimage_reference.py trace                  # memory that the full-size networks take, as JSON
    zimage_reference.py draw FOLDER JSON       # {"call": {...}, "seeds": [...], "image": path, "lora": [[path, scale], ...]}

`draw` writes 0.png, 1.png, … into the current directory.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def make(folder: Path) -> None:
    import torch
    from diffusers import ZImagePipeline
    from peft import LoraConfig, get_peft_model_state_dict

    from tiny_checkpoints.zimage import make_zimage

    make_zimage(folder)
    pipeline = ZImagePipeline.from_pretrained(folder, dtype=torch.bfloat16)
    pipeline.transformer.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    state = get_peft_model_state_dict(pipeline.transformer)
    ZImagePipeline.save_lora_weights(folder.parent / "lora", transformer_lora_layers=state)


def draw(folder: Path, wanted: dict) -> None:
    import torch
    from diffusers import ZImageImg2ImgPipeline, ZImagePipeline
    from PIL import Image

    kind = ZImageImg2ImgPipeline if "image" in wanted else ZImagePipeline
    pipeline = kind.from_pretrained(folder, dtype=torch.bfloat16)
    loras = wanted.get("lora", [])
    for number, (path, _) in enumerate(loras):
        pipeline.load_lora_weights(path, adapter_name=f"a{number}")
    if loras:
        pipeline.set_adapters([f"a{n}" for n in range(len(loras))], [scale for _, scale in loras])
    # Images are decoded one at a time.
    pipeline.vae.enable_slicing()
    if "image" in wanted:
        wanted["call"]["image"] = Image.open(wanted["image"]).convert("RGB")
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in wanted["seeds"]]
    images = pipeline(generator=generators if len(generators) > 1 else generators[0], **wanted["call"]).images
    for number, image in enumerate(images):
        image.save(f"{number}.png")


def damage(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_out.bias"] = torch.full_like(tensors["decoder.conv_out.bias"], float("nan"))
    save_file(tensors, path, metadata={"format": "pt"})


def trace() -> dict[str, int]:
    """Peak bytes beside the weights: decoding 1024 x 1024 pixels, denoising two such images with 512 tokens each."""
    import torch
    from diffusers import AutoencoderKL, ZImageTransformer2DModel
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    def peak(network, call) -> int:
        tracker = MemTracker()
        tracker.track_external(network)
        with torch.no_grad(), tracker:
            call()
        weights = sum(p.numel() * p.element_size() for p in network.parameters())
        return max(tracker.get_tracker_snapshot("peak")[torch.device("cpu")].values()) - weights

    torch.set_default_dtype(torch.bfloat16)  # fake networks cannot be converted afterwards
    with FakeTensorMode(allow_non_fake_inputs=True):
        vae = AutoencoderKL(
            latent_channels=16,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        latents = torch.empty(1, 16, 128, 128)
        decoding = peak(vae, lambda: vae.decode(latents))
        transformer = ZImageTransformer2DModel(n_layers=2)
        image = torch.empty(16, 1, 128, 128)
        words = torch.empty(512, 2560)
        denoising = peak(transformer, lambda: transformer([image] * 2, torch.rand(2), [words] * 2))
    return {"decode": decoding, "denoise": denoising}


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    elif sys.argv[1] == "trace":
        print(json.dumps(trace()))
    elif sys.argv[1] == "break":
        damage(Path(sys.argv[2]))
    else:
        draw(Path(sys.argv[2]), json.loads(sys.argv[3]))
