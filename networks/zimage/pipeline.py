"""diffusers' Z-Image pipelines in two halves: the text encoder, and everything behind it.

All prompts of a run are encoded first, so the halves never need to be on the device together:

    text = load_text(folder, plan, device, dtype)
    embedding = encode(text, "a red fox", max_tokens=512)
    pipeline = load_images(folder, plan, device, dtype, loras=[])
    latents = denoise(pipeline, [Request(embedding, seed=1, width=1024, height=1024, steps=8)], on_step)
    image = decode(pipeline, latents[:1])

The pictures are those of `ZImagePipeline.__call__` with the same arguments, bit for bit; the split only adds the choice of
when what is in memory, and phases that can be timed.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from networks.zimage.lora import Lora, apply_loras
from networks.zimage.plan import Plan, Sizes, device_kind
from shared_utils.errors import PostConditionError, UnavailableError


@dataclasses.dataclass
class Request:
    """One image to denoise. `prompt` and `negative` are embeddings (tokens, width); `negative` only with guidance > 0.

    `image` is a PIL image of the request's size to start from, and `strength` how much of it is replaced (0 to 1].
    """

    prompt: Any
    seed: int
    width: int
    height: int
    steps: int
    guidance_scale: float = 0.0
    negative: Any = None
    image: Any = None
    strength: float = 1.0


def count_parameters(folder: Path) -> Sizes | None:
    """Parameters of the networks in a local checkpoint, from the headers of its files; None where there are none."""
    counts = {}
    for name in ("transformer", "text_encoder", "vae"):
        files = sorted((folder / name).glob("*.safetensors"))
        if not files:
            return None
        counts[name] = sum(_parameters_in(file) for file in files)
    return Sizes(**counts)


def _parameters_in(file: Path) -> int:
    """Numbers in a safetensors file: 8 bytes little-endian length, then a JSON header with every tensor's shape."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for length in tensor["shape"]:
                count *= length
            total += count
    return total


def load_text(folder: Path, plan: Plan, device: str, dtype: Any) -> Any:
    """Tokenizer and text encoder as a pipeline without the rest, on the device."""
    if device_kind(device) == "cuda":
        import torch

        torch.cuda.set_device(device)  # bitsandbytes puts its weights on the current one
    quantization = {}
    if plan.quantize == "nf4":
        from transformers import BitsAndBytesConfig

        quantization = {"text_encoder": BitsAndBytesConfig(**_nf4(dtype))}
    pipeline = _from_pretrained(folder, dtype, quantization, transformer=None, vae=None)
    # Without its file transformers makes up a tokenizer that knows no words.
    if not pipeline.tokenizer("a fox").input_ids:
        raise ValueError("its tokenizer is missing")
    return _place(pipeline, plan, device)


def load_images(folder: Path, plan: Plan, device: str, dtype: Any, loras: list[Lora]) -> Any:
    """Transformer, VAE and scheduler as a pipeline without text encoder, on the device, with the LoRAs applied."""
    quantization = {}
    if plan.quantize == "nf4":
        from diffusers import BitsAndBytesConfig

        quantization = {"transformer": BitsAndBytesConfig(**_nf4(dtype))}
    elif plan.quantize == "int8":
        from diffusers import TorchAoConfig
        from torchao.quantization import Int8WeightOnlyConfig

        quantization = {"transformer": TorchAoConfig(Int8WeightOnlyConfig())}
    pipeline = _from_pretrained(folder, dtype, quantization, text_encoder=None, tokenizer=None)
    apply_loras(pipeline, loras)
    if plan.quantize == "fp8":
        import torch

        pipeline.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
    if plan.tiling:
        pipeline.vae.enable_tiling()
    return _place(pipeline, plan, device)


def _nf4(dtype: Any) -> dict[str, Any]:
    return {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}


