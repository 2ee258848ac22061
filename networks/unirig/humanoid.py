"""Humanoid bone names: from UniRig's classes to those of VRM 1.0 or Mixamo.

The VRM names and their hierarchy are those of the VRM 1.0 specification, "VRMC_vrm: humanoid".
"""

from networks.unirig.bone_names import PART_BONES
from shared_utils.errors import PostConditionError

_FINGERS = ("Index", "Middle", "Ring", "Little")
_LIMBS = ("UpperLeg", "LowerLeg", "Foot", "Shoulder", "UpperArm", "LowerArm", "Hand")
_HAND_ORDER = {
    "left": ("Thumb", *_FINGERS),
    "right": ("Index", "Thumb", "Middle", "Ring", "Little"),  # the order in which UniRig learned them
}


def _finger(side: str, finger: str) -> list[str]:
    joints = ("Metacarpal", "Proximal", "Distal") if finger == "Thumb" else ("Proximal", "Intermediate", "Distal")
    return [f"{side}{finger}{joint}" for joint in joints]


def _body(side: str) -> dict[str, str]:
    chain = {f"{side}Shoulder": "upperChest", f"{side}UpperLeg": "hips"}
    for above, below in (("Shoulder", "UpperArm"), ("UpperArm", "LowerArm"), ("LowerArm", "Hand")):
        chain[f"{side}{below}"] = f"{side}{above}"
    for above, below in (("UpperLeg", "LowerLeg"), ("LowerLeg", "Foot"), ("Foot", "Toes")):
        chain[f"{side}{below}"] = f"{side}{above}"
    for finger in _HAND_ORDER[side]:
        above = f"{side}Hand"
        for joint in _finger(side, finger):
            chain[joint] = above
            above = joint
    return chain


# Parent of every humanoid bone that UniRig can name; eyes and jaw are not among them.
VRM_PARENTS: dict[str, str | None] = {
    "hips": None,
    "spine": "hips",
    "chest": "spine",
    "upperChest": "chest",
    "neck": "upperChest",
    "head": "neck",
    **_body("left"),
    **_body("right"),
}
# What VRM 1.0 demands.
VRM_REQUIRED = (
    *("hips", "spine", "head"),
    *(side + limb for side in ("left", "right") for limb in _LIMBS if limb != "Shoulder"),
)
# VRM names in the order of the tables of `bone_names`.
_VRM_PARTS = {
    "body": (
        *("hips", "spine", "chest", "upperChest", "neck", "head"),
        *(f"left{b}" for b in ("Shoulder", "UpperArm", "LowerArm", "Hand")),
        *(f"right{b}" for b in ("Shoulder", "UpperArm", "LowerArm", "Hand")),
        *(f"left{b}" for b in ("UpperLeg", "LowerLeg", "Foot", "Toes")),
        *(f"right{b}" for b in ("UpperLeg", "LowerLeg", "Foot", "Toes")),
    ),
    "hand": tuple(
        joint for side in ("left", "right") for finger in _HAND_ORDER[side] for joint in _finger(side, finger)
    ),
}
_TO_VRM: dict[str, str] = {name: name for name in VRM_PARENTS}
_TO_MIXAMO: dict[str, str] = {}
for _part, _names in _VRM_PARTS.items():
    for _class in PART_BONES:
        _TO_VRM |= dict(zip(PART_BONES[_class][_part], _names, strict=True))
    _TO_MIXAMO |= dict(zip(_names, PART_BONES["mixamo"][_part], strict=True))


def rename(names: list[str], parents: list[int], convention: str) -> list[str]:
    """Joint names in a convention: "keep", "vrm" or "mixamo". Joints that are no humanoid bones keep theirs.

    Raises PostConditionError when the skeleton is no humanoid: a bone that VRM 1.0 requires is missing, or a bone hangs
    on another one than it should (optional ones in between may be missing).
    """
    if convention == "keep":
        return list(names)
    bones = [_TO_VRM.get(name) for name in names]
    problem = _problem(bones, parents)
    if problem:
        raise PostConditionError(f"--bone-names {convention}: the skeleton is not humanoid, {problem}")
    renamed = [bone if convention == "vrm" else _TO_MIXAMO.get(bone or "") for bone in bones]
    return [new or old for new, old in zip(renamed, names, strict=True)]


def _problem(bones: list[str | None], parents: list[int]) -> str | None:
    present = {bone for bone in bones if bone}
    missing = [bone for bone in VRM_REQUIRED if bone not in present]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        return f"it lacks {', '.join(missing[:3])}{more}"
    twice = next((bone for bone in present if bones.count(bone) > 1), None)
    if twice:
        return f"it has {twice} twice"
    for joint, bone in enumerate(bones):
        if not bone or bone == "hips":
            continue
        expected = VRM_PARENTS[bone]
        while expected not in present:
            expected = VRM_PARENTS[expected]
        above = parents[joint]
        while above >= 0 and not bones[above]:
            above = parents[above]
        if above < 0 or bones[above] != expected:
            return f"its {bone} hangs on {bones[above] if above >= 0 else 'nothing'} and not on {expected}"
    return None
