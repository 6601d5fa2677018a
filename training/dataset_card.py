"""The card of a suite's recordings: what was recorded, how, with what, and the digest of every dataset.

Owns card.json, and README.md which says the same to a person. All facts are read from the datasets themselves; what is
not recorded is listed as such. Records nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from policy.embodiment import EmbodimentSpec
from training.data.lerobot.embodiment import embodiment_of
from training.data.lerobot.reader import LeRobotReader
from training.data.registration import content_sha256
from training.json_file import write_json, write_text
from training.record import Report
from training.simulation.rendering import NOISE_LIMIT, pixel_noise
from training.suite import SeedRange, Suite

FORMAT_VERSION = 1
CARD, PAGE = "card.json", "README.md"
# As their own packages say; scenes and models of robots are parts of them.
LICENCES = {"mujoco": "Apache-2.0", "metaworld": "MIT", "gym-aloha": "Apache-2.0", "robosuite": "MIT"}

Entry = Mapping[str, Any]


def write_card(suite: Suite, directory: Path, *, report: Report) -> Mapping[str, Any]:
    """Describe what lies in data/ and motion/ of `directory`; returns what card.json holds.

    Every image of a dataset is decoded and checked once, again only when the dataset's digest changes.
    """
    path = directory / CARD
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    recordings = {
        kind: [_entry(suite, directory, kind, task, earlier, report) for task in suite.tasks]
        for kind in suite.recordings
    }
    recorded = [entry for entries in recordings.values() for entry in _recorded(entries)]
    card = {
        "format_version": FORMAT_VERSION,
        "suite": suite.to_json(),
        "bodies": _bodies(suite, directory, recorded),
        "recordings": recordings,
        "simulators": _versions(recorded),
        "renderers": sorted({entry["renderer"] for entry in recorded}),
        "licences": {name: LICENCES.get(name, "see the package") for name in _versions(recorded)},
        "noise_limit": NOISE_LIMIT,
    }
    write_json(path, card)
    write_text(directory / PAGE, format_page(suite, card))
    return card


def noisy_datasets(card: Mapping[str, Any]) -> dict[str, int]:
    """The datasets that hold images above the noise limit, and how many."""
    return {entry["path"]: entry["noisy_images"] for entry in _all_recorded(card) if entry["noisy_images"]}


def _entry(
    suite: Suite, directory: Path, kind: str, task: str, earlier: Mapping[str, Any], report: Report
) -> dict[str, Any]:
    dataset = directory / kind / task
    entry = {"task": task, "body": suite.tasks[task].body, "path": f"{kind}/{task}"}
    if not dataset.is_dir():
        return {**entry, "status": "not recorded"}
    reader = LeRobotReader(dataset)
    annotations = reader.annotations
    sha256 = content_sha256(dataset)
    known = {item["sha256"]: item for item in _recorded(earlier.get("recordings", {}).get(kind, ()))}
    # The check costs a second or two per dataset; a digest that was seen has been checked.
    checked = known.get(sha256) or _check_noise(reader)
    failed, seeds = annotations["failed_seeds"], [episode.seed for episode in reader.episodes]
    report({"event": "described", "recording": entry["path"], "sha256": sha256})
    return {
        **entry,
        "status": "recorded" if _as_planned(suite, kind, task, annotations["recording"]) else "of another plan",
        "instructions": list(reader.tasks.values()),
        "episodes": len(reader.episodes),
        "frames": reader.num_frames,
        "robot_time_s": reader.num_frames / reader.fps,
        "expert_attempts": len(reader.episodes) + len(failed),
        "expert_successes": len(reader.episodes),
        "disturbed_episodes": len(annotations["disturbed_seeds"]),
        "first_seed": seeds[0],
        "last_seed": seeds[-1],
        "failed_seeds": failed,
        "simulator": annotations["simulator"],
        "renderer": annotations["renderer"],
        "checked_images": checked["checked_images"],
        "noisy_images": checked["noisy_images"],
        "highest_pixel_noise": checked["highest_pixel_noise"],
        "sha256": sha256,
    }


def _check_noise(reader: LeRobotReader) -> dict[str, Any]:
    noise = [pixel_noise(frame) for key in reader.camera_keys for frame in reader.iter_frames(key)]
    return {
        "checked_images": len(noise),
        "noisy_images": sum(value > NOISE_LIMIT for value in noise),
        "highest_pixel_noise": max(noise, default=0.0),
    }


def _as_planned(suite: Suite, kind: str, task: str, recording: Mapping[str, Any]) -> bool:
    num_episodes, seeds = suite.recordings[kind]
    planned = {
        "task": task,
        "first_seed": seeds.first,
        "disturbed_fraction": suite.disturbed_fraction,
        "num_episodes": num_episodes,
        "images": kind == "data",
    }
    return {"images": True, **recording} == planned


def _bodies(suite: Suite, directory: Path, recorded: Sequence[Entry]) -> list[dict[str, Any]]:
    specs: dict[str, EmbodimentSpec] = {}
    for entry in recorded:
        if entry["body"] not in specs:
            specs[entry["body"]] = embodiment_of(LeRobotReader(directory / entry["path"]))
    return [
        {
            "body": body,
            "tasks": list(suite.tasks_of(body)),
            "cameras": {camera.name: [camera.height, camera.width] for camera in spec.cameras},
            "control_rate_hz": spec.control_rate_hz,
            "state_dim": spec.state_dim,
            "action_dim": spec.action_dim,
        }
        for body, spec in specs.items()
    ]


def _versions(recorded: Sequence[Entry]) -> dict[str, list[str]]:
    found = sorted({item for entry in recorded for item in entry["simulator"].items()})
    return {name: [version for other, version in found if other == name] for name, _ in found}


def _recorded(entries: Iterable[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry["status"] != "not recorded"]


def _all_recorded(card: Mapping[str, Any]) -> list[Entry]:
    return [entry for entries in card["recordings"].values() for entry in _recorded(entries)]


_COLUMNS = ("task", "body", "status", "episodes", "frames", "robot time", "expert", "disturbed", "seeds")


def _row(entry: Entry) -> list[str]:
    if entry["status"] == "not recorded":
        return [entry["task"], entry["body"], entry["status"], *[""] * (len(_COLUMNS) - 3)]
    return [
        entry["task"],
        entry["body"],
        entry["status"],
        str(entry["episodes"]),
        str(entry["frames"]),
        f"{entry['robot_time_s'] / 60:.1f} min",
        f"{entry['expert_successes']}/{entry['expert_attempts']}",
        f"{entry['disturbed_episodes'] / entry['episodes']:.0%}",
        f"{entry['first_seed']}-{entry['last_seed']}",
    ]


def _total(entries: Iterable[Entry]) -> str:
    recorded = _recorded(entries)
    episodes, frames = (sum(entry[name] for entry in recorded) for name in ("episodes", "frames"))
    minutes = sum(entry["robot_time_s"] for entry in recorded) / 60
    return f"{len(recorded)} tasks recorded, {episodes} episodes, {frames} frames, {minutes:.1f} minutes of robot time"


def format_card(card: Mapping[str, Any]) -> str:
    """The recordings as a table for a terminal; those without images only when there are any."""
    parts = []
    for kind, entries in card["recordings"].items():
        if kind == "data" or _recorded(entries):
            rows = [list(_COLUMNS), *map(_row, entries)]
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
            parts.append("\n".join([*(line.rstrip() for line in lines), f"{kind}: {_total(entries)}"]))
    return "\n\n".join(parts)


def format_page(suite: Suite, card: Mapping[str, Any]) -> str:
    """The card as a page of Markdown."""
    recorded, data, motion = _all_recorded(card), card["recordings"]["data"], card["recordings"]["motion"]
    blocks = [
        f"# Recordings of the suite {suite.name}",
        "Demonstrations by scripted experts in simulation, successes only, as LeRobot v3 datasets: `data/` with "
        "images, `motion/` states and actions alone. In a disturbed episode the arm was pushed off its path while the "
        "label stayed the expert's. Written by `python -m training bench-data`; `card.json` holds the same facts.",
        "## Bodies",
        _bodies_table(card["bodies"]),
        "## Demonstrations with images",
        _table(_COLUMNS, map(_row, data)),
        f"{_total(data)}. *expert*: scenes solved of those tried in the order of their seeds; only solved "
        "ones are kept.",
        "## Demonstrations without images",
        _table(_COLUMNS, map(_row, motion)),
        f"{_total(motion)}.",
        "## Instructions",
        _table(("task", "instruction"), [(e["task"], "; ".join(e["instructions"])) for e in _recorded(data)]),
        "## Scenes",
        *_scenes(suite),
        "## Images",
        f"Every stored image was decoded and checked: a pixel noise above {card['noise_limit']:.0f} is a broken frame. "
        f"{_noise_result(recorded)} Renderer: {'; '.join(card['renderers']) or 'nothing recorded'}.",
        "## Simulators and their licences",
        _table(
            ("package", "version", "licence"),
            [(name, ", ".join(versions), card["licences"][name]) for name, versions in card["simulators"].items()],
        ),
        "The models of robots, objects and scenes that the images show are parts of these packages.",
        "## Digests",
        "Of a dataset's file names and contents, the same that a pack names as its source.",
        _table(("dataset", "sha256"), [(entry["path"], f"`{entry['sha256']}`") for entry in recorded]),
    ]
    return "\n\n".join(blocks) + "\n"


def _bodies_table(bodies: Iterable[Mapping[str, Any]]) -> str:
    return _table(
        ("body", "cameras", "control rate", "state", "action", "tasks"),
        [
            (
                body["body"],
                ", ".join(f"{name} {height} x {width}" for name, (height, width) in body["cameras"].items()),
                f"{body['control_rate_hz']:.4g} Hz",
                body["state_dim"],
                body["action_dim"],
                ", ".join(body["tasks"]),
            )
            for body in bodies
        ],
    )


def _scenes(suite: Suite) -> tuple[str, str]:
    seeds, group = suite.seeds, suite.low_data_group
    ranges = [("training", seeds.training), ("motion", seeds.motion), ("tuning", seeds.tuning)]
    return (
        _table(("for", "seeds"), [(name, _span(part)) for name, part in [*ranges, ("testing", seeds.testing)]]),
        f"The low-data group ({', '.join(group.tasks)}) is trained on the first {group.demonstrations} demonstrations "
        f"of each task, every other task on {suite.demonstrations}. Body held out in leave-one-out: "
        f"{suite.held_out_body}.",
    )


def _span(seeds: SeedRange) -> str:
    return f"{seeds.first} to {seeds.last}"


def _noise_result(recorded: Sequence[Entry]) -> str:
    images, noisy = (sum(entry[name] for entry in recorded) for name in ("checked_images", "noisy_images"))
    highest = max((entry["highest_pixel_noise"] for entry in recorded), default=0.0)
    return f"{images} images, {noisy} above the limit, the highest {highest:.1f}."


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
