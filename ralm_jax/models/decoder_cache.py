"""Contexts that grow: room for tokens to come, of which local layers hold a window at most."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ralm_jax.losses.array_types import Array, Int
from ralm_jax.models.decoder_config import DecoderConfig
from ralm_jax.models.decoder_lm import Context


def _map(config: DecoderConfig, function: Callable[..., Array], *contexts: Context) -> Context:
  """`function(size, axis, *arrays)` of keys, values, masks and positions of several contexts.

  `axis` is that of tokens; `size` the tokens that such layers may hold, None where they hold all.
  """

  def of(local: bool, axis: int, *trees):
    size = config.window if local else None
    return jax.tree.map(lambda *arrays: function(size, axis, *arrays), *trees)

  keys = {}
  for name in contexts[0].layers:
    # Names end in a number that stands at the same place of the pattern as the layer's.
    local = config.is_local(int(name.rpartition('_')[2]))
    keys[name] = of(local, -3, *(context.layers[name] for context in contexts))
  everything, window = (
    of(local, -1, *(context.slots(local) for context in contexts)) for local in (False, True)
  )
  local_slots = None if config.window is None else window
  return Context(keys, everything.mask, everything.positions, local_slots)


def make_room(config: DecoderConfig, read: Context, length: int) -> Context:
  """`read` as the first of `length` tokens; its last ones at the end of a window."""

  def place(size: int | None, axis: int, array: Array) -> Array:
    held = array.shape[axis]
    padding = [(0, 0)] * array.ndim
    if size is None:
      padding[axis] = (0, length - held)
      return jnp.pad(array, padding)
    size = min(size, length)
    padding[axis] = (max(size - held, 0), 0)
    kept = jax.lax.slice_in_dim(array, max(held - size, 0), held, axis=axis)
    return jnp.pad(kept, padding)

  return _map(config, place, read)


def append(config: DecoderConfig, held: Context, read: Context, offset: Int[Array, '']) -> Context:
  """Writes `read` at `offset`; where there is a window, behind all that it keeps of it."""

  def add(size: int | None, axis: int, old: Array, new: Array) -> Array:
    if size is None:
      return jax.lax.dynamic_update_slice_in_dim(old, new, offset, axis)
    both = jnp.concatenate([old, new], axis=axis)
    return jax.lax.slice_in_dim(both, new.shape[axis], None, axis=axis)

  return _map(config, add, held, read)


def empty(config: DecoderConfig, like: Context, length: int) -> Context:
  """Room for `length` tokens of as many rows, for `roll_in`."""

  def clear(size: int | None, axis: int, array: Array) -> Array:
    shape = list(array.shape)
    shape[axis] = length if size is None else min(size, length)
    return jnp.zeros(shape, array.dtype)

  return _map(config, clear, like)


def roll_in(config: DecoderConfig, held: Context, read: Context, count: Int[Array, '']) -> Context:
  """Writes one token behind `count` others, over the oldest where there is no more room."""

  def write(size: int | None, axis: int, old: Array, new: Array) -> Array:
    del size
    return jax.lax.dynamic_update_slice_in_dim(old, new, count % old.shape[axis], axis)

  return _map(config, write, held, read)


def repeat(held: Context, n: int) -> Context:
  """Each row n times."""
  return _map_rows(lambda array, axis: jnp.repeat(array, n, axis=axis), held)


def take(held: Context, index: Int[Array, 'prompts n']) -> Context:
  """Row j of a prompt becomes what its row `index[:, j]` was."""

  def gather(array: Array, axis: int) -> Array:
    # Rows of a prompt apart from prompts: a gather over both at once would bring the caches of all
    # devices together on each.
    shape = array.shape
    grouped = array.reshape(*shape[:axis], *index.shape, *shape[axis + 1 :])
    spread = index.reshape((1,) * axis + index.shape + (1,) * (array.ndim - axis - 1))
    return jnp.take_along_axis(grouped, spread, axis=axis + 1).reshape(shape)

  return _map_rows(gather, held)


def _map_rows(function: Callable[[Array, int], Array], held: Context) -> Context:
  """`function(array, axis)`, the axis being that of rows."""
  keys = jax.tree.map(lambda array: function(array, array.ndim - 4), held.layers)
  slots = jax.tree.map(lambda array: function(array, 0), (held.mask, held.positions, held.local))
  return Context(keys, *slots)
