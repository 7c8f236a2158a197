"""Passage ids by the million: 64-bit hashes in sorted arrays."""

from collections.abc import Iterable
import hashlib

import numpy as np


def hash_ids(ids: Iterable[str]) -> np.ndarray:
  """[N] uint64, the same on every machine.

  Two ids may share a hash (about once among six billion ids), so whoever
  finds a hash compares the ids themselves.
  """
  digests = b''.join(hashlib.blake2b(i.encode('utf-8'), digest_size=8).digest() for i in ids)
  return np.frombuffer(digests, '<u8').astype(np.uint64, copy=False)


class HashSet:
  """A growing set of hashes with a number each, 16 bytes an entry.

  Sorted runs of growing size are merged when they are of like size: what is
  added costs a search in a few runs, and every entry is merged log(n) times.
  """

  def __init__(self):
    self._runs: list[tuple[np.ndarray, np.ndarray]] = []

  def add(self, hashes: np.ndarray, numbers: np.ndarray) -> None:
    """Adds `hashes` [N] uint64 with their `numbers` [N] int64."""
    order = np.argsort(hashes, kind='stable')
    self._runs.append((hashes[order], numbers[order]))
    while len(self._runs) > 1 and len(self._runs[-2][0]) <= 2 * len(self._runs[-1][0]):
      (a, a_numbers), (b, b_numbers) = self._runs[-2:]
      merged = np.concatenate([a, b])
      order = np.argsort(merged, kind='stable')
      self._runs[-2:] = [(merged[order], np.concatenate([a_numbers, b_numbers])[order])]

  def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where hashes occur.

    Returns:
      positions in `hashes` [M] int64, and the number that goes with each.
    """
    positions, numbers = [], []
    for run, run_numbers in self._runs:
      found_positions, found = find_sorted(run, hashes)
      positions.append(found_positions)
      numbers.append(run_numbers[found])
    if not positions:
      return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate(positions), np.concatenate(numbers)


def find_sorted(run: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Every pair (i, j) with `hashes[i] == run[j]`, for a sorted `run`."""
  left = np.searchsorted(run, hashes, 'left')
  counts = np.searchsorted(run, hashes, 'right') - left
  positions = np.repeat(np.arange(len(hashes)), counts)
  within = np.arange(len(positions)) - np.repeat(np.cumsum(counts) - counts, counts)
  return positions, np.repeat(left, counts) + within
