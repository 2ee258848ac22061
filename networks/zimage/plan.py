"""The choice of how Z-Image's weights are put on a device, by how much memory is free, without torch.

Sizes are counted from the networks' shapes. Memory for intermediate results is estimated from them, a fifth to a third above
what a trace of the full-size networks shows (122 kB a token, 1536 bytes a pixel in 16 bit; a test repeats it).
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Literal

from shared_utils.device import free_memory, gigabytes, is_out_of_memory
from shared_utils.errors import UnavailableError, UsageError

Offload = Literal["none", "model", "group", "sequential"]
Quantize = Literal["none", "fp8", "int8", "nf4"]

# Bytes of one weight when stored so; NF4 has a 32-bit scale for each block of 64 (QLoRA, arXiv:2305.14314, section 2),
# int8 one for each row.
STORED_BYTES = {"fp8": 1.0, "int8": 1.01, "nf4": 0.5625}

# Of one token in a block of the transformer, in numbers: input, norm, query, key, value, attention output, residual
# (width 3840 each), three of the feed-forward part (10240 each), and the rotated query and key in 32 bit.
NUMBERS_PER_TOKEN = 7 * 3840 + 3 * 10240 + 4 * 3840
# Of one pixel in the decoder's last, largest block: three maps of 256 channels, and one for a convolution's workspace.
NUMBERS_PER_PIXEL = 4 * 256
TILE_PIXELS = 1024 * 1024  # the decoder's tiles are 1024 x 1024 pixels (`sample_size` in vae/config.json)
PIXELS_PER_TOKEN = 16 * 16
LARGEST_LAYER = 0.1  # of the text encoder: its embedding table, 151936 x 2560
LAYERS_AHEAD = 0.03  # of the transformer: the layers that are copied before their turn
RESERVE_SHARE = 0.03  # of all weights: workspaces and fragmentation on top of the sums

# What `auto` tries, fastest first. On a CPU float8 is only storage and no smaller while loading, so int8 takes its place;
# NF4 and layer-wise copying need a CUDA device.
AUTO: dict[str, tuple[tuple[Offload, Quantize], ...]] = {
    "cuda": (("none", "none"), ("model", "none"), ("model", "fp8"), ("model", "nf4"), ("group", "none")),
    "mps": (("none", "none"), ("model", "none")),
    "cpu": (("none", "none"), ("model", "none"), ("model", "int8")),
}

# What works at all: device kind -> offload -> ways to store the weights.
POSSIBLE: dict[str, dict[Offload, tuple[Quantize, ...]]] = {
    "cuda": {
        "none": ("none", "fp8", "int8", "nf4"),
        "model": ("none", "fp8", "int8", "nf4"),
        "group": ("none", "fp8", "int8"),
        "sequential": ("none",),
    },
    "mps": {"none": ("none",), "model": ("none",)},
    "cpu": {"none": ("none", "fp8", "int8"), "model": ("none", "fp8", "int8"), "group": ("none", "fp8", "int8")},
}

MEANING = {
    "none": "all networks are on the device at once",
    "model": "the text encoder makes room for the transformer once all prompts are encoded",
    "group": "layers are copied to the device one by one, ahead of their use",
    "sequential": "layers are copied to the device one by one",
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Parameters of the three networks; the defaults are those of Tongyi-MAI/Z-Image-Turbo."""

    transformer: int = 6_155_000_000
    text_encoder: int = 4_022_000_000
    vae: int = 84_000_000


@dataclasses.dataclass(frozen=True)
class Work:
    """The largest thing to be made in one go: pixels of an image, images at a time, tokens of a prompt, with guidance or not.

    `number_bytes` is the size of one number (2 or 4).
    """

    pixels: int = 1024 * 1024
    images: int = 1
    tokens: int = 512
    guided: bool = False
    number_bytes: int = 2

    def denoise_bytes(self) -> float:
        """Memory of the transformer's intermediate results; guidance runs every image twice."""
        tokens = self.images * (2 if self.guided else 1) * (self.pixels / PIXELS_PER_TOKEN + self.tokens)
        return tokens * NUMBERS_PER_TOKEN * self.number_bytes

    def decode_bytes(self, tiled: bool) -> float:
        """Memory of the decoder's intermediate results; images are decoded one at a time."""
        return (min(self.pixels, TILE_PIXELS) if tiled else self.pixels) * NUMBERS_PER_PIXEL * self.number_bytes


@dataclasses.dataclass(frozen=True)
class Plan:
    """A way to run: where the weights are, how they are stored, whether the decoder works in tiles, and its peak in bytes."""

    offload: Offload
    quantize: Quantize
    tiling: bool
    peak: float

    @property
    def flags(self) -> str:
        return f"--offload {self.offload} --quantize {self.quantize} --vae-tiling {'on' if self.tiling else 'off'}"

    def __str__(self) -> str:
        return f"{self.flags} (about {gigabytes(self.peak)}: {MEANING[self.offload]})"


def device_kind(device: str) -> str:
    """`cuda`, `mps` or `cpu` of a torch device name."""
    return device.partition(":")[0]


