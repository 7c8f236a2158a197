"""Where the trainer's batches come from; `RetrievalAugmenter` is one."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Protocol

import numpy as np

from ralm_jax.data.batches import QueryBatch
from ralm_jax.losses.array_types import PyTree
from ralm_jax.models.retrieval_lm import ReaderBatch


class Found(Protocol):
  """What was searched for a batch."""

  @property
  def generation(self) -> int:
    """Of the index; 0 without one."""

  @property
  def index_id(self) -> str:
    """Of the index; '' where it does not say."""


class PreparedBatch(Protocol):
  """A batch ready for the device."""

  @property
  def queries(self) -> Sized:
    """This process's examples."""

  @property
  def retrieved(self) -> Found:
    """What was searched for them."""

  @property
  def reader_batch(self) -> ReaderBatch:
    """Host arrays of the step."""

  @property
  def metrics(self) -> Mapping[str, float]:
    """Of how they were prepared."""


class PendingBatch(Protocol):
  """A batch that is being prepared while the device works."""

  def result(self) -> PreparedBatch:
    """Waits for the batch; raises what its preparation raised."""

  def snapshot(self) -> dict[str, np.ndarray]:
    """Arrays from which `BatchSource.resume` prepares it again."""


class BatchSource(Protocol):
  """Makes examples into batches, one or more ahead of the step."""

  def submit(self, params: PyTree, queries: QueryBatch, step: int) -> PendingBatch:
    """Starts to prepare what step `step` trains on, with the parameters of now."""

  def resume(self, arrays: dict[str, np.ndarray], step: int) -> PendingBatch:
    """The pending batch of a snapshot: nothing is searched again."""

  def close(self) -> None:
    """Drops what is still being prepared."""


class BatchIterator(Protocol):
  """Endless examples whose position can be saved."""

  def __next__(self) -> QueryBatch: ...

  def state(self) -> dict[str, np.ndarray]:
    """The position, as arrays."""

  def restore(self, state: Mapping[str, np.ndarray]) -> None:
    """Goes to a saved position."""
