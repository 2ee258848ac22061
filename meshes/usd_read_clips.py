"""SkelAnimation prims and moving transforms -> Animation."""

import numpy as np
from pxr import Usd, UsdGeom, UsdSkel

from meshes.scene import Animation, Channel, Parts
from meshes.transforms import compose, decompose, has_shear
from meshes.usd_common import from_gf, original_name, value_array

_PARTS = {
    UsdGeom.XformOp.TypeTranslate: "translation",
    UsdGeom.XformOp.TypeOrient: "rotation",
    UsdGeom.XformOp.TypeScale: "scale",
}


def read_clips(reader, prims: list[Usd.Prim]) -> None:
    """Add the stage's animations, those of one name together; static blend shape weights go to the shapes."""
    rate = reader.stage.GetTimeCodesPerSecond() or 24.0
    clips: dict[str, Animation] = {}
    animations = [UsdSkel.Animation(prim) for prim in prims if prim.IsA(UsdSkel.Animation)]
    for animation in animations:
        owner = _owner(reader, animation, animations)
        if owner is None:
            reader.scene.warn(f"{animation.GetPath()}: fits no skeleton and is not kept")
            continue
        name = original_name(animation.GetPrim())
        channels = _joint_channels(reader, animation, owner, rate) + _weight_channels(reader, animation, owner, rate)
        if channels:
            clips.setdefault(name, Animation(name)).channels += channels
    root = reader.stage.GetDefaultPrim()
    node_clip = root.GetCustomDataByKey("nodeClip") if root else None
    moved = [channel for prim in prims for channel in _node_channels(reader, prim, rate)]
    if moved:
        name = node_clip if isinstance(node_clip, str) else (next(iter(clips)) if clips else "Animation")
        clips.setdefault(name, Animation(name)).channels += moved
    reader.scene.animations = list(clips.values())


def _owner(reader, animation: UsdSkel.Animation, animations: list) -> Usd.Prim | None:
    """The Skeleton prim an animation moves: the one bound to it, the one its writer noted, or the first whose joints
    fit.
    """
    skeletons = [prim for prim in reader.stage.TraverseAll() if prim.IsA(UsdSkel.Skeleton)]
    skeletons += [reader.stage.GetPrimAtPath(path) for path in reader.skeleton_of]
    for prim in skeletons:
        source = UsdSkel.BindingAPI(prim).GetInheritedAnimationSource()
        if source and source.GetPath() == animation.GetPath():
            return prim
    noted = animation.GetPrim().GetCustomDataByKey("skeleton")
    if isinstance(noted, str):
        prim = reader.stage.GetPrimAtPath(animation.GetPath().GetParentPath().AppendChild(noted))
        if prim and prim.IsA(UsdSkel.Skeleton):
            return prim
    joints = set(animation.GetJointsAttr().Get() or [])
    fitting = [p for p in skeletons if joints and joints <= set(UsdSkel.Skeleton(p).GetJointsAttr().Get() or [])]
    return fitting[0] if fitting else None


def _joint_channels(reader, animation: UsdSkel.Animation, owner: Usd.Prim, rate: float) -> list[Channel]:
    skeleton = reader.skeleton_of.get(owner.GetPath())
    tokens = list(animation.GetJointsAttr().Get() or [])
    if skeleton is None or not tokens:
        return []
    place = {token: number for number, token in enumerate(UsdSkel.Skeleton(owner).GetJointsAttr().Get())}
    channels = []
    attributes = {
        "translation": animation.GetTranslationsAttr(),
        "rotation": animation.GetRotationsAttr(),
        "scale": animation.GetScalesAttr(),
    }
    rests = _rest_parts(reader.scene.skeletons[skeleton])
    for path, attribute in attributes.items():
        codes = attribute.GetTimeSamples() or ([0.0] if attribute.HasAuthoredValue() else [])
        width = 4 if path == "rotation" else 3
        rows = [value_array(attribute.Get(code), (-1, width), np.float64) for code in codes]
        if not rows:
            continue
        if any(len(row) != len(tokens) for row in rows):
            reader.fail(f"{attribute.GetPath()}: not one value for each of {len(tokens)} joints")
        values, times = np.stack(rows), np.array(codes) / rate
        for number, token in enumerate(tokens):
            if token in place:
                own = values[:, number]
                still = np.ptp(own, axis=0).max() == 0 and path != "rotation"
                rest = getattr(rests, path)[place[token]]
                if still and np.allclose(own[0], rest, rtol=1e-6, atol=1e-7):
                    continue  # USD animates all parts of a joint or none; what only rests is no channel.
                channels.append(Channel(path, times, own, skeleton=skeleton, joint=place[token]))
            else:
                reader.scene.warn(f"{animation.GetPath()}: the joint {token!r} is not in its skeleton and is not kept")
    return channels


