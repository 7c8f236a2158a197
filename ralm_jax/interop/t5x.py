"""T5X checkpoints: legacy and native msgpack ones, and Orbax's.

  legacy   one msgpack file with every tensor in it
  native   checkpoint_<step>/checkpoint, a msgpack file that holds small
           tensors and describes the others, which are zarr arrays beside it:
           checkpoint_<step>/target.encoder.layers_0.…
  Orbax    a PyTree with `target` or `params`, its arrays in a folder each or
           in one OCDBT database; behind T5X's or a CheckpointManager's step

Layers may be scanned, that is stacked along axis 1 (T5X's default) or 0.
Parameters are named as ours, so that a map is little more than the list of them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from typing import Any

import numpy as np

from ralm_jax.interop import tensor_maps
from ralm_jax.interop.files.msgpack_tensors import MsgpackFile, Span
from ralm_jax.interop.files.tensor_source import TensorSource
from ralm_jax.interop.t5x_source import Stored, T5XSource
from ralm_jax.interop.tensor_maps import Entry
from ralm_jax.models.t5 import T5Config

PathLike = str | os.PathLike[str]

_MSGPACK, _METADATA = 'checkpoint', '_METADATA'
_PLACEHOLDER = 'PLACEHOLDER://'
_ARRAYS = ('jax.Array', 'np.ndarray', 'scalar')
# Both names have been in use for the table of a layer of its own.
_OWN_TABLES = ('relpos_bias', 'relative_posemb')


def open_checkpoint(path: PathLike) -> T5XSource | None:
  """Opens a T5X or Orbax checkpoint; reads no tensor.

  The path is of a msgpack file, a checkpoint_<step> folder, a folder of these (the newest is
  taken), or an Orbax folder; for others there is None.

  Raises:
    FileNotFoundError: the path does not exist.
    ValueError: it is one, but damaged or without parameters.
  """
  path = os.fspath(path).rstrip('/')
  if not os.path.exists(path):
    raise FileNotFoundError(f'{path} does not exist.')
  if os.path.isfile(path):
    return _open_msgpack(path) if _is_msgpack(path) else None
  file = os.path.join(path, _MSGPACK)
  if os.path.isfile(file):
    _refuse_tensorflow(file)
    return _open_msgpack(file)
  if os.path.isfile(os.path.join(path, _METADATA)):
    return _open_orbax(path)
  # A CheckpointManager keeps each item in a folder of its own.
  for item in ('state', 'default', 'params', 'target'):
    if os.path.isfile(os.path.join(path, item, _METADATA)):
      return _open_orbax(os.path.join(path, item))
  steps = {
    int(match[1]): name
    for name in os.listdir(path)
    if (match := re.fullmatch(r'(?:checkpoint_)?(\d+)', name))
    and os.path.isdir(os.path.join(path, name))
  }
  return open_checkpoint(os.path.join(path, steps[max(steps)])) if steps else None


def _is_msgpack(path: str) -> bool:
  """Whether a file begins as a msgpack map from strings, as Flax writes."""
  with open(path, 'rb') as file:
    head = file.read(6)
  if not head:
    return False
  size = {0xDE: 3, 0xDF: 5}.get(head[0], 1 if 0x80 < head[0] <= 0x8F else 0)
  following = head[size : size + 1]
  return bool(size and following) and (0xA0 < following[0] <= 0xBF or following[0] in (0xD9, 0xDA))


def _refuse_tensorflow(path: str) -> None:
  with open(path, 'rb') as file:
    if file.read(22) == b'model_checkpoint_path:':
      raise ValueError(
        f'{path} is of a TensorFlow checkpoint (Mesh TensorFlow T5); expected '
        'one of T5X. Convert it with T5X first.'
      )


def _open_msgpack(path: str) -> T5XSource:
  file = MsgpackFile(path)
  if not isinstance(file.tree, dict):
    raise ValueError(
      f'{path} holds a {type(file.tree).__name__}, expected the tree of a T5X checkpoint.'
    )
  version = file.tree.get('version')
  if version in (0, 1):
    raise ValueError(f"{path} is of T5X's version {version}; 2 and 3 are read.")
  leaves: dict[tuple[str, ...], Any] = {}
  _flatten(file.tree, (), leaves, path)
  return T5XSource(path, _parameters(leaves, path), file)


def _flatten(tree: Any, at: tuple[str, ...], leaves: dict[tuple[str, ...], Any], path: str) -> None:
  if isinstance(tree, dict):
    if {'driver', 'kvstore'} <= tree.keys():
      leaves[at] = Stored(_relative(_folder_of(tree), path))
    else:
      for key, child in tree.items():
        _flatten(child, (*at, str(key)), leaves, path)
  elif isinstance(tree, str) and tree.startswith(_PLACEHOLDER):
    leaves[at] = Stored(_relative(tree.removeprefix(_PLACEHOLDER), path))
  elif isinstance(tree, Span):
    leaves[at] = tree


def _folder_of(spec: dict[str, Any]) -> Any:
  # The path moved into the kvstore in TensorStore 0.1.14.
  store = spec['kvstore']
  return store.get('path', spec.get('path')) if isinstance(store, dict) else None


def _relative(name: Any, path: str) -> str:
  """A folder beside the checkpoint file; no other place is ever opened."""
  clean = name.strip('/') if isinstance(name, str) else ''
  if not clean or name.startswith('/') or '..' in clean.split('/'):
    raise ValueError(f'{path} describes a tensor at {name!r}, expected a folder beside it.')
  return clean


def _open_orbax(folder: str) -> T5XSource:
  path = os.path.join(folder, _METADATA)
  try:
    with open(path, encoding='utf-8') as file:
      metadata = json.load(file)
    leaves: dict[tuple[str, ...], Any] = {}
    for entry in metadata['tree_metadata'].values():
      keys = tuple(str(key['key']) for key in entry['key_metadata'])
      # Empty containers and strings are no arrays.
      if entry['value_metadata']['value_type'] in _ARRAYS:
        leaves[keys] = Stored(_relative('.'.join(keys), path))
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    if isinstance(e, ValueError) and 'expected a folder' in str(e):
      raise
    raise ValueError(f'{path} is damaged ({type(e).__name__}: {e}); fetch it again.') from e
  driver = 'zarr3' if metadata.get('use_zarr3') else 'zarr'
  return T5XSource(folder, _parameters(leaves, folder), None, driver)


def _parameters(leaves: dict[tuple[str, ...], Any], path: str) -> dict[str, Span | Stored]:
  """The parameters among the leaves of a training state, by path."""
  targets = ('optimizer', 'target'), ('target',), ('state', 'target')
  for root in (*targets, ('params',), ('state', 'params'), ()):
    # Flax's collection may or may not be part of what was saved.
    for prefix in ((*root, 'params'), root):
      size = len(prefix)
      found = {
        '/'.join(keys[size:]): leaf
        for keys, leaf in leaves.items()
        if keys[:size] == prefix and len(keys) > size
      }
      if any(name.startswith(('token_embedder/', 'encoder/')) for name in found):
        return found
  top = sorted({'/'.join(keys[:2]) for keys in leaves})
  raise ValueError(
    f'{path} holds no parameters of a T5: expected encoder, decoder and '
    f'token_embedder below target or params, found {top[:8]}.'
  )


def t5_config(source: TensorSource) -> T5Config:
  """The configuration that the tensors tell.

  T5X keeps it in gin files, so some of it is assumed: one activation means T5 1.0 (relu), a gated
  one T5 1.1 and its successors (gelu, a head of its own); the largest relative distance is 128.

  Raises:
    ValueError: the tensors are not those of a T5.
  """

  def shape(name: str) -> tuple[int, ...]:
    if name not in source:
      raise ValueError(
        f'{source.description} has no tensor {name!r}; expected the '
        f'parameters of a T5, found {sorted(source)[:4]}.'
      )
    return source.info(name).shape

  stacks = {name: _Layers.of(source, name) for name in ('encoder', 'decoder')}
  vocab_size, emb_dim = shape('token_embedder/embedding')
  encoder = stacks['encoder']
  num_heads, buckets = encoder.layer_shape(source, shape, _relative_table(source, encoder))
  attention = encoder.name(0, 'attention/query/kernel')
  inner = encoder.layer_shape(source, shape, attention)[-1]
  if inner % num_heads:
    raise ValueError(
      f'{source.description}: {attention} has {inner} columns, which '
      f'{num_heads} heads do not divide; is it a T5?'
    )
  gated = encoder.name(0, 'mlp/wi_0/kernel') in source
  wi = encoder.name(0, f'mlp/{"wi_0" if gated else "wi"}/kernel')
  return T5Config(
    vocab_size=vocab_size,
    emb_dim=emb_dim,
    num_heads=num_heads,
    head_dim=inner // num_heads,
    mlp_dim=encoder.layer_shape(source, shape, wi)[-1],
    num_encoder_layers=encoder.depth,
    num_decoder_layers=stacks['decoder'].depth,
    mlp_activations=('gelu', 'linear') if gated else ('relu',),
    # T5 1.1 and its successors have a head of their own.
    logits_via_embedding=not gated and 'decoder/logits_dense/kernel' not in source,
    relative_attention_num_buckets=buckets,
  )


def t5_entries(source: TensorSource, config: T5Config) -> list[Entry]:
  """The map to our (unscanned) parameters; ValueError where layers have own position tables."""
  stacks = {name: _Layers.of(source, name) for name in ('encoder', 'decoder')}
  tables = {name: _relative_table(source, s) for name, s in stacks.items()}
  entries = []
  for entry in tensor_maps.t5_entries(config):
    name, part = entry.path, None
    if match := re.fullmatch(r'(\w+)/layers_(\d+)/(.*)', name):
      layers, index = stacks[match[1]], int(match[2])
      name = layers.name(index, match[3])
      part = None if layers.axis is None else (layers.axis, index)
    elif name.startswith('logits_dense/'):
      name = f'decoder/{name}'
    elif 'relpos_bias' in name:
      layers = stacks[name.split('/')[0]]
      name = tables[layers.stack]
      if layers.axis is not None and '/layers/' in name:
        part = (layers.axis, 0)
    entries.append(Entry(entry.path, name, entry.shape, part=part))
  return entries


@dataclasses.dataclass(frozen=True)
class _Layers:
  """How a stack keeps its layers."""

  stack: str
  depth: int
  axis: int | None  # Along which they are stacked; None where each has its own tensors.

  @classmethod
  def of(cls, source: TensorSource, stack: str) -> _Layers:
    numbers = {
      int(match[1]) for name in source if (match := re.match(rf'{stack}/layers_(\d+)/', name))
    }
    if numbers:
      if numbers != set(range(len(numbers))):
        missing = min(set(range(max(numbers))) - numbers)
        raise ValueError(
          f'{source.description} has no {stack}/layers_{missing}, but '
          f'{stack}/layers_{max(numbers)}; it is incomplete.'
        )
      return cls(stack, len(numbers), None)
    norm = f'{stack}/layers/pre_mlp_layer_norm/scale'
    embedding = 'token_embedder/embedding'
    if norm not in source or embedding not in source:
      raise ValueError(
        f'{source.description} has no {stack}/layers_0 or {stack}/layers; '
        f'expected the parameters of a T5, found {sorted(source)[:4]}.'
      )
    shape, emb = source.info(norm).shape, source.info(embedding).shape[-1]
    if len(shape) != 2 or emb not in shape:
      raise ValueError(
        f'{source.description}: {norm} has shape {shape}, expected {emb} and the number of layers.'
      )
    # T5X's own default decides where there are as many layers as features.
    axis = 1 if shape[0] == emb else 0
    return cls(stack, shape[axis], axis)

  def name(self, index: int, rest: str) -> str:
    layers = 'layers' if self.axis is not None else f'layers_{index}'
    return f'{self.stack}/{layers}/{rest}'

  def layer_shape(self, source: TensorSource, shape: Any, name: str) -> tuple[int, int]:
    """Of one layer's matrix, in a tensor of all of them or its own."""
    found = shape(name)
    if self.axis is not None and '/layers/' in name:
      found = found[: self.axis] + found[self.axis + 1 :]
    if len(found) != 2:
      raise ValueError(
        f'{source.description}: {name} has shape {shape(name)}, expected a matrix a layer.'
      )
    return found


def _relative_table(source: TensorSource, layers: _Layers) -> str:
  """Name of the tensor with a stack's relative position table."""
  shared = f'{layers.stack}/relpos_bias/rel_embedding'
  if shared in source:
    return shared
  for own in _OWN_TABLES:
    names = [layers.name(i, f'{own}/rel_embedding') for i in range(layers.depth)]
    if (first := names[0]) not in source:
      continue
    if layers.axis is not None:
      rows = [source.part(first, layers.axis, i) for i in range(layers.depth)]
    else:
      rows = [source[name] for name in names if name in source]
    if len(rows) == layers.depth and all(np.array_equal(rows[0], r) for r in rows):
      return first
    raise ValueError(
      f'{source.description}: each layer of the {layers.stack} has its own relative position table '
      '(umT5 and scalable T5 do so); expected one of the whole stack, as T5 has it.'
    )
  return shared
