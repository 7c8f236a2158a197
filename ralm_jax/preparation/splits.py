"""How questions are divided into train, dev and test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
import hashlib
import json
import random

from ralm_jax.data.questions import reading
from ralm_jax.files import byte_streams

Question = reading.Question
# Of the combined auxiliary training questions of MMLU, as Atlas.
AUXILIARY_SEED = 10


def carve(
  questions: Iterable[Question],
  fractions: dict[str, float],
  rest: str,
  key: Callable[[Question], str] = lambda question: question.question,
) -> dict[str, list[Question]]:
  """Divides questions by the SHA-256 of their text.

  Where a question goes hangs on its own text alone: not on the order of the
  file, nor on other questions. Equal texts go to the same split.

  Raises:
    ValueError: fractions are negative or of more than 1, or a split that was asked for is empty.
  """
  for name, fraction in fractions.items():
    if not 0 <= fraction <= 1:
      raise ValueError(f'{name}_fraction is {fraction}; give 0 to 1')
  if sum(fractions.values()) > 1:
    raise ValueError(f'the fractions {fractions} make more than all of the questions')
  result: dict[str, list[Question]] = {name: [] for name, fraction in fractions.items() if fraction}
  result[rest] = []
  for question in questions:
    digest = hashlib.sha256(key(question).encode('utf-8')).digest()
    place = int.from_bytes(digest[:8], 'big') / 2**64
    for name, fraction in fractions.items():
      if place < fraction:
        result[name].append(question)
        break
      place -= fraction
    else:
      result[rest].append(question)
  for name, chosen in result.items():
    if not chosen:
      raise ValueError(
        f'there are too few questions to make {name} of them; give another '
        'fraction, or 0 for no such split'
      )
  return result


def read_indexes(path: str) -> list[int]:
  """A list of 0-based places in an original file, as FiD and Atlas publish.

  Raises ValueError where the file is no JSON list of integers from 0, or has one twice.
  """
  try:
    with byte_streams.open_bytes(path) as file:
      indexes = json.load(file)
  except ValueError as error:
    raise ValueError(f'{path}: malformed JSON: {error}') from error
  if not isinstance(indexes, list):
    raise ValueError(f'{path}: expected a JSON list of integers')
  seen: set[int] = set()
  for place, index in enumerate(indexes):
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
      raise ValueError(f'{path}: entry {place} is {index!r:.40}; expected a place from 0 on')
    if index in seen:
      raise ValueError(f'{path}: entry {place}: {index} is in the list twice')
    seen.add(index)
  return indexes


def at(questions: Sequence[Question], path: str, *, skipped: bool = False) -> list[Question]:
  """The questions at the places of a list (`read_indexes`), in its order.

  Places are of records, of which some may be left out of `questions`: `skipped` passes over one
  that is not there (because it was malformed) where it is not behind the last one; else a record
  that the original does not have is a ValueError.
  """
  by_index = {question.line - 1: question for question in questions}
  last = max(by_index, default=-1)
  chosen = []
  for place, index in enumerate(read_indexes(path)):
    if index in by_index:
      chosen.append(by_index[index])
    elif index > last or not skipped:
      found = f'ends at {last}' if index > last else 'has no such record'
      raise ValueError(
        f'{path}: entry {place} is {index}, but the original {found}; '
        'is the list one of another file?'
      )
  return chosen


def auxiliary(questions: Sequence[Question], n_valid: int) -> tuple[list[Question], list[Question]]:
  """MMLU's auxiliary questions, shuffled and cut as Atlas cuts them.

  Atlas joins the files in the order in which the disk lists them, which differs between machines:
  its split cannot be had again. Here they are in the order given (by name).

  Raises:
    ValueError: there are no more than `n_valid`.
  """
  if not 0 < n_valid < len(questions):
    raise ValueError(
      f'auxiliary_valid is {n_valid}, but there are {len(questions)} auxiliary '
      'questions; give fewer than all of them, and at least 1'
    )
  shuffled = list(questions)
  random.Random(AUXILIARY_SEED).shuffle(shuffled)
  return shuffled[:-n_valid], shuffled[-n_valid:]
