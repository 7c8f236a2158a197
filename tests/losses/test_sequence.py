"""Cross-entropy against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ralm_jax.losses import sequence

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0.0, 3.0, (3, 5, 11)).astype(np.float32)
TARGETS = RNG.integers(0, 11, (3, 5))
WEIGHTS = np.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], np.float32)


def _log_softmax(logits):
  logits = logits.astype(np.float64)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize('label_smoothing', [0.0, 0.1])
@pytest.mark.parametrize('z_loss', [0.0, 1e-2])
def test_cross_entropy(label_smoothing, z_loss):
  log_probs = _log_softmax(LOGITS)
  # The smoothed targets, written out: the rest of the mass on the others.
  smoothed = np.full((3, 5, 11), label_smoothing / 10)
  np.put_along_axis(smoothed, TARGETS[..., None], 1.0 - label_smoothing, -1)
  entropy = -np.sum(np.where(smoothed > 0, smoothed * np.log(np.maximum(smoothed, 1e-30)), 0), -1)
  loss = -np.sum(smoothed * log_probs, -1) - entropy
  log_z = np.log(np.exp(LOGITS.astype(np.float64)).sum(-1))
  expected = np.sum((loss + z_loss * log_z**2) * WEIGHTS)
  actual = sequence.cross_entropy(
    LOGITS, TARGETS, WEIGHTS, label_smoothing=label_smoothing, z_loss=z_loss
  )
  np.testing.assert_allclose(actual.total, expected, rtol=1e-5)
  assert actual.weight == 8
  np.testing.assert_allclose(actual.mean, expected / 8, rtol=1e-5)


def test_perfect_smoothed_prediction_costs_nothing():
  targets = np.asarray([[4]])
  probabilities = np.full((1, 1, 11), 0.01)
  probabilities[0, 0, 4] = 0.9
  loss = sequence.cross_entropy(
    jnp.log(probabilities), targets, np.ones((1, 1)), label_smoothing=0.1
  )
  np.testing.assert_allclose(loss.total, 0.0, atol=1e-5)


def test_gradient_is_softmax_minus_target():
  grad = jax.grad(lambda x: sequence.cross_entropy(x, TARGETS, WEIGHTS).total)(jnp.asarray(LOGITS))
  expected = np.exp(_log_softmax(LOGITS))
  expected -= np.eye(11)[TARGETS]
  np.testing.assert_allclose(grad, expected * WEIGHTS[..., None], atol=1e-5)


def test_token_log_probs_broadcast_over_passages():
  logits = np.stack([LOGITS, 2 * LOGITS], 1)  # [B, K, T, V]
  actual = sequence.token_log_probs(jnp.asarray(logits), TARGETS[:, None])
  expected = np.take_along_axis(_log_softmax(logits), np.stack([TARGETS] * 2, 1)[..., None], -1)[
    ..., 0
  ]
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_log_probs_of_bfloat16_logits_are_float32():
  logits = jnp.asarray(LOGITS, jnp.bfloat16)
  actual = sequence.token_log_probs(logits, TARGETS)
  assert actual.dtype == jnp.float32
  expected = np.take_along_axis(
    _log_softmax(np.asarray(logits, np.float32)), TARGETS[..., None], -1
  )[..., 0]
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_correct_tokens():
  targets = LOGITS.argmax(-1)
  targets[0, 0] = (targets[0, 0] + 1) % 11  # wrong
  targets[0, 4] = (targets[0, 4] + 1) % 11  # wrong, but padding
  actual = sequence.correct_tokens(LOGITS, targets, WEIGHTS)
  assert (actual.total, actual.weight) == (7, 8)


def test_mean_of_nothing_is_zero():
  nothing = sequence.cross_entropy(LOGITS, TARGETS, np.zeros((3, 5)))
  assert nothing.mean == 0.0
