"""Hugging Face folders in: configuration and parameters of T5 and BERT."""
from __future__ import annotations

from collections.abc import Mapping
import os
from typing import Any

import flax.traverse_util
import numpy as np

from ralm_jax.interop import weight_files
from ralm_jax.models import bert
from ralm_jax.models import t5

Params = dict[str, Any]
PathLike = str | os.PathLike[str]

_T5_ACTIVATIONS = {
    'relu': ('relu',),
    'gated-gelu': ('gelu', 'linear'),
    'gated-silu': ('silu', 'linear'),
}
_BERT_ACTIVATIONS = {'gelu': 'gelu_exact', 'gelu_new': 'gelu', 'relu': 'relu'}


class _Tree:
  """Collects parameters from named tensors and reports what is amiss."""

  def __init__(self, weights: Mapping[str, np.ndarray], directory: PathLike):
    self._weights = weights
    self._directory = os.fspath(directory)
    self._flat: dict[tuple[str, ...], np.ndarray] = {}

  def take(
      self, path: str, name: str, shape: tuple[int, ...], transpose: bool = False
  ) -> None:
    """Puts tensor `name` at `path`; `shape` is ours, after transposition."""
    if name not in self._weights:
      raise ValueError(
          f'{self._directory} has no tensor {name!r}, which its config.json '
          'calls for; is it a checkpoint of another architecture?'
      )
    tensor = np.asarray(self._weights[name], dtype=np.float32)
    if transpose:
      tensor = np.ascontiguousarray(tensor.T)
    if tensor.shape != shape:
      raise ValueError(
          f'{self._directory}: tensor {name!r} has shape {tensor.shape}, '
          f'expected {shape} by its config.json.'
      )
    self._flat[tuple(path.split('/'))] = tensor

  def params(self) -> Params:
    return flax.traverse_util.unflatten_dict(self._flat)


def _read_config(directory: PathLike, model_types: tuple[str, ...]) -> dict[str, Any]:
  config = weight_files.read_json(os.path.join(directory, 'config.json'))
  found = config.get('model_type')
  if found not in model_types:
    raise ValueError(
        f'{os.fspath(directory)}/config.json is of model_type {found!r}, '
        f'expected {" or ".join(model_types)}.'
    )
  return config


