"""How long an index takes to answer, as its users see it."""

from __future__ import annotations

from collections.abc import Sequence
import time
from typing import Any

import numpy as np

from ralm_jax.runs.opening import OpenedCheckpoint
from ralm_jax.training import partitioning

_LEAST_SEARCHES = 5
_ENOUGH_S = 2.0


def milliseconds_a_query(
  opened: OpenedCheckpoint,
  client: Any,
  questions: Sequence[str],
  *,
  k: int,
  batch_size: int = 32,
  generation: int | None = None,
) -> float:
  """Median time of a search, over the queries of a batch.

  From the call to its answer: the search, and what it takes to get there and back.
  Encoding the queries, at least one, is not counted. ValueError where the generation holds
  fewer than k passages, LookupError where it does not exist any more.
  """
  spec, partitioner = opened.spec, opened.partitioner
  encode = partitioner.partition_rows(spec.model.encode_queries)
  batches = []
  for first in range(0, len(questions), batch_size):
    part = list(questions[first : first + batch_size])
    queries = spec.tokenizer.batch(part, size=batch_size)
    mask = queries.query_tokens != spec.tokenizer.retriever_vocabulary.pad_id
    embeddings = encode(opened.params, *partitioner.put_batch((queries.query_tokens, mask)))
    batches.append(partitioning.local_rows(embeddings)[: len(part)])
  # The first one also reads the index.
  client.search(batches[0], k, generation=generation)
  times: list[float] = []
  start = time.perf_counter()
  while len(times) < _LEAST_SEARCHES or (
    len(times) < len(batches) and time.perf_counter() - start < _ENOUGH_S
  ):
    batch = batches[len(times) % len(batches)]
    begin = time.perf_counter()
    client.search(batch, k, generation=generation)
    times.append((time.perf_counter() - begin) / len(batch))
  return float(np.median(times)) * 1e3
