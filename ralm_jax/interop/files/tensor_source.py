"""Named tensors of a foreign checkpoint, read one at a time."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """What is known of a tensor without reading it."""

  shape: tuple[int, ...]
  dtype: np.dtype  # As stored; bfloat16 is ml_dtypes'.

  @property
  def nbytes(self) -> int:
    return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class TensorSource(Mapping[str, np.ndarray]):
  """Tensors by name; every access reads that one tensor and keeps nothing.

  Subclasses set `_index`, by name what finds a tensor, and give `info` and `__getitem__`.
  """

  description: str = ''  # Names the checkpoint in errors and reports (a path).
  _index: Mapping[str, Any]

  @abc.abstractmethod
  def info(self, name: str) -> TensorInfo:
    """Shape and dtype, without reading data; KeyError where there is none."""

  def part(self, name: str, axis: int, index: int) -> np.ndarray:
    """Slice `index` of `axis`; a format that can reads no more than it."""
    return np.take(self[name], index, axis=axis)

  def __contains__(self, name: object) -> bool:
    return name in self._index  # Mapping's own would read the tensor.

  def __iter__(self) -> Iterator[str]:
    return iter(self._index)

  def __len__(self) -> int:
    return len(self._index)


class SupplementedSource(TensorSource):
  """A source with tensors of known value that its format leaves out."""

  def __init__(self, source: TensorSource, extra: Mapping[str, np.ndarray]):
    self._source, self._extra = source, extra
    self._index = {**extra, **dict.fromkeys(source)}
    self.description = source.description

  def info(self, name: str) -> TensorInfo:
    array = self._extra.get(name)
    return self._source.info(name) if array is None else TensorInfo(array.shape, array.dtype)

  def part(self, name: str, axis: int, index: int) -> np.ndarray:
    if name in self._extra:
      return super().part(name, axis, index)
    return self._source.part(name, axis, index)

  def __getitem__(self, name: str) -> np.ndarray:
    return self._extra[name] if name in self._extra else self._source[name]
