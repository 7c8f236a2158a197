"""Pre-training examples out of passages, no labels needed. NumPy only.

The pretext tasks of Atlas (Izacard et al. 2022, section 2.3) and REALM's
salient spans. Each is an `Objective`: masked spans, prefix language modelling,
title and section to text, salient spans. The query is the text itself; formats
of TextConfig for questions and targets have no part in it, its lengths have.

As in Atlas the retriever reads the reader's query as text, with the literal
`<extra_id_0>` in its own pieces. The reader's ids are not made from that text,
as they are there: a word that was cut in two keeps its pieces.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np

from ralm_jax.data.pretext import noise, salient_spans
from ralm_jax.data.pretext.salient_spans import Annotator
from ralm_jax.data.pretext.tokens import PretextTokenizer, WordEncoder
from ralm_jax.data.text.base_vocabulary import SentinelVocabulary

if TYPE_CHECKING:  # Which would load jax.
  from ralm_jax.losses.array_types import Int

_NOTHING = np.zeros(0, np.int32)


@dataclasses.dataclass(frozen=True)
class Source:
  """What an example is made of."""

  title: str
  section: str
  text: str


@dataclasses.dataclass(frozen=True)
class Example:
  """Token ids of one example, no longer than TextConfig says."""

  query: list[int]
  reader_query: list[int]  #: in place of {query} in the reader's format; no special tokens
  target: list[int]


class Objective(abc.ABC):
  """Makes examples of passages."""

  def check(self, tokenizer: PretextTokenizer) -> None:  # noqa: B027
    """Finds out before training whether it can work; ValueError where it cannot."""

  @abc.abstractmethod
  def prepare(
    self, source: Source, tokenizer: PretextTokenizer, tokens: Int[np.ndarray, ' s'] | None = None
  ) -> Int[np.ndarray, ' m'] | None:
    """What is the same in every epoch; None where nothing can be learned from the passage."""

  @abc.abstractmethod
  def example(
    self,
    source: Source,
    prepared: Int[np.ndarray, ' m'],
    tokenizer: PretextTokenizer,
    generator: np.random.Generator,
  ) -> Example:
    """Makes an example."""


@dataclasses.dataclass(frozen=True)
class MaskedSpans(Objective):
  """T5's span corruption."""

  noise: noise.NoiseConfig = noise.NoiseConfig()
  #: of a passage, before the noise; what follows is left out. None for as many as fit into query
  #: and target, so that nothing that was masked is cut off; Atlas's is the length of a passage.
  max_tokens: int | None = None

  def check(self, tokenizer: PretextTokenizer) -> None:
    vocabulary = tokenizer.sentinel_vocabulary('MaskedSpans')
    if not vocabulary.extra_ids:
      raise ValueError(f'{vocabulary.path} was opened without sentinels.')
    self._limit(tokenizer)

  def prepare(self, source, tokenizer, tokens=None):
    if tokens is None:
      tokens = np.array(tokenizer.reader.encode(source.text.split()), np.int32)
    return tokens if len(tokens) >= 2 else None

  def example(self, source, prepared, tokenizer, generator):
    sentinels = _sentinels(tokenizer.sentinel_vocabulary('MaskedSpans'))
    tokens = prepared[: self._limit(tokenizer)]
    corrupted = noise.corrupt(
      tokens,
      noise.random_spans(len(tokens), self.noise, generator, len(sentinels)),
      sentinels,
      closing_sentinel=self.noise.closing_sentinel,
    )
    inputs = corrupted.inputs[: tokenizer.text.reader_query_length]
    return Example(
      tokenizer.framed_query(tokenizer.translator(inputs, tokenizer.query_space)),
      inputs.tolist(),
      tokenizer.framed_target(corrupted.targets.tolist()),
    )

  def _limit(self, tokenizer: PretextTokenizer) -> int:
    if self.max_tokens is not None:
      return max(2, self.max_tokens)
    return _longest_fitting(
      self.noise,
      tokenizer.text.reader_query_length,
      tokenizer.text.target_length,
      tokenizer.sentinel_vocabulary('MaskedSpans').extra_ids,
    )


