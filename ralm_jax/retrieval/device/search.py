"""Exact inner-product search over rows spread on all devices of a mesh.

One program: every device scores its own rows, a block at a time, keeps its best
k, and only those are gathered for the final top-k. The embeddings never move.

Shapes are static, so a new program is compiled for each batch size, k, number
of rows and dimension; `device_index` rounds the first two up.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from ralm_jax.losses.array_types import Array, Bool, Float, Int
from ralm_jax.training import partitioning
from ralm_jax.training.partitioning import Partitioner

AXES = (partitioning.DATA, partitioning.MODEL)
DTYPES = ('bfloat16', 'float16', 'float32')
# Rows of a tile of bfloat16 on a TPU: cut between tiles, blocks are no copies.
_TILE = 16
_MAX_ROWS = 2**31 - 1


class Rows(NamedTuple):
  """Embeddings spread over all devices, padded; only live rows are found."""

  embeddings: Float[Array, 'rows d']
  live: Bool[Array, ' rows']


class Best(NamedTuple):
  """The best rows of each query, best first; -inf where there are fewer live rows."""

  scores: Float[Array, 'b k']
  rows: Int[Array, 'b k']


@dataclasses.dataclass(frozen=True)
class DeviceOptions:
  """How rows lie on the devices and are searched there."""

  #: Scores are exact inner products of float32 queries with embeddings of this dtype. 'float16' is
  #: what is stored, and takes no more memory than 'bfloat16', which accelerators multiply faster;
  #: its rounding reorders passages of much the same score.
  dtype: str = 'bfloat16'
  approximate: bool = False  #: use `jax.lax.approx_max_k`, which a TPU is faster at
  recall_target: float = 0.95  #: expected share of the true k in an approximate answer
  block_rows: int = 16384  #: whose scores a device holds at a time
  spare_rows: int = 1024  #: room for added vectors; doubled when it runs out: a new program
  #: Generations there at a time. With 1 the former one is freed before the next is put there, and
  #: searches wait meanwhile; with 2 the swap is seamless and takes twice the memory. None: 2 where
  #: the devices report that much free memory, at this program's peak, or report none.
  resident: int | None = None

  def __post_init__(self):
    if self.dtype not in DTYPES:
      raise ValueError(
        f'The dtype of a device index is one of {", ".join(DTYPES)}, not {self.dtype!r}.'
      )
    if not 0 < self.recall_target <= 1:
      raise ValueError(f'recall_target must be above 0 and at most 1, not {self.recall_target}.')
    for name in ('block_rows', 'spare_rows', 'resident'):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f'{name} must be at least 1, not {value}.')


@dataclasses.dataclass(frozen=True)
class TopK:
  """What a search is to find; another one is another program."""

  k: int
  blocks: tuple[int, int]  #: that a device's share of the rows has, and of the added ones
  #: Use `jax.lax.approx_max_k`: it may miss rows, and hand back -inf though there are k live ones.
  approximate: bool = False


@dataclasses.dataclass(frozen=True)
class Layout:
  """How the rows lie: on so many devices, in so many blocks of so many rows each."""

  shards: int
  blocks: int
  block: int

  @classmethod
  def of(cls, count: int, shards: int, block_rows: int) -> Layout:
    """The least padding for `count` rows in blocks of at most `block_rows`."""
    per_shard = max(1, -(-count // shards))
    blocks = -(-per_shard // block_rows)
    block = -(-per_shard // blocks)
    block = -(-block // _TILE) * _TILE
    layout = cls(shards, -(-per_shard // block), block)
    if layout.rows > _MAX_ROWS:
      raise ValueError(
        f'{count} vectors exceed the {_MAX_ROWS} rows that a device index '
        'numbers; use the retrieval process.'
      )
    return layout

  @property
  def rows(self) -> int:
    return self.shards * self.blocks * self.block


class DeviceSearch:
  """Puts rows on a mesh and searches them."""

  def __init__(self, partitioner: Partitioner, options: DeviceOptions = DeviceOptions()):
    """Compiles nothing yet."""
    self.options = options
    self.dtype = jnp.dtype(options.dtype)
    self._mesh = partitioner.mesh
    self._sharding = NamedSharding(self._mesh, PartitionSpec(AXES))
    self._processes = len({device.process_index for device in self._mesh.devices.flat})
    # Processors have no bfloat16 units to gain from; see `_scores`.
    on_cpu = self._mesh.devices.flat[0].platform == 'cpu'
    split, recall_target = options.dtype == 'bfloat16' and not on_cpu, options.recall_target
    program = functools.partial(
      search, mesh=self._mesh, recall_target=recall_target, split_queries=split
    )
    self.search = partitioner.partition(program, static_argnames=('wanted',))

  @property
  def spans_processes(self) -> bool:
    """Whether a search is a collective act of several processes."""
    return self._processes > 1

  def layout(self, count: int) -> Layout:
    """How `count` rows would lie."""
    return Layout.of(count, self._mesh.size, self.options.block_rows)

  def shard_bytes(self, count: int, dim: int) -> int:
    """Memory that `count` rows take on each device."""
    layout = self.layout(count)
    return layout.blocks * layout.block * (dim * self.dtype.itemsize + 1)

  def has_room(self, needed: int) -> bool:
    """Whether all devices of this process have so many bytes to spare, even at its peak.

    Devices that do not say, processors among them, are believed to have room.
    """
    for device in self._mesh.local_devices:
      stats = device.memory_stats() or {}
      taken = stats.get('peak_bytes_in_use', stats.get('bytes_in_use', 0))
      if 'bytes_limit' in stats and stats['bytes_limit'] - taken < needed:
        return False
    return True

  def put(self, layout: Layout, vectors: np.ndarray, live: np.ndarray | None = None) -> Rows:
    """Puts vectors [count, d] on this process's devices, padded as the layout says.

    One device after the other: the host holds no more than one device's rows at a time.
    """
    count, dim = vectors.shape

    def shard(rows: slice) -> np.ndarray:
      part = vectors[rows.start : rows.stop].astype(self.dtype)
      missing = rows.stop - rows.start - len(part)
      return np.pad(part, ((0, missing), (0, 0))) if missing else part

    embeddings = self._put((layout.rows, dim), shard)
    mask = np.arange(layout.rows) < count
    if live is not None:
      mask[:count] &= live
    return Rows(embeddings, self.put_mask(mask))

  def put_mask(self, mask: np.ndarray) -> jax.Array:
    """bool [rows] of a layout, to where the rows are."""
    return self._put(mask.shape, lambda rows: mask[rows])

  def _put(self, shape: tuple[int, ...], shard: Callable[[slice], np.ndarray]) -> jax.Array:
    indices = self._sharding.addressable_devices_indices_map(shape)
    pieces = []
    for device, index in indices.items():
      assert index is not None
      start, stop, _ = index[0].indices(shape[0])
      piece = jax.device_put(shard(slice(start, stop)), device)
      pieces.append(piece.block_until_ready())
    return jax.make_array_from_single_device_arrays(shape, self._sharding, pieces)

  def put_queries(self, queries: np.ndarray) -> tuple[jax.Array, slice | np.ndarray]:
    """Gives every device all queries [b, d], or its share where processes differ.

    Of the global array the slice or the rows returned are this process's, in their order; every
    process has as many.
    """
    if self._processes == 1:
      everywhere = NamedSharding(self._mesh, PartitionSpec())
      return jax.device_put(queries, everywhere), slice(0, len(queries))
    devices = self._mesh.size // self._processes
    padded = np.resize(queries, (-(-len(queries) // devices) * devices, queries.shape[1]))
    shape = (len(padded) * self._processes, queries.shape[1])
    array = jax.make_array_from_process_local_data(self._sharding, padded, shape)
    starts = sorted(
      index[0].indices(shape[0])[:2]
      for index in self._sharding.addressable_devices_indices_map(shape).values()
      if index is not None
    )
    own = np.concatenate([np.arange(*bounds) for bounds in starts])
    return array, own[: len(queries)]


def search(
  queries: Float[Array, 'b d'],
  base: Rows,
  added: Rows,
  wanted: TopK,
  *,
  mesh: jax.sharding.Mesh,
  recall_target: float,
  split_queries: bool,
) -> Best:
  """The k live rows of largest inner product with each query.

  Rows of equal score come in the order of their numbers, in exact search; those of `added` are
  numbered on from those of `base`. `split_queries`: see `_scores`.
  """
  k = wanted.k
  total = base.live.size + added.live.size
  top = jax.lax.top_k
  if wanted.approximate:
    top = functools.partial(
      jax.lax.approx_max_k, recall_target=recall_target, reduction_input_size_override=total
    )

  def local(queries: jax.Array, base: Rows, added: Rows) -> Best:
    parts = _split(queries) if split_queries else queries
    shard = jax.lax.axis_index(AXES)
    shape = (queries.shape[0], k)
    start = Best(jnp.full(shape, -jnp.inf, jnp.float32), jnp.zeros(shape, jnp.int32))
    best = jax.tree.map(lambda x: jax.lax.pcast(x, AXES, to='varying'), start)
    offset = 0
    for rows, count in zip((base, added), wanted.blocks):
      first = offset + shard * rows.live.size
      best = _scan_blocks(parts, rows, count, first, best, top)
      offset += rows.live.size * mesh.size
    # [shards, batch, k] -> [batch, shards * k], shards in the order of rows.
    gathered = jax.tree.map(lambda x: jax.lax.all_gather(x, AXES, to='invarying'), best)
    side_by_side = lambda x: jnp.swapaxes(x, 0, 1).reshape(x.shape[1], -1)
    return _best(jax.tree.map(side_by_side, gathered), k)

  spec = PartitionSpec(AXES)
  return jax.shard_map(
    local, mesh=mesh, in_specs=(PartitionSpec(), spec, spec), out_specs=PartitionSpec()
  )(queries, base, added)


def _scan_blocks(
  queries: Float[Array, '... b d'],
  rows: Rows,
  blocks: int,
  first: Int[Array, ''],
  best: Best,
  top: Callable[..., tuple[jax.Array, jax.Array]],
) -> Best:
  """Merges the best of one device's rows, numbered from `first`, into `best`, block by block."""
  batch, k = best.scores.shape
  block = rows.live.size // blocks

  def step(best: Best, inputs: tuple[jax.Array, Rows]) -> tuple[Best, None]:
    start, part = inputs
    scores = jnp.where(part.live, _scores(queries, part.embeddings), -jnp.inf)
    found, positions = top(scores, min(k, block))
    # Those before have lower numbers and stand first, so that ties keep order.
    merged = Best(
      jnp.concatenate([best.scores, found], axis=1),
      jnp.concatenate([best.rows, start + positions.astype(jnp.int32)], axis=1),
    )
    return _best(merged, k), None

  split = jax.tree.map(lambda x: x.reshape(blocks, block, *x.shape[1:]), rows)
  starts = first + block * jnp.arange(blocks, dtype=jnp.int32)
  best, _ = jax.lax.scan(step, best, (starts, split))
  return best


