"""Llama, Mistral, Qwen 2 and 3 and Gemma 3 in GGUF files of llama.cpp."""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np

from ralm_jax.interop import config_fields, decoder_maps, huggingface_decoder, part as part_lib
from ralm_jax.interop.files import gguf_file
from ralm_jax.interop.files.gguf_file import GgufFile
from ralm_jax.interop.part import Part
from ralm_jax.models.decoder_config import DecoderConfig, RopeScaling

Json = dict[str, Any]
_ARCHITECTURES = ('llama', 'qwen2', 'qwen3', 'gemma3')
_NUMBERS = {
  'emb_dim': 'embedding_length',
  'num_heads': 'attention.head_count',
  'num_decoder_layers': 'block_count',
  'mlp_dim': 'feed_forward_length',
  'max_positions': 'context_length',
}
_OBEYED = frozenset(
  (*_NUMBERS.values(), 'vocab_size', 'attention.head_count_kv')
  + ('attention.key_length', 'attention.value_length', 'attention.layer_norm_rms_epsilon')
  + ('attention.sliding_window', 'attention.sliding_window_pattern', 'attention.scale')
  + ('rope.dimension_count', 'rope.freq_base', 'rope.freq_base_swa', 'rope.scale_linear')
  + tuple(f'rope.scaling.{name}' for name in ('type', 'factor', 'original_context_length'))
  + tuple(f'rope.scaling.{name}' for name in ('attn_factor', 'finetuned'))
  + tuple(f'rope.scaling.yarn_{name}' for name in ('beta_fast', 'beta_slow'))
)
# What changes the computation in a way that we do not have, unless it is nothing.
_REFUSED = ('expert_count', 'attention.causal', 'use_parallel_residual') + tuple(
  f'{name}logit_softcapping' for name in ('attention.', 'attn_', 'final_')
)
# Gemma 3's, where the file does not say: five layers with a window to one without.
_GEMMA_LOCAL_BASE, _GEMMA_PATTERN = 10_000.0, 6
# llama.cpp scales Gemma 3 27B, told by its depth, by the width of a head as if none were wider.
_GEMMA_27B_LAYERS = 62
# Llama 3.1 to 3.3, whose files hold frequencies and not what they are made of.
_LLAMA3 = {'low_frequency_factor': 1.0, 'high_frequency_factor': 4.0}
_LLAMA3_POSITIONS = 8192
_TOLERANCE = 1e-4
_WEIGHTS = re.compile(r'(model.*\.safetensors|pytorch_model.*\.bin)(\.index\.json)?')


def find(path: str | os.PathLike[str]) -> str | None:
  """The GGUF file that a path names: it, or the only model of a folder without other weights.

  Raises ValueError where a folder holds several.
  """
  path = os.fspath(path)
  if path.endswith('.gguf') or not os.path.isdir(path):
    return path if path.endswith('.gguf') else None
  found = sorted(os.listdir(path))
  if any(_WEIGHTS.fullmatch(name) for name in found):
    return None
  # Of a model in parts, the first.
  models = [
    name
    for name in found
    if name.endswith('.gguf') and not re.search(r'-(?!00001)\d{5}-of-\d{5}\.gguf$', name)
  ]
  if len(models) > 1:
    raise ValueError(f'{path} holds several models, {", ".join(models)}; name the file of one.')
  return os.path.join(path, models[0]) if models else None


