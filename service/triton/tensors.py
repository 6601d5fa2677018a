"""What a request looks like between the gateway and Triton: tensor names and the layout of each.

Owns the names and the order of numbers inside META. Imports nothing, because both ends read it: the client with numpy,
the adapter with torch.

Every tensor has a batch dimension of 1 in front and a ragged second one, so that the dynamic batcher joins requests of
any body, resolution and history length:

    PIXELS       uint8 [1, sum of height * width * 3]   frames in the order of the embodiment's cameras, HWC
    INSTRUCTION  uint8 [1, num_bytes]                   UTF-8; a BYTES tensor would go through numpy inside Triton
    FLOATS       float32 [1, n]                         state, history states, history actions, previous actions of the
                                                        chunk being played, each row-major; then, when there are any of
                                                        these, the largest guidance weight
    META         int64 [1, 8 + 2 * num_cameras]         META_FIELDS, then height and width of each frame

    ACTIONS      float32 [1, action_horizon, action_dim]
    TIMING       int64 [1, 2]                           TIMING_FIELDS
"""

from __future__ import annotations

PIXELS = "PIXELS"
INSTRUCTION = "INSTRUCTION"
FLOATS = "FLOATS"
META = "META"
ACTIONS = "ACTIONS"
TIMING = "TIMING"

# The last four are of real-time chunking: all 0 for a request without it, which has no previous action.
META_FIELDS = (
    "embodiment_index",
    "seed",
    "num_inference_steps",
    "num_history_steps",
    "num_previous_actions",
    "inference_delay",
    "execution_horizon",
    "method",
)
# META's `method` is a position in this.
METHODS = ("guidance", "prefix")
TIMING_FIELDS = ("inference_ns", "batch_size")
