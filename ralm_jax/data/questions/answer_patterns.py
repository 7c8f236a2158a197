"""Answers that are regular expressions, as those of CuratedTREC.

A prediction is right when a pattern is found anywhere in it. Nobody can generate a pattern, so that
training needs a text that it matches. RAG (Lewis et al. 2020, appendix D) takes the most frequent
match within the passages retrieved for the question; here it is a text made of the pattern itself,
`example`.
"""

from collections.abc import Iterable, Iterator
import functools
import importlib
import itertools
import re
from typing import Any
import unicodedata

# What `re` itself compiles from.
codes = importlib.import_module('re._constants')
_parser = importlib.import_module('re._parser')

_FLAGS = re.IGNORECASE | re.UNICODE | re.MULTILINE
_MOST_EXAMPLES = 64


@functools.lru_cache(maxsize=4096)
def compiled(pattern: str) -> re.Pattern[str]:
  """Compiles a pattern with DrQA's and DPR's flags; ValueError says where it goes wrong."""
  try:
    return re.compile(pattern, _FLAGS)
  except (re.error, RecursionError, OverflowError) as error:
    raise ValueError(f'{pattern!r:.80} is no regular expression ({error})') from error


def matches(text: str, patterns: Iterable[str]) -> bool:
  """Whether one of the patterns is found anywhere in the text.

  DPR decomposes pattern and text (NFD), by which 'Qu[eé]bec' finds no 'Québec': the class then
  stands for one of three characters. A match of the composed forms therefore counts as well.

  Raises:
    ValueError: a pattern is no regular expression.
  """
  return any(
    compiled(unicodedata.normalize(form, pattern)).search(unicodedata.normalize(form, text))
    is not None
    for pattern in patterns
    for form in ('NFC', 'NFD')
  )


def example(patterns: Iterable[str]) -> str | None:
  """A text that one of the patterns matches, made of the pattern itself.

  What a pattern leaves open becomes a space, of a range ([4-7]) the first is
  taken, what is optional is left out, and of alternatives the first one that
  matches is taken. None if that leads to no text.

  Raises:
    ValueError: a pattern is no regular expression.
  """
  for pattern in patterns:
    search = compiled(pattern).search
    try:
      texts = itertools.islice(_texts(_parser.parse(pattern, _FLAGS)), _MOST_EXAMPLES)
      for text in texts:
        text = ' '.join(text.split())
        if text and search(text):
          return text
    except RecursionError:  # Hundreds of letters.
      continue
  return None


def _texts(parsed: Any) -> Iterator[str]:
  """Texts of a sequence of parts, the first alternatives first."""
  # Not itertools.product, which would go through all of each part beforehand.
  if not len(parsed):
    yield ''
    return
  for first in _part(*parsed[0]):
    for rest in _texts(parsed[1:]):
      yield first + rest


def _part(code: Any, argument: Any) -> Iterator[str]:
  if code is codes.LITERAL:
    yield chr(argument)
  elif code is codes.BRANCH:
    for alternative in argument[1]:
      yield from _texts(alternative)
  elif code is codes.SUBPATTERN:
    yield from _texts(argument[-1])
  elif code is codes.ATOMIC_GROUP:
    yield from _texts(argument)
  elif code is codes.IN:
    yield from [_member(*one) for one in argument]
  elif code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
    least, _, repeated = argument
    if least:
      for text in _texts(repeated):
        yield text * min(least, 8)
    elif _is_open(repeated):
      yield ' '
    else:
      yield ''
  elif code in (codes.ANY, codes.NOT_LITERAL, codes.CATEGORY):
    yield ' '
  else:  # Places such as the edge of a word, and what looks ahead or back.
    yield ''


def _member(code: Any, argument: Any) -> str:
  if code is codes.LITERAL:
    return chr(argument)
  if code is codes.RANGE:
    return chr(argument[0])
  return '0' if argument is codes.CATEGORY_DIGIT else ' '


def _is_open(parsed: Any) -> bool:
  """Whether it is `.` or `\\s`, which stand for the space between words."""
  if len(parsed) != 1:
    return False
  code, argument = parsed[0]
  return code is codes.ANY or (
    code is codes.IN and (codes.CATEGORY, codes.CATEGORY_SPACE) in argument
  )
