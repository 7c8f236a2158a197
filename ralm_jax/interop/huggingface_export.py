"""Hugging Face folders out: what `transformers` loads, with the same logits.

Weights are written tensor by tensor, so that exporting needs memory for the
largest one; a folder is written aside and renamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import json
import os
from typing import Any

import flax.traverse_util
import numpy as np

from ralm_jax.files import new_folder
from ralm_jax.interop import huggingface_configs, tensor_maps
from ralm_jax.interop.files import safetensors_file
from ralm_jax.interop.files.tensor_source import ArraySource, TensorInfo, TensorSource
from ralm_jax.interop.files.weight_files import SAFETENSORS
from ralm_jax.interop.huggingface_configs import Json
from ralm_jax.interop.tensor_maps import Entry
from ralm_jax.models.bart import BartConfig
from ralm_jax.models.bert import BertConfig
from ralm_jax.models.t5 import T5Config

Params = Mapping[str, Any]
PathLike = str | os.PathLike[str]
# As transformers shards.
MAX_SHARD_BYTES = 5_000_000_000
_DPR_SIDES = {
  'query_encoder': ('question_encoder.', 'DPRQuestionEncoder'),
  'passage_encoder': ('ctx_encoder.', 'DPRContextEncoder'),
}


def save_t5(
  directory: PathLike, config: T5Config, params: Params, *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
  """Writes a folder that T5ForConditionalGeneration loads.

  Args:
    directory: to make; must not exist or be empty.
    config: of the model.
    params: our tree, scanned or not; a mapping of '/'-joined paths, too.
    max_shard_bytes: of one file.

  Raises:
    FileExistsError: there is something in the directory.
    ValueError: the parameters do not fit the configuration, or Hugging Face
      has no such model.
  """
  write(
    directory,
    huggingface_configs.t5_json(config),
    tensor_maps.t5_entries(config),
    source_of(params),
    max_shard_bytes=max_shard_bytes,
  )


def save_bart(
  directory: PathLike, config: BartConfig, params: Params, *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
  """Writes a folder that BartForConditionalGeneration loads; see `save_t5`."""
  write(
    directory,
    huggingface_configs.bart_json(config),
    tensor_maps.bart_entries(config),
    source_of(params),
    max_shard_bytes=max_shard_bytes,
  )


def save_bert(
  directory: PathLike, config: BertConfig, params: Params, *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
  """Writes a folder that BertModel loads (without pooler); see `save_t5`.

  Raises:
    ValueError: also for a projection, or for Atlas' LayerNorm, which BERT does
      not have.
  """
  raw, entries = bert_map(config)
  write(directory, raw, entries, source_of(params), max_shard_bytes=max_shard_bytes)


def bert_map(config: BertConfig) -> tuple[Json, list[Entry]]:
  """config.json and map of a BERT folder; ValueError as `save_bert`."""
  _check_layer_norm(config)
  if config.projection_dim:
    raise ValueError(
      'A BERT folder has no projection (BertConfig.projection_dim '
      f'{config.projection_dim}); write it as DPR (save_dpr).'
    )
  return huggingface_configs.bert_json(config), tensor_maps.bert_entries(config)


def write_modules(directory: PathLike, config: BertConfig, pooling: str) -> None:
  """Adds to a BERT folder what makes it sentence-transformers' normalised one.

  Args:
    directory: with config.json and weights.
    config: of the encoder.
    pooling: 'mean' or 'cls'.
  """
  kinds = {'': 'Transformer', '1_Pooling': 'Pooling', '2_Normalize': 'Normalize'}
  modules = [
    {'idx': i, 'name': str(i), 'path': path, 'type': f'sentence_transformers.models.{kind}'}
    for i, (path, kind) in enumerate(kinds.items())
  ]
  files = {
    'modules.json': modules,
    'sentence_bert_config.json': {'max_seq_length': config.max_positions, 'do_lower_case': False},
    '1_Pooling/config.json': {
      'word_embedding_dimension': config.emb_dim,
      'pooling_mode_cls_token': pooling == 'cls',
      'pooling_mode_mean_tokens': pooling == 'mean',
      'pooling_mode_max_tokens': False,
      'pooling_mode_mean_sqrt_len_tokens': False,
    },
  }
  for path in kinds:
    os.makedirs(os.path.join(directory, path), exist_ok=True)
  for name, content in files.items():
    with open(os.path.join(directory, name), 'w', encoding='utf-8') as file:
      json.dump(content, file, indent=2)
      file.write('\n')


def save_dpr(
  directory: PathLike,
  config: BertConfig,
  params: Params,
  *,
  side: str = 'query_encoder',
  max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
  """Writes a folder that DPRQuestionEncoder or DPRContextEncoder loads.

  Args:
    directory: as for `save_t5`.
    config: of the tower.
    params: of it.
    side: 'query_encoder' or 'passage_encoder'.
    max_shard_bytes: of one file.

  Raises:
    FileExistsError, ValueError: as `save_t5` and `save_bert`.
  """
  raw, entries = dpr_map(config, side)
  write(directory, raw, entries, source_of(params), max_shard_bytes=max_shard_bytes)


def dpr_map(config: BertConfig, side: str) -> tuple[Json, list[Entry]]:
  """config.json and map of a DPR folder; ValueError as `save_dpr`."""
  _check_layer_norm(config)
  if side not in _DPR_SIDES:
    raise ValueError(f'side {side!r} is unknown; choose one of {list(_DPR_SIDES)}.')
  prefix, architecture = _DPR_SIDES[side]
  raw = huggingface_configs.bert_json(config) | {
    'model_type': 'dpr',
    'architectures': [architecture],
    'projection_dim': config.projection_dim,
  }
  return raw, tensor_maps.bert_entries(config, f'{prefix}bert_model.', f'{prefix}encode_proj')


def _check_layer_norm(config: BertConfig) -> None:
  if config.second_moment_layer_norm:
    raise ValueError(
      "This retriever has the released Atlas code's LayerNorm "
      '(second_moment_layer_norm), which no Hugging Face class has; exported '
      'it would give other embeddings. To have it all the same set '
      'second_moment_layer_norm = False (ralm convert --layer_norm standard).'
    )


def source_of(params: Params, description: str = 'the parameters') -> TensorSource:
  """Our tree as a source named by unscanned paths."""
  return UnscannedSource(ArraySource(flatten(params), description))


def flatten(params: Params) -> dict[str, Any]:
  """Leaves by '/'-joined path."""
  return flax.traverse_util.flatten_dict(dict(params), sep='/')


class UnscannedSource(TensorSource):
  """Our parameters by unscanned paths, whether their layers are scanned or not.

  `…/layers_3/…` is slice 3 of `…/layers/…` where that is what there is.
  """

  def __init__(self, source: TensorSource):
    self._source = source
    self.description = source.description

  def _find(self, name: str) -> tuple[str, int | None]:
    if name in self._source:
      return name, None
    for piece in name.split('/'):
      if piece.startswith('layers_'):
        scanned = name.replace(f'/{piece}/', '/layers/', 1)
        if name.startswith(f'{piece}/'):
          scanned = 'layers/' + name.removeprefix(f'{piece}/')
        row = int(piece.removeprefix('layers_'))
        if scanned in self._source and row < self._source.info(scanned).shape[0]:
          return scanned, row
    raise KeyError(name)

  def info(self, name: str) -> TensorInfo:
    found, row = self._find(name)
    info = self._source.info(found)
    return info if row is None else TensorInfo(info.shape[1:], info.dtype)

  def __getitem__(self, name: str) -> np.ndarray:
    found, row = self._find(name)
    if row is None:
      return self._source[found]
    return self._source.part(found, 0, row)

  def __iter__(self) -> Iterator[str]:
    for name in self._source:
      if '/layers/' in f'/{name}':
        for row in range(self._source.info(name).shape[0]):
          yield f'/{name}'.replace('/layers/', f'/layers_{row}/', 1)[1:]
      else:
        yield name

  def __len__(self) -> int:
    return sum(1 for _ in self)


def write(
  directory: PathLike,
  config: Json,
  entries: Sequence[Entry],
  source: TensorSource,
  *,
  max_shard_bytes: int = MAX_SHARD_BYTES,
  on_tensor: Callable[[int], object] | None = None,
) -> None:
  """Writes config.json and the weights of a map.

  Args:
    directory: as for `save_t5`.
    config: the content of config.json.
    entries: the map.
    source: our parameters by the paths of the entries.
    max_shard_bytes: of one file.
    on_tensor: called with the bytes of every tensor written.

  Raises:
    FileExistsError, ValueError: as `save_t5`.
  """
  tensors = _foreign_tensors(entries, source)
  with new_folder.creating(directory) as aside:
    with open(os.path.join(aside, 'config.json'), 'w', encoding='utf-8') as file:
      json.dump(config, file, indent=2, sort_keys=True)
      file.write('\n')
    shards = _shards({n: info for n, (info, _) in tensors.items()}, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
      name = SAFETENSORS
      if len(shards) > 1:
        name = f'model-{number:05}-of-{len(shards):05}.safetensors'
      weight_map |= dict.fromkeys(shard, name)

      def arrays(shard: Mapping[str, TensorInfo] = shard) -> Iterator[np.ndarray]:
        for tensor, info in shard.items():
          yield _foreign(source, tensors[tensor][1], info)
          if on_tensor is not None:
            on_tensor(info.nbytes)

      safetensors_file.write(os.path.join(aside, name), shard, arrays(), {'format': 'pt'})
    if len(shards) > 1:
      total = sum(info.nbytes for info, _ in tensors.values())
      path = os.path.join(aside, f'{SAFETENSORS}.index.json')
      with open(path, 'w', encoding='utf-8') as file:
        json.dump(
          {'metadata': {'total_size': total}, 'weight_map': weight_map},
          file,
          indent=2,
          sort_keys=True,
        )


def _foreign_tensors(
  entries: Sequence[Entry], source: TensorSource
) -> dict[str, tuple[TensorInfo, list[Entry]]]:
  """Foreign names with what they are made of, all shapes checked."""
  groups: dict[str, list[Entry]] = {}
  for entry in entries:
    if entry.path not in source:
      raise ValueError(
        f'{source.description} has no parameter {entry.path}, which the configuration calls for.'
      )
    found = source.info(entry.path).shape
    if found != entry.shape:
      raise ValueError(
        f'{source.description}: parameter {entry.path} has shape {found}, '
        f'expected {entry.shape} by the configuration.'
      )
    groups.setdefault(entry.name, []).append(entry)
  known = {entry.path for entry in entries}
  unknown = [path for path in source if path not in known]
  if unknown:
    raise ValueError(
      f'{source.description}: parameter {unknown[0]} has no place in a '
      'Hugging Face folder by the configuration.'
    )
  result = {}
  for name, group in groups.items():
    group.sort(key=lambda entry: entry.part or (0, 0))
    shape, dtype = group[0].foreign_shape, source.info(group[0].path).dtype
    if group[0].part is not None:
      axis = group[0].part[0]
      shape = shape[:axis] + (len(group),) + shape[axis:]
    result[name] = TensorInfo(shape, dtype), group
  return result


def _foreign(source: TensorSource, group: Sequence[Entry], info: TensorInfo) -> np.ndarray:
  pieces = [source[e.path].T if e.transpose else source[e.path] for e in group]
  if group[0].part is not None:
    return np.stack(pieces, axis=group[0].part[0])
  return np.ascontiguousarray(pieces[0]).reshape(info.shape)


def _shards(tensors: Mapping[str, TensorInfo], max_bytes: int) -> list[dict[str, TensorInfo]]:
  shards: list[dict[str, TensorInfo]] = [{}]
  size = 0
  for name, info in tensors.items():
    if shards[-1] and size + info.nbytes > max_bytes:
      shards.append({})
      size = 0
    shards[-1][name] = info
    size += info.nbytes
  return shards
