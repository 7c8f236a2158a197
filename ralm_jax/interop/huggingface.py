"""Hugging Face folders in: T5, BART, decoder-only models, BERT, Contriever, DPR and RAG.

`open_*` finds a model in a folder without reading its weights (`ralm convert`
streams them), `load_*` reads it. All of them raise FileNotFoundError where a file is missing, and
ValueError for a truncated file, another architecture, and a tensor that is missing or of another
shape; keywords replace fields of the configuration (`dtype`, `dropout_rate`, …).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import os
import re
from typing import Any

import numpy as np

from ralm_jax.interop import (
  config_audit,
  config_fields,
  decoder_maps,
  gguf_decoder,
  huggingface_configs,
  huggingface_decoder,
  part as part_lib,
  sentence_transformers,
  tensor_maps,
)
from ralm_jax.interop.files import weight_files
from ralm_jax.interop.files.tensor_source import SupplementedSource, TensorSource
from ralm_jax.interop.files.weight_files import WeightFiles
from ralm_jax.interop.huggingface_configs import Json
from ralm_jax.interop.part import Part
from ralm_jax.interop.tensor_maps import Entry
from ralm_jax.models.bart import BartConfig
from ralm_jax.models.bert import BertConfig
from ralm_jax.models.decoder_config import DecoderConfig
from ralm_jax.models.t5 import T5Config

Params = dict[str, Any]
PathLike = str | os.PathLike[str]


def load_t5(directory: PathLike, **overrides: Any) -> tuple[T5Config, Params]:
  """T5 1.0, 1.1, lm-adapt or Flan: configuration and float32 parameters, unscanned."""
  part = open_t5(directory, **overrides)
  return part.config, part.read()


def load_bart(directory: PathLike, **overrides: Any) -> tuple[BartConfig, Params]:
  """BART; see `load_t5`."""
  part = open_bart(directory, **overrides)
  return part.config, part.read()


def load_decoder(path: PathLike, **overrides: Any) -> tuple[DecoderConfig, Params]:
  """Llama, Mistral, Qwen 2 and 3, Gemma 3 (text), of a folder or a GGUF file; see `load_t5`."""
  part = open_decoder(path, **overrides)
  return part.config, part.read()


def load_bert(directory: PathLike, **overrides: Any) -> tuple[BertConfig, Params]:
  """BERT or Contriever without its pooler, for `Bert` and a tied `DualEncoder`."""
  part = open_bert(directory, **overrides)
  return part.config, part.read()


def load_dpr(directory: PathLike, **overrides: Any) -> tuple[BertConfig, Params]:
  """One tower of DPR, a question or a context encoder.

  Its embedding is that of the first token (`pooling='cls'`), behind the
  projection where the checkpoint has one.
  """
  part = open_dpr(directory, **overrides)
  return part.config, part.read()


@dataclasses.dataclass(frozen=True)
class _Model:
  """A model in a folder, or a part of one."""

  raw: Json
  where: str
  source: TensorSource
  folders: tuple[str, ...]
  prefix: str = ''

  @classmethod
  def read(cls, directory: PathLike, model_types: tuple[str, ...]) -> _Model:
    path = folder = os.fspath(directory)
    if path.endswith('.safetensors'):
      folder = os.path.dirname(path) or '.'
      if re.search(r'-\d{5}-of-\d{5}\.safetensors$', path):
        path = folder  # A shard is of a whole.
    raw = huggingface_configs.read_config(folder, model_types)
    where = os.path.join(folder, 'config.json')
    return cls(raw, where, WeightFiles(path), (folder,))

  def nested(self, name: str, model_types: tuple[str, ...], prefix: str) -> _Model:
    """The model of a field, whose vocabulary has a folder of its own."""
    raw = config_fields.nested(self.raw, name, self.where)
    where = f'{self.where} ({name})'
    huggingface_configs.check_type(raw, model_types, where)
    folders = (os.path.join(self.folders[0], f'{name}_tokenizer'), *self.folders)
    return _Model(raw, where, self.source, folders, prefix)

  def part(self, kind: str, config: Any, entries: Sequence[Entry], **fields: Any) -> Part:
    family = self.raw['model_type'] if kind == 'decoder' else kind
    said = config_audit.check(self.raw, self.where, family, self.generation)
    fields = {'source': self.source, **fields, 'notes': (*fields.get('notes', ()), *said)}
    return Part(kind, config, entries=entries, vocabulary_directories=self.folders, **fields)

  @property
  def generation(self) -> Json | None:
    """generation_config.json, where there is one."""
    path = os.path.join(self.folders[-1], 'generation_config.json')
    return weight_files.read_json(path) if os.path.exists(path) else None


def open_t5(directory: PathLike, **overrides: Any) -> Part:
  """As `load_t5`, without reading the weights."""
  return _t5_part(_Model.read(directory, ('t5',)), overrides)


def _t5_part(model: _Model, overrides: Mapping[str, Any]) -> Part:
  raw, source, prefix = model.raw, model.source, model.prefix
  head, embedding = f'{prefix}lm_head.weight', f'{prefix}shared.weight'
  tied, notes = _tied(source, head, embedding, bool(raw.get('tie_word_embeddings', True)))
  if not raw.get('scale_decoder_outputs', True):
    notes = [note for note in notes if 'another' not in note]
  config = huggingface_configs.t5_config(raw, model.where, tied=tied, **overrides)
  wi = f'{prefix}encoder.block.0.layer.1.DenseReluDense.wi'
  for gated, weight in ((True, f'{wi}_0.weight'), (False, f'{wi}.weight')):
    if weight in source and gated != (len(config.mlp_activations) > 1):
      said = raw.get('feed_forward_proj', 'relu')
      found, remedy = ('gated', 'gated-gelu, as T5 1.1 has it') if gated else ('not gated', 'relu')
      raise ValueError(
        f'{model.where} says feed_forward_proj {said!r}, the tensors are {found} ({weight}); '
        f'set it to {remedy}.'
      )
  return model.part('t5', config, tensor_maps.t5_entries(config, prefix), notes=notes)


def _tied(source: TensorSource, head: str, embedding: str, said: bool) -> tuple[bool, list[str]]:
  """Whether the head is the embedding, with what is to be said of it.

  The weights tell what tie_word_embeddings, true in every T5 that transformers 5 has written, does
  not. Where it is false the head is the model's own, and missing where it is not there.
  """
  if not said:
    return False, []
  if head not in source:
    return True, [f'{head} is not there: the head is {embedding}, as tie_word_embeddings says']
  if part_lib.equal(source, head, embedding):
    return True, []
  note = f'{head} is another than {embedding} and read as the head, though tied by config'
  return False, [note]


def open_decoder(path: PathLike, **overrides: Any) -> Part:
  """As `load_decoder`, without reading the weights."""
  if (file := gguf_decoder.find(path)) is not None:
    return gguf_decoder.open_gguf(file, **overrides)
  model = _Model.read(path, (*huggingface_decoder.MODEL_TYPES, 'gemma3'))
  raw, source, notes = model.raw, model.source, []
  if raw['model_type'] == 'gemma3':
    notes = config_audit.check(raw, model.where, 'gemma3')
    notes.append('its text part alone is read, not what reads images')
    whole = ('tie_word_embeddings', 'pad_token_id', 'bos_token_id', 'eos_token_id')
    model = model.nested('text_config', ('gemma3_text',), '')
    said = {name: raw[name] for name in whole if raw.get(name) is not None}
    model = dataclasses.replace(model, raw=model.raw | said)
  # The names differ by class and version: where the embedding is, the others are, too.
  end = 'embed_tokens.weight'
  prefix = min((name for name in source if name.endswith(end)), key=len, default='model.' + end)
  prefix = prefix.removesuffix(end)
  heads = [f'{before}lm_head' for before in (prefix, prefix.removesuffix('model.'), '')]
  head = next((name for name in heads if f'{name}.weight' in source), 'lm_head')
  default = model.raw['model_type'] == 'gemma3_text'
  says_tied = bool(model.raw.get('tie_word_embeddings', default))
  tied, more = _tied(source, f'{head}.weight', f'{prefix}{end}', says_tied)
  config = huggingface_decoder.decoder_config(model.raw, model.where, tied=tied, **overrides)
  entries = decoder_maps.entries(config, decoder_maps.huggingface_names(config, prefix, head))
  how = {'text': part_lib.DECODER_TEXT, 'notes': (*notes, *more)}
  return model.part('decoder', config, entries, **how)


def open_bart(directory: PathLike, **overrides: Any) -> Part:
  """As `load_bart`, without reading the weights."""
  model = _Model.read(directory, ('bart',))
  return _bart_part(model, overrides, model.generation)


def _bart_part(model: _Model, overrides: Mapping[str, Any], generation: Json | None = None) -> Part:
  source, prefix = model.source, model.prefix
  config = huggingface_configs.bart_config(model.raw, model.where, generation, **overrides)
  # The bare BartModel has neither prefix nor bias.
  bare = f'{prefix}shared.weight' in source
  bias = f'{prefix}final_logits_bias'
  notes = []
  if bias not in source:
    notes = [f'{bias} is not there: zeros, as transformers takes it']
    source = SupplementedSource(source, {bias: np.zeros((1, config.vocab_size), np.float32)})
  entries = tensor_maps.bart_entries(config, prefix, '' if bare else 'model.')
  how = {'source': source, 'text': part_lib.BART_TEXT, 'notes': notes}
  return model.part('bart', config, entries, **how)


def open_bert(directory: PathLike, **overrides: Any) -> Part:
  """As `load_bert`, without reading the weights."""
  model = _Model.read(directory, ('bert', 'contriever'))
  prefix = 'bert.' if 'bert.embeddings.word_embeddings.weight' in model.source else ''
  config = huggingface_configs.bert_config(model.raw, model.where, **overrides)
  # Contriever's own class says what it is; facebook/contriever's config says model_type bert.
  named = [model.raw.get('model_type', ''), *(model.raw.get('architectures') or [])]
  contriever = any('contriever' in str(name).lower() for name in named)
  entries = tensor_maps.bert_entries(config, prefix)
  text = part_lib.ENCODER_TEXT
  return model.part('bert', config, entries, pooling='mean' if contriever else None, text=text)


def open_dpr(directory: PathLike, **overrides: Any) -> Part:
  """As `load_dpr`, without reading the weights."""
  model = _Model.read(directory, ('dpr',))
  for prefix, side in (('question_encoder.', 'query_encoder'), ('ctx_encoder.', 'passage_encoder')):
    if f'{prefix}bert_model.embeddings.word_embeddings.weight' in model.source:
      return _dpr_part(dataclasses.replace(model, prefix=prefix), side, overrides)
  raise ValueError(
    f'{os.fspath(directory)} holds no question_encoder.* or ctx_encoder.* '
    f"tensors; found {sorted(model.source)[:3]}. Is it DPR's reader?"
  )


def _dpr_part(model: _Model, side: str, overrides: Mapping[str, Any]) -> Part:
  config = huggingface_configs.bert_config(model.raw, model.where, **overrides)
  entries = tensor_maps.bert_entries(
    config, f'{model.prefix}bert_model.', f'{model.prefix}encode_proj'
  )
  return model.part('bert', config, entries, pooling='cls', side=side, text=part_lib.DPR_TEXT)


def open_sentence_transformer(directory: PathLike, **overrides: Any) -> Part:
  """A sentence-transformers folder around a BERT (MiniLM, …); reads no weights.

  Raises ValueError also for a pooling or a module that we do not have.
  """
  modules_path = os.path.join(directory, 'modules.json')
  modules = weight_files.read_json_list(modules_path)
  encoder = pooling = None
  normalize = False
  for module in modules:
    kind = str(module.get('type', '')).rpartition('.')[2]
    folder = os.path.join(directory, config_fields.text(module, 'path', modules_path, ''))
    if kind == 'Transformer' and encoder is None:
      encoder = folder
    elif kind == 'Pooling' and encoder is not None and pooling is None:
      pooling = _pooling(os.path.join(folder, 'config.json'))
    elif kind == 'Normalize' and pooling is not None:
      normalize = True
    else:
      raise ValueError(
        f'{modules_path}: module {module.get("type")!r} is not supported; '
        'supported: one Transformer (BERT), one Pooling, Normalize, in this order.'
      )
  if encoder is None or pooling is None:
    raise ValueError(
      f'{modules_path} names no Transformer or no Pooling module; found '
      f'{[module.get("type") for module in modules]}.'
    )
  part, folders = open_bert(encoder, **overrides), (encoder, os.fspath(directory))
  text, notes = sentence_transformers.text(directory, encoder, part.config.max_positions)
  if text:
    said = ', '.join(f'{name} = {value!r}' for name, value in text.items())
    notes.append(f'its folder says {said}')
  similarity, more = sentence_transformers.similarity(directory)
  return dataclasses.replace(
    part,
    pooling=pooling,
    normalize=normalize or similarity == 'cosine',
    vocabulary_directories=folders,
    text={**part.text, **text},
    notes=(*part.notes, *notes, *more),
  )


def _pooling(path: str) -> str:
  raw = weight_files.read_json(path)
  modes = [
    name.removeprefix('pooling_mode_')
    for name, value in raw.items()
    if name.startswith('pooling_mode_') and value is True
  ]
  said = raw.get('pooling_mode') or []
  modes += [said] if isinstance(said, str) else said
  known = {'mean_tokens': 'mean', 'mean': 'mean', 'cls_token': 'cls', 'cls': 'cls'}
  if len(modes) != 1 or modes[0] not in known:
    raise ValueError(
      f'{path}: pooling {modes} is not supported; supported: mean_tokens or cls_token alone.'
    )
  if raw.get('include_prompt') is False:
    raise ValueError(f'{path}: include_prompt is false, which is not supported: prompts count.')
  return known[modes[0]]


@dataclasses.dataclass(frozen=True)
class OpenedRag:
  """A RAG checkpoint, unread."""

  # 'reader', 'query_encoder', and 'passage_encoder' where the checkpoint holds one (the released
  # ones do not).
  parts: dict[str, Part]
  # 'sequence' or 'token', by the class that wrote it; None where that does not say.
  marginalization: str | None
  n_passages: int  # Retrieved for a question.


def open_rag(directory: PathLike, **overrides: Any) -> OpenedRag:
  """A folder of RagSequenceForGeneration or RagTokenForGeneration; reads no weights.

  Keywords replace fields of all configurations.
  """
  model = _Model.read(directory, ('rag',))
  raw, where, source = model.raw, model.where, model.source
  prefix = 'rag.' if any(name.startswith('rag.') for name in source) else ''
  generator = model.nested('generator', ('bart', 't5'), f'{prefix}generator.')
  opener = _bart_part if generator.raw['model_type'] == 'bart' else _t5_part
  n_passages = config_fields.whole_number(raw, 'n_docs', where, 5)
  text = _rag_text(raw, where) | {'n_passages': n_passages}
  parts = {'reader': dataclasses.replace(opener(generator, overrides), text=text)}
  for side, theirs in (
    ('query_encoder', f'{prefix}question_encoder.question_encoder.'),
    ('passage_encoder', f'{prefix}ctx_encoder.ctx_encoder.'),
  ):
    if side == 'query_encoder' or any(name.startswith(theirs) for name in source):
      tower = model.nested('question_encoder', ('dpr',), theirs)
      parts[side] = _dpr_part(tower, side, overrides)
  written_by = ' '.join(config_fields.names(raw, 'architectures', where))
  marginalization = next(
    (kind.lower() for kind in ('Sequence', 'Token') if f'Rag{kind}' in written_by), None
  )
  return OpenedRag(parts, marginalization, n_passages)


def _rag_text(raw: Json, where: str) -> dict[str, Any]:
  """How the generator reads a passage, as RagConfig says."""
  pieces = ['{title}']
  for name, default, field in (('title_sep', ' / ', '{text}'), ('doc_sep', ' // ', '{query}')):
    separator = config_fields.text(raw, name, where, default)
    if not (separator[:1].isspace() and separator[-1:].isspace()):
      raise ValueError(
        f'{where}: {name} is {separator!r}, which is not supported; a separator must begin and end '
        'with a space, as the fields beside it are tokenised apart.'
      )
    pieces += [separator.replace('{', '{{').replace('}', '}}'), field]
  return part_lib.BART_TEXT | {
    'reader_format': ''.join(pieces),
    'passage_length': config_fields.whole_number(raw, 'max_combined_length', where, 300),
  }
