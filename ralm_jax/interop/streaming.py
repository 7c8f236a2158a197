"""Checkpoints written from parameters that are read while they are written.

`save` takes a tree of `LazyParameter`: one after the other is read from a
foreign checkpoint, written in chunks and forgotten, so that no more than
one foreign tensor is in memory. What comes out is a checkpoint as any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import errno
import os
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from ralm_jax.checkpoints.store import HostArraysHandler, HostArraysSave

# Chunks of this size let every host read little more than its shards.
CHUNK_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class LazyParameter:
  """A parameter that is not read yet."""

  shape: tuple[int, ...]
  dtype: np.dtype
  # Reads it: (index, array) pairs that cover it, where index selects a part of it, such as one
  # layer of a scanned stack, or is ().
  pieces: Callable[[], Iterator[tuple[tuple[int, ...], np.ndarray]]]

  @property
  def ndim(self) -> int:
    return len(self.shape)

  @property
  def size(self) -> int:
    return int(np.prod(self.shape, dtype=np.int64))

  @property
  def nbytes(self) -> int:
    return self.size * self.dtype.itemsize


class LazyParameterHandler(ocp.type_handlers.NumpyHandler):
  """Saves LazyParameters as NumPy arrays are saved, but in turn."""

  def __init__(self):
    super().__init__(deepcopy_host_arrays=False)
    self._turn = asyncio.Lock()
    self.failure: Exception | None = None  # Of the first write that failed.

  async def serialize(
    self,
    values: Sequence[LazyParameter],
    infos: Sequence[Any],
    args: Sequence[ocp.SaveArgs] | None = None,
  ) -> Sequence[Any]:
    # A layer of a stack is a chunk of its own: it is written alone.
    axes = [(0,) if _is_stack(info.name) else () for info in infos]
    args = [ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=a) for a in axes]
    self._turn = asyncio.Lock()
    return await super().serialize(values, infos, args)

  async def _open_and_write(
    self, value: LazyParameter, tspec: dict[str, Any], ts_context: Any
  ) -> None:
    # The parent starts all writes at once.
    async with self._turn:
      if self.failure is not None:
        return
      try:
        spec = tensorstore.Spec(tspec)
        store = await tensorstore.open(spec, create=True, open=True, context=ts_context)
        for index, piece in value.pieces():
          target: Any = store[index] if index else store
          if not piece.ndim:
            await target.write(piece)
            continue
          # Whole chunks, as the store copies what it is writing.
          chunk: Any = target.chunk_layout.write_chunk.shape
          rows = chunk[0]
          for at in range(0, len(piece), rows):
            await target[at : at + rows].write(piece[at : at + rows])
      except Exception as e:
        # `save` raises it when all have had their turn: none may wait in a loop that is closed.
        self.failure = e


def _is_stack(name: str) -> bool:
  return 'layers' in name.replace('/', '.').split('.')


def save(
  model_dir: str | os.PathLike[str], params: Any, metadata: Mapping[str, Any], step: int = 0
) -> None:
  """Writes MODEL_DIR/checkpoint_<step>; raises OSError, or what reading a parameter raised."""
  # The registry of all types already has a handler that writes this typestr.
  lazy = LazyParameterHandler()
  registry = ocp.type_handlers.create_type_handler_registry(
    (LazyParameter, lazy), (jax.Array, ocp.type_handlers.ArrayHandler())
  )
  manager = ocp.CheckpointManager(
    os.path.abspath(os.fspath(model_dir)),
    item_handlers={
      'state': ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
      'host': HostArraysHandler(),
      'metadata': ocp.JsonCheckpointHandler(),
    },
    options=ocp.CheckpointManagerOptions(
      step_prefix='checkpoint', enable_async_checkpointing=False
    ),
  )
  content = ocp.args.Composite(
    state=ocp.args.PyTreeSave({'params': params}),
    host=HostArraysSave({}),
    metadata=ocp.args.JsonSave(dict(metadata)),
  )
  try:
    manager.save(step, args=content, force=True)
  except Exception as e:
    cause = lazy.failure or e
    # TensorStore reports the system's errors inside pages of its own.
    full = os.strerror(errno.ENOSPC)
    if full not in str(cause):
      raise cause from None
    raise OSError(
      errno.ENOSPC, f'{full}; free some and start the same command again', os.fspath(model_dir)
    ) from cause
  finally:
    manager.close()
