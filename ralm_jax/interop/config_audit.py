"""What else a config.json says: refused where it changes the computation, else named.

A field is obeyed (`huggingface_configs`), or without effect on what a trained model computes, or
has the one value that we compute, or is a choice of decoding; what is none of these is not known.
"""

from __future__ import annotations

import json
import os
from typing import Any

from ralm_jax.interop import config_fields, huggingface_decoder
from ralm_jax.interop.huggingface_configs import Json

# The values that we compute, by family and by field; absent and null are fine.
_FIXED: dict[str, dict[str, tuple[Any, ...]]] = {
  '': {
    'quantization_config': (),
    'auto_map': (),  # Code of its own.
    'pruned_heads': ({},),
    'tie_encoder_decoder': (False,),
    'is_decoder': (False,),
    'add_cross_attention': (False,),
    'cross_attention_hidden_size': (),
  },
  't5': {'is_encoder_decoder': (True,)},
  'bart': {'is_encoder_decoder': (True,), 'extra_pos_embeddings': (2,)},
  'bert': {'is_encoder_decoder': (False,)},
  'gemma3': {'is_encoder_decoder': (False,)},
}
_DECODER_FIXED: dict[str, tuple[Any, ...]] = {
  'is_encoder_decoder': (False,),
  'attention_bias': (False,),
  'mlp_bias': (False,),
  'rope_interleaved': (False,),
  'attn_logit_softcapping': (),
  'final_logit_softcapping': (),
  'use_bidirectional_attention': (False,),
}
_FIXED |= dict.fromkeys(('llama', 'mistral', 'qwen3', 'gemma3_text'), _DECODER_FIXED)
# Qwen 2 has biases, whatever it says.
_FIXED['qwen2'] = _DECODER_FIXED | {'attention_bias': (True, False)}
_OBEYED = {
  't5': (
    'vocab_size d_model num_heads d_kv d_ff num_layers num_decoder_layers feed_forward_proj '
    'relative_attention_num_buckets relative_attention_max_distance layer_norm_epsilon '
    'scale_decoder_outputs tie_word_embeddings'
  ),
  'bart': (
    'vocab_size d_model encoder_attention_heads decoder_attention_heads encoder_layers '
    'decoder_layers encoder_ffn_dim decoder_ffn_dim max_position_embeddings activation_function '
    'scale_embedding tie_word_embeddings forced_bos_token_id forced_eos_token_id '
    'force_bos_token_to_be_generated normalize_before add_final_layer_norm normalize_embedding '
    'static_position_embeddings add_bias_logits'
  ),
  'bert': (
    'vocab_size hidden_size num_attention_heads num_hidden_layers intermediate_size '
    'max_position_embeddings type_vocab_size hidden_act layer_norm_eps projection_dim '
    'position_embedding_type'
  ),
  # The text part has a configuration of its own; images are not read.
  'gemma3': 'text_config vision_config mm_tokens_per_image',
}
_DECODER = (
  'vocab_size hidden_size num_attention_heads num_key_value_heads head_dim num_hidden_layers '
  'intermediate_size max_position_embeddings rms_norm_eps tie_word_embeddings rope_theta '
  'rope_scaling rope_parameters partial_rotary_factor bos_token_id '
)
_QWEN = f'{_DECODER} hidden_act use_sliding_window sliding_window max_window_layers layer_types'
_OBEYED |= {
  'llama': f'{_DECODER} hidden_act',
  'mistral': f'{_DECODER} hidden_act sliding_window',
  **{'qwen2': _QWEN, 'qwen3': _QWEN},
  'gemma3_text': f'{_DECODER} hidden_activation sliding_window sliding_window_pattern layer_types '
  'query_pre_attn_scalar rope_local_base_freq',
}
_IDS = 'pad_token_id eos_token_id bos_token_id decoder_start_token_id'
# Of training, of the file, of other heads, and what other fields say again.
_WITHOUT_EFFECT = frozenset(
  f"""{_IDS} sep_token_id model_type architectures name_or_path transformers_version dtype
  torch_dtype torchscript use_bfloat16 tf_legacy_loss return_dict output_attentions
  output_hidden_states output_past use_cache gradient_checkpointing chunk_size_feed_forward
  attn_implementation tokenizer_class finetuning_task problem_type id2label label2id
  num_labels tie_word_embeddings init_std initializer_range initializer_factor
  attention_probs_dropout_prob hidden_dropout_prob dropout_rate encoder_layerdrop
  decoder_layerdrop n_positions num_hidden_layers is_gated_act dense_act_fn directionality
  pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head
  pooler_type cache_implementation pretraining_tp is_llama_config transformers.js_config
  image_token_index boi_token_index eoi_token_index""".split()
)
# How answers are made, which a command says here, and what transformers does of itself.
_DECODING: Json = {
  **dict.fromkeys(('no_repeat_ngram_size', 'encoder_no_repeat_ngram_size', 'min_length'), 0),
  **dict.fromkeys(('num_beams', 'num_beam_groups', 'num_return_sequences'), 1),
  **dict.fromkeys(('length_penalty', 'repetition_penalty', 'temperature', 'top_p', 'typical_p'), 1),
  **{'diversity_penalty': 0.0, 'top_k': 50, 'max_length': 20},
  **dict.fromkeys(('early_stopping', 'do_sample', 'bad_words_ids', 'task_specific_params')),
  **dict.fromkeys(('suppress_tokens', 'begin_suppress_tokens', 'prefix', 'max_new_tokens')),
  **dict.fromkeys(('forced_bos_token_id', 'forced_eos_token_id', 'remove_invalid_values')),
  **dict.fromkeys(('exponential_decay_length_penalty', 'output_scores')),
}
_ARCHITECTURES = {
  't5': ('T5ForConditionalGeneration', 'T5WithLMHeadModel', 'T5Model'),
  'bart': ('BartForConditionalGeneration', 'BartModel'),
  'bert': ('BertModel', 'BertForMaskedLM', 'BertForPreTraining', 'Contriever')
  + ('DPRQuestionEncoder', 'DPRContextEncoder'),
  'gemma3_text': ('Gemma3ForCausalLM', 'Gemma3TextModel'),
  'gemma3': ('Gemma3ForConditionalGeneration', 'Gemma3Model'),
}
_ARCHITECTURES |= {
  family: (f'{name}ForCausalLM', f'{name}Model')
  for family, name in huggingface_decoder.CLASSES.items()
  if family != 'gemma3_text'
}


