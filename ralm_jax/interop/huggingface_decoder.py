"""config.json of Llama, Mistral, Qwen 2 and 3 and Gemma 3, in both directions."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any

from ralm_jax.interop import config_fields, huggingface_configs, rope_fields
from ralm_jax.interop.huggingface_configs import Json
from ralm_jax.models.decoder_config import DecoderConfig

# What the classes of transformers take for fields that are absent; null is no number of heads, and
# no window.
_DEFAULTS: dict[str, Json] = {
  'llama': {'max_position_embeddings': 2048, 'bos_token_id': 1, 'eos_token_id': 2},
  'mistral': {
    **{'max_position_embeddings': 131_072, 'bos_token_id': 1, 'eos_token_id': 2},
    **{'num_key_value_heads': 8, 'sliding_window': 4096},
  },
  'qwen2': {
    **{'max_position_embeddings': 32_768, 'num_key_value_heads': 32},
    **{'sliding_window': 4096, 'max_window_layers': 28},
  },
  'gemma3_text': {
    **{'vocab_size': 262_208, 'hidden_size': 2304, 'intermediate_size': 9216},
    **{'num_hidden_layers': 26, 'num_attention_heads': 8, 'num_key_value_heads': 4},
    **{'head_dim': 256, 'max_position_embeddings': 131_072, 'sliding_window': 4096},
    **{'query_pre_attn_scalar': 256, 'sliding_window_pattern': 6, 'tie_word_embeddings': True},
    **{'pad_token_id': 0, 'eos_token_id': 1, 'bos_token_id': 2, 'rope_theta': 1_000_000.0},
  },
}
_DEFAULTS['qwen3'] = _DEFAULTS['qwen2'] | {'head_dim': 128}
MODEL_TYPES = tuple(_DEFAULTS)
_GEMMA_LOCAL_BASE = 10_000.0
_NUMBERS = huggingface_configs.table(
  'vocab_size emb_dim:hidden_size num_heads:num_attention_heads '
  'num_decoder_layers:num_hidden_layers mlp_dim:intermediate_size '
  'max_positions:max_position_embeddings'
)
_ACTIVATIONS = {
  'silu': ('silu', 'linear'),
  'gelu_pytorch_tanh': ('gelu', 'linear'),
  'gelu_new': ('gelu', 'linear'),
  'gelu': ('gelu_exact', 'linear'),
  'relu': ('relu', 'linear'),
}
_LAYERS = {'sliding_attention': 'local', 'full_attention': 'global'}
CLASSES = {
  **{'llama': 'Llama', 'mistral': 'Mistral', 'qwen2': 'Qwen2', 'qwen3': 'Qwen3'},
  'gemma3_text': 'Gemma3',
}
# Of a run and not of what is computed.
_NOT_COMPUTED = ('dropout_rate', 'dtype', 'param_dtype', 'scan_layers', 'remat_policy', 'pad_id')


def decoder_config(raw: Json, where: str, *, tied: bool, **overrides: Any) -> DecoderConfig:
  """Of a config.json, named `where` in errors; `tied`: the head is the embedding."""
  family = raw['model_type']
  gemma = family == 'gemma3_text'
  raw = _DEFAULTS[family] | raw
  fields: dict[str, Any] = huggingface_configs.numbers(raw, where, _NUMBERS)
  heads, depth = fields['num_heads'], fields['num_decoder_layers']
  fields |= dict(
    num_kv_heads=config_fields.whole_number(raw, 'num_key_value_heads', where, heads),
    head_dim=config_fields.whole_number(raw, 'head_dim', where, fields['emb_dim'] // heads),
    mlp_activations=huggingface_configs.known(
      raw,
      'hidden_activation' if gemma else 'hidden_act',
      'gelu_pytorch_tanh' if gemma else 'silu',
      _ACTIVATIONS,
      where,
    ),
    norm_epsilon=float(config_fields.positive(raw, 'rms_norm_eps', where, 1e-6)),
    logits_via_embedding=tied,
    attention_bias=family == 'qwen2',
    query_key_norm=family in ('qwen3', 'gemma3_text'),
    post_norms=gemma,
    scale_embedding=gemma,
    **_windows(raw, where, family, depth),
    **rope_fields.read(raw, where, fields['max_positions'], _GEMMA_LOCAL_BASE if gemma else None),
    **token_ids(raw, where),
  )
  if gemma:
    scalar = config_fields.positive(raw, 'query_pre_attn_scalar', where)
    fields['query_scale'] = None if scalar == fields['head_dim'] else scalar**-0.5
  return DecoderConfig(**(fields | overrides))


def token_ids(raw: Json, where: str) -> Json:
  """Ids of a config.json, before its tokenizer is heard: the end is the first where it has several.

  Padding is never an end: where config.json pads with one, or does not say, any other id.
  """
  ends: Any = raw.get('eos_token_id')
  ends = ends if isinstance(ends, list) and ends else [ends]
  ids = [
    config_fields.optional_number({'eos_token_id': end}, 'eos_token_id', where) for end in ends
  ]
  fields: Json = {} if ids[0] is None else {'eos_id': ids[0]}
  ends = {*ids, fields.get('eos_id', DecoderConfig.eos_id)}
  padding = raw.get('pad_token_id')
  # Some Llamas were written with -1, which is none.
  if padding in (None, -1) or padding in ends:
    padding = next(i for i in range(len(ends) + 1) if i not in ends)
  fields['pad_id'] = config_fields.token_id({'pad_token_id': padding}, 'pad_token_id', where, 0)
  return fields | {'bos_id': config_fields.optional_number(raw, 'bos_token_id', where)}


def _windows(raw: Json, where: str, family: str, depth: int) -> Json:
  """Window and layer pattern."""
  if family == 'llama' or (family.startswith('qwen') and not raw.get('use_sliding_window')):
    return {}
  if raw['sliding_window'] is None:
    return {}
  window = config_fields.whole_number(raw, 'sliding_window', where)
  if family == 'mistral':
    return {'window': window}
  said: Any = raw.get('layer_types')
  if said is None and family == 'gemma3_text':
    every = config_fields.whole_number(raw, 'sliding_window_pattern', where)
    local = [bool((i + 1) % every) for i in range(depth)]
  elif said is None:
    first = config_fields.whole_number(raw, 'max_window_layers', where, least=0)
    local = [i >= first for i in range(depth)]
  else:
    if not isinstance(said, list) or len(said) != depth or not {*map(str, said)} <= _LAYERS.keys():
      raise ValueError(
        f'{where}: layer_types is {str(said):.80}, expected {depth} of {" or ".join(_LAYERS)}.'
      )
    local = [kind == 'sliding_attention' for kind in said]
  return layer_pattern(local, window)


def layer_pattern(local: Sequence[bool], window: int) -> Json:
  """The shortest pattern whose repetitions are these layers; nothing where none has a window."""
  if not any(local):
    return {}
  repeats = lambda period: all(is_ == local[i % period] for i, is_ in enumerate(local))
  period = next(period for period in range(1, len(local) + 1) if repeats(period))
  return {
    'window': window,
    'layer_pattern': tuple('local' if is_ else 'global' for is_ in local[:period]),
  }


def decoder_json(config: DecoderConfig) -> Json:
  """The config.json of a DecoderConfig; ValueError where transformers has no such model."""
  family = _family(config)
  gemma = family == 'gemma3_text'
  kinds = [config.is_local(i) for i in range(config.num_decoder_layers)]
  raw: Json = {
    'architectures': [f'{CLASSES[family]}ForCausalLM'],
    'model_type': family,
    **huggingface_configs.as_json(config, _NUMBERS),
    'num_key_value_heads': config.num_kv_heads,
    'head_dim': config.head_dim,
    'hidden_activation' if gemma else 'hidden_act': huggingface_configs.inverse(
      _ACTIVATIONS, config, 'mlp_activations'
    ),
    'rms_norm_eps': config.norm_epsilon,
    'tie_word_embeddings': config.logits_via_embedding,
    **{'bos_token_id': config.bos_id, 'eos_token_id': config.eos_id},
    'pad_token_id': config.pad_id,
    **rope_fields.write(config, by_kind=gemma),
  }
  if family == 'mistral':
    raw['sliding_window'] = config.window
  elif family != 'llama':
    raw['layer_types'] = ['sliding_attention' if local else 'full_attention' for local in kinds]
    raw['sliding_window'] = config.window
  if family.startswith('qwen'):
    raw |= {'use_sliding_window': any(kinds), 'max_window_layers': config.num_decoder_layers}
  if gemma:
    raw['query_pre_attn_scalar'] = round((config.query_scale or config.head_dim**-0.5) ** -2)
    raw['sliding_window'] = config.window or _DEFAULTS[family]['sliding_window']
  read = decoder_config(raw, 'config.json', tied=config.logits_via_embedding)
  ours, theirs = _computed(config), _computed(read)
  if differing := [name for name in ours if ours[name] != theirs[name]]:
    name = differing[0]
    raise ValueError(
      f'DecoderConfig.{name} {ours[name]} has no name in the configuration of a {family} model, '
      f'which would have {theirs[name]}: transformers has no such model.'
    )
  return raw


def _family(config: DecoderConfig) -> str:
  if config.post_norms:
    return 'gemma3_text'
  if config.query_key_norm:
    return 'qwen3'
  if config.attention_bias:
    return 'qwen2'
  return 'llama' if config.window is None else 'mistral'


def _computed(config: DecoderConfig) -> Json:
  """What a configuration computes, however it says it."""
  fields = dataclasses.asdict(config)
  local = [config.is_local(i) for i in range(config.num_decoder_layers)]
  fields['layer_pattern'] = local
  scaling = fields['rope_scaling']
  if not any(local):
    fields['window'] = fields['local_rope_base'] = None
  elif scaling is None and config.local_rope_base is None:
    fields['local_rope_base'] = config.rope_base
  if scaling is not None and scaling['original_max_positions'] is None:
    scaling['original_max_positions'] = config.max_positions
  scale = config.query_scale or config.head_dim**-0.5
  fields['query_scale'] = round(scale, 12)
  return {name: value for name, value in fields.items() if name not in _NOT_COMPUTED}
