"""How two scores of the same passages agree: statistics, never losses."""

from __future__ import annotations

import jax.numpy as jnp

from ralm_jax.losses.array_types import Array, Bool, Float

Scores = Float[Array, 'b k']
Mask = Bool[Array, 'b k']


def pearson(first: Scores, second: Scores, mask: Mask) -> Float[Array, ' b']:
  """Pearson's correlation over the valid passages; 0 where either is constant."""
  weights = mask.astype(jnp.float32)
  count = jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1.0)

  def centre(values: Array) -> Array:
    # Masked scores may be infinite, and 0 * inf is NaN.
    values = jnp.where(mask, values.astype(jnp.float32), 0.0)
    mean = jnp.sum(values, axis=-1, keepdims=True) / count
    return (values - mean) * weights

  first, second = centre(first), centre(second)
  covariance = jnp.sum(first * second, axis=-1)
  scale = jnp.sqrt(jnp.sum(jnp.square(first), -1) * jnp.sum(jnp.square(second), -1))
  return jnp.where(scale > 0, covariance / jnp.maximum(scale, 1e-30), 0.0)


def ranks(scores: Scores, mask: Mask) -> Scores:
  """Ranks from 0 among the valid passages, ties sharing their mean; else anything."""
  scores = jnp.where(mask, scores.astype(jnp.float32), jnp.inf)
  other, own = scores[:, None, :], scores[:, :, None]
  valid = mask[:, None, :].astype(jnp.float32)
  below = jnp.sum((other < own) * valid, axis=-1)
  equal = jnp.sum((other == own) * valid, axis=-1)
  return below + 0.5 * (equal - 1.0)


def spearman(first: Scores, second: Scores, mask: Mask) -> Float[Array, ' b']:
  """Spearman's rank correlation over the valid passages."""
  return pearson(ranks(first, mask), ranks(second, mask), mask)


def same_best(first: Scores, second: Scores, mask: Mask) -> Bool[Array, ' b']:
  """Whether both scores are largest at one passage."""
  best = lambda scores: jnp.argmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
  return best(first) == best(second)
