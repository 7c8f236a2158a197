"""Evaluator: questions to answers, with their passages and metrics."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import json
import os
from typing import Any

import jax
import numpy as np

from ralm_jax import progress as progress_lib
from ralm_jax import specification
from ralm_jax.data import batches
from ralm_jax.data import corpus as corpus_lib
from ralm_jax.data import dates
from ralm_jax.data import passage_ids
from ralm_jax.data import questions as questions_lib
from ralm_jax.evaluation import metrics as metrics_lib
from ralm_jax.evaluation import retrieval_metrics
from ralm_jax.retrieval import assembler as assembler_lib
from ralm_jax.retrieval import retriever as retriever_lib
from ralm_jax.training import multihost
from ralm_jax.training import partitioning

PyTree = Any
RECALL_AT = (1, 5, 20)


@dataclasses.dataclass(frozen=True)
class AnsweredPassage:
  """A passage the reader was given.

  Attributes:
    passage: as stored.
    score: inner product with the query.
    probability: of the retriever among the passages retrieved.
  """

  passage: corpus_lib.StoredPassage
  score: float
  probability: float


@dataclasses.dataclass(frozen=True)
class Answer:
  """What the model says to one question.

  Attributes:
    prediction: the answer's text.
    log_probability: of the answer's tokens.
    passages: best first; () closed-book.
    n_passages: asked for, of which filters may have left fewer; 0 closed-book.
  """

  prediction: str
  log_probability: float
  passages: tuple[AnsweredPassage, ...]
  n_passages: int = 0


class Evaluator:
  """Answers questions and scores the answers."""

  def __init__(
      self,
      spec: specification.Specification,
      partitioner: partitioning.Partitioner,
      retriever: retriever_lib.PassageRetriever | None,
      *,
      batch_size: int = 32,
      rerank_to: int | None = None,
      rerank_chunk: int | None = None,
  ):
    """Compiles nothing yet.

    Args:
      spec: the model and its texts.
      partitioner: of the mesh.
      retriever: None for closed-book.
      batch_size: questions at a time, over all processes.
      rerank_to: passages to keep of those the retriever finds, by the encoders
        of the parameters given; None keeps all, as the index has them.
      rerank_chunk: candidates encoded at a time; None encodes all.
    """
    if batch_size % jax.process_count():
      raise ValueError(
          f'The evaluation batch size {batch_size} must be a multiple of the '
          f'number of processes, {jax.process_count()}.'
      )
    shards = partitioner.mesh.shape[partitioning.DATA]
    if jax.process_count() > 1 and batch_size % shards:
      raise ValueError(
          f'On several processes the evaluation batch size {batch_size} must '
          f'be a multiple of the {shards} data partitions (gin: '
          'EVAL_BATCH_SIZE).'
      )
    if retriever is None and not spec.text.closed_book:
      raise ValueError(
          'The model reads passages; give an index (--index or '
          '--retrieval_address).'
      )
    self._spec = spec
    self._partitioner = partitioner
    self._retriever = None if spec.text.closed_book else retriever
    self._batch_size = batch_size
    self._agreement = multihost.Agreement()
    store = None if self._retriever is None else self._retriever.store
    self._rows_of = None if store is None else passage_ids.RowsOfIds(store)
    self._assembler = assembler_lib.Assembler(spec.tokenizer, store)
    self._encode = partitioner.partition_rows(spec.model.encode_queries)
    self._rerank = None
    if rerank_to is not None and self._retriever is not None:

      def rerank(params, candidates):
        reranked = spec.model.rerank(
            params, candidates, rerank_to, chunk=rerank_chunk)
        return reranked.chosen, reranked.scores

      self._rerank = partitioner.partition_rows(rerank)
    self._predict = partitioner.partition_rows(
        functools.partial(
            spec.model.predict, max_length=spec.text.target_length
        )
    )

  def _choose(
      self,
      params: PyTree,
      queries: batches.QueryBatch,
      retrieved: retriever_lib.Retrieved,
  ) -> retriever_lib.Retrieved:
    """The candidates that are best by the encoders of now."""
    candidates = self._assembler.reader_batch(queries, retrieved.rows)
    chosen, scores = (
        partitioning.local_rows(array) for array in
        self._rerank(params, self._partitioner.put_batch(candidates))
    )
    return retriever_lib.Retrieved(
        np.take_along_axis(retrieved.rows, chosen, axis=1), scores,
        retrieved.generation,
    )

  def retrieve(
      self, params: PyTree, questions: Sequence[questions_lib.Question | str]
  ) -> retriever_lib.Retrieved:
    """Passages of at most `batch_size / process_count` questions.

    What a Question excludes, or dates later than its own, is not retrieved.
    Rows beyond the questions are those of padding.
    """
    tokenizer = self._spec.tokenizer
    size = self._batch_size // jax.process_count()
    if self._retriever is None:
      return retriever_lib.Retrieved.none(size)
    queries = tokenizer.batch(list(map(_text, questions)), size=size)
    mask = queries.query_tokens != tokenizer.retriever_vocabulary.pad_id
    batch = self._partitioner.put_batch((queries.query_tokens, mask))
    embeddings = partitioning.local_rows(self._encode(params, *batch))
    # A search that fails on one host must not leave the others waiting.
    with self._agreement.together():
      retrieved = self._retriever.search(
          embeddings, *self._hidden(questions, size))
    if self._rerank is None:
      return retrieved
    return self._choose(params, queries, retrieved)

  def _hidden(
      self, questions: Sequence[questions_lib.Question | str], size: int
  ) -> tuple[np.ndarray | None, np.ndarray]:
    """`exclude_rows` and `max_dates` of questions and padding."""
    exclude_ids: list[Sequence[str]] = [()] * size
    max_dates = np.full(size, dates.NO_DATE_BOUND, np.int32)
    for i, question in enumerate(questions):
      if not isinstance(question, str):
        exclude_ids[i] = question.exclude_passage_ids
        max_dates[i] = question.max_date
    return self._rows_of(exclude_ids), max_dates

  def answer(
      self, params: PyTree, questions: Sequence[questions_lib.Question | str]
  ) -> list[Answer]:
    """Answers at most `batch_size / process_count` questions.

    Every process calls this with its own questions, as many times.
    """
    tokenizer = self._spec.tokenizer
    size = self._batch_size // jax.process_count()
    queries = tokenizer.batch(list(map(_text, questions)), size=size)
    retrieved = self.retrieve(params, questions)
    batch = self._assembler.reader_batch(
        queries, retrieved.rows, with_retriever=False
    )
    output = self._predict(params, self._partitioner.put_batch(batch))
    tokens = partitioning.local_rows(output.tokens)
    log_probs = partitioning.local_rows(output.log_probs)
    if self._retriever is None:
      passages, n_passages = [()] * len(questions), 0
    else:
      passages = self._passages(retrieved, len(questions))
      n_passages = retrieved.rows.shape[1]
    return [
        Answer(tokenizer.answer(row), float(log_prob), shown, n_passages)
        for row, log_prob, shown in zip(tokens, log_probs, passages)
    ]

  def _passages(
      self, retrieved: retriever_lib.Retrieved, count: int
  ) -> list[tuple[AnsweredPassage, ...]]:
    probabilities = retrieved.probabilities(
        self._spec.model.temperature_score, self._retriever.embedding_dim
    )
    stored = self._retriever.store.passages(retrieved.rows[:count].ravel())
    k = retrieved.rows.shape[1]
    return [
        tuple(
            AnsweredPassage(
                stored[i * k + j],
                float(retrieved.scores[i, j]),
                float(probabilities[i, j]),
            )
            for j in range(k)
            if retrieved.rows[i, j] >= 0
        )
        for i in range(count)
    ]

  def predictions(
      self,
      params: PyTree,
      questions: Sequence[questions_lib.Question],
      *,
      progress: bool = False,
  ) -> Iterator[dict[str, Any]]:
    """One `predictions.jsonl` record a question of this process, in order."""
    index, count = jax.process_index(), jax.process_count()
    size = self._batch_size // count
    starts = range(0, len(questions), self._batch_size)
    for start in progress_lib.bar(
        starts, desc='answering', unit=' batches', show=progress
    ):
      first = start + index * size
      mine = questions[first : min(first + size, start + self._batch_size)]
      answers = self.answer(params, mine)
      for question, answer in zip(mine, answers):
        yield prediction_record(question, answer)

  def retrieval_recall(
      self,
      params: PyTree,
      questions: Sequence[questions_lib.Question],
      *,
      k: int,
  ) -> float:
    """Share of questions with a gold passage among the first k; no reader.

    Raises:
      ValueError: no question names a gold passage.
    """
    hits = []
    size = self._batch_size
    for first in range(0, len(questions), size):
      part = questions[first : first + size]
      retrieved = self.retrieve(params, part)
      for question, rows in zip(part, retrieved.rows):
        if not question.gold_passage_ids:
          continue
        shown = self._retriever.store.passages(rows[:k])
        found = retrieval_metrics.gold_hits(
            _known_as(shown, question), question.gold_passage_ids)
        hits.append(bool(found.any()))
    if not hits:
      raise ValueError(
          'No question names a gold passage (gold_passage_id), so recall by '
          'passage is undefined.'
      )
    return float(np.mean(hits))

  def evaluate(
      self,
      params: PyTree,
      questions: Sequence[questions_lib.Question],
      *,
      output: str | os.PathLike[str] | None = None,
      progress: bool = False,
  ) -> dict[str, float | int | None]:
    """Answers all questions and averages the metrics over all processes.

    Args:
      params: of the model.
      questions: the whole list, on every process.
      output: folder for predictions.jsonl and metrics.json; None writes none.
      progress: show a progress bar.

    Returns:
      The mean of each metric (0 to 1) and `count`; a metric that applies to no
      question is None.
    """
    rows = []
    records = self.predictions(params, questions, progress=progress)
    if output is None:
      rows = [record['metrics'] for record in records]
    else:
      os.makedirs(output, exist_ok=True)
      name = 'predictions.jsonl'
      if jax.process_count() > 1:
        name += f'-{jax.process_index():05}-of-{jax.process_count():05}'
      path = os.path.join(output, name)
      with open(path + '.partial', 'w', encoding='utf-8') as file:
        for record in records:
          rows.append(record['metrics'])
          file.write(json.dumps(record, ensure_ascii=False) + '\n')
        file.flush()
        os.fsync(file.fileno())
      os.replace(path + '.partial', path)
    means = _mean_over_processes(rows)
    if output is not None and jax.process_index() == 0:
      path = os.path.join(output, 'metrics.json')
      with open(path + '.partial', 'w', encoding='utf-8') as file:
        json.dump(means, file, indent=2)
        file.write('\n')
      os.replace(path + '.partial', path)
    return means


def prediction_record(
    question: questions_lib.Question, answer: Answer
) -> dict[str, Any]:
  """The object of one line of `predictions.jsonl`."""
  passages = [
      {
          'id': shown.passage.id,
          'title': shown.passage.title,
          'text': shown.passage.text,
          'score': shown.score,
          'probability': shown.probability,
      }
      for shown in answer.passages
  ]
  return {
      'id': question.id,
      'query': question.question,
      'answers': list(question.answers),
      'prediction': answer.prediction,
      'log_probability': answer.log_probability,
      'passages': passages,
      'metrics': answer_metrics(question, answer),
  }


def answer_metrics(
    question: questions_lib.Question, answer: Answer
) -> dict[str, float | None]:
  """Metrics of one answer; retrieval by answer string and by gold passage."""
  result: dict[str, float | None] = {}
  if question.answers:
    result['exact_match'] = metrics_lib.exact_match(
        answer.prediction, question.answers)
    result['f1'] = metrics_lib.f1(answer.prediction, question.answers)
  if answer.n_passages:
    shown = [item.passage for item in answer.passages]
    ranks = retrieval_metrics.rank_passages(
        [f'{p.title} {p.text}' for p in shown],
        _known_as(shown, question),
        question.answers,
        question.gold_passage_ids,
    )
    for kind, rank in (('answer', ranks.answer), ('gold', ranks.gold)):
      result |= retrieval_metrics.rank_metrics(
          rank, answer.n_passages, RECALL_AT, kind)
  return result


def _text(question: questions_lib.Question | str) -> str:
  return question if isinstance(question, str) else question.question


def _known_as(
    passages: Sequence[corpus_lib.StoredPassage],
    question: questions_lib.Question,
) -> list[str]:
  """Ids as the question may name them.

  Any part of a long passage is gold where the passage is, but only one where
  the question names this very part.
  """
  return [
      p.id if p.id in question.gold_passage_ids else p.source_id
      for p in passages
  ]


def _mean_over_processes(
    rows: Sequence[dict[str, float | None]],
) -> dict[str, float | int | None]:
  """Means weighted by the rows to which a metric applies."""
  if jax.process_count() == 1:
    return {**metrics_lib.mean_metrics(rows), 'count': len(rows)}
  from jax.experimental import multihost_utils

  names = ['exact_match', 'f1'] + [
      f'{m}_{kind}' for kind in ('answer', 'gold')
      for m in [*(f'recall@{k}' for k in RECALL_AT), 'mrr']
  ]
  sums = np.zeros((len(names) + 1, 2))
  for i, name in enumerate(names):
    values = [row[name] for row in rows if row.get(name) is not None]
    sums[i] = (sum(values), len(values))
  sums[-1] = (len(rows), 0)
  total = np.asarray(multihost_utils.process_allgather(sums)).sum(0)
  means = {
      name: float(total[i, 0] / total[i, 1])
      for i, name in enumerate(names) if total[i, 1]
  }
  return {**means, 'count': int(total[-1, 0])}
