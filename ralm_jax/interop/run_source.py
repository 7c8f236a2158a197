"""The parameters of one of our own checkpoints, read one at a time."""

from __future__ import annotations

from collections.abc import Iterator
import os

import numpy as np

from ralm_jax.checkpoints import store as checkpoints
from ralm_jax.checkpoints.store import Checkpoints
from ralm_jax.interop.files.tensor_source import TensorInfo, TensorSource
from ralm_jax.interop.files.tensorstore_arrays import ArrayFolder


class RunSource(TensorSource):
  """Tensors of MODEL_DIR/checkpoint_<step>, by path (`reader/encoder/…`)."""

  def __init__(self, path: str | os.PathLike[str]):
    """Finds the parameters; reads none.

    Args:
      path: MODEL_DIR (its newest checkpoint) or MODEL_DIR/checkpoint_<step>.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it is damaged.
    """
    self.directory, self.step = checkpoints.find(path)
    self.description = os.path.join(self.directory, f'checkpoint_{self.step}')
    store = Checkpoints(self.directory, read_only=True)
    try:
      shapes = store.param_shapes(self.step)
    finally:
      store.close()
    if shapes is None:
      raise ValueError(f'{self.description} holds no parameters.')
    # Ours by the name that Orbax gives it in its database.
    self._stored = {name: '.'.join(['params', *name.split('/')]) for name in shapes}
    self._arrays = ArrayFolder(os.path.join(self.description, 'state'), self.description)

  def info(self, name: str) -> TensorInfo:
    # The store knows the dtype; its header is small.
    return self._arrays.info(self._stored[name])

  def part(self, name: str, axis: int, index: int) -> np.ndarray:
    return self._arrays.read(self._stored[name], (slice(None),) * axis + (index,))

  def __getitem__(self, name: str) -> np.ndarray:
    return self._arrays.read(self._stored[name])

  def __iter__(self) -> Iterator[str]:
    return iter(self._stored)

  def __len__(self) -> int:
    return len(self._stored)
