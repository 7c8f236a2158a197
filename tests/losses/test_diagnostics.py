"""Correlations against SciPy on the valid passages alone."""

import numpy as np
import pytest

from ralm_jax.losses import diagnostics

stats = pytest.importorskip('scipy.stats')

RNG = np.random.default_rng(0)
MASK = RNG.random((6, 9)) < 0.7
FIRST = RNG.normal(size=(6, 9)).astype(np.float32)
# Rounded, so that there are ties.
SECOND = np.round(FIRST + RNG.normal(size=(6, 9)), 0).astype(np.float32)


@pytest.mark.parametrize('name,peer', [('pearson', stats.pearsonr), ('spearman', stats.spearmanr)])
def test_correlations(name, peer):
  # What the mask leaves out may be anything.
  first = np.where(MASK, FIRST, np.inf)
  second = np.where(MASK, SECOND, -np.inf)
  actual = getattr(diagnostics, name)(first, second, MASK)
  for b in range(6):
    expected = peer(FIRST[b, MASK[b]], SECOND[b, MASK[b]])[0]
    np.testing.assert_allclose(actual[b], expected, atol=1e-5)


def test_constant_scores_correlate_with_nothing():
  assert not np.any(diagnostics.pearson(np.ones((6, 9)), FIRST, MASK))
  nobody = np.zeros_like(MASK)
  assert not np.any(diagnostics.spearman(FIRST, SECOND, nobody))


def test_same_best():
  first = np.asarray([[1.0, 2.0, 9.0], [3.0, 2.0, 1.0]])
  second = np.asarray([[0.0, 5.0, 9.0], [0.0, 5.0, 9.0]])
  mask = np.asarray([[True, True, False], [True, True, True]])
  np.testing.assert_array_equal(diagnostics.same_best(first, second, mask), [True, False])
