"""The parameters of one of our own checkpoints, read one at a time."""

from __future__ import annotations

import contextlib
import os

import numpy as np

from ralm_jax.checkpoints import store as checkpoints
from ralm_jax.checkpoints.store import Checkpoints
from ralm_jax.interop.files.tensor_source import TensorInfo, TensorSource
from ralm_jax.interop.files.tensorstore_arrays import ArrayFolder


class RunSource(TensorSource):
  """Tensors of MODEL_DIR/checkpoint_<step>, by path (`reader/encoder/…`)."""

  def __init__(self, path: str | os.PathLike[str]):
    """Finds the parameters of MODEL_DIR (its newest checkpoint) or MODEL_DIR/checkpoint_<step>.

    Raises FileNotFoundError where there is no checkpoint, ValueError where it is damaged.
    """
    self.directory, self.step = checkpoints.find(path)
    self.description = os.path.join(self.directory, f'checkpoint_{self.step}')
    with contextlib.closing(Checkpoints(self.directory, read_only=True)) as store:
      shapes = store.param_shapes(self.step)
    if shapes is None:
      raise ValueError(f'{self.description} holds no parameters.')
    # Ours by the name that Orbax gives it in its database.
    self._index = {name: '.'.join(['params', *name.split('/')]) for name in shapes}
    self._arrays = ArrayFolder(os.path.join(self.description, 'state'), self.description)

  def info(self, name: str) -> TensorInfo:
    # The store knows the dtype; its header is small.
    return self._arrays.info(self._index[name])

  def part(self, name: str, axis: int, index: int) -> np.ndarray:
    return self._arrays.read(self._index[name], (slice(None),) * axis + (index,))

  def __getitem__(self, name: str) -> np.ndarray:
    return self._arrays.read(self._index[name])
