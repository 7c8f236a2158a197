"""Re-ranking a batch's candidates on the device, as one compiled function."""

from __future__ import annotations

import jax.numpy as jnp

from ralm_jax.losses.array_types import Array, Float, PyTree
from ralm_jax.models.reranking import Reranked
from ralm_jax.models.retrieval_lm import ReaderBatch, RetrievalLM
from ralm_jax.training.partitioning import PartitionedFunction, Partitioner


def partition_rerank(
  model: RetrievalLM, partitioner: Partitioner, n_passages: int, *, chunk: int | None = None
) -> PartitionedFunction:
  """`rerank(params, batch) -> (Reranked, overlap)` compiled for a mesh.

  `overlap` is the share of the `n_passages` kept that a search for as many
  would have found; `chunk` candidates are encoded at a time, to bound memory.
  """

  def rerank(params: PyTree, batch: ReaderBatch) -> tuple[Reranked, Float[Array, '']]:
    reranked = model.rerank(params, batch, n_passages, chunk=chunk)
    kept = reranked.batch
    counted = kept.passage_mask & jnp.any(kept.target_mask, axis=-1, keepdims=True)
    first = (reranked.chosen < n_passages) & counted
    overlap = jnp.sum(first) / jnp.maximum(jnp.sum(counted), 1)
    return reranked, overlap.astype(jnp.float32)

  return partitioner.partition_rows(rerank)
