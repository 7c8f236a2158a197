"""Checkpoints of the original Atlas: `model.pth.tar`, reader and retriever.

The file holds the state of both models beside the optimiser's, the scheduler's
and the options of the run, all of which stay unread:

  reader.shared.weight, reader.encoder.block.0.…, reader.lm_head.weight
  retriever.contriever.…                                   tied towers
  retriever.query_contriever.…, retriever.passage_contriever.…     two towers

Sharded runs put `module.` behind `reader.` and `retriever.`. Released weights
were trained with a LayerNorm whose second moment is not centred
(`BertConfig.second_moment_layer_norm`), which is set here.
"""

from __future__ import annotations

import dataclasses
import os
import re

import numpy as np

from ralm_jax.files import byte_streams
from ralm_jax.interop import part as part_lib, tensor_maps
from ralm_jax.interop.files.tensor_source import TensorInfo, TensorSource
from ralm_jax.interop.files.torch_archive import StoredTensor, TorchArchive
from ralm_jax.interop.tensor_maps import Entry
from ralm_jax.models.bert import BertConfig
from ralm_jax.models.t5 import T5Config

PathLike = str | os.PathLike[str]

FILE_NAME = 'model.pth.tar'
_TIED = 'retriever.contriever.'
_TOWERS = {
  'query_encoder': 'retriever.query_contriever.',
  'passage_encoder': 'retriever.passage_contriever.',
}
_HEAD_DIM = 64


@dataclasses.dataclass(frozen=True)
class AtlasModel:
  """What an Atlas checkpoint holds."""

  reader_config: T5Config
  retriever_config: BertConfig | None  # Of the towers; None in a closed-book checkpoint.
  tied: bool


class AtlasSource(TensorSource):
  """Tensors of reader and retriever by their original names, no `module.`."""

  def __init__(self, path: str):
    self.description = path
    byte_streams.check_fetched(path)
    self._archive = TorchArchive(path)
    value = self._archive.value
    model = value.get('model') if isinstance(value, dict) else None
    if not isinstance(model, dict):
      found = sorted(map(str, value))[:8] if isinstance(value, dict) else (type(value).__name__)
      raise ValueError(
        f"{path} is no checkpoint of Atlas: expected the tensors under 'model', found {found}."
      )
    self._index: dict[str, StoredTensor] = {}
    for name, tensor in model.items():
      if isinstance(tensor, StoredTensor):
        name = re.sub(r'(^|\.)module\.', r'\1', name)
        if name in self._index:
          raise ValueError(f'{path} holds {name!r} twice, with and without `module.`.')
        self._index[name] = tensor

  def info(self, name: str) -> TensorInfo:
    return self._index[name].info

  def __getitem__(self, name: str) -> np.ndarray:
    return self._archive.read(self._index[name])


def find(path: PathLike) -> str | None:
  """The checkpoint file that a path names; None where it names none.

  That is `model.pth.tar` itself, its folder, or the folder of a run (`checkpoint/latest`, else the
  newest `checkpoint/step-<n>`).
  """
  path = os.fspath(path)
  if os.path.isfile(path):
    return path if path.endswith('.pth.tar') else None
  steps = os.path.join(path, 'checkpoint')
  numbered = sorted(
    (int(match[1]), match[0])
    for name in (os.listdir(steps) if os.path.isdir(steps) else ())
    if (match := re.fullmatch(r'step-(\d+)', name))
  )
  names = ['latest', *(name for _, name in reversed(numbered))]
  files = [os.path.join(f, FILE_NAME) for f in (path, *(os.path.join(steps, n) for n in names))]
  return next(filter(os.path.isfile, files), None)


def open_checkpoint(path: PathLike) -> AtlasSource:
  """Opens a checkpoint; reads no tensor.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is truncated, of another kind, or holds something that is
      neither a tensor nor plain data (nothing is ever executed).
  """
  file = find(path) or os.fspath(path)
  if os.path.isdir(file) or not os.path.exists(file):
    raise FileNotFoundError(
      f'{file} holds no {FILE_NAME}, nor checkpoint/latest/{FILE_NAME}.'
      if os.path.isdir(file)
      else f'{file} does not exist.'
    )
  source = AtlasSource(file)
  if 'reader.shared.weight' not in source:
    raise ValueError(
      f'{file} is no checkpoint of Atlas: it has no tensor '
      f"'reader.shared.weight', found {sorted(source)[:4]}."
    )
  return source


