"""Independent crops of passages: positive pairs without labels. NumPy only."""

from __future__ import annotations

import dataclasses

import numpy as np

from ralm_jax.data import ragged
from ralm_jax.data.ragged import RaggedTokens
from ralm_jax.losses import option_types
from ralm_jax.losses.option_types import Count, Dropout, Share


@dataclasses.dataclass(frozen=True)
class CropConfig:
  """How crops are drawn (Contriever, section 3.1)."""

  min_ratio: Share = 0.1  #: shortest crop, as a share of the passage
  max_ratio: Share = 0.5  #: longest crop
  deletion_rate: Dropout = 0.1  #: share of tokens dropped from each crop
  min_tokens: Count = 4  #: shortest crop in tokens, where the passage has as many
  max_tokens: Count | None = None  #: longest crop in tokens; None for no limit

  def __post_init__(self):
    option_types.check_fields(self)
    if not 0 < self.min_ratio <= self.max_ratio <= 1:
      raise ValueError(
        f'CropConfig: 0 < min_ratio ({self.min_ratio}) <= max_ratio '
        f'({self.max_ratio}) <= 1 does not hold.'
      )


def random_crops(
  tokens: RaggedTokens, config: CropConfig, generator: np.random.Generator
) -> RaggedTokens:
  """One random contiguous crop of every sequence; an empty one stays empty."""
  lengths = tokens.lengths
  ratio = generator.uniform(config.min_ratio, config.max_ratio, len(lengths))
  kept = np.maximum(np.round(ratio * lengths), config.min_tokens)
  if config.max_tokens is not None:
    kept = np.minimum(kept, config.max_tokens)
  kept = np.minimum(kept, lengths).astype(np.int64)
  offset = np.floor(generator.random(len(lengths)) * (lengths - kept + 1))
  crops = ragged.gather(tokens.values, tokens.offsets[:-1] + offset.astype(np.int64), kept)
  if not config.deletion_rate:
    return crops
  stays = generator.random(len(crops.values)) >= config.deletion_rate
  # The first token stays, so that no crop becomes empty.
  stays[crops.offsets[:-1][crops.lengths > 0]] = True
  counts = np.add.reduceat(np.append(stays, False), crops.offsets[:-1]) * (crops.lengths > 0)
  return RaggedTokens(crops.values[stays], ragged.offsets_of(counts))


def frame(
  tokens: RaggedTokens, length: int, *, prefix: list[int], suffix: list[int], pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Frames and pads to int32 and bool [N, length]; `suffix` is kept under truncation."""
  kept = tokens.truncate(length - len(prefix) - len(suffix))
  same = lambda ids: RaggedTokens.from_lists([ids] * len(kept))
  framed = ragged.concatenate([same(prefix), kept, same(suffix)])
  mask = np.arange(length) < framed.lengths[:, None]
  return framed.pad(length, pad_id), mask
