"""Meshes, vectors and the search that a device index is compared with."""

from __future__ import annotations

from typing import Any

import jax
import ml_dtypes
import numpy as np

from ralm_jax.retrieval.device.index import DeviceIndex
from ralm_jax.retrieval.device.search import DeviceOptions
from ralm_jax.training.partitioning import Partitioner

DIM = 24
MESHES = {
  '8x1': Partitioner(num_partitions=1),
  '4x2': Partitioner(num_partitions=2),
  'one': Partitioner(devices=jax.devices()[:1]),
}


def vectors(count: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return rng.standard_normal((count, dim)).astype(np.float16)


def queries(batch: int = 5, seed: int = 9, dim: int = DIM) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return rng.standard_normal((batch, dim)).astype(np.float32)


def as_kept(stored: np.ndarray, dtype: str) -> np.ndarray:
  """What the devices hold, in float64."""
  kind = ml_dtypes.bfloat16 if dtype == 'bfloat16' else np.dtype(dtype)
  return stored.astype(kind).astype(np.float64)


def exact(kept: np.ndarray, wanted: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """Ids and scores of brute force; equal scores by id."""
  scores = wanted.astype(np.float64) @ kept.T
  ids = np.argsort(-scores, axis=1, kind='stable')[:, :k]
  return ids, np.take_along_axis(scores, ids, axis=1)


def build(
  folder: Any,
  stored: np.ndarray,
  partitioner: Partitioner = MESHES['4x2'],
  ids: np.ndarray | None = None,
  **settings: Any,
) -> DeviceIndex:
  """An index of one generation."""
  index = DeviceIndex(folder, partitioner, DeviceOptions(**settings))
  index.build([(ids, stored)], dim=stored.shape[1])
  return index
