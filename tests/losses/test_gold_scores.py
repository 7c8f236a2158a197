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


@pytest.mark.parametrize('reduction', ['sum', 'mean'])
def test_leave_one_out(reduction):
  """The reader's loss without a passage, as a sum or a mean over tokens."""
  actual = gold_scores.leave_one_out(LOG_PROBS, MASK, reduction=reduction)
  for b in range(2):
    for k in range(4):
      loss = -LOG_PROBS[b, k, MASK[b]]
      np.testing.assert_allclose(actual[b, k], getattr(loss, reduction)(), rtol=1e-5)


@pytest.mark.parametrize('normalization', ['average', 'released'])
def test_attention(normalization):
  rng = np.random.default_rng(1)
  norms = rng.random((3, 4, 6)).astype(np.float32)
  lengths = rng.integers(1, 7, (3, 4))
  reader_mask = np.arange(6) < lengths[..., None]
  actual = gold_scores.attention(norms, reader_mask, MASK, n_layers=2, normalization=normalization)
  for b in range(2):
    for k in range(4):
      total = sum(norms[b, k, j] for j in range(lengths[b, k]))
      tokens = lengths[b, k] if normalization == 'average' else 256
      np.testing.assert_allclose(actual[b, k], total / (2 * MASK[b].sum() * tokens), rtol=1e-5)
  assert np.isfinite(actual).all()


def test_attention_defaults_to_the_papers_average():
  ones = np.ones((1, 2, 3), np.float32)
  score = gold_scores.attention(ones, ones > 0, ones[0, :1] > 0, n_layers=1)
  np.testing.assert_allclose(score, np.full((1, 2), 1 / 3), rtol=1e-6)


def test_unknown_normalization():
  with pytest.raises(ValueError, match="'256' is unknown"):
    gold_scores.attention(LOG_PROBS, LOG_PROBS > 0, MASK, n_layers=1, normalization='256')
