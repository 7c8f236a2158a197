"""Multiple-choice prompts as token ids; each text is tokenised only once.

Vocabularies split at whitespace, so that the ids of a prompt are those of its
question and options joined, in whatever order the options stand.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from ralm_jax.data.questions import multiple_choice
from ralm_jax.data.questions.reading import Question
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text.vocabularies import Vocabulary

if TYPE_CHECKING:  # Which would load jax.
  from ralm_jax.losses.array_types import Int


@dataclasses.dataclass(frozen=True)
class PromptIds:
  """Token ids of a prompt, as `QueryTokenizer` gives them: the query with special tokens."""

  query: Int[np.ndarray, ' q']
  reader_query: Int[np.ndarray, ' q']


@dataclasses.dataclass(frozen=True)
class _Side:
  """One vocabulary's ids of a prompt's parts: up to the options, and of each option."""

  before: Int[np.ndarray, ' n']
  options: tuple[Int[np.ndarray, ' n'], ...]


class PromptTokenizer:
  """Tokenises the orders of a list of questions."""

  def __init__(
    self,
    questions: Sequence[Question],
    tokenizer: QueryTokenizer,
    max_question_tokens: int | None = multiple_choice.MAX_QUESTION_TOKENS,
  ):
    self._questions = questions
    self._tokenizer = tokenizer
    self._max_question_tokens = max_question_tokens
    text = tokenizer.text
    both = (
      (tokenizer.retriever_vocabulary, text.retriever_question_format),
      (tokenizer.reader_vocabulary, text.question_format),
    )
    self._joins = all(
      before == before.rstrip() + ' ' * bool(before)
      and after[:1] in ('', ' ')
      and '{question}' not in after
      and not vocabulary.first_word_differs
      for vocabulary, format in both
      for before, _, after in [format.partition('{question}')]
    )
    words = ('options:', *(f'({letter})' for letter in multiple_choice.LETTERS))
    self._literals = [
      {word: _ids(vocabulary, word) for word in words}
      | {'after': _ids(vocabulary, format.partition('{question}')[2])}
      for vocabulary, format in both
    ]
    self._parts: dict[int, tuple[_Side, _Side]] = {}

  def ids(self, number: int, order: Sequence[int]) -> PromptIds:
    """Of one question with its options in an order, see `multiple_choice.permuted`."""
    tokenizer = self._tokenizer
    if not self._joins:
      permuted = multiple_choice.permuted(self._questions[number], order)
      prompt = multiple_choice.prompt(permuted, tokenizer, self._max_question_tokens)
      return PromptIds(
        np.asarray(tokenizer.retriever_question(prompt), np.int32),
        np.asarray(tokenizer.reader_query(tokenizer.text.query(prompt)), np.int32),
      )
    if number not in self._parts:
      self._parts[number] = self._tokenized(self._questions[number])
    query, reader_query = (
      self._joined(side, literals, order)
      for side, literals in zip(self._parts[number], self._literals)
    )
    return PromptIds(
      np.asarray(tokenizer.framed_query(query.tolist()), np.int32),
      reader_query[: tokenizer.text.reader_query_length],
    )

  def _tokenized(self, question: Question) -> tuple[_Side, _Side]:
    # The cut does not depend on the order, in which there are as many tokens.
    prompt = multiple_choice.prompt(question, self._tokenizer, self._max_question_tokens)
    listed = multiple_choice.listed(question.options)
    asked = prompt.removesuffix(f' options: {listed}')

    def side(vocabulary: Vocabulary, format: str) -> _Side:
      options = tuple(_ids(vocabulary, option) for option in question.options)
      return _Side(_ids(vocabulary, format.partition('{question}')[0] + asked), options)

    tokenizer = self._tokenizer
    return (
      side(tokenizer.retriever_vocabulary, tokenizer.text.retriever_question_format),
      side(tokenizer.reader_vocabulary, tokenizer.text.question_format),
    )

  def _joined(
    self, side: _Side, literals: dict[str, np.ndarray], order: Sequence[int]
  ) -> np.ndarray:
    parts = [side.before, literals['options:']]
    for letter, option in zip(multiple_choice.LETTERS, order):
      parts += [literals[f'({letter})'], side.options[option]]
    return np.concatenate([*parts, literals['after']])


def _ids(vocabulary: Vocabulary, text: str) -> np.ndarray:
  return np.asarray(vocabulary.encode(text), np.int32)
