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

_T5_ACTIVATIONS = {
  'relu': ('relu',),
  'gated-gelu': ('gelu', 'linear'),
  'gated-silu': ('silu', 'linear'),
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


def _known(value: Any, table: dict[Any, Any], field: str, where: str) -> Any:
  if not isinstance(value, str) or value not in table:
    raise ValueError(f'{where}: {field} {value!r} is not known; known: {sorted(table)}.')
  return table[value]


def t5_config(raw: Json, where: str, *, tied: bool, **overrides: Any) -> T5Config:
  """Args: raw: a config.json; where: names it in errors; tied: the head is
  the embedding, by the weights."""
  scale = raw.get('scale_decoder_outputs')
  if scale is None:
    # transformers 5 writes tie_word_embeddings=true for every T5 and keeps the
    # original meaning in scale_decoder_outputs.
    scale = raw.get('tie_word_embeddings', True)
  n_layers = config_fields.whole_number(raw, 'num_layers', where)
  return T5Config(
    **{
      **dict(
        vocab_size=config_fields.whole_number(raw, 'vocab_size', where),
        emb_dim=config_fields.whole_number(raw, 'd_model', where),
        num_heads=config_fields.whole_number(raw, 'num_heads', where),
        head_dim=config_fields.whole_number(raw, 'd_kv', where),
        mlp_dim=config_fields.whole_number(raw, 'd_ff', where),
        num_encoder_layers=n_layers,
        num_decoder_layers=config_fields.whole_number(raw, 'num_decoder_layers', where, n_layers),
        mlp_activations=_known(
          raw.get('feed_forward_proj', 'relu'), _T5_ACTIVATIONS, 'feed_forward_proj', where
        ),
        dropout_rate=0.0,
        logits_via_embedding=tied,
        scale_decoder_outputs=bool(scale),
        relative_attention_num_buckets=config_fields.whole_number(
          raw, 'relative_attention_num_buckets', where, 32
        ),
        relative_attention_max_distance=config_fields.whole_number(
          raw, 'relative_attention_max_distance', where, 128
        ),
        layer_norm_epsilon=config_fields.positive(raw, 'layer_norm_epsilon', where, 1e-6),
        pad_id=config_fields.token_id(raw, 'pad_token_id', where, 0),
        eos_id=config_fields.token_id(raw, 'eos_token_id', where, 1),
        decoder_start_id=config_fields.token_id(raw, 'decoder_start_token_id', where, 0),
      ),
      **overrides,
    }
  )


def t5_json(config: T5Config) -> Json:
  """The config.json of a T5Config."""
  return {
    'architectures': ['T5ForConditionalGeneration'],
    'model_type': 't5',
    'is_encoder_decoder': True,
    'vocab_size': config.vocab_size,
    'd_model': config.emb_dim,
    'num_heads': config.num_heads,
    'd_kv': config.head_dim,
    'd_ff': config.mlp_dim,
    'num_layers': config.num_encoder_layers,
    'num_decoder_layers': config.num_decoder_layers,
    'feed_forward_proj': _inverse(
      _T5_ACTIVATIONS, config.mlp_activations, 'T5Config.mlp_activations'
    ),
    **_dropout(config.dropout_rate, 'dropout_rate'),
    'tie_word_embeddings': config.logits_via_embedding,
    'scale_decoder_outputs': bool(
      config.logits_via_embedding
      if config.scale_decoder_outputs is None
      else config.scale_decoder_outputs
    ),
    'relative_attention_num_buckets': config.relative_attention_num_buckets,
    'relative_attention_max_distance': config.relative_attention_max_distance,
    'layer_norm_epsilon': config.layer_norm_epsilon,
    'pad_token_id': config.pad_id,
    'eos_token_id': config.eos_id,
    'decoder_start_token_id': config.decoder_start_id,
  }


def bert_config(raw: Json, where: str, **overrides: Any) -> BertConfig:
  """Of BERT, Contriever or one tower of DPR; arguments as `t5_config`."""
  if raw.get('position_embedding_type', 'absolute') != 'absolute':
    raise ValueError(
      f'{where}: position_embedding_type {raw["position_embedding_type"]!r} '
      "is not supported; only 'absolute' is."
    )
  return BertConfig(
    **{
      **dict(
        vocab_size=config_fields.whole_number(raw, 'vocab_size', where),
        emb_dim=config_fields.whole_number(raw, 'hidden_size', where),
        num_heads=config_fields.whole_number(raw, 'num_attention_heads', where),
        num_layers=config_fields.whole_number(raw, 'num_hidden_layers', where),
        mlp_dim=config_fields.whole_number(raw, 'intermediate_size', where),
        mlp_activation=_known(raw.get('hidden_act', 'gelu'), _ACTIVATIONS, 'hidden_act', where),
        max_positions=config_fields.whole_number(raw, 'max_position_embeddings', where),
        type_vocab_size=config_fields.whole_number(raw, 'type_vocab_size', where, 2),
        layer_norm_epsilon=config_fields.positive(raw, 'layer_norm_eps', where, 1e-12),
        projection_dim=config_fields.whole_number(raw, 'projection_dim', where, 0, least=0),
        pad_id=config_fields.token_id(raw, 'pad_token_id', where, 0),
      ),
      **overrides,
    }
  )


def bert_json(config: BertConfig) -> Json:
  """The config.json of a BertConfig, as BERT; DPR changes two fields."""
  return {
    'architectures': ['BertModel'],
    'model_type': 'bert',
    'vocab_size': config.vocab_size,
    'hidden_size': config.emb_dim,
    'num_attention_heads': config.num_heads,
    'num_hidden_layers': config.num_layers,
    'intermediate_size': config.mlp_dim,
    'hidden_act': _inverse(_ACTIVATIONS, config.mlp_activation, 'BertConfig.mlp_activation'),
    'max_position_embeddings': config.max_positions,
    'type_vocab_size': config.type_vocab_size,
    'layer_norm_eps': config.layer_norm_epsilon,
    **_dropout(config.dropout_rate, 'hidden_dropout_prob', 'attention_probs_dropout_prob'),
    'position_embedding_type': 'absolute',
    'pad_token_id': config.pad_id,
  }


def bart_config(
  raw: Json, where: str, generation: Json | None = None, **overrides: Any
) -> BartConfig:
  """Of BART; arguments as `t5_config`.

  Args:
    raw: a config.json.
    where: names it in errors.
    generation: a generation_config.json, which has the last word about forced
      tokens.
    **overrides: fields to replace.
  """
  # Variants of BART's relatives, which have a code of their own.
  for field, needed in (
    ('normalize_before', False),
    ('add_final_layer_norm', False),
    ('static_position_embeddings', False),
    ('normalize_embedding', True),
    ('add_bias_logits', False),
  ):
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
  # Absent from the first checkpoints, whose class made it the end of sequence.
  eos_id = config_fields.token_id(raw, 'eos_token_id', where, 2)
  forced = {'forced_eos_token_id': eos_id, 'forced_bos_token_id': None}
  for name in forced:
    if name in raw:
      forced[name] = config_fields.optional_number(raw, name, where)
  if raw.get('force_bos_token_to_be_generated'):
    forced['forced_bos_token_id'] = config_fields.token_id(raw, 'bos_token_id', where, 0)
  for name in forced:
    if generation is not None and name in generation:
      forced[name] = config_fields.optional_number(
        generation, name, f'generation_config.json beside {where}'
      )
  return BartConfig(
    **{
      **dict(
        vocab_size=config_fields.whole_number(raw, 'vocab_size', where),
        emb_dim=config_fields.whole_number(raw, 'd_model', where),
        num_heads=heads,
        num_encoder_layers=config_fields.whole_number(raw, 'encoder_layers', where),
        num_decoder_layers=config_fields.whole_number(raw, 'decoder_layers', where),
        encoder_mlp_dim=config_fields.whole_number(raw, 'encoder_ffn_dim', where),
        decoder_mlp_dim=config_fields.whole_number(raw, 'decoder_ffn_dim', where),
        mlp_activation=_known(
          raw.get('activation_function', 'gelu'), _ACTIVATIONS, 'activation_function', where
        ),
        max_positions=config_fields.whole_number(raw, 'max_position_embeddings', where, 1024),
        scale_embedding=bool(raw.get('scale_embedding', False)),
        dropout_rate=0.0,
        pad_id=config_fields.token_id(raw, 'pad_token_id', where, 1),
        bos_id=config_fields.token_id(raw, 'bos_token_id', where, 0),
        eos_id=eos_id,
        decoder_start_id=config_fields.token_id(raw, 'decoder_start_token_id', where, 2),
        forced_first_id=forced['forced_bos_token_id'],
        forced_last_id=forced['forced_eos_token_id'],
      ),
      **overrides,
    }
  )


def bart_json(config: BartConfig) -> Json:
  """The config.json of a BartConfig."""
  return {
    'architectures': ['BartForConditionalGeneration'],
    'model_type': 'bart',
    'is_encoder_decoder': True,
    'vocab_size': config.vocab_size,
    'd_model': config.emb_dim,
    'encoder_attention_heads': config.num_heads,
    'decoder_attention_heads': config.num_heads,
    'encoder_layers': config.num_encoder_layers,
    'decoder_layers': config.num_decoder_layers,
    'encoder_ffn_dim': config.encoder_mlp_dim,
    'decoder_ffn_dim': config.decoder_mlp_dim,
    'activation_function': _inverse(
      _ACTIVATIONS, config.mlp_activation, 'BartConfig.mlp_activation'
    ),
    'max_position_embeddings': config.max_positions,
    'scale_embedding': config.scale_embedding,
    **_dropout(config.dropout_rate, 'dropout'),
    'tie_word_embeddings': True,
    'pad_token_id': config.pad_id,
    'bos_token_id': config.bos_id,
    'eos_token_id': config.eos_id,
    'decoder_start_token_id': config.decoder_start_id,
    'forced_bos_token_id': config.forced_first_id,
    'forced_eos_token_id': config.forced_last_id,
  }


def _dropout(rate: float, *names: str) -> Json:
  # Ours is set for a run, theirs belongs to a model: none is not a choice, and
  # their own default is what it was trained with.
  return dict.fromkeys(names, rate) if rate else {}


def _inverse(table: dict[str, Any], value: Any, field: str) -> str:
  for name, ours in table.items():
    if ours == value:
      return name
  raise ValueError(
    f"{field} {value!r} has no name in Hugging Face's configurations; it knows {sorted(table)}."
  )
