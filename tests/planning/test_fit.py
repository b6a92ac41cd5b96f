"""The search for the largest batch."""

import pytest

from jaxdistill.planning.fit import largest


@pytest.mark.parametrize(
    "a_row, fixed, limit",
    [(1.0, 5.0, 100.0), (3.7, 40.0, 1000.0), (0.01, 0.0, 16.0), (90.0, 5.0, 100.0)],
)
@pytest.mark.parametrize("start", [1, 8, 64])
def test_the_largest_within_a_sixteenth_in_few_tries(a_row, fixed, limit, start):
    tries = []

    def measure(rows):
        tries.append(rows)
        needs = fixed + a_row * rows
        return needs if needs < 2 * limit else None

    found, true = largest(measure, start, limit), int((limit - fixed) / a_row)
    assert found <= true <= found + max(1, found // 16) and len(tries) <= 12, (found, true, tries)
    assert len(set(tries)) == len(tries)


def test_nothing_fits():
    assert largest(lambda rows: None, 8, 100.0) == 0


def test_what_needs_the_same_with_any_batch_ends():
    assert largest(lambda rows: 5.0, 8, 100.0) >= 1 << 16
