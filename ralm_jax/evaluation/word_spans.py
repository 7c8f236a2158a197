"""The longest run of words that a text shares with each of many others.

For a few thousand questions and millions of passages: the questions' word
n-grams are indexed once, and the passages stream past, hashed in NumPy. Only
where a hash is found are words compared, so that no result rests on a hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import math
import re
import unicodedata

import numpy as np

from ralm_jax.data.text import words as words_lib
from ralm_jax.losses.array_types import Int, Shaped

_NOT_WORD = re.compile(r'[\W_]+')
# Lengths of the n-grams that are looked up. A question is found by the longest
# that every run of the length wanted is sure to hold.
_SIZES = (8, 6, 4, 3, 2, 1)
_BREAK = '\n'  # A word between two passages, which no text has.
_BREAK_BYTE = 10
_SPACE_BYTE = 32

# Odd multipliers of 64-bit polynomial hashes, of bytes and of words.
_BYTE_BASE = np.uint64(0x9E3779B97F4A7C15)
_WORD_BASE = np.uint64(0xD6E8FEB86659FD93)
# A first look-up in a table of this many bits: most n-grams are in no question.
_TABLE_BITS = 22


def words_of(text: str) -> list[str]:
  """The words of a text, lower-cased: runs of letters and digits."""
  return _plain(text).split()


def _plain(text: str) -> str:
  """The words with one space between them, each character of Chinese and its like one."""
  # A combining mark is no letter: an accented one must be a single character.
  return _NOT_WORD.sub(' ', words_lib.apart(unicodedata.normalize('NFC', text).lower())).strip()


def _joined(texts: Iterable[str]) -> str:
  """Plain texts with breaks between them; begins and ends with no space."""
  return f' {_BREAK} '.join(texts).strip(' ')


@dataclasses.dataclass(frozen=True)
class Span:
  """A run of words that a question and a passage share."""

  question: int
  passage: int  #: number in its chunk
  start: int  #: first word in the question
  length: int  #: in words


class SpanFinder:
  """Finds the questions that occur in passages, in whole or for the most part."""

  def __init__(self, texts: Sequence[str], share: float, min_words: int = 1):
    """Indexes the questions, of which a run must cover a share to be found.

    Questions of fewer than `min_words` words are never found.
    """
    if not 0.0 < share <= 1.0:
      raise ValueError(f'the share of a span is {share}; it must be over 0 and at most 1')
    if min_words < 1:
      raise ValueError(f'min_words is {min_words}; it must be at least 1')
    self._words = [words_of(text) for text in texts]
    self._needed = [
      math.ceil(share * len(words) - 1e-9) if len(words) >= min_words else 0
      for words in self._words
    ]
    by_size: dict[int, dict[tuple[str, ...], list[tuple[int, int]]]] = {}
    for question, (words, needed) in enumerate(zip(self._words, self._needed)):
      if not needed:
        continue
      size = next(size for size in _SIZES if size <= needed)
      ngrams = by_size.setdefault(size, {})
      for start in range(len(words) - size + 1):
        ngrams.setdefault(tuple(words[start : start + size]), []).append((question, start))
    self._indexes = {size: _NgramIndex(size, ngrams) for size, ngrams in by_size.items()}

  def n_words(self, question: int) -> int:
    return len(self._words[question])

  def is_searched(self, question: int) -> bool:
    """Whether the question has enough words to be found."""
    return self._needed[question] > 0

  def span_text(self, span: Span) -> str:
    return ' '.join(self._words[span.question][span.start : span.start + span.length])

  def find(self, passages: Sequence[str]) -> Iterator[Span]:
    """The longest run of each question in each passage of a chunk that has its share."""
    if not self._indexes:
      return
    joined = _joined(map(_plain, passages))
    hashes, breaks = _word_hashes(joined)
    words: list[str] | None = None
    best: dict[tuple[int, int], Span] = {}
    for size, index in self._indexes.items():
      positions = index.candidates(_ngram_hashes(hashes, size))
      if not len(positions):
        continue
      if words is None:  # Not split(), to which a break is white space.
        words = [word for word in joined.split(' ') if word]
      numbers = np.searchsorted(breaks, positions)
      for position, passage in zip(positions.tolist(), numbers.tolist()):
        for question, start in index.places(tuple(words[position : position + size])):
          length = self._run(words, position, question, start)
          known = best.get((question, passage))
          if length >= self._needed[question] and (known is None or length > known.length):
            best[question, passage] = Span(question, passage, start, length)
    yield from best.values()

  def _run(self, words: list[str], position: int, question: int, start: int) -> int:
    """Words shared from here on; 0 within a run that began before."""
    wanted = self._words[question]
    if position and start and words[position - 1] == wanted[start - 1]:
      return 0
    length = 0
    limit = min(len(words) - position, len(wanted) - start)
    while length < limit and words[position + length] == wanted[start + length]:
      length += 1
    return length


class _NgramIndex:
  """Where n-grams of one length occur in the questions."""

  def __init__(self, size: int, ngrams: dict[tuple[str, ...], list[tuple[int, int]]]):
    self._ngrams = ngrams
    hashes, _ = _word_hashes(_joined(map(' '.join, ngrams)))
    # Between two n-grams stands a break.
    own = _ngram_hashes(hashes, size)[:: size + 1]
    self._hashes = np.unique(own)
    self._table = np.zeros(1 << _TABLE_BITS, bool)
    self._table[_table_index(self._hashes)] = True

  def candidates(self, hashes: np.ndarray) -> np.ndarray:
    """Positions of hashes [N] uint64 that are, in all likelihood, n-grams here."""
    positions = np.flatnonzero(self._table[_table_index(hashes)])
    found = hashes[positions]
    nearest = np.minimum(np.searchsorted(self._hashes, found), len(self._hashes) - 1)
    return positions[self._hashes[nearest] == found]

  def places(self, ngram: tuple[str, ...]) -> list[tuple[int, int]]:
    """(question, first word) of each occurrence; [] if there is none."""
    return self._ngrams.get(ngram, [])


def _table_index(hashes: np.ndarray) -> np.ndarray:
  # The high bits: the low ones of a product depend on few of its factors'.
  return (hashes >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)


def _word_hashes(joined: str) -> tuple[Shaped[np.ndarray, ' words'], Int[np.ndarray, ' breaks']]:
  """Hashes of the words of a text that begins with a word, and which are breaks."""
  content = np.frombuffer(joined.encode('utf-8', 'surrogatepass'), np.uint8)
  if not len(content):
    return np.zeros(0, np.uint64), np.zeros(0, np.int64)
  is_word = content != _SPACE_BYTE
  starts = np.flatnonzero(is_word & ~np.r_[False, is_word[:-1]])
  lengths = np.diff(np.r_[starts, len(content)])
  places = np.arange(len(content)) - np.repeat(starts, lengths)
  powers = np.full(int(lengths.max()), _BYTE_BASE)
  powers[0] = 1
  # A polynomial in the bytes, in which the spaces behind a word are nothing.
  values = np.where(is_word, content, 0) * np.cumprod(powers)[places]
  hashes = np.add.reduceat(values, starts)
  hashes ^= hashes >> np.uint64(31)
  return hashes * _WORD_BASE, np.flatnonzero(content[starts] == _BREAK_BYTE)


def _ngram_hashes(words: np.ndarray, size: int) -> np.ndarray:
  """Hashes of the n-grams that begin at each word: [words - size + 1] uint64."""
  count = max(len(words) - size + 1, 0)
  hashes = np.zeros(count, np.uint64)
  for offset in range(size):
    hashes = hashes * _WORD_BASE + words[offset : offset + count]
  # The high bits pick a place in the table: mix the low ones in.
  hashes ^= hashes >> np.uint64(32)
  return hashes * _BYTE_BASE
