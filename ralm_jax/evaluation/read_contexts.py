"""What a decoder-only reader has read, kept for later questions: demonstrations and passages.

Keys and values of the head of prompts are kept while it is the same. Those of passages are kept
where each is read by itself (`reading = 'parallel'`), up to a bound, in memory or in a folder;
those used longest ago go first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.evaluation.task import ReadingOptions
from ralm_jax.files import atomic_files
from ralm_jax.losses.array_types import PyTree
from ralm_jax.models.decoder_lm import Context
from ralm_jax.models.reader_batch import ReaderBatch
from ralm_jax.retrieval import embedding
from ralm_jax.training.partitioning import Partitioner

MIB = 2**20
# Passages read at a time: as few programs as sizes of batches, and little padding.
_AT_A_TIME = 4
# Keys and values of one passage, in the order of the tree's leaves: [..., n, kv_heads, head_dim].
Kept = list[np.ndarray]


class ReadContexts:
  """Adds to batches what has been read before."""

  def __init__(self, spec: Specification, partitioner: Partitioner, options: ReadingOptions):
    """ValueError for a cache of passages that the reading does not read by themselves."""
    self._model, self._partitioner = spec.model, partitioner
    self._used = spec.tokenizer.prompts is not None and jax.process_count() == 1
    mib = options.passage_cache_mib
    if mib is not None and not (self._used and spec.model.reading == 'parallel'):
      raise ValueError(
        '--passage_cache_mib keeps passages that are read by themselves, in one process: use '
        f'--reading parallel (it is {spec.model.reading!r}), or leave it out.'
      )
    self._options = options
    self._passages = None if mib is None else _Cache(mib * MIB)
    self._read = partitioner.partition(spec.model.read_apart)
    self._shapes: dict[int, Context] = {}  # Of one passage, by its slots.
    self._head: tuple[bytes, Any] = (b'', None)
    self._params: PyTree = None

  def add(self, params: PyTree, batch: ReaderBatch) -> ReaderBatch:
    """The batch with its head, and its passages where they are kept, as they have been read."""
    tokens, mask = batch.head_tokens, batch.head_mask
    if not self._used or tokens is None or mask is None:
      return batch
    if not batch.head_is_shared and tokens.shape[1]:
      return batch
    if params is not self._params:
      self._params, self._head = params, (b'', None)
      if self._passages is not None:
        self._passages.begin(self._options.passage_cache, params)
    name = _name(tokens[0], mask[0])
    if tokens.shape[1]:
      if self._head[0] != name:
        self._head = name, self._read(params, None, tokens[:1], mask[:1])
      batch = dataclasses.replace(batch, head_context=self._head[1])
    if self._passages is None:
      return batch
    return dataclasses.replace(
      batch, passages_context=self._joined(self._passages, params, batch, name)
    )

  def _joined(self, cache: _Cache, params: PyTree, batch: ReaderBatch, head: bytes) -> Context:
    """Of the passages of each example, side by side, [b, k * s]."""
    n_read = self._model.n_read(batch)
    tokens, mask = (
      np.asarray(part)[:, :n_read].reshape(-1, part.shape[-1])
      for part in (batch.reader_tokens, batch.reader_mask)
    )
    names = [_name(*row, head) if row[1].any() else b'' for row in zip(tokens, mask)]
    kept: dict[bytes, Any] = {name: cache.get(name) for name in dict.fromkeys(names) if name}
    missing = [name for name, found in kept.items() if found is None]
    for first in range(0, len(missing), _AT_A_TIME):
      part = missing[first : first + _AT_A_TIME]
      rows = [names.index(name) for name in part]
      rows += rows[:1] * (_AT_A_TIME - len(rows))
      context = self._read(params, batch.head_context, tokens[rows], mask[rows])
      leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(context.layers)]
      for i, name in enumerate(part):
        kept[name] = [leaf[..., i, : mask[rows[i]].sum(), :, :] for leaf in leaves]
        cache.put(name, kept[name])
    start = 0 if batch.head_mask is None else int(batch.head_mask[0].sum())
    return self._assembled(names, kept, mask, start, len(batch.reader_tokens))

  def _assembled(
    self, names: list[bytes], kept: dict[bytes, Any], mask: np.ndarray, start: int, batch: int
  ) -> Context:
    shapes = self._abstract(mask.shape[1])
    leaves, tree = jax.tree.flatten(shapes.layers)
    arrays = []
    for at, leaf in enumerate(leaves):
      *front, _, length, heads, features = leaf.shape
      array = np.zeros((*front, len(names), length, heads, features), leaf.dtype)
      for row, name in enumerate(names):
        if name:
          own = kept[name][at]
          array[..., row, : own.shape[-3], :, :] = own
      arrays.append(array)
    positions: Any = start + np.broadcast_to(np.arange(mask.shape[1], dtype=np.int32), mask.shape)
    there: Any = mask.astype(bool)
    context = Context(jax.tree.unflatten(tree, arrays), there, positions)
    return context.joined(len(names) // batch)

  def _abstract(self, length: int) -> Context:
    if length not in self._shapes:
      tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
      mask = jax.ShapeDtypeStruct((1, length), bool)
      shapes = jax.eval_shape(self._model.read_apart, self._params, None, tokens, mask)
      self._shapes[length] = shapes
    return self._shapes[length]


class _Cache:
  """Arrays by name up to a number of bytes, in memory or in a folder."""

  def __init__(self, bound: int):
    self._bound = bound
    self._sizes: OrderedDict[bytes, int] = OrderedDict()
    self._memory: dict[bytes, Kept] = {}
    self._folder: pathlib.Path | None = None

  def begin(self, folder: str | None, params: PyTree) -> None:
    """Forgets, or takes what the folder holds of these parameters."""
    self._sizes.clear()
    self._memory.clear()
    if folder is None:
      return
    self._folder = pathlib.Path(folder) / embedding.fingerprint(params['reader'])
    self._folder.mkdir(parents=True, exist_ok=True)
    atomic_files.remove_unfinished(self._folder)
    files = [(path.stat(), path) for path in self._folder.glob('*.safetensors')]
    for stat, path in sorted(files, key=lambda item: item[0].st_mtime_ns):
      self._sizes[bytes.fromhex(path.stem)] = stat.st_size
    self._evict()

  def get(self, name: bytes) -> Kept | None:
    if name not in self._sizes:
      return None
    self._sizes.move_to_end(name)
    if self._folder is None:
      return self._memory[name]
    try:
      os.utime(self._path(name))
      return list(_read(self._path(name)))
    except (OSError, ValueError, KeyError, safetensors.SafetensorError):
      self._drop(name)  # Gone, or damaged: it is read anew.
      return None

  def put(self, name: bytes, arrays: Kept) -> None:
    """Keeps arrays; says where a folder cannot be written, and goes on without it."""
    if self._folder is None:
      self._memory[name] = [np.array(array) for array in arrays]
      self._sizes[name] = sum(array.nbytes for array in arrays)
    else:
      try:
        atomic_files.write(self._path(name), _written(arrays))
      except OSError as e:
        logging.warning(f'Read passages are not kept in {self._folder}: {e}')
        return
      self._sizes[name] = self._path(name).stat().st_size
    self._evict()

  def _evict(self) -> None:
    while sum(self._sizes.values()) > self._bound:
      self._drop(next(iter(self._sizes)))

  def _drop(self, name: bytes) -> None:
    self._sizes.pop(name)
    self._memory.pop(name, None)
    if self._folder is not None:
      with contextlib.suppress(OSError):
        self._path(name).unlink()

  def _path(self, name: bytes) -> pathlib.Path:
    return pathlib.Path(self._folder or '') / f'{name.hex()}.safetensors'


def _written(arrays: Kept) -> bytes:
  # bfloat16 is not among numpy's own types.
  raw = {f'{i}': np.ascontiguousarray(array).view(np.uint8) for i, array in enumerate(arrays)}
  dtype = json.dumps(arrays[0].dtype.name)
  return safetensors.numpy.save(raw, metadata={'dtype': dtype})


def _read(path: pathlib.Path) -> Iterator[np.ndarray]:
  with safetensors.safe_open(path, 'np') as file:
    dtype = jnp.dtype(json.loads((file.metadata() or {})['dtype']))
    for i in range(len(file.keys())):
      yield file.get_tensor(f'{i}').view(dtype)


def _name(tokens: Any, mask: Any, head: bytes = b'') -> bytes:
  ids = np.asarray(tokens)[np.asarray(mask).astype(bool)]
  return hashlib.blake2b(head + ids.astype('<i4').tobytes(), digest_size=16).digest()
