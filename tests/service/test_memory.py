"""A model that does not fit is refused before it is loaded, with both numbers."""

from __future__ import annotations

import pytest

from service.memory import TooLittleMemoryError, check_fits, free_bytes, needed_bytes


def test_a_copy_takes_more_than_its_weights_and_a_process_of_its_own_more_still():
    assert needed_bytes(1000, own_process=False) > 2000
    assert needed_bytes(1000, own_process=True) > needed_bytes(1000, own_process=False) + 100_000_000


def test_what_does_not_fit_is_refused_with_what_is_free_and_what_it_takes():
    with pytest.raises(TooLittleMemoryError, match="100 MB are free, a second copy takes about 200 MB"):
        check_fits(200_000_000, 100_000_000)
    check_fits(100, 100)
    check_fits(10**15, None)


def test_this_machine_says_what_is_free():
    free = free_bytes("cpu")
    assert free is None or 1_000_000 < free < 10**14
