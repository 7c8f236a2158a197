"""Multiple choice: option letters scored in several orders, and their average.

A reader prefers some letters whatever they stand for. The de-biased answer is
therefore the option with the largest probability averaged over orders of the
options (Izacard et al. 2022, section 4.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import os
from typing import Any

import jax
import numpy as np

from ralm_jax.data.questions import multiple_choice
from ralm_jax.data.questions.reading import Question
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.evaluation import prediction_files, records
from ralm_jax.evaluation.evaluator import Evaluator
from ralm_jax.evaluation.records import Answer
from ralm_jax.evaluation.scores import by_task
from ralm_jax.files import progress as progress_lib
from ralm_jax.models import choices
from ralm_jax.models.choices import ChoiceTokens
from ralm_jax.training import partitioning
from ralm_jax.training.partitioning import PartitionedFunction

PyTree = Any
Order = tuple[int, ...]
METRICS = 'multiple_choice'


@dataclasses.dataclass(frozen=True)
class ChoiceResult:
  """What became of one question.

  Attributes:
    choice: index of the de-biased answer among the options.
    probabilities: float64 [n_options], averaged over orders. Options of equal
      text share theirs.
    first_choices: the option preferred in each order; the original order is
      the first.
  """

  choice: int
  probabilities: np.ndarray
  first_choices: tuple[int, ...]

  def metrics(self, question: Question) -> dict[str, float | None]:
    """`accuracy` in the original order, of all orders, and de-biased.

    An option with the text of a right one is right.
    """
    names = ('accuracy', 'permuted_accuracy', 'debiased_accuracy')
    if not question.answers:
      return dict.fromkeys(names)
    right = {question.options[multiple_choice.LETTERS.index(letter)] for letter in question.answers}
    correct = lambda option: float(question.options[option] in right)
    hits = [correct(option) for option in self.first_choices]
    return dict(zip(names, (hits[0], sum(hits) / len(hits), correct(self.choice))))


def combine(options: Sequence[str], orders: Sequence[Order], logits: np.ndarray) -> ChoiceResult:
  """Averages the probabilities of each option over the orders.

  Args:
    options: texts in the original order.
    orders: letter i of a row stands for option `order[i]`; the original order
      is the first.
    logits: [n_orders, n_options] of the letters.
  """
  logits = np.asarray(logits, np.float64)
  weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
  of_letters = weights / weights.sum(axis=-1, keepdims=True)
  of_options = np.empty_like(of_letters)
  np.put_along_axis(of_options, np.asarray(orders), of_letters, axis=-1)
  mean = of_options.mean(axis=0)
  probabilities = np.asarray(
    [np.mean([mean[i] for i, other in enumerate(options) if other == option]) for option in options]
  )
  best = np.argmax(logits, axis=-1)
  return ChoiceResult(
    int(np.argmax(probabilities)),
    probabilities,
    tuple(int(order[letter]) for order, letter in zip(orders, best)),
  )


class ChoiceEvaluator:
  """Answers multiple-choice questions without decoding.

  It finds passages, divides the work over processes and writes files as the
  `evaluator.Evaluator` does that it is made of, and stands in its place.
  """

  def __init__(self, evaluator: Evaluator, *, permutations: str = 'single'):
    """Compiles nothing yet.

    Args:
      evaluator: of the model and its passages. Its batch size is that of orders
        scored at a time.
      permutations: 'single', 'cyclic' or 'all'. Passages are retrieved for each
        order, whose prompt is another.
    """
    multiple_choice.orderings(1, permutations)  # It is known.
    self._evaluator = evaluator
    self._spec = evaluator.spec
    self._partitioner = evaluator.partitioner
    self._batch_size, self._size = evaluator.batch_size, evaluator.size
    self._permutations = permutations
    self._max_question_tokens = evaluator.spec.tokenizer.text.choice_prompt_length
    self._tokens: ChoiceTokens | None = None
    self._score: PartitionedFunction | None = None

  def predictions(
    self, params: PyTree, questions: Sequence[Question], *, done: int = 0, progress: bool = False
  ) -> Iterator[dict[str, Any]]:
    """One `predictions.jsonl` record a question of this process, in order.

    `passages`, with their effects, and the loss are those of the original order;
    `permutations` holds the letters' logits in each.

    Args:
      params: of the model.
      questions: the whole list, on every process.
      done: so many batches of questions are left out, since they have been
        answered before.
      progress: show a progress bar.

    Raises:
      ValueError: a question has no options, or its prompt does not fit into
        `reader_query_length`.
    """
    if not questions:
      return
    multiple_choice.check(questions)
    multiple_choice.check_lengths(questions, self._spec.tokenizer, self._max_question_tokens)
    self._use_letters(max(len(question.options) for question in questions))
    shares = [self._share(questions, process, done) for process in range(jax.process_count())]
    # In every process as many batches, the last ones maybe of padding alone.
    size = self._size
    n_batches = -(
      -max(sum(len(self._orders(question)) for question in share) for share in shares) // size
    )
    mine = shares[jax.process_index()]
    waiting = ((question, order) for question in mine for order in self._orders(question))
    answered: list[_OrderAnswer] = []
    unfinished = iter(mine)
    question = next(unfinished, None)
    for _ in progress_lib.bar(range(n_batches), desc='answering', unit=' batches', show=progress):
      batch = [item for _, item in zip(range(size), waiting)]
      answered += self._answers(params, batch)
      while question and len(answered) >= (n := len(self._orders(question))):
        yield _record(question, answered[:n])
        del answered[:n]
        question = next(unfinished, None)

  def evaluate(
    self,
    params: PyTree,
    questions: Sequence[Question],
    *,
    output: str | os.PathLike[str] | None = None,
    progress: bool = False,
  ) -> dict[str, Any]:
    """As `evaluator.Evaluator.evaluate`."""
    return prediction_files.write(
      functools.partial(self.predictions, params, questions, progress=progress),
      output,
      metrics=METRICS,
    )

  def _orders(self, question: Question) -> list[Order]:
    return multiple_choice.orderings(len(question.options), self._permutations)

  def _use_letters(self, n_options: int) -> None:
    if self._tokens is not None and len(self._tokens.tokens) == n_options:
      return
    self._tokens = ChoiceTokens.make(
      list(map(self._spec.tokenizer.target, multiple_choice.LETTERS[:n_options]))
    )
    self._score = self._partitioner.partition_rows(
      functools.partial(choices.choice_logits, self._spec.model, choices=self._tokens)
    )

  def _answers(self, params: PyTree, batch: Sequence[tuple[Question, Order]]) -> list[_OrderAnswer]:
    """Answers at most a batch of questions, each in one order."""
    shown = [
      multiple_choice.render(
        multiple_choice.permuted(question, order), self._spec.tokenizer, self._max_question_tokens
      )
      for question, order in batch
    ]
    retrieved, found = self._evaluator.find(params, shown)
    arrays = self._evaluator.reader_batch(shown, retrieved)
    logits = partitioning.local_rows(self._score(params, self._partitioner.put_batch(arrays)))
    found = self._evaluator.with_likelihoods(
      params, arrays, shown, self._preferred(shown, logits), found
    )
    return [
      _OrderAnswer(order, own[: len(order)], answer)
      for (_, order), own, answer in zip(batch, logits, found)
    ]

  def _preferred(self, questions: Sequence[Question], logits: np.ndarray) -> np.ndarray:
    """Tokens [size, length] of the letter with the largest logit."""
    best = np.zeros(self._size, int)
    for row, question in enumerate(questions):
      best[row] = np.argmax(logits[row, : len(question.options)])
    pad_id = self._spec.tokenizer.reader_vocabulary.pad_id
    return np.where(self._tokens.mask, self._tokens.tokens, pad_id)[best]

  def _share(self, questions: Sequence[Question], process: int, done: int) -> list[Question]:
    """What a process answers; as `Evaluator.mine`, batch by batch."""
    starts = range(done * self._batch_size, len(questions), self._batch_size)
    first = process * self._size
    return [
      question
      for start in starts
      for question in questions[start : start + self._batch_size][first : first + self._size]
    ]


def check(
  metrics: str,
  questions: Sequence[Question],
  permutations: str,
  tokenizer: QueryTokenizer | None = None,
) -> None:
  """Raises ValueError where questions cannot be answered by choosing.

  Args:
    metrics: one of `task_metrics.FAMILIES`; any other than 'multiple_choice'
      needs no options.
    questions: as read.
    permutations: orders of the options.
    tokenizer: whose lengths must hold the prompts; None leaves that for later.
  """
  if not by_task.family(metrics).chooses:
    return
  multiple_choice.check(questions)
  for n_options in {len(question.options) for question in questions}:
    multiple_choice.orderings(n_options, permutations)
  if tokenizer is not None:
    multiple_choice.check_lengths(questions, tokenizer, tokenizer.text.choice_prompt_length)


@dataclasses.dataclass(frozen=True)
class _OrderAnswer:
  """A question in one order.

  Attributes:
    order: letter i stands for option `order[i]`.
    logits: float32 [n_options] of the letters.
    found: the passages it was answered from; it has no prediction yet.
  """

  order: Order
  logits: np.ndarray
  found: Answer


def _record(question: Question, answers: Sequence[_OrderAnswer]) -> dict[str, Any]:
  """The object of one line of `predictions.jsonl`."""
  letters = multiple_choice.LETTERS
  result = combine(
    question.options,
    [answer.order for answer in answers],
    np.stack([answer.logits for answer in answers]),
  )
  record = records.prediction_record(question, answers[0].found, METRICS)
  metrics = record.pop('metrics')  # Of the passages alone.
  return {
    **record,
    'prediction': letters[result.choice],
    'log_probability': float(np.log(max(result.probabilities[result.choice], 1e-300))),
    'options': list(question.options),
    'choice_probabilities': list(map(float, result.probabilities)),
    'permutations': [
      {
        'order': ''.join(letters[option] for option in answer.order),
        'logits': list(map(float, answer.logits)),
      }
      for answer in answers
    ],
    'metrics': {**result.metrics(question), **metrics},
  }
