"""Named tensors of a foreign checkpoint, read one at a time."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """What is known of a tensor without reading it.

  Attributes:
    dtype: as stored; bfloat16 is ml_dtypes'.
  """

  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def nbytes(self) -> int:
    return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class TensorSource(Mapping[str, np.ndarray]):
  """Tensors by name; every access reads that one tensor and keeps nothing.

  Subclasses give `info`, `__getitem__`, `__iter__` and `__len__`.

  Attributes:
    description: names the checkpoint in errors and reports (a path).
  """

  description: str = ''

  @abc.abstractmethod
  def info(self, name: str) -> TensorInfo:
    """Shape and dtype, without reading data; KeyError where there is none."""

  def part(self, name: str, axis: int, index: int) -> np.ndarray:
    """Slice `index` of `axis`; a format that can reads no more than it."""
    return np.take(self[name], index, axis=axis)

  def __contains__(self, name: object) -> bool:
    # Mapping's own would read the tensor.
    try:
      self.info(name)  # type: ignore[arg-type]
    except KeyError:
      return False
    return True


class ArraySource(TensorSource):
  """Arrays in memory: a tree that is exported, or a test."""

  def __init__(self, arrays: Mapping[str, np.ndarray], description: str):
    self._arrays = arrays
    self.description = description

  def info(self, name: str) -> TensorInfo:
    array = self._arrays[name]
    return TensorInfo(tuple(array.shape), np.dtype(array.dtype))

  def __getitem__(self, name: str) -> np.ndarray:
    return np.asarray(self._arrays[name])

  def __iter__(self) -> Iterator[str]:
    return iter(self._arrays)

  def __len__(self) -> int:
    return len(self._arrays)


class SupplementedSource(TensorSource):
  """A source with tensors of known value that its format leaves out."""

  def __init__(self, source: TensorSource, extra: Mapping[str, np.ndarray]):
    self._source = source
    self._extra = ArraySource(extra, source.description)
    self.description = source.description

  def _of(self, name: str) -> TensorSource:
    return self._extra if name in self._extra else self._source

  def info(self, name: str) -> TensorInfo:
    return self._of(name).info(name)

  def part(self, name: str, axis: int, index: int) -> np.ndarray:
    return self._of(name).part(name, axis, index)

  def __getitem__(self, name: str) -> np.ndarray:
    return self._of(name)[name]

  def __iter__(self) -> Iterator[str]:
    yield from self._extra
    yield from (name for name in self._source if name not in self._extra)

  def __len__(self) -> int:
    return sum(1 for _ in self)
