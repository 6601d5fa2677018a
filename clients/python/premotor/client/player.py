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

# A step is over long before; a robot that does not return from a call takes longer.
_END_TIMEOUT_S = 5.0


class ChunkPlayer:
    """Plays a served policy on one robot, to be used in a `with` block, which connects.

    At most one question is in flight. Its chunk begins where the robot was seen; rows of steps in which the robot moved
    on meanwhile are not played, and none once the time that the chunk covers is over. Without a valid action the robot
    is held and an event says so; it then stands where the next chunk has it, whose rows wait for it (a slow first
    answer loses no motion). A lost gateway is connected to again with back-off; one that serves another schema then is
    refused.
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

        `revision` pins one, which must have the schema of the one that serves when the player is opened; "" leaves it
        to the gateway. `rule` merges chunks, `hold` says what is sent when no action is valid. `execution_horizon`,
        `timeout_s`, `observe_every_step` and `image_encoding` are those of PlaybackSettings. `generator` draws the
        jitter of the back-off. Raises ValueError for a setting that fits no policy.
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
            revision=revision,
            transport=transport,
            back_off=back_off,
            generator=generator or random.Random(),
            clock=self._clock,
            handshake_timeout_s=handshake_timeout_s,
        )
        # Of the episodes so far, for the next one's first question.
        self._num_untold_underruns = 0
        self._stop = threading.Event()
        # Held while an episode is played, whichever thread plays it.
        self._playing = threading.Lock()
        self._playing_thread: threading.Thread | None = None
        # What `start` began and `wait` has not taken.
        self._thread: threading.Thread | None = None
        self._outcome: EpisodeReport | BaseException | None = None
        self._opened: tuple[PolicyDescription, Embodiment, LatencyEstimate] | None = None

    def open(self) -> None:
        """Connects and makes sure that policy, body and settings fit each other, before the robot moves.

        Raises PolicyError where no gateway answers, ValueError or FixRequestError where they do not fit, or where
        frames are to be sent as JPEG and nothing here can make one.
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
        """Stops playing and asking. Closing twice is harmless.

        Raises TimeoutError when the episode does not end: the robot is then still driven by the thread that plays.
        """
        self.stop()
        has_ended = self._wait_for_end()
        self._asker.close()
        if not has_ended:
            raise TimeoutError(
                f"the episode has not ended {_END_TIMEOUT_S:g} s after it was told to: robot {self._robot_id!r}, "
                "`until` or an observer does not return, and a command may still follow; stop the robot itself"
            )

    def _wait_for_end(self) -> bool:
        # An observer or `until` that closes is called by the episode, which ends once it has returned.
        if self._playing_thread is threading.current_thread():
            return True
        has_ended = self._playing.acquire(timeout=_END_TIMEOUT_S)
        if has_ended:
            self._playing.release()
        return has_ended

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
        ended the asking (FixRequestError, ProtocolError, SchemaChangedError), and whatever robot and observers raise;
        RuntimeError while another episode is played.
        """
        self._claim()
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
        self._claim()

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

    def _claim(self) -> None:
        """One episode at a time: two loops would drive one robot. `_play` gives the claim back."""
        self._require_open()
        if self._thread is not None or not self._playing.acquire(blocking=False):
            raise RuntimeError("an episode is being played; stop it and wait for it first")
        self._stop.clear()

    def _play(
        self, instruction: str, episode_id: str, until: Callable[[], bool], max_steps: int | None
    ) -> EpisodeReport:
        self._playing_thread = threading.current_thread()
        try:
            loop, rate_hz = self._loop(instruction, episode_id), self.embodiment.control_rate_hz
            completed = False
            loop.begin()
            try:
                steps = ControlSteps(rate_hz, self._clock, num_steps=max_steps)
                while not until() and (begun := steps.wait(self._stop)) is not None:
                    loop.run_step(begun, steps.catch_up)
                completed = True
            finally:
                self._num_untold_underruns = loop.num_untold_underruns
                loop.end(completed=completed)
            return loop.report
        finally:
            self._playing_thread = None
            self._playing.release()

    def _loop(self, instruction: str, episode_id: str) -> ControlLoop:
        description, embodiment, latency = self._require_open()
        return ControlLoop(
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
            num_untold_underruns=self._num_untold_underruns,
        )

    def _tell(self, event: PlayerEvent) -> None:
        for observer in self._observers:
            observer(event)

    def _require_open(self) -> tuple[PolicyDescription, Embodiment, LatencyEstimate]:
        if self._opened is None:
            raise RuntimeError("use the player in a `with` block")
        return self._opened
