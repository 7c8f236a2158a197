"""Gold scores: what the reader's likelihoods say about each passage.

A gold score is a [batch, n_passages] float32 array, larger for a more helpful
passage; `losses/retriever.py` turns it into a target distribution.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array
REDUCTIONS = ('sum', 'mean')
NORMALIZATIONS = ('average', 'released')


def perplexity(token_log_probs: Array, target_mask: Array, *, reduction: str = 'sum') -> Array:
  """Perplexity distillation's gold score (Atlas, section 2.2, eq. 3).

  Args:
    token_log_probs: [batch, n_passages, length], log p(target token | query,
      one passage, earlier target tokens).
    target_mask: [batch, length], true on target tokens.
    reduction: 'sum' is the paper's log p(target | query, passage); 'mean'
      divides by the number of tokens, as the released code does, which makes
      the temperature depend on the target's length.

  Returns:
    float32 [batch, n_passages].

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


def leave_one_out(token_log_probs: Array, target_mask: Array, *, reduction: str = 'sum') -> Array:
  """Leave-one-out perplexity's gold score (Atlas, section 2.2, eq. 6).

  The worse the reader does without a passage, the better the passage.

  Args:
    token_log_probs: [batch, n_passages, length], log p(target token | query,
      all passages but one, earlier target tokens).
    target_mask: [batch, length], true on target tokens.
    reduction: 'sum' (paper) or 'mean' (released), as in `perplexity`.

  Returns:
    float32 [batch, n_passages].

  Raises:
    ValueError: for an unknown reduction.
  """
  return -perplexity(token_log_probs, target_mask, reduction=reduction)


def attention(
  attention_norms: Array,
  reader_mask: Array,
  target_mask: Array,
  *,
  n_layers: int,
  normalization: str = 'average',
) -> Array:
  """Attention distillation's gold score (Atlas, section 2.2, eq. 2).

  Args:
    attention_norms: float32 [batch, n_passages, length], cross-attention
      probability times value norm, averaged over heads and summed over target
      tokens and layers (`models.attention.attention_norms`).
    reader_mask: [batch, n_passages, length], true on the passages' tokens.
    target_mask: [batch, target_length].
    n_layers: decoder layers in the sum.
    normalization: 'average' also averages over layers, target tokens and the
      passage's tokens (paper); 'released' divides the sum over the passage's
      tokens by 256 instead of their number, so that longer passages score
      higher.

  Returns:
    float32 [batch, n_passages].

  Raises:
    ValueError: for an unknown normalization.
  """
  mask = reader_mask.astype(jnp.float32)
  total = jnp.sum(attention_norms.astype(jnp.float32) * mask, axis=-1)
  targets = jnp.sum(target_mask.astype(jnp.float32), axis=-1)[:, None]
  if normalization == 'average':
    tokens = jnp.maximum(jnp.sum(mask, axis=-1), 1.0)
  elif normalization == 'released':
    tokens = 256.0
  else:
    raise ValueError(f"normalization {normalization!r} is unknown; choose 'average' or 'released'.")
  return total / (tokens * n_layers * jnp.maximum(targets, 1.0))
