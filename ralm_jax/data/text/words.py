"""Words, also of scripts that write none: there each character is one."""

from __future__ import annotations

import bisect
import functools
import itertools
import re
import unicodedata

import numpy as np

from ralm_jax.data.text.base_vocabulary import Vocabulary

# Of scripts without spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, Chinese, Japanese.
_UNSPACED = (
  *((0x0E00, 0x0E7F), (0x0E80, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF)),
  *((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x302F), (0x3031, 0x312F), (0x31A0, 0x31BF)),
  *((0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA000, 0xA4CF), (0xF900, 0xFAFF)),
  *((0xFF66, 0xFF9F), (0x20000, 0x3FFFF)),
)
# Characters of a word that are looked at for each token there is room for.
_LONGEST_TOKEN = 32


@functools.cache
def _word_pattern() -> re.Pattern[str]:
  """A character of such a script with its marks, or a run of others without whitespace."""
  marks = ''.join(
    chr(code)
    for first, last in _UNSPACED
    if last < 0x20000
    for code in range(first, last + 1)
    if unicodedata.category(chr(code)).startswith('M')
  )
  unspaced = ''.join(f'{chr(first)}-{chr(last)}' for first, last in _UNSPACED)
  return re.compile(rf'[{unspaced}][{marks}]*|[^\s{unspaced}]+')


@functools.cache
def _unspaced_pattern() -> re.Pattern[str]:
  return re.compile(rf'[{"".join(f"{chr(first)}-{chr(last)}" for first, last in _UNSPACED)}]')


def apart(text: str) -> str:
  """A text with spaces around each character of a script that has none between words."""
  return text if text.isascii() else _unspaced_pattern().sub(r' \g<0> ', text)


def spans(text: str) -> list[tuple[int, int]]:
  """Where each word begins and ends.

  A word is a run without whitespace, in which every character of a script without spaces is a word
  of its own: an article in Chinese is not one word.
  """
  return [match.span() for match in _word_pattern().finditer(text)]


def characters_of(text: str, vocabulary: Vocabulary, n_tokens: int) -> int:
  """The characters of a text that its first tokens hold, a word cut in two not counted.

  In scripts without spaces any character may be the last. Vocabularies split at whitespace, so that
  the runs between are tokenised apart; each has a token at least.
  """
  if n_tokens < 1:
    return 0
  found = [m.span() for m in itertools.islice(re.finditer(r'\S+', text), n_tokens + 1)]
  longest = n_tokens * _LONGEST_TOKEN
  runs = [text[first : min(last, first + longest)] for first, last in found]
  ends = np.cumsum([len(ids) for ids in vocabulary.encode_batch(runs)])
  whole = int(np.searchsorted(ends, n_tokens, side='right'))
  if whole == len(found):
    return len(text)
  left = n_tokens - (int(ends[whole - 1]) if whole else 0)
  end = found[whole - 1][1] if whole else 0
  if left:
    run = runs[whole]
    sizes = range(len(run) + 1)
    kept = bisect.bisect_right(sizes, left, key=lambda size: len(vocabulary.encode(run[:size]))) - 1
    edges = {0, *(edge for span in spans(run) for edge in span)}
    edges |= {i for i in range(1, len(run)) if not (run[i - 1].isalnum() and run[i].isalnum())}
    edge = max(edge for edge in edges if edge <= kept)
    end = found[whole][0] + edge if edge else end
  return end
