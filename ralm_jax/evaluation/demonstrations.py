"""Answered questions that a decoder-only reader is shown before the one that it is asked.

They are the same for all questions, chosen by hash, or those that the retriever finds nearest to
each.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import logging
from typing import Any

import numpy as np

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.data.questions import answer_patterns, few_shot, multiple_choice, reading
from ralm_jax.data.questions.reading import Question
from ralm_jax.data.text.prompts import Demonstration, PromptFormat
from ralm_jax.evaluation import metrics
from ralm_jax.evaluation.passage_sources import PassageSource, question_text
from ralm_jax.evaluation.task import ReadingOptions
from ralm_jax.losses.array_types import Float
from ralm_jax.training import partitioning
from ralm_jax.training.partitioning import Partitioner

PyTree = Any
Passages = tuple[tuple[str, str], ...]  # Titles and texts, best first.


@dataclasses.dataclass(frozen=True)
class Pool:
  """What is chosen from, and how."""

  options: ReadingOptions
  questions: tuple[Question, ...]

  @classmethod
  def read(cls, options: ReadingOptions, record_format: str) -> Pool | None:
    """None without a file; ValueError for what is at fault in it, with file and line."""
    if not options.demonstrations:
      return None
    found = reading.read_questions(
      options.demonstrations,
      require_answers=False,  # Those without an answer are no demonstrations.
      duplicate_ids='number',
      record_format=options.demonstrations_format or record_format,
    )
    found = [one for one in found if one.answers]
    files = options.demonstrations
    names = files if isinstance(files, str) else ', '.join(files)
    if len(found) < options.n_shown:
      raise ValueError(
        f'{names} holds {len(found)} questions with an answer, fewer than the '
        f'{options.n_shown} to show; lower --num_demonstrations.'
      )
    return cls(options, tuple(found))

  def chosen(self) -> tuple[Question, ...]:
    """Those that may be shown."""
    chosen, options = self.questions, self.options
    if options.demonstration_choice == 'seed':
      chosen = tuple(few_shot.choose(chosen, options.n_shown, options.demonstrations_seed))
    return chosen


class Demonstrations:
  """Chooses what is shown before each question, and makes the heads of prompts of it."""

  def __init__(self, pool: Pool, spec: Specification, partitioner: Partitioner, size: int):
    """`size` questions are encoded or searched for at a time."""
    prompts = spec.tokenizer.prompts
    if prompts is None:
      raise ValueError(
        'Demonstrations are shown to decoder-only readers; this checkpoint has another: leave '
        '--demonstrations out.'
      )
    self._options, self._pool = pool.options, pool.chosen()
    self._spec, self._partitioner, self._size = spec, partitioner, size
    self._prompts: PromptFormat = prompts
    self._by_text = {metrics.normalize_answer(one.question): one for one in pool.questions}
    self._nearest = pool.options.demonstration_choice == 'nearest'
    self._encode = partitioner.partition_rows(spec.model.encode_queries)
    self._shown: list[Demonstration] | None = None
    self._embeddings: np.ndarray | None = None

  def check(self, questions: Sequence[Question | str]) -> None:
    """Raises ValueError where a question that is asked is among those to choose from."""
    for question in questions:
      same = self._by_text.get(metrics.normalize_answer(question_text(question)))
      if same is not None:
        place = '' if isinstance(question, str) else f'{question.path}:{question.line}: '
        raise ValueError(
          f'{place}the question {question_text(question)!r} is also a demonstration '
          f'({same.path}:{same.line}), which would tell its answer; leave it out of one of the two.'
        )

  def heads(
    self, params: PyTree, questions: Sequence[Question | str], source: PassageSource
  ) -> list[list[int]]:
    """What the prompts of a batch begin with: one for all, or one for each of `size` rows.

    Every process calls it as often.
    """
    self.check(questions)
    if self._shown is None:
      found = self._passages(params, source)
      self._shown = [self._made(one, own) for one, own in zip(self._pool, found)]
    if not self._nearest:
      return [self._head(tuple(range(len(self._pool))))]
    if self._embeddings is None:
      self._embeddings = self._embedded(params, self._pool)
    scores = self._embedded(params, questions) @ self._embeddings.T
    # The nearest one last, beside the question; of equals the first in the file counts as nearer.
    order = np.argsort(-scores, axis=-1, kind='stable')[:, : self._options.n_shown]
    heads = [self._head(tuple(own[::-1].tolist())) for own in order]
    return heads + [self._prompts.head()] * (self._size - len(heads))

  @functools.cached_property
  def _head(self) -> Any:
    @functools.lru_cache(maxsize=4096)
    def head(chosen: tuple[int, ...]) -> list[int]:
      return self._prompts.head([(self._shown or [])[i] for i in chosen])

    return head

  def _embedded(
    self, params: PyTree, questions: Sequence[Question | str]
  ) -> Float[np.ndarray, 'n d']:
    tokenizer, found = self._spec.tokenizer, []
    for first in range(0, len(questions), self._size):
      part = list(map(question_text, questions[first : first + self._size]))
      tokens = tokenizer.batch(part, size=self._size).query_tokens
      mask = tokens != tokenizer.retriever_vocabulary.pad_id
      batch = self._partitioner.put_batch((tokens, mask))
      found.append(partitioning.local_rows(self._encode(params, *batch))[: len(part)])
    return np.concatenate(found)

  def _made(self, question: Question, passages: Passages) -> Demonstration:
    if self._spec.model.passage_order == 'best_last':
      passages = passages[::-1]
    answer = question.target or question.answers[0]
    if question.patterns and not question.target:
      answer = answer_patterns.example(question.answers) or answer
    asked = question.question
    if question.options:
      tokenizer = self._spec.tokenizer
      length = tokenizer.text.choice_prompt_length
      asked = multiple_choice.render(question, tokenizer, length).question
    return Demonstration(asked, answer, passages)

  def _passages(self, params: PyTree, source: PassageSource) -> list[Passages]:
    """Those that a record brings, else its gold ones in the corpus, else what is retrieved."""
    count = self._options.demonstration_passages
    known: list[Passages] = [()] * len(self._pool)
    if self._spec.text.closed_book or not count:
      return known
    for i, (question, gold) in enumerate(zip(self._pool, source.gold_passages(self._pool))):
      of_corpus = tuple((one.merged_title, one.text) for one in gold)
      brought = tuple((one.title, one.text) for one in question.passages)
      known[i] = (brought or of_corpus)[:count]
    rest = [i for i, passages in enumerate(known) if not passages]
    for first in range(0, len(rest), self._size):
      part = rest[first : first + self._size]
      retrieved = source.retrieve(params, [self._pool[i] for i in part])
      for i, rows in zip(part, retrieved.rows[:, :count]):
        found = source.store.passages(rows[rows >= 0])
        known[i] = tuple((one.merged_title, one.text) for one in found)
    if without := sum(not passages for passages in known):
      logging.warning(
        '%d of %d demonstrations are shown without a passage: they bring none, and there is no '
        'index to find one in.',
        without,
        len(known),
      )
    return known
