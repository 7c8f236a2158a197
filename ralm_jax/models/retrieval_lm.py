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
from ralm_jax.losses import gold_scores
from ralm_jax.losses import retriever as retriever_losses
from ralm_jax.losses import sequence
from ralm_jax.losses.sequence import WeightedSum
from ralm_jax.models import bert
from ralm_jax.models import dual_encoder
from ralm_jax.models import fid
from ralm_jax.models import t5

Array = jax.Array
Params = Any

GOLD_SCORES = ('none', 'perplexity')
GOLD_ENCODERS = ('separate', 'shared')


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


@flax.struct.dataclass
class LossOutput:
  """Losses as sums with weights, and metrics likewise."""

  reader: WeightedSum
  retriever: WeightedSum
  metrics: dict[str, WeightedSum]


@dataclasses.dataclass(frozen=True)
class RetrievalLM:
  """A Fusion-in-Decoder reader with a dual-encoder retriever.

  Attributes:
    reader_config: of the T5 reader.
    retriever_config: of both towers of the retriever.
    pooling: 'mean' (Contriever) or 'cls' (DPR).
    tied_retriever: one tower for queries and passages.
    normalize_embeddings: unit-length embeddings.
    train_retriever: whether the retriever has a loss at all.
    gold_score: 'perplexity' (perplexity distillation) or 'none'.
    gold_reduction: 'sum' (paper) or 'mean' (released).
    gold_encoder: 'separate' encodes the passages anew without dropout for the
      gold scores; 'shared' reuses the reader's encoder states. They are the
      same, and shared, where the reader's dropout is 0.
    gold_chunk: passages scored at a time, to bound memory; None scores all.
    n_context: passages the reader reads, in retrieval order; None reads all.
      All passages are scored for distillation.
    temperature_score: divides the retriever's scores.
    temperature_gold: divides the gold scores.
    kl_reduction: 'batch' (paper) or 'element' (released).
    retriever_loss_weight: factor of the retriever's loss.
    label_smoothing: of the reader's loss.
    z_loss: of the reader's loss.
  """

  reader_config: t5.T5Config = t5.T5Config()
  retriever_config: bert.BertConfig = bert.BertConfig()
  pooling: str = 'mean'
  tied_retriever: bool = True
  normalize_embeddings: bool = False
  train_retriever: bool = True
  gold_score: str = 'perplexity'
  gold_reduction: str = 'sum'
  gold_encoder: str = 'separate'
  gold_chunk: int | None = None
  n_context: int | None = None
  temperature_score: float = 0.1
  temperature_gold: float = 0.1
  kl_reduction: str = 'batch'
  retriever_loss_weight: float = 1.0
  label_smoothing: float = 0.0
  z_loss: float = 0.0

  def __post_init__(self):
    for name, known in (
        ('gold_score', GOLD_SCORES),
        ('gold_encoder', GOLD_ENCODERS),
        ('pooling', dual_encoder.POOLINGS),
    ):
      if getattr(self, name) not in known:
        raise ValueError(
            f'RetrievalLM.{name} {getattr(self, name)!r} is unknown; choose '
            f'one of {known}.'
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

  @property
  def distils(self) -> bool:
    """Whether a step trains the retriever."""
    return self.train_retriever and self.gold_score != 'none'

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

  def loss_weights(self, batch: ReaderBatch) -> tuple[Array, Array]:
    """Weights of the reader's and the retriever's loss over a whole batch."""
    targets = batch.target_mask
    examples = jnp.any(targets, axis=-1) & jnp.any(batch.passage_mask, axis=-1)
    return (
        jnp.sum(targets.astype(jnp.float32)),
        jnp.sum(examples.astype(jnp.float32)),
    )

  def loss_fn(
      self, params: Params, batch: ReaderBatch, dropout_rng: Array | None
  ) -> LossOutput:
    """Losses of one batch or microbatch.

    Args:
      params: `{'reader': ..., 'retriever': ...}`.
      batch: the arrays.
      dropout_rng: None for no dropout.

    Returns:
      The losses as sums with weights: reader tokens, retriever examples.
    """
    reader_rng = retriever_rng = None
    if dropout_rng is not None:
      reader_rng, retriever_rng = jax.random.split(dropout_rng)
    drops = reader_rng is not None and self.reader_config.dropout_rate > 0

    n_context = self.n_context or batch.reader_tokens.shape[1]
    context_mask = batch.reader_mask[:, :n_context]
    variables = {'params': params['reader']}
    rngs = {'dropout': reader_rng} if drops else {}
    encoded, logits = nn.apply(_read, self.reader)(
        variables, batch.reader_tokens[:, :n_context], context_mask,
        batch.target_tokens, deterministic=not drops, rngs=rngs,
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
    retriever_loss = WeightedSum(zero, zero)
    if self.distils:
      reuse = encoded if not drops or self.gold_encoder == 'shared' else None
      log_probs = self.passage_log_probs(params, batch, encoded_context=reuse)
      retriever_loss, retriever_metrics = self._distil(
          params, batch, log_probs, retriever_rng
      )
      metrics.update(retriever_metrics)
    return LossOutput(reader_loss, retriever_loss, metrics)

  def passage_log_probs(
      self,
      params: Params,
      batch: ReaderBatch,
      *,
      encoded_context: Array | None = None,
  ) -> Array:
    """log p(target token | query, one passage), without dropout or gradient.

    Args:
      params: of the model.
      batch: the arrays.
      encoded_context: [B, n, L, embed], encoder states of the first n passages
        to reuse.

    Returns:
      float32 [B, K, T].
    """
    reader = self.reader
    variables = jax.lax.stop_gradient({'params': params['reader']})
    decoder_inputs = t5.shift_right(
        batch.target_tokens, self.reader_config.decoder_start_id
    )
    n_passages = batch.reader_tokens.shape[1]
    have = 0
    parts = []
    if encoded_context is not None:
      parts.append(jax.lax.stop_gradient(encoded_context))
      have = encoded_context.shape[1]
    if have < n_passages:
      parts.append(reader.apply(
          variables, batch.reader_tokens[:, have:], batch.reader_mask[:, have:],
          method='encode_passages',
      ))
    encoded = jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    def score(encoded: Array, mask: Array) -> Array:
      logits = reader.apply(
          variables, encoded, mask, decoder_inputs, method='decode_each'
      )
      return sequence.token_log_probs(logits, batch.target_tokens[:, None])

    chunk = self.gold_chunk
    if not chunk or chunk >= n_passages:
      return score(encoded, batch.reader_mask)
    if n_passages % chunk:
      raise ValueError(
          f'RetrievalLM.gold_chunk {chunk} must divide the number of passages '
          f'{n_passages}.'
      )

    def split(array: Array) -> Array:  # [B, K, ...] -> [K/chunk, B, chunk, ...]
      array = array.reshape(
          array.shape[0], n_passages // chunk, chunk, *array.shape[2:]
      )
      return jnp.moveaxis(array, 1, 0)

    scored = jax.lax.map(
        lambda xs: score(*xs), (split(encoded), split(batch.reader_mask))
    )
    return jnp.moveaxis(scored, 0, 1).reshape(
        encoded.shape[0], n_passages, -1
    )

  def _distil(
      self,
      params: Params,
      batch: ReaderBatch,
      log_probs: Array,
      dropout_rng: Array | None,
  ) -> tuple[WeightedSum, dict[str, WeightedSum]]:
    """The retriever's loss and statistics from log_probs [B, K, T]."""
    drops = dropout_rng is not None and self.retriever_config.dropout_rate > 0
    scores = self.retriever.apply(
        {'params': params['retriever']},
        batch.query_tokens, batch.query_mask,
        batch.retriever_tokens, batch.retriever_mask,
        deterministic=not drops,
        rngs={'dropout': dropout_rng} if drops else {},
    )
    gold = gold_scores.perplexity(
        log_probs, batch.target_mask, reduction=self.gold_reduction
    )
    examples = jnp.any(batch.target_mask, axis=-1)
    loss = retriever_losses.kl_weighted_sum(
        scores, gold,
        temperature_score=self.temperature_score,
        temperature_gold=self.temperature_gold,
        passage_mask=batch.passage_mask,
        example_mask=examples,
        reduction=self.kl_reduction,
    )
    weights = (examples & jnp.any(batch.passage_mask, -1)).astype(jnp.float32)

    def mean(values: Array) -> WeightedSum:
      return WeightedSum(jnp.sum(values * weights), jnp.sum(weights))

    masked = lambda x: jnp.where(batch.passage_mask, x, -jnp.inf)
    entropy = retriever_losses.entropy
    agreement = jnp.argmax(masked(scores), -1) == jnp.argmax(masked(gold), -1)
    return loss, {
        'retriever/entropy': mean(
            entropy(scores / self.temperature_score, batch.passage_mask)),
        'retriever/gold_entropy': mean(
            entropy(gold / self.temperature_gold, batch.passage_mask)),
        'retriever/gold_agreement': mean(agreement.astype(jnp.float32)),
    }

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
) -> tuple[Array, Array]:
  """Encoder states and logits of one forward pass."""
  encoded = reader.encode_passages(tokens, mask, deterministic=deterministic)
  decoder_inputs = t5.shift_right(
      target_tokens, reader.config.decoder_start_id
  )
  logits = reader.decode_fused(
      encoded, mask, decoder_inputs, deterministic=deterministic
  )
  return encoded, logits
