"""One question at a time, asked beside the control loop, and the connection that it needs.

Owns a thread, the client and stream that it asks through, what each failure means for the next question, and the
handshake: after a break the policy is described again, and a changed schema ends the asking. Does not own when to ask
or what is played meanwhile (control_loop.py).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Literal

import grpc

from premotor.client.asking import Answer, News, Question
from premotor.client.back_off import BackOff
from premotor.client.channel import DEFAULT_STREAM_TIMEOUT_S
from premotor.client.chunks import Chunk
from premotor.client.control_clock import Clock
from premotor.client.description import PolicyDescription
from premotor.client.errors import (
    ClosedError,
    DeadlineExceededError,
    FixRequestError,
    ObservationSupersededError,
    PolicyError,
    ProtocolError,
    RetryableError,
    SchemaChangedError,
)
from premotor.client.events import AskingStopped, Failed, Reconnected, SwapSeen
from premotor.client.sync_client import PolicyClient
from premotor.client.sync_stream import ChunkStream
from premotor.client.underruns import UnderrunAccount
from premotor.v1 import policy_pb2

Transport = Literal["stream", "unary"]
TRANSPORTS: tuple[Transport, ...] = ("stream", "unary")
# One lost answer is a lost packet. Two in a row may be a connection that no longer goes anywhere, which TCP alone would
# take a quarter of an hour to notice.
TIMEOUTS_BEFORE_RECONNECTING = 2
_JOIN_TIMEOUT_S = 5.0


class Asker:
    """Asks a gateway in a thread of its own. `open` before use, `close` after."""

    def __init__(
        self,
        connect: Callable[[], PolicyClient],
        *,
        policy: str,
        revision: str,
        transport: Transport,
        back_off: BackOff,
        generator: random.Random,
        clock: Clock,
        handshake_timeout_s: float,
    ) -> None:
        """`revision` is the one that questions are pinned to, "" for whichever serves."""
        if transport not in TRANSPORTS:
            raise ValueError(f"transport is {transport!r}, expected one of {', '.join(TRANSPORTS)}")
        self._connect, self._policy, self._pinned, self._transport = connect, policy, revision, transport
        self._back_off, self._generator, self._clock = back_off, generator, clock
        self._handshake_timeout_s = handshake_timeout_s
        self._changed = threading.Condition()
        self._question: Question | None = None
        self._is_busy = False
        self._closing = threading.Event()
        self._news: SimpleQueue[News] = SimpleQueue()
        self._client: PolicyClient | None = None
        self._stream: ChunkStream | None = None
        self._stream_began_s = 0.0
        self._description: PolicyDescription | None = None
        # Of the last chunk, "" before the first.
        self._revision = self._episode_id = ""
        # All that have answered.
        self._revisions: set[str] = set()
        self._underruns = UnderrunAccount()
        self._num_failures = 0
        self._num_timeouts = 0
        self._stopped: AskingStopped | None = None
        self._thread = threading.Thread(target=self._run, name="premotor-asker", daemon=True)

    def open(self) -> PolicyDescription:
        """Connects, asks what the policy is, and starts the thread. Raises what the first handshake raises."""
        try:
            description = self._connected().get_policy(self._policy, timeout_s=self._handshake_timeout_s)
        except BaseException:
            self._disconnect()
            raise
        self._description = description
        self._thread.start()
        return description

    def close(self) -> None:
        """Ends the question in flight and the thread. Closing twice is harmless."""
        with self._changed:
            self._closing.set()
            client = self._client
            self._changed.notify_all()
        if client is not None:
            client.close()
        if self._thread.is_alive():
            self._thread.join(_JOIN_TIMEOUT_S)

    def is_free(self) -> bool:
        with self._changed:
            return not (self._is_busy or self._question or self._closing.is_set())

    def ask(self, question: Question) -> None:
        with self._changed:
            self._question = question
            self._changed.notify_all()

    def take(self) -> list[News]:
        news: list[News] = []
        while True:
            try:
                news.append(self._news.get_nowait())
            except Empty:
                # For every later episode as well: there is nobody left who would answer it.
                return [*news, self._stopped] if self._stopped is not None else news

    def _run(self) -> None:
        try:
            while (question := self._next_question()) is not None:
                self._exchange(question)
        except ClosedError:
            pass
        # The thread's outermost edge: an error that ended it unseen would leave a robot waiting for good.
        except Exception as error:
            self._stopped = AskingStopped(step=0, error=error)
        finally:
            self._disconnect()

    def _next_question(self) -> Question | None:
        with self._changed:
            self._is_busy = False
            while self._question is None and not self._closing.is_set():
                self._changed.wait()
            question, self._question = self._question, None
            self._is_busy = True
            return None if self._closing.is_set() else question

    def _exchange(self, question: Question) -> None:
        """Asks one question and does what its outcome calls for before the next. Raises what ends the asking."""
        try:
            chunk = self._predict(question)
            self._check_revision(question, chunk)
        except PolicyError as error:
            if self._closing.is_set():
                raise ClosedError("the player was closed") from error
            self._underruns.note(error, self._stream)
            self._news.put(Answer(question=question, outcome=error, arrived_s=self._clock.now_s()))
            self._recover(error)
            return
        self._underruns.note(chunk, self._stream)
        self._num_failures = self._num_timeouts = 0
        self._news.put(Answer(question=question, outcome=chunk, arrived_s=self._clock.now_s()))

    def _predict(self, question: Question) -> Chunk:
        assert self._client is not None
        arguments = question.arguments.copy()
        if (num_new := arguments.get("num_underruns")) is not None:
            arguments["num_underruns"] = self._underruns.tell(num_new)
        if not self._pinned and arguments["episode_id"] == self._episode_id:
            # A client that was connected since knows nothing of it.
            arguments["episode_revision"] = self._revision
        timeout_s = question.expires_s - self._clock.now_s()
        if timeout_s <= 0:
            raise DeadlineExceededError("the observation was too old before it could be sent")
        if self._transport == "unary":
            return self._client.predict_chunk(timeout_s=timeout_s, **arguments)
        self._renew_stream(self._client)
        assert self._stream is not None
        return self._stream.receive(self._stream.send(timeout_s=timeout_s, **arguments))

    def _renew_stream(self, client: PolicyClient) -> None:
        """A stream has an end; the next one is begun between two questions, long before that."""
        now_s = self._clock.now_s()
        if self._stream is not None and now_s - self._stream_began_s > DEFAULT_STREAM_TIMEOUT_S / 2:
            self._stream.close()
            self._stream = None
        if self._stream is None:
            self._stream, self._stream_began_s = client.stream().__enter__(), now_s

    def _check_revision(self, question: Question, chunk: Chunk) -> None:
        """Whatever revision answers must be one of the schema that the robot was built for."""
        assert self._description is not None
        if chunk.schema_digest:
            self._check_schema(chunk.schema_digest, chunk.revision)
        elif not self._pinned and chunk.revision not in (self._description.revision, *self._revisions):
            self._check_undeclared()
        embodiment = self._description.embodiment(question.arguments.get("embodiment", ""))
        expected = self._description.action_horizon, embodiment.action_dim
        if chunk.actions.shape != expected:
            raise ProtocolError(
                f"revision {chunk.revision} answered with actions of shape {list(chunk.actions.shape)}, "
                f"expected {list(expected)}",
                request_id=chunk.request_id,
            )
        self._note_revision(question.arguments["episode_id"], chunk.revision)

    def _check_undeclared(self) -> None:
        """Of a server that does not say whose schema an answer is, all that can be asked is the main revision's."""
        assert self._client is not None
        main = self._client.get_policy(self._policy, timeout_s=self._handshake_timeout_s)
        self._check_schema(main.schema_digest, main.revision)

    def _note_revision(self, episode_id: str, revision: str) -> None:
        """In a split an episode may go to another revision than the one before it did, which is no swap."""
        previous, is_same_episode = self._revision, episode_id == self._episode_id
        if previous not in ("", revision) and (is_same_episode or revision not in self._revisions):
            self._news.put(SwapSeen(step=0, previous_revision=previous, revision=revision))
        self._revision, self._episode_id = revision, episode_id
        self._revisions.add(revision)

    def _recover(self, error: PolicyError) -> None:
        """Waits, connects again or gives up. A newer question is not taken before this is over."""
        if isinstance(error, (FixRequestError, ProtocolError, SchemaChangedError)):
            raise error
        self._num_timeouts = self._num_timeouts + 1 if _is_silence(error) else 0
        if self._is_lost(error):
            self._reconnect(error)
        elif isinstance(error, (DeadlineExceededError, ObservationSupersededError)):
            self._news.put(Failed(step=0, error=error, retry_delay_s=0.0))
        else:
            self._wait(error)

    def _is_lost(self, error: PolicyError) -> bool:
        """Whether the connection, and not the one question, is at fault."""
        if isinstance(error, RetryableError):
            # Overload is what another connection cannot help. A stream that was ended tidily carries no status.
            return error.code is not grpc.StatusCode.RESOURCE_EXHAUSTED
        return isinstance(error, ClosedError) or self._num_timeouts >= TIMEOUTS_BEFORE_RECONNECTING

    def _reconnect(self, error: PolicyError) -> None:
        lost_s, num_attempts = self._clock.now_s(), 0
        while True:
            self._wait(error)
            self._disconnect()
            num_attempts += 1
            try:
                revision = self._found_again()
                break
            except (SchemaChangedError, ProtocolError):
                raise
            except FixRequestError as found:
                # A gateway that has just started may not know its policies yet; any other refusal is meant.
                if found.code is not grpc.StatusCode.NOT_FOUND:
                    raise
                error = found
            except PolicyError as found:
                error = found
        self._num_failures = self._num_timeouts = 0
        self._news.put(
            Reconnected(
                step=0,
                away_s=self._clock.now_s() - lost_s,
                num_attempts=num_attempts,
                revision=revision,
            )
        )

    def _wait(self, error: PolicyError) -> None:
        """As long as the server asks for, or the back-off, whichever is longer. Raises ClosedError when closed."""
        self._num_failures += 1
        delay_s = self._back_off.delay_s(self._num_failures, self._generator)
        if isinstance(error, RetryableError) and error.retry_delay_s is not None:
            delay_s = max(delay_s, error.retry_delay_s)
        self._news.put(Failed(step=0, error=error, retry_delay_s=delay_s))
        if self._clock.wait(self._closing, delay_s):
            raise ClosedError("the player was closed")

    def _connected(self) -> PolicyClient:
        client = self._connect()
        with self._changed:
            self._client = client
            if self._closing.is_set():
                raise ClosedError("the player was closed")
        return client

    def _found_again(self) -> str:
        """The revision that answers this robot now. Raises SchemaChangedError where that is one of another schema.

        A pinned revision goes on whatever serves beside it. What is described is the one that serves, so nothing is
        concluded from that; every answer says its own schema.
        """
        client = self._connected()
        if not self._pinned:
            main = client.get_policy(self._policy, timeout_s=self._handshake_timeout_s)
            self._check_schema(main.schema_digest, main.revision)
            return main.revision
        served = client.list_policies(timeout_s=self._handshake_timeout_s)
        if all(policy.name != self._policy for policy in served):
            raise FixRequestError(f"policy {self._policy!r} is not served", code=grpc.StatusCode.NOT_FOUND)
        return self._pinned

    def _check_schema(self, schema_digest: str, revision: str) -> None:
        assert self._description is not None
        if schema_digest != self._description.schema_digest:
            raise SchemaChangedError(
                f"policy {self._policy!r} now has schema {schema_digest[:12]} (revision {revision}), this robot began "
                f"with {self._description.schema_digest[:12]} (revision {self._description.revision}): nothing is "
                "played any more; start the player again"
            )

    def _disconnect(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        with self._changed:
            client, self._client = self._client, None
        if client is not None:
            client.close()


def _is_silence(error: PolicyError) -> bool:
    """Whether nothing came in time. A gateway that says itself that it was too late can be reached."""
    return isinstance(error, DeadlineExceededError) and error.reason == policy_pb2.RequestError.REASON_UNSPECIFIED
