"""Spans of a text worth predicting: names, dates and numbers, by rules.

REALM (Guu et al. 2020, section 3.4) masks named entities and dates, which a
reader cannot fill in from the words around. There a tagger finds them; here a
few regular expressions do, or a function of the user's, `Annotator`. They are
written for English, and for text that was tokenised (`Newton D . Baker`), too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import re

# A text to the (start, end) of its spans, in characters.
Annotator = Callable[[str], Sequence[tuple[int, int]]]

_MONTH = (
  r'(?:January|February|March|April|May|June|July|August|September|October'
  r'|November|December)'
)
_DAY = r'(?:0?[1-9]|[12]\d|3[01])'
_YEAR = r'[12]\d{3}'
_DATE = re.compile(
  rf'\b(?:{_DAY}\s+{_MONTH}(?:\s*,?\s+{_YEAR})?'  # 4 July 1776
  rf'|{_MONTH}\s+{_DAY}(?:\s*,\s*{_YEAR})?'  # July 4, 1776
  rf'|{_MONTH}(?:\s*,)?\s+{_YEAR}'  # July 1776
  rf'|{_YEAR}-[01]\d-[0-3]\d'  # 1776-07-04
  rf'|{_YEAR}s?)\b(?![.,]\d)'
)  # 1776, the 1770s

_NUMBER = re.compile(r'(?<![\w.,])\d+(?:[.,]\d+)*(?:\s?%|st\b|nd\b|rd\b|th\b)?(?!\w)')

_UPPER = '[A-Z' + ''.join(chr(code) for code in range(0xC0, 0x250) if chr(code).isupper()) + ']'
# `Mr.`, which goes on with the name; its full stop ends no sentence.
_ADDRESS = r'(?:Mr|Mrs|Ms|Dr|St|Prof|Gen|Lt|Sgt)\s?\.'
# Upper case and more letters, hyphens and apostrophes inside: `O'Neill`.
_WORD = rf"(?!{_ADDRESS}){_UPPER}[^\W\d_]*(?:['’-][^\W\d_]+)*"
_INITIAL = rf'(?:{_ADDRESS}|{_UPPER}\s?\.)'
_INNER = r'(?:of the|of|the|de la|de|du|van der|van|von|der|and|&)'
_NAME = re.compile(
  rf'\b(?:{_INITIAL}\s?|{_WORD}\s)'
  rf'(?:{_INNER}\s(?={_ADDRESS}|{_WORD})|{_INITIAL}\s?|{_WORD}\s)*'
  rf'{_WORD}'
)
# What no name ends with, once the beginning of the next sentence is left out.
_NO_END = re.compile(rf'(?:\s+(?:{_ADDRESS}|{_INNER}))+$')
_POSSESSIVE = re.compile(r"['’]s$")

# What begins a sentence in upper case and belongs to no name.
_OPENING = frozenset(
  'A An The This That These Those It Its He His She Her They Their We Our I You Your In On At By '
  'For From To With Of As And But Or If When While After Before Since During Although Though '
  'However Both Many Some Most All There Here Not No Under Over Between Among Until Despite '
  'Because Where Who What Which Then Also Later Other Another Each Every Like Unlike'.split()
)


def find(text: str) -> list[tuple[int, int]]:
  """Dates, names of several words, and numbers, as (start, end) in order and apart."""
  taken: list[tuple[int, int]] = []
  for matches in (_dates(text), _names(text), _numbers(text)):
    taken += [
      (start, end)
      for start, end in matches
      if all(end <= other or start >= stop for other, stop in taken)
    ]
  return sorted(taken)


def checked(spans: Sequence[tuple[int, int]], text: str) -> list[tuple[int, int]]:
  """What an annotator found, trimmed to the text; ValueError unless it is a list of int pairs."""
  result = []
  for span in spans:
    try:
      start, end = (int(position) for position in span)
    except (TypeError, ValueError):
      raise ValueError(
        'An annotator of salient spans must return pairs (start, end) of '
        f'characters; found {span!r} for {text!r:.60}.'
      ) from None
    if not 0 <= start <= end <= len(text):
      raise ValueError(
        f'An annotator of salient spans returned ({start}, {end}) for a text '
        f'of {len(text)} characters: {text!r:.60}.'
      )
    inside = text[start:end]
    start += len(inside) - len(inside.lstrip())
    end -= len(inside) - len(inside.rstrip())
    if start < end:
      result.append((start, end))
  return result


def _dates(text: str) -> list[tuple[int, int]]:
  return [match.span() for match in _DATE.finditer(text)]


def _numbers(text: str) -> list[tuple[int, int]]:
  return [match.span() for match in _NUMBER.finditer(text)]


def _names(text: str) -> list[tuple[int, int]]:
  found = []
  for match in _NAME.finditer(text):
    words = list(re.finditer(r'\S+', match[0]))
    while words and words[0][0] in _OPENING:
      words.pop(0)
    while words and not words[0][0][0].isupper():  # `of` behind `Most`
      words.pop(0)
    while words and words[-1][0] in _OPENING:  # `D.C. He`
      words.pop()
    if not words:
      continue
    start = words[0].start()
    name = _NO_END.sub('', match[0][start : words[-1].end()])
    if sum(word[0].isupper() and any(map(str.isalpha, word)) for word in name.split()) >= 2:
      name = _POSSESSIVE.sub('', name)
      found.append((match.start() + start, match.start() + start + len(name)))
  return found
