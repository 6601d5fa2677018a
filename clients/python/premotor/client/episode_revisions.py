"""Which revision each robot's episode is on, so that a gateway that has never heard of the episode goes on with it.

Owns what a client remembers of that between two requests. Does not own the decision, which is the gateway's.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from premotor.v1 import policy_pb2

# Beyond it the robot that has not asked for longest is forgotten.
MAX_ROBOTS = 4096


class EpisodeRevisions:
    """One episode for each robot of a policy: asking for another one forgets it. Thread-safe.

    A request that pins a revision is left as it is, and its answer says nothing of the episode.
    """

    def __init__(self) -> None:
        self._changed = threading.Lock()
        # Policy and robot to episode and revision, which is empty before the first chunk; the longest silent first.
        self._episodes: OrderedDict[tuple[str, str], tuple[str, str]] = OrderedDict()

    def tell(self, request: policy_pb2.PredictChunkRequest) -> None:
        """Puts what is known into a request that is about to be sent; else it keeps what its caller knows."""
        if request.revision:
            return
        robot = request.policy, request.robot_id
        with self._changed:
            episode_id, revision = self._episodes.pop(robot, ("", ""))
            if episode_id != request.episode_id:
                revision = ""
            self._episodes[robot] = request.episode_id, revision
            if len(self._episodes) > MAX_ROBOTS:
                self._episodes.popitem(last=False)
        if revision:
            request.episode_revision = revision

    def note(self, request: policy_pb2.PredictChunkRequest, revision: str) -> None:
        """The request's chunk came, of `revision`. One of an episode that is over is too late to say anything."""
        robot = request.policy, request.robot_id
        with self._changed:
            episode_id, _ = self._episodes.get(robot, ("", ""))
            if not request.revision and episode_id == request.episode_id:
                self._episodes[robot] = episode_id, revision
