"""zimage_generation.py on a machine that misbehaves.

zimage_faults.py memory ARGUMENTS…    # almost no memory is left once the model is loaded
zimage_faults.py cuda ARGUMENTS…      # the transformer runs out of memory as on a GPU
zimage_faults.py load ARGUMENTS…      # so does loading
"""

import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import zimage_generation
from shared_utils.run import run_script

SPARE_BYTES = 24_000_000


def little_memory(config, run):
    model = zimage_generation.load(config, run)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return model


def out_of_memory(*args, **kwargs):
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of …")


def full_gpu(config, run):
    model = zimage_generation.load(config, run)
    model.pipeline.transformer.forward = out_of_memory
    return model


def full_while_loading(config, run):
    from networks.zimage import pipeline

    pipeline.load_images = out_of_memory
    return zimage_generation.load(config, run)


fault = sys.argv.pop(1)
script = zimage_generation.SCRIPT
script.load = {"memory": little_memory, "cuda": full_gpu, "load": full_while_loading}[fault]
sys.exit(run_script(script))
