"""Writing a conversion, tensor by tensor: a run folder, or Hugging Face ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import math
import os
from typing import Any

from flax import linen as nn
import flax.traverse_util
import jax
import numpy as np

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.data.text.vocabularies import Vocabulary
from ralm_jax.files import new_folder, progress as progress_lib
from ralm_jax.interop import (
  huggingface_export,
  huggingface_tokenizers,
  sentence_transformers,
  streaming,
  targets as targets_lib,
  tensor_maps,
)
from ralm_jax.interop.composing import Gathered
from ralm_jax.interop.files.tensor_source import TensorInfo, TensorSource
from ralm_jax.interop.huggingface_configs import Json
from ralm_jax.interop.part import Part
from ralm_jax.interop.streaming import LazyParameter
from ralm_jax.interop.targets import Target
from ralm_jax.interop.tensor_maps import Entry


def write_run(
  directory: str, gathered: Gathered, spec: Specification, *, seed: int = 0, progress: bool = True
) -> None:
  """Writes MODEL_DIR with checkpoint_0, model.json and the vocabularies.

  Raises:
    FileExistsError: there is something in the directory.
    ValueError: a tensor cannot be read, or the parts are not all of the model.
  """
  abstract = targets_lib.abstract_params(spec.model)
  targets = _by_path(gathered)
  # A side that no checkpoint brings is missing whole; that was allowed.
  absent = {path for path in abstract if path not in targets}
  _check_complete(targets, abstract)
  incomplete = absent | {
    path for path, rows in targets.items() if any(target.missing for target in rows.values())
  }
  initial = _initialise(spec.model, incomplete, seed)
  total = sum(map(_nbytes, abstract.values()))
  with new_folder.creating(directory) as aside, _bar(total, progress) as bar:
    params = {
      tuple(path.split('/')): LazyParameter(
        tuple(leaf.shape),
        np.dtype(leaf.dtype),
        _pieces(targets.get(path), leaf, initial.get(path), bar.update),
      )
      for path, leaf in abstract.items()
    }
    spec.save(aside)
    streaming.save(
      aside,
      flax.traverse_util.unflatten_dict(params),
      {'converted_from': [path for path, _ in gathered.sources]},
    )


def check_complete(gathered: Gathered, spec: Specification) -> None:
  """Raises ValueError where the parts are not parameters of the model."""
  _check_complete(_by_path(gathered), targets_lib.abstract_params(spec.model))


def _by_path(gathered: Gathered) -> dict[str, dict[int | None, Target]]:
  targets: dict[str, dict[int | None, Target]] = {}
  for target in targets_lib.of(gathered):
    targets.setdefault(target.path, {})[target.row] = target
  return targets


def _check_complete(
  targets: dict[str, dict[int | None, Target]], abstract: dict[str, jax.ShapeDtypeStruct]
) -> None:
  """Raises ValueError where maps and model disagree."""
  for path, rows in targets.items():
    if path not in abstract:
      raise ValueError(
        f'{path} is not a parameter of the model; is the checkpoint of another version?'
      )
    shape = next(iter(rows.values())).entry.shape
    if None not in rows:
      shape = (len(rows), *shape)
    if shape != abstract[path].shape:
      raise ValueError(f'{path} would have shape {shape}, the model has {abstract[path].shape}.')


def _nbytes(leaf: jax.ShapeDtypeStruct) -> int:
  return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def _bar(total: int, show: bool) -> Any:
  return progress_lib.bar(desc='convert', unit='B', unit_scale=True, show=show, total=total)


def _initialise(model: Any, paths: set[str], seed: int) -> dict[str, np.ndarray]:
  """Random values of the parameters at some paths; the others take no memory."""
  if not paths:
    return {}

  def init(rng: jax.Array) -> dict[str, jax.Array]:
    tree = nn.meta.unbox(model.init(rng))
    flat = flax.traverse_util.flatten_dict(tree, sep='/')
    return {path: flat[path] for path in paths}

  return {path: np.asarray(value) for path, value in jax.jit(init)(jax.random.key(seed)).items()}


def _pieces(
  rows: dict[int | None, Target] | None,
  leaf: jax.ShapeDtypeStruct,
  initial: np.ndarray | None,
  done: Callable[[int], Any],
) -> Callable[[], Iterator[tuple[tuple[int, ...], np.ndarray]]]:

  def read() -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    if rows is None:
      assert initial is not None
      yield (), initial
      done(initial.nbytes)
      return
    for row, target in rows.items():
      index = () if row is None else (row,)
      if target.missing:
        assert initial is not None
        array = initial[index]
      else:
        array = tensor_maps.read(target.part.source, target.entry, np.dtype(leaf.dtype), copy=False)
      yield index, array
      done(array.nbytes)

  return read


class PartSource(TensorSource):
  """The parameters of a part by our (unscanned) paths."""

  def __init__(self, part: Part):
    self._source = part.source
    self._index = {entry.path: entry for entry in part.entries}
    self.description = part.source.description

  def info(self, name: str) -> TensorInfo:
    return TensorInfo(self._index[name].shape, np.dtype(np.float32))

  def __getitem__(self, name: str) -> np.ndarray:
    return tensor_maps.read(self._source, self._index[name], copy=False)


def write_huggingface(
  directory: str,
  gathered: Gathered,
  found_vocabularies: dict[str, Vocabulary | None],
  *,
  max_shard_bytes: int = huggingface_export.MAX_SHARD_BYTES,
  progress: bool = True,
) -> list[str]:
  """Writes DIR/reader, DIR/retriever, DIR/query_encoder, DIR/passage_encoder.

  Those that there are. Encoders whose embeddings are normalised are written in the layout of
  sentence-transformers, others that embed by their first token or project as DPR, the rest as BERT.

  Raises:
    FileExistsError: there is something in the directory.
    ValueError: Hugging Face has no such model.
  """
  parts = gathered.parts
  total = sum(4 * math.prod(entry.shape) for part in parts.values() for entry in part.entries)
  maps = export_maps(gathered)  # Before anything is written.
  with new_folder.creating(directory) as aside, _bar(total, progress) as bar:
    for side, part in parts.items():
      folder = os.path.join(aside, side)
      options: Any = {'max_shard_bytes': max_shard_bytes, 'on_tensor': bar.update}
      huggingface_export.write(folder, *maps[side], PartSource(part), **options)
      prompts = sentence_transformers.prompts(part.text)
      if part.normalize or (prompts and maps[side][0]['model_type'] == 'bert'):
        huggingface_export.write_modules(folder, part, prompts)
      vocabulary = found_vocabularies.get('reader' if side == 'reader' else 'retriever')
      if vocabulary is not None:
        if vocabulary.vocab_size > part.config.vocab_size:
          raise ValueError(
            f'The vocabulary {vocabulary.path} has {vocabulary.vocab_size} ids, the {side} '
            f'{part.config.vocab_size}; name its own with --{side}_vocabulary.'
          )
        huggingface_tokenizers.write(folder, vocabulary, part.kind)
  return list(parts)


def export_maps(gathered: Gathered) -> dict[str, tuple[Json, list[Entry]]]:
  """`huggingface_export.export_map` by side, with its errors."""
  return {side: huggingface_export.export_map(side, part) for side, part in gathered.parts.items()}
