"""Python's garbage collector, kept from stopping a process that answers robots.

Now and then a full collection walks every object there is. What start-up leaves, modules and schemas above all, is
most of them and stays until the process ends: 0.15 s of walking, measured in the gateway, for nothing.
"""

from __future__ import annotations

import gc


def exempt_what_is_there() -> None:
    """Later collections leave what is there now alone. Not for what is to be freed with its cycles, such as a model."""
    gc.collect()
    gc.freeze()
