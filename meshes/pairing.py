"""Triangles into quads: which pairs, as a maximum-weight matching, and the mesh that results.

Two triangles with a common edge may become one quad; a triangle is used once. The faces are the vertices of a graph, the edges that may be
dissolved are its edges, and the best choice of pairs is a maximum-weight matching (`meshes.matching`).
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np

from meshes.matching import Matching, maximum_weight_matching
from meshes.pairing_edges import REASONS, Triangles, find_triangles, normalised_points
from meshes.pairing_quads import bend, convex, merge, quad_corners, weights
from meshes.scene import Mesh
from meshes.triangulate import newell_normals
from shared_utils.errors import PostConditionError

SHAPE_MAX_ANGLE = 40.0  # degrees; the angle Blender's own operator starts from
ANGLE_SLACK = 1e-6  # degrees, for angles that are exactly at the limit
AREA_TOLERANCE = 1e-9  # of the whole area
OBJECTIVES = ("shape", "length")
LEFT_REASONS = ("degenerate", "no candidate", "odd one out")


@dataclass
class PairingSettings:
    """What may be paired and what is best.

    `objective`: "shape" (as many quads as possible, among those the best shaped) or "length" (weight of an edge 1 + 0.1 length / longest). `max_angle`:
    largest angle between the normals of two paired triangles, degrees; None: 40 for "shape", no limit for "length". `ignore_seams`:
    quads may lie across jumps of UVs, normals, colours, skin weights and other data (they take the first triangle's values). `ignore_materials`: the same
    for materials, face groups and per-face data.
    """

    objective: str = "shape"
    max_angle: float | None = None
    ignore_seams: bool = False
    ignore_materials: bool = False

    def angle_limit(self) -> float:
        """Degrees; 180 stands for no limit."""
        if self.max_angle is not None:
            return self.max_angle
        return SHAPE_MAX_ANGLE if self.objective == "shape" else 180.0


@dataclass
class PairingReport:
    """What became of one mesh. All counts are of faces or edges.

    `objective` is the sum of the pairs' weights, no choice of pairs reaches more than `bound`; `optimal`: none reaches more than `objective` (up to
    1e-9 of it). `complete` is False if the time limit ended the search. `left` accounts for each triangle that remains: degenerate; without any
    neighbour it may be joined with; the odd one out, left over by the choice of pairs. `kept_edges` counts edges that had to stay, by reason. `seconds` has the
    phases "candidates", "matching" (of all meshes solved together) and "faces".
    """

    triangles_before: int = 0
    triangles_after: int = 0
    quads_before: int = 0
    quads_after: int = 0
    ngons: int = 0
    pairs: int = 0
    candidates: int = 0
    islands: int = 0
    objective: float = 0.0
    bound: float = 0.0
    optimal: bool = True
    complete: bool = True
    left: dict[str, int] = field(default_factory=dict)
    kept_edges: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """objective / bound; 1 where there was nothing to pair."""
        return self.objective / self.bound if self.bound > 0 else 1.0

    @property
    def quad_share(self) -> float:
        """Quads among all faces of the result."""
        faces = self.triangles_after + self.quads_after + self.ngons
        return self.quads_after / faces if faces else 0.0

    def as_dict(self) -> dict:
        """Everything, for JSON."""
        return asdict(self) | {"ratio": self.ratio, "quad_share": self.quad_share}


@dataclass
class Candidates:
    """The matching problem of one mesh: `triangles.pairs` [m, 2] with their `weights` [m]; `centres` [n, 3] of the triangles."""

    triangles: Triangles
    weights: np.ndarray
    centres: np.ndarray
    seconds: float


def find_candidates(mesh: Mesh, settings: PairingSettings) -> Candidates:
    """The edges of `mesh` that may be dissolved, and what each is worth.

    Beside what `pairing_edges.find_triangles` keeps, the normals of the two triangles may differ by `settings.angle_limit()` at most, and
    the quad must be strictly convex in the plane of its mean normal. InvalidInputError: a coordinate is not finite.
    """
    started = time.monotonic()
    points = normalised_points(mesh)
    triangles = find_triangles(mesh, points, settings.ignore_seams, settings.ignore_materials)
    quads = points[mesh.face_vertices[quad_corners(mesh, triangles.corners)]]
    gentle = np.degrees(bend(quads)) <= settings.angle_limit() + ANGLE_SLACK
    good = gentle & convex(quads)
    triangles.kept["angle"] = int((~gentle).sum())
    triangles.kept["convexity"] = int((gentle & ~good).sum())
    triangles.kept = {
        name: triangles.kept[name] for name in ("open", "non-manifold", *REASONS) if name in triangles.kept
    }
    triangles.pairs, triangles.corners, triangles.facets = (
        triangles.pairs[good],
        triangles.corners[good],
        triangles.facets[good],
    )
    corners = mesh.face_offsets()[triangles.faces][:, None] + np.arange(3)
    centres = points[mesh.face_vertices[corners]].mean(1)
    return Candidates(triangles, weights(quads[good], settings.objective), centres, time.monotonic() - started)


def convert_mesh(
    mesh: Mesh,
    settings: PairingSettings | None = None,
    *,
    time_limit: float | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[float], None] | None = None,
) -> tuple[Mesh, PairingReport]:
    """`convert_meshes` for a single mesh."""
    return convert_meshes([mesh], settings, time_limit=time_limit, seed=seed, workers=workers, progress=progress)[0]


def convert_meshes(
    meshes: list[Mesh],
    settings: PairingSettings | None = None,
    *,
    time_limit: float | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[float], None] | None = None,
) -> list[tuple[Mesh, PairingReport]]:
    """Pair triangles to quads in every mesh; the meshes given are not changed, what is not paired is passed on as it is.

    `time_limit`: seconds for the matching of all meshes together (None: none), after which the best pairs found so far are taken. The
    result depends on `seed` and not on `workers` (processes), unless the time limit struck. `progress` gets the share of the matching that is done.

    InvalidInputError: a coordinate that is not finite. PostConditionError: a result failed `check_conversion`.
    """
    settings = settings or PairingSettings()
    if settings.objective not in OBJECTIVES:
        raise ValueError(f"objective {settings.objective!r}: must be one of {', '.join(OBJECTIVES)}")
    problems = [find_candidates(mesh, settings) for mesh in meshes]

    # Meshes are islands of one graph: solved together they share the processes and the time.
    started = time.monotonic()
    first_row = np.cumsum([0] + [len(problem.triangles.faces) for problem in problems])
    matching = maximum_weight_matching(
        int(first_row[-1]),
        np.concatenate([np.zeros((0, 2), np.int64)] + [p.triangles.pairs + row for p, row in zip(problems, first_row, strict=False)]),
        np.concatenate([np.zeros(0)] + [problem.weights for problem in problems]),
        np.concatenate([np.zeros((0, 3))] + [problem.centres for problem in problems]),
        time_limit=time_limit,
        seed=seed,
        workers=workers,
        progress=progress,
    )  # fmt: skip
    seconds = time.monotonic() - started
    first_pair = np.cumsum([0] + [len(problem.weights) for problem in problems])
    results = []
    for index, (mesh, problem) in enumerate(zip(meshes, problems, strict=True)):
        rows = slice(first_row[index], first_row[index + 1])
        low, high = np.searchsorted(matching.chosen, first_pair[index : index + 2])
        chosen = matching.chosen[low:high] - first_pair[index]
        results.append(_convert(mesh, problem, chosen, matching, rows, seconds))
    return results


def _convert(
    mesh: Mesh, problem: Candidates, chosen: np.ndarray, matching: Matching, rows: slice, matching_seconds: float
) -> tuple[Mesh, PairingReport]:
    started = time.monotonic()
    triangles = problem.triangles
    result = merge(mesh, triangles.corners[chosen], triangles.facets[chosen])
    objective = float(problem.weights[chosen].sum())
    joinable = np.zeros(len(triangles.faces), bool)
    joinable[triangles.pairs] = True
    alone = matching.mate[rows] < 0
    report = PairingReport(
        triangles_before=int((mesh.face_sizes == 3).sum()),
        triangles_after=int((result.face_sizes == 3).sum()),
        quads_before=int((mesh.face_sizes == 4).sum()),
        quads_after=int((result.face_sizes == 4).sum()),
        ngons=int((mesh.face_sizes > 4).sum()),
        pairs=len(chosen),
        candidates=len(problem.weights),
        islands=triangles.islands,
        objective=objective,
        bound=max(objective, float(matching.share[rows].sum())),
        optimal=not matching.unsettled[rows].any(),
        left=dict(
            zip(
                LEFT_REASONS,
                (triangles.degenerate, int((alone & ~joinable).sum()), int((alone & joinable).sum())),
                strict=True,
            )
        ),
        kept_edges=triangles.kept,
    )
    report.complete = report.optimal or matching.complete
    check_conversion(mesh, result, mesh.corner_faces()[triangles.corners[chosen]], report)
    report.seconds = {
        "candidates": problem.seconds,
        "matching": matching_seconds,
        "faces": time.monotonic() - started,
    }
    return result, report


def check_conversion(before: Mesh, after: Mesh, joined: np.ndarray, report: PairingReport) -> None:
    """The post-conditions of a conversion; PostConditionError names the one that does not hold.

    `joined` [k, 2]: the faces of `before` that became one. Points are unchanged, no face is lost, every triangle that remains is accounted for, and each
    face has the area vector of what it was made of.
    """
    where = f"mesh {before.name!r}"
    if not np.array_equal(before.points, after.points):
        raise PostConditionError(f"{where}: a point moved")
    if problem := after.problem():
        raise PostConditionError(f"{where}: {problem}")
    if len(np.unique(joined)) != joined.size:
        raise PostConditionError(f"{where}: a triangle is in two quads")
    if len(after.face_sizes) != len(before.face_sizes) - len(joined):
        raise PostConditionError(f"{where}: {len(before.face_sizes)} faces became {len(after.face_sizes)}")
    if sum(report.left.values()) != report.triangles_after:
        raise PostConditionError(
            f"{where}: not every one of {report.triangles_after} remaining triangles is accounted for"
        )
    expected, made = newell_normals(before), newell_normals(after)
    expected[joined.min(1)] += expected[joined.max(1)]
    expected = np.delete(expected, joined.max(1), axis=0)
    if (np.abs(made - expected) > AREA_TOLERANCE * np.abs(expected).max(initial=0)).any():
        raise PostConditionError(f"{where}: the area of a face changed")
