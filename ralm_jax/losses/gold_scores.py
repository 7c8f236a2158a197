"""Gold scores: what the reader's likelihoods say about each passage.

A gold score is a [batch, n_passages] float32 array, larger for a more helpful
passage; `losses/retriever.py` turns it into a target distribution.
"""

from __future__ import annotations

import jax.numpy as jnp

from ralm_jax.losses.array_types import Array, Float, Shaped

REDUCTIONS = ('sum', 'mean')
NORMALIZATIONS = ('average', 'released')


def perplexity(
  token_log_probs: Float[Array, 'b k t'],
  target_mask: Shaped[Array, 'b t'],
  *,
  reduction: str = 'sum',
) -> Float[Array, 'b k']:
  """Perplexity distillation's gold score (Atlas, section 2.2, eq. 3).

  Args:
    token_log_probs: log p(target token | query, one passage, earlier tokens).
    reduction: 'sum' is the paper's log p(target | query, passage); 'mean' divides by the number of
      tokens, as the released code does, which makes the temperature depend on the target's length.

  Raises:
    ValueError: for an unknown reduction.
  """
  mask = target_mask.astype(jnp.float32)[:, None, :]
  total = jnp.sum(token_log_probs.astype(jnp.float32) * mask, axis=-1)
  if reduction == 'sum':
    return total
  if reduction == 'mean':
    return total / jnp.maximum(jnp.sum(mask, axis=-1), 1.0)
  raise ValueError(f"reduction {reduction!r} is unknown; choose 'sum' or 'mean'.")


def leave_one_out(
  token_log_probs: Float[Array, 'b k t'],
  target_mask: Shaped[Array, 'b t'],
  *,
  reduction: str = 'sum',
) -> Float[Array, 'b k']:
  """Leave-one-out perplexity's gold score (Atlas, section 2.2, eq. 6).

  The worse the reader does without a passage, the better the passage: the
  likelihoods are those given all passages but one. Reductions as in `perplexity`.
  """
  return -perplexity(token_log_probs, target_mask, reduction=reduction)


def attention(
  attention_norms: Float[Array, 'b k s'],
  reader_mask: Shaped[Array, 'b k s'],
  target_mask: Shaped[Array, 'b t'],
  *,
  n_layers: int,
  normalization: str = 'average',
) -> Float[Array, 'b k']:
  """Attention distillation's gold score (Atlas, section 2.2, eq. 2).

  Args:
    attention_norms: cross-attention probability times value norm, averaged over
      heads and summed over target tokens and layers.
    n_layers: decoder layers in the sum.
    normalization: 'average' also averages over layers, target tokens and the passage's tokens
      (paper); 'released' divides the sum over the passage's tokens by 256 instead of their number,
      so that longer passages score higher.

  Raises:
    ValueError: for an unknown normalization.
  """
  mask = reader_mask.astype(jnp.float32)
  total = jnp.sum(attention_norms.astype(jnp.float32) * mask, axis=-1)
  targets = jnp.sum(target_mask.astype(jnp.float32), axis=-1)[:, None]
  if normalization not in NORMALIZATIONS:
    raise ValueError(f"normalization {normalization!r} is unknown; choose 'average' or 'released'.")
  tokens = 256.0 if normalization == 'released' else jnp.maximum(jnp.sum(mask, axis=-1), 1.0)
  return total / (tokens * n_layers * jnp.maximum(targets, 1.0))
