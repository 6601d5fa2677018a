"""The one error of this package."""

from __future__ import annotations


class WireError(ValueError):
    """A message does not hold what it declares, or an array cannot become one.

    `field` is the path of the field at fault, for example "observation.images[wrist]"; `message` says what came and
    what was expected, without the field.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message
