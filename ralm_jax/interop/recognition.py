"""Which checkpoint is at a path, by its content."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

from ralm_jax.checkpoints import specification
from ralm_jax.checkpoints.specification import Specification
from ralm_jax.interop import (
  decoder_maps,
  gguf_decoder,
  huggingface,
  huggingface_decoder,
  part as part_lib,
)
from ralm_jax.interop.files import weight_files
from ralm_jax.interop.files.tensor_source import TensorSource
from ralm_jax.interop.part import Part
from ralm_jax.interop.run_source import RunSource
from ralm_jax.interop.tensor_maps import Entry
from ralm_jax.models.bart import BartConfig
from ralm_jax.models.decoder_config import DecoderConfig

SIDES = ('reader', 'retriever', 'query_encoder', 'passage_encoder')
ENCODERS = SIDES[1:]
_EXPECTED = (
  'expected a MODEL_DIR of ours, a Hugging Face folder (config.json), a sentence-transformers '
  'folder (modules.json), a GGUF file, an Atlas model.pth.tar or a T5X checkpoint'
)
# Of `TextConfig`, what belongs to a reader and what to an encoder.
_READER_TEXT = tuple(
  'question_format target_format reader_format reader_query_length passage_length target_length '
  'n_passages passage_format prompt_style system_prompt demonstration_separator stop_strings '
  'prompt_length'.split()
)
_ENCODER_TEXT = tuple('retriever_format query_prompt query_length retriever_passage_length'.split())
_SCORES = ('scale_scores', 'temperature_score')
# A file of a Hugging Face folder.
_INNER_FILE = re.compile(r'.*\.(safetensors|json)|pytorch_model.*\.bin|spiece\.model|vocab\.txt')
ATLAS = 'Atlas checkpoint'


@dataclasses.dataclass(frozen=True)
class Recognised:
  """What is at a path."""

  format: str  # For people ('Hugging Face BART').
  parts: dict[str, Part]  # By side; one part, or a whole model.
  whole: bool = False  # It is a whole model, not one part for any side.
  claimed: tuple[Part, ...] = ()  # All parts of the checkpoint, also those not asked for.
  spec: Specification | None = None  # Of a run of ours.
  # What the format says of the whole model (`RetrievalLM`).
  model_fields: dict[str, Any] = dataclasses.field(default_factory=dict)


def recognise(
  path: str, as_side: str | None = None, retriever_heads: int | None = None
) -> Recognised:
  """Finds the models at a path; reads (almost) no weights.

  Raises:
    FileNotFoundError: there is nothing.
    ValueError: it is no checkpoint that we know, or has no such side.
  """
  if not path:
    raise ValueError(f'--from {as_side or ""}= names no path; {_EXPECTED}.')
  if os.path.isfile(path) and _INNER_FILE.fullmatch(os.path.basename(path)) and not _alone(path):
    raise ValueError(
      f'{path} is one file of a checkpoint; give its folder, {os.path.dirname(path) or "."}.'
    )
  if not os.path.exists(path):
    raise FileNotFoundError(f'{path} does not exist; {_EXPECTED}.')
  found = _recognise(os.path.normpath(path), retriever_heads)
  found = dataclasses.replace(found, claimed=tuple(found.parts.values()))
  if as_side is None:
    return found
  if as_side != 'reader':
    # How a whole model reads is its reader's.
    found = dataclasses.replace(found, model_fields={})
  if found.whole:
    return dataclasses.replace(
      found, parts={as_side: _side_of(found, as_side, path)}, spec=None, whole=False
    )
  ((side, part),) = found.parts.items()
  if (side == 'reader') != (as_side == 'reader'):
    expected = 'reader (T5, BART, decoder-only)' if as_side == 'reader' else 'BERT encoder'
    raise ValueError(f'{path} is a {found.format}, expected a {expected} for {as_side}=.')
  if part.side and as_side in ENCODERS[1:] and part.side != as_side:
    raise ValueError(
      f'{path} is a {found.format} {part.side}, given as {as_side}=; are the two swapped?'
    )
  return dataclasses.replace(found, parts={as_side: part})


def _alone(path: str) -> bool:
  """Whether a file stands for its folder: weights with their configuration beside them."""
  beside = {name: os.path.join(os.path.dirname(path), name) for name in ('config', 'modules')}
  return (
    path.endswith('.safetensors')
    and os.path.isfile(f'{beside["config"]}.json')
    and not os.path.isfile(f'{beside["modules"]}.json')
  )


def _side_of(found: Recognised, side: str, path: str) -> Part:
  if side in found.parts:
    return found.parts[side]
  if side in ENCODERS and 'retriever' in found.parts:
    return found.parts['retriever']
  raise ValueError(f'{path} ({found.format}) has no {side}; it has {", ".join(found.parts)}.')


def _recognise(path: str, retriever_heads: int | None) -> Recognised:
  # Formats of other packages are read where there may be one, so that
  # converting a Hugging Face folder imports nothing else.
  if path.endswith('.safetensors'):
    return _huggingface(path)
  if os.path.isdir(path):
    if is_run(path):
      return _run(path)
    if os.path.isfile(os.path.join(path, 'modules.json')):
      part = huggingface.open_sentence_transformer(path)
      return Recognised('sentence-transformers folder', {'retriever': part})
    if os.path.isfile(os.path.join(path, 'config.json')) and gguf_decoder.find(path) is None:
      return _huggingface(path)
  if gguf_decoder.find(path) is not None:
    return _decoder(path, 'GGUF')
  from ralm_jax.interop import atlas

  if atlas.find(path):
    return _atlas(path, retriever_heads)
  return _t5x(path)


def is_run(path: str) -> bool:
  """Whether a folder is a MODEL_DIR of ours or a checkpoint in one."""
  if re.fullmatch(r'checkpoint_\d+', os.path.basename(path)):
    path = os.path.dirname(path)
  return os.path.isfile(os.path.join(path, specification.FILE))


def _run(path: str) -> Recognised:
  source = RunSource(path)
  spec = Specification.load(source.directory)
  model = spec.model
  kind = reader_kind(model.reader_config)
  text = dataclasses.asdict(spec.text)
  reader_text, encoder_text = (
    {name: text[name] for name in names} for names in (_READER_TEXT, _ENCODER_TEXT)
  )
  parts = {
    'reader': Part(
      kind,
      model.reader_config,
      source,
      own_entries(source, 'reader/', model.reader_config),
      vocabulary=spec.tokenizer.reader_vocabulary,
      text=reader_text,
    )
  }
  towers = {side: f'retriever/{side}/' for side in ENCODERS[1:]}
  for side, prefix in ({'retriever': 'retriever/'} if model.tied_retriever else towers).items():
    parts[side] = Part(
      'bert',
      model.retriever_config,
      source,
      own_entries(source, prefix),
      pooling=model.pooling,
      normalize=model.normalize_embeddings,
      vocabulary=spec.tokenizer.retriever_vocabulary,
      text=encoder_text | {'query_format': spec.text.retriever_question_format},
      run_scores={name: getattr(model, name) for name in _SCORES},
    )
  return Recognised('run', parts, whole=True, spec=spec, model_fields={'reading': model.reading})


def reader_kind(config: Any) -> str:
  """What a `Part` of such a reader is called."""
  kinds = {BartConfig: 'bart', DecoderConfig: 'decoder'}
  return next((kind for of, kind in kinds.items() if isinstance(config, of)), 't5')


def own_entries(source: TensorSource, prefix: str = '', config: Any = None) -> list[Entry]:
  """The map of parameters of ours to themselves below a prefix, layer by layer.

  `config` is of a decoder-only model, whose layers repeat a pattern.
  """
  entries = []

  def unscanned(path: str, row: int | None) -> str:
    if isinstance(config, DecoderConfig):
      return decoder_maps.unscanned(config, path, row)
    if row is None:
      return path
    before, _, after = f'/{path}'.partition('/layers/')
    return f'{before}/layers_{row}/{after}'[1:]

  for name in source:
    if not name.startswith(prefix):
      continue
    path, shape = name.removeprefix(prefix), source.info(name).shape
    if '/layers/' not in f'/{path}':
      entries.append(Entry(unscanned(path, None), name, shape))
      continue
    entries += [
      Entry(unscanned(path, row), name, shape[1:], part=(0, row)) for row in range(shape[0])
    ]
  return entries


def _huggingface(path: str) -> Recognised:
  folder = os.path.dirname(path) if path.endswith('.safetensors') else path
  raw = weight_files.read_json(os.path.join(folder, 'config.json'))
  kind = raw.get('model_type')
  if kind == 't5':
    return Recognised('Hugging Face T5', {'reader': huggingface.open_t5(path)})
  if kind == 'bart':
    reader = {'reader': huggingface.open_bart(path)}
    return Recognised('Hugging Face BART', reader, model_fields={'reading': 'rag_token'})
  if kind in (*huggingface_decoder.MODEL_TYPES, 'gemma3'):
    return _decoder(path, 'Hugging Face')
  if kind in ('bert', 'contriever'):
    return Recognised('Hugging Face BERT', {'retriever': huggingface.open_bert(path)})
  if kind == 'dpr':
    part = huggingface.open_dpr(path)
    return Recognised('Hugging Face DPR', {part.side or 'query_encoder': part})
  if kind == 'rag':
    rag = huggingface.open_rag(path)
    fields = {'reading': f'rag_{rag.marginalization or "token"}'}
    return Recognised('Hugging Face RAG', rag.parts, whole=True, model_fields=fields)
  raise ValueError(
    f'{folder}/config.json is of model_type {kind!r}, expected t5, bart, bert, '
    f'contriever, dpr, rag, {", ".join(huggingface_decoder.MODEL_TYPES)} or gemma3.'
  )


def _decoder(path: str, where: str) -> Recognised:
  reader = {'reader': huggingface.open_decoder(path)}
  return Recognised(f'{where} decoder', reader, model_fields={'reading': 'in_context'})


def _atlas(path: str, retriever_heads: int | None) -> Recognised:
  from ralm_jax.interop import atlas

  source = atlas.open_checkpoint(path)
  model = atlas.describe(source, retriever_heads)
  parts = {
    side: Part('t5', model.reader_config, source, entries, text=part_lib.ATLAS_TEXT)
    if side == 'reader'
    else Part(
      'bert',
      model.retriever_config,
      source,
      entries,
      pooling='mean',
      text=part_lib.ATLAS_ENCODER_TEXT,
    )
    for side, entries in atlas.entries(model).items()
  }
  return Recognised(ATLAS, parts, whole=True)


def _t5x(path: str) -> Recognised:
  from ralm_jax.interop import t5x

  source = t5x.open_checkpoint(path)
  if source is None:
    found = sorted(os.listdir(path))[:8] if os.path.isdir(path) else 'a file'
    raise ValueError(f'{path} is no checkpoint: {_EXPECTED}; found {found}.')
  config = t5x.t5_config(source)
  reader = Part('t5', config, source, t5x.t5_entries(source, config))
  return Recognised('T5X checkpoint', {'reader': reader})
