"""Hugging Face's config.json and our configurations, in both directions."""

from __future__ import annotations

import os
from typing import Any

from ralm_jax.interop import config_fields
from ralm_jax.interop.files import weight_files
from ralm_jax.models.bart import BartConfig
from ralm_jax.models.bert import BertConfig
from ralm_jax.models.t5 import T5Config

PathLike = str | os.PathLike[str]
Json = dict[str, Any]
_Table = dict[str, tuple[str, int | None]]


# Whole numbers of at least 1 by our name: theirs, and what they are where absent.
def table(text: str, **defaults: int) -> _Table:
  """Of OURS:THEIRS, or one name for both."""
  pairs = [(pair.partition(':')[0], pair.rpartition(':')[2]) for pair in text.split()]
  return {ours: (theirs, defaults.get(ours)) for ours, theirs in pairs}


_T5_NUMBERS = table(
  'vocab_size emb_dim:d_model num_heads head_dim:d_kv mlp_dim:d_ff num_encoder_layers:num_layers '
  'relative_attention_num_buckets relative_attention_max_distance',
  relative_attention_num_buckets=32,
  relative_attention_max_distance=128,
)
_BERT_NUMBERS = table(
  'vocab_size emb_dim:hidden_size num_heads:num_attention_heads num_layers:num_hidden_layers '
  'mlp_dim:intermediate_size max_positions:max_position_embeddings type_vocab_size',
  type_vocab_size=2,
)
_BART_NUMBERS = table(
  'vocab_size emb_dim:d_model num_heads:encoder_attention_heads num_encoder_layers:encoder_layers '
  'num_decoder_layers:decoder_layers encoder_mlp_dim:encoder_ffn_dim '
  'decoder_mlp_dim:decoder_ffn_dim max_positions:max_position_embeddings',
  max_positions=1024,
)
# Ids of tokens, likewise; of the models that have them.
_IDS = 'pad_id:pad_token_id eos_id:eos_token_id decoder_start_id:decoder_start_token_id'
_T5_IDS = table(_IDS, pad_id=0, eos_id=1, decoder_start_id=0)
# The end is absent from the first checkpoints, whose class made it the end of sequence.
_BART_IDS = table(f'{_IDS} bos_id:bos_token_id', pad_id=1, bos_id=0, eos_id=2, decoder_start_id=2)
_T5_ACTIVATIONS = {
  'relu': ('relu',),
  **{f'gated-{name}': (name, 'linear') for name in ('gelu', 'silu')},
}
_ACTIVATIONS = {'gelu': 'gelu_exact', 'gelu_new': 'gelu', 'relu': 'relu'}


def read_config(directory: PathLike, model_types: tuple[str, ...]) -> Json:
  """config.json of a folder; ValueError where it is of another model_type."""
  path = os.path.join(directory, 'config.json')
  config = weight_files.read_json(path)
  check_type(config, model_types, path)
  return config


def check_type(config: Json, model_types: tuple[str, ...], where: str) -> None:
  found = config.get('model_type')
  if found not in model_types:
    raise ValueError(f'{where} is of model_type {found!r}, expected {" or ".join(model_types)}.')


def numbers(raw: Json, where: str, table: _Table, least: int = 1) -> dict[str, int]:
  return {
    ours: config_fields.whole_number(raw, theirs, where, default, least)
    for ours, (theirs, default) in table.items()
  }


def as_json(config: Any, *tables: _Table) -> Json:
  """The fields of tables by their names."""
  return {theirs: getattr(config, ours) for table in tables for ours, (theirs, _) in table.items()}


def known(raw: Json, field: str, default: str, table: dict[str, Any], where: str) -> Any:
  value = raw.get(field, default)
  if not isinstance(value, str) or value not in table:
    raise ValueError(f'{where}: {field} {value!r} is not known; known: {sorted(table)}.')
  return table[value]


def t5_config(raw: Json, where: str, *, tied: bool, **overrides: Any) -> T5Config:
  """Of a config.json, named `where` in errors; `tied`: the head is the embedding."""
  scale = raw.get('scale_decoder_outputs')
  if scale is None:
    # transformers 5 writes tie_word_embeddings=true for every T5 and keeps the
    # original meaning in scale_decoder_outputs.
    scale = raw.get('tie_word_embeddings', True)
  fields: dict[str, Any] = numbers(raw, where, _T5_NUMBERS)
  fields |= numbers(raw, where, _T5_IDS, least=0)
  depth = fields['num_encoder_layers']
  fields |= dict(
    num_decoder_layers=config_fields.whole_number(raw, 'num_decoder_layers', where, depth),
    mlp_activations=known(raw, 'feed_forward_proj', 'relu', _T5_ACTIVATIONS, where),
    dropout_rate=0.0,
    logits_via_embedding=tied,
    scale_decoder_outputs=bool(scale),
    layer_norm_epsilon=config_fields.positive(raw, 'layer_norm_epsilon', where, 1e-6),
  )
  return T5Config(**(fields | overrides))


def t5_json(config: T5Config) -> Json:
  """The config.json of a T5Config."""
  scale = config.scale_decoder_outputs
  return {
    'architectures': ['T5ForConditionalGeneration'],
    'model_type': 't5',
    'is_encoder_decoder': True,
    **as_json(config, _T5_NUMBERS, _T5_IDS),
    'num_decoder_layers': config.num_decoder_layers,
    'feed_forward_proj': inverse(_T5_ACTIVATIONS, config, 'mlp_activations'),
    **_dropout(config.dropout_rate, 'dropout_rate'),
    'tie_word_embeddings': config.logits_via_embedding,
    'scale_decoder_outputs': bool(config.logits_via_embedding if scale is None else scale),
    'layer_norm_epsilon': config.layer_norm_epsilon,
  }