def _best(candidates: Best, k: int) -> Best:
  """[b, n] -> [b, k]; the first of equal ones comes first."""
  scores, chosen = jax.lax.top_k(candidates.scores, k)
  return Best(scores, jnp.take_along_axis(candidates.rows, chosen, axis=1))


def _scores(
  queries: Float[Array, '... b d'], embeddings: Float[Array, 'rows d']
) -> Float[Array, 'b rows']:
  """Inner products in float32, of float32 queries or the three parts of `_split`.

  A float32 query is the sum of three bfloat16 parts. Matrix units that multiply
  bfloat16 and add up in float32 thus give its products with bfloat16 embeddings
  in full precision, without a float32 copy of the embeddings.
  """
  if queries.ndim == 2:
    return jnp.einsum(
      'bd,rd->br', queries, embeddings.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
  parts = jnp.einsum('pbd,rd->pbr', queries, embeddings, preferred_element_type=jnp.float32)
  return parts[0] + (parts[1] + parts[2])


def _split(queries: Float[Array, 'b d']) -> Float[Array, '3 b d']:
  """float32 -> bfloat16 parts that sum to it."""
  parts = []
  for _ in range(3):
    # A mere cast there and back may be optimised away.
    part = jax.lax.reduce_precision(queries, exponent_bits=8, mantissa_bits=7)
    parts.append(part.astype(jnp.bfloat16))
    queries = queries - part
  return jnp.stack(parts)