def _from_pretrained(folder: Path, dtype: Any, quantization: dict[str, Any], **without: None) -> Any:
    from diffusers import PipelineQuantizationConfig, ZImagePipeline

    if quantization:
        without["quantization_config"] = PipelineQuantizationConfig(quant_mapping=quantization)
    pipeline = ZImagePipeline.from_pretrained(folder, dtype=dtype, local_files_only=True, **without)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _place(pipeline: Any, plan: Plan, device: str) -> Any:
    import torch

    if plan.offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    elif plan.offload == "group":
        # Copying ahead on a stream pins the weights, which quantised tensors do not support.
        ahead = device_kind(device) == "cuda" and plan.quantize == "none"
        pipeline.enable_group_offload(
            onload_device=torch.device(device),
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",
            use_stream=ahead,
        )
    else:
        pipeline.to(device)
    return pipeline


def set_attention(pipeline: Any, attention: str, device: str) -> None:
    """Choose how attention is computed; `auto` leaves it to PyTorch, which takes a flash kernel where it has one.

    The kernels for sequences of different lengths are taken, for a batch of prompts has such.
    Raises `UnavailableError` when the package for it is not installed or the device is no CUDA device.
    """
    if attention in ("auto", "native"):
        return
    if device_kind(device) != "cuda":
        raise UnavailableError(f"--attention {attention}: needs a CUDA device (--attention native works everywhere)")
    backends = {"flash": ("_flash_varlen_3", "flash_varlen"), "sage": ("sage_varlen",)}[attention]
    for backend in backends:
        try:
            pipeline.transformer.set_attention_backend(backend)
        except RuntimeError as error:
            reason = error
        else:
            return
    package = {"flash": "flash-attn", "sage": "sageattention"}[attention]
    raise UnavailableError(f"--attention {attention}: {reason} (with uv: uv run --with {package} …)")


def prompt_tokens(text: Any, prompt: str) -> list[int]:
    """Token ids of a prompt in its chat template, however long."""
    turn = [{"role": "user", "content": prompt}]
    templated = text.tokenizer.apply_chat_template(
        turn, tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    return text.tokenizer(templated).input_ids


def encode(text: Any, prompt: str, max_tokens: int) -> Any:
    """The embedding of a prompt, (tokens, width) in the model's dtype, in main memory. Tokens past `max_tokens` are cut."""
    import torch

    with torch.no_grad():
        # A list of its own: the pipeline writes the template into it.
        embeddings, _ = text.encode_prompt([prompt], do_classifier_free_guidance=False, max_sequence_length=max_tokens)
    return embeddings[0].cpu()


def denoise(pipeline: Any, requests: list[Request], on_step: Callable[[], None]) -> Any:
    """Latents (images, 16, height / 8, width / 8), 32 bit. The requests differ in prompt and seed only.

    Noise comes from a CPU generator for each image, so that a seed means the same on every device. `on_step` is called
    after each step.
    """
    import torch

    first = requests[0]
    device = pipeline._execution_device
    generators = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]

    def stepped(pipe: Any, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        on_step()
        return {}

    arguments = {
        "prompt_embeds": [request.prompt.to(device) for request in requests],
        "negative_prompt_embeds": [r.negative.to(device) for r in requests] if first.guidance_scale > 0 else None,
        "width": first.width,
        "height": first.height,
        "num_inference_steps": first.steps,
        "guidance_scale": first.guidance_scale,
        "generator": generators if len(generators) > 1 else generators[0],
        "output_type": "latent",
        "callback_on_step_end": stepped,
    }
    if first.image is None:
        return pipeline(**arguments).images
    from diffusers import ZImageImg2ImgPipeline

    # Not from_pipe, which would turn the weights into 32 bit.
    from_image = ZImageImg2ImgPipeline(**pipeline.components)
    from_image.set_progress_bar_config(disable=True)
    return from_image(image=first.image, strength=first.strength, **arguments).images


def decode(pipeline: Any, latents: Any) -> Any:
    """One latent (1, 16, height / 8, width / 8) as a PIL image in RGB.

    Raises `PostConditionError` when it is not finite: 16-bit floats of small range overflow.
    """
    import torch

    vae = pipeline.vae
    with torch.no_grad():
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        image = vae.decode(scaled, return_dict=False)[0]
    if not torch.isfinite(image).all():
        raise PostConditionError("the image holds values that are no numbers (--dtype fp32 has the range they need)")
    return pipeline.image_processor.postprocess(image, output_type="pil")[0]
