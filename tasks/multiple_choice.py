"""Multiple choice with its options in several orders: MMLU and users' own."""

from __future__ import annotations

from collections.abc import Sequence
import itertools
import json
import os
from typing import Any

import numpy as np
import tensorflow as tf

from ralm_jax.data.questions import multiple_choice
from ralm_jax.data.questions.choice_tokens import PromptTokenizer
from ralm_jax.data.questions.reading import Question
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text.vocabularies import Vocabulary
from ralm_jax.data.text_config import TextConfig
from ralm_jax.losses.option_types import Count, Seed
from ralm_jax.tasks import registration

# Of an example, beside its prompt and answers; see `registration`.
_STRINGS = ('id', 'exclude_ids', 'gold_ids')


def mmlu_task(
  name: str = 'mmlu',
  train: Any = None,
  validation: Any = None,
  test: Any = None,
  *,
  text: TextConfig | None = None,
  reader_vocabulary: str | os.PathLike[str] | Vocabulary,
  retriever_vocabulary: str | os.PathLike[str] | Vocabulary,
  permutations: str = 'all',
  validation_permutations: str = 'single',
  subjects: Sequence[str] | None = None,
  shots: Count | None = None,
  shots_seed: Seed = 0,
  shots_list: str | None = None,
  record_format: str = 'mmlu',
  require_answers: bool = True,
  duplicate_ids: str = 'number',
  on_error: str = 'raise',
) -> str:
  """Registers a multiple-choice task and returns its name.

  The target is the letter of the right option. Every order of a question's options is an example of
  its own (Atlas trains on all 24 of four options); orders of one question lie far apart. In gin:
  `MIXTURE_OR_TASK_NAME = @multiple_choice.mmlu_task()`.

  Args:
    train: files or globs: MMLU's csv, or with record_format 'qa' jsonl of
      `{question, options, answers: ["B"]}`.
    text: its `reader_query_length` must hold the prompts, which `choice_prompt_length` bounds.
    permutations: orders of a training question: 'single', 'cyclic' or 'all'.
    validation_permutations: of a validation or test question.
    subjects: only these groups; None for all. One alone, with MMLU's five
      examples of it, is the 5-shot protocol.
    shots: training questions of each subject, chosen by hash; None for all.
    shots_list: file that lists the training questions to take instead.

  Raises:
    ValueError: no file is given, a record is wrong (with file and line), a
      subject is unknown or has too few questions, or prompts do not fit.
  """
  loaded = registration.read_splits(
    {'train': train, 'validation': validation, 'test': test},
    require_answers=require_answers,
    duplicate_ids=duplicate_ids,
    record_format=record_format,
    on_error=on_error,
    shots_list=shots_list,
  )
  if shots_list and shots is not None:
    raise ValueError(
      'Give `shots`, questions of each subject, or `shots_list`, a file that names them, not both.'
    )
  tokenizer = registration.make_tokenizer(text, reader_vocabulary, retriever_vocabulary)
  length = tokenizer.text.choice_prompt_length
  examples, asked = {}, {}
  for split, questions in loaded.items():
    multiple_choice.check(questions)
    questions = _of_subjects(questions, subjects, split)
    kind = permutations if split == 'train' else validation_permutations
    if split == 'train' and shots is not None:
      questions = shots_of_each_subject(questions, shots, shots_seed)
    multiple_choice.check_lengths(questions, tokenizer, length)
    asked[split] = questions
    examples[split] = _Permuted(questions, kind, tokenizer, length, mixed=split == 'train')
  source = registration.in_memory(_dataset, examples, asked)
  return registration.register(name, source, registration.drawn_answers(tokenizer), tokenizer)


def shots_of_each_subject(
  questions: Sequence[Question], shots: int, seed: int = 0
) -> list[Question]:
  """So many questions of each subject, chosen by hash; ValueError where a subject has fewer."""
  subjects: dict[str, list[Question]] = {}
  for question in questions:
    subjects.setdefault(question.group, []).append(question)
  chosen = (registration.choose_shots(rows, shots, seed) for rows in subjects.values())
  return list(itertools.chain.from_iterable(chosen))


