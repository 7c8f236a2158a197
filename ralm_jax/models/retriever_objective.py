"""The settings of the retriever's training."""

from __future__ import annotations

from collections.abc import Collection
import dataclasses

from ralm_jax.losses import gold_scores, option_types, retriever
from ralm_jax.losses.option_types import Count, Positive

GOLD_ENCODERS = ('separate', 'shared')
QUERY_SIDES = (None, 'stored', 'frozen', 'released')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrieverObjective:
  """The retriever's loss and which of its parameters it trains.

  Attributes:
    reading: how the reader reads, a key of `readings.READINGS`: fusion of all
      passages in its decoder, or RAG's, one passage at a time and marginal over
      them, where the reader's own loss teaches the retriever (no gold score).
    train_retriever: whether the retriever has a loss at all.
    gold_score: what teaches the retriever, a key of `distillation.GOLD_SCORES`.
    gold_reduction: of (leave-one-out) perplexity: 'sum' over the target's tokens
      (paper) or 'mean' (released).
    gold_normalization: of attention distillation: 'average' (paper) or 'released'.
    gold_attention_layers: of attention distillation: how many of the last decoder
      layers count; None counts all.
    emdr2_level: 'sequence' (paper) or 'token' (released), which also divides
      the reader's logits by `temperature_gold`.
    gold_encoder: 'separate' encodes the passages anew without dropout for the
      gold scores; 'shared' reuses the reader's encoder states. They are the
      same, and shared, where the reader's dropout is 0.
    gold_chunk: passages scored at a time, by gold scores or by RAG, to bound
      memory; None scores all.
    compared_gold_scores: other gold scores to compute as well, whose
      correlation with the one in use is then among the metrics.
    query_side: trains the query encoder alone: 'stored' takes the passages'
      embeddings from the index, 'frozen' encodes them with the frozen passage
      encoder; both need two towers. 'released' is the released code's: tied
      towers, whose passage side moves although no gradient comes from it.
    temperature_score: divides the retriever's scores.
    temperature_gold: divides the gold scores; not EMDR²'s sequence likelihoods.
    kl_reduction: 'batch' (paper) or 'element' (released).
  """

  reading: str = 'fusion'
  train_retriever: bool = True
  gold_score: str = 'perplexity'
  gold_reduction: str = 'sum'
  gold_normalization: str = 'average'
  gold_attention_layers: Count | None = None
  emdr2_level: str = 'sequence'
  gold_encoder: str = 'separate'
  gold_chunk: Count | None = None
  compared_gold_scores: tuple[str, ...] = ()
  query_side: str | None = None
  temperature_score: Positive = 0.1
  temperature_gold: Positive = 0.1
  kl_reduction: str = 'batch'

  def __post_init__(self):
    option_types.check_fields(self)
    # gin and JSON hand over lists; a model must stay hashable for jit.
    object.__setattr__(self, 'compared_gold_scores', tuple(self.compared_gold_scores))
    for name, known in (
      ('gold_reduction', gold_scores.REDUCTIONS),
      ('gold_normalization', gold_scores.NORMALIZATIONS),
      ('gold_encoder', GOLD_ENCODERS),
      ('emdr2_level', retriever.EMDR2_LEVELS),
      ('kl_reduction', retriever.KL_REDUCTIONS),
      ('query_side', QUERY_SIDES),
    ):
      self.check_choice(name, known)

  def check_choice(self, name: str, known: Collection[str | None]) -> None:
    """Raises ValueError for a field's unknown value."""
    if getattr(self, name) not in known:
      raise ValueError(
        f'RetrievalLM.{name} {getattr(self, name)!r} is unknown; choose one of {tuple(known)}.'
      )

  @property
  def frozen_towers(self) -> tuple[str, ...]:
    """Parts of the retriever's parameters that training leaves as they are."""
    return ('passage_encoder',) if self.query_side in ('stored', 'frozen') else ()
