"""Hugging Face folders in: T5, BART, BERT, Contriever, DPR and RAG.

`open_*` finds a model in a folder without reading its weights (`ralm convert`
streams them), `load_*` reads it.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, NamedTuple

import numpy as np

from ralm_jax.interop import config_fields, huggingface_configs, part as part_lib, tensor_maps
from ralm_jax.interop.files import weight_files
from ralm_jax.interop.files.tensor_source import SupplementedSource, TensorSource
from ralm_jax.interop.files.weight_files import WeightFiles
from ralm_jax.interop.huggingface_configs import Json
from ralm_jax.interop.part import Part
from ralm_jax.models.bart import BartConfig
from ralm_jax.models.bert import BertConfig
from ralm_jax.models.t5 import T5Config

Params = dict[str, Any]
PathLike = str | os.PathLike[str]


def load_t5(directory: PathLike, **overrides: Any) -> tuple[T5Config, Params]:
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
  part = open_t5(directory, **overrides)
  return part.config, part.read()


def load_bart(directory: PathLike, **overrides: Any) -> tuple[BartConfig, Params]:
  """Loads BART weights; arguments, results and errors as `load_t5`."""
  part = open_bart(directory, **overrides)
  return part.config, part.read()


def load_bert(directory: PathLike, **overrides: Any) -> tuple[BertConfig, Params]:
  """Loads BERT or Contriever weights; the pooler is left out.

  Returns:
    The configuration and float32 parameters of `Bert` and of a tied
    `DualEncoder`.

  Raises:
    FileNotFoundError, ValueError: as for `load_t5`.
  """
  part = open_bert(directory, **overrides)
  return part.config, part.read()


def load_dpr(directory: PathLike, **overrides: Any) -> tuple[BertConfig, Params]:
  """Loads one tower of DPR, a question or a context encoder.

  Its embedding is that of the first token (`pooling='cls'`), behind the
  projection where the checkpoint has one.

  Returns:
    As `load_bert`.

  Raises:
    FileNotFoundError, ValueError: as for `load_t5`.
  """
  part = open_dpr(directory, **overrides)
  return part.config, part.read()


class SentenceTransformer(NamedTuple):
  """What `load_sentence_transformer` returns.

  Attributes:
    config: of the encoder.
    params: of it.
    pooling: 'mean' or 'cls'.
    normalize: embeddings are scaled to unit length.
  """

  config: BertConfig
  params: Params
  pooling: str
  normalize: bool


def load_sentence_transformer(directory: PathLike, **overrides: Any) -> SentenceTransformer:
  """Loads a sentence-transformers folder around a BERT (MiniLM, ...).

  Raises:
    FileNotFoundError, ValueError: as for `load_t5`, or for a pooling or a
      module that we do not have.
  """
  part = open_sentence_transformer(directory, **overrides)
  return SentenceTransformer(part.config, part.read(), part.pooling or 'mean', part.normalize)


@dataclasses.dataclass(frozen=True)
class RagCheckpoint:
  """What `load_rag` returns.

  Attributes:
    reader_config: T5Config or BartConfig of the generator.
    reader_params: of it.
    retriever_config: of the question encoder.
    query_encoder_params: of it.
    passage_encoder_params: of the passage encoder, or None where the
      checkpoint holds none (the released ones do not).
    marginalization: 'sequence' or 'token', by the class that wrote it; None
      where that does not say.
    n_passages: retrieved for a question.
  """

  reader_config: T5Config | BartConfig
  reader_params: Params
  retriever_config: BertConfig
  query_encoder_params: Params
  passage_encoder_params: Params | None
  marginalization: str | None
  n_passages: int


def load_rag(directory: PathLike, **overrides: Any) -> RagCheckpoint:
  """Loads a RAG checkpoint: question encoder and generator in one folder.

  Args:
    directory: of RagSequenceForGeneration or RagTokenForGeneration.
    **overrides: fields to replace in the configurations that have them all
      (`dtype`, `scan_layers`, ...).

  Raises:
    FileNotFoundError, ValueError: as for `load_t5`.
  """
  rag = open_rag(directory, **overrides)
  passage_encoder = rag.parts.get('passage_encoder')
  return RagCheckpoint(
    reader_config=rag.parts['reader'].config,
    reader_params=rag.parts['reader'].read(),
    retriever_config=rag.parts['query_encoder'].config,
    query_encoder_params=rag.parts['query_encoder'].read(),
    passage_encoder_params=passage_encoder and passage_encoder.read(),
    marginalization=rag.marginalization,
    n_passages=rag.n_passages,
  )


def open_t5(directory: PathLike, **overrides: Any) -> Part:
  """As `load_t5`, without reading the weights."""
  raw = huggingface_configs.read_config(directory, ('t5',))
  return _t5_part(
    raw, _config_path(directory), WeightFiles(directory), '', (os.fspath(directory),), overrides
  )


def _t5_part(
  raw: Json,
  where: str,
  source: TensorSource,
  prefix: str,
  vocabulary_directories: tuple[str, ...],
  overrides: dict[str, Any],
) -> Part:
  head, embedding = f'{prefix}lm_head.weight', f'{prefix}shared.weight'
  # The weights tell what tie_word_embeddings, true in every T5 that
  # transformers 5 has written, does not.
  tied = head not in source or bool(
    raw.get('tie_word_embeddings', True)
    and embedding in source
    and np.array_equal(source[head], source[embedding])
  )
  config = huggingface_configs.t5_config(raw, where, tied=tied, **overrides)
  wi = f'{prefix}encoder.block.0.layer.1.DenseReluDense.wi'
  for gated, weight in ((True, f'{wi}_0.weight'), (False, f'{wi}.weight')):
    if weight in source and gated != (len(config.mlp_activations) > 1):
      said = raw.get('feed_forward_proj', 'relu')
      raise ValueError(
        f'{where} says feed_forward_proj {said!r}, the tensors are '
        f'{"gated" if gated else "not gated"} ({weight}); set it to '
        f'{"gated-gelu, as T5 1.1 has it" if gated else "relu"}.'
      )
  return Part(
    't5',
    config,
    source,
    tensor_maps.t5_entries(config, prefix),
    vocabulary_directories=vocabulary_directories,
  )


def open_bart(directory: PathLike, **overrides: Any) -> Part:
  """As `load_bart`, without reading the weights."""
  raw = huggingface_configs.read_config(directory, ('bart',))
  generation = os.path.join(directory, 'generation_config.json')
  return _bart_part(
    raw,
    _config_path(directory),
    WeightFiles(directory),
    '',
    (os.fspath(directory),),
    overrides,
    weight_files.read_json(generation) if os.path.exists(generation) else None,
  )


def _bart_part(
  raw: Json,
  where: str,
  source: TensorSource,
  prefix: str,
  vocabulary_directories: tuple[str, ...],
  overrides: dict[str, Any],
  generation: Json | None = None,
) -> Part:
  config = huggingface_configs.bart_config(raw, where, generation, **overrides)
  # The bare BartModel has neither prefix nor bias.
  bare = f'{prefix}shared.weight' in source
  bias = f'{prefix}final_logits_bias'
  if bias not in source:
    source = SupplementedSource(source, {bias: np.zeros((1, config.vocab_size), np.float32)})
  entries = tensor_maps.bart_entries(config, prefix, '' if bare else 'model.')
  return Part(
    'bart',
    config,
    source,
    entries,
    vocabulary_directories=vocabulary_directories,
    text=part_lib.BART_TEXT,
  )


def open_bert(directory: PathLike, **overrides: Any) -> Part:
  """As `load_bert`, without reading the weights."""
  raw = huggingface_configs.read_config(directory, ('bert', 'contriever'))
  source = WeightFiles(directory)
  prefix = 'bert.' if 'bert.embeddings.word_embeddings.weight' in source else ''
  config = huggingface_configs.bert_config(raw, _config_path(directory), **overrides)
  # Contriever's own class says what it is; facebook/contriever's config says
  # model_type bert.
  named = [raw.get('model_type', ''), *(raw.get('architectures') or [])]
  contriever = any('contriever' in str(name).lower() for name in named)
  return Part(
    'bert',
    config,
    source,
    tensor_maps.bert_entries(config, prefix),
    pooling='mean' if contriever else None,
    vocabulary_directories=(os.fspath(directory),),
  )


def open_dpr(directory: PathLike, **overrides: Any) -> Part:
  """As `load_dpr`, without reading the weights."""
  raw = huggingface_configs.read_config(directory, ('dpr',))
  source = WeightFiles(directory)
  for prefix, side in (('question_encoder.', 'query_encoder'), ('ctx_encoder.', 'passage_encoder')):
    if f'{prefix}bert_model.embeddings.word_embeddings.weight' in source:
      return _dpr_part(
        raw, _config_path(directory), source, prefix, side, (os.fspath(directory),), overrides
      )
  raise ValueError(
    f'{os.fspath(directory)} holds no question_encoder.* or ctx_encoder.* '
    f"tensors; found {sorted(source)[:3]}. Is it DPR's reader?"
  )


def _dpr_part(
  raw: Json,
  where: str,
  source: TensorSource,
  prefix: str,
  side: str,
  vocabulary_directories: tuple[str, ...],
  overrides: dict[str, Any],
) -> Part:
  config = huggingface_configs.bert_config(raw, where, **overrides)
  entries = tensor_maps.bert_entries(config, f'{prefix}bert_model.', f'{prefix}encode_proj')
  return Part(
    'bert',
    config,
    source,
    entries,
    pooling='cls',
    side=side,
    vocabulary_directories=vocabulary_directories,
    text=part_lib.DPR_TEXT,
  )


def open_sentence_transformer(directory: PathLike, **overrides: Any) -> Part:
  """As `load_sentence_transformer`, without reading the weights."""
  modules_path = os.path.join(directory, 'modules.json')
  modules = weight_files.read_json_list(modules_path)
  encoder = pooling = None
  normalize = False
  for module in modules:
    kind = str(module.get('type', '')).rpartition('.')[2]
    folder = os.path.join(directory, config_fields.text(module, 'path', modules_path, ''))
    if kind == 'Transformer' and encoder is None:
      encoder = folder
    elif kind == 'Pooling' and pooling is None:
      pooling = _pooling(os.path.join(folder, 'config.json'))
    elif kind == 'Normalize':
      normalize = True
    else:
      raise ValueError(
        f'{modules_path}: module {module.get("type")!r} is not supported; '
        'supported: one Transformer (BERT), one Pooling, Normalize.'
      )
  if encoder is None or pooling is None:
    raise ValueError(
      f'{modules_path} names no Transformer or no Pooling module; found '
      f'{[module.get("type") for module in modules]}.'
    )
  part = open_bert(encoder, **overrides)
  return dataclasses.replace(
    part,
    pooling=pooling,
    normalize=normalize,
    vocabulary_directories=(encoder, os.fspath(directory)),
  )


def _pooling(path: str) -> str:
  raw = weight_files.read_json(path)
  modes = [
    name.removeprefix('pooling_mode_')
    for name, value in raw.items()
    if name.startswith('pooling_mode_') and value is True
  ]
  if isinstance(raw.get('pooling_mode'), str):
    modes.append(raw['pooling_mode'])
  known = {'mean_tokens': 'mean', 'mean': 'mean', 'cls_token': 'cls', 'cls': 'cls'}
  if len(modes) != 1 or modes[0] not in known:
    raise ValueError(
      f'{path}: pooling {modes} is not supported; supported: mean_tokens or cls_token alone.'
    )
  return known[modes[0]]


@dataclasses.dataclass(frozen=True)
class OpenedRag:
  """A RAG checkpoint, unread.

  Attributes:
    parts: 'reader', 'query_encoder' and perhaps 'passage_encoder'.
    marginalization: as in RagCheckpoint.
    n_passages: as in RagCheckpoint.
  """

  parts: dict[str, Part]
  marginalization: str | None
  n_passages: int


def open_rag(directory: PathLike, **overrides: Any) -> OpenedRag:
  """As `load_rag`, without reading the weights."""
  raw = huggingface_configs.read_config(directory, ('rag',))
  where = _config_path(directory)
  source = WeightFiles(directory)
  prefix = 'rag.' if any(name.startswith('rag.') for name in source) else ''
  folder = os.fspath(directory)
  parts: dict[str, Part] = {}

  generator = config_fields.nested(raw, 'generator', where)
  name = f'{where} (generator)'
  huggingface_configs.check_type(generator, ('bart', 't5'), name)
  opener = _bart_part if generator['model_type'] == 'bart' else _t5_part
  parts['reader'] = opener(
    generator,
    name,
    source,
    f'{prefix}generator.',
    (os.path.join(folder, 'generator_tokenizer'), folder),
    overrides,
  )
  n_passages = config_fields.whole_number(raw, 'n_docs', where, 5)
  parts['reader'] = dataclasses.replace(
    parts['reader'], text=_rag_text(raw, where) | {'n_passages': n_passages}
  )

  question_encoder = config_fields.nested(raw, 'question_encoder', where)
  name = f'{where} (question_encoder)'
  huggingface_configs.check_type(question_encoder, ('dpr',), name)
  folders = (os.path.join(folder, 'question_encoder_tokenizer'), folder)
  for side, theirs in (
    ('query_encoder', 'question_encoder.question_encoder.'),
    ('passage_encoder', 'ctx_encoder.ctx_encoder.'),
  ):
    # The released checkpoints hold no passage encoder.
    if side == 'query_encoder' or any(n.startswith(prefix + theirs) for n in source):
      parts[side] = _dpr_part(
        question_encoder, name, source, prefix + theirs, side, folders, overrides
      )
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
        f'{where}: {name} is {separator!r}, which is not supported; a '
        'separator must begin and end with a space, as the fields beside it '
        'are tokenised apart.'
      )
    pieces += [separator.replace('{', '{{').replace('}', '}}'), field]
  return part_lib.BART_TEXT | {
    'reader_format': ''.join(pieces),
    'passage_length': config_fields.whole_number(raw, 'max_combined_length', where, 300),
  }


def _config_path(directory: PathLike) -> str:
  return os.path.join(directory, 'config.json')
