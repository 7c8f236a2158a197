"""Re-ranking a batch's candidates on the device, as one compiled function."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ralm_jax.models import reranking as reranking_lib
from ralm_jax.models import retrieval_lm
from ralm_jax.training import partitioning

PyTree = Any


def partition_rerank(
    model: retrieval_lm.RetrievalLM,
    partitioner: partitioning.Partitioner,
    n_passages: int,
    *,
    chunk: int | None = None,
) -> partitioning.PartitionedFunction:
  """`rerank(params, batch) -> (Reranked, overlap)` compiled for a mesh.

  `overlap`, float32 [], is the share of the passages kept that a search for as
  many would have found.

  Args:
    model: encodes query and candidates.
    partitioner: of the mesh.
    n_passages: how many to keep.
    chunk: candidates encoded at a time, to bound memory.
  """

  def rerank(
      params: PyTree, batch: retrieval_lm.ReaderBatch
  ) -> tuple[reranking_lib.Reranked, jax.Array]:
    reranked = model.rerank(params, batch, n_passages, chunk=chunk)
    kept = reranked.batch
    counted = kept.passage_mask & jnp.any(
        kept.target_mask, axis=-1, keepdims=True
    )
    first = (reranked.chosen < n_passages) & counted
    overlap = jnp.sum(first) / jnp.maximum(jnp.sum(counted), 1)
    return reranked, overlap.astype(jnp.float32)

  return partitioner.partition_rows(rerank)
