"""The parameters of one of our own checkpoints, read one at a time."""

from __future__ import annotations

from collections.abc import Iterator
import os
from typing import Any

import numpy as np
import tensorstore

from ralm_jax.checkpoints import store as checkpoints
from ralm_jax.checkpoints.store import Checkpoints
from ralm_jax.interop.files.tensor_source import TensorInfo, TensorSource

PathLike = str | os.PathLike[str]


class RunSource(TensorSource):
  """Tensors of MODEL_DIR/checkpoint_<step>, by path (`reader/encoder/…`)."""

  def __init__(self, path: PathLike):
    """Finds the parameters; reads none.

    Args:
      path: MODEL_DIR (its newest checkpoint) or MODEL_DIR/checkpoint_<step>.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it is damaged.
    """
    self.directory, self.step = checkpoints.find(path)
    self.description = os.path.join(self.directory, f'checkpoint_{self.step}')
    self._state = os.path.join(self.description, 'state')
    store = Checkpoints(self.directory, read_only=True)
    try:
      shapes = store.param_shapes(self.step)
    finally:
      store.close()
    if shapes is None:
      raise ValueError(f'{self.description} holds no parameters.')
    self._shapes = shapes
    self._opened: dict[str, Any] = {}

  def _open(self, name: str) -> Any:
    if name not in self._shapes:
      raise KeyError(name)
    if name not in self._opened:
      key = '.'.join(['params', *name.split('/')])
      try:
        self._opened[name] = tensorstore.open(
          {
            'driver': 'zarr',
            'kvstore': {
              'driver': 'ocdbt',
              'base': {'driver': 'file', 'path': self._state + '/'},
              'path': key + '/',
            },
          },
          open=True,
          read=True,
        ).result()
      except Exception as e:
        raise self._damaged(name, e) from e
    return self._opened[name]

  def _damaged(self, name: str, cause: Exception) -> ValueError:
    return ValueError(
      f'{self.description}: parameter {name} is missing or damaged ({str(cause)[:200]}).'
    )

  def _read(self, name: str, where: tuple[Any, ...]) -> np.ndarray:
    store = self._open(name)
    try:
      return (store[where] if where else store).read().result()
    except Exception as e:
      raise self._damaged(name, e) from e

  def info(self, name: str) -> TensorInfo:
    # The store knows the dtype; its header is small.
    store = self._open(name)
    return TensorInfo(tuple(store.shape), np.dtype(store.dtype.numpy_dtype))

  def part(self, name: str, axis: int, index: int) -> np.ndarray:
    return self._read(name, (slice(None),) * axis + (index,))

  def __getitem__(self, name: str) -> np.ndarray:
    return self._read(name, ())

  def __iter__(self) -> Iterator[str]:
    return iter(self._shapes)

  def __len__(self) -> int:
    return len(self._shapes)
