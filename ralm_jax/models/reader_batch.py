"""The arrays of a train step and what it returns."""

from __future__ import annotations

from typing import Any

import flax.struct

from ralm_jax.losses.array_types import Array, Bool, Float, Int
from ralm_jax.losses.sequence import WeightedSum


@flax.struct.dataclass
class ReaderBatch:
  """One step's arrays.

  Attributes:
    reader_tokens: query and passage in the reader vocabulary.
    passage_mask: false where a slot holds no passage.
    target_tokens: ended by the end of sequence unless truncated.
    target_mask: a padding example has none.
    query_tokens: in the retriever vocabulary; None where the retriever is not
      trained, as are the following.
    retriever_tokens: the passages for the retriever.
    passage_embeddings: float16, as the index stores them, in place of
      `retriever_tokens` and `retriever_mask`.
    passage_scores: inner products of the search, from which RAG answers; not read in training.
    prefix_tokens: padded on the left, what answers begin with.
    prefix_lengths: tokens of each prefix.
  """

  reader_tokens: Int[Array, 'b k s']
  reader_mask: Bool[Array, 'b k s']
  passage_mask: Bool[Array, 'b k']
  target_tokens: Int[Array, 'b t']
  target_mask: Bool[Array, 'b t']
  query_tokens: Int[Array, 'b q'] | None = None
  query_mask: Bool[Array, 'b q'] | None = None
  retriever_tokens: Int[Array, 'b k p'] | None = None
  retriever_mask: Bool[Array, 'b k p'] | None = None
  passage_embeddings: Float[Array, 'b k d'] | None = None
  passage_scores: Float[Array, 'b k'] | None = None
  prefix_tokens: Int[Array, 'b prefix'] | None = None
  prefix_lengths: Int[Array, ' b'] | None = None

  def given(self, name: str) -> Any:
    """A field that not every batch has; raises ValueError where this one has not."""
    value = getattr(self, name)
    if value is None:
      raise ValueError(f'ReaderBatch.{name} is needed here, and is None.')
    return value


@flax.struct.dataclass
class LossOutput:
  """Losses as sums with weights, and metrics likewise."""

  reader: WeightedSum
  retriever: WeightedSum
  metrics: dict[str, WeightedSum]
