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
import flax.struct
import jax
import jax.numpy as jnp

from ralm_jax.decoding import greedy
from ralm_jax.losses import sequence
from ralm_jax.losses.sequence import WeightedSum
from ralm_jax.models import bert
from ralm_jax.models import dual_encoder
from ralm_jax.models import fid
from ralm_jax.models import gold_passes
from ralm_jax.models import layers
from ralm_jax.models import retriever_objective
from ralm_jax.models import t5
from ralm_jax.models.reader_batch import LossOutput, ReaderBatch

Array = jax.Array
Params = Any


@flax.struct.dataclass
class Reranked:
  """What re-ranking keeps.

  Attributes:
    batch: with the passages kept.
    chosen: int32 [B, n_passages], which candidates they were.
    scores: float32 [B, n_passages], query . passage; -inf for missing ones.
  """

  batch: ReaderBatch
  chosen: Array
  scores: Array


@dataclasses.dataclass(frozen=True)
class RetrievalLM(retriever_objective.RetrieverObjective):
  """A Fusion-in-Decoder reader with a dual-encoder retriever.

  Attributes, beside those of `RetrieverObjective`:
    reader_config: of the T5 reader.
    retriever_config: of both towers of the retriever.
    pooling: 'mean' (Contriever) or 'cls' (DPR).
    tied_retriever: one tower for queries and passages.
    normalize_embeddings: unit-length embeddings.
    n_context: passages the reader reads, in retrieval order; None reads all.
      All passages are scored for distillation.
    retriever_loss_weight: factor of the retriever's loss.
    label_smoothing: of the reader's loss.
    z_loss: of the reader's loss.
  """

  reader_config: t5.T5Config = t5.T5Config()
  retriever_config: bert.BertConfig = bert.BertConfig()
  pooling: str = 'mean'
  tied_retriever: bool = True
  normalize_embeddings: bool = False
  n_context: int | None = None
  retriever_loss_weight: float = 1.0
  label_smoothing: float = 0.0
  z_loss: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    if self.pooling not in dual_encoder.POOLINGS:
      raise ValueError(
          f'RetrievalLM.pooling {self.pooling!r} is unknown; choose one of '
          f'{dual_encoder.POOLINGS}.'
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
    n_layers = self.reader_config.num_decoder_layers
    if not 1 <= (self.gold_attention_layers or 1) <= n_layers:
      raise ValueError(
          f'RetrievalLM.gold_attention_layers {self.gold_attention_layers} is '
          f'not between 1 and the {n_layers} decoder layers.'
      )

  @property
  def reader(self) -> fid.FusionInDecoder:
    return fid.FusionInDecoder(self.reader_config)

  @property
  def retriever(self) -> dual_encoder.DualEncoder:
    return dual_encoder.DualEncoder(
        self.retriever_config,
        pooling=self.pooling,
        tied=self.tied_retriever,
        normalize=self.normalize_embeddings,
    )

  def init(self, rng: Array) -> Params:
    """Random parameters, boxed with their logical axes (`nn.meta`)."""
    reader_rng, retriever_rng = jax.random.split(rng)
    # Parameter shapes do not depend on these lengths.
    tokens = jnp.zeros((1, 1, 8), jnp.int32)
    reader = self.reader.init(reader_rng, tokens, tokens, tokens[:, 0])
    retriever = self.retriever.init(
        retriever_rng, tokens[0], tokens[0], tokens, tokens
    )
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
        it costs but for the attention norms of the reader's own pass; None is
        true.

    Returns:
      The losses as sums with weights: reader tokens, retriever examples.
    """
    reader_rng = retriever_rng = None
    if dropout_rng is not None:
      reader_rng, retriever_rng = jax.random.split(dropout_rng)
    drops = reader_rng is not None and self.reader_config.dropout_rate > 0
    shares = not drops or self.gold_encoder == 'shared'

    n_passages = batch.reader_tokens.shape[1]
    n_context = min(self.n_context or n_passages, n_passages)
    # Passages that are scored but not read would be missing from the norms.
    keeps_norms = (
        self.distils and shares and n_context == n_passages
        and 'attention' in (self.gold_score, *self.compared_gold_scores)
    )
    encoded, logits, norms = nn.apply(_read, self.reader)(
        {'params': params['reader']},
        batch.reader_tokens[:, :n_context], batch.reader_mask[:, :n_context],
        batch.target_tokens, deterministic=not drops,
        norm_weights=batch.target_mask if keeps_norms else None,
        norm_layers=self.gold_attention_layers,
        rngs={'dropout': reader_rng} if drops else {},
    )
    reader_loss = sequence.cross_entropy(
        logits, batch.target_tokens, batch.target_mask,
        label_smoothing=self.label_smoothing, z_loss=self.z_loss,
    )
    metrics = {
        'accuracy': sequence.correct_tokens(
            logits, batch.target_tokens, batch.target_mask
        ),
    }
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
      nothing = jax.tree.map(
          lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(distil)
      )
      retriever_loss, retriever_metrics = jax.lax.cond(
          retriever_learns, distil, lambda: nothing
      )
    return LossOutput(reader_loss, retriever_loss, metrics | retriever_metrics)

  def make_gold_passes(
      self,
      params: Params,
      batch: ReaderBatch,
      encoded_context: Array | None = None,
  ) -> gold_passes.GoldPasses:
    """The passes behind the gold scores.

    Args:
      params: of the model.
      batch: the arrays.
      encoded_context: [B, n, L, embed], encoder states of the first n passages
        to reuse.
    """
    return gold_passes.GoldPasses(
        self.reader, params['reader'], batch.reader_tokens, batch.reader_mask,
        batch.target_tokens, encoded_context, self.gold_chunk,
    )

  def retriever_scores(
      self, params: Params, batch: ReaderBatch, dropout_rng: Array | None = None
  ) -> Array:
    """query . passage / sqrt(dim), with the gradients that `query_side` lets.

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
          variables, batch.query_tokens, batch.query_mask,
          batch.retriever_tokens, batch.retriever_mask,
          deterministic=not drops, rngs=rngs,
      )
    queries = self.retriever.apply(
        variables, batch.query_tokens, batch.query_mask,
        deterministic=not drops, rngs=rngs, method='encode_queries',
    )
    if self.query_side == 'stored':
      passages = batch.passage_embeddings.astype(jnp.float32)
    else:
      passages = self.encode_passages(
          params, batch.retriever_tokens, batch.retriever_mask
      )
    return dual_encoder.retriever_scores(
        queries, jax.lax.stop_gradient(passages)
    )

  def rerank(
      self,
      params: Params,
      batch: ReaderBatch,
      n_passages: int,
      *,
      chunk: int | None = None,
  ) -> Reranked:
    """Keeps the best of a stale index's candidates (Atlas, section 2.4).

    Args:
      params: of the model; the candidates are encoded with them.
      batch: the arrays of B examples with L candidates each.
      n_passages: how many to keep, from 1 to L.
      chunk: candidates encoded at a time, to bound memory; None encodes all.

    Returns:
      A batch of `n_passages` passages, by falling score; missing ones last.

    Raises:
      ValueError: there are fewer candidates than passages to keep.
    """
    candidates = batch.passage_mask.shape[1]
    if candidates < n_passages:
      raise ValueError(
          f'{n_passages} passages cannot be kept of {candidates} candidates.'
      )
    queries = self.encode_queries(params, batch.query_tokens, batch.query_mask)
    tokens, mask = batch.retriever_tokens, batch.retriever_mask
    encode = lambda part: self.encode_passages(params, *part)
    if chunk and chunk < candidates:
      split = lambda array: layers.split_passages(array, chunk, 'rerank_chunk')
      passages = layers.join_passages(
          jax.lax.map(encode, (split(tokens), split(mask)))
      )
    else:
      passages = encode((tokens, mask))
    scores = jnp.einsum('bd,bnd->bn', queries, passages)
    scores = jnp.where(batch.passage_mask, scores, -jnp.inf)
    scores, chosen = jax.lax.top_k(scores, n_passages)

    def keep(array: Array) -> Array:
      index = chosen.reshape(chosen.shape + (1,) * (array.ndim - 2))
      return jnp.take_along_axis(array, index, axis=1)

    per_passage = ('reader_tokens', 'reader_mask', 'passage_mask',
                   'retriever_tokens', 'retriever_mask')
    kept = batch.replace(
        **{name: keep(getattr(batch, name)) for name in per_passage}
    )
    return Reranked(kept, chosen, scores)

  def predict(
      self, params: Params, batch: ReaderBatch, *, max_length: int
  ) -> greedy.GreedyOutput:
    """Greedy answers; only the reader's fields of `batch` are read.

    Args:
      params: of the model.
      batch: reader_tokens and reader_mask [B, K, L].
      max_length: tokens to produce at most.
    """
    n_context = self.n_context or batch.reader_tokens.shape[1]
    tokens = batch.reader_tokens[:, :n_context]
    mask = batch.reader_mask[:, :n_context]
    reader, variables = self.reader, {'params': params['reader']}
    encoded = reader.apply(variables, tokens, mask, method='encode_passages')
    size = tokens.shape[0]
    flat_mask = mask.reshape(size, -1)
    start = jnp.full((size, 1), self.reader_config.decoder_start_id, jnp.int32)
    # The first call computes and caches the cross-attention keys and values.
    logits, cache = reader.apply(
        variables,
        encoded.reshape(size, -1, encoded.shape[-1]),
        flat_mask, start, method='decode', decode=True,
        max_decode_length=max_length, mutable=['cache'],
    )

    def step(token: Array, cache: Any) -> tuple[Array, Any]:
      return reader.apply(
          {**variables, **cache}, None, flat_mask, token, method='decode',
          decode=True, max_decode_length=max_length, mutable=['cache'],
      )

    return greedy.greedy_decode(
        step, cache, logits[:, 0],
        max_length=max_length, eos_id=self.reader_config.eos_id,
        pad_id=self.reader_config.pad_id,
    )

  def score(self, params: Params, batch: ReaderBatch) -> Array:
    """log p(target | query, passages together): float32 [B]."""
    n_context = self.n_context or batch.reader_tokens.shape[1]
    logits = self.reader.apply(
        {'params': params['reader']},
        batch.reader_tokens[:, :n_context], batch.reader_mask[:, :n_context],
        t5.shift_right(
            batch.target_tokens, self.reader_config.decoder_start_id
        ),
    )
    log_probs = sequence.token_log_probs(logits, batch.target_tokens)
    return jnp.sum(log_probs * batch.target_mask, axis=-1)


def _read(
    reader: fid.FusionInDecoder,
    tokens: Array,
    mask: Array,
    target_tokens: Array,
    *,
    deterministic: bool,
    norm_weights: Array | None,
    norm_layers: int | None,
) -> tuple[Array, Array, Array | None]:
  """Encoder states, logits and attention norms of one forward pass."""
  encoded = reader.encode_passages(tokens, mask, deterministic=deterministic)
  decoder_inputs = t5.shift_right(
      target_tokens, reader.config.decoder_start_id
  )
  decoded = reader.decode_fused(
      encoded, mask, decoder_inputs, deterministic=deterministic,
      norm_weights=norm_weights, norm_layers=norm_layers,
  )
  logits, norms = (decoded, None) if norm_weights is None else decoded
  return encoded, logits, norms