def describe(source: TensorSource, retriever_heads: int | None = None) -> AtlasModel:
  """The configuration that the tensors tell.

  The checkpoint does not say it. One activation means T5 1.0 (relu), a gated one T5 1.1 or
  lm-adapt (gelu); `retriever_heads` is None for heads of size 64, as in every BERT of Google's.

  Raises:
    ValueError: a tensor is missing, or the number of heads does not fit.
  """
  tied = any(name.startswith(_TIED) for name in source)
  two = [p for p in _TOWERS.values() if any(name.startswith(p) for name in source)]
  if len(two) == 1 or (tied and two):
    raise ValueError(
      f'{source.description} has the towers {", ".join([_TIED] * tied + two)}; '
      'expected one of queries and one of passages, or one of both.'
    )
  retriever = None
  if tied or two:
    retriever = _bert_config(source, _TIED if tied else two[0], retriever_heads)
  return AtlasModel(_t5_config(source, 'reader.'), retriever, tied)


def entries(model: AtlasModel) -> dict[str, list[Entry]]:
  """Which tensors are which parameters, by part.

  Parts are 'reader', and 'retriever' where tied, else 'query_encoder' and
  'passage_encoder'; there is no part for what the checkpoint lacks.
  """
  maps = {'reader': tensor_maps.t5_entries(model.reader_config, 'reader.')}
  if model.retriever_config is not None:
    for part, prefix in ({'retriever': _TIED} if model.tied else _TOWERS).items():
      maps[part] = tensor_maps.bert_entries(model.retriever_config, prefix)
  return maps


def _shape(source: TensorSource, name: str) -> tuple[int, ...]:
  if name not in source:
    raise ValueError(
      f'{source.description} has no tensor {name!r}, which every checkpoint '
      'of Atlas has; is it complete?'
    )
  return source.info(name).shape


def _depth(source: TensorSource, prefix: str) -> int:
  """Number of layers named `prefix<i>.`."""
  numbers = {
    int(match[1]) for name in source if (match := re.match(rf'{re.escape(prefix)}(\d+)\.', name))
  }
  if not numbers or numbers != set(range(len(numbers))):
    raise ValueError(
      f'{source.description} has the layers {sorted(numbers)} of {prefix}, '
      'expected 0, 1, 2 and so on.'
    )
  return len(numbers)


def _t5_config(source: TensorSource, prefix: str) -> T5Config:
  vocab_size, emb_dim = _shape(source, f'{prefix}shared.weight')
  block = f'{prefix}encoder.block.0.layer'
  buckets, num_heads = _shape(source, f'{block}.0.SelfAttention.relative_attention_bias.weight')
  inner = _shape(source, f'{block}.0.SelfAttention.q.weight')[0]
  if inner % num_heads:
    raise ValueError(
      f'{source.description}: {inner} attention features are not those of {num_heads} heads.'
    )
  dense = f'{block}.1.DenseReluDense'
  gated = f'{dense}.wi_0.weight' in source
  head, embedding = f'{prefix}lm_head.weight', f'{prefix}shared.weight'
  # Only T5 1.0 ties its head; the others' is not read to find out, and missing if it is not there.
  tied = not gated and (head not in source or part_lib.equal(source, head, embedding))
  return T5Config(
    vocab_size=vocab_size,
    emb_dim=emb_dim,
    num_heads=num_heads,
    head_dim=inner // num_heads,
    mlp_dim=_shape(source, f'{dense}.{"wi_0" if gated else "wi"}.weight')[0],
    num_encoder_layers=_depth(source, f'{prefix}encoder.block.'),
    num_decoder_layers=_depth(source, f'{prefix}decoder.block.'),
    mlp_activations=('gelu', 'linear') if gated else ('relu',),
    logits_via_embedding=tied,
    relative_attention_num_buckets=buckets,
  )


def _bert_config(source: TensorSource, prefix: str, heads: int | None) -> BertConfig:
  embeddings = f'{prefix}embeddings'
  vocab_size, emb_dim = _shape(source, f'{embeddings}.word_embeddings.weight')
  if heads is None:
    if emb_dim % _HEAD_DIM:
      raise ValueError(
        f'{source.description}: the retriever has {emb_dim} features, no multiple of {_HEAD_DIM}, '
        'so its number of attention heads must be given (retriever_heads).'
      )
    heads = emb_dim // _HEAD_DIM
  return BertConfig(
    vocab_size=vocab_size,
    emb_dim=emb_dim,
    num_heads=heads,
    num_layers=_depth(source, f'{prefix}encoder.layer.'),
    mlp_dim=_shape(source, f'{prefix}encoder.layer.0.intermediate.dense.weight')[0],
    max_positions=_shape(source, f'{embeddings}.position_embeddings.weight')[0],
    type_vocab_size=_shape(source, f'{embeddings}.token_type_embeddings.weight')[0],
    second_moment_layer_norm=True,
  )