def load_t5(directory: PathLike, **overrides: Any) -> tuple[t5.T5Config, Params]:
  """Loads T5 1.0, 1.1, lm-adapt or Flan weights.

  Args:
    directory: with config.json and model.safetensors, its sharded form, or
      pytorch_model.bin.
    **overrides: fields of T5Config to replace (`dtype`, `dropout_rate`, ...).

  Returns:
    The configuration and float32 parameters in our tree (unscanned layers).

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a truncated file, another architecture, a tensor missing or of
      another shape.
  """
  raw = _read_config(directory, ('t5',))
  weights = weight_files.WeightFiles(directory)
  feed_forward = raw.get('feed_forward_proj', 'relu')
  if feed_forward not in _T5_ACTIVATIONS:
    raise ValueError(
        f'{directory}/config.json: feed_forward_proj {feed_forward!r} is not '
        f'known; known: {sorted(_T5_ACTIVATIONS)}.'
    )
  # transformers 5 writes tie_word_embeddings=true for every T5 and keeps the
  # original meaning in scale_decoder_outputs; the weights tell the rest.
  tied = 'lm_head.weight' not in weights or (
      raw.get('tie_word_embeddings', True)
      and np.array_equal(weights['lm_head.weight'], weights['shared.weight'])
  )
  scale = raw.get('scale_decoder_outputs')
  if scale is None:
    scale = raw.get('tie_word_embeddings', True)
  config = t5.T5Config(**{
      **dict(
          vocab_size=raw['vocab_size'],
          emb_dim=raw['d_model'],
          num_heads=raw['num_heads'],
          head_dim=raw['d_kv'],
          mlp_dim=raw['d_ff'],
          num_encoder_layers=raw['num_layers'],
          num_decoder_layers=raw.get('num_decoder_layers') or raw['num_layers'],
          mlp_activations=_T5_ACTIVATIONS[feed_forward],
          dropout_rate=0.0,
          logits_via_embedding=bool(tied),
          scale_decoder_outputs=bool(scale),
          relative_attention_num_buckets=raw.get(
              'relative_attention_num_buckets', 32),
          relative_attention_max_distance=raw.get(
              'relative_attention_max_distance', 128),
          layer_norm_epsilon=raw.get('layer_norm_epsilon', 1e-6),
          decoder_start_id=raw.get('decoder_start_token_id') or 0,
      ),
      **overrides,
  })
  emb, inner, mlp = (
      config.emb_dim, config.num_heads * config.head_dim, config.mlp_dim
  )
  tree = _Tree(weights, directory)
  tree.take('token_embedder/embedding', 'shared.weight', (config.vocab_size, emb))

  def attention(path: str, name: str) -> None:
    for ours, theirs in (('query', 'q'), ('key', 'k'), ('value', 'v')):
      tree.take(f'{path}/{ours}/kernel', f'{name}.{theirs}.weight', (emb, inner), True)
    tree.take(f'{path}/out/kernel', f'{name}.o.weight', (inner, emb), True)

  def norm(path: str, name: str) -> None:
    tree.take(f'{path}/scale', f'{name}.weight', (emb,))

  def feed_forward_block(path: str, name: str) -> None:
    names = ('wi',) if len(config.mlp_activations) == 1 else ('wi_0', 'wi_1')
    for wi in names:
      tree.take(f'{path}/{wi}/kernel', f'{name}.{wi}.weight', (emb, mlp), True)
    tree.take(f'{path}/wo/kernel', f'{name}.wo.weight', (mlp, emb), True)

  for stack, depth in (
      ('encoder', config.num_encoder_layers),
      ('decoder', config.num_decoder_layers),
  ):
    tree.take(
        f'{stack}/relpos_bias/rel_embedding',
        f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight',
        (config.num_heads, config.relative_attention_num_buckets), True,
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
      feed_forward_block(f'{ours}/mlp', f'{theirs}.{last}.DenseReluDense')
    norm(f'{stack}/{stack}_norm', f'{stack}.final_layer_norm')
  if not config.logits_via_embedding:
    tree.take('logits_dense/kernel', 'lm_head.weight', (emb, config.vocab_size), True)
  return config, tree.params()


def load_bert(directory: PathLike, **overrides: Any) -> tuple[bert.BertConfig, Params]:
  """Loads BERT or Contriever weights; the pooler is left out.

  Args:
    directory: as for `load_t5`.
    **overrides: fields of BertConfig to replace.

  Returns:
    The configuration and float32 parameters of `Bert` and of a tied
    `DualEncoder`.

  Raises:
    FileNotFoundError, ValueError: as for `load_t5`.
  """
  raw = _read_config(directory, ('bert', 'contriever'))
  weights = weight_files.WeightFiles(directory)
  prefix = 'bert.' if 'bert.embeddings.word_embeddings.weight' in weights else ''
  activation = raw.get('hidden_act', 'gelu')
  if activation not in _BERT_ACTIVATIONS:
    raise ValueError(
        f'{directory}/config.json: hidden_act {activation!r} is not known; '
        f'known: {sorted(_BERT_ACTIVATIONS)}.'
    )
  config = bert.BertConfig(**{
      **dict(
          vocab_size=raw['vocab_size'],
          emb_dim=raw['hidden_size'],
          num_heads=raw['num_attention_heads'],
          num_layers=raw['num_hidden_layers'],
          mlp_dim=raw['intermediate_size'],
          mlp_activation=_BERT_ACTIVATIONS[activation],
          max_positions=raw['max_position_embeddings'],
          type_vocab_size=raw.get('type_vocab_size', 2),
          layer_norm_epsilon=raw.get('layer_norm_eps', 1e-12),
      ),
      **overrides,
  })
  return config, bert_params(config, weights, directory, prefix)


def bert_params(
    config: bert.BertConfig,
    weights: Mapping[str, np.ndarray],
    directory: PathLike,
    prefix: str,
) -> Params:
  """Our tree from tensors named `{prefix}embeddings.…`, `{prefix}encoder.…`."""
  tree, emb = _Tree(weights, directory), config.emb_dim

  def norm(path: str, name: str) -> None:
    tree.take(f'{path}/scale', f'{prefix}{name}.weight', (emb,))
    tree.take(f'{path}/bias', f'{prefix}{name}.bias', (emb,))

  def dense(path: str, name: str, shape: tuple[int, int]) -> None:
    tree.take(f'{path}/kernel', f'{prefix}{name}.weight', shape, True)
    tree.take(f'{path}/bias', f'{prefix}{name}.bias', shape[1:])

  for ours, theirs, rows in (
      ('token', 'word', config.vocab_size),
      ('position', 'position', config.max_positions),
      ('type', 'token_type', config.type_vocab_size),
  ):
    tree.take(
        f'{ours}_embedder/embedding',
        f'{prefix}embeddings.{theirs}_embeddings.weight', (rows, emb),
    )
  norm('embedding_layer_norm', 'embeddings.LayerNorm')
  for i in range(config.num_layers):
    ours, theirs = f'layers_{i}', f'encoder.layer.{i}'
    for name in ('query', 'key', 'value'):
      dense(f'{ours}/attention/{name}', f'{theirs}.attention.self.{name}', (emb, emb))
    dense(f'{ours}/attention/out', f'{theirs}.attention.output.dense', (emb, emb))
    norm(f'{ours}/attention_layer_norm', f'{theirs}.attention.output.LayerNorm')
    dense(f'{ours}/mlp/wi', f'{theirs}.intermediate.dense', (emb, config.mlp_dim))
    dense(f'{ours}/mlp/wo', f'{theirs}.output.dense', (config.mlp_dim, emb))
    norm(f'{ours}/mlp_layer_norm', f'{theirs}.output.LayerNorm')
  return tree.params()
