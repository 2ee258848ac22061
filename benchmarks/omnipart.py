"""OmniPart's sparse operations against plain ones, on the CPU, in the same run.

    python benchmarks/omnipart.py                 # 20 000 to 100 000 voxels, then a whole object at 256^3
    python benchmarks/omnipart.py --voxels 20000 --skip-object

Seconds are CPU seconds of one thread, which other work on the machine disturbs least. Three tables: the neighbour table (plain: one search a tap), the submanifold convolution (plain: every tap of every
voxel gathered), and the surface extraction (plain: dense arrays of the whole grid). Each extraction runs in a process
of its own; its peak memory is what it needs on top of its inputs (Linux with glibc only). The exit status is 1 when the results of a pair
differ, or when an extraction needs more than a tenth of the dense one's memory.
"""

import argparse
import ctypes
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from networks.omnipart.surface import extract_surface
from networks.sparse import neighbour_table, subdivide_coords, subdivided_conv, submanifold_conv, voxel_keys

RESOLUTION = 256  # of the extraction: four times the latent grid


def shell(count: int, radius: float, thickness: int = 3) -> Tensor:
    """About `count` voxels of spherical shells, one after another as parts: coords [N, 4], each part row-major."""
    side = 2 * math.ceil(radius + thickness) + 1
    axis = torch.arange(side)
    cells = torch.cartesian_prod(axis, axis, axis)
    one = cells[((cells - side // 2).float().norm(dim=1) - radius).abs() < thickness / 2]
    parts = [torch.cat((torch.full((len(one), 1), i), one), dim=1) for i in range(math.ceil(count / len(one)))]
    return torch.cat(parts)[:count]


def timed(function, *arguments, repeats: int = 2):
    """(best CPU seconds, result)."""
    best = math.inf
    for _ in range(repeats):
        start = time.process_time()
        result = function(*arguments)
        best = min(best, time.process_time() - start)
    return best, result


def plain_table(coords: Tensor) -> Tensor:
    """27 binary searches over all voxels."""
    keys, (stride_x, stride_y) = voxel_keys(coords, margin=1)
    ordered, order = torch.sort(keys)
    columns = []
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            for k in (-1, 0, 1):
                wanted = keys + i * stride_x + j * stride_y + k
                position = torch.searchsorted(ordered, wanted).clamp(max=len(keys) - 1)
                columns.append(torch.where(ordered[position] == wanted, order[position], len(keys)))
    return torch.stack(columns, dim=1)


def plain_conv(features: Tensor, weight: Tensor, bias: Tensor, table: Tensor) -> Tensor:
    """Gather all 27 neighbours of every voxel (zeros where there is none), in blocks, and multiply once."""
    padded = torch.cat((features, features.new_zeros(1, features.shape[1])))
    matrix = weight.flatten(1).T.contiguous()
    return torch.cat([padded[rows].flatten(1) @ matrix for rows in table.split(8192)]) + bias


def compare(name: str, ours: Tensor, plain: Tensor) -> bool:
    same = torch.allclose(ours.float(), plain.float(), atol=1e-4, rtol=1e-4)
    if not same:
        print(f"{name}: the results differ", file=sys.stderr)
    return same


def bench_table(sizes: list[int]) -> bool:
    print("\nneighbour table, 3x3x3\n    voxels   plain s    ours s    x   µs/voxel")
    good = True
    for count in sizes:
        coords = shell(count, 28.0)
        plain_seconds, plain = timed(plain_table, coords)
        seconds, ours = timed(neighbour_table, coords)
        good &= compare("table", ours, plain)
        ratio = plain_seconds / seconds
        print(f"{count:10d} {plain_seconds:9.3f} {seconds:9.3f} {ratio:4.1f} {1e6 * seconds / count:10.2f}")
    return good


def bench_conv(sizes: list[int], channels: int) -> bool:
    print(f"\nsubmanifold convolution, {channels} channels\n    voxels   plain s    ours s    x   µs/voxel")
    good = True
    torch.manual_seed(0)
    weight, bias = torch.randn(channels, 3, 3, 3, channels) / (27 * channels) ** 0.5, torch.randn(channels)
    for count in sizes:
        coords = shell(count, 28.0)
        table = neighbour_table(coords)
        features = torch.randn(len(coords), channels)
        plain_seconds, plain = timed(plain_conv, features, weight, bias, table, repeats=1)
        seconds, ours = timed(submanifold_conv, features, weight, bias, table)
        good &= compare("conv", ours, plain)
        ratio = plain_seconds / seconds
        print(f"{count:10d} {plain_seconds:9.3f} {seconds:9.3f} {ratio:4.1f} {1e6 * seconds / count:10.2f}")
    return good


def bench_subdivided_conv(voxels: int) -> bool:
    """The first convolution after a subdivision, 192 -> 96 channels: summed taps against repeated features."""
    coords = shell(voxels, 28.0)
    table, fine_table = neighbour_table(coords), neighbour_table(subdivide_coords(coords))
    torch.manual_seed(0)
    features, bias = torch.randn(len(coords), 192), torch.randn(96)
    weight = torch.randn(96, 3, 3, 3, 192) / (27 * 192) ** 0.5
    plain_seconds, plain = timed(
        lambda: submanifold_conv(features.repeat_interleave(8, dim=0), weight, bias, fine_table), repeats=1
    )
    seconds, ours = timed(subdivided_conv, features, weight, bias, table, repeats=1)
    print(f"\nconvolution of {voxels} voxels split in eight, 192 -> 96 channels")
    print(f"    repeated features {plain_seconds:.2f} s, summed taps {seconds:.2f} s ({plain_seconds / seconds:.1f} x)")
    return compare("subdivided conv", ours, plain)


def fields_near_sphere(count: int) -> tuple[Tensor, Tensor]:
    """About `count` active cells around a sphere of the 256^3 grid, noisy distances and learned weights."""
    thickness = 4.0
    radius = math.sqrt(count / (4 * math.pi * thickness))
    if radius > 0.45 * RESOLUTION:
        radius = 0.45 * RESOLUTION
        thickness = count / (4 * math.pi * radius**2)
    axis = torch.arange(RESOLUTION)
    kept = []
    for x in range(RESOLUTION):  # one slab at a time: building the input must not need the dense grid either
        cells = torch.cartesian_prod(torch.tensor([x]), axis, axis)
        distance = (cells + 0.5 - RESOLUTION / 2).norm(dim=1) - radius
        kept.append(cells[distance.abs() < thickness / 2])
    coords = torch.cat(kept)
    corner = torch.tensor([[k & 1, k >> 1 & 1, k >> 2 & 1] for k in range(8)])
    fields = torch.randn(len(coords), 101, generator=torch.Generator().manual_seed(0)) * 0.3
    for k in range(8):
        fields[:, k] += (coords + corner[k] - RESOLUTION / 2).norm(dim=1) - radius
    return coords.int(), fields


def extract_dense(coords: Tensor, fields: Tensor, resolution: int):
    """The plain way: every grid vertex and every cell of the grid has a row in arrays, active or not."""
    from networks.omnipart.surface import COLOR, DEFORM, SDF, WEIGHTS, _corner_offsets, dual_mesh

    n = resolution + 1
    strides = torch.tensor([n * n, n, 1])
    offsets = _corner_offsets(resolution)
    rows = (coords.long() * strides).sum(1)
    corner_rows = torch.stack([rows + offset for offset in offsets], dim=1).flatten()
    count = torch.zeros(n**3).index_add_(0, corner_rows, torch.ones(len(corner_rows)))

    def mean_at_vertices(values: Tensor, width: int) -> Tensor:
        total = torch.zeros(n**3, width).index_add_(0, corner_rows, values.reshape(-1, width))
        return total / count.clamp(min=1)[:, None]

    sdf = mean_at_vertices(fields[:, SDF] - 1 / resolution, 1)[:, 0]
    sdf = torch.where(count > 0, sdf, 1.0)
    deform, color = mean_at_vertices(fields[:, DEFORM], 3), mean_at_vertices(fields[:, COLOR], 6)
    side, low = torch.arange(n), torch.arange(resolution)
    points = torch.cartesian_prod(side, side, side).float() / resolution - 0.5
    points += (1 - 1e-8) / (2 * resolution) * torch.tanh(deform)
    cells = (torch.cartesian_prod(low, low, low) * strides).sum(1)
    weights = torch.zeros(len(cells), 21)
    weights[(coords.long() * torch.tensor([resolution**2, resolution, 1])).sum(1)] = fields[:, WEIGHTS]
    corners = cells[:, None] + torch.tensor(offsets)
    negatives = (sdf[corners] < 0).sum(1)
    crossed = (negatives > 0) & (negatives < 8)
    return dual_mesh(cells[crossed], corners[crossed], points, sdf, torch.sigmoid(color), weights[crossed], resolution)


def _memory(key: str) -> int:
    """VmRSS or VmHWM of this process in bytes (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def extraction_child(kind: str, count: int) -> None:
    """One extraction; prints seconds, peak memory on top of the inputs, and what came out."""
    coords, fields = fields_near_sphere(count)
    extract = {"ours": extract_surface, "dense": extract_dense}[kind]
    small = coords[:1000]
    extract_surface(small, fields[:1000], RESOLUTION)  # tables and libraries are loaded before the clock starts
    ctypes.CDLL(None).malloc_trim(0)  # what building the input left behind must not serve the extraction
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _memory("VmRSS")
    start = time.process_time()
    mesh = extract(coords, fields, RESOLUTION)
    seconds = time.process_time() - start
    result = {"seconds": seconds, "bytes": _memory("VmHWM") - before, "cells": len(coords)}
    result |= {"vertices": len(mesh.vertices), "faces": len(mesh.faces), "sum": mesh.vertices.double().sum().item()}
    print(json.dumps(result))


def measure_extraction(kind: str, count: int) -> dict:
    command = [sys.executable, __file__, "--child", kind, str(count)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def bench_extraction(sizes: list[int]) -> bool:
    print(
        f"\nsurface extraction at {RESOLUTION}^3\n     cells   faces   dense s    ours s    x   dense MB   ours MB   part"
    )
    good = True
    for count in sizes:
        dense, ours = measure_extraction("dense", count), measure_extraction("ours", count)
        same = all(ours[key] == dense[key] for key in ("cells", "vertices", "faces"))
        same &= math.isclose(ours["sum"], dense["sum"], rel_tol=1e-3, abs_tol=1e-2 * ours["vertices"])
        if not same:
            print(f"extraction: the meshes differ: {ours} {dense}", file=sys.stderr)
        part = ours["bytes"] / dense["bytes"]
        good &= same and part <= 0.1
        print(
            f"{ours['cells']:10d} {ours['faces']:7d} {dense['seconds']:9.2f} {ours['seconds']:9.2f}"
            f" {dense['seconds'] / ours['seconds']:4.1f} {dense['bytes'] / 1e6:10.0f} {ours['bytes'] / 1e6:9.0f}"
            f" {part:6.3f}"
        )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxels", type=int, nargs="+", default=[20_000, 50_000, 100_000])
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--skip-object", action="store_true", help="leave out the object of 1.28 million cells")
    parser.add_argument("--child", nargs=2, metavar=("KIND", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        extraction_child(options.child[0], int(options.child[1]))
        return 0
    good = bench_table(options.voxels)
    good &= bench_conv(options.voxels, options.channels)
    good &= bench_subdivided_conv(options.voxels[0])
    good &= bench_extraction([*options.voxels, *([] if options.skip_object else [1_280_000])])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
