"""Evaluator: questions to answers, with their passages and metrics."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
import dataclasses
import functools
import os
from typing import Any

import jax
import numpy as np

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.data.questions.reading import Question
from ralm_jax.data.ragged import RaggedTokens
from ralm_jax.data.text.prompts import PromptFormat
from ralm_jax.evaluation import gathering, passage_sources, prediction_files, records
from ralm_jax.evaluation.answering import AnswerOptions
from ralm_jax.evaluation.demonstrations import Demonstrations, Pool
from ralm_jax.evaluation.passage_sources import PassageSource
from ralm_jax.evaluation.read_contexts import ReadContexts
from ralm_jax.evaluation.records import Answer, AnsweredPassage
from ralm_jax.evaluation.scores import retrieval
from ralm_jax.evaluation.task import PassageOptions, ReadingOptions, ScoringOptions
from ralm_jax.files import progress as progress_lib
from ralm_jax.losses.array_types import Bool, Float, Int
from ralm_jax.models.prediction import Decoded
from ralm_jax.models.reader_batch import ReaderBatch
from ralm_jax.retrieval.retriever import PassageRetriever, Retrieved
from ralm_jax.training import partitioning
from ralm_jax.training.partitioning import PartitionedFunction, Partitioner

PyTree = Any


class Predictor(abc.ABC):
  """Makes a record of each question."""

  metrics: str  #: the family that answers are scored by

  @abc.abstractmethod
  def predictions(
    self, params: PyTree, questions: Sequence[Question], *, done: int = 0, progress: bool = False
  ) -> Iterator[dict[str, Any]]:
    """One `predictions.jsonl` record a question of this process, in order.

    Every process gives the whole list. The first `done` batches are left out, since
    they have been answered before.
    """

  def evaluate(
    self,
    params: PyTree,
    questions: Sequence[Question],
    *,
    output: str | os.PathLike[str] | None = None,
    progress: bool = False,
  ) -> dict[str, Any]:
    """Answers all questions; the metrics over all processes, see `summary.summarize`.

    Every process gives the whole list. `output` is a folder for predictions.jsonl and metrics.json.
    """
    predict = functools.partial(self.predictions, params, questions, progress=progress)
    return prediction_files.write(predict, output, metrics=self.metrics)


class Evaluator(Predictor):
  """Answers questions and scores the answers.

  With a retriever that follows, another index may be served at any time: the batches that are
  searched from then on are answered from it and its corpus, each batch from one index. (On several
  processes that holds for the part of a batch that each of them searches for.)
  """

  def __init__(
    self,
    spec: Specification,
    partitioner: Partitioner,
    retriever: PassageRetriever | None,
    *,
    batch_size: int = 32,
    passages: PassageOptions = PassageOptions(),
    answering: AnswerOptions = AnswerOptions(),
    scoring: ScoringOptions = ScoringOptions(),
    how_read: ReadingOptions = ReadingOptions(),
    shown: Pool | None = None,
  ):
    """The retriever finds `passages.depth` passages.

    There is none where they come from the questions' file, or the model is closed-book.
    `batch_size` is that of all processes together. Without metrics, scoring is of the family 'qa'.
    Demonstrations are chosen of `shown`.
    """
    closed_book = spec.text.closed_book
    if scoring.retrieve_only and (closed_book or scoring.passage_effects or scoring.with_loss):
      raise ValueError(
        'Without the reader there are neither answers nor likelihoods: retrieving alone goes '
        'neither with closed-book models nor with --passage_effects or --with_loss.'
      )
    if scoring.passage_effects and (closed_book or answering.decoder_prefix):
      raise ValueError(
        '--passage_effects goes neither with closed-book models, which read no passage, nor with '
        'a decoder prefix.'
      )
    answering.check_reading(spec.model.reading)
    spec = answering.with_room(spec)
    self.spec = spec
    self.partitioner = partitioner
    self.batch_size = batch_size
    self.size = gathering.per_process(batch_size, partitioner)
    self.metrics = scoring.metrics or 'qa'
    self._closed_book = closed_book
    self._source: PassageSource
    if closed_book:
      self._source = passage_sources.NoPassages(spec, self.size)
    elif passages.passages_from == 'file':
      self._source = passage_sources.PassagesOfFile(spec, partitioner, self.size, passages)
    elif retriever is not None:
      self._source = passage_sources.PassagesOfIndex(
        spec, partitioner, self.size, passages, retriever
      )
    else:
      raise ValueError('The model reads passages; give an index (--index or --retrieval_address).')
    self.demonstrations = Demonstrations(shown, spec, partitioner, self.size) if shown else None
    self._contexts = ReadContexts(spec, partitioner, how_read)
    self._answering = answering
    self.scoring = scoring
    self._predict = partitioner.partition_rows(self._decode)
    self._score = partitioner.partition_rows(spec.model.score)
    self._effects = partitioner.partition_rows(spec.model.passage_effects)

  @property
  def store(self) -> Any:
    """Whose rows the passages found last are; None for closed-book."""
    return self._source.store

  @property
  def source_id(self) -> str:
    """Names what passages are taken from, as it is now."""
    return self._source.name

  def _decode(self, params: PyTree, batch: ReaderBatch) -> Decoded:
    chosen, model, prompts = self._answering, self.spec.model, self.spec.tokenizer.prompts
    return model.predict(
      params,
      batch,
      max_length=chosen.max_length or self.spec.text.target_length,
      options=chosen.decoding,
      rag_decoding=chosen.rag_decoding,
      candidate_chunk=chosen.candidate_chunk,
      prefill_chunk=chosen.prefill_chunk,
      stop_ids=prompts.stop_ids if prompts else (),
      rng=None if batch.draw_keys is None else jax.random.wrap_key_data(batch.draw_keys),
    )

  def retrieve(self, params: PyTree, questions: Sequence[Question | str]) -> Retrieved:
    """Passages of at most `size` questions, then of padding, without what is excluded."""
    return self._source.retrieve(params, questions)

  def heads(
    self, params: PyTree, questions: Sequence[Question | str]
  ) -> Sequence[Sequence[int]] | None:
    """What prompts begin with: demonstrations (None: none); ValueError if one of them is asked."""
    if self.demonstrations is None or self.scoring.retrieve_only:
      return None
    return self.demonstrations.heads(params, questions, self._source)

  def answer(self, params: PyTree, questions: Sequence[Question | str]) -> list[Answer]:
    """Answers at most `size` questions; every process calls it as often, with its own."""
    heads = self.heads(params, questions)
    retrieved, found = self.find(params, questions, heads)
    if self.scoring.retrieve_only:
      return found
    tokenizer, prompts = self.spec.tokenizer, self.spec.tokenizer.prompts
    batch = self._contexts.add(params, self.reader_batch(questions, retrieved, heads=heads))
    keys = self._answering.draw_keys(list(map(passage_sources.question_text, questions)), self.size)
    keyed = _with_arrays(batch, draw_keys=keys)
    output = self._predict(params, self.partitioner.put_batch(keyed))
    tokens, log_probs = map(partitioning.local_rows, (output.tokens, output.log_probs))
    first = tokens[:, 0]
    if prompts:
      first, of_first = self._shown(params, batch, prompts, first, log_probs[:, 0])
      log_probs = np.concatenate([of_first[:, None], log_probs[:, 1:]], axis=1)
    answers: list[Answer] = []
    for rows, own, one in zip(tokens, log_probs, found):
      (text, log_prob), *others = zip(map(tokenizer.answer, rows), map(float, own))
      records.check_finite(log_prob, passage_sources.question_text(questions[len(answers)]))
      # Fewer answers than asked for may exist.
      more = tuple(other for other in others if np.isfinite(other[1]))
      answer = dataclasses.replace(one, prediction=text, log_probability=log_prob)
      ended = prompts is None or prompts.ends(rows[0])
      answers.append(dataclasses.replace(answer, alternatives=more, ended=ended))
    return self.with_likelihoods(params, batch, questions, first, answers)

  def _shown(
    self,
    params: PyTree,
    batch: ReaderBatch,
    prompts: PromptFormat,
    tokens: Int[np.ndarray, 'b t'],
    log_probs: Float[np.ndarray, ' b'],
  ) -> tuple[Int[np.ndarray, 'b t'], Float[np.ndarray, ' b']]:
    """Answers as targets, without what was decoded behind a stop string, and their likelihoods."""
    pad_id = self.spec.tokenizer.reader_vocabulary.pad_id
    ragged = RaggedTokens.from_lists(map(prompts.shown, tokens))
    shown = ragged.pad(tokens.shape[1], pad_id)
    if not prompts.has_long_stops:
      return shown, log_probs
    mask = np.arange(tokens.shape[1]) < ragged.lengths[:, None]
    of_shown = self._of_targets(self._score, params, batch, shown, mask)
    return shown, np.where(list(map(prompts.stops_within, tokens)), of_shown, log_probs)

  def find(
    self,
    params: PyTree,
    questions: Sequence[Question | str],
    heads: Sequence[Sequence[int]] | None = None,
  ) -> tuple[Retrieved, list[Answer]]:
    """Passages of a batch, also as answers that have no prediction yet.

    `heads` stand before them in the prompts.
    """
    retrieved = self.retrieve(params, questions)
    passages: list[tuple[AnsweredPassage, ...]] = [()] * len(questions)
    n_passages = 0
    if not self._closed_book:
      passages = self._passages(retrieved, questions, heads)
      n_passages = retrieved.rows.shape[1]
    answers = [
      Answer(None, None, shown, n_passages, retrieved.index_id, retrieved.generation)
      for shown in passages
    ]
    return retrieved, [
      dataclasses.replace(
        answer,
        cut=self.spec.tokenizer.cut(passage_sources.question_text(question)),
        unknown_gold_ids=self._source.unknown_gold(question),
      )
      for question, answer in zip(questions, answers)
    ]

  def reader_batch(
    self,
    questions: Sequence[Question | str],
    retrieved: Retrieved,
    targets: Sequence[str] | None = None,
    heads: Sequence[Sequence[int]] | None = None,
  ) -> ReaderBatch:
    """Host arrays for the reader, of at most `size` questions with their passages.

    `targets` are scored, one a question; None where answers are decoded. `heads` as for `find`.
    """
    texts = list(map(passage_sources.question_text, questions))
    queries = self.spec.tokenizer.batch(texts, targets, size=self.size)
    batch = self._source.assembler.reader_batch(
      queries, retrieved.rows, with_retriever=False, heads=heads
    )
    if self.spec.model.marginalizes:
      batch = _with_arrays(batch, passage_scores=retrieved.scores)
    prefixes = self._answering.prefixes(texts, self.size, self.spec.tokenizer)
    if prefixes is None:
      return batch
    return _with_arrays(batch, prefix_tokens=prefixes[0], prefix_lengths=prefixes[1])

  def with_likelihoods(
    self,
    params: PyTree,
    batch: ReaderBatch,
    questions: Sequence[Question | str],
    tokens: Int[np.ndarray, 'b t'],
    answers: list[Answer],
  ) -> list[Answer]:
    """Adds losses of targets, and effects of passages on `tokens`, where asked for."""
    if self.scoring.with_loss:
      answers = self._with_losses(params, batch, questions, answers)
    if self.scoring.passage_effects:
      answers = self._with_effects(params, batch, tokens, answers)
    return answers

  def _of_targets(
    self,
    function: PartitionedFunction,
    params: PyTree,
    batch: ReaderBatch,
    tokens: Int[np.ndarray, 'b t'],
    mask: Bool[np.ndarray, 'b t'],
  ) -> np.ndarray:
    targeted = _with_arrays(batch, target_tokens=tokens, target_mask=mask)
    return partitioning.local_rows(function(params, self.partitioner.put_batch(targeted)))

  def _with_losses(
    self,
    params: PyTree,
    batch: ReaderBatch,
    questions: Sequence[Question | str],
    answers: list[Answer],
  ) -> list[Answer]:
    """Adds the mean negative log-likelihood of a target's tokens."""
    targets = [
      getattr(q, 'target', None) or next(iter(getattr(q, 'answers', ())), '') for q in questions
    ]
    tokens = self.spec.tokenizer.batch([''] * len(targets), targets, size=self.size).target_tokens
    mask = tokens != self.spec.tokenizer.reader_vocabulary.pad_id
    mask[[i for i, target in enumerate(targets) if not target]] = False
    mask[len(targets) :] = False
    log_probs = self._of_targets(self._score, params, batch, tokens, mask)
    for question, log_prob in zip(questions, log_probs):
      records.check_finite(log_prob, passage_sources.question_text(question))
    return [
      dataclasses.replace(
        answer,
        loss=float(-log_prob / n),
        cut=(*answer.cut, *['target'] * self.spec.tokenizer.cuts_target(target)),
      )
      if n
      else answer
      for answer, target, log_prob, n in zip(answers, targets, log_probs, mask.sum(-1))
    ]

  def _with_effects(
    self, params: PyTree, batch: ReaderBatch, tokens: Int[np.ndarray, 'b t'], answers: list[Answer]
  ) -> list[Answer]:
    """Adds each passage's effect on the likelihood of the answer decoded."""
    mask = tokens != self.spec.tokenizer.reader_vocabulary.pad_id
    mask[len(answers) :] = False
    effects = self._of_targets(self._effects, params, batch, tokens, mask)
    return [
      dataclasses.replace(
        answer,
        passages=tuple(
          dataclasses.replace(shown, effect=float(effect))
          for shown, effect in zip(answer.passages, own)
        ),
      )
      for answer, own in zip(answers, effects)
    ]

  def _passages(
    self,
    retrieved: Retrieved,
    questions: Sequence[Question | str],
    heads: Sequence[Sequence[int]] | None,
  ) -> list[tuple[AnsweredPassage, ...]]:
    probabilities = retrieved.probabilities(self.spec.model.score_divisor)
    count, k = len(questions), retrieved.rows.shape[1]
    stored = self._source.store.passages(retrieved.rows[:count].ravel())
    queries = self.spec.tokenizer.batch(
      list(map(passage_sources.question_text, questions)), size=count
    )
    read = self._source.assembler.characters_read(
      queries, retrieved.rows[:count], stored, heads and heads[:count]
    )
    return [
      tuple(
        AnsweredPassage(
          stored[i * k + j],
          float(retrieved.scores[i, j]),
          float(probabilities[i, j]),
          None,
          *read[i * k + j],
        )
        for j in range(k)
        if retrieved.rows[i, j] >= 0
      )
      for i in range(count)
    ]

  def predictions(
    self, params: PyTree, questions: Sequence[Question], *, done: int = 0, progress: bool = False
  ) -> Iterator[dict[str, Any]]:
    """See `Predictor.predictions`."""
    mine = list(gathering.parts(questions, self.batch_size, process=jax.process_index(), done=done))
    for part in progress_lib.bar(mine, desc='answering', unit=' batches', show=progress):
      for question, answer in zip(part, self.answer(params, part)):
        yield records.prediction_record(question, answer, self.metrics, self.scoring)

  def retrieval_recall(self, params: PyTree, questions: Sequence[Question], *, k: int) -> float:
    """Share of questions with a gold passage in the first k; ValueError if none has any."""
    hits = []
    size = self.batch_size
    for first in range(0, len(questions), size):
      part = questions[first : first + size]
      retrieved = self.retrieve(params, part)
      for question, rows in zip(part, retrieved.rows):
        if not question.gold_passage_ids:
          continue
        shown = self._source.store.passages(rows[:k])
        found = retrieval.gold_hits(records.known_as(shown, question), question.gold_passage_ids)
        hits.append(bool(found.any()))
    if not hits:
      raise ValueError(
        'No question names a gold passage (gold_passage_id), so recall by passage is undefined.'
      )
    return float(np.mean(hits))


def _with_arrays(batch: ReaderBatch, **arrays: Any) -> ReaderBatch:
  return dataclasses.replace(batch, **arrays)  # host arrays, which are put on devices later
