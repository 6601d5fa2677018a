"""What a request looks like between the gateway and Triton: one tensor of bytes each way, and the layout of both.

Owns the names and the order of numbers inside. Imports nothing, because both ends read it: the client with numpy, the
adapter with torch. One tensor and not one for each part: four in and two out cost 0.3 to 0.8 ms of a chunk's 25 more,
where a forward pass had just emptied the caches.

Both are uint8 [1, num_bytes], a batch dimension of 1 in front and the second one ragged, so that the dynamic batcher
joins requests of any body, resolution and history length. Numbers are little-endian, arrays row-major, parts follow
each other without gaps:

    REQUEST  int64   REQUEST_HEAD, then height and width of each frame, in the order of the embodiment's cameras
             float32 state, history states, history actions, previous actions of the chunk being played; then, when
                     there are any of these, the largest guidance weight
             UTF-8   instruction; a BYTES tensor would go through numpy inside Triton
             uint8   pixels of each frame, HWC

A large request may lie in memory of the process that asks (shared_requests.py); REQUEST is then

             int64   ELSEWHERE_HEAD: an open file of a process, which holds `token` (int64) and then the request

    CHUNK    int64   CHUNK_HEAD
             float32 actions [action_horizon, action_dim]
"""

from __future__ import annotations

REQUEST = "REQUEST"
CHUNK = "CHUNK"

# Those from num_previous_actions to method are of real-time chunking: all 0 for a request without it, which has no
# previous action.
REQUEST_HEAD = (
    "embodiment_index",
    "seed",
    "num_inference_steps",
    "num_history_steps",
    "num_instruction_bytes",
    "num_previous_actions",
    "inference_delay",
    "execution_horizon",
    "method",
)
# `method` is a position in this.
METHODS = ("guidance", "prefix")
# In the place of an embodiment_index.
ELSEWHERE = -1
ELSEWHERE_HEAD = ("elsewhere", "process_id", "file_descriptor", "token", "num_bytes")
# In what a model answers that could not get at a request which is elsewhere.
UNREADABLE = "the memory that holds the request cannot be read"
CHUNK_HEAD = ("inference_ns", "batch_size", "action_horizon", "action_dim")
INT64_BYTES = 8
