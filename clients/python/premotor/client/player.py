"""A robot driven by chunks at its control rate.

Owns the pace, the thread that plays and the life of the asker beside it. Does not own what happens in a step
(control_loop.py).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from types import TracebackType

from premotor.client.asker import Asker, Transport
from premotor.client.back_off import BackOff
from premotor.client.control_clock import Clock, ControlSteps, MonotonicClock
from premotor.client.control_loop import ControlLoop, EpisodeReport, Task
from premotor.client.description import Embodiment, PolicyDescription
from premotor.client.events import Observer, PlayerEvent
from premotor.client.hold import HoldRule, LastPosition
from premotor.client.images import ImageEncoding
from premotor.client.latency import LatencyEstimate
from premotor.client.playback import PlaybackRule, Replace
from premotor.client.playback_settings import PlaybackSettings, check_settings
from premotor.client.robot import Robot
from premotor.client.sync_client import PolicyClient

_JOIN_TIMEOUT_S = 5.0


class ChunkPlayer:
    """Plays a served policy on one robot, to be used in a `with` block, which connects.

    At most one question is in flight; its chunk is for the step its observation was captured at, and rows whose step
    passed meanwhile are not played. Without a valid action the robot is held and an event says so. A lost gateway is
    connected to again with back-off; one that serves another schema then is refused.
    """

    def __init__(
        self,
        robot: Robot,
        connect: Callable[[], PolicyClient],
        *,
        policy: str,
        robot_id: str,
        embodiment: str = "",
        revision: str = "",
        rule: PlaybackRule = Replace(),
        hold: HoldRule = LastPosition(),
        execution_horizon: int | None = None,
        observe_every_step: bool = False,
        image_encoding: ImageEncoding = "jpeg",
        timeout_s: float | None = None,
        transport: Transport = "stream",
        observers: Sequence[Observer] = (),
        back_off: BackOff = BackOff(),
        generator: random.Random | None = None,
        clock: Clock | None = None,
        handshake_timeout_s: float = 5.0,
    ) -> None:
        """`connect` makes a client, each time that a connection is needed and of any replica; the player closes it.

        `rule` merges chunks, `hold` says what is sent when no action is valid. `execution_horizon`, `timeout_s`,
        `observe_every_step` and `image_encoding` are those of PlaybackSettings. `generator` draws the jitter of the
        back-off. Raises ValueError for a setting that fits no policy.
        """
        self._settings = PlaybackSettings(
            rule=rule,
            hold=hold,
            execution_horizon=execution_horizon,
            observe_every_step=observe_every_step,
            image_encoding=image_encoding,
            timeout_s=timeout_s,
        )
        self._robot, self._observers = robot, tuple(observers)
        self._policy, self._robot_id, self._revision = policy, robot_id, revision
        self._embodiment_name = embodiment
        self._clock = clock or MonotonicClock()
        self._asker = Asker(
            connect,
            policy=policy,
            transport=transport,
            back_off=back_off,
            generator=generator or random.Random(),
            clock=self._clock,
            handshake_timeout_s=handshake_timeout_s,
        )
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._outcome: EpisodeReport | BaseException | None = None
        self._opened: tuple[PolicyDescription, Embodiment, LatencyEstimate] | None = None

    def open(self) -> None:
        """Connects and makes sure that policy, body and settings fit each other, before the robot moves.

        Raises PolicyError where no gateway answers, ValueError or FixRequestError where they do not fit.
        """
        description = self._asker.open()
        try:
            embodiment = description.embodiment(self._embodiment_name)
            check_settings(description, embodiment, self._settings)
        except Exception:
            self._asker.close()
            raise
        self._opened = description, embodiment, LatencyEstimate(embodiment.control_rate_hz)

    def close(self) -> None:
        """Stops playing and asking. Closing twice is harmless."""
        self.stop()
        if self._thread is not None:
            self._thread.join(_JOIN_TIMEOUT_S)
        self._asker.close()

    def __enter__(self) -> ChunkPlayer:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def description(self) -> PolicyDescription:
        """What the gateway said that the policy is, when the player was opened."""
        return self._require_open()[0]

    @property
    def embodiment(self) -> Embodiment:
        """The body that is played."""
        return self._require_open()[1]

    def play(
        self,
        *,
        instruction: str,
        episode_id: str,
        until: Callable[[], bool] = lambda: False,
        max_steps: int | None = None,
    ) -> EpisodeReport:
        """One episode in this thread: until `until()`, asked before each step, `max_steps` or `stop`.

        The robot is reset first and told to stay at the end, also where an error or an observer ends it. Raises what
        ended the asking (FixRequestError, ProtocolError, SchemaChangedError), and whatever robot and observers raise.
        """
        self._stop.clear()
        return self._play(instruction, episode_id, until, max_steps)

    def start(
        self,
        *,
        instruction: str,
        episode_id: str,
        until: Callable[[], bool] = lambda: False,
        max_steps: int | None = None,
    ) -> None:
        """`play` in a thread of its own; `wait` has its outcome. The robot is then called from that thread alone."""
        if self._thread is not None:
            raise RuntimeError("an episode is being played; stop it and wait for it first")
        self._require_open()
        self._stop.clear()

        def run() -> None:
            try:
                self._outcome = self._play(instruction, episode_id, until, max_steps)
            # The thread's outermost edge: `wait` raises it.
            except BaseException as error:
                self._outcome = error

        self._thread = threading.Thread(target=run, name="premotor-player", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> EpisodeReport:
        """The report of what `start` began. Raises what `play` would have, and TimeoutError when it still plays."""
        if self._thread is None:
            raise RuntimeError("no episode was started")
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"the episode was still played after {timeout_s:g} s")
        self._thread = None
        outcome, self._outcome = self._outcome, None
        if isinstance(outcome, BaseException):
            raise outcome
        assert outcome is not None
        return outcome

    def stop(self) -> None:
        """Ends the episode after the step that is being played; may be called from any thread."""
        self._stop.set()

    def _play(
        self, instruction: str, episode_id: str, until: Callable[[], bool], max_steps: int | None
    ) -> EpisodeReport:
        description, embodiment, latency = self._require_open()
        loop = ControlLoop(
            self._robot,
            self._asker,
            description=description,
            embodiment=embodiment,
            task=Task(
                policy=self._policy,
                revision=self._revision,
                robot_id=self._robot_id,
                episode_id=episode_id,
                instruction=instruction,
            ),
            settings=self._settings,
            latency=latency,
            clock=self._clock,
            observer=self._tell,
        )
        completed, next_step = False, 0
        loop.begin()
        try:
            steps = ControlSteps(embodiment.control_rate_hz, self._clock)
            while next_step != max_steps and not until():
                begun = steps.wait(self._stop)
                if begun is None or (max_steps is not None and begun.step >= max_steps):
                    break
                loop.run_step(begun.step, num_skipped=begun.num_skipped)
                next_step = begun.step + 1
            completed = True
        finally:
            loop.end(next_step, completed=completed)
        return loop.report

    def _tell(self, event: PlayerEvent) -> None:
        for observer in self._observers:
            observer(event)

    def _require_open(self) -> tuple[PolicyDescription, Embodiment, LatencyEstimate]:
        if self._opened is None:
            raise RuntimeError("use the player in a `with` block")
        return self._opened
