"""How answers are decoded: greedily, by sampling or by beam search."""

from __future__ import annotations

import dataclasses
import math
import numbers


@dataclasses.dataclass(frozen=True)
class DecodingOptions:
  """Choices of decoding; the defaults are greedy.

  Names and meanings are those of Hugging Face's `generate`; lengths count the
  tokens produced, not what the decoder was given to begin with.

  Attributes:
    num_beams: sequences a search keeps; 1 is no search.
    sample: draw tokens instead of taking the most likely one.
    temperature: divides the logits before sampling.
    top_k: sample among so many of the most likely tokens; 0 for all.
    top_p: sample among the most likely tokens that together have this
      probability (Holtzman et al. 2020); 1 for all.
    length_penalty: a beam's score is its log-probability over its length to
      this power; above 0 favours long answers, below 0 short ones.
    early_stopping: when a beam search ends. True: once `num_beams` sequences
      have ended. False: once the best running sequence, at its present length,
      scores below them. 'never': once it could not pass them at any length.
    min_length: tokens an answer has before it may end.
    num_return: sequences returned for an example: the best of the beams, or as
      many independent draws.

  Raises:
    ValueError: a value outside its range, or a choice without effect.
  """

  num_beams: int = 1
  sample: bool = False
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  length_penalty: float = 1.0
  early_stopping: bool | str = False
  min_length: int = 0
  num_return: int = 1

  def __post_init__(self):
    for name, least in (('num_beams', 1), ('top_k', 0), ('min_length', 0), ('num_return', 1)):
      value = getattr(self, name)
      if not _is_number(value, numbers.Integral) or value < least:
        raise ValueError(f'{name} must be an integer of at least {least}, got {value!r}.')
    for name in ('temperature', 'top_p', 'length_penalty'):
      value = getattr(self, name)
      if not _is_number(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f'{name} must be a finite number, got {value!r}.')
    if not isinstance(self.sample, bool):
      raise ValueError(f'sample must be True or False, got {self.sample!r}.')
    if self.temperature <= 0:
      raise ValueError(
        f'temperature must be above 0, got {self.temperature}; for the most '
        'likely token leave sample at False.'
      )
    if not 0 < self.top_p <= 1:
      raise ValueError(f'top_p must be in (0, 1], got {self.top_p}.')
    if not isinstance(self.early_stopping, bool) and (self.early_stopping != 'never'):
      raise ValueError(
        f"early_stopping must be True, False or 'never', got {self.early_stopping!r}."
      )
    self._check_combinations()

  def _check_combinations(self) -> None:
    if self.num_beams == 1:
      for name, inactive in (('length_penalty', 1.0), ('early_stopping', False)):
        if getattr(self, name) != inactive:
          raise ValueError(
            f'{name}={getattr(self, name)} has no effect unless num_beams is above 1.'
          )
    if self.sample:
      if self.num_beams > 1:
        raise ValueError(
          f'sample and num_beams={self.num_beams} exclude each other; for '
          'several draws set num_return.'
        )
      return
    for name, inactive in (('temperature', 1.0), ('top_k', 0), ('top_p', 1.0)):
      if getattr(self, name) != inactive:
        raise ValueError(f'{name}={getattr(self, name)} has no effect unless sample is True.')
    if self.num_return > self.num_beams:
      raise ValueError(
        f'num_return={self.num_return} sequences of num_beams='
        f'{self.num_beams}: raise num_beams, or set sample.'
      )


def _is_number(value: object, kind: type) -> bool:
  return isinstance(value, kind) and not isinstance(value, bool)
