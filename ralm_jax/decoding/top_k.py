"""The k largest of a vocabulary, in operations that keep a sharded batch.

`jax.lax.top_k` is one opaque operation for which XLA gathers the whole array on every device, even
where only the batch is sharded. Reductions and gathers are not, and in blocks they are as fast.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ralm_jax.losses.array_types import Array, Float, Int

_BLOCK = 128
# Steps of a selection that are one piece of program.
_UNROLL = 16


def top_k(
  scores: Float[Array, '*b n'], k: int
) -> tuple[Float[Array, '*b {k}'], Int[Array, '*b {k}']]:
  """As `jax.lax.top_k`: the k largest, falling, and their indices.

  Of equal ones the lower index comes first; k is from 1 to n.
  """
  size = scores.shape[-1]
  n_blocks = -(-size // _BLOCK)
  if n_blocks <= k:
    return _select(scores, k)
  # The k largest lie in the k blocks with the largest maxima. In the order of
  # their indices these keep equal scores in that order.
  padding = [(0, 0)] * (scores.ndim - 1) + [(0, n_blocks * _BLOCK - size)]
  padded = jnp.pad(scores, padding, constant_values=-jnp.inf)
  maxima = jnp.max(padded.reshape(*scores.shape[:-1], n_blocks, _BLOCK), axis=-1)
  blocks = jnp.sort(_select(maxima, k)[1], axis=-1)
  index = blocks[..., None] * _BLOCK + jnp.arange(_BLOCK)
  index = index.reshape(*scores.shape[:-1], k * _BLOCK)
  # Out of the array itself, so that its padded copy is never made.
  kept = jnp.take_along_axis(scores, jnp.minimum(index, size - 1), axis=-1)
  values, chosen = _select(jnp.where(index < size, kept, -jnp.inf), k)
  return values, jnp.take_along_axis(index, chosen, axis=-1)


def _select(
  scores: Float[Array, '*b n'], k: int
) -> tuple[Float[Array, '*b {k}'], Int[Array, '*b {k}']]:
  """`top_k` of few scores, one after the other."""
  positions = jnp.arange(scores.shape[-1], dtype=jnp.int32)

  def select(left: Array, _: None) -> tuple[Array, Array]:
    index = jnp.argmax(left, axis=-1).astype(jnp.int32)
    return jnp.where(positions == index[..., None], -jnp.inf, left), index

  # -inf is what has been taken already: nothing is taken twice, not even where
  # all that is left has been ruled out.
  left = jnp.maximum(scores, jnp.finfo(scores.dtype).min)
  _, indices = jax.lax.scan(select, left, None, length=k, unroll=min(k, _UNROLL))
  indices = jnp.moveaxis(indices, 0, -1)
  return jnp.take_along_axis(scores, indices, axis=-1), indices
