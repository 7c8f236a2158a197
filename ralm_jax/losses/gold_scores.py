"""Gold scores: what the reader's likelihoods say about each passage.

A gold score is a [batch, n_passages] float32 array, larger for a more helpful
passage; `losses/retriever.py` turns it into a target distribution.
"""
from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def perplexity(
    token_log_probs: Array, target_mask: Array, *, reduction: str = 'sum'
) -> Array:
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
  raise ValueError(
      f"reduction {reduction!r} is unknown; choose 'sum' or 'mean'."
  )
