"""Arrays that TensorStore keeps: a folder each, or all of them in one database."""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np
import tensorstore

from ralm_jax.interop.files.tensor_source import TensorInfo


class ArrayFolder:
  """The arrays below a folder, read one at a time."""

  def __init__(self, folder: str, description: str, driver: str = 'zarr'):
    """Reads nothing yet; `description` names the checkpoint in errors."""
    self._folder, self._description, self._driver = folder, description, driver
    self._in_database = os.path.exists(os.path.join(folder, 'manifest.ocdbt'))
    self._opened: dict[str, Any] = {}

  def info(self, name: str) -> TensorInfo:
    """Shape and dtype; ValueError where the array is missing or damaged."""
    array = self._open(name)
    return TensorInfo(tuple(array.shape), np.dtype(array.dtype.numpy_dtype))

  def _open(self, name: str) -> Any:
    if name not in self._opened:
      store: dict[str, Any] = {'driver': 'file', 'path': os.path.join(self._folder, name) + '/'}
      if self._in_database:
        base = {'driver': 'file', 'path': self._folder + '/'}
        store = {'driver': 'ocdbt', 'base': base, 'path': name + '/'}
      spec = {'driver': self._driver, 'kvstore': store}
      try:
        self._opened[name] = tensorstore.open(spec, open=True, read=True).result()
      except Exception as e:
        raise self._damaged(name, e) from e
    return self._opened[name]

  def read(self, name: str, where: tuple[Any, ...] = ()) -> np.ndarray:
    """The array or a part of it; ValueError as `info`.

    A chunk that is missing in a zarr folder is an error: it could stand for
    zeros, but parameters have no such.
    """
    array = self._open(name)
    self._check_chunks(name, array)
    try:
      return (array[where] if where else array).read().result()
    except Exception as e:
      raise self._damaged(name, e) from e

  def _check_chunks(self, name: str, array: Any) -> None:
    if self._in_database or self._driver != 'zarr':
      return  # These keep account of their chunks themselves.
    metadata = array.spec().to_json()['metadata']
    counts = [-(-n // c) for n, c in zip(metadata['shape'], metadata['chunks'])]
    separator = metadata.get('dimension_separator') or '.'
    for place in itertools.product(*map(range, counts)):
      file = os.path.join(self._folder, name, separator.join(map(str, place)) or '0')
      if not os.path.exists(file):
        raise ValueError(
          f'{file} does not exist, a piece of the tensor of shape '
          f'{tuple(metadata["shape"])}; the download is incomplete.'
        )

  def _damaged(self, name: str, cause: Exception) -> ValueError:
    text = str(cause).split(' [')[0].strip() or type(cause).__name__
    return ValueError(
      f'{self._description}: the tensor {name} is missing or damaged '
      f'({text[:300]}); fetch the checkpoint again.'
    )
