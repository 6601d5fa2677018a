"""One episode of a robot that plays chunks, one control step at a time.

Owns the order of things within a step: take what came, observe and ask when it is due, then play the action of the
step that it is by then, or hold. Owns no thread and never waits; player.py calls it when a step begins. Does not own
the plan (playback.py), what holding means (hold.py), the estimate of latency (latency.py) or the connection (asker.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from premotor.client.asking import Answer, Asking, News, Question
from premotor.client.chunks import Chunk, ChunkArguments
from premotor.client.control_clock import Clock, ControlStep, whole_periods
from premotor.client.description import Embodiment, PolicyDescription
from premotor.client.errors import OutputViolationError
from premotor.client.events import (
    ActionPlayed,
    Asked,
    AskingStopped,
    ChunkArrived,
    EpisodeBegan,
    EpisodeEnded,
    Failed,
    Held,
    HoldReason,
    Observed,
    Observer,
    PeriodsSkipped,
    PlayerEvent,
    Reconnected,
    Recovered,
    SwapSeen,
)
from premotor.client.history import HistoryBuffer
from premotor.client.hold import Hold
from premotor.client.latency import LatencyEstimate
from premotor.client.playback import ActionBuffer, HeldSteps, PlaybackCounts, RealTimeChunkingRule
from premotor.client.playback_settings import PlaybackSettings, check_settings
from premotor.client.real_time_chunking import RealTimeChunking
from premotor.client.robot import Robot, RobotObservation


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one episode is about: who does what."""

    policy: str
    robot_id: str
    episode_id: str
    instruction: str
    revision: str = ""


@dataclass(kw_only=True)
class EpisodeReport:
    """What an episode came to. Steps are those that a command was sent in."""

    num_steps: int = 0
    num_skipped_periods: int = 0
    num_questions: int = 0
    num_failures: int = 0
    num_reconnections: int = 0
    num_swaps: int = 0
    counts: PlaybackCounts = field(default_factory=PlaybackCounts)


