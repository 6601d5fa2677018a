from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind, Normalization, Representation, group_slices

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints" / "tabletop" / "embodiments.json"

_ARM = Group(name="arm", dim=3, kind=GroupKind.JOINT_POSITION, unit="rad", normalization=Normalization.MIN_MAX)
_GRIPPER = Group(name="gripper", dim=1, kind=GroupKind.GRIPPER, unit="ratio", lower_limit=(0.0,), upper_limit=(1.0,))
_BASE = Group(name="base", dim=3, kind=GroupKind.BASE, unit="m")
_SPEC = EmbodimentSpec(
    name="arm",
    cameras=(Camera(name="front", height=48, width=64), Camera(name="wrist", height=32, width=32)),
    state=(_ARM, _GRIPPER),
    action=(replace(_ARM, relative_to="arm"), _GRIPPER, _BASE),
    control_rate_hz=20.0,
)


def _with_base(**change: Any) -> EmbodimentSpec:
    """The spec with the action's base group changed."""
    return replace(_SPEC, action=(*_SPEC.action[:2], replace(_BASE, **change)))


_CHANGES: dict[str, EmbodimentSpec] = {
    "spec.name": replace(_SPEC, name="other"),
    "spec.cameras": replace(_SPEC, cameras=_SPEC.cameras[::-1]),
    "spec.state": replace(_SPEC, state=(*_SPEC.state, replace(_GRIPPER, name="other"))),
    "spec.action": replace(_SPEC, action=_SPEC.action[::-1]),
    "spec.control_rate_hz": replace(_SPEC, control_rate_hz=20.5),
    "camera.name": replace(_SPEC, cameras=(replace(_SPEC.cameras[0], name="other"), _SPEC.cameras[1])),
    "camera.height": replace(_SPEC, cameras=(replace(_SPEC.cameras[0], height=49), _SPEC.cameras[1])),
    "camera.width": replace(_SPEC, cameras=(replace(_SPEC.cameras[0], width=65), _SPEC.cameras[1])),
    "group.name": _with_base(name="other"),
    "group.dim": _with_base(dim=2),
    "group.kind": _with_base(kind=GroupKind.JOINT_VELOCITY),
    "group.unit": _with_base(unit="deg"),
    "group.representation": _with_base(representation=Representation.DELTA),
    "group.normalization": _with_base(normalization=Normalization.MEAN_STD),
    "group.relative_to": _with_base(relative_to="arm"),
    "group.lower_limit": _with_base(lower_limit=(-1.0, -1.0, -1.0)),
    "group.upper_limit": _with_base(upper_limit=(1.0, 1.0, 1.0)),
    "group.step_limit": _with_base(step_limit=(0.1, 0.1, 0.1)),
}


@pytest.mark.parametrize("spec", [_SPEC, _CHANGES["group.step_limit"]])
def test_a_spec_survives_json(spec: EmbodimentSpec) -> None:
    again = EmbodimentSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert again.digest == spec.digest


def test_a_spec_without_step_limits_has_the_json_and_the_digest_it_had_before_there_were_any() -> None:
    assert "step_limit" not in json.dumps(_SPEC.to_json())
    assert _SPEC.digest == "4bad92d4fcd8a7c1f3d44f44a64b738fd017744ee442535e3fe8da47c512044e"
    groups = [*_SPEC.to_json()["state"], *_SPEC.to_json()["action"]]
    assert [list(group) for group in groups] == [
        ["name", "dim", "kind", "unit", "representation", "normalization", "relative_to", "lower_limit", "upper_limit"]
    ] * len(groups)


def test_the_shipped_specs_keep_their_json_byte_for_byte_and_their_digests() -> None:
    for entry in json.loads(SHIPPED.read_text())["embodiments"]:
        spec = EmbodimentSpec.from_json(entry["spec"])
        assert json.dumps(spec.to_json()) == json.dumps(entry["spec"])
        assert spec.digest == entry["digest"]


@pytest.mark.parametrize("field", _CHANGES)
def test_the_digest_changes_with_any_field(field: str) -> None:
    assert _CHANGES[field] != _SPEC
    assert _CHANGES[field].digest != _SPEC.digest


def test_the_changes_above_cover_every_field() -> None:
    owned = {"spec": EmbodimentSpec, "camera": Camera, "group": Group}
    assert set(_CHANGES) == {f"{owner}.{field.name}" for owner, kind in owned.items() for field in fields(kind)}


def test_equal_specs_have_equal_digests_however_their_numbers_are_written() -> None:
    integers = replace(_SPEC, control_rate_hz=20, state=(_ARM, replace(_GRIPPER, lower_limit=(0,), upper_limit=(1,))))
    assert integers == _SPEC
    assert integers.digest == _SPEC.digest


