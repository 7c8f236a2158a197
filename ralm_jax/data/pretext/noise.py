"""T5's span corruption of token ids. NumPy only.

The procedure of Atlas's masked language modelling (Izacard et al. 2022,
section 2.3, after Raffel et al. 2020, section 3.1.4): visible and masked spans
alternate, the first is visible, the last is masked, and each masked span
becomes one sentinel. Counts are rounded as Python rounds, halves to even.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from ralm_jax.losses import option_types
from ralm_jax.losses.option_types import Positive

if TYPE_CHECKING:  # Which would load jax.
  from ralm_jax.losses.array_types import Int


@dataclasses.dataclass(frozen=True)
class NoiseConfig:
  """How much is masked."""

  density: float = 0.15  #: share of the tokens that are masked
  mean_span_length: Positive = 3.0  #: mean tokens of a masked span
  #: end targets with one more sentinel, as the figures of T5's paper do; neither its code nor Atlas
  #: does
  closing_sentinel: bool = False

  def __post_init__(self):
    option_types.check_fields(self)
    if not 0 < self.density < 1:
      raise ValueError(f'NoiseConfig.density must be between 0 and 1, not {self.density}.')
    if self.mean_span_length < 1:
      raise ValueError(
        f'NoiseConfig.mean_span_length must be at least 1, not {self.mean_span_length}.'
      )

  def counts(self, length: int, max_spans: int) -> tuple[int, int]:
    """Masked tokens and spans of `length` >= 2 tokens; every span, visible or not, has a token."""
    noise = max(round(length * self.density), 1)
    spans = max(round(noise / self.mean_span_length), 1)
    noise = min(noise, length - 1)
    return noise, min(spans, noise, length - noise, max_spans)


@dataclasses.dataclass(frozen=True)
class Spans:
  """Lengths of alternating spans, each at least 1: visible, masked, visible, masked, ..."""

  visible: Int[np.ndarray, ' n']
  masked: Int[np.ndarray, ' n']


@dataclasses.dataclass(frozen=True)
class Corrupted:
  """Inputs with a sentinel for each masked span; targets with each span behind its sentinel."""

  inputs: Int[np.ndarray, ' s']
  targets: Int[np.ndarray, ' t']


def random_composition(
  total: int, parts: int, generator: np.random.Generator
) -> Int[np.ndarray, ' parts']:
  """`parts` positive numbers that add up to `total`, each way equally likely."""
  bounds = np.empty(parts + 1, np.int64)
  bounds[0], bounds[-1] = 0, total
  bounds[1:-1] = generator.permutation(total - 1)[: parts - 1] + 1
  bounds.sort()
  return bounds[1:] - bounds[:-1]


def random_spans(
  length: int, config: NoiseConfig, generator: np.random.Generator, max_spans: int = 100
) -> Spans:
  """Draws what is masked in a sequence of `length` tokens; ValueError if that is below 2."""
  if length < 2:
    raise ValueError(f'a sequence of {length} tokens has nothing to mask')
  noise, spans = config.counts(length, max_spans)
  masked = random_composition(noise, spans, generator)
  return Spans(random_composition(length - noise, spans, generator), masked)


def corrupt(
  tokens: Int[np.ndarray, ' s'],
  spans: Spans,
  sentinels: Int[np.ndarray, ' v'],
  *,
  closing_sentinel: bool = False,
) -> Corrupted:
  """Puts sentinels in place of masked spans, in the order of their ids' use.

  T5's are 32099 and downwards. A closing one is left out where all are in use.
  """
  count = len(spans.masked)
  ends = np.cumsum(spans.visible + spans.masked)
  starts = ends - spans.masked
  changes = np.zeros(len(tokens), np.int8)
  changes[starts] = 1
  changes[ends[:-1]] = -1
  masked = np.cumsum(changes).astype(bool)

  shown = np.array(tokens, np.int32)
  shown[starts] = sentinels[:count]
  kept = ~masked
  kept[starts] = True

  closing = closing_sentinel and len(sentinels) > count
  targets = np.empty(int(spans.masked.sum()) + count + closing, np.int32)
  is_sentinel = np.zeros(len(targets), bool)
  is_sentinel[np.cumsum(spans.masked) - spans.masked + np.arange(count)] = True
  if closing:
    is_sentinel[-1] = True
  targets[is_sentinel] = sentinels[: count + closing]
  targets[~is_sentinel] = np.asarray(tokens)[masked]
  return Corrupted(shown[kept], targets)


def longest_fitting(
  config: NoiseConfig, input_length: int, target_length: int, max_spans: int = 100
) -> int:
  """The longest sequence of which no noise makes more tokens than fit, end of sequence included."""

  def fits(length: int) -> bool:
    noise, spans = config.counts(length, max_spans)
    return (
      length - noise + spans <= input_length
      and noise + spans + config.closing_sentinel + 1 <= target_length
    )

  longest = 1
  # Neither count shrinks by more than rounding, so two misses in a row end it.
  while fits(longest + 1) or fits(longest + 2):
    longest += 1
  while longest > 1 and not fits(longest):
    longest -= 1
  if longest < 2:
    raise ValueError(
      f'Masked spans need longer sequences than {input_length} tokens of a '
      f'query and {target_length} of a target: raise '
      'TextConfig.reader_query_length or TextConfig.target_length.'
    )
  return longest
