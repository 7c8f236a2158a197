"""Multiple choice: option letters scored in several orders, and their average.

A reader prefers some letters whatever they stand for. The de-biased answer is therefore the option
with the largest probability averaged over orders of the options (Izacard et al. 2022, section 4.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from ralm_jax.data.questions import multiple_choice
from ralm_jax.data.questions.reading import Question
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.evaluation import gathering, records
from ralm_jax.evaluation.evaluator import Evaluator, Predictor
from ralm_jax.evaluation.kilt_predictions import PageOptions
from ralm_jax.evaluation.records import Answer
from ralm_jax.evaluation.scores import by_task
from ralm_jax.files import progress as progress_lib
from ralm_jax.losses.array_types import Float
from ralm_jax.models.choices import ChoiceTokens
from ralm_jax.training import partitioning
from ralm_jax.training.partitioning import PartitionedFunction

PyTree = Any
Order = tuple[int, ...]
METRICS = 'multiple_choice'


@dataclasses.dataclass(frozen=True)
class ChoiceResult:
  """What became of one question."""

  choice: int  #: index of the de-biased answer among the options
  #: Averaged over orders. Options of equal text share theirs.
  probabilities: Float[np.ndarray, ' options']
  first_choices: tuple[int, ...]  #: preferred in each order, of which the original is the first

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


def combine(
  options: Sequence[str], orders: Sequence[Order], logits: Float[np.ndarray, 'orders options']
) -> ChoiceResult:
  """Averages the probabilities of each option over the orders.

  Letter i of a row of logits stands for option `order[i]`; the original order is the first.
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


@dataclasses.dataclass(frozen=True)
class _Letters:
  tokens: ChoiceTokens
  score: PartitionedFunction  #: logits of the letters


@dataclasses.dataclass(frozen=True)
class _OrderAnswer:
  """A question in one order, whose letter i stands for option `order[i]`."""

  order: Order
  logits: Float[np.ndarray, ' options']  #: of the letters
  found: Answer  #: with passages; it has no prediction yet


