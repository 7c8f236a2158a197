"""What teaches the retriever: gold scores, and the losses that go with them.

A gold score is a class in the table `GOLD_SCORES`, whose keys are the values of
`RetrievalLM.gold_score`. Another one needs no change here:

  distillation.GOLD_SCORES['mine'] = MyGoldScore
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from ralm_jax.losses import gold_scores, retriever
from ralm_jax.losses.array_types import Array, Float
from ralm_jax.losses.sequence import WeightedSum
from ralm_jax.models.gold_passes import Passes
from ralm_jax.models.reader_batch import ReaderBatch
from ralm_jax.models.retriever_objective import RetrieverObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoldScore:
  """Says how much each passage helped the reader, and trains the retriever to know.

  A subclass gives `scores`; the loss is the divergence of the retriever's
  distribution over passages from softmax(gold / temperature_gold), unless the
  subclass has another. No gradient flows through gold scores.
  """

  temperature_score: float = 0.1
  temperature_gold: float = 0.1
  kl_reduction: str = 'batch'

  # Whether there is anything to learn from.
  teaches: ClassVar[bool] = True
  # Whether `Passes.attention_norms` is called.
  reads_attention: ClassVar[bool] = False
  # The subclass's own fields, and the fields of RetrievalLM that hold them.
  settings: ClassVar[Mapping[str, str]] = {}

  @classmethod
  def of(cls, objective: RetrieverObjective) -> GoldScore:
    """With a model's settings."""
    names = {field.name: field.name for field in dataclasses.fields(GoldScore)}
    return cls(**{own: getattr(objective, name) for own, name in {**names, **cls.settings}.items()})

  def scores(self, passes: Passes, batch: ReaderBatch) -> Float[Array, 'b k *t']:
    """A number a passage, larger for a more helpful one; or what `by_passage` reduces."""
    raise NotImplementedError

  def by_passage(self, gold: Float[Array, 'b k *t'], batch: ReaderBatch) -> Float[Array, 'b k']:
    return gold

  def loss(
    self, scores: Float[Array, 'b k'], gold: Float[Array, 'b k *t'], batch: ReaderBatch
  ) -> WeightedSum:
    """The retriever's loss, of its own scores and those of `scores`."""
    return retriever.kl_weighted_sum(
      scores,
      gold,
      temperature_score=self.temperature_score,
      temperature_gold=self.temperature_gold,
      passage_mask=batch.passage_mask,
      example_mask=jnp.any(batch.target_mask, axis=-1),
      reduction=self.kl_reduction,
    )

  def loss_weight(self, batch: ReaderBatch) -> Float[Array, '']:
    """The weight of `loss` over a whole batch, known without computing it."""
    return self._loss_weight(batch, 'sequence')

  def target_logits(
    self, scores: Float[Array, 'b k'], gold: Float[Array, 'b k']
  ) -> Float[Array, 'b k']:
    """Of the distribution that the loss pulls the retriever to."""
    return gold / self.temperature_gold

  def _loss_weight(self, batch: ReaderBatch, level: str) -> Float[Array, '']:
    examples = jnp.any(batch.target_mask, axis=-1)
    return jnp.sum(
      retriever.emdr2_weights(
        batch.target_mask, level=level, passage_mask=batch.passage_mask, example_mask=examples
      )
    )


@dataclasses.dataclass(frozen=True)
class NoGoldScore(GoldScore):
  """Leaves the retriever as it is, or to the reading."""

  teaches: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class Perplexity(GoldScore):
  """Perplexity distillation: log p(target | query, passage) (Atlas, eq. 3)."""

  reduction: str = 'sum'

  settings: ClassVar[Mapping[str, str]] = {'reduction': 'gold_reduction'}

  def scores(self, passes: Passes, batch: ReaderBatch) -> Float[Array, 'b k']:
    return gold_scores.perplexity(
      passes.log_probs_of_each(), batch.target_mask, reduction=self.reduction
    )


@dataclasses.dataclass(frozen=True)
class LeaveOneOut(Perplexity):
  """Leave-one-out perplexity (Atlas, eq. 6)."""

  def scores(self, passes: Passes, batch: ReaderBatch) -> Float[Array, 'b k']:
    return gold_scores.leave_one_out(
      passes.log_probs_leaving_out(), batch.target_mask, reduction=self.reduction
    )


@dataclasses.dataclass(frozen=True)
class Attention(GoldScore):
  """Attention distillation (Atlas, eq. 2); `layers`: of the last ones, None for all."""

  normalization: str = 'average'
  layers: int | None = None

  reads_attention: ClassVar[bool] = True
  settings: ClassVar[Mapping[str, str]] = {
    'normalization': 'gold_normalization',
    'layers': 'gold_attention_layers',
  }

  def scores(self, passes: Passes, batch: ReaderBatch) -> Float[Array, 'b k']:
    return gold_scores.attention(
      passes.attention_norms(batch.target_mask, self.layers),
      batch.reader_mask,
      batch.target_mask,
      n_layers=self.layers or passes.config.num_decoder_layers,
      normalization=self.normalization,
    )


@dataclasses.dataclass(frozen=True)
class Emdr2(GoldScore):
  """EMDR²: the passage as a latent variable; its gold scores are by token."""

  level: str = 'sequence'

  settings: ClassVar[Mapping[str, str]] = {'level': 'emdr2_level'}

  def scores(self, passes: Passes, batch: ReaderBatch) -> Float[Array, 'b k t']:
    # The released EMDR² alone divides the reader's logits.
    return passes.log_probs_of_each(self.temperature_gold if self.level == 'token' else 1.0)

  def by_passage(self, gold: Float[Array, 'b k t'], batch: ReaderBatch) -> Float[Array, 'b k']:
    return gold_scores.perplexity(gold, batch.target_mask)

  def loss(
    self, scores: Float[Array, 'b k'], gold: Float[Array, 'b k t'], batch: ReaderBatch
  ) -> WeightedSum:
    return retriever.emdr2_weighted_sum(
      scores,
      gold,
      batch.target_mask,
      temperature_score=self.temperature_score,
      level=self.level,
      passage_mask=batch.passage_mask,
      example_mask=jnp.any(batch.target_mask, axis=-1),
    )

  def loss_weight(self, batch: ReaderBatch) -> Float[Array, '']:
    return self._loss_weight(batch, self.level)

  def target_logits(
    self, scores: Float[Array, 'b k'], gold: Float[Array, 'b k']
  ) -> Float[Array, 'b k']:
    # Its gradient pulls the retriever to the posterior over passages.
    return scores / self.temperature_score + gold


GOLD_SCORES: dict[str, type[GoldScore]] = {
  'none': NoGoldScore,
  'perplexity': Perplexity,
  'attention': Attention,
  'leave_one_out': LeaveOneOut,
  'emdr2': Emdr2,
}
