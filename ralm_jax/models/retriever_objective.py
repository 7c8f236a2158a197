"""What teaches the retriever: one of four losses of the reader's signals."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ralm_jax.losses import diagnostics, gold_scores as gold_scores_lib, retriever
from ralm_jax.losses.sequence import WeightedSum
from ralm_jax.models.gold_passes import GoldPasses
from ralm_jax.models.reader_batch import ReaderBatch

Array = jax.Array

GOLD_SCORES = ('none', 'perplexity', 'attention', 'leave_one_out', 'emdr2')
READINGS = ('fusion', 'rag_sequence', 'rag_token')
GOLD_ENCODERS = ('separate', 'shared')
QUERY_SIDES = (None, 'stored', 'frozen', 'released')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrieverObjective:
  """The retriever's loss and which of its parameters it trains.

  Attributes:
    reading: how the reader reads: 'fusion' of all passages in its decoder;
      'rag_sequence' or 'rag_token', one passage at a time and marginal over
      them, where the reader's own loss teaches the retriever (gold_score =
      'none').
    train_retriever: whether the retriever has a loss at all.
    gold_score: what teaches the retriever: 'perplexity' (perplexity
      distillation), 'attention' (attention distillation), 'leave_one_out'
      (leave-one-out perplexity), 'emdr2', or 'none'.
    gold_reduction: of 'perplexity' and 'leave_one_out': 'sum' over the target's
      tokens (paper) or 'mean' (released).
    gold_normalization: of 'attention': 'average' (paper) or 'released'.
    gold_attention_layers: of 'attention': how many of the last decoder layers
      count; None counts all.
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
  gold_attention_layers: int | None = None
  emdr2_level: str = 'sequence'
  gold_encoder: str = 'separate'
  gold_chunk: int | None = None
  compared_gold_scores: tuple[str, ...] = ()
  query_side: str | None = None
  temperature_score: float = 0.1
  temperature_gold: float = 0.1
  kl_reduction: str = 'batch'

  def __post_init__(self):
    # gin and JSON hand over lists; a model must stay hashable for jit.
    object.__setattr__(self, 'compared_gold_scores', tuple(self.compared_gold_scores))
    for name, known in (
      ('reading', READINGS),
      ('gold_score', GOLD_SCORES),
      ('gold_reduction', gold_scores_lib.REDUCTIONS),
      ('gold_normalization', gold_scores_lib.NORMALIZATIONS),
      ('gold_encoder', GOLD_ENCODERS),
      ('emdr2_level', retriever.EMDR2_LEVELS),
      ('kl_reduction', retriever.KL_REDUCTIONS),
      ('query_side', QUERY_SIDES),
    ):
      if getattr(self, name) not in known:
        raise ValueError(
          f'RetrievalLM.{name} {getattr(self, name)!r} is unknown; choose one of {known}.'
        )
    if self.marginalizes and (self.gold_score != 'none' or self.compared_gold_scores):
      raise ValueError(
        f'RetrievalLM.reading {self.reading!r} trains the retriever by its own '
        f"likelihood; set gold_score = 'none' (it is {self.gold_score!r}) and "
        'compared_gold_scores = () (gin: GOLD_SCORE).'
      )
    for name in self.compared_gold_scores:
      if name not in GOLD_SCORES[1:]:
        raise ValueError(
          f'RetrievalLM.compared_gold_scores names {name!r}; choose from {GOLD_SCORES[1:]}.'
        )

  @property
  def marginalizes(self) -> bool:
    """Whether the reader's likelihood is marginal over passages (RAG)."""
    return self.reading != 'fusion'

  @property
  def distils(self) -> bool:
    """Whether the retriever has a loss of its own."""
    return self.train_retriever and self.gold_score != 'none'

  @property
  def learns_retriever(self) -> bool:
    """Whether a step trains the retriever, by any loss."""
    return self.distils or (self.train_retriever and self.marginalizes)

  @property
  def scores_passages(self) -> bool:
    """Whether a training batch needs the retriever's inputs."""
    return self.distils or self.marginalizes

  @property
  def uses_stored_embeddings(self) -> bool:
    """Whether a batch needs `passage_embeddings` from the index."""
    return self.scores_passages and self.query_side == 'stored'

  @property
  def frozen_towers(self) -> tuple[str, ...]:
    """Parts of the retriever's parameters that training leaves as they are."""
    return ('passage_encoder',) if self.query_side in ('stored', 'frozen') else ()

  @property
  def moves_passages(self) -> bool:
    """Whether training changes passage embeddings, so that an index ages."""
    return self.learns_retriever and self.query_side in (None, 'released')

  def loss_weights(self, batch: ReaderBatch) -> tuple[Array, Array]:
    """Weights of the reader's and the retriever's loss over a whole batch.

    Target tokens and examples; RAG's only loss counts examples.
    """
    if self.marginalizes:
      targets = jnp.any(batch.target_mask, axis=-1).astype(jnp.float32)
      return jnp.sum(targets), jnp.zeros((), jnp.float32)
    level = self.emdr2_level if self.gold_score == 'emdr2' else 'sequence'
    examples = retriever.emdr2_weights(
      batch.target_mask,
      level=level,
      passage_mask=batch.passage_mask,
      example_mask=jnp.any(batch.target_mask, axis=-1),
    )
    return (jnp.sum(batch.target_mask.astype(jnp.float32)), jnp.sum(examples))

  def gold_scores(
    self, passes: GoldPasses, batch: ReaderBatch, attention_norms: Array | None = None
  ) -> dict[str, Array]:
    """What the reader says of the passages, without dropout or gradient.

    Args:
      passes: the reader's forward passes over the batch.
      batch: its masks.
      attention_norms: [B, K, L], of a reading of all passages, to reuse.

    Returns:
      float32 [B, K] under the name of `gold_score` and of each of
      `compared_gold_scores`; for 'emdr2' log p(target | query, passage). Under
      'token_log_probs', [B, K, T], what EMDR² is computed from.
    """
    wanted = (self.gold_score, *self.compared_gold_scores)
    if {'perplexity', 'leave_one_out', 'emdr2'} & set(wanted) or (attention_norms is None):
      encoded = passes.encoded()
    result: dict[str, Array] = {}
    # The released EMDR² alone divides the reader's logits.
    released = self.emdr2_level == 'token'
    if 'perplexity' in wanted or ('emdr2' in wanted and not released):
      log_probs = passes.log_probs_of_each(encoded)
    if 'perplexity' in wanted:
      result['perplexity'] = gold_scores_lib.perplexity(
        log_probs, batch.target_mask, reduction=self.gold_reduction
      )
    if 'emdr2' in wanted:
      if released:
        log_probs = passes.log_probs_of_each(encoded, temperature=self.temperature_gold)
      result['token_log_probs'] = log_probs
      result['emdr2'] = gold_scores_lib.perplexity(log_probs, batch.target_mask)
    if 'leave_one_out' in wanted:
      result['leave_one_out'] = gold_scores_lib.leave_one_out(
        passes.log_probs_leaving_out(encoded), batch.target_mask, reduction=self.gold_reduction
      )
    if 'attention' in wanted:
      n_layers = self.gold_attention_layers
      if attention_norms is None:
        attention_norms = passes.attention_norms(encoded, batch.target_mask, n_layers)
      result['attention'] = gold_scores_lib.attention(
        attention_norms,
        batch.reader_mask,
        batch.target_mask,
        n_layers=n_layers or passes.reader.config.num_decoder_layers,
        normalization=self.gold_normalization,
      )
    return result

  def retriever_loss(
    self, batch: ReaderBatch, scores: Array, gold: dict[str, Array]
  ) -> tuple[WeightedSum, dict[str, WeightedSum]]:
    """The retriever's loss and statistics.

    Args:
      batch: its masks.
      scores: [B, K], of the retriever.
      gold: from `gold_scores`.
    """
    mask = batch.passage_mask
    examples = jnp.any(batch.target_mask, axis=-1)
    logits = scores / self.temperature_score
    own = gold[self.gold_score]
    if self.gold_score == 'emdr2':
      loss = retriever.emdr2_weighted_sum(
        scores,
        gold['token_log_probs'],
        batch.target_mask,
        temperature_score=self.temperature_score,
        level=self.emdr2_level,
        passage_mask=mask,
        example_mask=examples,
      )
      # Its gradient pulls the retriever to the posterior over passages.
      target_logits = logits + own
    else:
      loss = retriever.kl_weighted_sum(
        scores,
        own,
        temperature_score=self.temperature_score,
        temperature_gold=self.temperature_gold,
        passage_mask=mask,
        example_mask=examples,
        reduction=self.kl_reduction,
      )
      target_logits = own / self.temperature_gold
    weights = (examples & jnp.any(mask, axis=-1)).astype(jnp.float32)

    def mean(values: Array) -> WeightedSum:
      values = jax.lax.stop_gradient(values).astype(jnp.float32)
      return WeightedSum(jnp.sum(values * weights), jnp.sum(weights))

    entropy = retriever.entropy
    metrics = {
      'retriever/entropy': mean(entropy(logits, mask)),
      'retriever/gold_entropy': mean(entropy(target_logits, mask)),
      'retriever/gold_agreement': mean(diagnostics.same_best(scores, own, mask)),
      'retriever/rank_correlation': mean(diagnostics.spearman(scores, own, mask)),
    }
    for name in self.compared_gold_scores:
      metrics[f'gold_correlation/{self.gold_score}-{name}'] = mean(
        diagnostics.pearson(own, gold[name], mask)
      )
    return loss, metrics
