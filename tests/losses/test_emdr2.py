"""EMDR² against NumPy: by enumeration of the passages, in probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ralm_jax.losses import retriever

RNG = np.random.default_rng(0)
SCORES = RNG.normal(0.0, 1.0, (4, 5)).astype(np.float32)
LOG_PROBS = RNG.normal(-1.0, 0.7, (4, 5, 6)).astype(np.float32)
TARGETS = np.arange(6) < np.asarray([6, 3, 1, 4])[:, None]
PASSAGES = np.asarray([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], bool)


def _losses(level, temperature, passages):
  """Losses and how many terms they are summed over, in float64."""
  total = count = 0.0
  for b in range(4):
    if not passages[b].any():
      continue
    scores = SCORES[b, passages[b]].astype(np.float64) / temperature
    prior = np.exp(scores) / np.exp(scores).sum()
    tokens = np.exp(LOG_PROBS[b, passages[b]].astype(np.float64))
    tokens = tokens[:, TARGETS[b]]
    if level == 'sequence':
      total -= np.log(np.sum(prior * tokens.prod(axis=-1)))
      count += 1
    else:
      total -= np.sum(np.log(prior @ tokens))
      count += tokens.shape[1]
  return total, count


@pytest.mark.parametrize('level', ['sequence', 'token'])
@pytest.mark.parametrize('temperature', [1.0, 0.1])
@pytest.mark.parametrize('masked', [False, True])
def test_emdr2(level, temperature, masked):
  passages = PASSAGES if masked else np.ones_like(PASSAGES)
  total, count = _losses(level, temperature, passages)
  output = retriever.emdr2_weighted_sum(
    SCORES,
    LOG_PROBS,
    TARGETS,
    temperature_score=temperature,
    level=level,
    passage_mask=PASSAGES if masked else None,
  )
  np.testing.assert_allclose(output.total, total, rtol=1e-4)
  assert output.weight == count
  mean = retriever.emdr2(
    SCORES,
    LOG_PROBS,
    TARGETS,
    temperature_score=temperature,
    level=level,
    passage_mask=PASSAGES if masked else None,
  )
  assert mean.dtype == jnp.float32
  np.testing.assert_allclose(mean, total / count, rtol=1e-4)


def test_the_default_is_the_paper():
  np.testing.assert_array_equal(
    retriever.emdr2(SCORES, LOG_PROBS, TARGETS),
    retriever.emdr2(SCORES, LOG_PROBS, TARGETS, temperature_score=1.0, level='sequence'),
  )


@pytest.mark.parametrize('level', ['sequence', 'token'])
def test_gradient_against_differences_and_none_to_the_reader(level):
  loss = lambda scores, log_probs: retriever.emdr2(
    scores, log_probs, TARGETS, level=level, passage_mask=PASSAGES
  )
  of_scores, of_reader = jax.grad(loss, (0, 1))(SCORES, LOG_PROBS)
  assert not np.any(of_reader)
  assert np.isfinite(of_scores).all()
  # What the mask leaves out gets none.
  assert not np.any(np.asarray(of_scores)[~PASSAGES])
  with jax.enable_x64(True):
    scores = SCORES.astype(np.float64)
    for b, k in [(0, 0), (0, 3), (1, 2)]:
      step = np.zeros_like(scores)
      step[b, k] = 1e-3
      difference = (loss(scores + step, LOG_PROBS) - loss(scores - step, LOG_PROBS)) / 2e-3
      np.testing.assert_allclose(of_scores[b, k], difference, rtol=2e-2, atol=1e-4)


def test_gradient_is_prior_minus_posterior():
  """What the sequence level teaches: passages that explain the target."""
  gradient = jax.grad(lambda s: retriever.emdr2_weighted_sum(s, LOG_PROBS, TARGETS).total)(SCORES)
  prior = jax.nn.softmax(SCORES, -1)
  likelihood = np.sum(LOG_PROBS * TARGETS[:, None], -1)
  posterior = jax.nn.softmax(SCORES + likelihood, -1)
  np.testing.assert_allclose(gradient, prior - posterior, atol=1e-5)


def test_an_example_without_passages_has_no_weight():
  output = retriever.emdr2_weighted_sum(
    SCORES[3:], LOG_PROBS[3:], TARGETS[3:], passage_mask=PASSAGES[3:]
  )
  assert output.total == 0 and output.weight == 0 and output.mean == 0


def test_unknown_level():
  with pytest.raises(ValueError, match="'word' is unknown"):
    retriever.emdr2(SCORES, LOG_PROBS, TARGETS, level='word')
