"""Hugging Face folders out: what `transformers` loads, with the same logits.

Weights are written tensor by tensor, so that exporting needs memory for the
largest one; a folder is written aside and renamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import os

import numpy as np

from ralm_jax.files import atomic_files, new_folder
from ralm_jax.interop import decoder_maps, huggingface_configs, huggingface_decoder, tensor_maps
from ralm_jax.interop.files import safetensors_file
from ralm_jax.interop.files.tensor_source import TensorInfo, TensorSource
from ralm_jax.interop.files.weight_files import SAFETENSORS
from ralm_jax.interop.huggingface_configs import Json
from ralm_jax.interop.part import Part
from ralm_jax.interop.tensor_maps import Entry
from ralm_jax.models.bert import BertConfig

PathLike = str | os.PathLike[str]
# As transformers shards.
MAX_SHARD_BYTES = 5_000_000_000
_DPR_SIDES = {
  'query_encoder': ('question_encoder.', 'DPRQuestionEncoder'),
  'passage_encoder': ('ctx_encoder.', 'DPRContextEncoder'),
}


def export_map(side: str, part: Part) -> tuple[Json, list[Entry]]:
  """config.json and map of a part as a Hugging Face folder.

  Raises ValueError where Hugging Face has no such model.
  """
  if part.kind == 't5':
    return huggingface_configs.t5_json(part.config), tensor_maps.t5_entries(part.config)
  if part.kind == 'bart':
    return huggingface_configs.bart_json(part.config), tensor_maps.bart_entries(part.config)
  if part.kind == 'decoder':
    names = decoder_maps.huggingface_names(part.config)
    return huggingface_decoder.decoder_json(part.config), decoder_maps.entries(part.config, names)
  if not part.normalize and (part.pooling == 'cls' or part.config.projection_dim):
    return dpr_map(part.config, 'query_encoder' if side == 'retriever' else side)
  return bert_map(part.config)


def bert_map(config: BertConfig) -> tuple[Json, list[Entry]]:
  """config.json and map of a BERT folder (without pooler); errors as `export_map`."""
  _check_layer_norm(config)
  if config.projection_dim:
    raise ValueError(
      'A BERT folder has no projection (BertConfig.projection_dim '
      f'{config.projection_dim}); write it as DPR.'
    )
  return huggingface_configs.bert_json(config), tensor_maps.bert_entries(config)


def dpr_map(config: BertConfig, side: str) -> tuple[Json, list[Entry]]:
  """config.json and map of a DPR folder; errors as `export_map`."""
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
      "This retriever has the released Atlas code's LayerNorm (second_moment_layer_norm), which no "
      'Hugging Face class has; exported it would give other embeddings. To have it all the same '
      'set second_moment_layer_norm = False (ralm convert --layer_norm standard).'
    )


def write_modules(directory: PathLike, part: Part, prompts: Mapping[str, str]) -> None:
  """Adds to a BERT folder what makes it sentence-transformers': pooling, scale and prompts."""
  config, pooling = part.config, part.pooling or 'mean'
  kinds = {'': 'Transformer', '1_Pooling': 'Pooling'}
  if part.normalize:
    kinds['2_Normalize'] = 'Normalize'
  length = part.text.get('retriever_passage_length', config.max_positions)
  modules = [
    {'idx': i, 'name': str(i), 'path': path, 'type': f'sentence_transformers.models.{kind}'}
    for i, (path, kind) in enumerate(kinds.items())
  ]
  files = {
    'modules.json': modules,
    'sentence_bert_config.json': {'max_seq_length': length, 'do_lower_case': False},
    'config_sentence_transformers.json': {'prompts': dict(prompts)},
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
    atomic_files.write_json(os.path.join(directory, name), content, indent=2)


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

  Raises:
    FileExistsError: there is something in the directory.
    ValueError: the parameters do not fit the configuration.
  """
  tensors = _foreign_tensors(entries, source)
  with new_folder.creating(directory) as aside:
    path = os.path.join(aside, 'config.json')
    atomic_files.write_json(path, config, indent=2, sort_keys=True)
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
      index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
      path = os.path.join(aside, f'{SAFETENSORS}.index.json')
      atomic_files.write_json(path, index, indent=2, sort_keys=True)


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
  offset = group[0].offset
  piece = pieces[0] - np.asarray(offset, info.dtype) if offset else pieces[0]
  return np.ascontiguousarray(piece).reshape(info.shape)


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