def open_gguf(path: str | os.PathLike[str], **overrides: Any) -> Part:
  """A model of a file, without reading its tensors; errors as `GgufFile`."""
  source = GgufFile(path)
  raw, where = source.metadata, source.description
  architecture = raw.get('general.architecture')
  if architecture not in _ARCHITECTURES:
    raise ValueError(
      f'{where} is of architecture {architecture!r}, expected {", ".join(_ARCHITECTURES)}.'
    )
  own = {
    name.removeprefix(f'{architecture}.'): value
    for name, value in raw.items()
    if name.startswith(f'{architecture}.')
  }
  ids = {
    f'{ours}_token_id': raw.get(f'tokenizer.ggml.{theirs}_token_id')
    for ours, theirs in (('bos', 'bos'), ('eos', 'eos'), ('pad', 'padding'))
  }
  config = _config(own, where, architecture, source, ids, overrides)
  types = {name: n for name, n in source.types().items() if name not in gguf_file.PLAIN}
  notes = []
  if types:
    counted = ', '.join(f'{name} ({n} tensors)' for name, n in types.items())
    notes.append(f'quantised in the file and read as float32: {counted}')
  unknown = ', '.join(
    f'{name} = {str(value):.40}' for name, value in own.items() if name not in _OBEYED and value
  )
  if unknown:
    notes.append(f'not obeyed: {os.path.basename(where)}: {unknown}; not known')
  entries = decoder_maps.entries(config, decoder_maps.gguf_names(architecture))
  return Part(
    'decoder',
    config,
    source,
    entries,
    vocabulary_directories=(os.fspath(path),),
    text=part_lib.DECODER_TEXT,
    notes=notes,
  )


