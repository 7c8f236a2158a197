"""Which foreign tensor is which parameter of ours, for every architecture.

A map is a list of `Entry`. Loading reads its entries, exporting writes them
back; the names here are those of Hugging Face's T5, BERT and BART (`decoder_maps`
has decoder-only models). Paths are ours with unscanned layers
(`encoder/layers_0/attention/query/kernel`).
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any

import flax.traverse_util
import ml_dtypes
import numpy as np

from ralm_jax.interop.files.tensor_source import TensorSource
from ralm_jax.models import bart
from ralm_jax.models.bart import BartConfig
from ralm_jax.models.bert import BertConfig
from ralm_jax.models.t5 import T5Config

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Entry:
  """One parameter of ours in a foreign tensor."""

  path: str  # Ours, unscanned, its names joined by '/'.
  name: str
  shape: tuple[int, ...]
  transpose: bool = False  # The foreign tensor (or its part) is the transpose of ours.
  # (axis, index) of a foreign tensor that stacks several, taken before the transposition.
  part: tuple[int, int] | None = None
  offset: float = 0.0  # Ours is the foreign tensor plus this.
  # Of so many heads, in each of which the rows of the two features that are rotated together follow
  # one another; ours are half a head apart. 0 is of none.
  pairs_of: int = 0

  @property
  def foreign_shape(self) -> tuple[int, ...]:
    """Of the foreign tensor; of the part, where there is one."""
    return self.shape[::-1] if self.transpose else self.shape


def problem(source: TensorSource, entry: Entry) -> str | None:
  """What is wrong with the tensor of an entry, which must be there; reads no data."""
  info = source.info(entry.name)
  if not np.issubdtype(info.dtype, np.floating) and (info.dtype != ml_dtypes.bfloat16):
    return (
      f'tensor {entry.name!r} is of type {info.dtype}, expected '
      'floating-point numbers; is it quantised?'
    )
  shape = info.shape
  whole, part = shape, ''
  if entry.part is not None:
    axis, index = entry.part
    if axis >= len(shape) or index >= shape[axis]:
      return (
        f'tensor {entry.name!r} has shape {whole}, expected more than {index} rows on axis {axis}'
      )
    shape = shape[:axis] + shape[axis + 1 :]
    part = f' beside axis {axis}'
  if shape != entry.foreign_shape:
    return (
      f'tensor {entry.name!r} has shape {whole}, expected '
      f'{entry.foreign_shape}{part} for {entry.path}'
    )
  return None


def read(
  source: TensorSource, entry: Entry, dtype: Any = np.float32, *, copy: bool = True
) -> np.ndarray:
  """The parameter of one entry, in our layout; ValueError where it is missing, misshapen or
  not finite.

  `copy` never gives back what the source may still hold (a mapped file).
  """
  if entry.name not in source:
    raise ValueError(
      f'{source.description} has no tensor {entry.name!r}, which its configuration calls for '
      f'({entry.path}); is it a checkpoint of another architecture?'
    )
  if wrong := problem(source, entry):
    raise ValueError(f'{source.description}: not as its configuration says: {wrong}')
  tensor = source[entry.name] if entry.part is None else source.part(entry.name, *entry.part)
  if entry.pairs_of:
    pairs = tensor.reshape(entry.pairs_of, -1, 2, *tensor.shape[1:])
    tensor = pairs.swapaxes(1, 2).reshape(tensor.shape)
  if entry.transpose:
    tensor = tensor.T
  if entry.offset:
    tensor = tensor.astype(np.float32) + np.float32(entry.offset)
  array = np.ascontiguousarray(tensor, dtype=dtype)
  if bad := array.size - np.count_nonzero(np.isfinite(array)):
    raise ValueError(
      f'{source.description}: tensor {entry.name!r} holds {bad} of {array.size} values that are '
      f'not finite (NaN or infinite; {entry.path}); the file is damaged, or its training diverged.'
    )
  if copy and np.may_share_memory(array, tensor):
    array = array.copy()
  return array.reshape(entry.shape)


def read_all(source: TensorSource, entries: Sequence[Entry], dtype: Any = np.float32) -> Params:
  """All parameters of a map as our tree; ValueError as `read`."""
  return flax.traverse_util.unflatten_dict(
    {tuple(entry.path.split('/')): read(source, entry, dtype) for entry in entries}
  )


class _Map:
  """Collects entries below a foreign prefix."""

  def __init__(self, prefix: str):
    self.prefix = prefix
    self.entries: list[Entry] = []

  def add(self, path: str, name: str, shape: tuple[int, ...], **how: Any) -> None:
    self.entries.append(Entry(path, self.prefix + name, tuple(shape), **how))

  def dense(self, path: str, name: str, shape: tuple[int, int], bias: bool = True) -> None:
    self.add(f'{path}/kernel', f'{name}.weight', shape, transpose=True)
    if bias:
      self.add(f'{path}/bias', f'{name}.bias', shape[1:])

  def norm(self, path: str, name: str, size: int, bias: bool = True) -> None:
    self.add(f'{path}/scale', f'{name}.weight', (size,))
    if bias:
      self.add(f'{path}/bias', f'{name}.bias', (size,))


def t5_entries(config: T5Config, prefix: str = '') -> list[Entry]:
  """The map of a T5 (1.0, 1.1, lm-adapt, Flan)."""
  tensors = _Map(prefix)
  emb, mlp = config.emb_dim, config.mlp_dim
  inner = config.num_heads * config.head_dim
  tensors.add('token_embedder/embedding', 'shared.weight', (config.vocab_size, emb))

  def attention(path: str, name: str) -> None:
    for ours, theirs in (('query', 'q'), ('key', 'k'), ('value', 'v')):
      tensors.dense(f'{path}/{ours}', f'{name}.{theirs}', (emb, inner), bias=False)
    tensors.dense(f'{path}/out', f'{name}.o', (inner, emb), bias=False)

  def norm(path: str, name: str) -> None:
    tensors.norm(path, name, emb, bias=False)

  wi = ('wi',) if len(config.mlp_activations) == 1 else ('wi_0', 'wi_1')
  for stack, depth in (
    ('encoder', config.num_encoder_layers),
    ('decoder', config.num_decoder_layers),
  ):
    tensors.add(
      f'{stack}/relpos_bias/rel_embedding',
      f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight',
      (config.num_heads, config.relative_attention_num_buckets),
      transpose=True,
    )
    for i in range(depth):
      ours, theirs = f'{stack}/layers_{i}', f'{stack}.block.{i}.layer'
      if stack == 'encoder':
        norm(f'{ours}/pre_attention_layer_norm', f'{theirs}.0.layer_norm')
        attention(f'{ours}/attention', f'{theirs}.0.SelfAttention')
        last = 1
      else:
        norm(f'{ours}/pre_self_attention_layer_norm', f'{theirs}.0.layer_norm')
        attention(f'{ours}/self_attention', f'{theirs}.0.SelfAttention')
        norm(f'{ours}/pre_cross_attention_layer_norm', f'{theirs}.1.layer_norm')
        attention(f'{ours}/encoder_decoder_attention', f'{theirs}.1.EncDecAttention')
        last = 2
      norm(f'{ours}/pre_mlp_layer_norm', f'{theirs}.{last}.layer_norm')
      dense = f'{theirs}.{last}.DenseReluDense'
      for name in wi:
        tensors.dense(f'{ours}/mlp/{name}', f'{dense}.{name}', (emb, mlp), bias=False)
      tensors.dense(f'{ours}/mlp/wo', f'{dense}.wo', (mlp, emb), bias=False)
    norm(f'{stack}/{stack}_norm', f'{stack}.final_layer_norm')
  if not config.logits_via_embedding:
    tensors.dense('logits_dense', 'lm_head', (emb, config.vocab_size), bias=False)
  return tensors.entries


def bert_entries(
  config: BertConfig, prefix: str = '', projection: str = 'encode_proj'
) -> list[Entry]:
  """The map of a BERT encoder without its pooler.

  `prefix` is of the encoder's foreign names, `projection` the projection's whole one.
  """
  tensors, emb = _Map(prefix), config.emb_dim
  for ours, theirs, rows in (
    ('token', 'word', config.vocab_size),
    ('position', 'position', config.max_positions),
    ('type', 'token_type', config.type_vocab_size),
  ):
    tensors.add(f'{ours}_embedder/embedding', f'embeddings.{theirs}_embeddings.weight', (rows, emb))
  tensors.norm('embedding_layer_norm', 'embeddings.LayerNorm', emb)
  for i in range(config.num_layers):
    ours, theirs = f'layers_{i}', f'encoder.layer.{i}'
    for name in ('query', 'key', 'value'):
      tensors.dense(f'{ours}/attention/{name}', f'{theirs}.attention.self.{name}', (emb, emb))
    output = f'{theirs}.attention.output'
    tensors.dense(f'{ours}/attention/out', f'{output}.dense', (emb, emb))
    tensors.norm(f'{ours}/attention_layer_norm', f'{output}.LayerNorm', emb)
    tensors.dense(f'{ours}/mlp/wi', f'{theirs}.intermediate.dense', (emb, config.mlp_dim))
    tensors.dense(f'{ours}/mlp/wo', f'{theirs}.output.dense', (config.mlp_dim, emb))
    tensors.norm(f'{ours}/mlp_layer_norm', f'{theirs}.output.LayerNorm', emb)
  if config.projection_dim:
    tensors.prefix = ''
    tensors.dense('projection', projection, (emb, config.projection_dim))
  return tensors.entries


def bart_entries(config: BartConfig, prefix: str = '', model_prefix: str = 'model.') -> list[Entry]:
  """The map of a BART; `model_prefix`, of all but `final_logits_bias`, is '' in a BartModel."""
  tensors, emb = _Map(prefix), config.emb_dim
  # Foreign [1, vocab].
  tensors.add('final_logits_bias', 'final_logits_bias', (config.vocab_size,), part=(0, 0))
  tensors.prefix = prefix + model_prefix
  tensors.add('token_embedder/embedding', 'shared.weight', (config.vocab_size, emb))

  def attention(path: str, name: str) -> None:
    for ours, theirs in (('query', 'q'), ('key', 'k'), ('value', 'v'), ('out', 'out')):
      tensors.dense(f'{path}/{ours}', f'{name}.{theirs}_proj', (emb, emb))

  for stack, depth, mlp in (
    ('encoder', config.num_encoder_layers, config.encoder_mlp_dim),
    ('decoder', config.num_decoder_layers, config.decoder_mlp_dim),
  ):
    tensors.add(
      f'{stack}/position_embedder/embedding',
      f'{stack}.embed_positions.weight',
      (config.max_positions + bart.POSITION_OFFSET, emb),
    )
    tensors.norm(f'{stack}/embedding_layer_norm', f'{stack}.layernorm_embedding', emb)
    for i in range(depth):
      ours, theirs = f'{stack}/layers_{i}', f'{stack}.layers.{i}'
      own = 'attention' if stack == 'encoder' else 'self_attention'
      attention(f'{ours}/{own}', f'{theirs}.self_attn')
      tensors.norm(f'{ours}/{own}_layer_norm', f'{theirs}.self_attn_layer_norm', emb)
      if stack == 'decoder':
        attention(f'{ours}/encoder_decoder_attention', f'{theirs}.encoder_attn')
        tensors.norm(f'{ours}/cross_attention_layer_norm', f'{theirs}.encoder_attn_layer_norm', emb)
      tensors.dense(f'{ours}/mlp/wi', f'{theirs}.fc1', (emb, mlp))
      tensors.dense(f'{ours}/mlp/wo', f'{theirs}.fc2', (mlp, emb))
      tensors.norm(f'{ours}/mlp_layer_norm', f'{theirs}.final_layer_norm', emb)
  return tensors.entries
