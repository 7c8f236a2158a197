"""The arrays of a train step and what it returns."""

from __future__ import annotations

import flax.struct
import jax

from ralm_jax.losses.sequence import WeightedSum

Array = jax.Array


@flax.struct.dataclass
class ReaderBatch:
  """One step's arrays; B batch, K passages, L, P, Q, T lengths.

  Attributes:
    reader_tokens: int32 [B, K, L], query and passage in the reader vocabulary.
    reader_mask: bool [B, K, L].
    passage_mask: bool [B, K], false where a slot holds no passage.
    target_tokens: int32 [B, T], ended by the end of sequence unless truncated.
    target_mask: bool [B, T]; a padding example has none.
    query_tokens: int32 [B, Q] in the retriever vocabulary; None where the
      retriever is not trained, as are the following.
    query_mask: bool [B, Q].
    retriever_tokens: int32 [B, K, P], the passages for the retriever.
    retriever_mask: bool [B, K, P].
    passage_embeddings: float16 [B, K, D], as the index stores them, in place
      of `retriever_tokens` and `retriever_mask`.
    passage_scores: float32 [B, K], inner products of the search, from which
      RAG answers; not read in training.
    prefix_tokens: int32 [B, P], padded on the left, what answers begin with.
    prefix_lengths: int32 [B], tokens of each prefix.
  """

  reader_tokens: Array
  reader_mask: Array
  passage_mask: Array
  target_tokens: Array
  target_mask: Array
  query_tokens: Array | None = None
  query_mask: Array | None = None
  retriever_tokens: Array | None = None
  retriever_mask: Array | None = None
  passage_embeddings: Array | None = None
  passage_scores: Array | None = None
  prefix_tokens: Array | None = None
  prefix_lengths: Array | None = None


@flax.struct.dataclass
class LossOutput:
  """Losses as sums with weights, and metrics likewise."""

  reader: WeightedSum
  retriever: WeightedSum
  metrics: dict[str, WeightedSum]