def bert_config(raw: Json, where: str, **overrides: Any) -> BertConfig:
  """Of BERT, Contriever or one tower of DPR; see `t5_config`."""
  if raw.get('position_embedding_type', 'absolute') != 'absolute':
    raise ValueError(
      f'{where}: position_embedding_type {raw["position_embedding_type"]!r} '
      "is not supported; only 'absolute' is."
    )
  fields: dict[str, Any] = numbers(raw, where, _BERT_NUMBERS)
  fields |= dict(
    mlp_activation=known(raw, 'hidden_act', 'gelu', _ACTIVATIONS, where),
    layer_norm_epsilon=config_fields.positive(raw, 'layer_norm_eps', where, 1e-12),
    projection_dim=config_fields.whole_number(raw, 'projection_dim', where, 0, least=0),
    pad_id=config_fields.token_id(raw, 'pad_token_id', where, 0),
  )
  return BertConfig(**(fields | overrides))


def bert_json(config: BertConfig) -> Json:
  """The config.json of a BertConfig, as BERT; DPR changes two fields."""
  return {
    'architectures': ['BertModel'],
    'model_type': 'bert',
    **as_json(config, _BERT_NUMBERS),
    'hidden_act': inverse(_ACTIVATIONS, config, 'mlp_activation'),
    'layer_norm_eps': config.layer_norm_epsilon,
    **_dropout(config.dropout_rate, 'hidden_dropout_prob', 'attention_probs_dropout_prob'),
    'position_embedding_type': 'absolute',
    'pad_token_id': config.pad_id,
  }


def bart_config(
  raw: Json, where: str, generation: Json | None = None, **overrides: Any
) -> BartConfig:
  """Of BART; see `t5_config`. A generation_config.json has the last word about forced tokens."""
  _check_is_bart(raw, where)
  fields: dict[str, Any] = numbers(raw, where, _BART_NUMBERS)
  fields |= numbers(raw, where, _BART_IDS, least=0)
  forced = {'forced_eos_token_id': fields['eos_id'], 'forced_bos_token_id': None}

  def read_forced(said: Json, where: str) -> None:
    for name in forced.keys() & said.keys():
      forced[name] = config_fields.optional_number(said, name, where)

  read_forced(raw, where)
  if raw.get('force_bos_token_to_be_generated'):
    forced['forced_bos_token_id'] = fields['bos_id']
  read_forced(generation or {}, f'generation_config.json beside {where}')
  fields |= dict(
    mlp_activation=known(raw, 'activation_function', 'gelu', _ACTIVATIONS, where),
    scale_embedding=bool(raw.get('scale_embedding', False)),
    dropout_rate=0.0,
    forced_first_id=forced['forced_bos_token_id'],
    forced_last_id=forced['forced_eos_token_id'],
  )
  return BartConfig(**(fields | overrides))


def _check_is_bart(raw: Json, where: str) -> None:
  """Raises ValueError for BART's relatives, which have a code of their own."""
  unset = 'normalize_before add_final_layer_norm static_position_embeddings add_bias_logits'
  for field in (*unset.split(), 'normalize_embedding'):
    needed = field == 'normalize_embedding'
    if raw.get(field, needed) != needed:
      raise ValueError(f'{where}: {field} {raw[field]!r} is not supported; a BART has {needed}.')
  heads = config_fields.whole_number(raw, 'encoder_attention_heads', where)
  if raw.get('decoder_attention_heads', heads) != heads:
    raise ValueError(
      f'{where}: {heads} encoder and {raw["decoder_attention_heads"]} decoder '
      'attention heads; a BART has as many of both.'
    )
  if not raw.get('tie_word_embeddings', True):
    raise ValueError(f'{where}: tie_word_embeddings is false; a BART has a tied head.')


def bart_json(config: BartConfig) -> Json:
  """The config.json of a BartConfig."""
  return {
    'architectures': ['BartForConditionalGeneration'],
    'model_type': 'bart',
    'is_encoder_decoder': True,
    **as_json(config, _BART_NUMBERS, _BART_IDS),
    'decoder_attention_heads': config.num_heads,
    'activation_function': inverse(_ACTIVATIONS, config, 'mlp_activation'),
    'scale_embedding': config.scale_embedding,
    **_dropout(config.dropout_rate, 'dropout'),
    'tie_word_embeddings': True,
    'forced_bos_token_id': config.forced_first_id,
    'forced_eos_token_id': config.forced_last_id,
  }


def _dropout(rate: float, *names: str) -> Json:
  # Ours is set for a run, theirs belongs to a model: none is not a choice, and
  # their own default is what it was trained with.
  return dict.fromkeys(names, rate) if rate else {}


def inverse(table: dict[str, Any], config: Any, field: str) -> str:
  value = getattr(config, field)
  for name, ours in table.items():
    if ours == value:
      return name
  raise ValueError(
    f"{type(config).__name__}.{field} {value!r} has no name in Hugging Face's configurations; "
    f'it knows {sorted(table)}.'
  )
