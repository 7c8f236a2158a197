"""Re-ranking by the encoders of now (Atlas, section 2.4)."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from ralm_jax.losses.array_types import Array, Float, Int
from ralm_jax.models import layers
from ralm_jax.models.reader_batch import ReaderBatch

Params = Any
# params, tokens, mask -> embeddings.
Encode = Callable[[Params, Array, Array], Array]


@flax.struct.dataclass
class Reranked:
  """What re-ranking keeps.

  Attributes:
    batch: with the passages kept, by falling score; missing ones last.
    chosen: which candidates they were.
    scores: query . passage; -inf for missing ones.
  """

  batch: ReaderBatch
  chosen: Int[Array, 'b k']
  scores: Float[Array, 'b k']


def rerank(
  encode_queries: Encode,
  encode_passages: Encode,
  params: Params,
  batch: ReaderBatch,
  n_passages: int,
  *,
  chunk: int | None = None,
) -> Reranked:
  """Keeps the best of a stale index's candidates.

  Args:
    encode_queries: [b, q] -> [b, d].
    encode_passages: [b, n, p] -> [b, n, d].
    chunk: candidates encoded at a time, to bound memory; None encodes all.

  Raises:
    ValueError: there are fewer candidates than passages to keep.
  """
  candidates = batch.passage_mask.shape[1]
  if candidates < n_passages:
    raise ValueError(f'{n_passages} passages cannot be kept of {candidates} candidates.')
  queries = encode_queries(params, batch.given('query_tokens'), batch.given('query_mask'))
  tokens, mask = batch.given('retriever_tokens'), batch.given('retriever_mask')
  encode = lambda *part: encode_passages(params, *part)
  passages = layers.map_passages(encode, (tokens, mask), chunk, 'rerank_chunk')
  scores = jnp.einsum('bd,bnd->bn', queries, passages)
  scores = jnp.where(batch.passage_mask, scores, -jnp.inf)
  scores, chosen = jax.lax.top_k(scores, n_passages)

  def keep(array: Array) -> Array:
    index = chosen.reshape(chosen.shape + (1,) * (array.ndim - 2))
    return jnp.take_along_axis(array, index, axis=1)

  per_passage = (
    'reader_tokens',
    'reader_mask',
    'passage_mask',
    'retriever_tokens',
    'retriever_mask',
  )
  stored = batch.passage_embeddings
  arrays: dict[str, Any] = {name: keep(getattr(batch, name)) for name in per_passage}
  kept = dataclasses.replace(
    batch,
    passage_scores=None if batch.passage_scores is None else scores,
    passage_embeddings=None if stored is None else keep(stored),
    **arrays,
  )
  return Reranked(kept, chosen, scores)