def check_combination(offload: str, quantize: str) -> None:
    """Raise `UsageError` for a pair of flags that works on no device."""
    stored = {q for rows in POSSIBLE.values() if offload in rows for q in rows[offload]}
    if offload != "auto" and quantize != "auto" and quantize not in stored:
        raise UsageError(f"--offload {offload} with --quantize {quantize}: works on no device (--offload model does)")


def peak_bytes(offload: Offload, quantize: Quantize, tiling: bool, sizes: Sizes, work: Work) -> float:
    """Largest memory on the device, in bytes. NF4 also shrinks the text encoder, the others only the transformer."""
    number = work.number_bytes
    transformer = sizes.transformer * STORED_BYTES.get(quantize, number)
    text_encoder = sizes.text_encoder * (STORED_BYTES["nf4"] if quantize == "nf4" else number)
    vae = sizes.vae * number
    busy = max(work.denoise_bytes(), work.decode_bytes(tiling))
    if offload in ("group", "sequential"):
        embedding = LARGEST_LAYER * sizes.text_encoder * number
        return max(embedding, LAYERS_AHEAD * sizes.transformer * number) + busy
    reserve = RESERVE_SHARE * (sizes.transformer + sizes.text_encoder) * number
    if offload == "none":
        return transformer + text_encoder + vae + busy + reserve
    # Encoding a prompt takes less than the reserve.
    return max(text_encoder + reserve, transformer + vae + busy + reserve)


def plans(kind: str, offload: str, quantize: str, tiling: str, sizes: Sizes, work: Work) -> list[Plan]:
    """The plans that agree with the flags (`auto` leaves a choice), fastest first.

    Raises `UnavailableError` when the flags ask for something this kind of device cannot do.
    """
    if offload == quantize == "auto":
        pairs = list(AUTO[kind])
    elif quantize == "auto":
        pairs = [pair for pair in AUTO[kind] if pair[0] == offload] or [(offload, "none")]
    else:
        offloads = ("none", "model", "group") if offload == "auto" else (offload,)
        pairs = [(o, quantize) for o in offloads]
    pairs = [(o, q) for o, q in pairs if q in POSSIBLE[kind].get(o, ())]
    if not pairs:
        able = " or ".join(
            k for k, rows in POSSIBLE.items() if any(_agrees(o, q, offload, quantize) for o in rows for q in rows[o])
        )
        raise UnavailableError(f"--offload {offload} --quantize {quantize}: not on {kind}, only on {able}")
    tilings = {"auto": (False, True), "on": (True,), "off": (False,)}[tiling]
    return [Plan(o, q, t, peak_bytes(o, q, t, sizes, work)) for o, q in pairs for t in tilings]


def _agrees(offload: str, quantize: str, wanted_offload: str, wanted_quantize: str) -> bool:
    return wanted_offload in ("auto", offload) and wanted_quantize in ("auto", quantize)


def choose_plan(
    free: float, kind: str, offload: str, quantize: str, tiling: str, sizes: Sizes, work: Work
) -> tuple[Plan, bool]:
    """The first plan whose peak fits into `free` bytes, and whether it does.

    When the flags leave no choice their plan is taken even if it does not seem to fit (False); the estimate may be off.
    Raises `UnavailableError` when nothing fits.
    """
    possible = plans(kind, offload, quantize, tiling, sizes, work)
    for plan in possible:
        if plan.peak <= free:
            return plan, True
    if "auto" not in (offload, quantize):
        return possible[-1], False
    smallest = min(possible, key=lambda plan: plan.peak)
    raise UnavailableError(
        f"not enough memory on {kind}: {gigabytes(free)} free, and the smallest plan needs {smallest};"
        " free some, or make smaller images with --width and --height"
    )


def next_plan(plan: Plan, kind: str, sizes: Sizes, work: Work) -> Plan | None:
    """The plan to try after `plan` ran out of memory: the fastest one with a lower peak, None if there is none."""
    later = plans(kind, "auto", "auto", "auto", sizes, work)
    return next((p for p in later if p.peak < plan.peak), None)


def batch_size(free: float, kind: str, plan: Plan, sizes: Sizes, work: Work) -> int:
    """How many images of `work.pixels` to make at a time: 1 beside a GPU, else what fits, up to four megapixels.

    On a CPU images gain nothing from company, and alone they do not depend on it: the same bytes, batch or not.
    """
    if kind != "cuda":
        return 1
    wanted = max(1, min(8, 4 * 1024 * 1024 // work.pixels))
    fits = (
        n
        for n in range(wanted, 1, -1)
        if peak_bytes(plan.offload, plan.quantize, plan.tiling, sizes, dataclasses.replace(work, images=n)) <= free
    )
    return next(fits, 1)


@contextlib.contextmanager
def memory_advice(device: str, plan: Plan, sizes: Sizes, work: Work) -> Iterator[None]:
    """Turn running out of memory into an `UnavailableError` that names the plan to try next."""
    free = free_memory(device)
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        following = next_plan(plan, device_kind(device), sizes, work)
        advice = f"try {following.flags}" if following else "try a smaller --width and --height"
        raise UnavailableError(
            f"out of memory on {device} ({gigabytes(free)} were free) with {plan.flags}: {advice}"
        ) from error
