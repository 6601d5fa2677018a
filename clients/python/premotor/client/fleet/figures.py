"""From what robots noted to figures: per robot, and of the fleet.

Owns what is counted and how. A figure that cannot be had, from a wire that does not tell or without an answer, is None,
never 0. The window that counts begins after the settling time and ends with the run: of questions those meant to be
asked in it, of chunks those that came in it, whenever they were asked for. What is still answered once nobody asks any
more is no throughput.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from premotor.client.fleet.endpoint import AskError
from premotor.client.fleet.faults import FaultEvent
from premotor.client.fleet.playback import Hold, Playback, looking_again, play
from premotor.client.fleet.robot import Ask, RobotLog
from premotor.client.fleet.settings import FleetSettings

SUPPLIED_GOAL = 0.98
# Beyond this share of a period the load was not what it is said to be.
MOST_LAG_SHARE = 0.1
_SPANS = ("decode", "queue", "inference", "total")
# A hold that begins later than this after a fault's end has another reason.
_AFTERMATH_S = 8.0


@dataclass(frozen=True, kw_only=True, eq=False)
class RobotFigures:
    """One robot's log, and of the window: its questions, the chunks that came and what its body would have played.

    `playback_looking_again` is what it would have played had it looked again before it sent a question that had waited.
    """

    log: RobotLog
    asks: tuple[Ask, ...]
    came: tuple[Ask, ...]
    playback: Playback
    playback_looking_again: Playback


def robot_figures(settings: FleetSettings, log: RobotLog) -> RobotFigures:
    """Raises AskError for a chunk that no body of this kind could play."""
    action_dim = settings.embodiment.action_dim
    for ask in log.asks:
        if ask.answer is not None and (ask.answer.actions.shape[1:] != (action_dim,) or not len(ask.answer.actions)):
            shape = list(ask.answer.actions.shape)
            raise AskError("ProtocolError", f"a chunk of shape {shape} came, expected [1 or more, {action_dim}]")

    def played(asks: Sequence[Ask]) -> Playback:
        return play(
            asks,
            settings.embodiment.action,
            control_rate_hz=settings.control_rate_hz,
            first_s=settings.settle_s,
            end_s=settings.duration_s,
        )

    playback = played(log.asks)
    return RobotFigures(
        log=log,
        asks=tuple(ask for ask in log.asks if ask.intended_s >= settings.settle_s),
        came=tuple(ask for ask in log.asks if _came_between(ask, settings.settle_s, settings.duration_s)),
        playback=playback,
        playback_looking_again=played(looking_again(log.asks)) if any(ask.waited for ask in log.asks) else playback,
    )


def fleet_figures(
    settings: FleetSettings, robots: Sequence[RobotFigures], faults: Sequence[FaultEvent]
) -> dict[str, Any]:
    """All of a run, ready for JSON."""
    asks = [ask for robot in robots for ask in robot.asks]
    num_chunks = sum(len(robot.came) for robot in robots)
    counted_s = settings.duration_s - settings.settle_s
    shares = [robot.playback.supplied_share for robot in robots]
    fault_figures = _fault_figures(faults, robots, settings.chunk_s)
    lag_ms = _percentiles_ms(ask.lag_s for ask in asks)
    most_lag_ms = 1e3 * MOST_LAG_SHARE * settings.period_s
    num_stale = sum(robot.playback.num_stale for robot in robots)
    return {
        "valid": lag_ms is not None and lag_ms["p99"] <= most_lag_ms,
        "scheduling_lag_ms": lag_ms,
        "most_scheduling_lag_p99_ms": most_lag_ms,
        "fleet": {
            **_question_figures(settings, asks),
            "offered_per_s": len(asks) / counted_s,
            "num_chunks": num_chunks,
            "chunks_per_s": num_chunks / counted_s,
            **_playback_figures(settings, robots),
            "most_supplied_share": settings.most_supplied_share,
            "robots_supplied": sum(share >= SUPPLIED_GOAL * settings.most_supplied_share for share in shares),
            "fairness": {
                "jain_index_of_supplied_steps": _jain([robot.playback.num_supplied for robot in robots]),
                "latency_p99_ms_of_robots": _spread(
                    latency["p99"] for robot in robots if (latency := _latency_ms(robot.asks)) is not None
                ),
            },
            "num_reconnections": sum(robot.log.num_reconnections for robot in robots),
            "revisions": sorted({ask.answer.revision for ask in asks if ask.answer is not None}),
            "swaps_seen": [swap for robot in robots for swap in _swaps(robot)],
        },
        "robots": [
            {
                "robot": robot.log.robot,
                **_question_figures(settings, robot.asks),
                "num_chunks": len(robot.came),
                **_playback_figures(settings, [robot]),
                "num_reconnections": robot.log.num_reconnections,
                "failure_messages": robot.log.messages,
            }
            for robot in robots
        ],
        "faults": fault_figures,
        "asserted": {
            "no_stale_action_played": num_stale == 0,
            "num_stale_actions": num_stale,
            "every_fault_was_carried_out": not any(fault["problem"] for fault in fault_figures),
            "every_robot_recovered": not any(fault["robots_never_recovered"] for fault in fault_figures),
        },
    }


def broken_assertions(report: dict[str, Any]) -> list[str]:
    """What makes a run a failed one, each for a person; `report` is that of `fleet_figures`."""
    broken = []
    if not report["valid"]:
        broken.append("the robots' own process could not keep its times; nothing here says anything about the server")
    if not report["asserted"]["no_stale_action_played"]:
        broken.append(f"{report['asserted']['num_stale_actions']} stale actions were played")
    for fault in report["faults"]:
        if fault["problem"]:
            broken.append(f"the {fault['kind']} at {fault['start_s']:.1f} s was not carried out: {fault['problem']}")
        if fault["robots_never_recovered"]:
            broken.append(
                f"{fault['robots_never_recovered']} robots never recovered from the {fault['kind']} "
                f"at {fault['start_s']:.1f} s"
            )
    return broken


def fairness_and_bytes(report: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """What robots got beside each other, and what went over the wire: each as a text and its name."""
    fleet = report["fleet"]
    jain, p99_ms = fleet["fairness"]["jain_index_of_supplied_steps"], fleet["fairness"]["latency_p99_ms_of_robots"]
    yield "-" if jain is None else f"{jain:.3f}", "Jain's index of supplied steps"
    yield "-" if p99_ms is None else f"{p99_ms['least']:.1f} to {p99_ms['most']:.1f} ms", "latency p99 of the robots"
    yield f"{fleet['request_bytes'] / 1e6:.1f} MB", "sent with questions"
    yield f"{fleet['response_bytes'] / 1e6:.1f} MB", "came with chunks"


def _came_between(ask: Ask, first_s: float, end_s: float) -> bool:
    return ask.answer is not None and ask.ended_s is not None and first_s <= ask.ended_s < end_s


def _question_figures(settings: FleetSettings, asks: Sequence[Ask]) -> dict[str, Any]:
    answered = [ask for ask in asks if ask.answer is not None]
    failures = Counter(ask.failure for ask in asks if ask.failure)
    misses = sum(ask.latency_s is None or ask.latency_s > settings.deadline_s for ask in asks)
    return {
        "num_questions": len(asks),
        "num_answered": len(answered),
        "num_never_sent": sum(ask.sent_s is None for ask in asks),
        "failures": dict(failures),
        "deadline_misses": misses,
        "deadline_miss_share": misses / len(asks) if asks else None,
        "latency_ms": _latency_ms(asks),
        "latency_split_ms": _split_ms(answered),
        "request_bytes": sum(ask.request_bytes for ask in asks),
        "response_bytes": sum(ask.answer.response_bytes for ask in answered if ask.answer is not None),
    }


def _playback_figures(settings: FleetSettings, robots: Sequence[RobotFigures]) -> dict[str, Any]:
    playbacks = [robot.playback for robot in robots]
    num_steps = sum(playback.num_steps for playback in playbacks)
    num_supplied = sum(playback.num_supplied for playback in playbacks)
    ages = sum((playback.ages_steps for playback in playbacks), Counter[int]())
    hold_s = [hold.end_s - hold.start_s for playback in playbacks for hold in playback.holds]
    num_looking_again = sum(robot.playback_looking_again.num_supplied for robot in robots)
    return {
        "num_control_steps": num_steps,
        "num_underruns": num_steps - num_supplied,
        "supplied_share": num_supplied / num_steps if num_steps else None,
        # An upper bound for a wire that carries one question: see `play`.
        "supplied_share_looking_again": num_looking_again / num_steps if num_steps else None,
        "num_holds": len(hold_s),
        "longest_hold_s": max(hold_s, default=0.0),
        "chunk_age_ms": _ages_ms(ages, settings.control_rate_hz),
    }


def _latency_ms(asks: Iterable[Ask]) -> dict[str, float] | None:
    """From the intended time, of what was answered."""
    return _percentiles_ms(latency_s for ask in asks if (latency_s := ask.latency_s) is not None)


def _split_ms(answered: Sequence[Ask]) -> dict[str, dict[str, float] | None]:
    """Where the latency of answered questions went.

    `unsent` is from the intended time to the sending; decode, queue, inference and total are the server's, None where
    it does not tell; `wire` is what of the round trip is not the server's total, or not its inference where that is all
    it tells.
    """
    spans_s: dict[str, list[float]] = {"unsent": [], **{span: [] for span in _SPANS}, "wire": []}
    for ask in answered:
        assert ask.answer is not None and ask.sent_s is not None and ask.ended_s is not None
        spans_s["unsent"].append(ask.sent_s - ask.intended_s)
        server_s = ask.answer.server_s
        for span in _SPANS:
            if span in server_s:
                spans_s[span].append(server_s[span])
        spans_s["wire"].append(ask.ended_s - ask.sent_s - server_s.get("total", server_s.get("inference", 0.0)))
    return {name: _percentiles_ms(values) for name, values in spans_s.items()}


def _swaps(robot: RobotFigures) -> list[dict[str, Any]]:
    """The first answer of each further revision. One that answered this robot before does so again where policies are
    split between episodes, and where an answer comes late."""
    answered = sorted((ask for ask in robot.log.asks if ask.answer is not None), key=lambda ask: ask.ended_s or 0.0)
    seen: list[str] = []
    swaps = []
    for ask in answered:
        assert ask.answer is not None
        revision = ask.answer.revision
        if not revision or revision in seen:
            continue
        if seen:
            swaps.append({"robot": robot.log.robot, "at_s": ask.ended_s, "before": seen[-1], "after": revision})
        seen.append(revision)
    return swaps


def _fault_figures(
    faults: Sequence[FaultEvent], robots: Sequence[RobotFigures], chunk_s: float
) -> list[dict[str, Any]]:
    """Who held because of each. A hold is the fault's that began last before it, unless that is long over."""
    held: list[list[list[Hold]]] = [[[] for _ in robots] for _ in faults]
    for number, robot in enumerate(robots):
        for hold in robot.playback.holds:
            began = [index for index, fault in enumerate(faults) if fault.start_s <= hold.start_s]
            if began and _is_of(faults[began[-1]], hold, chunk_s):
                held[began[-1]][number].append(hold)
    return [_one_fault(fault, holds, robots) for fault, holds in zip(faults, held, strict=True)]