class ControlLoop:
    """The steps of one episode. `run_step` is called for each that begins, in order, from one thread."""

    def __init__(
        self,
        robot: Robot,
        asker: Asking,
        *,
        description: PolicyDescription,
        embodiment: Embodiment,
        task: Task,
        settings: PlaybackSettings,
        latency: LatencyEstimate,
        clock: Clock,
        observer: Observer,
        num_untold_underruns: int = 0,
    ) -> None:
        """`num_untold_underruns` are those of an episode before that no question of its own has told.

        Raises ValueError where the settings do not fit the policy or the body.
        """
        check_settings(description, embodiment, settings)
        self._robot, self._asker, self._clock, self._observer = robot, asker, clock, observer
        self._description, self._embodiment, self._task, self._settings = description, embodiment, task, settings
        self._latency = latency
        self._hold = Hold(embodiment, settings.hold)
        self._buffer = ActionBuffer(embodiment.action, settings.rule)
        self._history = HistoryBuffer(description.history_steps, embodiment.state_dim, embodiment.action_dim)
        self._execution_horizon = settings.execution_horizon or description.execution_horizon
        self._timeout_s = settings.timeout_s or description.action_horizon / embodiment.control_rate_hz
        self._num_underruns_told = -num_untold_underruns
        self._num_held = 0
        self._held = HeldSteps()
        # Whether looking at the robot took the last step's action and left none in its place.
        self._missed_by_looking = False
        # How many went by before the last frames were taken.
        self._looking_steps = 0
        # The one after the last in which a command was sent.
        self._next_step = 0
        self._last_state: np.ndarray | None = None
        self._last_action: np.ndarray | None = None
        self._stopped: Exception | None = None
        self.report = EpisodeReport(counts=self._buffer.counts)

    @property
    def num_untold_underruns(self) -> int:
        """How many have happened since the last question, those before this episode with it until there is one."""
        return self._buffer.counts.num_underruns - self._num_underruns_told

    def begin(self) -> None:
        """Makes the robot ready."""
        self._robot.reset()
        self._emit(
            EpisodeBegan(
                step=0,
                episode_id=self._task.episode_id,
                robot_id=self._task.robot_id,
                instruction=self._task.instruction,
                description=self._description,
                embodiment=self._embodiment,
            )
        )

    def run_step(self, begun: ControlStep, catch_up: Callable[[], ControlStep | None]) -> None:
        """Sends the command of the step that has begun, or of a later one where looking at the robot took that long.

        `catch_up` says which step it is by then and how many went by, None once the episode's time is over and no
        command is due. Raises what ended the asking, once the robot is held, and the robot's own.
        """
        self._skip(begun)
        step = begun.step
        for news in self._asker.take():
            self._read(news, step)
        is_due = self._is_due(step) and self._stopped is None and self._asker.is_free()
        if self._missed_by_looking and self._buffer.remaining(step):
            # Looking again first would miss this one as well, and so on: the robot would never move.
            is_due = False
        if is_due or self._settings.observe_every_step:
            observation = self._robot.observe()
            state = observation.state
            captured_s = min(max(observation.capture_time_s, begun.begin_s), self._clock.now_s())
            self._looking_steps = whole_periods(captured_s - begun.begin_s, self._embodiment.control_rate_hz)
            captured_step = step + self._looking_steps
            self._emit(
                Observed(
                    step=captured_step,
                    images=observation.images,
                    state=state,
                    capture_time_s=observation.capture_time_s,
                )
            )
            if is_due:
                self._ask(captured_step, captured_s, observation)
        else:
            state = self._robot.state()
        self._last_state = np.asarray(state, np.float32)
        # A robot may be slow to look, at its cameras above all, and an action is for its own step alone.
        current = catch_up()
        if current is not None:
            self._skip(current)
            is_played = self._play(current.step, self._last_state)
            self._missed_by_looking = current.num_skipped > 0 and not is_played
        if self._stopped is not None:
            raise self._stopped

    def end(self, *, completed: bool) -> None:
        """Tells the robot to stay and says how it went."""
        if completed:
            self._stay()
        else:
            # Whatever ended it, a body that was told to move must not go on; what came first is what is raised.
            with suppress(Exception):
                self._stay()
        self._emit(
            EpisodeEnded(
                step=self._next_step,
                counts=self._buffer.counts,
                num_skipped_periods=self.report.num_skipped_periods,
                completed=completed,
            )
        )

    def _stay(self) -> None:
        if self._last_state is not None:
            self._robot.act(self._hold.action(self._last_state, self._last_action))

    def _skip(self, begun: ControlStep) -> None:
        if begun.num_skipped:
            self.report.num_skipped_periods += begun.num_skipped
            self._emit(PeriodsSkipped(step=begun.step, num_periods=begun.num_skipped))

    @property
    def _threshold_steps(self) -> int:
        """Ask when no more actions than this remain.

        Those that pass while frames are waited for, and then until the answer is there. Never so many that a chunk
        would be asked for before the execution horizon, or the time that both take, has gone by since the last one's
        observation. Where the estimate is right that costs nothing: the question before is in flight until then. Where
        it is too high, every step would ask, and real-time chunking would have each chunk repeat the one before it.
        """
        soonest = min(self._looking_steps + self._latency.delay_steps, self._execution_horizon)
        needed = self._looking_steps + self._latency.threshold_steps
        return min(needed, self._description.action_horizon - soonest)

    def _is_due(self, step: int) -> bool:
        """When the buffer would run out before an answer came, or the policy means to look again."""
        if self._buffer.remaining(step) <= self._threshold_steps:
            return True
        newest = self._buffer.newest_for_step
        return newest is None or step - newest >= self._execution_horizon

    def _ask(self, step: int, captured_s: float, observation: RobotObservation) -> None:
        """With an observation of this step, which is not the one that has begun where a camera was waited for."""
        task = self._task
        chunking = self._chunking(step)
        arguments = ChunkArguments(
            policy=task.policy,
            revision=task.revision,
            robot_id=task.robot_id,
            episode_id=task.episode_id,
            embodiment=self._embodiment.name,
            images=observation.images,
            state=observation.state,
            instruction=task.instruction,
            capture_time_s=observation.capture_time_s,
            image_encoding=self._settings.image_encoding,
            num_underruns=self.num_untold_underruns,
            real_time_chunking=chunking,
        )
        if self._description.history_steps:
            # The asker reads it in its own thread, after this one has gone on.
            arguments["history"] = copy.deepcopy(self._history)
        self._num_underruns_told = self._buffer.counts.num_underruns
        self._asker.ask(
            Question(
                owner=self,
                step=step,
                captured_s=captured_s,
                expires_s=captured_s + self._timeout_s,
                arguments=arguments,
            )
        )
        self.report.num_questions += 1
        self._emit(
            Asked(
                step=step,
                remaining_steps=self._buffer.remaining(step),
                threshold_steps=self._threshold_steps,
                inference_delay=chunking.inference_delay if chunking else None,
            )
        )

    def _chunking(self, step: int) -> RealTimeChunking | None:
        """What the server needs to continue the plan, None when there is none to continue."""
        rule = self._settings.rule
        if not isinstance(rule, RealTimeChunkingRule) or self._buffer.remaining(step) == 0:
            return None
        previous = self._buffer.planned(step)
        horizon = self._description.action_horizon
        delay = min(self._latency.delay_steps, len(previous), horizon - 1)
        too_late_for_prefix = rule.method == "prefix" and delay > self._description.max_inference_delay
        return RealTimeChunking(
            previous_actions=previous,
            inference_delay=delay,
            # So many were played since the plan's own observation; the overlap is the rest.
            execution_horizon=max(horizon - len(previous), 1),
            method="auto" if too_late_for_prefix else rule.method,
            max_guidance_weight=rule.max_guidance_weight,
        )

    def _read(self, news: News, step: int) -> None:
        if isinstance(news, Answer):
            if news.question.owner is self:
                self._read_answer(news, step)
            return
        if isinstance(news, AskingStopped):
            self._stopped = news.error
            self._buffer.clear()
        self.report.num_failures += isinstance(news, Failed)
        self.report.num_reconnections += isinstance(news, Reconnected)
        self.report.num_swaps += isinstance(news, SwapSeen)
        self._emit(replace(news, step=step))

    def _read_answer(self, answer: Answer, step: int) -> None:
        question, outcome = answer.question, answer.outcome
        latency_s = answer.arrived_s - question.captured_s
        if isinstance(outcome, Chunk):
            self._latency.add(latency_s)
            self._insert(outcome, question.step, latency_s, step)
        elif isinstance(outcome, OutputViolationError):
            # What the model wants here breaks a limit of the body; the plan that led here is not followed further.
            self._buffer.clear()

    def _insert(self, chunk: Chunk, for_step: int, latency_s: float, step: int) -> None:
        insertion = self._buffer.insert(
            chunk.actions, for_step=for_step, now_step=step, num_still_steps=self._held.since(for_step)
        )
        self._emit(
            ChunkArrived(
                step=step,
                chunk=chunk,
                for_step=for_step,
                latency_s=latency_s,
                num_late_rows=insertion.num_late_rows,
                num_outrun_rows=insertion.num_outrun_rows,
                num_replaced_rows=insertion.num_replaced_rows,
            )
        )

    def _play(self, step: int, state: np.ndarray) -> bool:
        """Sends the command of a step; whether that was an action of the plan."""
        planned = self._buffer.action(step)
        command = self._hold.action(state, self._last_action) if planned is None else planned.action
        sent = np.array(self._robot.act(command), np.float32)
        sent_s = self._clock.now_s()
        # Steps that went by leave no row: what was measured then is not known.
        self._history.append(state, sent)
        self._last_action = sent
        self._next_step = step + 1
        self.report.num_steps += 1
        if planned is None:
            self._num_held += 1
            self._held.note(step)
            self._emit(Held(step=step, time_s=sent_s, state=state, action=sent, reason=self._hold_reason()))
            return False
        if self._num_held and self._buffer.counts.num_underruns:
            self._emit(Recovered(step=step, num_held_steps=self._num_held))
        self._num_held = 0
        self._emit(
            ActionPlayed(
                step=step,
                time_s=sent_s,
                state=state,
                action=sent,
                for_step=planned.for_step,
                age_steps=planned.age_steps,
            )
        )
        return True

    def _hold_reason(self) -> HoldReason:
        if self._stopped is not None:
            return "stopped"
        return "underrun" if self._buffer.counts.num_chunks else "waiting"

    def _emit(self, event: PlayerEvent) -> None:
        self._observer(event)
