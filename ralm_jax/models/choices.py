"""The letters of a multiple choice's options, as targets."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ChoiceTokens:
  """The targets of the options' letters.

  Attributes:
    tokens: int32 [n_options, length], as they are trained on, padded.
    mask: bool [n_options, length], true on tokens.
    position: the only one at which the targets differ: that of the letters.
      None where there is no such position.
  """

  tokens: np.ndarray
  mask: np.ndarray
  position: int | None

  @classmethod
  def make(cls, targets: Sequence[Sequence[int]]) -> ChoiceTokens:
    """Pads the token ids of each letter's target.

    Raises:
      ValueError: two letters have the same tokens.
    """
    targets = [tuple(ids) for ids in targets]
    for i, ids in enumerate(targets):
      if ids in targets[:i]:
        raise ValueError(
          f'Options {targets.index(ids) + 1} and {i + 1} have the same target, tokens {list(ids)}: '
          'the reader vocabulary does not know their letters, or target_length cuts them off.'
        )
    length = max(map(len, targets))
    tokens = np.zeros((len(targets), length), np.int32)
    mask = np.zeros((len(targets), length), bool)
    for i, ids in enumerate(targets):
      tokens[i, : len(ids)], mask[i, : len(ids)] = ids, True
    differ = np.flatnonzero(np.any(tokens != tokens[0], axis=0))
    same_length = len(set(map(len, targets))) == 1
    found = (
      same_length and len(differ) == 1 and (len(np.unique(tokens[:, differ[0]])) == len(targets))
    )
    return cls(tokens, mask, int(differ[0]) if found else None)
