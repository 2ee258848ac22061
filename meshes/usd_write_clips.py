"""Skeletons, joint clips, blend shape weights and moving nodes, as UsdSkel and transform samples."""

import numpy as np
from pxr import Gf, Sdf, UsdGeom, UsdSkel, Vt

from meshes.clips import sample_channel, timeline
from meshes.scene import Animation, Channel
from meshes.transforms import decompose
from meshes.usd_common import NameScope, floats, gf_matrices, set_display_name, set_extras

TIME_CODES_PER_SECOND = 24.0


def time_code(seconds: float) -> float:
    """Seconds as a time code; a whole frame where 32-bit seconds cannot tell the difference."""
    code = float(seconds) * TIME_CODES_PER_SECOND
    whole = round(code)
    return float(whole) if np.float32(whole / TIME_CODES_PER_SECOND) == np.float32(seconds) else code


class ClipWriter:
    """Writes what moves. USD binds one joint animation to a skeleton (the first clip; the others lie beside it,
    unbound) and holds one motion of a node (the first clip that has any).
    """

    def __init__(self, writer):
        self.writer, self.scene, self.stage = writer, writer.scene, writer.stage
        moving = [clip for clip in self.scene.animations if _node_channels(clip)]
        self.node_clip = moving[0] if moving else None
        for clip in moving[1:]:
            writer.warn(f"clip {clip.name!r}: USD keeps one motion of nodes; this one's is left out (joints are kept)")
        for clip in self.scene.animations:
            if any(channel.interpolation != "LINEAR" for channel in clip.channels):
                writer.warn(f"clip {clip.name!r}: stepped and curved keys became sampled linear ones")

    def write_node_ops(self, index: int, prim) -> bool:
        """Translate, orient and scale samples for a node that the kept clip moves; False where it does not."""
        node = self.scene.nodes[index]
        channels = [c for c in _node_channels(self.node_clip) if c.node == index] if self.node_clip else []
        if not channels:
            return False
        if node.parent_joint >= 0:
            self.writer.warn(f"node {node.name!r} rides on a joint and moves; in USD it rests")
            return False
        parts, form = node.parts if node.parts is not None else decompose(node.matrix), UsdGeom.Xformable(prim)
        double = UsdGeom.XformOp.PrecisionDouble
        ops = {
            "translation": (form.AddTranslateOp(double), lambda v: Gf.Vec3d(*map(float, v)), parts.translation),
            "rotation": (form.AddOrientOp(double), _quaternion, parts.rotation),
            "scale": (form.AddScaleOp(double), lambda v: Gf.Vec3d(*map(float, v)), parts.scale),
        }
        for path, (op, convert, rest) in ops.items():
            op.Set(convert(rest))
            for channel in (c for c in channels if c.path == path):
                times = timeline([channel])
                for time, value in zip(times, sample_channel(channel, times), strict=True):
                    op.Set(convert(value), time_code(time))
        return True

    def write_skeleton(self, index: int) -> None:
        """The Skeleton prim."""
        skeleton = self.scene.skeletons[index]
        prim = UsdSkel.Skeleton.Define(self.stage, self.writer.skeleton_paths[index])
        set_display_name(prim.GetPrim(), skeleton.name)
        set_extras(prim.GetPrim(), skeleton.extras)
        prim.CreateJointsAttr(self.joint_tokens(index))
        prim.CreateJointNamesAttr(skeleton.joints)
        prim.CreateBindTransformsAttr(gf_matrices(skeleton.bind))
        prim.CreateRestTransformsAttr(gf_matrices(skeleton.rest))

    def joint_tokens(self, index: int) -> list[str]:
        """The joints of a skeleton as USD's slash-separated paths."""
        skeleton, names, tokens = self.scene.skeletons[index], NameScope(), []
        for joint, parent in zip(skeleton.joints, skeleton.parents, strict=True):
            above = tokens[parent] + "/" if parent >= 0 else ""
            tokens.append(above + names.unique(above, joint))
        return tokens

    def write(self) -> None:
        """All clips and the blend shape weights; call it when skeletons and meshes are there."""
        bindings = self._shape_bindings()
        for index, path in self.writer.skeleton_paths.items():
            clips = [clip for clip in self.scene.animations if any(c.skeleton == index for c in clip.channels)]
            self._write_clips(index, path, clips, bindings.pop(path, []))
        for path, meshes in bindings.items():
            self._write_clips(None, path, [], meshes)
        if self.scene.animations:
            times = timeline([channel for clip in self.scene.animations for channel in clip.channels])
            self.stage.SetStartTimeCode(time_code(times[0]) if len(times) else 0.0)
            self.stage.SetEndTimeCode(time_code(times[-1]) if len(times) else 0.0)
        if self.node_clip is not None:
            self.stage.GetDefaultPrim().SetCustomDataByKey("nodeClip", self.node_clip.name)

    def _shape_bindings(self) -> dict[Sdf.Path, list[tuple[int, Sdf.Path]]]:
        """Which (mesh, node, prim) with blend shapes take their weights from the animation of which skeleton prim.

        A mesh without joints gets a skeleton without joints of its own: UsdSkel knows no other way to drive its
        shapes.
        """
        bindings: dict[Sdf.Path, list] = {}
        for number, places in self.writer.mesh_paths.items():
            mesh = self.scene.meshes[number]
            if not mesh.blend_shapes:
                continue
            for node, path in places:
                if mesh.skin is not None:
                    skeleton = self.writer.skeleton_paths[mesh.skin.skeleton]
                else:
                    parent = path.GetParentPath()
                    skeleton = parent.AppendChild(self.writer.names.unique(parent, "BlendShapes"))
                    UsdSkel.Skeleton.Define(self.stage, skeleton)
                    prim = self.stage.GetPrimAtPath(path)
                    UsdSkel.BindingAPI.Apply(prim).CreateSkeletonRel().SetTargets([skeleton])
                bindings.setdefault(skeleton, []).append((number, node, path))
        return bindings

    def _write_clips(self, index: int | None, skeleton: Sdf.Path, clips: list[Animation], shapes: list) -> None:
        """The clips of one skeleton prim, with the weights of the meshes that hang on it; the first is bound."""
        nodes = {node for _, node, _ in shapes}
        with_weights = [
            clip
            for clip in self.scene.animations
            if any(c.path == "weights" and c.node in nodes for c in clip.channels)
        ]
        clips = [clip for clip in self.scene.animations if clip in clips or clip in with_weights]
        tokens = self._shape_tokens(shapes)
        rest = [shape.weight for number, _, _ in shapes for shape in self.scene.meshes[number].blend_shapes]
        if not clips and not any(rest):
            return
        parent, source = skeleton.GetParentPath(), None
        for clip in clips or [None]:
            name = clip.name if clip is not None else "RestWeights"
            prim = UsdSkel.Animation.Define(
                self.stage, parent.AppendChild(self.writer.names.unique(parent, name or "clip"))
            )
            set_display_name(prim.GetPrim(), name)
            prim.GetPrim().SetCustomDataByKey("skeleton", skeleton.name)
            source = source or prim.GetPath()
            if index is not None and clip is not None:
                self._write_joints(prim, index, clip)
            if tokens:
                prim.CreateBlendShapesAttr(tokens)
                attribute = prim.CreateBlendShapeWeightsAttr(floats(np.array(rest), Vt.FloatArray))
                self._write_weights(attribute, clip, shapes, rest)
        binding = UsdSkel.BindingAPI.Apply(self.stage.GetPrimAtPath(skeleton))
        binding.CreateAnimationSourceRel().SetTargets([source])

    def _shape_tokens(self, shapes: list) -> list[str]:
        """A token for every blend shape of these meshes, written to each mesh; two of one name get different ones."""
        names, tokens = NameScope(), []
        for number, _, path in shapes:
            own = [names.unique("", shape.name) for shape in self.scene.meshes[number].blend_shapes]
            UsdSkel.BindingAPI(self.stage.GetPrimAtPath(path)).CreateBlendShapesAttr(own)
            tokens += own
        return tokens

    def _write_joints(self, prim, index: int, clip: Animation) -> None:
        skeleton = self.scene.skeletons[index]
        channels = [channel for channel in clip.channels if channel.skeleton == index]
        joints = sorted({channel.joint for channel in channels})
        if not joints:
            return
        tokens = self.joint_tokens(index)
        prim.CreateJointsAttr([tokens[joint] for joint in joints])
        rest = skeleton.rest_parts if skeleton.rest_parts is not None else decompose(skeleton.rest)
        times = timeline(channels)
        moved = {}
        for part in ("translation", "rotation", "scale"):
            still = getattr(rest, part)[joints]
            moved[part] = np.broadcast_to(still, (len(times), *still.shape)).copy()
        for channel in channels:
            moved[channel.path][:, joints.index(channel.joint)] = sample_channel(channel, times)
        lengths = np.linalg.norm(moved["rotation"], axis=-1, keepdims=True)
        moved["rotation"] /= np.where(lengths > 0, lengths, 1)
        halves = moved["scale"].astype(np.float16)
        if np.abs(halves - moved["scale"]).max(initial=0) > 1e-5 * np.abs(moved["scale"]).max(initial=0):
            self.writer.warn(f"clip {clip.name!r}: UsdSkel keeps joint scales as 16-bit numbers; they were rounded")
        translations, rotations, scales = (
            prim.CreateTranslationsAttr(),
            prim.CreateRotationsAttr(),
            prim.CreateScalesAttr(),
        )
        for number, time in enumerate(map(time_code, times)):
            translations.Set(floats(moved["translation"][number], Vt.Vec3fArray), time)
            rotations.Set(floats(moved["rotation"][number], Vt.QuatfArray), time)
            scales.Set(Vt.Vec3hArray.FromNumpy(np.ascontiguousarray(halves[number])), time)

    def _write_weights(self, attribute, clip: Animation | None, shapes: list, rest: list[float]) -> None:
        spans, start = {}, 0
        for number, node, _ in shapes:
            count = len(self.scene.meshes[number].blend_shapes)
            spans[node] = slice(start, start + count)
            start += count
        channels = [c for c in clip.channels if c.path == "weights" and c.node in spans] if clip is not None else []
        times = timeline(channels)
        values = np.broadcast_to(np.array(rest), (len(times), len(rest))).copy()
        for channel in channels:
            values[:, spans[channel.node]] = sample_channel(channel, times)
        for time, row in zip(map(time_code, times), values, strict=True):
            attribute.Set(floats(row, Vt.FloatArray), time)


def _node_channels(clip: Animation) -> list[Channel]:
    return [channel for channel in clip.channels if channel.skeleton < 0 and channel.path != "weights"]


def _quaternion(xyzw: np.ndarray) -> Gf.Quatd:
    x, y, z, w = map(float, xyzw)
    return Gf.Quatd(w, x, y, z)
