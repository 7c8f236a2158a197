"""Parameters of a T5X or Orbax checkpoint, wherever each of them is kept."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import itertools
import os
from typing import Any

import ml_dtypes
import numpy as np

from ralm_jax.interop.files.msgpack_tensors import MsgpackFile, Span
from ralm_jax.interop.files.tensor_source import TensorInfo, TensorSource


@dataclasses.dataclass(frozen=True)
class Stored:
  """An array in TensorStore: the folder, or the prefix in the database."""

  name: str


class T5XSource(TensorSource):
  """The parameters of a checkpoint by path (`encoder/layers_0/mlp/wo/kernel`).

  The optimiser's state is left out. A chunk that is missing in a zarr folder
  is an error: it could stand for zeros, but parameters have no such.
  """

  def __init__(
    self,
    path: str,
    leaves: dict[str, Span | Stored],
    file: MsgpackFile | None,
    zarr_driver: str = 'zarr',
  ):
    """Use `open_checkpoint`."""
    self.description = path
    self._leaves = leaves
    self._file = file
    self._folder = os.path.dirname(path) if os.path.isfile(path) else path
    self._driver = zarr_driver
    self._in_database = os.path.exists(os.path.join(self._folder, 'manifest.ocdbt'))
    self._opened: dict[str, Any] = {}

  def info(self, name: str) -> TensorInfo:
    leaf = self._leaves[name]
    if isinstance(leaf, Span):
      return TensorInfo(leaf.shape, leaf.dtype)
    array = self._open(leaf)
    return TensorInfo(tuple(array.shape), _real_dtype(array.dtype.numpy_dtype))

  def __getitem__(self, name: str) -> np.ndarray:
    leaf = self._leaves[name]
    if isinstance(leaf, Span):
      assert self._file is not None
      return self._file.read(leaf)
    return self._read(leaf, ())

  def part(self, name: str, axis: int, index: int) -> np.ndarray:
    leaf = self._leaves[name]
    if isinstance(leaf, Span):
      assert self._file is not None
      return self._file.read_part(leaf, axis, index)
    return self._read(leaf, (slice(None),) * axis + (index,))

  def __iter__(self) -> Iterator[str]:
    return iter(self._leaves)

  def __len__(self) -> int:
    return len(self._leaves)

  def _open(self, leaf: Stored) -> Any:
    import tensorstore

    if leaf.name not in self._opened:
      if self._in_database:
        store = {
          'driver': 'ocdbt',
          'base': {'driver': 'file', 'path': self._folder + '/'},
          'path': leaf.name + '/',
        }
      else:
        store = {'driver': 'file', 'path': os.path.join(self._folder, leaf.name) + '/'}
      try:
        self._opened[leaf.name] = tensorstore.open(
          {'driver': self._driver, 'kvstore': store}, open=True, read=True
        ).result()
      except Exception as e:
        raise self._damaged(leaf, e) from e
    return self._opened[leaf.name]

  def _read(self, leaf: Stored, where: tuple[Any, ...]) -> np.ndarray:
    array = self._open(leaf)
    self._check_chunks(leaf, array)
    try:
      value = array[where].read().result() if where else array.read().result()
    except Exception as e:
      raise self._damaged(leaf, e) from e
    return value.view(_real_dtype(value.dtype))

  def _check_chunks(self, leaf: Stored, array: Any) -> None:
    if self._in_database or self._driver != 'zarr':
      return  # These keep account of their chunks themselves.
    metadata = array.spec().to_json()['metadata']
    counts = [-(-n // c) for n, c in zip(metadata['shape'], metadata['chunks'])]
    separator = metadata.get('dimension_separator') or '.'
    for place in itertools.product(*map(range, counts)):
      file = os.path.join(self._folder, leaf.name, separator.join(map(str, place)) or '0')
      if not os.path.exists(file):
        raise ValueError(
          f'{file} does not exist, a piece of the tensor of shape '
          f'{tuple(metadata["shape"])}; the download is incomplete.'
        )

  def _damaged(self, leaf: Stored, cause: Exception) -> ValueError:
    text = str(cause).split(' [')[0].strip() or type(cause).__name__
    return ValueError(
      f'{self.description}: the tensor {leaf.name} is missing or damaged '
      f'({text[:300]}); fetch the checkpoint again.'
    )


def _real_dtype(dtype: np.dtype) -> np.dtype:
  # T5X wrote bfloat16 as the integers of its bits until TensorStore knew it;
  # no parameter is an integer.
  return np.dtype(ml_dtypes.bfloat16) if dtype == np.uint16 else dtype
