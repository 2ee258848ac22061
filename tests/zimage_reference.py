"""What `ZImagePipeline` itself makes of the same arguments: the pictures that zimage_generation.py has to equal.

    zimage_reference.py make FOLDER            # a tiny checkpoint, and a LoRA for it beside
    zimage_reference.py break FOLDER           # that checkpoint, with a number that is none in its decoder
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


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    elif sys.argv[1] == "break":
        damage(Path(sys.argv[2]))
    else:
        draw(Path(sys.argv[2]), json.loads(sys.argv[3]))
