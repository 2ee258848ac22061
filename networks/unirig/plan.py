"""What a rig costs: memory, and on a processor the time.

The seconds were measured on two cores in float32 with the published sizes; other processors are judged by their number
of cores alone, so they say minutes from hours and no more.
"""

from dataclasses import dataclass

PARAMETERS = {"skeleton": 359_856_640, "skin": 364_496_273}
CACHE_NUMBERS = 2 * 24 * 1024  # keys and values of one token, all layers
PROMPT_TOKENS = 1026
TYPICAL_TOKENS = 220  # of a skeleton of fifty bones
VOXEL_BYTES = 1_100_000_000  # peak of the voxel stage at grid 196
FEATURE_NUMBERS = 16 * 768  # of a sampled point in the skin model, at the widest
_CORES_MEASURED = 2
_ENCODE, _PREFILL, _STEP, _STEP_BEAM, _VOXELS, _SKIN = 5.7, 7.0, 0.38, 0.155, 9.0, 200.0  # seconds
_SKIN_SAMPLES, _GRID = 32_768, 196


@dataclass(frozen=True)
class Cost:
    """memory_bytes at the peak; seconds None where nothing was measured."""

    memory_bytes: int
    seconds: float | None


def skeleton_cost(number_bytes: int, beams: int, cores: int | None) -> Cost:
    """Of predicting a skeleton of usual length. cores: of the processor, None on a GPU."""
    tokens = PROMPT_TOKENS + beams * TYPICAL_TOKENS
    memory = number_bytes * (PARAMETERS["skeleton"] + CACHE_NUMBERS * tokens)
    if cores is None:
        return Cost(memory, None)
    seconds = _ENCODE + _PREFILL + TYPICAL_TOKENS * (_STEP + _STEP_BEAM * beams)
    return Cost(memory, seconds * _CORES_MEASURED / cores)


def skin_cost(number_bytes: int, samples: int, grid: int, cores: int | None) -> Cost:
    """Of predicting weights; the voxels are made on the processor in any case, and take main memory."""
    memory = number_bytes * (PARAMETERS["skin"] + FEATURE_NUMBERS * min(samples, 4096))
    voxels = VOXEL_BYTES * (grid / _GRID) ** 3
    if cores is None:
        return Cost(memory, None)
    seconds = _VOXELS * (grid / _GRID) ** 3 + _SKIN * samples / _SKIN_SAMPLES
    return Cost(int(memory + voxels), seconds * _CORES_MEASURED / cores)
