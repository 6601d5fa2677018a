"""Who goes next: the requests that wait for a model, and the rules by which their turn comes.

Owns the bound on those who wait, their order, latest-wins and fairness between robots, and the count of those inside
each model. Does not own what happens inside (the backend does), nor the timer that ends a wait at its deadline: the
answerer has one that bounds all of a request's life. For one event loop.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from service.backend import BackendError
from service.errors import DeadlineExpiredError, OverloadedError, ServiceError, SupersededError
from service.gateway.sharing import Present

# Of the last request in the mean time inside a model: about ten requests are remembered.
_NEWEST_WEIGHT = 0.1
_PRUNED_FROM = 64
# A robot that is held back is looked at again after this long: others may have left.
_LONGEST_HOLD_S = 0.25
_SHORTEST_HOLD_S = 0.001


class _Policy:
    """One policy's robots that have requests here, and those that had some lately."""

    __slots__ = ("num_waiting", "present", "robots", "waiting_bytes")

    def __init__(self) -> None:
        self.robots: dict[str, _Robot] = {}
        self.num_waiting = 0
        self.waiting_bytes = 0
        self.present = Present()

    def is_in_use(self, now_s: float) -> bool:
        return bool(self.robots or self.present.num_robots(now_s))

    def is_alone(self, robot: _Robot, now_s: float) -> bool:
        """Whether no other robot has a request here, or had one lately."""
        return len(self.robots) <= 1 and self.present.is_alone(robot.id, now_s)


class _Robot:
    """One robot's requests of one policy, over all its revisions. Kept for as long as there are any."""

    __slots__ = ("id", "num_inside", "policy", "waiting")

    def __init__(self, robot_id: str, policy: _Policy) -> None:
        self.id = robot_id
        self.policy = policy
        self.num_inside = 0
        # At most one: a newer request takes the place of the one that waits.
        self.waiting: _Place | None = None


class _Place:
    """One request, waiting or inside."""

    __slots__ = (
        "arrival",
        "deadline_s",
        "entered_at",
        "entered_s",
        "granted",
        "in_gap",
        "in_line",
        "is_inside",
        "num_bytes",
        "revision",
        "robot",
    )

    def __init__(self, robot: _Robot, revision: str, deadline_s: float, arrival: int, num_bytes: int) -> None:
        self.robot = robot
        self.revision = revision
        self.deadline_s = deadline_s
        self.arrival = arrival
        self.num_bytes = num_bytes
        self.is_inside = False
        self.entered_s = 0.0
        # What the model's shared time was when it went in.
        self.entered_at = 0.0
        # Whether the model's line or its held-back ones contain it: not while its robot has to finish something first.
        self.in_line = False
        # Whether it went in although its robot has had too much, because the model had just become idle.
        self.in_gap = False
        # None for a request that went in at once.
        self.granted: asyncio.Future[None] | None = None

    @property
    def is_waiting(self) -> bool:
        """False as well once its caller has been cancelled, which that caller notices only later."""
        return self.robot.waiting is self and not (self.granted is not None and self.granted.done())


class _Model:
    """One revision: how many are inside and for how long, and the line of those who may follow."""

    __slots__ = ("changed_s", "held_back", "line", "num_inside", "prune_at", "shared_s", "time_inside_s", "timer")

    def __init__(self) -> None:
        self.num_inside = 0
        # Mean of the last few requests; 0 while nothing is known.
        self.time_inside_s = 0.0
        # By deadline, then arrival. Whoever has stopped waiting stays until popped or pruned.
        self.line: list[tuple[float, int, _Place]] = []
        self.prune_at = _PRUNED_FROM
        # Of robots that have had too much: by the time when that has faded, then arrival.
        self.held_back: list[tuple[float, int, _Place]] = []
        self.timer: asyncio.TimerHandle | None = None
        # The time that the model worked, each second of it divided by how many were inside.
        self.shared_s = 0.0
        self.changed_s = 0.0

    def change(self, more: int, now_s: float) -> None:
        """`more` go in, or leave when it is negative."""
        if self.num_inside:
            self.shared_s += (now_s - self.changed_s) / self.num_inside
        self.changed_s = now_s
        self.num_inside += more

    def next_held_back(self) -> _Place | None:
        """Whoever of those held back has had least; the others of them stay."""
        while self.held_back:
            _, _, place = heapq.heappop(self.held_back)
            if place.is_waiting:
                return place
        return None

    def is_too_late(self, deadline_s: float, now_s: float) -> bool:
        """Whether a chunk would come after the deadline. Never of an idle model: what it takes has to be found out."""
        return self.num_inside > 0 and now_s + self.time_inside_s > deadline_s

    def note_time_inside(self, time_s: float, *, answered: bool) -> None:
        """A request that was given up says only that it would have taken longer than this."""
        if not self.time_inside_s:
            self.time_inside_s = time_s
        elif answered or time_s > self.time_inside_s:
            self.time_inside_s += _NEWEST_WEIGHT * (time_s - self.time_inside_s)

    def prune(self) -> None:
        self.line = [entry for entry in self.line if entry[2].is_waiting]
        heapq.heapify(self.line)
        self.held_back = [entry for entry in self.held_back if entry[2].is_waiting]
        heapq.heapify(self.held_back)
        self.prune_at = max(_PRUNED_FROM, 2 * (len(self.line) + len(self.held_back)))


