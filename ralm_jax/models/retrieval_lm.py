"""RetrievalLM: reader and retriever behind loss, prediction and scoring.

The model is stateless: parameters are `{'reader': ..., 'retriever': ...}` and
every method is a pure function of them and of arrays. No gradient flows from
the retriever's loss to the reader, from the reader's loss to the retriever, or
through the search.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from ralm_jax.losses import sequence
from ralm_jax.losses.sequence import WeightedSum
from ralm_jax.models import decoder_stack, dual_encoder, fid, prediction, rag, rag_loss, reranking
from ralm_jax.models.bert import BertConfig
from ralm_jax.models.dual_encoder import DualEncoder
from ralm_jax.models.fid import PassageReader, ReaderConfig
from ralm_jax.models.generation import Prefix
from ralm_jax.models.gold_passes import GoldPasses
from ralm_jax.models.prediction import Decoded, DecodingOptions
from ralm_jax.models.reader_batch import LossOutput, ReaderBatch
from ralm_jax.models.reranking import Reranked
from ralm_jax.models.retriever_objective import RetrieverObjective
from ralm_jax.models.t5 import T5Config

Array = jax.Array
Params = Any


@dataclasses.dataclass(frozen=True)
class RetrievalLM(RetrieverObjective):
  """A reader with a dual-encoder retriever.

  Attributes, beside those of `RetrieverObjective`:
    reader_config: of the T5 or BART reader.
    retriever_config: of both towers of the retriever.
    pooling: 'mean' (Contriever) or 'cls' (DPR).
    tied_retriever: one tower for queries and passages.
    normalize_embeddings: unit-length embeddings.
    scale_scores: the retriever's scores are divided by sqrt(dim) (Atlas); else
      they are plain inner products (RAG).
    n_context: passages the reader reads, in retrieval order; None reads all.
      All passages are scored for distillation.
    retriever_loss_weight: factor of the retriever's loss.
    label_smoothing: of the reader's loss.
    z_loss: of the reader's loss.
  """

  reader_config: ReaderConfig = T5Config()
  retriever_config: BertConfig = BertConfig()
  pooling: str = 'mean'
  tied_retriever: bool = True
  normalize_embeddings: bool = False
  scale_scores: bool = True
  n_context: int | None = None
  retriever_loss_weight: float = 1.0
  label_smoothing: float = 0.0
  z_loss: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    if self.pooling not in dual_encoder.POOLINGS:
      raise ValueError(
        f'RetrievalLM.pooling {self.pooling!r} is unknown; choose one of {dual_encoder.POOLINGS}.'
      )
    if self.query_side in ('stored', 'frozen') and self.tied_retriever:
      raise ValueError(
        f'RetrievalLM.query_side {self.query_side!r} keeps the passage '
        'encoder as it is, which takes two towers; set tied_retriever = '
        "False, or query_side = 'released' for the released code's "
        'behaviour.'
      )
    if self.query_side == 'released' and not self.tied_retriever:
      raise ValueError(
        "RetrievalLM.query_side 'released' is that of tied towers; with "
        "tied_retriever = False choose 'stored' or 'frozen'."
      )
    if self.marginalizes:
      for name, neutral in (('n_context', None), ('label_smoothing', 0.0), ('z_loss', 0.0)):
        if getattr(self, name) != neutral:
          raise ValueError(
            f'RetrievalLM.{name} does not go with reading = '
            f'{self.reading!r}; leave it at {neutral}.'
          )
    n_layers = self.reader_config.num_decoder_layers
    if not 1 <= (self.gold_attention_layers or 1) <= n_layers:
      raise ValueError(
        f'RetrievalLM.gold_attention_layers {self.gold_attention_layers} is '
        f'not between 1 and the {n_layers} decoder layers.'
      )

  @property
  def reader(self) -> PassageReader:
    return fid.make_reader(self.reader_config)

  @property
  def retriever(self) -> DualEncoder:
    return DualEncoder(
      self.retriever_config,
      pooling=self.pooling,
      tied=self.tied_retriever,
      normalize=self.normalize_embeddings,
      scale_scores=self.scale_scores,
    )

  @property
  def score_divisor(self) -> float:
    """What a search's inner products are divided by before the softmax."""
    dim = self.retriever.embedding_dim if self.scale_scores else 1
    return self.temperature_score * dim**0.5

  def init(self, rng: Array) -> Params:
    """Random parameters, boxed with their logical axes (`nn.meta`)."""
    reader_rng, retriever_rng = jax.random.split(rng)
    # Parameter shapes do not depend on these lengths.
    tokens = jnp.zeros((1, 1, 8), jnp.int32)
    reader = self.reader.init(reader_rng, tokens, tokens, tokens[:, 0])
    retriever = self.retriever.init(retriever_rng, tokens[0], tokens[0], tokens, tokens)
    return {'reader': reader['params'], 'retriever': retriever['params']}

  def encode_queries(self, params: Params, tokens: Array, mask: Array) -> Array:
    """int [batch, length], mask -> float32 [batch, dim], without dropout."""
    return self.retriever.apply(
      {'params': params['retriever']}, tokens, mask, method='encode_queries'
    )

  def encode_passages(self, params: Params, tokens: Array, mask: Array) -> Array:
    """int [..., length], mask -> float32 [..., dim], without dropout."""
    return self.retriever.apply(
      {'params': params['retriever']}, tokens, mask, method='encode_passages'
    )

  def loss_fn(
    self,
    params: Params,
    batch: ReaderBatch,
    dropout_rng: Array | None,
    *,
    retriever_learns: Array | None = None,
  ) -> LossOutput:
    """Losses of one batch or microbatch.

    Args:
      params: `{'reader': ..., 'retriever': ...}`.
      batch: the arrays.
      dropout_rng: None for no dropout.
      retriever_learns: bool [], false leaves the retriever's loss out, and what
        it costs but for the attention norms of the reader's own pass; of RAG
        the retriever's gradient. None is true.

    Returns:
      The losses as sums with weights: reader tokens, retriever examples.
    """
    reader_rng = retriever_rng = None
    if dropout_rng is not None:
      reader_rng, retriever_rng = jax.random.split(dropout_rng)
    if self.marginalizes:
      return self._marginal_loss(params, batch, reader_rng, retriever_rng, retriever_learns)
    drops = reader_rng is not None and fid.has_dropout(self.reader_config)
    shares = not drops or self.gold_encoder == 'shared'

    n_passages = batch.reader_tokens.shape[1]
    n_context = min(self.n_context or n_passages, n_passages)
    # Passages that are scored but not read would be missing from the norms.
    keeps_norms = (
      self.distils
      and shares
      and n_context == n_passages
      and 'attention' in (self.gold_score, *self.compared_gold_scores)
    )
    encoded, logits, norms = nn.apply(fid.read, self.reader)(
      {'params': params['reader']},
      batch.reader_tokens[:, :n_context],
      batch.reader_mask[:, :n_context],
      batch.target_tokens,
      deterministic=not drops,
      norm_weights=batch.target_mask if keeps_norms else None,
      norm_layers=self.gold_attention_layers,
      rngs={'dropout': reader_rng} if drops else {},
    )
    reader_loss = sequence.cross_entropy(
      logits,
      batch.target_tokens,
      batch.target_mask,
      label_smoothing=self.label_smoothing,
      z_loss=self.z_loss,
    )
    metrics = {'accuracy': sequence.correct_tokens(logits, batch.target_tokens, batch.target_mask)}
    zero = jnp.zeros((), jnp.float32)
    if not self.distils:
      return LossOutput(reader_loss, WeightedSum(zero, zero), metrics)

    def distil() -> tuple[WeightedSum, dict[str, WeightedSum]]:
      passes = self.make_gold_passes(params, batch, encoded if shares else None)
      return self.retriever_loss(
        batch,
        self.retriever_scores(params, batch, retriever_rng),
        self.gold_scores(passes, batch, attention_norms=norms),
      )

    if retriever_learns is None:
      retriever_loss, retriever_metrics = distil()
    else:
      nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(distil))
      retriever_loss, retriever_metrics = jax.lax.cond(retriever_learns, distil, lambda: nothing)
    return LossOutput(reader_loss, retriever_loss, metrics | retriever_metrics)

  def _marginal_loss(
    self,
    params: Params,
    batch: ReaderBatch,
    reader_rng: Array | None,
    retriever_rng: Array | None,
    retriever_learns: Array | None,
  ) -> LossOutput:
    drops = reader_rng is not None and fid.has_dropout(self.reader_config)
    log_probs = rag_loss.token_log_probs(
      self.reader,
      params['reader'],
      batch,
      dropout_rng=reader_rng if drops else None,
      chunk=self.gold_chunk,
    )
    scores = self.retriever_scores(params, batch, retriever_rng)
    if not self.train_retriever:
      scores = jax.lax.stop_gradient(scores)
    elif retriever_learns is not None:
      scores = jnp.where(retriever_learns, scores, jax.lax.stop_gradient(scores))
    loss, metrics = rag_loss.marginal_loss(
      log_probs, scores / self.temperature_score, batch, reading=self.reading
    )
    zero = jnp.zeros((), jnp.float32)
    return LossOutput(loss, WeightedSum(zero, zero), metrics)

  def make_gold_passes(
    self, params: Params, batch: ReaderBatch, encoded_context: Array | None = None
  ) -> GoldPasses:
    """The passes behind the gold scores.

    Args:
      params: of the model.
      batch: the arrays.
      encoded_context: [B, n, L, embed], encoder states of the first n passages
        to reuse.
    """
    return GoldPasses(
      self.reader,
      params['reader'],
      batch.reader_tokens,
      batch.reader_mask,
      batch.target_tokens,
      encoded_context,
      self.gold_chunk,
    )

  def retriever_scores(
    self, params: Params, batch: ReaderBatch, dropout_rng: Array | None = None
  ) -> Array:
    """Scores of the passages, with the gradients that `query_side` lets.

    Args:
      params: of the model.
      batch: the arrays.
      dropout_rng: None for no dropout; a frozen passage encoder has none.

    Returns:
      float32 [B, K].
    """
    drops = dropout_rng is not None and self.retriever_config.dropout_rate > 0
    rngs = {'dropout': dropout_rng} if drops else {}
    variables = {'params': params['retriever']}
    if self.query_side is None:
      return self.retriever.apply(
        variables,
        batch.query_tokens,
        batch.query_mask,
        batch.retriever_tokens,
        batch.retriever_mask,
        deterministic=not drops,
        rngs=rngs,
      )
    queries = self.retriever.apply(
      variables,
      batch.query_tokens,
      batch.query_mask,
      deterministic=not drops,
      rngs=rngs,
      method='encode_queries',
    )
    if self.query_side == 'stored':
      passages = batch.passage_embeddings.astype(jnp.float32)
    else:
      passages = self.encode_passages(params, batch.retriever_tokens, batch.retriever_mask)
    return dual_encoder.retriever_scores(
      queries, jax.lax.stop_gradient(passages), scale=self.scale_scores
    )

  def rerank(
    self, params: Params, batch: ReaderBatch, n_passages: int, *, chunk: int | None = None
  ) -> Reranked:
    """Keeps the best of a stale index's candidates; see `reranking.rerank`."""
    return reranking.rerank(
      self.encode_queries, self.encode_passages, params, batch, n_passages, chunk=chunk
    )

  def log_prior(self, params: Params, batch: ReaderBatch) -> Array:
    """log p(passage | query), of the search's scores or of the encoders.

    Args:
      params: of the model.
      batch: with `passage_scores`, else with the retriever's inputs.

    Returns:
      float32 [B, K].
    """
    if batch.passage_scores is not None:
      scores = batch.passage_scores / self.score_divisor
    else:
      scores = self.retriever_scores(params, batch) / self.temperature_score
    return rag.log_prior(scores, batch.passage_mask)

  def predict(
    self,
    params: Params,
    batch: ReaderBatch,
    *,
    max_length: int,
    options: DecodingOptions = DecodingOptions(),
    rng: Array | None = None,
    **kwargs: Any,
  ) -> Decoded:
    """Answers; only the reader's fields of `batch` are read.

    Args:
      params: of the model.
      batch: reader_tokens and reader_mask [B, K, L]; for RAG `passage_mask` and
        what `log_prior` needs; `prefix_tokens` and `prefix_lengths` where
        answers have a prefix.
      max_length: tokens to produce at most.
      options: how tokens are chosen.
      rng: key of the draws, with `options.sample`.
      **kwargs: of `prediction.predict`: `rag_decoding`, `candidate_chunk`,
        `prefill_chunk`.
    """
    n_context = self.n_context or batch.reader_tokens.shape[1]
    prefix = None
    if batch.prefix_tokens is not None:
      prefix = Prefix(batch.prefix_tokens, batch.prefix_lengths)
    return prediction.predict(
      self.reader,
      params['reader'],
      batch.reader_tokens[:, :n_context],
      batch.reader_mask[:, :n_context],
      reading=self.reading,
      max_length=max_length,
      options=options,
      log_prior=self.log_prior(params, batch) if self.marginalizes else None,
      prefix=prefix,
      rng=rng,
      **kwargs,
    )

  def score(self, params: Params, batch: ReaderBatch) -> Array:
    """log p(target | query, passages together or marginal): float32 [B]."""
    if self.marginalizes:
      log_probs = rag_loss.token_log_probs(
        self.reader, params['reader'], batch, chunk=self.gold_chunk
      )
      likelihood = (
        rag.sequence_log_likelihood if self.reading == 'rag_sequence' else rag.token_log_likelihood
      )
      return likelihood(self.log_prior(params, batch), log_probs, batch.target_mask)
    n_context = self.n_context or batch.reader_tokens.shape[1]
    logits = self.reader.apply(
      {'params': params['reader']},
      batch.reader_tokens[:, :n_context],
      batch.reader_mask[:, :n_context],
      decoder_stack.shift_right(batch.target_tokens, self.reader_config.decoder_start_id),
    )
    log_probs = sequence.token_log_probs(logits, batch.target_tokens)
    return jnp.sum(log_probs * batch.target_mask, axis=-1)