def _is_of(fault: FaultEvent, hold: Hold, chunk_s: float) -> bool:
    """A hold that the run's end cut short tells of a robot that did not recover when it was a long one, or began while
    only a chunk from before the fault's end can have been played; else it is one of those that come and go."""
    if not hold.is_over and hold.end_s - hold.start_s < chunk_s and hold.start_s > fault.end_s + chunk_s:
        return False
    return hold.start_s < fault.end_s + _AFTERMATH_S


def _one_fault(fault: FaultEvent, holds: Sequence[Sequence[Hold]], robots: Sequence[RobotFigures]) -> dict[str, Any]:
    """`holds` are one list for each robot.

    Recovery is from the fault's end to the end of a robot's last hold because of it. Who did not hold needs none, and
    who still held when the run ended has none.
    """
    held_at_all = [held for held in holds if held]
    recovered = [held for held in held_at_all if all(hold.is_over for hold in held)]
    recovery_s = [max(0.0, max(hold.end_s for hold in held) - fault.end_s) for held in recovered]
    answered_again = [
        any(ask.answer is not None and (ask.ended_s or 0.0) > fault.end_s for ask in robot.asks) for robot in robots
    ]
    return {
        "kind": fault.kind,
        "start_s": fault.start_s,
        "end_s": fault.end_s,
        "problem": fault.problem,
        "robots_that_held": len(held_at_all),
        "robots_never_recovered": len(held_at_all) - len(recovered),
        "robots_answered_again": sum(answered_again),
        "num_holds": sum(len(held) for held in holds),
        "longest_hold_s": max((hold.end_s - hold.start_s for held in holds for hold in held), default=0.0),
        "recovery_s": {"median": float(np.median(recovery_s)), "max": max(recovery_s)} if recovery_s else None,
    }


def _percentiles_ms(seconds: Iterable[float]) -> dict[str, float] | None:
    values = 1e3 * np.fromiter(seconds, float)
    if not len(values):
        return None
    p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
    return {"mean": float(values.mean()), "p50": p50, "p90": p90, "p99": p99, "max": float(values.max())}


def _ages_ms(ages: Counter[int], control_rate_hz: float) -> dict[str, float] | None:
    if not ages:
        return None
    known = sorted(ages)
    steps = np.repeat(known, [ages[age] for age in known])
    p50, p99 = np.percentile(steps, (50, 99)).tolist()
    return {"p50": 1e3 * p50 / control_rate_hz, "p99": 1e3 * p99 / control_rate_hz}


def _jain(values: Sequence[float]) -> float | None:
    """1 when all are equal, 1 / n when one has everything (Jain, Chiu and Hawe, 1984)."""
    squares = len(values) * float(np.square(np.array(values, float)).sum())
    return float(sum(values)) ** 2 / squares if squares else None


def _spread(values: Iterable[float]) -> dict[str, float] | None:
    found = list(values)
    return {"least": min(found), "most": max(found)} if found else None
