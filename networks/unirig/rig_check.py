"""Reading a written rig back, as the programs that receive it would: UsdSkel for USD files, our reader for glTF."""

from pathlib import Path

import numpy as np

from meshes.scene import Scene
from shared_utils.errors import PostConditionError

SUM_TOLERANCE = 1e-3  # of a point's weights, which files store in 32 bits (or 8, in glTF)


def check_rig(path: Path, scene: Scene) -> None:
    """Raise PostConditionError unless the file holds the scene's joints and skinned meshes, every point with weights."""
    skinned = [mesh for mesh in scene.meshes if mesh.skin is not None]
    joints = len(scene.skeletons[skinned[0].skin.skeleton if skinned else 0].joints)
    if path.suffix == ".glb":
        found = _gltf_rows(path)
    else:
        found = _usd_rows(path)
        expected = sorted(len(mesh.points) for mesh in skinned)
        if sorted(len(sums) for _, sums in found if sums is not None) != expected:
            raise PostConditionError(f"{path.name}: the points of the skinned meshes did not all arrive")
    if sum(sums is not None for _, sums in found) != len(skinned):
        raise PostConditionError(f"{path.name}: {len(skinned)} skinned mesh(es) were written, {len(found)} arrived")
    for count, sums in found:
        if count != joints:
            raise PostConditionError(f"{path.name}: {joints} joints were written, {count} arrived")
        if sums is not None and not np.abs(sums - 1).max(initial=0) < SUM_TOLERANCE:
            raise PostConditionError(f"{path.name}: weights that do not sum to 1 arrived")


def _gltf_rows(path: Path) -> list[tuple[int, np.ndarray | None]]:
    """(joints, sums of the weights of each point) of every skinned mesh; (joints, None) of a skeleton alone."""
    from meshes.io import read_scene

    scene = read_scene(path)
    rows = []
    for mesh in scene.meshes:
        if mesh.skin is not None:
            owner = np.repeat(np.arange(len(mesh.points)), np.diff(mesh.skin.offsets))
            sums = np.bincount(owner, mesh.skin.weights, len(mesh.points))
            rows.append((len(scene.skeletons[mesh.skin.skeleton].joints), sums))
    return rows or [(len(skeleton.joints), None) for skeleton in scene.skeletons]


def _usd_rows(path: Path) -> list[tuple[int, np.ndarray | None]]:
    from pxr import Usd, UsdGeom, UsdSkel

    stage = Usd.Stage.Open(str(path))
    rows: list[tuple[int, np.ndarray | None]] = []
    skeletons = [prim for prim in stage.Traverse() if prim.IsA(UsdSkel.Skeleton)]
    for prim in (prim for prim in stage.Traverse() if prim.IsA(UsdSkel.Root)):
        root, cache = UsdSkel.Root(prim), UsdSkel.Cache()
        cache.Populate(root, Usd.PrimDefaultPredicate)
        for binding in cache.ComputeSkelBindings(root, Usd.PrimDefaultPredicate):
            query = cache.GetSkelQuery(binding.GetSkeleton())
            if not query or not query.GetTopology().Validate()[0]:
                raise PostConditionError(f"{path.name}: UsdSkel does not accept the skeleton")
            for target in binding.GetSkinningTargets():
                points = len(UsdGeom.PointBased(target.GetPrim()).GetPointsAttr().Get())
                influences = target.ComputeVaryingJointInfluences(points)
                if not influences:
                    raise PostConditionError(f"{path.name}: UsdSkel does not accept the weights")
                _, weights = influences
                rows.append((len(query.GetJointOrder()), np.array(weights).reshape(points, -1).sum(axis=1)))
    return rows or [(len(UsdSkel.Skeleton(prim).GetJointsAttr().Get()), None) for prim in skeletons]