class ChoiceEvaluator(Predictor):
  """Answers multiple-choice questions without decoding.

  It finds passages and divides the work over processes as the
  `evaluator.Evaluator` does that it is made of, and stands in its place.
  """

  metrics = METRICS

  def __init__(self, evaluator: Evaluator, *, permutations: str = 'single'):
    """The evaluator's batch size is that of orders scored at a time.

    Passages are retrieved for each order, whose prompt is another.
    """
    multiple_choice.orderings(1, permutations)  # It is known.
    self._evaluator = evaluator
    self._spec = evaluator.spec
    self._partitioner = evaluator.partitioner
    self._permutations = permutations
    self._max_question_tokens = evaluator.spec.tokenizer.text.choice_prompt_length
    self._letters: _Letters | None = None

  def predictions(
    self, params: PyTree, questions: Sequence[Question], *, done: int = 0, progress: bool = False
  ) -> Iterator[dict[str, Any]]:
    """See `Predictor.predictions`.

    `passages`, with their effects, and the loss are those of the original order;
    `permutations` holds the letters' logits in each. ValueError where a question has no
    options, or its prompt does not fit into `reader_query_length`.
    """
    if not questions:
      return
    multiple_choice.check(questions)
    multiple_choice.check_lengths(questions, self._spec.tokenizer, self._max_question_tokens)
    letters = self._letters_of(max(len(question.options) for question in questions))
    shares = [
      [
        question
        for part in gathering.parts(questions, self._evaluator.batch_size, process=i, done=done)
        for question in part
      ]
      for i in range(jax.process_count())
    ]
    # In every process as many batches, the last ones maybe of padding alone.
    size = self._evaluator.size
    most = max(sum(len(self._orders(question)) for question in share) for share in shares)
    n_batches = -(-most // size)
    mine = shares[jax.process_index()]
    waiting = ((question, order) for question in mine for order in self._orders(question))
    answered: list[_OrderAnswer] = []
    unfinished = iter(mine)
    question = next(unfinished, None)
    for _ in progress_lib.bar(range(n_batches), desc='answering', unit=' batches', show=progress):
      batch = [item for _, item in zip(range(size), waiting)]
      answered += self._answers(params, letters, batch)
      while question and len(answered) >= (n := len(self._orders(question))):
        yield _record(question, answered[:n], self._evaluator.scoring)
        del answered[:n]
        question = next(unfinished, None)

  def _orders(self, question: Question) -> list[Order]:
    return multiple_choice.orderings(len(question.options), self._permutations)

  def _letters_of(self, n_options: int) -> _Letters:
    if self._letters is None or len(self._letters.tokens.tokens) != n_options:
      letters = multiple_choice.LETTERS[:n_options]
      tokens = ChoiceTokens.make(list(map(self._spec.tokenizer.target, letters)))
      score = functools.partial(self._spec.model.choice_logits, choices=tokens)
      self._letters = _Letters(tokens, self._partitioner.partition_rows(score))
    return self._letters

  def _answers(
    self, params: PyTree, letters: _Letters, batch: Sequence[tuple[Question, Order]]
  ) -> list[_OrderAnswer]:
    """Answers at most a batch of questions, each in one order."""
    shown = [
      multiple_choice.render(
        multiple_choice.permuted(question, order), self._spec.tokenizer, self._max_question_tokens
      )
      for question, order in batch
    ]
    heads = self._evaluator.heads(params, shown)
    retrieved, found = self._evaluator.find(params, shown, heads)
    # Of a prompt that is too long the question lost its beginning.
    found = [
      answer
      if one.question.startswith(question.question.strip())
      else dataclasses.replace(answer, cut=tuple(dict.fromkeys((*answer.cut, 'question'))))
      for (question, _), one, answer in zip(batch, shown, found)
    ]
    arrays = self._evaluator.reader_batch(shown, retrieved, heads=heads)
    logits = partitioning.local_rows(letters.score(params, self._partitioner.put_batch(arrays)))
    for question, own in zip(shown, logits):
      records.check_finite(own[: len(question.options)], question.question)
    # Tokens of the letter with the largest logit.
    best = np.zeros(self._evaluator.size, int)
    best[: len(shown)] = [
      np.argmax(own[: len(question.options)]) for own, question in zip(logits, shown)
    ]
    pad_id = self._spec.tokenizer.reader_vocabulary.pad_id
    preferred = np.where(letters.tokens.mask, letters.tokens.tokens, pad_id)[best]
    found = self._evaluator.with_likelihoods(params, arrays, shown, preferred, found)
    return [
      _OrderAnswer(order, own[: len(order)], answer)
      for (_, order), own, answer in zip(batch, logits, found)
    ]


def check(
  metrics: str,
  questions: Sequence[Question],
  permutations: str,
  tokenizer: QueryTokenizer | None = None,
) -> None:
  """Raises ValueError where questions are to be answered by choosing and cannot be.

  A tokenizer's lengths must hold the prompts; None leaves that for later.
  """
  if not by_task.family(metrics).chooses:
    return
  multiple_choice.check(questions)
  for n_options in {len(question.options) for question in questions}:
    multiple_choice.orderings(n_options, permutations)
  if tokenizer is not None:
    multiple_choice.check_lengths(questions, tokenizer, tokenizer.text.choice_prompt_length)


def _record(
  question: Question, answers: Sequence[_OrderAnswer], pages: PageOptions
) -> dict[str, Any]:
  """The object of one line of `predictions.jsonl`."""
  letters = multiple_choice.LETTERS
  result = combine(
    question.options,
    [answer.order for answer in answers],
    np.stack([answer.logits for answer in answers]),
  )
  record = records.prediction_record(question, answers[0].found, METRICS, pages)
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
