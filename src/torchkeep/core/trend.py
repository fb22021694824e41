"""Small statistics of curves: how noisy, how steep, where they lead, and whether two shares differ."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .curves import Floats

_EXPONENTS = np.geomspace(0.05, 3.0, 40)
_FEW = 4


def noise(y: Floats) -> float:
    """Standard deviation of the noise on a smooth curve, out of its second differences; 0 for fewer than four points.

    The median of their sizes is taken, so that a few jumps do not count.
    """
    if len(y) < _FEW:
        return 0.0
    return float(1.4826 * np.median(np.abs(np.diff(y, 2))) / math.sqrt(6))


def smoothed(y: Floats) -> Floats:
    """Means over windows of a tenth of the points, three at least; the last one is where the curve ends."""
    width = min(len(y), max(3, len(y) // 10))
    sums = np.concatenate(([0.0], np.cumsum(y - y.mean())))
    means: Floats = (sums[width:] - sums[:-width]) / width + y.mean()
    return means


def level(y: Floats, points: int = 3) -> float:
    """Where a curve ends: the median of its last points."""
    return float(np.median(y[-points:]))


def slope(x: Floats, y: Floats) -> tuple[float, float]:
    """Steepness of the straight line through the points, and its standard error (inf for fewer than three points)."""
    unit = float(np.abs(y).max(initial=0.0)) or 1.0  # a loss may be 1e200, and its square is no number
    x, y = x - x.mean(), y / unit
    spread = float(x @ x)
    if len(x) < 2 or spread == 0:
        return 0.0, math.inf
    steep = float(x @ y) / spread
    if len(x) < 3:
        return steep * unit, math.inf
    left = y - y.mean() - steep * x
    return steep * unit, math.sqrt(float(left @ left) / (len(x) - 2) / spread) * unit


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """y = a + b t^-c, t counted from 1 at the first point, with what the points say of how sure it is.

    Attributes:
        a, b, c: the best fit.
        fits: (a, b, c) of every exponent that the points do not rule out.
        sd: standard deviation of the points about the best fit.
    """

    a: float
    b: float
    c: float
    fits: tuple[tuple[float, float, float], ...]
    sd: float

    def at(self, t: float) -> tuple[float, float, float]:
        """The value at t, and the ends of an interval that about 19 in 20 such values lie in."""
        values = [a + b * t**-c for a, b, c in self.fits]
        return self.a + self.b * t**-self.c, min(values) - 2.5 * self.sd, max(values) + 2.5 * self.sd


def power_law(x: Floats, y: Floats, floor: float = -math.inf) -> PowerLaw | None:
    """The power law through a falling curve; None where there are fewer than five points or it does not fall.

    For each exponent of a grid a and b follow by least squares, a not below the floor: a loss cannot fall below 0.
    Those whose sum of squares is not significantly above the least (F test at about 1 %, one parameter) are kept.
    """
    if len(x) < _FEW + 1:
        return None
    t = 1 + (x - x[0]) / np.median(np.diff(x))
    found = []
    for c in _EXPONENTS:
        basis = t**-c
        b, _ = slope(basis, y)
        a = float(y.mean() - b * basis.mean())
        if a < floor:
            a, b = floor, float(basis @ (y - floor)) / float(basis @ basis)
        left = y - a - b * basis
        found.append((float(left @ left), a, b, float(c)))
    least, a, b, c = min(found)
    if b <= 0:
        return None
    allowed = least * (1 + 8.0 / max(len(x) - 3, 1))
    fits = tuple(one[1:] for one in found if one[0] <= allowed and one[2] > 0)
    return PowerLaw(a, b, c, fits, math.sqrt(least / max(len(x) - 3, 1)))


def fisher(right: int, of: int, other_right: int, other_of: int) -> float:
    """Fisher's exact test: the probability of shares at least as unlike by chance, two-sided."""
    total, hits = of + other_of, right + other_right
    if not 0 <= right <= of or not 0 <= other_right <= other_of:
        raise ValueError(f"{right} of {of} and {other_right} of {other_of} are no counts")
    whole = math.comb(total, of)

    def chance(k: int) -> float:
        return math.comb(hits, k) * math.comb(total - hits, of - k) / whole

    seen = chance(right)
    ways = range(max(0, of - (total - hits)), min(of, hits) + 1)
    return min(1.0, sum(p for p in map(chance, ways) if p <= seen * (1 + 1e-9)))


def share_error(share: float, of: int) -> float:
    """Standard error of a share of so many examples; never 0, by one example's worth (Agresti and Coull)."""
    share = (share * of + 2) / (of + 4)
    return math.sqrt(share * (1 - share) / (of + 4))
