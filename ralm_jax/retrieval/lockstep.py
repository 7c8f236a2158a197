"""Agreement of processes that search together."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib

from jax.experimental import multihost_utils
import numpy as np


class Lockstep:
  """Lets processes that search at once, equally deep, agree; alone, one agrees with oneself."""

  def __init__(self, together: bool):
    self.together = together  #: whether there are others to agree with

  def gather(self, value: int) -> np.ndarray:
    """The values of all processes, in their order."""
    own = np.asarray(value, np.int32)
    return multihost_utils.process_allgather(own) if self.together else own[None]

  def maximum(self, value: int) -> int:
    return int(np.max(self.gather(value)))

  def minimum(self, value: int) -> int:
    return int(np.min(self.gather(value)))

  def of_first(self, value: int) -> int:
    """The first process's value, whatever the others bring."""
    return int(self.gather(value)[0])

  @contextlib.contextmanager
  def failing_together(self) -> Iterator[None]:
    """Runs a block whose error is one of all processes."""
    error = None
    try:
      yield
    except Exception as e:  # pylint: disable=broad-except
      error = e
    if self.maximum(error is not None):
      raise error or RuntimeError('The search of another process has failed.')
