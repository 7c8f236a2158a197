"""In-batch contrastive loss (InfoNCE), which warms a retriever up."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ralm_jax.losses.array_types import Array, Float
from ralm_jax.losses.sequence import WeightedSum


def in_batch_contrastive(
  queries: Float[Array, 'b d'],
  passages: Float[Array, 'b d'],
  *,
  temperature: float,
  symmetric: bool = False,
) -> tuple[WeightedSum, WeightedSum]:
  """Each query should prefer its own passage to all others of the batch.

  Contriever (Izacard et al. 2022, eq. 1) with in-batch negatives, on inner
  products divided by sqrt(dim).

  Args:
    symmetric: also let each passage prefer its own query, half and half.

  Returns:
    The loss and how many queries rank their own passage first, each with the
    number of queries as weight.
  """
  scores = queries @ passages.T / jnp.sqrt(jnp.float32(queries.shape[-1]))
  count = jnp.asarray(len(queries), jnp.float32)
  own = jnp.arange(len(queries))
  own_log_probs = jax.nn.log_softmax(scores / temperature, axis=-1)[own, own]
  if symmetric:
    backwards = jax.nn.log_softmax(scores / temperature, axis=0)[own, own]
    own_log_probs = 0.5 * (own_log_probs + backwards)
  correct = jnp.argmax(scores, axis=-1) == own
  return (
    WeightedSum(-jnp.sum(own_log_probs), count),
    WeightedSum(jnp.sum(correct.astype(jnp.float32)), count),
  )
