"""Ragged token sequences in two flat NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # Which would load jax.
  from ralm_jax.losses.array_types import Int


@dataclasses.dataclass(frozen=True)
class RaggedTokens:
  """N int32 token sequences without padding; `i` is `values[offsets[i] : offsets[i + 1]]`."""

  values: Int[np.ndarray, ' total']
  offsets: Int[np.ndarray, ' n+1']

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def __getitem__(self, index: int) -> Int[np.ndarray, ' length']:
    if not -len(self) <= index < len(self):
      raise IndexError(f'sequence {index} of {len(self)}')
    index %= len(self)
    return self.values[self.offsets[index] : self.offsets[index + 1]]

  @property
  def lengths(self) -> Int[np.ndarray, ' n']:
    return np.diff(self.offsets)

  @classmethod
  def from_lists(cls, sequences: Iterable[Sequence[int]]) -> RaggedTokens:
    """From one list or array of ids a sequence."""
    arrays = [np.asarray(sequence, np.int32) for sequence in sequences]
    lengths = np.fromiter((len(a) for a in arrays), np.int64, len(arrays))
    values = np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
    return cls(values, offsets_of(lengths))

  @classmethod
  def from_padded(cls, tokens: Int[np.ndarray, 'n length'], pad_id: int = 0) -> RaggedTokens:
    """From padded rows; a `pad_id` between tokens is kept."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 2:
      raise ValueError(f'expected tokens [N, length], found shape {tokens.shape}')
    columns = np.arange(1, tokens.shape[1] + 1)
    lengths = np.max(np.where(tokens != pad_id, columns, 0), axis=1, initial=0)
    values = tokens[columns <= lengths[:, None]].astype(np.int32, copy=False)
    return cls(values, offsets_of(lengths))

  @classmethod
  def empty(cls, n: int) -> RaggedTokens:
    return cls(np.zeros(0, np.int32), np.zeros(n + 1, np.int64))

  def take(self, indices: Int[np.ndarray, ' m']) -> RaggedTokens:
    """The sequences at `indices`, in that order."""
    indices = np.asarray(indices, np.int64)
    starts = self.offsets[:-1][indices]
    lengths = self.offsets[1:][indices] - starts
    return gather(self.values, starts, lengths)

  def truncate(self, lengths: int | Int[np.ndarray, ' n']) -> RaggedTokens:
    """Keeps at most so many tokens on the left."""
    kept = np.minimum(self.lengths, lengths)
    if np.array_equal(kept, self.lengths):
      return self
    return gather(self.values, self.offsets[:-1], kept)

  def pad(self, length: int, pad_id: int = 0) -> Int[np.ndarray, 'n length']:
    """Longer sequences lose their right end."""
    result = np.full((len(self), length), pad_id, np.int32)
    kept = self.truncate(length)
    result[np.arange(length) < kept.lengths[:, None]] = kept.values
    return result

  def to_lists(self) -> list[list[int]]:
    return [self[i].tolist() for i in range(len(self))]


def offsets_of(lengths: Int[np.ndarray, ' n']) -> Int[np.ndarray, ' n+1']:
  offsets = np.zeros(len(lengths) + 1, np.int64)
  np.cumsum(lengths, out=offsets[1:])
  return offsets


def gather(
  values: Int[np.ndarray, ' total'], starts: Int[np.ndarray, ' n'], lengths: Int[np.ndarray, ' n']
) -> RaggedTokens:
  """Copies the runs `values[start:start + length]` one after the other."""
  offsets = offsets_of(lengths)
  indices = np.repeat(starts - offsets[:-1], lengths)
  indices += np.arange(offsets[-1])
  return RaggedTokens(values[indices].astype(np.int32, copy=False), offsets)


def concatenate(parts: Sequence[RaggedTokens]) -> RaggedTokens:
  """Joins sequence i of every part into sequence i of the result; ValueError if sizes differ."""
  counts = {len(part) for part in parts}
  if len(counts) != 1:
    raise ValueError(f'cannot join parts of {sorted(counts)} sequences')
  lengths = np.stack([part.lengths for part in parts], axis=1)  # [N, parts]
  runs = offsets_of(lengths.ravel())
  values = np.empty(runs[-1], np.int32)
  for index, part in enumerate(parts):
    starts = runs[:-1].reshape(lengths.shape)[:, index]
    target = np.repeat(starts - part.offsets[:-1], part.lengths)
    target += np.arange(len(part.values))
    values[target] = part.values
  return RaggedTokens(values, runs[:: len(parts)].copy())
