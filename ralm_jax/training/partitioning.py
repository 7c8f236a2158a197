"""Device mesh, logical axis rules and jit under them.

Mesh axes are `data` and `model`. A rule table maps the logical axes that the
models name to mesh axes; parameters may be sharded over `data` too (FSDP).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
import logging
import threading
from typing import Any, Literal

from flax import linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from ralm_jax.losses.array_types import Array, PyTree, Shaped
from ralm_jax.losses.option_types import Count

LogicalAxisRules = Sequence[tuple[str, str | None]]

DATA, MODEL = 'data', 'model'


def standard_logical_axis_rules(
  activation_partitioning_dims: Literal[1, 2] = 1,
  parameter_partitioning_dims: Literal[1, 2] = 1,
  additional_rules: LogicalAxisRules | None = None,
) -> list[tuple[str, str | None]]:
  """The rules a T5X user knows; additional ones take precedence.

  Args:
    activation_partitioning_dims: 2 also shards activations' `embed` axis over `model`.
    parameter_partitioning_dims: 2 also shards parameters over `data` (FSDP, ZeRO-3).
  """
  for name, dims in (
    ('activation_partitioning_dims', activation_partitioning_dims),
    ('parameter_partitioning_dims', parameter_partitioning_dims),
  ):
    if dims not in (1, 2):
      raise ValueError(f'{name} must be 1 or 2, not {dims}.')
  rules: list[tuple[str, str | None]] = list(additional_rules or [])
  rules += [('batch', DATA), *((axis, MODEL) for axis in ('vocab', 'mlp', 'heads', 'joined_kv'))]
  if activation_partitioning_dims == 2:
    rules.append(('embed', MODEL))
  if parameter_partitioning_dims == 2:
    # In activations `batch` has already taken `data`, so this reaches parameters alone.
    rules.append(('embed', DATA))
  rules += [(axis, None) for axis in ('embed', 'kv', 'length', 'layers', 'relpos_buckets')]
  return rules


@dataclasses.dataclass(frozen=True)
class Partitioner:
  """Shards a computation over a mesh of `data` and `model`."""

  num_partitions: Count = 1  #: size of the `model` axis; `data` takes the other devices
  model_parallel_submesh: tuple[int, ...] | None = None  #: T5X's TPU tuple; not supported
  logical_axis_rules: LogicalAxisRules | None = None  #: None for the standard ones
  devices: Sequence[jax.Device] | None = None  #: None for all devices of all processes

  def __post_init__(self):
    if self.model_parallel_submesh is not None:
      raise ValueError(
        'Partitioner.model_parallel_submesh is not supported: the mesh is '
        'laid out by JAX. Set num_partitions to the product of the submesh '
        f'({int(np.prod(self.model_parallel_submesh))}) instead.'
      )

  @functools.cached_property
  def mesh(self) -> Mesh:
    """The mesh [data, model]; axis types are Auto, see `partition`."""
    devices = list(self.devices) if self.devices is not None else jax.devices()
    if self.num_partitions < 1 or len(devices) % self.num_partitions:
      raise ValueError(
        f'Partitioner.num_partitions {self.num_partitions} must divide the '
        f'number of devices, {len(devices)}.'
      )
    shape = (len(devices) // self.num_partitions, self.num_partitions)
    axes, automatic = (DATA, MODEL), (AxisType.Auto,) * 2
    if self.devices is not None:
      return Mesh(np.asarray(devices).reshape(shape), axes, axis_types=automatic)
    return jax.make_mesh(shape, axes, axis_types=automatic)

  @property
  def rules(self) -> list[tuple[str, str | None]]:
    if self.logical_axis_rules is None:
      return standard_logical_axis_rules()
    return [(logical, mesh_axis) for logical, mesh_axis in self.logical_axis_rules]

  def _fitting(self, spec: PartitionSpec, shape: tuple[int, ...]) -> NamedSharding:
    """Drops mesh axes that do not divide their dimension."""
    axes = list(spec) + [None] * (len(shape) - len(spec))
    fitted = []
    for axis, size in zip(axes, shape):
      names = (axis,) if isinstance(axis, str) else tuple(axis or ())
      count = int(np.prod([self.mesh.shape[name] for name in names] or [1]))
      fitted.append(axis if count > 1 and size % count == 0 else None)
    return NamedSharding(self.mesh, PartitionSpec(*fitted))

  @property
  def replicated(self) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec())

  def data_sharding(self, shape: tuple[int, ...]) -> NamedSharding:
    """Rows over `data`; replicated where fewer (models still spread batch x passages)."""
    return self._fitting(PartitionSpec(DATA), shape)

  def param_shardings(self, boxed: PyTree) -> PyTree:
    """Shardings of boxed parameters; an axis that its mesh axis does not divide is replicated."""
    logical = nn.get_partition_spec(boxed)
    specs = nn.logical_to_mesh(logical, self.rules)

    def fit(path, spec: PartitionSpec, leaf) -> NamedSharding:
      sharding = self._fitting(spec, leaf.shape)
      wanted = [axis for axis in spec if axis and self.mesh.shape[axis] > 1]
      if wanted and not any(sharding.spec):
        name = jax.tree_util.keystr(path)
        logging.info(
          f'Parameter {name} of shape {leaf.shape} is replicated: {wanted} does not divide it.'
        )
      return sharding

    return jax.tree_util.tree_map_with_path(
      fit, specs, nn.meta.unbox(boxed), is_leaf=lambda x: isinstance(x, PartitionSpec)
    )

  def abstract(self, boxed: PyTree) -> PyTree:
    """Boxed parameters as ShapeDtypeStructs on their shardings, to restore into."""
    return jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
      nn.meta.unbox(boxed),
      self.param_shardings(boxed),
    )

  def partition(self, function: Callable[..., Any], **jit_kwargs: Any) -> PartitionedFunction:
    """`jax.jit` of a function under the mesh and the logical axis rules."""
    return PartitionedFunction(self, jax.jit(function, **jit_kwargs))

  def partition_rows(self, function: Callable[..., Any]) -> PartitionedFunction:
    """`partition` for `local_rows`: outputs keep their rows over `data`, nothing else sharded."""

    def with_rows(*args: Any, **kwargs: Any) -> Any:
      return jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(x, self.data_sharding(x.shape)),
        function(*args, **kwargs),
      )

    return self.partition(with_rows)

  def put_batch(self, batch: PyTree) -> PyTree:
    """Global arrays, rows over `data`, of this process's rows; ValueError if they do not divide."""
    processes = len({d.process_index for d in self.mesh.devices.flat})
    if self.mesh.shape[DATA] % processes:
      raise ValueError(
        f'Partitioner.num_partitions {self.num_partitions} spreads one data partition over several '
        f'of the {processes} processes, which would have to feed the same rows; use at most the '
        f'devices of one process, {self.mesh.size // processes}.'
      )

    def put(array: np.ndarray) -> jax.Array:
      shape = (array.shape[0] * processes, *array.shape[1:])
      sharding = self.data_sharding(shape)
      if processes == 1:
        return jax.device_put(array, sharding)
      if not any(sharding.spec):
        raise ValueError(
          f'A global batch of {shape[0]} rows cannot be split over {self.mesh.shape[DATA]} data '
          f'partitions on {processes} processes; make BATCH_SIZE a multiple of the data partitions.'
        )
      return jax.make_array_from_process_local_data(sharding, array, shape)

    return jax.tree.map(put, batch)


