"""Perplexity distillation's KL divergence against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ralm_jax.losses import retriever

RNG = np.random.default_rng(0)
SCORES = RNG.normal(0.0, 0.3, (4, 5)).astype(np.float32)
GOLD = RNG.normal(-3.0, 0.3, (4, 5)).astype(np.float32)
MASK = np.asarray([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], bool)


def _softmax(scores):
  weights = np.exp(scores.astype(np.float64) - scores.max())
  return weights / weights.sum()


def _divergences(scores, gold, temperature_score, temperature_gold, mask):
  """KL(gold || retriever) of each row over its valid passages alone."""
  rows = []
  for b in range(len(scores)):
    if not mask[b].any():
      rows.append(0.0)
      continue
    p = _softmax(gold[b, mask[b]] / temperature_gold)
    q = _softmax(scores[b, mask[b]] / temperature_score)
    rows.append(np.sum(p * np.log(p / q)))
  return np.asarray(rows)


@pytest.mark.parametrize('reduction', ['batch', 'element'])
@pytest.mark.parametrize('temperatures', [(1.0, 1.0), (0.1, 0.1), (0.5, 0.05)])
@pytest.mark.parametrize('masked', [False, True])
def test_kl_distillation(reduction, temperatures, masked):
  mask = MASK if masked else np.ones_like(MASK)
  rows = _divergences(SCORES, GOLD, *temperatures, mask)
  if reduction == 'element':
    # An empty slot is no element.
    rows = rows / np.maximum(mask.sum(-1), 1)
  # An example without a passage has no weight.
  expected = rows.sum() / (3 if masked else 4)
  actual = retriever.kl_distillation(
    SCORES,
    GOLD,
    temperature_score=temperatures[0],
    temperature_gold=temperatures[1],
    passage_mask=MASK if masked else None,
    reduction=reduction,
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_defaults_are_those_of_the_paper():
  expected = _divergences(SCORES, GOLD, 0.1, 0.1, np.ones_like(MASK)).mean()
  np.testing.assert_allclose(retriever.kl_distillation(SCORES, GOLD), expected, rtol=1e-4)


@pytest.mark.parametrize(
  'reduction,divisors', [('batch', [3, 3, 3]), ('element', [3 * 5, 3 * 3, 3 * 1])]
)
def test_gradient_is_retriever_minus_gold(reduction, divisors):
  grad = jax.grad(
    lambda scores: retriever.kl_distillation(
      scores,
      GOLD,
      temperature_score=0.5,
      temperature_gold=0.2,
      passage_mask=MASK,
      reduction=reduction,
    )
  )(jnp.asarray(SCORES))
  expected = np.zeros((4, 5))
  for b in range(3):
    valid = MASK[b]
    expected[b, valid] = (
      (_softmax(SCORES[b, valid] / 0.5) - _softmax(GOLD[b, valid] / 0.2)) / 0.5 / divisors[b]
    )
  np.testing.assert_allclose(grad, expected, atol=1e-6)


def test_gradient_is_the_finite_difference():
  loss = lambda scores: retriever.kl_distillation(
    scores, GOLD, temperature_score=0.5, passage_mask=MASK
  )
  grad = np.asarray(jax.grad(loss)(jnp.asarray(SCORES)))
  rows = lambda scores: _divergences(scores, GOLD, 0.5, 0.1, MASK).sum() / 3
  for b, k in np.ndindex(4, 5):
    shift = np.zeros((4, 5))
    shift[b, k] = 1e-4
    difference = (rows(SCORES + shift) - rows(SCORES - shift)) / 2e-4
    np.testing.assert_allclose(grad[b, k], difference, atol=1e-5)


def test_no_gradient_where_gold_is_the_retriever_distribution():
  grad = jax.grad(
    lambda scores: retriever.kl_distillation(
      scores, 2.0 * scores, temperature_score=0.5, temperature_gold=1.0, passage_mask=MASK
    )
  )(jnp.asarray(SCORES))
  np.testing.assert_allclose(grad, 0.0, atol=1e-6)


def test_no_gradient_reaches_the_gold_scores():
  grad = jax.grad(lambda gold: retriever.kl_distillation(SCORES, gold))(jnp.asarray(GOLD))
  np.testing.assert_array_equal(grad, 0.0)


def test_padding_scores_do_not_matter_not_even_infinite_ones():
  def loss(scores, gold):
    return retriever.kl_distillation(scores, gold, passage_mask=MASK)

  wild_scores = np.where(MASK, SCORES, np.inf).astype(np.float32)
  wild_gold = np.where(MASK, GOLD, -np.inf).astype(np.float32)
  expected, expected_grad = jax.value_and_grad(loss)(jnp.asarray(SCORES), GOLD)
  actual, grad = jax.value_and_grad(loss)(jnp.asarray(wild_scores), wild_gold)
  np.testing.assert_allclose(actual, expected, rtol=1e-6)
  np.testing.assert_allclose(grad, expected_grad, atol=1e-6)


def test_padding_examples_have_no_weight():
  examples = np.asarray([1, 0, 1, 1])
  rows = _divergences(SCORES, GOLD, 0.1, 0.1, MASK)
  actual = retriever.kl_weighted_sum(SCORES, GOLD, passage_mask=MASK, example_mask=examples)
  np.testing.assert_allclose(actual.total, rows[0] + rows[2], rtol=1e-4)
  assert actual.weight == 2


def test_bfloat16_scores_are_compared_in_float32():
  scores = jnp.asarray(SCORES, jnp.bfloat16)
  actual = retriever.kl_distillation(scores, GOLD, temperature_score=0.1)
  expected = _divergences(np.asarray(scores, np.float32), GOLD, 0.1, 0.1, np.ones_like(MASK)).mean()
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_entropy():
  actual = retriever.entropy(jnp.asarray(SCORES), MASK)
  for b in range(3):
    p = _softmax(SCORES[b, MASK[b]])
    np.testing.assert_allclose(actual[b], -np.sum(p * np.log(p)), atol=1e-5)


def test_unknown_reduction():
  with pytest.raises(ValueError, match="'sum' is unknown"):
    retriever.kl_distillation(SCORES, GOLD, reduction='sum')
