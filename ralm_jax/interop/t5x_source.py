"""Parameters of a T5X or Orbax checkpoint, wherever each of them is kept."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import os
from typing import Any

import ml_dtypes
import numpy as np

from ralm_jax.interop.files.msgpack_tensors import MsgpackFile, Span
from ralm_jax.interop.files.tensor_source import TensorInfo, TensorSource
from ralm_jax.interop.files.tensorstore_arrays import ArrayFolder


@dataclasses.dataclass(frozen=True)
class Stored:
  """An array in TensorStore: the folder, or the prefix in the database."""

  name: str


class T5XSource(TensorSource):
  """The parameters of a checkpoint by path (`encoder/layers_0/…`), no optimiser's state."""

  def __init__(
    self,
    path: str,
    leaves: Mapping[str, Span | Stored],
    file: MsgpackFile | None,
    zarr_driver: str = 'zarr',
  ):
    self.description, self._index, self._file = path, leaves, file
    folder = os.path.dirname(path) if os.path.isfile(path) else path
    self._arrays = ArrayFolder(folder, path, zarr_driver)

  def info(self, name: str) -> TensorInfo:
    leaf = self._index[name]
    if isinstance(leaf, Span):
      return TensorInfo(leaf.shape, leaf.dtype)
    info = self._arrays.info(leaf.name)
    return TensorInfo(info.shape, _real_dtype(info.dtype))

  def __getitem__(self, name: str) -> np.ndarray:
    leaf = self._index[name]
    if isinstance(leaf, Span):
      assert self._file is not None
      return self._file.read(leaf)
    return self._read(leaf)

  def part(self, name: str, axis: int, index: int) -> np.ndarray:
    leaf = self._index[name]
    if isinstance(leaf, Span):
      assert self._file is not None
      return self._file.read_part(leaf, axis, index)
    return self._read(leaf, (slice(None),) * axis + (index,))

  def _read(self, leaf: Stored, where: tuple[Any, ...] = ()) -> np.ndarray:
    value = self._arrays.read(leaf.name, where)
    return value.view(_real_dtype(value.dtype))


def _real_dtype(dtype: np.dtype) -> np.dtype:
  # T5X wrote bfloat16 as the integers of its bits until TensorStore knew it;
  # no parameter is an integer.
  return np.dtype(ml_dtypes.bfloat16) if dtype == np.uint16 else dtype
