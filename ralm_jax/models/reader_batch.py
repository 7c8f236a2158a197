"""The arrays of a train step and what it returns."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax.numpy as jnp

from ralm_jax.losses.array_types import Array, Bool, Float, Int, PyTree, Shaped
from ralm_jax.losses.sequence import WeightedSum


def slots_read(passage_mask: Bool[Array, 'b k']) -> Bool[Array, 'b k']:
  """Slots whose tokens are read: those of passages.

  An example without any reads its first slot, which holds the bare query.
  """
  mask = passage_mask.astype(bool)
  bare = ~jnp.any(mask, axis=-1, keepdims=True)
  return mask | (bare & (jnp.arange(mask.shape[1]) == 0))


@flax.struct.dataclass
class ReaderBatch:
  """One step's arrays.

  Attributes:
    reader_tokens: query and passage in the reader vocabulary.
    passage_mask: false where a slot holds no passage; whatever its other arrays
      hold, such a slot is not read (`slots_read`).
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
    draw_keys: key data of each example's draws.
    head_tokens: of a decoder-only reader, whose `reader_tokens` are passages alone: what prompts
      begin with (demonstrations); right-padded, as is the following.
    tail_tokens: what stands between passages and answer, the question.
    head_is_shared: whether all examples have the same head, which is then read once.
    head_context: the head as it has been read (`decoder_lm.Context`), in place of its tokens.
    passages_context: the passages, each read by itself behind the head, side by side.
    prompt_length: tokens that passages and tail have at most; None for all of their slots.
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
  draw_keys: Shaped[Array, 'b words'] | None = None
  head_tokens: Int[Array, 'b head'] | None = None
  head_mask: Bool[Array, 'b head'] | None = None
  tail_tokens: Int[Array, 'b tail'] | None = None
  tail_mask: Bool[Array, 'b tail'] | None = None
  head_is_shared: bool = flax.struct.field(pytree_node=False, default=False)
  head_context: PyTree = None
  passages_context: PyTree = None
  prompt_length: int | None = flax.struct.field(pytree_node=False, default=None)

  def without_empty_slots(self, n_read: int) -> ReaderBatch:
    """`reader_mask` is false in slots that the reader, which reads the first n, does not read."""
    there = self.passage_mask[:, : self.reader_mask.shape[1]].astype(bool)
    read = jnp.concatenate([slots_read(there[:, :n_read]), there[:, n_read:]], axis=1)
    return dataclasses.replace(self, reader_mask=self.reader_mask.astype(bool) & read[..., None])

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
