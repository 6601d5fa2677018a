"""The queue in front of the models: who goes in, in which order, and who is told no."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter

import pytest

from service.backend import BackendUnavailableError
from service.errors import DeadlineExpiredError, OverloadedError, SupersededError
from service.gateway.queue import RequestQueue
from service.gateway.sharing import ALONE_AFTER_S

POLICY, REVISION = "tabletop", "first"
FAR_S = 1000.0


class Models:
    """Models that hold what is inside until they are told to answer, and a clock that a test moves."""

    def __init__(self, *, room: int = 1, max_queued: int = 256, max_queued_bytes: int = 1000) -> None:
        self.now_s = 0.0
        self.room = room
        self.queue = RequestQueue(
            capacity=lambda revision: self.room,
            max_queued=max_queued,
            max_queued_bytes=max_queued_bytes,
            overload_retry_s=0.1,
            clock_s=lambda: self.now_s,
        )
        # Names in the order of going in, and those inside now.
        self.entered: list[str] = []
        self.inside: dict[str, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def ask(
        self,
        name: str,
        *,
        robot: str = "",
        within_s: float = FAR_S,
        revision: str = REVISION,
        policy: str = POLICY,
        num_bytes: int = 1,
    ) -> asyncio.Task[None]:
        """A request; its robot has its name when no other is given."""
        asking = self._ask(name, policy, robot or name, revision, self.now_s + within_s, num_bytes)
        task = asyncio.create_task(asking)
        self._tasks.append(task)
        return task

    async def _ask(self, name: str, policy: str, robot: str, revision: str, deadline_s: float, num_bytes: int) -> None:
        async with self.queue.turn(
            policy=policy, robot_id=robot, revision=revision, deadline_s=deadline_s, num_bytes=num_bytes
        ):
            self.entered.append(name)
            self.inside[name] = asyncio.Event()
            try:
                await self.inside[name].wait()
            finally:
                del self.inside[name]

    async def answer(self, *names: str) -> None:
        for name in names:
            self.inside[name].set()
        await settle()

    async def answer_all(self) -> None:
        """Until nobody is left."""
        while self.inside:
            await self.answer(*self.inside)

    async def end(self) -> None:
        """Everybody gets their turn, those held back too, for whom enough time passes."""
        async with asyncio.timeout(5):
            while not all(task.done() for task in self._tasks):
                await settle()
                await self.answer_all()
                self.now_s += 2 * ALONE_AFTER_S
                await asyncio.sleep(0.01)
            await asyncio.gather(*self._tasks, return_exceptions=True)


async def settle() -> None:
    """Lets every task that can run come to its next wait."""
    for _ in range(10):
        await asyncio.sleep(0)


async def end_of(task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(2):
        await task


async def end_of_all(models: Models, *tasks: asyncio.Task[None]) -> None:
    await settle()
    await models.end()
    for task in tasks:
        await end_of(task)


async def test_no_more_are_inside_than_the_model_has_room_for() -> None:
    models = Models(room=2)
    for name in "abcde":
        models.ask(name)
    await settle()
    assert models.entered == ["a", "b"]
    await models.answer("a")
    assert models.entered == ["a", "b", "c"]
    assert models.queue.num_waiting(POLICY) == 2
    await models.end()


async def test_those_who_wait_go_earliest_deadline_first_and_then_by_arrival() -> None:
    models = Models()
    for name, within_s in (("first", 30), ("late", 50), ("soon", 20), ("later", 55), ("sooner", 10), ("soon too", 20)):
        models.ask(name, within_s=within_s)
    await settle()
    await models.end()
    assert models.entered == ["first", "sooner", "soon", "soon too", "late", "later"]


async def test_each_revision_has_its_own_room_and_policies_that_share_a_revision_share_its_room() -> None:
    models = Models()
    models.ask("first")
    models.ask("second", revision="second")
    models.ask("of another policy", policy="other")
    await settle()
    assert models.entered == ["first", "second"]
    await models.answer("first")
    assert models.entered[-1] == "of another policy"
    await models.end()


async def test_what_has_expired_never_goes_in() -> None:
    models = Models()
    models.ask("inside")
    late, too_late = models.ask("late", within_s=5), models.ask("too late", within_s=0)
    in_time = models.ask("in time", within_s=7)
    await settle()
    with pytest.raises(DeadlineExpiredError):
        await end_of(too_late)
    models.now_s = 6.0
    await models.answer("inside")
    with pytest.raises(DeadlineExpiredError):
        await end_of(late)
    assert models.entered == ["inside", "in time"]
    await models.end()
    await end_of(in_time)


async def test_what_would_expire_inside_does_not_go_in_while_the_model_is_busy() -> None:
    models = Models(room=2)
    models.ask("keeps it busy")
    models.ask("a")
    await settle()
    models.now_s = 4.0
    # From here on a request is known to be inside for 4 s.
    await models.answer("a")
    models.ask("b")
    await settle()
    short, long = models.ask("short", within_s=5), models.ask("long", within_s=9)
    await settle()
    models.now_s = 6.0
    await models.answer("b")
    with pytest.raises(DeadlineExpiredError, match="would not have been ready"):
        await end_of(short)
    assert models.entered[-1] == "long"
    await models.answer("long")
    with pytest.raises(DeadlineExpiredError, match="would not have been ready"):
        await end_of(models.ask("at once", within_s=2))
    assert models.entered[-1] == "long"
    await models.end()
    await end_of(long)


async def test_an_idle_model_is_asked_however_long_it_took_before() -> None:
    models = Models()
    models.ask("slow")
    hopeful = models.ask("hopeful", within_s=9)
    await settle()
    models.now_s = 8.0
    await models.answer("slow")
    assert models.entered[-1] == "hopeful"
    await end_of_all(models, hopeful)


async def test_a_request_that_was_given_up_inside_counts_for_as_long_as_it_was_there() -> None:
    models = Models(room=2)
    models.ask("keeps it busy")
    expires = models.ask("expires")
    await settle()
    models.now_s = 3.0
    expires.cancel()
    await settle()
    with pytest.raises(DeadlineExpiredError, match="would not have been ready"):
        await end_of(models.ask("short", within_s=2))
    long = models.ask("long", within_s=4)
    await end_of_all(models, long)


async def test_one_too_many_is_overloaded_with_a_delay_and_other_policies_are_not() -> None:
    models = Models(max_queued=2)
    for name in ("inside", "waits", "waits too"):
        models.ask(name)
    await settle()
    refused = models.ask("refused")
    models.ask("of another policy", policy="other")
    await settle()
    with pytest.raises(OverloadedError, match="2 requests of policy 'tabletop' wait") as refusal:
        await end_of(refused)
    assert refusal.value.retry_after_s == 0.1
    assert (models.queue.num_waiting(POLICY), models.queue.num_waiting("other")) == (2, 1)
    await models.end()
    assert len(models.entered) == 4


async def test_a_newer_request_of_a_robot_supersedes_its_queued_one_at_once() -> None:
    models = Models()
    inside = models.ask("inside", robot="quick")
    queued = models.ask("older", robot="quick", within_s=5)
    models.ask("somebody else's")
    await settle()
    models.ask("newer", robot="quick", within_s=500)
    await settle()
    with pytest.raises(SupersededError):
        await end_of(queued)
    assert models.queue.num_waiting(POLICY) == 2
    await models.end()
    await end_of(inside)
    assert "older" not in models.entered and "newer" in models.entered


async def test_a_newer_request_supersedes_one_for_another_revision_but_not_one_of_another_policy() -> None:
    models = Models()
    models.ask("inside")
    models.ask("inside too", revision="second")
    for_first = models.ask("for first", robot="quick")
    elsewhere = models.ask("elsewhere", robot="quick", policy="other")
    models.ask("for second", robot="quick", revision="second")
    await settle()
    with pytest.raises(SupersededError):
        await end_of(for_first)
    assert not elsewhere.done()
    await models.end()
    assert sorted(models.entered) == ["elsewhere", "for second", "inside", "inside too"]


async def test_in_a_full_queue_a_robot_may_still_put_a_newer_observation_in_the_place_of_its_own() -> None:
    models = Models(max_queued=1)
    models.ask("inside")
    older = models.ask("older", robot="quick")
    await settle()
    models.ask("newer", robot="quick")
    await settle()
    with pytest.raises(SupersededError):
        await end_of(older)
    await models.end()
    assert models.entered == ["inside", "newer"]


async def test_no_more_bytes_of_a_policy_wait_than_may_and_the_refusal_says_when_to_ask_again() -> None:
    models = Models(max_queued_bytes=100)
    # What goes in at once does not wait, however large it is.
    models.ask("inside", num_bytes=1000)
    models.ask("first", num_bytes=60)
    await settle()
    second = models.ask("second", num_bytes=41)
    await settle()
    with pytest.raises(OverloadedError, match="60 of 100 bytes in requests of policy 'tabletop' wait") as refused:
        await end_of(second)
    assert refused.value.retry_after_s == 0.1
    models.ask("of another policy", policy="other", num_bytes=100)
    models.ask("third", num_bytes=40)
    await models.answer("inside")
    # Whoever went in waits no more.
    models.ask("fourth", num_bytes=60)
    await settle()
    await models.end()
    assert sorted(models.entered) == ["first", "fourth", "inside", "of another policy", "third"]


async def test_a_newer_observation_takes_the_bytes_of_the_one_it_supersedes_and_no_more_than_are_left() -> None:
    models = Models(max_queued_bytes=100)
    models.ask("inside")
    models.ask("other's", num_bytes=50)
    older = models.ask("older", robot="quick", num_bytes=30)
    await settle()
    too_large = models.ask("too large", robot="quick", num_bytes=51)
    await settle()
    with pytest.raises(OverloadedError):
        await end_of(too_large)
    # What waited is not lost for it.
    assert not older.done()
    models.ask("newer", robot="quick", num_bytes=50)
    await settle()
    with pytest.raises(SupersededError):
        await end_of(older)
    await models.end()
    assert models.entered == ["inside", "other's", "newer"]


async def test_whoever_stops_waiting_gives_the_bytes_back() -> None:
    models = Models(max_queued_bytes=100)
    for way in ("cancelled", "dismissed", "expired"):
        models.ask(f"inside, {way}")
        waiting = models.ask(way, num_bytes=100, within_s=10.0)
        await settle()
        if way == "cancelled":
            waiting.cancel()
        elif way == "dismissed":
            models.queue.dismiss(REVISION, BackendUnavailableError("restarting"))
        else:
            models.now_s += 11.0
        await settle()
        await models.answer_all()
        assert way not in models.entered and waiting.done()
        with contextlib.suppress(asyncio.CancelledError, BackendUnavailableError, DeadlineExpiredError):
            await waiting


async def test_a_robot_that_is_alone_may_fill_the_model() -> None:
    models = Models(room=3)
    for name in ("earlier", "earlier too"):
        models.ask(name, robot="only")
        await settle()
        await models.answer(name)
    for name in ("1", "2", "3", "4"):
        models.ask(name, robot="only")
    await settle()
    assert list(models.inside) == ["1", "2", "3"]
    await models.answer("2")
    assert list(models.inside) == ["1", "3", "4"]
    await models.end()


async def test_a_robot_in_company_has_one_request_inside_also_while_nobody_else_waits() -> None:
    models = Models(room=3)
    models.ask("other's")
    await settle()
    await models.answer("other's")
    models.now_s = ALONE_AFTER_S - 1
    models.ask("1", robot="quick")
    models.ask("2", robot="quick")
    await settle()
    assert list(models.inside) == ["1"]
    await models.answer("1")
    assert list(models.inside) == ["2"]
    # Nobody else has asked for long enough: it is alone again.
    models.now_s = ALONE_AFTER_S
    models.ask("3", robot="quick")
    await settle()
    assert list(models.inside) == ["2", "3"]
    await models.end()


async def test_one_inside_counts_over_all_revisions_of_the_policy() -> None:
    models = Models(room=2)
    models.ask("other's")
    models.ask("on first", robot="quick")
    models.ask("on second", robot="quick", revision="second")
    await settle()
    assert list(models.inside) == ["other's", "on first"]
    await models.answer("on first")
    assert list(models.inside) == ["other's", "on second"]
    await models.end()


async def test_a_robot_with_several_inside_when_another_comes_finishes_them_and_goes_on_with_one() -> None:
    models = Models(room=2)
    for name in ("1", "2", "3"):
        models.ask(name, robot="quick", within_s=1)
    models.ask("other's")
    await settle()
    assert list(models.inside) == ["1", "2"]
    # Its third has the earlier deadline, and waits all the same: one of its own is still inside.
    await models.answer("1")
    assert list(models.inside) == ["2", "other's"]
    await models.answer("2")
    assert list(models.inside) == ["other's", "3"]
    await models.end()


@pytest.mark.parametrize("room", [1, 2, 16])
async def test_a_robot_that_asks_50_times_as_fast_goes_before_another_once_at_most(room: int) -> None:
    models, rng = Models(room=room), random.Random(0)
    slow = [f"slow-{number}" for number in range(8)]
    num_served_before: dict[str, int] = {}
    most_inside = 0
    for turn in range(400):
        models.now_s += 0.004
        # 250 a second, and eight robots of five a second each.
        models.ask(f"quick {turn}", robot="quick", within_s=1.0)
        if turn % 50 < 8:
            asker = slow[turn % 50]
            name = f"{asker} {turn}"
            models.ask(name, robot=asker, within_s=1.0)
            num_served_before[name] = sum(entry.startswith("quick") for entry in models.entered)
        await settle()
        if turn > 50:
            most_inside = max(most_inside, sum(name.startswith("quick") for name in models.inside))
        # The model answers at the pace of what the slow ones ask and twice that again.
        if models.inside and rng.random() < 0.5:
            await models.answer(next(iter(models.inside)))
    entered = models.entered.copy()
    overtaken = [
        sum(entry.startswith("quick") for entry in entered[: entered.index(name)]) - before
        for name, before in num_served_before.items()
        if name in entered
    ]
    assert len(overtaken) == len(num_served_before), "every slow robot was served every time"
    # The one that is going in when the other comes, at most.
    assert max(overtaken) <= 1
    assert most_inside == 1
    await models.end()


async def work(models: Models, name: str, *, robot: str = "", for_s: float) -> asyncio.Task[None]:
    """One request from its arrival to its end, the model working `for_s` on it."""
    task = models.ask(name, robot=robot)
    await settle()
    models.now_s += for_s
    await models.answer(name)
    return task


async def in_company_with_too_much(models: Models, robot: str) -> None:
    """Three robots were there lately, and one of them has kept the model busy since."""
    for name in ("other", "third"):
        await work(models, f"{name} at first", robot=name, for_s=0.02)
    for number in range(100):
        await work(models, f"{robot} {number}", robot=robot, for_s=0.05)
        if models.queue.num_waiting(POLICY):
            return
        late = models.ask(f"{robot} again {number}", robot=robot)
        await settle()
        if models.queue.num_waiting(POLICY):
            return
        await models.answer(f"{robot} again {number}")
        await end_of(late)
    raise AssertionError("it was never held back")


async def test_whoever_keeps_a_model_busy_goes_when_another_s_chunk_leaves_it_idle() -> None:
    models = Models(room=4)
    await in_company_with_too_much(models, "quick")
    assert not models.inside, "the model is idle and the request waits all the same"
    models.ask("other's", robot="other")
    await settle()
    assert list(models.inside) == ["other's"], "one within its share goes at once"
    await models.answer("other's")
    (gap,) = models.inside
    assert gap.startswith("quick again")
    # What went into the gap opens none: another that has had too much does not follow it.
    models.ask("quick, next", robot="quick")
    await models.answer(gap)
    assert not models.inside
    await models.end()


@pytest.mark.parametrize(("gap_s", "goes"), [(0.25, True), (0.05, False)])
async def test_a_gap_is_used_only_when_nobody_is_expected_before_its_end(gap_s: float, goes: bool) -> None:
    models, period_s, inside_s = Models(room=4), 0.4, 0.1
    await in_company_with_too_much(models, "quick")
    # A long one in a gap: it has far too much from now on.
    await work(models, "other's first", robot="other", for_s=0.0)
    models.now_s += 1.0
    await models.answer(*models.inside)
    models.ask("quick, waiting", robot="quick")
    # "third" asks twice, a period apart, while "other" keeps the model from being left idle.
    models.ask("other's", robot="other")
    for next_s in (period_s, period_s - gap_s):
        await work(models, f"third's {next_s}", robot="third", for_s=inside_s)
        models.now_s += next_s - inside_s
    assert list(models.inside) == ["other's"]
    await models.answer("other's")
    assert ("quick, waiting" in models.inside) is goes
    await models.end()


async def test_a_gap_is_left_to_those_within_their_share_while_any_are_there() -> None:
    models = Models(room=4)
    await in_company_with_too_much(models, "quick")
    for name in ("other", "third"):
        models.ask(f"{name}'s", robot=name)
    await settle()
    await models.answer("other's")
    assert list(models.inside) == ["third's"]
    await models.answer("third's")
    assert len(models.inside) == 1 and next(iter(models.inside)).startswith("quick")
    await models.end()


async def test_having_had_too_much_fades_without_anybody_asking() -> None:
    models = Models(room=4)
    await in_company_with_too_much(models, "quick")
    models.now_s += 3.0
    # The queue's own timer looks at it again every quarter of a second of true time.
    await asyncio.sleep(0.4)
    assert models.inside
    await models.end()


async def test_robots_that_are_alike_are_never_held_back_however_busy_the_model() -> None:
    models, num_held_back = Models(room=16), 0
    for turn in range(500):
        models.ask(f"{turn}", robot=f"robot {turn % 8}")
        await settle()
        models.now_s += 0.02
        num_held_back += models.queue.num_waiting(POLICY)
        await models.answer(*models.inside)
    assert not num_held_back
    await models.end()


async def test_whoever_is_the_last_on_a_revision_and_the_first_on_the_next_is_not_held_back() -> None:
    """As in every swap under robots that ask without a pause: each was held back for up to two seconds."""
    models, num_held_back = Models(room=16), 0
    for turn in range(120):
        for robot in range(8):
            # One goes over to the next every 12 turns, and from turn 84 on nobody is left.
            revision = "first" if turn < 12 * robot else "second"
            models.ask(f"{turn} {robot}", robot=f"robot {robot}", revision=revision)
        await settle()
        models.now_s += 0.22
        num_held_back += models.queue.num_waiting(POLICY)
        await models.answer(*models.inside)
    assert not num_held_back
    await models.end()


async def test_a_robot_that_is_alone_is_never_held_back() -> None:
    models = Models()
    for turn in range(200):
        task = await work(models, f"{turn}", robot="only", for_s=0.1)
        await end_of(task)
    assert len(models.entered) == 200
    await models.end()


async def test_of_a_policy_that_nobody_asks_any_more_nothing_is_kept_once_another_comes() -> None:
    models = Models()
    await end_of_all(models, models.ask("a", policy="deleted"))
    models.ask("waits", policy="other", revision="second")
    models.now_s += ALONE_AFTER_S
    models.ask("b", policy="newest", revision="third")
    await settle()
    assert set(models.queue._policies) == {"other", "newest"}


async def test_a_cancelled_wait_keeps_no_place() -> None:
    models = Models(max_queued=2)
    models.ask("inside")
    gone, stays = models.ask("gone", within_s=10), models.ask("stays", within_s=20)
    await settle()
    gone.cancel()
    await settle()
    assert gone.cancelled() and models.queue.num_waiting(POLICY) == 1
    models.ask("takes the place")
    await models.answer("inside")
    assert list(models.inside) == ["stays"]
    await models.end()
    await end_of(stays)
    assert models.entered == ["inside", "stays", "takes the place"]


async def test_a_turn_that_comes_to_somebody_who_is_cancelled_goes_to_the_next() -> None:
    models = Models()
    models.ask("inside")
    chosen, following = models.ask("chosen", within_s=10), models.ask("following", within_s=20)
    await settle()
    models.inside["inside"].set()
    await asyncio.sleep(0)
    # The turn has been granted, the task has not run since.
    chosen.cancel()
    await settle()
    assert chosen.cancelled()
    assert list(models.inside) == ["following"]
    await models.end()
    await end_of(following)


async def test_a_newer_request_may_follow_one_that_was_cancelled_and_does_not_know_it_yet() -> None:
    models = Models()
    models.ask("inside")
    gone = models.ask("gone", robot="quick")
    await settle()
    gone.cancel()
    newer = models.ask("newer", robot="quick")
    await settle()
    assert gone.cancelled() and models.queue.num_waiting(POLICY) == 1
    await models.end()
    await end_of(newer)


async def test_a_cancelled_request_inside_makes_room() -> None:
    models = Models()
    inside = models.ask("inside")
    models.ask("next")
    await settle()
    inside.cancel()
    await settle()
    assert list(models.inside) == ["next"]
    await models.end()


async def test_dismissing_a_revision_ends_every_wait_for_it_and_no_other() -> None:
    models = Models()
    models.ask("inside", robot="quick")
    waits = [models.ask("in line"), models.ask("behind its own", robot="quick")]
    models.ask("on second")
    models.ask("inside second", revision="second")
    other = models.ask("waits for second", revision="second")
    await settle()
    models.queue.dismiss(REVISION, BackendUnavailableError("restarting", retry_after_s=1.0))
    ends = await asyncio.wait_for(asyncio.gather(*waits, return_exceptions=True), 5)
    assert [str(end) for end in ends] == ["restarting"] * 2
    assert not other.done()
    await models.end()
    await end_of(other)


async def test_the_room_that_errors_leave_is_used_again() -> None:
    models = Models()

    async def fails() -> None:
        async with models.queue.turn(policy=POLICY, robot_id="fails", revision=REVISION, deadline_s=FAR_S, num_bytes=1):
            raise RuntimeError("told to fail")

    with pytest.raises(RuntimeError):
        await fails()
    models.ask("next")
    await settle()
    assert list(models.inside) == ["next"]
    await models.end()


async def test_a_robot_that_supersedes_itself_before_a_stuck_model_leaves_nothing_behind_in_the_line() -> None:
    models = Models()
    models.ask("stuck")
    for number in range(2000):
        models.ask(f"quick {number}", robot="quick")
        await asyncio.sleep(0)
    await settle()
    assert models.queue.num_waiting(POLICY) == 1
    assert len(models.queue._models[REVISION].line) < 100
    await models.end()


async def test_whatever_comes_the_room_is_kept_and_everything_is_given_back() -> None:
    models, rng = Models(room=3, max_queued=6), random.Random(1)
    tasks: list[asyncio.Task[None]] = []
    for turn in range(3000):
        models.now_s += rng.choice([0.0, 0.1, 0.5])
        match rng.randrange(4):
            case 0 | 1:
                robot, policy = f"robot-{rng.randrange(8)}", rng.choice([POLICY, "other"])
                name = f"{policy} {robot} {rng.choice(['first', 'second'])} {turn}"
                tasks.append(
                    models.ask(
                        name, robot=robot, policy=policy, revision=name.split()[2], within_s=rng.choice([0.3, 2.0, 9.0])
                    )
                )
            case 2 if models.inside:
                models.inside[rng.choice(list(models.inside))].set()
            case 3 if tasks:
                tasks.pop(rng.randrange(len(tasks))).cancel()
        if rng.random() < 0.01:
            models.queue.dismiss("second", BackendUnavailableError("restarting"))
        if rng.random() < 0.7:
            await settle()
            inside = [name.split() for name in models.inside]
            assert max(Counter(revision for _, _, revision, _ in inside).values(), default=0) <= 3
            assert max(models.queue.num_waiting(POLICY), models.queue.num_waiting("other")) <= 6
    await models.end()
    assert (models.queue.num_waiting(POLICY), models.queue.num_waiting("other")) == (0, 0)
    # All room is free, and no robot is taken for one that still has something inside.
    for number in range(3):
        models.ask(f"last {number}", robot=f"robot-{number}")
    await settle()
    assert len(models.inside) == 3
    await models.end()