def check(raw: Json, where: str, family: str, generation: Json | None = None) -> list[str]:
  """What is not obeyed of a config.json and of the generation_config.json beside it, in lines.

  Raises ValueError for what changes the computation of the model in a way that we do not have.
  """
  for field, allowed in (_FIXED[''] | _FIXED[family]).items():
    if raw.get(field) is not None and raw[field] not in allowed:
      only = f'; only {json.dumps(allowed[0])} is' if allowed else ''
      raise ValueError(
        f'{where}: {field} is {json.dumps(raw[field])}, which is not computed here{only}.'
      )
  notes, file = [], os.path.basename(where)
  architectures = config_fields.names(raw, 'architectures', where)
  if other := [name for name in architectures if name not in _ARCHITECTURES[family]]:
    read_as = _ARCHITECTURES[family][0]
    notes.append(f'not obeyed: {file}: architecture {", ".join(other)}; read as {read_as}')
  obeyed = {*_OBEYED[family].split(), *_FIXED[''], *_FIXED[family]}
  known = obeyed | _WITHOUT_EFFECT | _DECODING.keys()
  unknown = {name: value for name, value in raw.items() if name not in known}
  if said := _said(unknown):
    notes.append(f'not obeyed: {file}: {said}; not known')
  if family == 'bert':
    return notes  # It makes no answers.
  generation = generation or {}
  other_ids = {name for name in _IDS.split() if raw.get(name) not in (None, generation.get(name))}
  if family in huggingface_decoder.CLASSES or family == 'gemma3':
    other_ids = set()  # Its vocabulary reads them.
  silent = (obeyed | _WITHOUT_EFFECT) - other_ids
  by_file = {
    'generation_config.json': {n: value for n, value in generation.items() if n not in silent},
    file: {name: raw[name] for name in raw if name in _DECODING.keys() - obeyed},
  }
  for name, fields in by_file.items():
    if said := _said(fields):
      notes.append(f'not obeyed: {name}: {said}; answers are made as the command says')
  return notes


def _said(fields: Json) -> str:
  """Those that say something, for people."""
  return ', '.join(
    f'{name} = {json.dumps(value):.40}'
    for name, value in fields.items()
    if value is not None
    and value is not False
    and _DECODING.get(name) != value
    and not name.startswith('_')
    and not name.endswith('dropout')
  )