@dataclasses.dataclass(frozen=True)
class PrefixLM(Objective):
  """The left part of a text to its right part, cut between two words at a random place.

  A left part that is too long for a query keeps its end. The ratios count words and the blanks
  between them, as Atlas does, whose `lm` scripts have 0.25 and 0.75.
  """

  min_ratio: float = 0.5  #: shortest left part, as a share of the text
  max_ratio: float = 0.5  #: longest left part

  def __post_init__(self):
    if not 0 <= self.min_ratio <= self.max_ratio <= 1:
      raise ValueError(
        f'PrefixLM: 0 <= min_ratio ({self.min_ratio}) <= max_ratio '
        f'({self.max_ratio}) <= 1 does not hold.'
      )

  def prepare(self, source, tokenizer, tokens=None):
    return _NOTHING if len(source.text.split(maxsplit=2)) >= 2 else None

  def example(self, source, prepared, tokenizer, generator):
    words = source.text.split()
    left = self.left_words(len(words), generator)
    left, right = words[:left], words[left:]
    reader_left = tokenizer.reader.last_words(left, tokenizer.text.reader_query_length)
    return Example(
      tokenizer.query(tokenizer.retriever.last_words(left, tokenizer.query_space)),
      tokenizer.reader_query(reader_left),
      tokenizer.target(right),
    )

  def left_words(self, words: int, generator: np.random.Generator) -> int:
    """How many of `words` >= 2 words are left of the cut."""
    pieces = 2 * words + 1  # Blanks, word, blanks, ..., word, blanks.
    least = int(max(2, pieces * self.min_ratio))
    most = int(max(min(pieces - 2, pieces * self.max_ratio), least + 1))
    cut = int(generator.integers(least, most, endpoint=True))
    return min(cut // 2, words - 1)


@dataclasses.dataclass(frozen=True)
class TitleSection(Objective):
  """`title, section` to the text; a passage without a section makes none."""

  def prepare(self, source, tokenizer, tokens=None):
    if not source.section.strip():
      return None
    # Where the first word of a text has ids of its own, those stored are not the target's.
    if tokens is None or tokenizer.reader.vocabulary.first_word_differs:
      return np.array(tokenizer.target_words(source.text.split()), np.int32)
    return tokens

  def example(self, source, prepared, tokenizer, generator):
    words = f'{source.title}, {source.section}'.split()
    return Example(
      tokenizer.query(words),
      tokenizer.reader_query(words),
      tokenizer.framed_target(prepared[: tokenizer.text.target_length].tolist()),
    )


@dataclasses.dataclass(frozen=True)
class SalientSpans(Objective):
  """One name, date or number of the text, `<extra_id_0>` in its place, as in REALM.

  Where its text occurs once more the reader may copy it. A longer text is cut around the span.
  """

  #: finds spans; those of `salient_spans.find`, or a function of the user's.
  annotator: Annotator = salient_spans.find

  def check(self, tokenizer: PretextTokenizer) -> None:
    tokenizer.sentinel_vocabulary('SalientSpans')

  def prepare(self, source, tokenizer, tokens=None):
    spans = salient_spans.checked(self.annotator(source.text), source.text)
    # What is the whole text has nothing around it to tell by.
    whole = len(source.text.strip())
    spans = [span for span in spans if span[1] - span[0] < whole]
    return np.array(spans, np.int32).ravel() if spans else None

  def example(self, source, prepared, tokenizer, generator):
    index = 2 * int(generator.integers(len(prepared) // 2))
    start, end = prepared[index : index + 2].tolist()
    left, right = source.text[:start].split(), source.text[end:].split()
    return Example(
      tokenizer.query(_around(left, right, tokenizer.retriever, tokenizer.query_space)),
      tokenizer.reader_query(
        _around(left, right, tokenizer.reader, tokenizer.text.reader_query_length)
      ),
      tokenizer.target(['<extra_id_0>', *source.text[start:end].split()]),
    )


def word_count(text: str) -> int:
  return len(text.split())


_longest_fitting = functools.lru_cache(64)(noise.longest_fitting)


@functools.lru_cache(8)
def _sentinels(vocabulary: SentinelVocabulary) -> np.ndarray:
  return np.array([vocabulary.sentinel_id(i) for i in range(vocabulary.extra_ids)], np.int32)


def _around(
  left: Sequence[str], right: Sequence[str], encoder: WordEncoder, space: int
) -> list[str]:
  """Words with a sentinel between, so many that the sentinel is not cut off."""
  whole = [*left, '<extra_id_0>', *right]
  before = len(encoder.encode(whole[: len(left) + 1]))
  if before <= space // 2:
    return whole  # What is too much is cut off on the right.
  # Half for the left, and what the right does not need.
  after = min(len(encoder.encode(right, space)), space - space // 2)
  sentinel = len(encoder.encode(['<extra_id_0>']))
  kept = encoder.last_words(left, max(0, space - sentinel - after))
  return [*kept, *whole[len(left) :]]
