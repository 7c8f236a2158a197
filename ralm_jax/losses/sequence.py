"""Cross-entropy over target tokens; every loss is a (sum, weight) pair.

Losses are sums with their weights, so that gradient accumulation and
data-parallel shards divide once, by the weight of the whole batch.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from ralm_jax.losses.array_types import Array, Float, Int, Shaped


@flax.struct.dataclass
class WeightedSum:
  """A loss as float32 scalars: `total / weight` is the mean."""

  total: Array
  weight: Array

  @property
  def mean(self) -> Array:
    return self.total / jnp.maximum(self.weight, 1e-9)


def token_log_probs(
  logits: Float[Array, '*b t v'], targets: Int[Array, '*#b t']
) -> Float[Array, '*b t']:
  """Log-probability of every target token, in float32."""
  logits = logits.astype(jnp.float32)
  targets = jnp.broadcast_to(targets, logits.shape[:-1])
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return chosen - jax.nn.logsumexp(logits, axis=-1)


def cross_entropy(
  logits: Float[Array, 'b t v'],
  targets: Int[Array, 'b t'],
  weights: Shaped[Array, 'b t'],
  *,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
) -> WeightedSum:
  """Cross-entropy with T5X's label smoothing and z-loss.

  Args:
    label_smoothing: probability mass spread over the other tokens; the loss is
      reduced by the entropy of the smoothed targets, so that its minimum is 0.
    z_loss: coefficient of log(Z)^2, which keeps logits near zero.
  """
  logits = logits.astype(jnp.float32)
  weights = weights.astype(jnp.float32)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  loss = log_z - chosen
  if label_smoothing:
    vocab = logits.shape[-1]
    confidence = 1.0 - label_smoothing
    low = label_smoothing / (vocab - 1)
    # -sum_v q_v log p_v, with q the smoothed targets, without a one-hot array.
    mean_other = vocab * log_z - jnp.sum(logits, axis=-1)
    loss = (confidence - low) * loss + low * mean_other
    loss -= -(confidence * jnp.log(confidence) + (vocab - 1) * low * jnp.log(low + 1e-20))
  if z_loss:
    loss = loss + z_loss * jnp.square(log_z)
  return WeightedSum(jnp.sum(loss * weights), jnp.sum(weights))


def correct_tokens(
  logits: Float[Array, 'b t v'], targets: Int[Array, 'b t'], weights: Shaped[Array, 'b t']
) -> WeightedSum:
  """How many target tokens are the argmax."""
  weights = weights.astype(jnp.float32)
  correct = (jnp.argmax(logits, axis=-1) == targets) * weights
  return WeightedSum(jnp.sum(correct), jnp.sum(weights))
