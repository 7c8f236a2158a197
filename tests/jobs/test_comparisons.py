"""Intervals and tests against SciPy's and against plain formulas."""

import itertools
import math

import numpy as np
import pytest

from ralm_jax.evaluation.scores import statistics

stats = pytest.importorskip('scipy.stats')


@pytest.fixture(scope='module')
def rng():
  return np.random.default_rng(0)


@pytest.mark.parametrize('count, rate', [(50, 0.3), (400, 0.8)])
def test_interval_is_that_of_scipy(count, rate):
  values = (np.random.default_rng(1).random(count) < rate).astype(float)
  ours = statistics.bootstrap_interval(values)
  theirs = stats.bootstrap(
    (values,),
    np.mean,
    n_resamples=10_000,
    method='percentile',
    random_state=np.random.default_rng(2),
  ).confidence_interval
  assert ours.mean == values.mean() and ours.count == count
  width = theirs.high - theirs.low
  assert ours.low == pytest.approx(theirs.low, abs=0.07 * width)
  assert ours.high == pytest.approx(theirs.high, abs=0.07 * width)
  # And of the normal approximation.
  error = math.sqrt(values.var() / count)
  assert ours.high - ours.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_interval_covers_as_often_as_it_says(rng):
  covered = 0
  for seed in range(300):
    sample = rng.random(60) < 0.4
    interval = statistics.bootstrap_interval(sample, confidence=0.9, resamples=500, seed=seed)
    covered += interval.low <= 0.4 <= interval.high
  # Standard deviation of the share: 0.017.
  assert 0.82 <= covered / 300 <= 0.96


def test_chunks_and_columns_change_nothing(monkeypatch, rng):
  values = rng.random((37, 3))
  whole = statistics.bootstrap_means(values, resamples=200, seed=5)
  np.testing.assert_array_equal(
    whole[:, 1], statistics.bootstrap_means(values[:, 1], resamples=200, seed=5)
  )
  assert whole.shape == (200, 3)
  rows = np.random.default_rng(5).integers(0, 37, (200, 37), np.int32)
  np.testing.assert_allclose(whole, values[rows].mean(axis=1))
  monkeypatch.setattr(statistics, '_CHUNK_VALUES', 37 * 64)
  chunked = statistics.bootstrap_means(values, resamples=200, seed=5)
  assert chunked.mean() == pytest.approx(whole.mean(), abs=0.02)
  assert np.unique(chunked[:, 0]).size > 190  # no chunk repeats another


def test_seeds():
  values = np.arange(20.0)
  one, same, other = (statistics.bootstrap_interval(values, seed=seed) for seed in (0, 0, 1))
  assert one == same and one != other


def plain_sign_flips(differences):
  found = abs(sum(differences))
  flips = [
    abs(sum(s * d for s, d in zip(signs, differences)))
    for signs in itertools.product((-1, 1), repeat=len(differences))
  ]
  return np.mean([flip >= found - 1e-9 for flip in flips])


@pytest.mark.parametrize(
  'differences',
  [
    [0.5, 0.25, -0.125, 1.0, 0.0, 0.7, 0.1],
    [1, 1, 1, 1, -1],
    [1, -1],
    [0, 0],
    [1],
    [-0.3, -0.3, -0.3],
    [0.1, 0.2, 0.3],  # sums that rounding keeps apart
  ],
)
def test_exact_sign_flips(differences):
  p, exact = statistics.sign_flip_test(differences)
  assert exact and p == pytest.approx(plain_sign_flips(differences))


def test_sign_test_is_the_binomial_one():
  for positive, negative in ((40, 20), (5, 5), (0, 9), (700, 800), (5100, 4900), (9000, 1000)):
    differences = [1.0] * positive + [-1.0] * negative + [0.0] * 100
    p, exact = statistics.sign_flip_test(differences)
    assert exact
    assert p == pytest.approx(stats.binomtest(positive, positive + negative).pvalue)


def test_drawn_signs_agree_with_scipy(rng):
  first = rng.random(80)
  second = first + 0.05 * rng.standard_normal(80) - 0.008
  p, exact = statistics.sign_flip_test(first - second, resamples=20_000)
  theirs = stats.permutation_test(
    (first, second),
    lambda x, y, axis: np.mean(x - y, axis=axis),
    permutation_type='samples',
    n_resamples=20_000,
    vectorized=True,
    random_state=np.random.default_rng(3),
  ).pvalue
  assert not exact
  assert p == pytest.approx(theirs, abs=0.02)


def test_comparison(rng):
  second = (rng.random(300) < 0.4).astype(float)
  first = np.where(rng.random(300) < 0.15, 1.0, second)
  result = statistics.compare(first, second)
  assert result.difference == pytest.approx(first.mean() - second.mean())
  assert 0 < result.low < result.difference < result.high
  assert result.bootstrap_p < 0.001 and result.permutation_p < 0.001
  back = statistics.compare(second, first)
  assert back.difference == -result.difference
  assert back.permutation_p == result.permutation_p
  theirs = stats.bootstrap(
    (first, second),
    lambda x, y, axis: np.mean(x - y, axis=axis),
    paired=True,
    method='percentile',
    vectorized=True,
    n_resamples=10_000,
    random_state=np.random.default_rng(3),
  ).confidence_interval
  assert result.low == pytest.approx(theirs.low, abs=0.005)
  assert result.high == pytest.approx(theirs.high, abs=0.005)


def test_the_same_system_twice(rng):
  values = rng.random(50)
  same = statistics.compare(values, values)
  assert same.difference == 0
  assert same.permutation_p == 1.0


def test_few_differences_have_no_bootstrap_p():
  """All on one side, they would all be certain."""
  for count in (1, 3, 9, 10):
    result = statistics.compare([1.0] * count + [0.0] * 90, [0.0] * (count + 90))
    assert (result.bootstrap_p is None) == (count < 10)
    assert result.permutation_p == pytest.approx(2 / 2**count)


def test_false_alarms_are_as_rare_as_they_should_be(rng):
  alarms = {'bootstrap_p': 0, 'permutation_p': 0}
  for seed in range(300):
    # Two systems as good as one another, on questions of varying difficulty.
    level = rng.random(80)
    first, second = (rng.random(80) < level for _ in range(2))
    result = statistics.compare(first, second, resamples=400, seed=seed)
    for name in alarms:
      alarms[name] += getattr(result, name) <= 0.05
  assert alarms['permutation_p'] <= 300 * 0.05 + 3 * math.sqrt(300 * 0.0475)
  assert alarms['bootstrap_p'] <= 300 * 0.08 + 3 * math.sqrt(300 * 0.0475)


def test_spread():
  result = statistics.spread([1.0, 2.0, 4.0])
  assert result.mean == pytest.approx(7 / 3)
  assert result.deviation == pytest.approx(np.std([1, 2, 4], ddof=1))
  assert statistics.spread([3.0]).deviation is None


@pytest.mark.parametrize(
  'call',
  [
    lambda: statistics.bootstrap_interval([]),
    lambda: statistics.bootstrap_interval([1.0, float('nan')]),
    lambda: statistics.bootstrap_interval([1.0], confidence=1.5),
    lambda: statistics.bootstrap_means(np.ones(3), resamples=0),
    lambda: statistics.compare([1.0, 2.0], [1.0]),
    lambda: statistics.spread([]),
  ],
)
def test_what_cannot_be(call):
  with pytest.raises(ValueError):
    call()