class RequestQueue:
    """One bounded queue per policy, in front of models that each take only so many requests at a time.

    A model takes requests in the order they come and ignores their deadlines, so it is given no more than what runs now
    and what forms the next batch. Everybody else waits here:

    - Bounded. At most `max_queued` requests of a policy wait, and `max_queued_bytes`; more is refused as overloaded.
    - Latest wins. A robot waits with one request of a policy at most. A newer one, by arrival, supersedes it at once,
      whatever their revisions, and takes its place also where the queue is full, but for one that is larger by more
      bytes than are left. What is inside a model is finished.
    - Earliest deadline first, then earliest arrival, among those who may go. What has expired never goes, nor, into a
      model that is busy, what would expire there: with more robots than a model can serve, requests would otherwise go
      in just before their deadline, one after the other, and none be answered in time. How long one is inside is the
      mean of the last few.
    - Fair. A robot with a request inside a model may have another inside only while it is alone with the policy: no
      other robot has a request here, or had one in the last 10 s. Otherwise its next one waits until it has nothing
      inside. The last 10 s and not only this instant: what a fast robot puts inside while the others play their chunks
      is what they find before them when they ask again. A robot that has several inside when another comes finishes
      these.
    - Shared. A forward that has begun is not interrupted, so whoever keeps a model busy makes all others wait. A robot
      in company that has had more than its share of its policy's models lately (sharing.py) is held back until that has
      faded, or until the chunk of a robot within its share leaves the model idle for longer than a chunk takes, by when
      the robots within their shares will ask that model again: what begins then is least in the way.
    """

    def __init__(
        self,
        *,
        capacity: Callable[[str], int],
        max_queued: int,
        max_queued_bytes: int,
        overload_retry_s: float,
        clock_s: Callable[[], float] | None = None,
    ) -> None:
        """`capacity` says how many requests of a revision may be inside, at least 1. The clock is the event loop's."""
        self._capacity = capacity
        self._max_queued, self._max_queued_bytes = max_queued, max_queued_bytes
        self._overload_retry_s = overload_retry_s
        self._clock_s = clock_s or _loop_time_s
        self._policies: dict[str, _Policy] = {}
        # By revision; only those with somebody inside or in line.
        self._models: dict[str, _Model] = {}
        self._arrivals = itertools.count()

    def num_waiting(self, policy: str) -> int:
        return self._policies[policy].num_waiting if policy in self._policies else 0

    @asynccontextmanager
    async def turn(
        self, *, policy: str, robot_id: str, revision: str, deadline_s: float, num_bytes: int
    ) -> AsyncIterator[None]:
        """Waits for a place inside the model, and gives it to the next at the end.

        `deadline_s` is on the queue's clock, `num_bytes` what the request keeps while it waits. Raises OverloadedError,
        SupersededError, DeadlineExpiredError, or what the revision was dismissed with.
        """
        place = self._arrive(policy, robot_id, revision, deadline_s, num_bytes)
        if place.granted is not None:
            try:
                await place.granted
            except asyncio.CancelledError:
                self._give_up(place)
                raise
        answered = False
        try:
            yield
            answered = True
        finally:
            self._leave(place, answered=answered)

    def dismiss(self, revision: str, error: BackendError) -> None:
        """Ends every wait for a revision with `error`."""
        now_s = self._clock_s()
        for policy in self._policies.values():
            for robot in tuple(policy.robots.values()):
                if robot.waiting is not None and robot.waiting.revision == revision:
                    self._end(robot.waiting, error)
                    self._forget(robot, now_s)

    def _arrive(self, policy_name: str, robot_id: str, revision: str, deadline_s: float, num_bytes: int) -> _Place:
        now_s = self._clock_s()
        if deadline_s <= now_s:
            raise DeadlineExpiredError("the deadline passed before the request could wait for its turn")
        policy = self._policies.get(policy_name)
        if policy is None:
            # Of a policy that was deleted nothing stays once another comes.
            self._policies = {name: each for name, each in self._policies.items() if each.is_in_use(now_s)}
            policy = self._policies[policy_name] = _Policy()
        robot = policy.robots.get(robot_id) or _Robot(robot_id, policy)
        policy.present.note_asking(robot_id, now_s, model=revision)
        may_go = self._may_go(robot, now_s)
        held_s = self._held_s(robot, now_s) if may_go else 0.0
        model = self._models.get(revision)
        goes = may_go and not held_s and (model.num_inside if model else 0) < self._capacity(revision)
        if goes and model is not None and model.is_too_late(deadline_s, now_s):
            raise _too_late()
        if not goes:
            self._check_room(policy, policy_name, robot.waiting, num_bytes)
        if robot.waiting is not None:
            self._end(robot.waiting, SupersededError("a newer request of this robot took this one's turn"))
        policy.robots[robot_id] = robot
        place = _Place(robot, revision, deadline_s, next(self._arrivals), num_bytes)
        if goes:
            self._enter(place, now_s)
            return place
        robot.waiting = place
        policy.num_waiting += 1
        policy.waiting_bytes += num_bytes
        place.granted = asyncio.get_running_loop().create_future()
        if may_go:
            self._line_up(place, now_s, held_s)
        return place

    def _check_room(self, policy: _Policy, policy_name: str, superseded: _Place | None, num_bytes: int) -> None:
        """Raises OverloadedError where a request may not wait as well, or in the place of one it supersedes."""
        full = None
        if superseded is None and policy.num_waiting >= self._max_queued:
            full = f"{self._max_queued} requests"
        elif policy.waiting_bytes - (superseded.num_bytes if superseded else 0) + num_bytes > self._max_queued_bytes:
            full = f"{policy.waiting_bytes} of {self._max_queued_bytes} bytes in requests"
        if full is not None:
            raise OverloadedError(
                f"{full} of policy {policy_name!r} wait, the most that may", retry_after_s=self._overload_retry_s
            )

    def _leave(self, place: _Place, *, answered: bool) -> None:
        now_s, robot, model = self._clock_s(), place.robot, self._models[place.revision]
        model.note_time_inside(now_s - place.entered_s, answered=answered)
        robot.num_inside -= 1
        model.change(-1, now_s)
        used_s = model.shared_s - place.entered_at
        robot.policy.present.note_use(robot.id, now_s, used_s, model=place.revision)
        if robot.waiting is not None and not robot.num_inside and not robot.waiting.in_line:
            self._line_up(robot.waiting, now_s, self._held_s(robot, now_s))
            if robot.waiting.revision != place.revision:
                self._fill(robot.waiting.revision, now_s)
        self._fill(place.revision, now_s, after=place)
        self._forget(robot, now_s)

    def _give_up(self, place: _Place) -> None:
        """The caller was cancelled, perhaps after its turn had come and before it heard of it."""
        if place.is_inside:
            self._leave(place, answered=False)
        elif place.robot.waiting is place:
            self._stop_waiting(place)
            self._forget(place.robot, self._clock_s())

    def _fill(self, revision: str, now_s: float, after: _Place | None = None) -> None:
        """Lets in as many as there is room for; into a model that `after` leaves idle, one of those held back too."""
        model = self._models[revision]
        while model.held_back and model.held_back[0][0] <= now_s:
            place = model.next_held_back()
            if place is not None:
                self._line_up(place, now_s, self._held_s(place.robot, now_s))
        while model.line and model.num_inside < self._capacity(revision):
            _, _, place = heapq.heappop(model.line)
            if not place.is_waiting:
                continue
            place.in_line = False
            if place.deadline_s <= now_s:
                self._end(place, DeadlineExpiredError("the deadline passed while the request waited for its turn"))
                self._forget(place.robot, now_s)
            elif self._may_go(place.robot, now_s):
                if model.is_too_late(place.deadline_s, now_s):
                    self._end(place, _too_late())
                    self._forget(place.robot, now_s)
                    continue
                self._stop_waiting(place)
                self._enter(place, now_s)
            # Otherwise its robot is not alone any more: it lines up again once what the robot has inside has left.
        if after is not None and not after.in_gap and not model.num_inside:
            self._use_gap(model, after.robot, now_s)
        if not model.num_inside and not model.line and not model.held_back:
            del self._models[revision]
            if model.timer is not None:
                model.timer.cancel()

    def _use_gap(self, model: _Model, after: _Robot, now_s: float) -> None:
        """Lets in whoever of those held back has had least and is in nobody's way, but the robot that has just left."""
        passed_over: list[_Place] = []
        ends_s = now_s + model.time_inside_s
        while (place := model.next_held_back()) is not None:
            robot = place.robot
            next_s = robot.policy.present.next_asking_s(now_s, model=place.revision, but=robot.id)
            is_in_the_way = next_s < ends_s
            if robot is not after and place.deadline_s > now_s and not is_in_the_way:
                place.in_line, place.in_gap = False, True
                self._stop_waiting(place)
                self._enter(place, now_s)
                break
            passed_over.append(place)
        for place in passed_over:
            self._line_up(place, now_s, self._held_s(place.robot, now_s))

    def _model(self, revision: str) -> _Model:
        model = self._models.get(revision)
        if model is None:
            model = self._models[revision] = _Model()
        return model

    def _may_go(self, robot: _Robot, now_s: float) -> bool:
        return not robot.num_inside or robot.policy.is_alone(robot, now_s)

    def _held_s(self, robot: _Robot, now_s: float) -> float:
        """For how long a robot's next request is held back."""
        policy = robot.policy
        return 0.0 if policy.is_alone(robot, now_s) else policy.present.too_much_for_s(robot.id, now_s)

    def _line_up(self, place: _Place, now_s: float, held_s: float) -> None:
        model = self._model(place.revision)
        if len(model.line) + len(model.held_back) >= model.prune_at:
            model.prune()
        place.in_line = True
        if not held_s:
            heapq.heappush(model.line, (place.deadline_s, place.arrival, place))
            return
        held_s = min(max(held_s, _SHORTEST_HOLD_S), _LONGEST_HOLD_S)
        heapq.heappush(model.held_back, (now_s + held_s, place.arrival, place))
        if model.timer is None:
            model.timer = asyncio.get_running_loop().call_later(held_s, self._release, place.revision, model)

    def _release(self, revision: str, model: _Model) -> None:
        """Time has passed: whoever was held back for having had too much may have faded."""
        model.timer = None
        if self._models.get(revision) is not model:
            return
        now_s = self._clock_s()
        self._fill(revision, now_s)
        if model.held_back and model.timer is None:
            wait_s = max(_SHORTEST_HOLD_S, model.held_back[0][0] - now_s)
            model.timer = asyncio.get_running_loop().call_later(wait_s, self._release, revision, model)

    def _enter(self, place: _Place, now_s: float) -> None:
        place.is_inside = True
        place.entered_s = now_s
        place.robot.num_inside += 1
        model = self._model(place.revision)
        model.change(1, now_s)
        place.entered_at = model.shared_s
        if place.granted is not None:
            place.granted.set_result(None)

    def _end(self, place: _Place, error: ServiceError | BackendError) -> None:
        self._stop_waiting(place)
        if place.granted is not None and not place.granted.done():
            place.granted.set_exception(error)

    def _stop_waiting(self, place: _Place) -> None:
        policy = place.robot.policy
        place.robot.waiting = None
        policy.num_waiting -= 1
        policy.waiting_bytes -= place.num_bytes

    def _forget(self, robot: _Robot, now_s: float) -> None:
        if not robot.num_inside and robot.waiting is None and robot.policy.robots.pop(robot.id, None) is not None:
            robot.policy.present.note(robot.id, now_s)


def _too_late() -> DeadlineExpiredError:
    return DeadlineExpiredError("the chunk would not have been ready before the deadline")


def _loop_time_s() -> float:
    return asyncio.get_running_loop().time()
