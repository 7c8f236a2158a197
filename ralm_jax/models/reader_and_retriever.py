"""A reader and a retriever: their settings, and what is the same for every reading."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ralm_jax.losses import diagnostics, retriever as retriever_losses
from ralm_jax.losses.array_types import Array, Float, Int, PyTree, Shaped
from ralm_jax.losses.option_types import Amount, Count, Dropout
from ralm_jax.losses.sequence import WeightedSum
from ralm_jax.models import decoder_stack, dual_encoder, fid, layers, packing, rag, reranking
from ralm_jax.models.bert import BertConfig
from ralm_jax.models.decoder_config import DecoderConfig
from ralm_jax.models.decoder_lm import DecoderLM
from ralm_jax.models.distillation import GOLD_SCORES, GoldScore
from ralm_jax.models.dual_encoder import DualEncoder, EncoderConfig
from ralm_jax.models.fid import PassageReader, ReaderConfig
from ralm_jax.models.gold_passes import GoldPasses, Passes
from ralm_jax.models.prompt_passes import PromptPasses
from ralm_jax.models.reader_batch import ReaderBatch
from ralm_jax.models.reranking import Reranked
from ralm_jax.models.retriever_objective import RetrieverObjective
from ralm_jax.models.t5 import T5Config


@dataclasses.dataclass(frozen=True)
class ReaderAndRetriever(RetrieverObjective):
  """A reader with a dual-encoder retriever.

  Attributes, beside those of `RetrieverObjective`:
    reader_config: of the T5, BART or decoder-only reader.
    retriever_config: of both towers of the retriever.
    pooling: 'mean' (Contriever) or 'cls' (DPR).
    tied_retriever: one tower for queries and passages.
    normalize_embeddings: unit-length embeddings.
    scale_scores: the retriever's scores are divided by sqrt(dim) (Atlas); else
      they are plain inner products (RAG).
    n_context: passages the reader reads, in retrieval order; None reads all.
      All passages are scored for distillation.
    passage_order: of a decoder-only reader's prompt, see `packing.PASSAGE_ORDERS`.
    retriever_loss_weight: factor of the retriever's loss.
    label_smoothing: of the reader's loss.
    z_loss: of the reader's loss.
  """

  reader_config: ReaderConfig | DecoderConfig = T5Config()
  retriever_config: EncoderConfig = BertConfig()
  pooling: str = 'mean'
  tied_retriever: bool = True
  normalize_embeddings: bool = False
  scale_scores: bool = True
  n_context: Count | None = None
  passage_order: str = 'best_last'
  retriever_loss_weight: Amount = 1.0
  label_smoothing: Dropout = 0.0
  z_loss: Amount = 0.0

  def __post_init__(self):
    super().__post_init__()
    self.check_choice('gold_score', GOLD_SCORES)
    self.check_choice('pooling', dual_encoder.POOLINGS)
    self.check_choice('passage_order', packing.PASSAGE_ORDERS)
    teachers = tuple(name for name, kind in GOLD_SCORES.items() if kind.teaches)
    for name in self.compared_gold_scores:
      if name not in teachers:
        raise ValueError(
          f'RetrievalLM.compared_gold_scores names {name!r}; choose from {teachers}.'
        )
    if self.query_side in ('stored', 'frozen') and self.tied_retriever:
      raise ValueError(
        f'RetrievalLM.query_side {self.query_side!r} keeps the passage encoder as it is, which '
        "takes two towers; set tied_retriever = False, or query_side = 'released' for the released "
        "code's behaviour."
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
  def reader(self) -> PassageReader | DecoderLM:
    return self.decoder_reader or self.passage_reader

  @property
  def decoder_reader(self) -> DecoderLM | None:
    """The reader where it is decoder-only."""
    config = self.reader_config
    return DecoderLM(config) if isinstance(config, DecoderConfig) else None

  @property
  def passage_reader(self) -> PassageReader:
    """The reader with an encoder; ValueError where it has none."""
    if isinstance(self.reader_config, DecoderConfig):
      raise ValueError('A decoder-only reader has no encoder of passages.')
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
  def teacher(self) -> GoldScore:
    """The gold score in use."""
    return GOLD_SCORES[self.gold_score].of(self)

  @property
  def teachers(self) -> dict[str, GoldScore]:
    """The gold scores to compute: the one in use and those compared with it."""
    names = (self.gold_score, *self.compared_gold_scores)
    return {name: GOLD_SCORES[name].of(self) for name in names}

  @property
  def distils(self) -> bool:
    """Whether the retriever has a loss of its own."""
    return self.train_retriever and self.teacher.teaches

  @property
  def score_divisor(self) -> float:
    """What a search's inner products are divided by before the softmax."""
    dim = self.retriever.embedding_dim if self.scale_scores else 1
    return self.temperature_score * dim**0.5

  def n_read(self, batch: ReaderBatch) -> int:
    """How many of a batch's passages the reader reads."""
    n_passages = batch.reader_tokens.shape[1]
    return min(self.n_context or n_passages, n_passages)

  def init(self, rng: Array) -> PyTree:
    """Random parameters, boxed with their logical axes (`nn.meta`)."""
    reader_rng, retriever_rng = jax.random.split(rng)
    # Parameter shapes do not depend on these lengths.
    tokens = jnp.zeros((1, 1, 8), jnp.int32)
    inputs = (tokens[0], tokens[0]) if self.decoder_reader else (tokens, tokens, tokens[:, 0])
    reader = self.reader.init(reader_rng, *inputs)
    retriever = self.retriever.init(retriever_rng, tokens[0], tokens[0], tokens, tokens)
    return {'reader': reader['params'], 'retriever': retriever['params']}

  def encode_queries(
    self, params: PyTree, tokens: Int[Array, 'b q'], mask: Shaped[Array, 'b q']
  ) -> Float[Array, 'b d']:
    """Embeddings without dropout."""
    return layers.call(self.retriever, params['retriever'], tokens, mask, method='encode_queries')

  def encode_passages(
    self, params: PyTree, tokens: Int[Array, '*b p'], mask: Shaped[Array, '*b p']
  ) -> Float[Array, '*b d']:
    """Embeddings without dropout."""
    return layers.call(self.retriever, params['retriever'], tokens, mask, method='encode_passages')

  def decoder_inputs(self, target: Int[Array, ' t'], *, batch_size: int) -> Int[Array, 'b t']:
    """Of one target for all examples."""
    inputs = decoder_stack.shift_right(target[None], self.passage_reader.config.decoder_start_id)
    return jnp.broadcast_to(inputs, (batch_size, len(target)))

  def retriever_scores(
    self, params: PyTree, batch: ReaderBatch, dropout_rng: Array | None = None
  ) -> Float[Array, 'b k']:
    """Scores of the passages, with the gradients that `query_side` lets.

    A frozen passage encoder has no dropout.
    """
    drops = dropout_rng is not None and self.retriever_config.dropout_rate > 0
    apply = functools.partial(
      layers.call,
      self.retriever,
      params['retriever'],
      batch.given('query_tokens'),
      batch.given('query_mask'),
      deterministic=not drops,
      rngs={'dropout': dropout_rng} if drops else {},
    )
    tokens: Any = batch.retriever_tokens
    mask: Any = batch.retriever_mask
    if self.query_side is None:
      return apply(passage_tokens=tokens, passage_mask=mask)
    queries = apply(method='encode_queries')
    if self.query_side == 'stored':
      passages = batch.given('passage_embeddings').astype(jnp.float32)
    else:
      passages = self.encode_passages(params, tokens, mask)
    return dual_encoder.retriever_scores(
      queries, jax.lax.stop_gradient(passages), scale=self.scale_scores
    )

  def log_prior(self, params: PyTree, batch: ReaderBatch) -> Float[Array, 'b k']:
    """log p(passage | query), of the search's scores or else of the encoders."""
    if batch.passage_scores is not None:
      scores = batch.passage_scores / self.score_divisor
    else:
      scores = self.retriever_scores(params, batch) / self.temperature_score
    return rag.log_prior(scores, batch.passage_mask)

  def rerank(
    self, params: PyTree, batch: ReaderBatch, n_passages: int, *, chunk: int | None = None
  ) -> Reranked:
    """Keeps the best of a stale index's candidates; see `reranking.rerank`."""
    return reranking.rerank(
      self.encode_queries, self.encode_passages, params, batch, n_passages, chunk=chunk
    )

  def prompt_passes(
    self, params: PyTree, batch: ReaderBatch, dropout_rng: Array | None = None
  ) -> PromptPasses:
    """A decoder-only reader's passes over the prompts of a batch; ValueError for another one."""
    if self.decoder_reader is None:
      raise ValueError('A reader with an encoder reads no prompts.')
    return PromptPasses(
      self.decoder_reader,
      params['reader'],
      batch,
      self.passage_order,
      joined=self.reading == 'parallel',
      n_read=self.n_read(batch),
      chunk=self.gold_chunk,
      dropout_rng=dropout_rng,
    )

  def make_gold_passes(
    self,
    params: PyTree,
    batch: ReaderBatch,
    encoded_context: Float[Array, 'b n s d'] | None = None,
    context_variables: PyTree = None,
  ) -> Passes:
    """The passes behind the gold scores, with what is known already."""
    if self.decoder_reader:
      return self.prompt_passes(params, batch).frozen()
    return GoldPasses(
      self.passage_reader,
      params['reader'],
      batch.reader_tokens,
      batch.reader_mask,
      batch.target_tokens,
      encoded_context,
      context_variables,
      self.gold_chunk,
    )

  def gold_scores(self, passes: Passes, batch: ReaderBatch) -> dict[str, Array]:
    """What the reader says of the passages, by the names of the gold scores."""
    return {name: teacher.scores(passes, batch) for name, teacher in self.teachers.items()}

  def retriever_loss(
    self, batch: ReaderBatch, scores: Float[Array, 'b k'], gold: dict[str, Any]
  ) -> tuple[WeightedSum, dict[str, WeightedSum]]:
    """The retriever's loss and statistics, of its scores and of `gold_scores`."""
    teachers, mask = self.teachers, batch.passage_mask
    by_passage = {name: teachers[name].by_passage(gold[name], batch) for name in gold}
    teacher, own = teachers[self.gold_score], by_passage[self.gold_score]
    loss = teacher.loss(scores, gold[self.gold_score], batch)
    examples = jnp.any(batch.target_mask, axis=-1)
    weights = (examples & jnp.any(mask, axis=-1)).astype(jnp.float32)

    def mean(values: Shaped[Array, ' b']) -> WeightedSum:
      values = jax.lax.stop_gradient(values).astype(jnp.float32)
      return WeightedSum(jnp.sum(values * weights), jnp.sum(weights))

    entropy = retriever_losses.entropy
    metrics = {
      'retriever/entropy': mean(entropy(scores / self.temperature_score, mask)),
      'retriever/gold_entropy': mean(entropy(teacher.target_logits(scores, own), mask)),
      'retriever/gold_agreement': mean(diagnostics.same_best(scores, own, mask)),
      'retriever/rank_correlation': mean(diagnostics.spearman(scores, own, mask)),
    }
    for name in self.compared_gold_scores:
      metrics[f'gold_correlation/{self.gold_score}-{name}'] = mean(
        diagnostics.pearson(own, by_passage[name], mask)
      )
    return loss, metrics
