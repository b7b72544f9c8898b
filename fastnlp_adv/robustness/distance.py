"""How many slips of the finger lie between two texts."""

from __future__ import annotations

__all__ = ["is_farther"]


def is_farther(first: str, second: str, limit: int) -> bool:
    """
    Tell whether more than ``limit`` edits lie between two texts: insertions, deletions, replacements, and swaps of
    neighbours, none of which touches another (the restricted distance of Damerau and Levenshtein).

    :param first: a text.
    :param second: another.
    :param limit: 0 or more. Work grows with it times the length, not with the length squared.
    :return: whether the distance is greater.

    Example::

        >>> is_farther("from", "form", 0), is_farther("from", "form", 1)
        (True, False)
    """
    if abs(len(first) - len(second)) > limit:
        return True
    far = limit + 1
    before: dict[int, int] = {}
    above = {j: j for j in range(min(limit, len(second)) + 1)}
    for i in range(1, len(first) + 1):
        row: dict[int, int] = {}
        for j in range(max(0, i - limit), min(len(second), i + limit) + 1):
            best = above.get(j, far) + 1
            if j:
                best = min(best, row.get(j - 1, far) + 1, above.get(j - 1, far) + (first[i - 1] != second[j - 1]))
            if i > 1 and j > 1 and first[i - 2 : i] == second[j - 1] + second[j - 2]:
                best = min(best, before.get(j - 2, far) + 1)
            row[j] = best
        before, above = above, row
    return above.get(len(second), far) > limit