_DISPATCH = threading.RLock()


def dispatching() -> threading.RLock:
  """To hold while handing the devices a program from more than one thread.

  A program is queued device by device: two threads that do so at once could
  leave its collectives in another order on another device.
  """
  return _DISPATCH


@dataclasses.dataclass(frozen=True)
class PartitionedFunction:
  """A jitted function that is traced and run under its partitioner's mesh.

  flax drops logical constraints silently in any other mixture of contexts, so
  this is the one place where they are entered: `jax.set_mesh` with `jax.jit`.
  """

  partitioner: Partitioner
  jitted: Any

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    with (
      dispatching(),
      jax.set_mesh(self.partitioner.mesh),
      nn.logical_axis_rules(self.partitioner.rules),
    ):
      return self.jitted(*args, **kwargs)

  def lower(self, *args: Any, **kwargs: Any) -> Any:
    with jax.set_mesh(self.partitioner.mesh), nn.logical_axis_rules(self.partitioner.rules):
      return self.jitted.lower(*args, **kwargs)

  def cache_size(self) -> int:
    """How many programs have been compiled; a step should stay at one."""
    return self.jitted._cache_size()


def local_rows(array: Shaped[Array, 'b ...']) -> Shaped[np.ndarray, 'local ...']:
  """This process's rows of an output of `partition_rows`, on the host, repeated ones read once."""
  if array.is_fully_addressable and array.is_fully_replicated:
    return np.asarray(array)
  whole = array.shape[1:]
  if array.is_fully_replicated or any(
    shard.data.shape[1:] != whole for shard in array.addressable_shards
  ):
    raise ValueError(
      f'expected an array sharded by rows, found {array.sharding}; make it '
      'with Partitioner.partition_rows.'
    )
  pieces: dict[int, jax.Array] = {}
  for shard in array.addressable_shards:
    pieces.setdefault(shard.index[0].start or 0, shard.data)
  return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])
