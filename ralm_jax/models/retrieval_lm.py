"""RetrievalLM: reader and retriever behind loss, prediction and scoring.

The model is stateless: parameters are `{'reader': ..., 'retriever': ...}` and every method is a
pure function of them and of arrays. No gradient flows from the retriever's loss to the reader, from
the reader's loss to the retriever, or through the search.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from ralm_jax.decoding.options import DecodingOptions
from ralm_jax.decoding.stepper import Decoded
from ralm_jax.losses.array_types import Array, Bool, Float, Int, PyTree
from ralm_jax.models import layers
from ralm_jax.models.choices import ChoiceTokens
from ralm_jax.models.decoder_lm import Context
from ralm_jax.models.generation import Generation, Prefix
from ralm_jax.models.reader_and_retriever import ReaderAndRetriever
from ralm_jax.models.reader_batch import LossOutput, ReaderBatch
from ralm_jax.models.readings import READINGS, Reading
from ralm_jax.models.readings.reading import Randomness

__all__ = ['LossOutput', 'ReaderBatch', 'RetrievalLM']


@dataclasses.dataclass(frozen=True)
class RetrievalLM(ReaderAndRetriever):
  """A reader with a dual-encoder retriever; attributes as those of its bases."""

  def __post_init__(self):
    self.check_choice('reading', READINGS)
    super().__post_init__()
    if not isinstance(self.reader_config, self.reading_object.readers):
      name = type(self.reader_config).__name__.removesuffix('Config')
      kind = {'Decoder': 'decoder-only'}.get(name, name)
      raise ValueError(
        f'RetrievalLM.reading {self.reading!r} is not what a {kind} reader can do; choose '
        f'{" or ".join(map(repr, self._possible_readings))} (--reading; gin: READING).'
      )
    self.reading_object.check(self)

  @property
  def reading_object(self) -> Reading:
    return READINGS[self.reading]()

  @property
  def _possible_readings(self) -> list[str]:
    return [n for n, kind in READINGS.items() if isinstance(self.reader_config, kind.readers)]

  @property
  def marginalizes(self) -> bool:
    """Whether the reader's likelihood is marginal over passages (RAG)."""
    return self.reading_object.marginalizes

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
  def moves_passages(self) -> bool:
    """Whether training changes passage embeddings, so that an index ages."""
    return self.learns_retriever and self.query_side in (None, 'released')

  def closed_book(self) -> RetrievalLM:
    """The same reader without a prior over passages, and without a retriever's loss."""
    together = next(name for name in self._possible_readings if not READINGS[name].marginalizes)
    return dataclasses.replace(self, reading=together, train_retriever=False)

  def loss_weights(self, batch: ReaderBatch) -> tuple[Float[Array, ''], Float[Array, '']]:
    """Weights of the reader's and the retriever's loss over a whole batch."""
    return self.reading_object.loss_weights(self, batch)

  def loss_fn(
    self,
    params: PyTree,
    batch: ReaderBatch,
    dropout_rng: Array | None,
    *,
    retriever_learns: Bool[Array, ''] | None = None,
  ) -> LossOutput:
    """Losses of one batch or microbatch, as sums with their weights.

    Args:
      params: `{'reader': ..., 'retriever': ...}`.
      batch: the arrays.
      dropout_rng: None for no dropout.
      retriever_learns: false leaves the retriever's loss out, and what it costs but for the
        attention norms of the reader's own pass; of RAG the retriever's gradient. None is true.
    """
    return self.reading_object.loss(
      self, params, self._read(batch), Randomness.split(dropout_rng), retriever_learns
    )

  def score(self, params: PyTree, batch: ReaderBatch) -> Float[Array, ' b']:
    """log p(target | query, passages together or marginal)."""
    return self.reading_object.score(self, params, self._read(batch))

  def _read(self, batch: ReaderBatch) -> ReaderBatch:
    return batch.without_empty_slots(self.n_read(batch))

  def predict(
    self,
    params: PyTree,
    batch: ReaderBatch,
    *,
    max_length: int,
    options: DecodingOptions = DecodingOptions(),
    rng: Array | None = None,
    **generation: Any,
  ) -> Decoded:
    """Answers; only the reader's fields of `batch` are read.

    Those are its passages, for RAG `passage_mask` and what `log_prior` needs, and
    `prefix_tokens` and `prefix_lengths` where answers have a prefix. `rng` is the key of the
    draws, or one an example; `generation` are further fields of `Generation`.
    """
    batch = self._read(batch)
    prefix = None
    if batch.prefix_tokens is not None:
      prefix = Prefix(batch.prefix_tokens, batch.given('prefix_lengths'))
    passages = self.reading_object.passages(
      self, params, batch, Generation(max_length, options, **generation), prefix
    )
    prior = self.log_prior(params, batch) if self.marginalizes else None
    return self.reading_object.predict(passages, log_prior=prior, rng=rng)

  def read_apart(
    self, params: PyTree, head: Context | None, tokens: Int[Array, 'm s'], mask: Bool[Array, 'm s']
  ) -> Context:
    """Texts read by themselves, behind a head if there is one, by a decoder-only reader.

    One without a head may be `ReaderBatch.head_context`; passages, `joined`, `passages_context`.
    """
    contexts = () if head is None else (head,)
    return layers.call(
      self.reader, params['reader'], tokens, mask, contexts, logits=0, method='read'
    )[1]

  def choice_logits(
    self, params: PyTree, batch: ReaderBatch, choices: ChoiceTokens
  ) -> Float[Array, 'b options']:
    """Unnormalised log-probabilities of the options of a multiple choice."""
    return self.reading_object.choice_logits(self, params, self._read(batch), choices)

  def passage_effects(self, params: PyTree, batch: ReaderBatch) -> Float[Array, 'b k']:
    """log p(target | all passages) - log p(target | all but this one).

    Positive where the passage makes the target likelier. A passage that the
    reader does not read (`n_context`), or the only one there is, has no effect.
    """
    effects = self.reading_object.passage_effects(self, params, self._read(batch))
    n_passages, n_read = batch.passage_mask.shape[1], effects.shape[1]
    there = batch.passage_mask[:, :n_read]
    # Without its last passage a reader attends to nothing at all.
    others = jnp.sum(there, axis=-1, keepdims=True) > 1
    effects = jnp.where(others & there, effects, 0.0)
    return jnp.pad(effects, ((0, 0), (0, n_passages - n_read)))
