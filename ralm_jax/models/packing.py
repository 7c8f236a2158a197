"""Prompts of decoder-only readers, packed of segments that are tokenised apart.

A prompt is its passages and its tail (the question), without the padding between them. What stands
in a segment may be masked as a whole: a prompt of one passage, or of all but one, comes of the same
arrays as that of all.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import jax.numpy as jnp

from ralm_jax.losses.array_types import Array, Bool, Float, Int, Shaped

PASSAGE_ORDERS = ('best_last', 'best_first')


@flax.struct.dataclass
class Prompt:
  """Packed prompts, padded on the left, so that all end where the answer begins.

  Attributes:
    slots: where each token of the segments, side by side, stands in the prompt.
  """

  tokens: Int[Array, 'rows n']
  mask: Bool[Array, 'rows n']
  slots: Int[Array, 'rows all']

  def of_segments(self, values: Float[Array, 'rows n']) -> Float[Array, 'rows all']:
    """A number for each token of the prompt as one for each token of the segments."""
    return jnp.take_along_axis(values, self.slots, axis=1)


def pack(
  segments: Sequence[tuple[Int[Array, 'rows _'], Shaped[Array, 'rows _']]],
  length: int | None = None,
) -> Prompt:
  """Packs segments (tokens, mask) in their order.

  Args:
    length: of the prompts; longer ones lose their beginning. None has room for all.
  """
  tokens = jnp.concatenate([jnp.asarray(tokens) for tokens, _ in segments], axis=1)
  mask = jnp.concatenate([jnp.asarray(mask).astype(bool) for _, mask in segments], axis=1)
  total = tokens.shape[1]
  length = min(length or total, total)
  # Padding first; a stable sort keeps the order of the rest.
  order = jnp.argsort(mask, axis=1, stable=True)
  behind = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]  # tokens from each on
  taken = order[:, total - length :]
  return Prompt(
    jnp.take_along_axis(tokens, taken, axis=1),
    jnp.take_along_axis(mask, taken, axis=1),
    jnp.maximum(length - behind, 0).astype(jnp.int32),
  )


def passage_segments(
  tokens: Int[Array, 'rows k s'], mask: Shaped[Array, 'rows k s'], order: str
) -> tuple[Int[Array, 'rows k*s'], Bool[Array, 'rows k*s']]:
  """Passages, best first, as one segment in the order in which they are read.

  Best last puts the best one beside the question, where small models find it more easily (Liu et
  al. 2023).
  """
  if order == 'best_last':
    tokens, mask = tokens[:, ::-1], mask[:, ::-1]
  rows = len(tokens)
  return tokens.reshape(rows, -1), mask.reshape(rows, -1).astype(bool)


def passage_values(
  values: Float[Array, 'rows k*s'], n_passages: int, order: str
) -> Float[Array, 'rows k s']:
  """A number for each token of `passage_segments`, by passage, best first."""
  values = values.reshape(len(values), n_passages, -1)
  return values[:, ::-1] if order == 'best_last' else values
