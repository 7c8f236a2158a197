"""Multiple-choice questions: their prompts and the orders of their options.

The prompts are those of Atlas: with TextConfig's own question_format a question
becomes `question: … options: (A) … (B) … answer: <extra_id_0>`.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
import dataclasses
import itertools
import logging
import re
import string

from ralm_jax.data.option_values import PERMUTATIONS
from ralm_jax.data.questions.reading import Question
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text.vocabularies import Vocabulary

LETTERS = string.ascii_uppercase
# Of the whole prompt, in Atlas (`maximum_question_length`).
MAX_QUESTION_TOKENS = 356
_MOST_OPTIONS_PERMUTED = 6  # 720 orders.
_WORD = re.compile(r'\S+')


def orderings(n_options: int, permutations: str) -> list[tuple[int, ...]]:
  """Orders in which options are shown, the original one first.

  Letter i stands for option `order[i]`. 'single' is the original order alone; 'cyclic' its
  rotations, the last option first, then the last two, ...; 'all' every order.

  Raises:
    ValueError: an unknown kind, or all orders of too many options.
  """
  if permutations not in PERMUTATIONS:
    raise ValueError(
      f'permutations is {permutations!r}; it must be one of {", ".join(PERMUTATIONS)}'
    )
  original = tuple(range(n_options))
  if permutations == 'single':
    return [original]
  if permutations == 'cyclic':
    return [original[n_options - i :] + original[: n_options - i] for i in range(n_options)]
  if n_options > _MOST_OPTIONS_PERMUTED:
    raise ValueError(
      f"permutations 'all' of {n_options} options are too many; there are at "
      f"most {_MOST_OPTIONS_PERMUTED}: use 'cyclic'"
    )
  return list(itertools.permutations(original))


def permuted(question: Question, order: Sequence[int]) -> Question:
  """The question with its options in another order.

  The answer's letter follows its option by position, so that options of equal text are told apart.
  (Atlas takes the first letter with the answer's text.) Letter i then stands for option `order[i]`.
  """
  moved = {LETTERS[option]: LETTERS[i] for i, option in enumerate(order)}
  return dataclasses.replace(
    question,
    options=tuple(question.options[option] for option in order),
    answers=tuple(moved[answer] for answer in question.answers),
    # A letter that was to be trained on has moved, too.
    target=None if question.target is None else moved[question.target],
  )


def prompt(
  question: Question,
  tokenizer: QueryTokenizer,
  max_question_tokens: int | None = MAX_QUESTION_TOKENS,
) -> str:
  """What stands for `{question}` in a TextConfig's question_format.

  Of a prompt that is too long the question's last tokens are kept, so many that with an end of
  sequence both for it and for the prompt it has `max_question_tokens` reader tokens, as in Atlas.
  Options are never cut: where they alone are too long, the question is left out.

  Unlike Atlas, which decodes the tokens that are left, this keeps the text as it is written.
  `max_question_tokens` None stands for any number.
  """
  options = listed(question.options)
  text = question.question.strip()
  whole = f'{text} options: {options}'
  if max_question_tokens is None:
    return whole
  vocabulary = tokenizer.reader_vocabulary
  length = lambda shown: len(vocabulary.encode(tokenizer.text.query(shown))) + 1
  if length(whole) <= max_question_tokens:
    return whole
  left = max_question_tokens - length(f' options: {options}') - 1
  return f'{last_tokens(text, left, vocabulary)} options: {options}'


def listed(options: Sequence[str]) -> str:
  """'(A) … (B) …'."""
  return ' '.join(f'({letter}) {option}' for letter, option in zip(LETTERS, options)).strip()


def last_tokens(text: str, count: int, vocabulary: Vocabulary) -> str:
  """The end of a text, of at most `count` tokens of a vocabulary (which splits at whitespace)."""
  start, before = len(text), ''
  for word in reversed(list(_WORD.finditer(text))):
    ids = vocabulary.encode(word[0])
    if len(ids) > count:
      if count > 0:
        before, start = _last_part(word[0], ids, count, vocabulary), word.end()
      break
    count -= len(ids)
    start = word.start()
  return before + text[start:]


def _last_part(word: str, ids: Sequence[int], count: int, vocabulary: Vocabulary) -> str:
  """The end of a word, of its last `count` tokens where they spell it."""
  part = vocabulary.decode(ids[-count:]).strip()
  if word.endswith(part):
    return part
  # Tokens of unknown or of normalised characters, or of parts of one.
  start = bisect.bisect_left(
    range(len(word)), -count, key=lambda i: -len(vocabulary.encode(word[i:]))
  )
  return word[start:]


def render(
  question: Question,
  tokenizer: QueryTokenizer,
  max_question_tokens: int | None = MAX_QUESTION_TOKENS,
) -> Question:
  """The question with its `prompt` in place of its text."""
  return dataclasses.replace(question, question=prompt(question, tokenizer, max_question_tokens))


def check(questions: Sequence[Question]) -> None:
  """Raises ValueError, with file and line, for what is no multiple choice."""
  for question in questions:
    where = f'{question.path}:{question.line}'
    if not question.options:
      raise ValueError(
        f"{where}: field 'options' is missing; a multiple choice needs the texts of its options"
      )
    letters = tuple(LETTERS[: len(question.options)])
    named = [('answers', answer) for answer in question.answers]
    for field, answer in (*named, ('target', question.target or letters[0])):
      if answer not in letters:
        raise ValueError(
          f'{where}: field {field!r}: {answer!r:.40} is not one of the '
          f"options' letters {', '.join(letters)}"
        )


def check_lengths(
  questions: Sequence[Question],
  tokenizer: QueryTokenizer,
  max_question_tokens: int | None = MAX_QUESTION_TOKENS,
) -> None:
  """Raises ValueError where the reader would not see all options.

  Only their original order is looked at. Prompts of more than `max_question_tokens`, because their
  options alone are longer, are let through; the log says how many.
  """
  vocabulary, text = tokenizer.reader_vocabulary, tokenizer.text
  prompts = (text.query(prompt(question, tokenizer, max_question_tokens)) for question in questions)
  lengths = [len(vocabulary.encode(one)) for one in prompts]
  # A prompt's bound includes an end of sequence.
  bounded = [
    length for length in lengths if max_question_tokens is None or length < max_question_tokens
  ]
  needed = max(bounded, default=0)
  cut = sum(length > text.reader_query_length for length in lengths)
  if needed > text.reader_query_length:
    raise ValueError(
      f'{cut} of {len(lengths)} multiple-choice prompts are longer than '
      f'TextConfig.reader_query_length = {text.reader_query_length}, so that '
      f'their last options would be cut off; set it to {needed} or more '
      f'(ralm eval: --text reader_query_length={needed}).'
    )
  if cut:
    logging.warning(
      f'The options of {cut} questions alone are longer than reader_query_length '
      f'= {text.reader_query_length}; the last ones are cut off.'
    )
