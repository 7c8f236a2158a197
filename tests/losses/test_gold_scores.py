"""Perplexity distillation's gold scores against NumPy."""
import numpy as np
import pytest

from ralm_jax.losses import gold_scores

LOG_PROBS = np.random.default_rng(0).normal(-2.0, 1.0, (3, 4, 5)).astype(np.float32)
MASK = np.asarray([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)


@pytest.mark.parametrize('reduction', ['sum', 'mean'])
def test_perplexity(reduction):
  actual = gold_scores.perplexity(LOG_PROBS, MASK, reduction=reduction)
  assert actual.shape == (3, 4)
  for b in range(3):
    for k in range(4):
      chosen = LOG_PROBS[b, k, MASK[b]]
      expected = chosen.sum()
      if reduction == 'mean' and len(chosen):
        expected /= len(chosen)
      np.testing.assert_allclose(actual[b, k], expected, rtol=1e-5)


def test_the_default_is_the_papers_sum():
  np.testing.assert_array_equal(
      gold_scores.perplexity(LOG_PROBS, MASK),
      gold_scores.perplexity(LOG_PROBS, MASK, reduction='sum'),
  )


def test_unknown_reduction():
  with pytest.raises(ValueError, match="'max' is unknown"):
    gold_scores.perplexity(LOG_PROBS, MASK, reduction='max')
