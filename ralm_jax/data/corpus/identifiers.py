"""Passage ids by the million: 64-bit hashes in sorted arrays."""

from __future__ import annotations

from collections.abc import Iterable
import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # Which would load jax.
  from ralm_jax.losses.array_types import Int


def hash_ids(ids: Iterable[str]) -> Int[np.ndarray, ' n']:
  """Unsigned 64-bit hashes, the same on every machine; whoever finds one compares the ids."""
  digests = b''.join(hashlib.blake2b(i.encode('utf-8'), digest_size=8).digest() for i in ids)
  return np.frombuffer(digests, '<u8').astype(np.uint64, copy=False)


class HashSet:
  """A growing set of hashes with a number each: sorted runs, merged when of like size."""

  def __init__(self):
    self._runs: list[tuple[np.ndarray, np.ndarray]] = []

  def add(self, hashes: Int[np.ndarray, ' n'], numbers: Int[np.ndarray, ' n']) -> None:
    order = np.argsort(hashes, kind='stable')
    self._runs.append((hashes[order], numbers[order]))
    while len(self._runs) > 1 and len(self._runs[-2][0]) <= 2 * len(self._runs[-1][0]):
      (a, a_numbers), (b, b_numbers) = self._runs[-2:]
      merged = np.concatenate([a, b])
      order = np.argsort(merged, kind='stable')
      self._runs[-2:] = [(merged[order], np.concatenate([a_numbers, b_numbers])[order])]

  def find(
    self, hashes: Int[np.ndarray, ' n']
  ) -> tuple[Int[np.ndarray, ' m'], Int[np.ndarray, ' m']]:
    """Where hashes occur: positions in `hashes`, and the number that goes with each."""
    positions, numbers = [], []
    for run, run_numbers in self._runs:
      found_positions, found = find_sorted(run, hashes)
      positions.append(found_positions)
      numbers.append(run_numbers[found])
    if not positions:
      return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate(positions), np.concatenate(numbers)


def find_sorted(
  run: Int[np.ndarray, ' r'], hashes: Int[np.ndarray, ' n']
) -> tuple[Int[np.ndarray, ' m'], Int[np.ndarray, ' m']]:
  """Every pair (i, j) with `hashes[i] == run[j]`, for a sorted `run`."""
  left = np.searchsorted(run, hashes, 'left')
  counts = np.searchsorted(run, hashes, 'right') - left
  positions = np.repeat(np.arange(len(hashes)), counts)
  within = np.arange(len(positions)) - np.repeat(np.cumsum(counts) - counts, counts)
  return positions, np.repeat(left, counts) + within