def _rest_parts(skeleton) -> Parts:
    """The parts of the rest pose, kept with the skeleton where they say it all."""
    parts = decompose(skeleton.rest)
    if skeleton.rest_parts is None and not any(has_shear(matrix) for matrix in skeleton.rest):
        skeleton.rest_parts = parts
    return parts


def _weight_channels(reader, animation: UsdSkel.Animation, owner: Usd.Prim, rate: float) -> list[Channel]:
    """Weights per mesh node from the animation's list of all blend shapes; a value without time is the weight at
    rest.
    """
    tokens = list(animation.GetBlendShapesAttr().Get() or [])
    attribute = animation.GetBlendShapeWeightsAttr()
    if not tokens or not attribute.HasAuthoredValue():
        return []
    channels = []
    for path, node in reader.node_of.items():
        prim = reader.stage.GetPrimAtPath(path)
        if not prim.IsA(UsdGeom.Mesh) or reader.scene.nodes[node].mesh is None:
            continue
        skeleton = UsdSkel.BindingAPI(prim).GetInheritedSkeleton()
        mesh = reader.scene.meshes[reader.scene.nodes[node].mesh]
        own = list(UsdSkel.BindingAPI(prim).GetBlendShapesAttr().Get() or [])
        if (
            not skeleton
            or skeleton.GetPath() != owner.GetPath()
            or not mesh.blend_shapes
            or len(own) != len(mesh.blend_shapes)
        ):
            continue
        columns = [tokens.index(token) if token in tokens else -1 for token in own]
        rest = attribute.Get()
        if rest is not None and len(rest) == len(tokens):
            for shape, column in zip(mesh.blend_shapes, columns, strict=True):
                shape.weight = float(rest[column]) if column >= 0 else shape.weight
        codes = attribute.GetTimeSamples()
        rows = [value_array(attribute.Get(code), (-1,), np.float64) for code in codes]
        if any(len(row) != len(tokens) for row in rows):
            reader.fail(f"{attribute.GetPath()}: not one weight for each of {len(tokens)} blend shapes")
        if rows:
            table = np.concatenate([np.stack(rows), np.zeros((len(rows), 1))], 1)
            channels.append(Channel("weights", np.array(codes) / rate, table[:, columns], node=node))
    return channels


def _node_channels(reader, prim: Usd.Prim, rate: float) -> list[Channel]:
    form, node = UsdGeom.Xformable(prim), reader.node_of.get(prim.GetPath(), -1)
    if not form or node < 0 or not form.TransformMightBeTimeVarying():
        return []
    ops = form.GetOrderedXformOps()
    kinds = [op.GetOpType() for op in ops]
    order = [kind for kind in _PARTS if kind in kinds]
    if kinds == order and not any(op.IsInverseOp() for op in ops):
        parts = decompose(from_gf(form.GetLocalTransformation(Usd.TimeCode.Default())))
        values = {_PARTS[op.GetOpType()]: op for op in ops}
        rest = {path: _value(path, op.Get()) for path, op in values.items() if op.Get() is not None}
        empty = {"translation": np.zeros(3), "rotation": np.array([0.0, 0, 0, 1]), "scale": np.ones(3)}
        own = {path: rest.get(path, getattr(parts, path) if path in values else empty[path]) for path in empty}
        reader.scene.nodes[node].parts = Parts(**own)
        reader.scene.nodes[node].matrix = compose(reader.scene.nodes[node].parts)
        return [
            Channel(path, np.array(codes) / rate, np.stack([_value(path, op.Get(code)) for code in codes]), node=node)
            for path, op in values.items()
            if (codes := op.GetTimeSamples())
        ]
    codes = form.GetTimeSamples()
    matrices = np.stack([from_gf(form.GetLocalTransformation(code)) for code in codes])
    if any(has_shear(matrix) for matrix in matrices):
        reader.scene.warn(f"{prim.GetPath()}: its motion shears and is kept without the shear")
    parts, times = decompose(matrices), np.array(codes) / rate
    reader.scene.nodes[node].parts = decompose(reader.scene.nodes[node].matrix)
    return [Channel(path, times, getattr(parts, path), node=node) for path in ("translation", "rotation", "scale")]


def _value(path: str, value) -> np.ndarray:
    if path == "rotation":
        return np.array([*value.GetImaginary(), value.GetReal()], np.float64)
    return np.array(value, np.float64)
