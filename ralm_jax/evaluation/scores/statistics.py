"""How sure a difference is: intervals, paired tests, spread over seeds.

Bootstrap intervals are Efron's percentile intervals; the paired tests are the bootstrap test of
Koehn (2004, https://aclanthology.org/W04-3250) and Fisher's randomisation test, which flips the
signs of differences (Smucker et al. 2007, https://doi.org/10.1145/1321440.1321528). All resample
questions: they say nothing of another training seed, which `spread` is for. ValueError is raised
for no values, or one that is not finite, and for systems with different numbers of them.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np

RESAMPLES = 10_000
# Values drawn at a time; bounds the memory of large question sets.
_CHUNK_VALUES = 1 << 22
# All 2**n signs are gone through up to here.
_EXACT_UP_TO = 16
# Means of the same numbers in another order differ by rounding alone.
_TOLERANCE = 1e-12
# Below, resamples hardly differ, and their p-value says little.
_BOOTSTRAP_FROM = 10


@dataclasses.dataclass(frozen=True)
class Interval:
  """A mean and where it would lie on other questions of the same kind."""

  mean: float
  low: float
  high: float
  count: int


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Two systems on the same questions."""

  difference: float  #: mean of the first minus mean of the second
  low: float  #: end of its bootstrap interval
  high: float
  #: Share of resamples, twice, in which the difference is not on the side where it is found;
  #: at most 1. None where the systems differ on fewer than 10 questions, too few to resample.
  bootstrap_p: float | None
  permutation_p: float  #: two-sided, of the sign-flip test
  exact: bool  #: whether that is exact, not drawn
  count: int  #: of questions that both have a value for


@dataclasses.dataclass(frozen=True)
class Spread:
  """Of one number over several runs."""

  mean: float
  deviation: float | None  #: of a sample (n - 1); None of a single number
  count: int


def bootstrap_means(values: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
  """Means of resamples with replacement.

  The columns of a matrix are resampled together. The same seed draws the same
  rows for as many values.
  """
  values = _checked(values)
  if resamples < 1:
    raise ValueError(f'resamples must be at least 1, got {resamples}.')
  rng = np.random.default_rng(seed)
  columns = np.ascontiguousarray(np.atleast_2d(values.T))
  means = np.empty((resamples, len(columns)))
  n = values.shape[0]
  step = max(1, _CHUNK_VALUES // n)
  for first in range(0, resamples, step):
    rows = rng.integers(0, n, (min(step, resamples - first), n), np.int32)
    for j, column in enumerate(columns):
      means[first : first + len(rows), j] = column[rows].mean(axis=1)
  return means if values.ndim == 2 else means[:, 0]


def bootstrap_interval(
  values: Sequence[float] | np.ndarray,
  *,
  confidence: float = 0.95,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> Interval:
  """Percentile interval of a mean of one value a question."""
  values = _checked(values)
  means = bootstrap_means(values, resamples=resamples, seed=seed)
  return Interval(float(values.mean()), *_ends(means, confidence), len(values))


def compare(
  first: Sequence[float] | np.ndarray,
  second: Sequence[float] | np.ndarray,
  *,
  confidence: float = 0.95,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> Comparison:
  """Tests whether two systems differ on the same questions, in the same order.

  `resamples` are of the bootstrap, and sign flips where not all are gone through.
  """
  first, second = _checked(first), _checked(second)
  if first.shape != second.shape or first.ndim != 1:
    raise ValueError(
      'A paired test needs one value of each system a question; got '
      f'{len(first)} and {len(second)}.'
    )
  differences = first - second
  difference = float(differences.mean())
  means = bootstrap_means(differences, resamples=resamples, seed=seed)
  low, high = _ends(means, confidence)
  side = np.sign(difference)
  # One more of each, the sample itself: no p-value is 0.
  against = int(np.sum(means * side <= _TOLERANCE)) if side else resamples
  bootstrap_p = None
  if np.count_nonzero(differences) >= _BOOTSTRAP_FROM:
    bootstrap_p = min(1.0, 2 * (against + 1) / (resamples + 1))
  permutation_p, exact = sign_flip_test(differences, resamples=resamples, seed=seed)
  return Comparison(difference, low, high, bootstrap_p, permutation_p, exact, len(first))


def sign_flip_test(
  differences: Sequence[float] | np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, bool]:
  """Two-sided p-value of a mean difference, if either sign is as likely.

  Also whether it is exact, which it is where all differences are of one size (as of exact
  match, where this is the sign test) or few are not 0; else `resamples` signs are drawn.
  """
  differences = _checked(differences)
  moved = differences[differences != 0]
  if not moved.size:
    return 1.0, True
  sizes = np.abs(moved)
  found = abs(moved.sum())
  if np.ptp(sizes) <= _TOLERANCE * sizes.max():
    from scipy import stats  # It takes long to import.

    return float(stats.binomtest(int((moved > 0).sum()), len(moved)).pvalue), True
  bound = found - _TOLERANCE * sizes.sum()
  if len(moved) <= _EXACT_UP_TO:
    bits = np.arange(1 << len(moved))[:, None] >> np.arange(len(moved)) & 1
    sums = (2.0 * bits - 1.0) @ sizes
    return float(np.mean(np.abs(sums) >= bound)), True
  rng = np.random.default_rng(seed)
  reached = 0
  step = max(1, _CHUNK_VALUES // len(moved))
  for first in range(0, resamples, step):
    shape = (min(step, resamples - first), len(moved))
    signs = 2.0 * rng.integers(0, 2, shape, np.int8) - 1.0
    reached += int(np.sum(np.abs(signs @ sizes) >= bound))
  return (reached + 1) / (resamples + 1), False


def spread(values: Sequence[float]) -> Spread:
  """Mean and standard deviation, of the same metric of several seeds."""
  checked = _checked(values)
  deviation = float(checked.std(ddof=1)) if len(checked) > 1 else None
  return Spread(float(checked.mean()), deviation, len(checked))


def _ends(means: np.ndarray, confidence: float) -> tuple[float, float]:
  if not 0 < confidence < 1:
    raise ValueError(f'confidence must lie between 0 and 1, got {confidence}.')
  rest = (1 - confidence) / 2
  low, high = np.quantile(means, [rest, 1 - rest])
  return float(low), float(high)


def _checked(values: Sequence[float] | np.ndarray) -> np.ndarray:
  values = np.asarray(values, np.float64)
  if values.ndim not in (1, 2) or not len(values):
    raise ValueError('There are no values to make statistics of.')
  if not np.isfinite(values).all():
    raise ValueError('A value is not finite; leave such questions out.')
  return values
