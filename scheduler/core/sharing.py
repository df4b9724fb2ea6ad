"""Max-min fairness: whoever wants little gets it, and the others get equally much of the rest.

See Bertsekas and Gallager, Data Networks, section 6.5.2.
"""

from __future__ import annotations

from collections.abc import Sequence


def max_min(total: float, demands: Sequence[float]) -> list[float]:
    """Return fair shares of `total`, none larger than its demand (which may be infinite), in the order of `demands`."""
    shares = [0.0] * len(demands)
    left = total
    ascending = sorted(range(len(demands)), key=demands.__getitem__)
    for position, index in enumerate(ascending):
        shares[index] = min(demands[index], left / (len(demands) - position))
        left -= shares[index]
    return shares


def deal(total: int, wants: Sequence[int]) -> list[int]:
    """Return fair whole shares of `total`; what cannot be divided goes to the first ones."""
    shares = [0] * len(wants)
    left = total
    while hungry := [index for index, want in enumerate(wants) if shares[index] < want]:
        if left <= 0:
            break
        each = left // len(hungry)
        for index in hungry if each else hungry[:left]:
            more = min(each or 1, wants[index] - shares[index])
            shares[index] += more
            left -= more
    return shares
