"""Whether the numbers of a request are such as a body can have: finite, and no larger than anything is counted.

Owns this one check, of states, histories and previous actions alike. Larger ones are a buffer that nobody filled: they
overflow inside a model, and the NaN that comes of it would be held against the revision.
"""

from __future__ import annotations

import numpy as np

from premotor.wire import require_finite
from service.errors import InvalidRequestError


def require_plausible(array: np.ndarray, *, field: str, most: float) -> None:
    """Raises WireError or InvalidRequestError that names the first number which is not finite, or beyond `most`."""
    # One question, which not even NaN passes, while nothing is wrong.
    if not array.size or np.abs(array).max() <= most:
        return
    require_finite(array, field=field)
    beyond = np.abs(array) > most
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(beyond)), array.shape))
    count = int(np.count_nonzero(beyond))
    raise InvalidRequestError(
        field, f"element {list(index)} is {array[index]:g} ({count} in all), expected {-most:.0f} to {most:.0f}"
    )
