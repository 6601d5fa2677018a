"""A bad data set is refused with the file, the column, what came, what was expected and the remedy; all at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from policy.embodiment import Camera, EmbodimentSpec, Group, GroupKind
from training.data.lerobot.layout import DatasetError
from training.data.lerobot.video import VideoEncoder
from training.data.pack import Pack, build_pack
from training.data.registration import REGISTRATION
from training.own_data.importing import Words, import_dataset
from training.own_data.problems import ImportRefusedError
from training.recipe import Recipe, RunDirectory

WriteArm = Callable[..., Path]
DATA = "data/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.wrist/chunk-000/file-000.mp4"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def set_column(root: Path, name: str, change: Callable[[list[Any]], None]) -> None:
    path = root / DATA
    table = pq.read_table(path)
    place = table.column_names.index(name)
    values = table.column(name).to_pylist()
    change(values)
    pq.write_table(table.set_column(place, name, pa.array(values, table.schema.field(name).type)), path)


def set_value(root: Path, name: str, row: int, value: Any, dim: int | None = None) -> None:
    def change(values: list[Any]) -> None:
        if dim is None:
            values[row] = value
        else:
            values[row][dim] = value

    set_column(root, name, change)


def set_episode_field(root: Path, episode: int, name: str, value: Any) -> None:
    rows = pq.read_table(root / EPISODES).to_pylist()
    rows[episode][name] = value
    pq.write_table(pa.Table.from_pylist(rows), root / EPISODES)


def write_video(root: Path, num_frames: int, height: int = 32, width: int = 48) -> None:
    encoder = VideoEncoder(root / VIDEO, fps=10, height=height, width=width)
    encoder.append(np.zeros((num_frames, height, width, 3), np.uint8))
    encoder.close()


def import_(root: Path, spec: EmbodimentSpec, run: Path, **words: str) -> Any:
    return import_dataset(root, spec, RunDirectory(root=run), task="cube", words=Words(**words))


def refusal(root: Path, spec: EmbodimentSpec, **words: str) -> list[str]:
    """Every problem, as text; and that nothing was written."""
    run = root.parent / "run"
    with pytest.raises(ImportRefusedError) as refused:
        import_(root, spec, run, **words)
    assert not run.exists()
    assert all(problem.remedy and problem.expected for problem in refused.value.problems)
    return [str(problem) for problem in refused.value.problems]


def only(problems: list[str], *parts: str) -> None:
    """One problem, which says all of `parts`."""
    assert len(problems) == 1, problems
    for part in parts:
        assert part in problems[0]


def with_group(spec: EmbodimentSpec, **changes: Any) -> EmbodimentSpec:
    """The spec with its joints changed, in state and action."""
    joints, gripper = spec.state
    joints = replace(joints, **changes)
    return replace(spec, state=(joints, gripper), action=(joints, gripper))


def test_a_sound_data_set_is_registered_in_place_and_packs(
    write_arm: WriteArm, spec: EmbodimentSpec, tmp_path: Path
) -> None:
    root = write_arm()
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    imported = import_(root, spec, tmp_path / "run")
    assert (imported.task, imported.num_episodes, imported.num_frames) == ("cube", 3, 28)
    run = RunDirectory(root=tmp_path / "run")
    assert [path.name for path in run.dataset("cube").iterdir()] == [REGISTRATION]
    pack = build_pack(run.dataset("cube"), tmp_path / "pack", image_size=16)
    assert (pack.task, pack.spec) == ("cube", spec)
    assert pack.instructions == ("pick the cube", "place the cube")
    assert pack.instructions_of(np.array([0, 9, 21])) == ["pick the cube", "place the cube", "pick the cube"]
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_one_instruction_can_be_given_for_all_episodes(
    write_arm: WriteArm, spec: EmbodimentSpec, tmp_path: Path
) -> None:
    import_(write_arm(), spec, tmp_path / "run", instruction="move the cube")
    pack = build_pack(RunDirectory(root=tmp_path / "run").dataset("cube"), tmp_path / "pack", image_size=None)
    assert pack.instructions == ("move the cube",)


def test_instructions_may_come_through_another_column(
    write_arm: WriteArm, spec: EmbodimentSpec, tmp_path: Path
) -> None:
    key = "annotation.human.task_description"

    def swap(episode: int, arrays: dict[str, np.ndarray]) -> None:
        arrays[key] = np.full(len(arrays["action"]), 1 - episode % 2)

    root = write_arm(swap, features={key: {"dtype": "int64", "shape": [1], "names": None}})
    import_(root, spec, tmp_path / "run", column=key)
    pack = build_pack(RunDirectory(root=tmp_path / "run").dataset("cube"), tmp_path / "pack", image_size=None)
    assert pack.instructions_of(np.array([0, 9])) == ["place the cube", "pick the cube"]


def test_the_recipe_trains_on_what_was_imported_and_keeps_what_a_person_wrote(
    write_arm: WriteArm, spec: EmbodimentSpec, tmp_path: Path
) -> None:
    root, run = write_arm(), RunDirectory(root=tmp_path / "mine")
    import_(root, spec, run.root)
    recipe = Recipe.load(str(run.recipe))
    assert (recipe.name, recipe.data.tasks, recipe.stage2.landmark_weight) == ("mine", ("cube",), 0.0)
    run.recipe.write_text(json.dumps(replace(recipe, seed=7).to_json()))
    import_dataset(root, spec, run, task="again", words=Words())
    recipe = Recipe.load(str(run.recipe))
    assert (recipe.seed, recipe.data.tasks, recipe.data.num_episodes("again")) == (7, ("cube", "again"), 3)


def test_importing_again_replaces_the_registration_but_never_a_recording(
    write_arm: WriteArm, spec: EmbodimentSpec, tmp_path: Path
) -> None:
    root = write_arm()
    import_(root, spec, tmp_path / "run")
    import_(root, spec, tmp_path / "run", instruction="anew")
    dataset = RunDirectory(root=tmp_path / "run").dataset("cube")
    assert json.loads((dataset / REGISTRATION).read_text())["instruction"] == "anew"
    shutil.rmtree(dataset)
    (dataset / "meta").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="--name"):
        import_(root, spec, tmp_path / "run")


@pytest.mark.parametrize("task", ["", "a/b", "..", ".hidden"])
def test_a_task_is_named_as_a_directory_can_be(
    write_arm: WriteArm, spec: EmbodimentSpec, tmp_path: Path, task: str
) -> None:
    with pytest.raises(ValueError, match="expected letters"):
        import_dataset(tmp_path, spec, RunDirectory(root=tmp_path / "run"), task=task, words=Words())


def test_a_data_set_that_changed_after_its_import_is_not_trained_on(
    write_arm: WriteArm, spec: EmbodimentSpec, tmp_path: Path
) -> None:
    root = write_arm()
    import_(root, spec, tmp_path / "run")
    dataset = RunDirectory(root=tmp_path / "run").dataset("cube")
    (root / DATA).touch()
    (root / ".cache").mkdir()
    (root / ".cache/lock").touch()
    packed = build_pack(dataset, tmp_path / "pack", image_size=None)
    set_value(root, "action", 3, 0.25, dim=1)
    with pytest.raises(DatasetError, match="changed after it was imported"):
        build_pack(dataset, tmp_path / "pack", image_size=None)
    shutil.move(root, tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="import it again from where it is now"):
        build_pack(dataset, tmp_path / "pack", image_size=None)
    assert Pack.open(tmp_path / "pack").source_sha256 == packed.source_sha256


def test_another_spec_makes_another_pack(write_arm: WriteArm, spec: EmbodimentSpec, tmp_path: Path) -> None:
    root, dataset = write_arm(), RunDirectory(root=tmp_path / "run").dataset("cube")
    import_(root, spec, tmp_path / "run")
    first = build_pack(dataset, tmp_path / "pack", image_size=None)
    import_(root, replace(spec, name="other"), tmp_path / "run")
    second = build_pack(dataset, tmp_path / "pack", image_size=None)
    assert (first.spec.name, second.spec.name) == ("arm", "other")


def test_all_problems_are_listed_together(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    def spoil(episode: int, arrays: dict[str, np.ndarray]) -> None:
        arrays["observation.state"][:, 2] = 0.5

    root = write_arm(spoil)
    (root / "meta/stats.json").unlink()
    set_value(root, "action", 10, float("nan"), dim=0)
    write_video(root, 20)
    problems = refusal(root, replace(spec, control_rate_hz=20.0))
    for problem, part in zip(
        problems,
        ["fps: 10", "meta/stats.json: no such file", "dimension 2 (joints[2]): 0.5", "nan", "frames of video"],
        strict=True,
    ):
        assert part in problem


def test_the_message_counts_the_problems_and_says_that_nothing_was_written(
    write_arm: WriteArm, spec: EmbodimentSpec, tmp_path: Path
) -> None:
    root = write_arm()
    (root / "meta/stats.json").unlink()
    with pytest.raises(ImportRefusedError, match=r"nothing was written\. Problems found: 1\n  1\. .*stats\.json"):
        import_(root, spec, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"codebase_version": "v3.1"}, ["meta/info.json", "codebase_version is 'v3.1'", "v2.0, v2.1, v3.0"]),
        ({"storage_format": "lance"}, ["meta/info.json", "storage_format is 'lance'", "parquet and mp4"]),
        ({"features": {"action": {"dtype": "float32"}}}, ["feature 'action'", "expected dtype and shape"]),
    ],
    ids=["version", "storage", "feature"],
)
def test_an_unknown_format_is_refused_before_anything_else(
    write_arm: WriteArm, spec: EmbodimentSpec, changes: dict[str, Any], parts: list[str]
) -> None:
    root = write_arm()
    edit_json(root / "meta/info.json", **changes)
    only(refusal(root, spec), *parts)


def test_a_directory_that_is_no_data_set_is_refused(spec: EmbodimentSpec, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    only(refusal(tmp_path / "empty", spec), "meta/info.json: no such file", "name the directory")


def test_info_that_is_not_json_is_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    root = write_arm()
    (root / "meta/info.json").write_text("{")
    only(refusal(root, spec), "meta/info.json: not readable")


def test_a_file_that_is_missing_is_refused_by_name(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    root = write_arm()
    (root / VIDEO).unlink()
    only(refusal(root, spec), "1 files of the data set are missing", VIDEO, "finish the download")


def test_another_rate_than_the_specs_is_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    problems = refusal(write_arm(), replace(spec, control_rate_hz=30.0))
    only(problems, "meta/info.json, fps: 10", "control_rate_hz 30.0")


@pytest.mark.parametrize(
    ("stats", "found"),
    [
        (None, "no such file"),
        ("{", "not readable"),
        ({}, "no statistics of it"),
        ({"min": [0] * 4, "max": [1] * 4}, "statistics without mean, std"),
        ({"min": [0] * 3, "max": [1] * 4, "mean": [0] * 4, "std": [1] * 4}, "min of shape [3]"),
        ({"min": [0] * 4, "max": [1] * 4, "mean": [0] * 4, "std": [float("nan")] * 4}, "not finite"),
    ],
    ids=["no file", "not json", "no feature", "no mean", "shape", "nan"],
)
def test_missing_statistics_are_refused(write_arm: WriteArm, spec: EmbodimentSpec, stats: Any, found: str) -> None:
    root = write_arm()
    path = root / "meta/stats.json"
    if stats is None:
        path.unlink()
    elif isinstance(stats, str):
        path.write_text(stats)
    else:
        values = json.loads(path.read_text())
        path.write_text(json.dumps({**values, "action": stats} if stats else {"observation.state": values}))
    problems = refusal(root, spec)
    assert any("meta/stats.json" in problem and found in problem for problem in problems)
    assert all("recompute_stats" in problem for problem in problems)


def test_statistics_of_other_data_are_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    root = write_arm()
    stats = json.loads((root / "meta/stats.json").read_text())
    stats["action"]["max"][1] = 57.3
    (root / "meta/stats.json").write_text(json.dumps(stats))
    only(
        refusal(root, spec), "column 'action' dimension 1 (joints[1])", "to 57.3, as the data set's own statistics say"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused(write_arm: WriteArm, spec: EmbodimentSpec, value: float) -> None:
    root = write_arm()
    for row in (11, 12):
        set_value(root, "observation.state", row, value, dim=3)
    only(
        refusal(root, spec),
        DATA, "column 'observation.state' dimension 3 (gripper[0]), episode 1 frame 2", f"{value}, 2 frames in all",
    )  # fmt: skip


def test_a_constant_dimension_is_refused_unless_equal_limits_mark_it(
    write_arm: WriteArm, spec: EmbodimentSpec, tmp_path: Path
) -> None:
    def spoil(episode: int, arrays: dict[str, np.ndarray]) -> None:
        arrays["action"][:, 1] = 0.1
        arrays["observation.state"][:, 1] = 0.1

    root = write_arm(spoil)
    problems = refusal(root, spec)
    assert (
        len(problems) == 2 and "column 'observation.state' dimension 1 (joints[1]): 0.1 in every frame" in problems[0]
    )
    assert "as both lower_limit and upper_limit" in problems[1]
    marked = with_group(spec, lower_limit=(-2.0, 0.1, -2.0), upper_limit=(2.0, 0.1, 2.0))
    assert import_(root, marked, tmp_path / "run").num_episodes == 3


def test_a_dimension_too_small_to_be_scaled_is_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    def spoil(episode: int, arrays: dict[str, np.ndarray]) -> None:
        arrays["action"][:, 0] *= 5e-5

    only(refusal(write_arm(spoil), spec), "column 'action' dimension 0", "only -", "smaller unit")


def test_degrees_where_the_spec_says_rad_are_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    def spoil(episode: int, arrays: dict[str, np.ndarray]) -> None:
        arrays["action"][:, 1:3] *= (60, 90)

    problems = refusal(write_arm(spoil), spec)
    only(
        problems,
        "column 'action' dimension 2 (joints[2])",
        "in 2 of the group's 3 dimensions",
        "at most 12.57 for an angle in rad",
    )


def test_radians_where_the_spec_says_degrees_are_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    problems = refusal(write_arm(), with_group(spec, unit="deg"))
    assert len(problems) == 2
    assert "column 'observation.state' group 'joints': no number larger than" in problems[0]
    assert "these look like radians" in problems[0]


@pytest.mark.parametrize(
    ("kind", "unit", "factor", "part"),
    [
        (GroupKind.END_EFFECTOR_POSITION, "m", 300.0, "the reach of an arm in metres"),
        (GroupKind.END_EFFECTOR_POSITION, "mm", 0.3, "these look like metres"),
        (GroupKind.OTHER, "counts", 3e6, "anything of a robot"),
    ],
)
def test_other_units_are_held_against_their_reach(
    write_arm: WriteArm, spec: EmbodimentSpec, kind: GroupKind, unit: str, factor: float, part: str
) -> None:
    def spoil(episode: int, arrays: dict[str, np.ndarray]) -> None:
        for key in ("action", "observation.state"):
            arrays[key][:, :3] *= factor

    problems = refusal(write_arm(spoil), with_group(spec, kind=kind, unit=unit))
    assert all(part in problem for problem in problems)


def test_a_glitch_is_refused_unless_the_limits_hold_it(
    write_arm: WriteArm, spec: EmbodimentSpec, tmp_path: Path
) -> None:
    def spoil(episode: int, arrays: dict[str, np.ndarray]) -> None:
        if episode == 1:
            arrays["observation.state"][57, 1] = 4000.0

    joints = Group(name="joints", dim=3, kind=GroupKind.OTHER, unit="counts")
    counts = replace(spec, state=(joints, spec.state[1]))
    root = write_arm(spoil, lengths=(100, 100, 100))
    only(refusal(root, counts), "episode 1 frame 57: 4000", "where 98 % of them are")
    held = replace(joints, lower_limit=(-5e3,) * 3, upper_limit=(5e3,) * 3)
    assert import_(root, replace(counts, state=(held, spec.state[1])), tmp_path / "run").num_frames == 300


def test_numbers_beyond_the_specs_limits_are_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    narrow = with_group(spec, lower_limit=(-2.0,) * 3, upper_limit=(2.0, 2.0, 0.5))
    problems = refusal(write_arm(), narrow)
    assert len(problems) == 2 and "frames in all are beyond" in problems[0]
    assert "-2 to 0.5, the spec's limits" in problems[0]


def test_a_timestamp_that_jumps_is_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    root = write_arm()

    def jump(values: list[float]) -> None:
        for row in range(13, 21):
            values[row] += 0.4

    set_column(root, "timestamp", jump)
    only(refusal(root, spec), "timestamp, episode 1 frame 4: 0.8000 s, 0.5000 s after", "expected 0.4000 s")


def test_timestamps_that_drift_from_the_rate_are_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    root = write_arm()
    set_column(root, "timestamp", lambda values: values.__setitem__(slice(None), [1.15 * value for value in values]))
    only(refusal(root, spec), "timestamp, episode 0 frame 4: 0.4600 s", "(2 more like it); expected 0.4000 s")


def test_an_episode_that_starts_late_is_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    root = write_arm()

    def late(values: list[float]) -> None:
        values[:9] = [value + 11.0 for value in values[:9]]

    set_column(root, "timestamp", late)
    only(refusal(root, spec), "timestamp, episode 0 frame 0: 11.0000 s", "expected 0.0000 s")


def test_an_index_with_a_gap_is_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    root = write_arm()
    set_value(root, "index", 14, 99)
    only(refusal(root, spec), DATA, "index, episode 1 frame 5: 99", "expected 14, counting on")


@pytest.mark.parametrize("column", ["frame_index", "episode_index"])
def test_rows_out_of_order_are_refused(write_arm: WriteArm, spec: EmbodimentSpec, column: str) -> None:
    root = write_arm()
    set_value(root, column, 14, 77)
    only(refusal(root, spec), DATA, "episode 1", f"its row 5 has {column} 77", "numbers episodes and frames")


def test_episodes_with_a_gap_in_their_numbers_are_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    root = write_arm()
    set_episode_field(root, 2, "episode_index", 5)
    set_column(root, "episode_index", lambda values: values.__setitem__(slice(21, 28), [5] * 7))
    only(refusal(root, spec), "episode_index: 5 for episode number 2 of 3", "expected 2, without gaps")


def test_an_episode_without_motion_is_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    only(refusal(write_arm(lengths=(9, 12, 1)), spec), "episode 2: 1 frames", "at least 2", "delete_episodes")


def test_a_data_file_cut_short_is_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    root = write_arm()
    pq.write_table(pq.read_table(root / DATA).slice(0, 20), root / DATA)
    problems = refusal(root, spec)
    assert "20 rows do not hold episode 1 of 12 frames (1 more like it)" in problems[0]


def test_a_data_file_that_is_no_table_is_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    root = write_arm()
    (root / DATA).write_bytes((root / DATA).read_bytes()[:200])
    problems = refusal(root, spec)
    assert DATA in problems[0] and "2 more like it" in problems[0]


def test_a_task_that_changes_or_is_unknown_is_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    root = write_arm()
    set_value(root, "task_index", 4, 1)
    only(refusal(root, spec), "task_index, episode 0", "changes its task", "--instruction")
    set_column(root, "task_index", lambda values: values.__setitem__(slice(0, 9), [8] * 9))
    only(refusal(root, spec), "task_index, episode 0", "task_index 8", "[0, 1]")


def test_a_blank_instruction_is_refused_unless_one_is_given(
    write_arm: WriteArm, spec: EmbodimentSpec, tmp_path: Path
) -> None:
    root = write_arm(tasks=("pick", " ", "pick"))
    only(refusal(root, spec), "meta/tasks", "episode 1", "the instruction ' '", "--instruction")
    assert import_(root, spec, tmp_path / "run", instruction="pick").num_episodes == 3


def test_a_camera_that_is_not_there_or_of_another_size_is_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    root = write_arm()
    cameras = (Camera(name="top", height=32, width=48), Camera(name="wrist", height=480, width=640))
    problems = refusal(root, replace(spec, cameras=cameras))
    assert "camera 'top': not there; it has ['wrist']" in problems[0]
    assert "camera 'wrist': frames of (32, 48, 3); expected (480, 640, 3)" in problems[1]


def test_vectors_of_another_width_are_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    root = write_arm()
    problems = refusal(root, replace(spec, action=spec.action[:1]))
    only(problems, "feature 'action': shape [4]; expected [3], the sum of the spec's action groups")


def test_a_missing_state_is_refused_with_what_there_is(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    root = write_arm()
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["observation.qpos"] = info["features"].pop("observation.state")
    (root / "meta/info.json").write_text(json.dumps(info))
    problems = refusal(root, spec)
    assert "feature 'observation.state': not there; it has ['action'," in problems[0]
    assert "join the robot's columns" in problems[0]


@pytest.mark.parametrize("num_frames", [20, 0])
def test_a_video_with_fewer_frames_than_rows_is_refused(
    write_arm: WriteArm, spec: EmbodimentSpec, num_frames: int
) -> None:
    root = write_arm()
    write_video(root, max(num_frames, 1))
    problems = refusal(root, spec)
    assert VIDEO in problems[0] and "frames of video" in problems[0] and "one for each row" in problems[0]


def test_a_video_cut_in_its_bytes_is_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    root = write_arm()
    (root / VIDEO).write_bytes((root / VIDEO).read_bytes()[:2000])
    only(refusal(root, spec), VIDEO, "not readable", "copy or record the file anew")


def test_pictures_that_do_not_decode_are_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    """The container is whole, the coded pictures are not."""
    root = write_arm()
    content = bytearray((root / VIDEO).read_bytes())
    start = content.index(b"mdat") + 4
    content[start : start + 6000] = bytes(len(content[start : start + 6000]))
    (root / VIDEO).write_bytes(content)
    assert any(VIDEO in problem and "decod" in problem for problem in refusal(root, spec))


def test_a_video_with_a_discarded_take_in_it_is_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    root = write_arm()
    set_episode_field(root, 1, "videos/observation.images.wrist/to_timestamp", 2.6)
    only(refusal(root, spec), VIDEO, "episode 1: 17 frames of video; expected 12", "discarded take")


def test_pictures_of_another_size_than_declared_are_refused(write_arm: WriteArm, spec: EmbodimentSpec) -> None:
    root = write_arm()
    write_video(root, 28, height=64, width=64)
    only(refusal(root, spec), VIDEO, "a picture of (64, 64, 3) (2 more like it); expected (32, 48, 3)")