def test_groups_own_their_columns_in_order() -> None:
    assert [(group.name, columns) for group, columns in group_slices(_SPEC.state)] == [
        ("arm", slice(0, 3)),
        ("gripper", slice(3, 4)),
    ]
    assert (_SPEC.state_dim, _SPEC.action_dim, _SPEC.camera_names) == (4, 7, ("front", "wrist"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: replace(_ARM, dim=0), "'arm' has dim 0, expected at least 1"),
        (lambda: replace(_ARM, lower_limit=(0.0,)), "lower_limit has 1 values, expected 3 or none"),
        (lambda: replace(_ARM, upper_limit=(0.0, 1.0)), "upper_limit has 2 values, expected 3 or none"),
        (lambda: replace(_SPEC, cameras=()), "at least one camera"),
        (lambda: replace(_SPEC, state=()), "at least one camera, state group"),
        (lambda: replace(_SPEC, action=()), "at least one camera, state group and action group"),
        (lambda: replace(_SPEC, control_rate_hz=0.0), "control_rate_hz 0.0, expected more than 0"),
        (lambda: replace(_SPEC, control_rate_hz=float("nan")), "control_rate_hz nan"),
        (lambda: replace(_SPEC, control_rate_hz=float("inf")), "control_rate_hz inf"),
        (lambda: Camera(name="front", height=0, width=8), "camera 'front' is 0 pixels high and 8 wide"),
        (
            lambda: replace(_GRIPPER, lower_limit=(float("nan"),)),
            r"'gripper' has lower_limit \[nan\], expected numbers",
        ),
        (
            lambda: replace(_GRIPPER, upper_limit=(float("nan"),)),
            r"'gripper' has upper_limit \[nan\], expected numbers",
        ),
        (lambda: replace(_GRIPPER, lower_limit=(2.0,)), r"'gripper' has lower_limit\[0\] 2.0 above upper_limit 1.0"),
        (lambda: replace(_SPEC, cameras=_SPEC.cameras[:1] * 2), r"names a camera twice: \['front', 'front'\]"),
        (lambda: replace(_SPEC, state=(_ARM, _ARM)), "names a state group twice"),
        (lambda: replace(_SPEC, action=(_ARM, _ARM)), "names a action group twice"),
        (lambda: replace(_SPEC, state=(replace(_ARM, relative_to="arm"),)), "state group 'arm' cannot be relative"),
        (lambda: replace(_ARM, step_limit=(0.1,)), "step_limit has 1 values, expected 3 or none"),
        (lambda: replace(_GRIPPER, step_limit=(-0.1,)), r"'gripper' has step_limit \[-0.1\], expected 0 or more"),
        (lambda: replace(_GRIPPER, step_limit=(float("nan"),)), "has step_limit"),
        (lambda: replace(_GRIPPER, step_limit=(float("inf"),)), "has step_limit"),
        (
            lambda: replace(_GRIPPER, step_limit=(0.1,), representation=Representation.DELTA),
            "'gripper' is delta, only absolute groups have a step_limit",
        ),
        (
            lambda: replace(_SPEC, state=(_ARM, replace(_GRIPPER, step_limit=(0.1,)))),
            "state group 'gripper' cannot have a step_limit",
        ),
        (lambda: _with_base(relative_to="nothing"), "'nothing' it is relative to"),
        (lambda: _with_base(relative_to="gripper"), "as wide as the state group 'gripper'"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("change", [{"colour": "red"}, {"kind": "wing"}, {"normalization": "softmax"}])
def test_json_with_an_unknown_key_or_value_is_refused(change: dict[str, str]) -> None:
    values = _SPEC.to_json()
    values["state"][0] |= change
    with pytest.raises(ValueError, match=next(iter(change.values())) + "|" + next(iter(change))):
        EmbodimentSpec.from_json(values)


@pytest.mark.parametrize("path", [("cameras",), ("state", "kind"), ("action", "dim"), ("name",), ("cameras", "width")])
def test_json_that_lacks_a_key_is_refused_by_its_name(path: tuple[str, ...]) -> None:
    values = _SPEC.to_json()
    *parents, key = path
    del (values[parents[0]][0] if parents else values)[key]
    with pytest.raises(ValueError, match=f"the spec (lacks|does not fit: .*missing.*) '{key}'"):
        EmbodimentSpec.from_json(values)


@pytest.mark.parametrize("values", [None, 3, [1], {"cameras": 1}, {"cameras": [1]}])
def test_json_of_another_form_is_refused(values: Any) -> None:
    with pytest.raises(ValueError):
        EmbodimentSpec.from_json(values)
