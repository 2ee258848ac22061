"""How long an object takes: evaluations of the flows, counted, at the speed this machine has."""

import time

from networks.omnipart.loading import Pipeline
from networks.omnipart.sampler import SamplerSettings, time_steps

# Floating-point operations of a flow's evaluation are 2 x parameters x tokens; the second count stands for its blocks at
# both resolutions, at 5 to 10 thousand tokens after pooling.
FLOW_TOKENS = {"sparse_structure_flow_model": 4096, "slat_flow_model": 12_000}
BYTES_PER_PARAMETER = 2  # as the flows are stored
# Segmenter, image encoder, boxes and decoders take 20 to 30 tera-operations beside some 800 of the flows; then meshes.
EVERYTHING_ELSE = 1.1


def plan_text(pipeline: Pipeline, objects: list[tuple[int, float]], device: str) -> str:
    """What will be computed and about how long it takes on `device`; `objects`: steps and guidance scale of each."""
    operations = evaluations = 0.0
    for steps, guidance_scale in objects:
        for role, tokens in FLOW_TOKENS.items():
            path = pipeline.folder / f"{pipeline.models.get(role)}.safetensors"
            count = evaluation_count(pipeline.sampler(role, steps, guidance_scale))
            evaluations += count
            size = path.stat().st_size if path.is_file() else 0
            operations += count * 2 * tokens * size / BYTES_PER_PARAMETER
    speed = operations_per_second(device)
    seconds, steps = EVERYTHING_ELSE * operations / speed, objects[0][0]
    advice = " (--num-inference-steps 12 takes half of it)" if seconds > 1800 and steps > 12 else ""
    return (
        f"{len(objects)} object(s), {steps} steps, {evaluations:.0f} evaluations of the flows on {device}"
        f" at {speed / 1e9:.0f} GFLOP/s: about {spoken(seconds)}{advice}"
    )


def spoken(seconds: float) -> str:
    """A duration in the unit that fits."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def evaluation_count(settings: SamplerSettings) -> int:
    """How often a flow is computed: once a step, twice where it is guided."""
    low, high = settings.cfg_interval
    times = time_steps(settings.steps, settings.rescale_t)[:-1]
    guided = int(((times >= low) & (times <= high)).sum()) if settings.cfg_strength else 0
    return len(times) + guided


def operations_per_second(device_name: str) -> float:
    """Floating-point operations a second of a matrix product of a transformer's size."""
    import torch

    dtype = torch.float32 if device_name == "cpu" else torch.float16
    side, repeats = (1024, 2) if device_name == "cpu" else (4096, 8)
    a = torch.ones(side, side, dtype=dtype, device=device_name)
    float((a @ a)[0, 0])
    start = time.monotonic()
    for _ in range(repeats):
        product = a @ a
    float(product[0, 0])
    # Half of it, for everything in a network that is no matrix product.
    return 0.5 * repeats * 2 * side**3 / max(time.monotonic() - start, 1e-6)