def _config(
  own: Json, where: str, architecture: str, source: GgufFile, ids: Json, overrides: Json
) -> DecoderConfig:
  for name in _REFUSED:
    if own.get(name) and not (name == 'attention.causal' and own[name] is True):
      raise ValueError(f'{where}: {name} is {own[name]}, which is not computed here.')
  if 'blk.0.attn_output.bias' in source:
    raise ValueError(f'{where}: blk.0.attn_output.bias is there, which is not computed here.')
  fields: Json = {
    ours: config_fields.whole_number(own, theirs, where) for ours, theirs in _NUMBERS.items()
  }
  heads, gemma = fields['num_heads'], architecture == 'gemma3'
  kv_heads: Any = own.get('attention.head_count_kv', heads)
  if isinstance(kv_heads, list):
    if len(set(kv_heads)) != 1:
      raise ValueError(f'{where}: attention.head_count_kv is {kv_heads}, expected one number.')
    kv_heads = kv_heads[0]
  dimensions = own.get('rope.dimension_count', fields['emb_dim'] // heads)
  head_dim = config_fields.whole_number(own, 'attention.key_length', where, dimensions)
  for name in ('attention.value_length', 'rope.dimension_count'):
    if own.get(name, head_dim) != head_dim:
      raise ValueError(f'{where}: {name} is {own[name]}, expected {head_dim} as of a whole head.')
  if 'token_embd.weight' not in source:
    raise ValueError(f"{where} has no tensor 'token_embd.weight'; is it a part of a model?")
  fields |= dict(
    vocab_size=source.info('token_embd.weight').shape[0],
    num_kv_heads=config_fields.whole_number({'head_count_kv': kv_heads}, 'head_count_kv', where),
    head_dim=head_dim,
    mlp_activations=('gelu' if gemma else 'silu', 'linear'),
    norm_epsilon=_decimal(own, 'attention.layer_norm_rms_epsilon', where, 1e-6),
    logits_via_embedding='output.weight' not in source,
    attention_bias='blk.0.attn_q.bias' in source,
    query_key_norm=architecture in ('qwen3', 'gemma3'),
    post_norms=gemma,
    scale_embedding=gemma,
    rope_base=_decimal(own, 'rope.freq_base', where, 10_000.0),
    **huggingface_decoder.token_ids(ids, where),
  )
  if own.get('attention.sliding_window'):
    window = config_fields.whole_number(own, 'attention.sliding_window', where)
    every = own.get('attention.sliding_window_pattern', _GEMMA_PATTERN if gemma else 0)
    depth = fields['num_decoder_layers']
    if isinstance(every, list):
      local = [bool(is_) for is_ in every[:depth]]
    else:
      local = [not every or bool((i + 1) % every) for i in range(depth)]
    fields |= huggingface_decoder.layer_pattern(local, window)
  if gemma:
    fields['local_rope_base'] = _decimal(own, 'rope.freq_base_swa', where, _GEMMA_LOCAL_BASE)
    if fields['num_decoder_layers'] == _GEMMA_27B_LAYERS:
      fields['query_scale'] = (fields['emb_dim'] / heads) ** -0.5
  if own.get('attention.scale'):
    fields['query_scale'] = _decimal(own, 'attention.scale', where, 1.0)
  config = DecoderConfig(**(fields | {'rope_scaling': _scaling(own, where)} | overrides))
  if 'rope_freqs.weight' in source:
    scaling = _llama3(config, source['rope_freqs.weight'], where)
    config = DecoderConfig(**(fields | {'rope_scaling': scaling} | overrides))
  return config


def _decimal(own: Json, name: str, where: str, default: float) -> float:
  """A float32 as the decimal number that was meant: 1e-5 and not 9.999999747e-06."""
  return float(str(np.float32(config_fields.positive(own, name, where, default))))


def _scaling(own: Json, where: str) -> RopeScaling | None:
  kind = own.get('rope.scaling.type', 'linear' if own.get('rope.scale_linear') else 'none')
  if kind == 'none':
    return None
  if kind not in ('linear', 'yarn'):
    raise ValueError(f'{where}: rope.scaling.type {kind!r} is not computed here; linear, yarn are.')
  factor = 'rope.scaling.factor' if 'rope.scaling.factor' in own else 'rope.scale_linear'
  fields: Json = {'factor': _decimal(own, factor, where, 1.0)}
  if kind == 'yarn':
    name = 'rope.scaling.original_context_length'
    if own.get(name):
      fields['original_max_positions'] = config_fields.whole_number(own, name, where)
    for ours, theirs in (('attention_factor', 'attn_factor'),) + tuple(
      (name, f'yarn_{name}') for name in ('beta_fast', 'beta_slow')
    ):
      if own.get(f'rope.scaling.{theirs}'):
        fields[ours] = _decimal(own, f'rope.scaling.{theirs}', where, 1.0)
  return RopeScaling(kind=kind, **fields)


def _llama3(config: DecoderConfig, divisors: np.ndarray, where: str) -> RopeScaling | None:
  """What `rope_freqs.weight` was made of, which frequencies are divided by.

  Between the two limits 1 / divisor is linear in the turns that a frequency makes over the original
  positions, so that two of them tell everything but a common factor, which changes nothing.
  """
  divisors = divisors.astype(np.float64)
  exponents = np.arange(0, config.head_dim, 2) / config.head_dim
  turns = config.rope_base**-exponents / (2 * np.pi)  # At each position.
  if divisors.shape != turns.shape:
    raise ValueError(f"{where}: tensor 'rope_freqs.weight' has shape {list(divisors.shape)}.")
  factor = float(np.max(divisors))
  if np.allclose(divisors, 1):
    return None

  def made(positions: float, low: float, high: float) -> np.ndarray:
    kept = np.clip((positions * turns - low) / (high - low), 0, 1)
    return 1 / (kept + (1 - kept) / factor)

  low, high = _LLAMA3.values()
  fits = [(_LLAMA3_POSITIONS, low, high)]
  between = (divisors > 1 + _TOLERANCE) & (divisors < factor * (1 - _TOLERANCE))
  if np.sum(between) > 1:
    kept = (1 / divisors[between] - 1 / factor) / (1 - 1 / factor)
    slope, start = np.polyfit(turns[between], kept, 1)
    if start < 0 < slope:
      fits.append((round(-slope / start), low, float(f'{1 - 1 / start:.4g}')))
  for positions, low, high in fits:
    if np.allclose(made(positions, low, high), divisors, rtol=_TOLERANCE):
      return RopeScaling(
        kind='llama3',
        factor=factor,
        original_max_positions=positions,
        low_frequency_factor=low,
        high_frequency_factor=high,
      )
  raise ValueError(
    f"{where}: tensor 'rope_freqs.weight' scales positions otherwise than Llama 3 does, which is "
    'not computed here.'
  )
