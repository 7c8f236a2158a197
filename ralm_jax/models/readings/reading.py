"""What a reading offers to `RetrievalLM`."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from ralm_jax.decoding.stepper import Decoded
from ralm_jax.losses.array_types import Array, Bool, Float, PyTree
from ralm_jax.models.bart import BartConfig
from ralm_jax.models.choices import ChoiceTokens
from ralm_jax.models.generation import Generation, Prefix
from ralm_jax.models.prediction import Passages, ReadPassages
from ralm_jax.models.prompt_passes import PromptedPassages
from ralm_jax.models.reader_and_retriever import ReaderAndRetriever
from ralm_jax.models.reader_batch import LossOutput, ReaderBatch
from ralm_jax.models.t5 import T5Config


@dataclasses.dataclass(frozen=True)
class Randomness:
  """Keys of dropout; None for no dropout."""

  reader: Array | None = None
  retriever: Array | None = None

  @classmethod
  def split(cls, rng: Array | None) -> Randomness:
    return cls() if rng is None else cls(*jax.random.split(rng))


class Reading:
  """The reader's use of its passages; stateless, all state is the model's.

  The fields of the model that a reading cannot honour are refused by `check`.
  """

  # Whether the likelihood is marginal over passages, by the prior p(z | x). Its
  # loss is then what teaches the retriever, and it reads every passage.
  marginalizes: ClassVar[bool] = False
  # Whether answers are searched under each passage, see `Generation.rag_decoding`.
  ranks_candidates: ClassVar[bool] = False
  # The kinds of readers that can read so: with an encoder (T5, BART), or decoder-only.
  readers: ClassVar[tuple[type, ...]] = (T5Config, BartConfig)
  # Whether a decoder-only reader reads all passages in one prompt.
  reads_together: ClassVar[bool] = False

  def check(self, model: ReaderAndRetriever) -> None:
    """Raises ValueError for fields of the model that do not go with it."""

  def loss_weights(
    self, model: ReaderAndRetriever, batch: ReaderBatch
  ) -> tuple[Float[Array, ''], Float[Array, '']]:
    """Weights of the reader's and the retriever's loss over a whole batch."""
    raise NotImplementedError

  def loss(
    self,
    model: ReaderAndRetriever,
    params: PyTree,
    batch: ReaderBatch,
    randomness: Randomness,
    retriever_learns: Bool[Array, ''] | None,
  ) -> LossOutput:
    """See `RetrievalLM.loss_fn`."""
    raise NotImplementedError

  def score(
    self, model: ReaderAndRetriever, params: PyTree, batch: ReaderBatch
  ) -> Float[Array, ' b']:
    """log p(target | query, passages together or marginal)."""
    raise NotImplementedError

  def passages(
    self,
    model: ReaderAndRetriever,
    params: PyTree,
    batch: ReaderBatch,
    generation: Generation,
    prefix: Prefix | None,
  ) -> Passages:
    """What `predict` decodes from."""
    if model.decoder_reader:
      return PromptedPassages(model.prompt_passes(params, batch), generation, prefix)
    n_read = model.n_read(batch)
    tokens, mask = batch.reader_tokens[:, :n_read], batch.reader_mask[:, :n_read]
    return ReadPassages(model.passage_reader, params['reader'], tokens, mask, generation, prefix)

  def predict(
    self,
    passages: Passages,
    *,
    log_prior: Float[Array, 'b k'] | None = None,
    rng: Array | None = None,
  ) -> Decoded:
    """Answers; the prior is there where the reading marginalizes."""
    raise NotImplementedError

  def choice_logits(
    self, model: ReaderAndRetriever, params: PyTree, batch: ReaderBatch, choices: ChoiceTokens
  ) -> Float[Array, 'b options']:
    """See `RetrievalLM.choice_logits`."""
    raise NotImplementedError

  def passage_effects(
    self, model: ReaderAndRetriever, params: PyTree, batch: ReaderBatch
  ) -> Float[Array, 'b n']:
    """log p(target | all) - log p(target | all but one), of the passages read."""
    raise NotImplementedError