def _of_subjects(
  questions: Sequence[Question], subjects: Sequence[str] | None, split: str
) -> list[Question]:
  if subjects is None:
    return list(questions)
  if isinstance(subjects, str):
    subjects = [subjects]
  known = {question.group for question in questions}
  for subject in subjects:
    if subject not in known:
      there = ', '.join(sorted(known)[:8]) + (', …' if len(known) > 8 else '')
      raise ValueError(
        f'The {split} files have no question of the subject {subject!r}; they have {there}'
      )
  return [q for q in questions if q.group in subjects]


class _Permuted:
  """Every order of every question, tokenised when it is asked for.

  `pairs` [n, 2] are a question's position and the number of its order. All
  questions come once, in one of their orders each, before any comes again.
  """

  def __init__(
    self,
    questions: Sequence[Question],
    permutations: str,
    tokenizer: QueryTokenizer,
    max_question_tokens: int | None,
    mixed: bool,
  ):
    """Tokenises nothing yet.

    `mixed` brings questions in another sequence each time: pipelines shuffle within a window
    alone, and files are sorted by subject.
    """
    self._questions = list(questions)
    self._prompts = PromptTokenizer(self._questions, tokenizer, max_question_tokens)
    sizes = [len(question.options) for question in questions]
    self._orders = {n: multiple_choice.orderings(n, permutations) for n in set(sizes)}
    counts = np.asarray([len(self._orders[n]) for n in sizes])
    turns = []
    for turn in range(counts.max()):
      rows = np.flatnonzero(counts > turn)
      if mixed:
        # Whose numbers are the same in every version of NumPy.
        rows = np.random.RandomState(turn).permutation(rows)
      turns.append(np.stack([rows, (turn + rows) % counts[rows]], axis=1))
    self.pairs = np.concatenate(turns).astype(np.int32)

  def __len__(self) -> int:
    return len(self.pairs)

  def example(self, number: int, order: int) -> tuple[Any, ...]:
    """One question in one of its orders: `_STRINGS`, answers, latest date, both prompts."""
    question = self._questions[number]
    chosen = self._orders[len(question.options)][order]
    letters = multiple_choice.permuted(question, chosen)
    answers = [letters.target] if letters.target else letters.answers
    ids = self._prompts.ids(number, chosen)
    lists = (question.exclude_passage_ids, question.gold_passage_ids)
    return (
      question.id.encode(),
      *((json.dumps(rows) if rows else '').encode() for rows in lists),
      np.asarray([answer.encode() for answer in answers], object),
      np.int32(question.max_date),
      ids.query,
      ids.reader_query,
    )


def _dataset(permuted: _Permuted) -> tf.data.Dataset:
  """from_tensor_slices of numbers keeps the iterator checkpointable."""

  def convert(pair: tf.Tensor) -> dict[str, tf.Tensor]:
    types = [tf.string] * (len(_STRINGS) + 1) + [tf.int32] * 3
    # Not py_function, which cannot be saved with the iterator's position.
    *strings, answers, max_date, query, reader_query = tf.numpy_function(
      lambda pair: permuted.example(*pair.tolist()), [pair], types, stateful=False
    )
    scalars = {**dict(zip(_STRINGS, strings)), 'max_date': max_date}
    vectors = {'answers': answers, 'query': query, 'reader_query': reader_query}
    return {
      **{name: tf.ensure_shape(value, ()) for name, value in scalars.items()},
      **{name: tf.ensure_shape(value, (None,)) for name, value in vectors.items()},
    }

  return tf.data.Dataset.from_tensor_slices(permuted.pairs).map(
    convert, num_parallel_calls=tf.data.AUTOTUNE
  )
