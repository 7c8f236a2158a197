"""Decoder-only models of Hugging Face folders: every leaf, every field, and what is refused."""

import dataclasses
import json
import re

import flax.traverse_util
import numpy as np
import pytest

pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')


from ralm_jax.interop import (
  config_audit,
  decoder_maps,
  huggingface,
  huggingface_decoder,
  part as part_lib,
)
from ralm_jax.models.decoder_config import DecoderConfig, RopeScaling
from tests.interop import huggingface_folders as folders

FAMILIES = list(folders.DECODERS)


def _equal(params, expected):
  found = flax.traverse_util.flatten_dict(params, sep='/')
  assert found.keys() == expected.keys()
  for path, array in found.items():
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, expected[path], path)


@pytest.mark.parametrize('family', FAMILIES)
def test_every_leaf_is_where_it_belongs(family, tmp_path):
  peer = folders.decoder(family)
  peer.save_pretrained(tmp_path)
  _, params = huggingface.load_decoder(tmp_path)
  _equal(params, folders.decoder_leaves(peer))
  # A file of a folder names the same, and a shard its whole.
  _equal(huggingface.load_decoder(tmp_path / 'model.safetensors')[1], folders.decoder_leaves(peer))
  peer.save_pretrained(tmp_path / 'sharded', max_shard_size='9KB')
  shard = next((tmp_path / 'sharded').glob('*-of-*.safetensors'))
  _equal(huggingface.load_decoder(shard)[1], folders.decoder_leaves(peer))


_BASE = dict(
  vocab_size=64, emb_dim=24, num_heads=4, num_kv_heads=2, head_dim=6, num_decoder_layers=3,
  mlp_dim=32, max_positions=96, norm_epsilon=1e-6, bos_id=1, eos_id=2, pad_id=0,
)  # fmt: skip
_LLAMA3 = RopeScaling('llama3', 8.0, 32, low_frequency_factor=1.0, high_frequency_factor=4.0)
CONFIGS = {
  'llama': {'norm_epsilon': 1e-5},
  'llama3': {'head_dim': 16, 'rope_base': 1000.0, 'rope_scaling': _LLAMA3},
  'smollm': {'logits_via_embedding': True, 'rope_base': 5000.0},
  'mistral': {'window': 5, 'head_dim': 8},
  'qwen2': {
    'attention_bias': True, 'window': 4, 'layer_pattern': ('global', 'local', 'local'),
  },
  'qwen3': {'head_dim': 8, 'logits_via_embedding': True, 'query_key_norm': True},
  'gemma3': {
    'head_dim': 8, 'logits_via_embedding': True, 'query_key_norm': True, 'post_norms': True,
    'scale_embedding': True, 'mlp_activations': ('gelu', 'linear'), 'query_scale': 6**-0.5,
    'window': 4, 'layer_pattern': ('local', 'global'), 'rope_base': 1e6, 'local_rope_base': 1e4,
  },
}  # fmt: skip


@pytest.mark.parametrize('family', FAMILIES)
def test_every_field_is_obeyed(family, tmp_path):
  folders.decoder(family).save_pretrained(tmp_path)
  part = huggingface.open_decoder(tmp_path)
  assert part.config == DecoderConfig(**(_BASE | CONFIGS[family]))
  assert [note for note in part.notes if not note.startswith('lm_head.weight is not there')] == []
  assert huggingface.open_decoder(tmp_path, dtype='bfloat16').config.dtype == 'bfloat16'


@pytest.mark.parametrize('family', FAMILIES)
def test_what_is_written_is_read_back(family):
  config = DecoderConfig(**(_BASE | CONFIGS[family]))
  raw = huggingface_decoder.decoder_json(config)
  tied = config.logits_via_embedding
  assert huggingface_decoder.decoder_config(raw, 'c', tied=tied) == config
  assert config_audit.check(raw, 'c', raw['model_type']) == []


def _read(family, **said):
  raw = {'model_type': family, 'vocab_size': 64, 'hidden_size': 24, 'num_hidden_layers': 3}
  raw |= {'num_attention_heads': 4, 'intermediate_size': 32}
  return huggingface_decoder.decoder_config(raw | said, 'config.json', tied=False)


@pytest.mark.parametrize(
  'said, base, scaling',
  [
    ({'rope_theta': 500000}, 5e5, None),
    ({'rope_scaling': {'type': 'linear', 'factor': 2}}, 1e4, RopeScaling('linear', 2.0)),
    ({'rope_scaling': {'rope_type': 'dynamic', 'factor': 4.0}}, 1e4, RopeScaling('dynamic', 4.0)),
    (
      {'rope_theta': 9.0, 'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0, 'beta_fast': 16}},
      9.0,
      RopeScaling('yarn', 4.0, 2048, beta_fast=16.0),
    ),
    (
      {'rope_parameters': {
        'rope_type': 'yarn', 'original_max_position_embeddings': 512, 'mscale': 1.0,
        'mscale_all_dim': 0.5, 'rope_theta': 7.0, 'truncate': True,
      }},
      7.0,
      RopeScaling('yarn', 4.0, 512, attention_factor=1.0648216),
    ),
  ],
)  # fmt: skip
def test_rope_in_the_words_of_transformers_4_and_5(said, base, scaling):
  config = _read('llama', **said)
  found = config.rope_scaling
  if found is not None and found.attention_factor is not None:
    found = dataclasses.replace(found, attention_factor=round(found.attention_factor, 7))
  assert (config.rope_base, found) == (base, scaling)


def test_what_a_config_leaves_out_is_as_in_its_class():
  """As the first files were written; heads, for one, are then as many as keys and values."""
  for family in ('llama', 'mistral', 'qwen2', 'qwen3', 'gemma3_text'):
    said = {'num_attention_heads': 32} if family != 'llama' else {}
    raw = {'vocab_size': 64, 'hidden_size': 64, 'num_hidden_layers': 31, 'intermediate_size': 32}
    raw |= {'num_attention_heads': 4} | said
    name = huggingface_decoder.CLASSES[family]
    name += 'TextConfig' if family == 'gemma3_text' else 'Config'
    whole = getattr(transformers, name)(**raw).to_dict()
    read = lambda raw: huggingface_decoder.decoder_config(raw, 'c', tied=False)
    assert read({'model_type': family} | raw) == read(whole), family


def _said(text):
  return json.loads('{' + text + '}')


# As they were released, in what is special about each.
RELEASED = {
  'SmolLM2-135M-Instruct': _said(
    """"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576,
    "initializer_range": 0.041666, "intermediate_size": 1536, "is_llama_config": true,
    "max_position_embeddings": 8192, "mlp_bias": false, "model_type": "llama",
    "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false,
    "rope_scaling": null, "rope_theta": 100000, "tie_word_embeddings": true,
    "torch_dtype": "bfloat16", "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 49152"""
  ),
  'Llama-3.2-1B-Instruct': _said(
    """"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
    "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
    "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
    "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0",
    "use_cache": true, "vocab_size": 128256"""
  ),
  'Mistral-7B-v0.1': _said(
    """"architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
    "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 32000"""
  ),
  'Qwen2.5-0.5B-Instruct': _said(
    """"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
    "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21,
    "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
    "use_cache": true, "use_sliding_window": false, "vocab_size": 151936"""
  ),
  'Qwen3-0.6B': _said(
    """"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
    "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
    "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_sliding_window": false,
    "vocab_size": 151936"""
  ),
  'gemma-3-1b-it': _said(
    """"architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "attn_logit_softcapping": null, "bos_token_id": 2, "cache_implementation": "hybrid",
    "eos_token_id": [1, 106], "final_logit_softcapping": null, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "initializer_range": 0.02,
    "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
    "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
    "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000, "rope_scaling": null, "rope_theta": 1000000,
    "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
    "use_cache": true, "vocab_size": 262144"""
  ),
}


@pytest.mark.parametrize('name', list(RELEASED))
def test_released_configurations_are_known_and_read_as_transformers_does(name):
  raw = RELEASED[name]
  family = raw['model_type']
  assert config_audit.check(raw, 'c', family) == []
  class_name = huggingface_decoder.CLASSES[family] + ('Text' if family == 'gemma3_text' else '')
  fifth = getattr(transformers, f'{class_name}Config')(**raw).to_dict()
  assert config_audit.check(fifth, 'c', family) == []
  read = lambda raw: huggingface_decoder.decoder_config(raw, 'c', tied=True)
  assert read(raw) == read(fifth)
  # And written in the words of the fifth.
  assert read(huggingface_decoder.decoder_json(read(raw))) == read(raw)


def test_a_text_part_of_gemma_3(tmp_path):
  """The folder that reads images, too."""
  text = folders.decoder('gemma3').config
  vision = transformers.SiglipVisionConfig(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    image_size=28, patch_size=14,
  )  # fmt: skip
  whole = transformers.Gemma3Config(
    text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=63
  )
  peer = folders.randomize(transformers.Gemma3ForConditionalGeneration(whole))
  peer.save_pretrained(tmp_path)
  part = huggingface.open_decoder(tmp_path)
  alone = transformers.Gemma3ForCausalLM(text)
  alone.model.load_state_dict(peer.model.language_model.state_dict())
  assert part.config == DecoderConfig(**(_BASE | CONFIGS['gemma3']))
  _equal(part.read(), folders.decoder_leaves(alone))
  assert 'its text part alone is read, not what reads images' in part.notes
  unread = part_lib.leftovers([part])
  assert {left.reason for left in unread} == {'of images, which are not read'}


@pytest.mark.parametrize(
  'ids, eos, pad',
  [
    ({'eos_token_id': 2, 'pad_token_id': 2}, 2, 0),  # SmolLM2 pads with its end.
    ({'eos_token_id': [0, 5], 'pad_token_id': None}, 0, 1),
    ({'eos_token_id': [5, 3], 'pad_token_id': 3}, 5, 0),
    ({'eos_token_id': 4, 'pad_token_id': -1}, 4, 0),
    ({'eos_token_id': 4, 'pad_token_id': 7}, 4, 7),
  ],
)
def test_padding_is_never_an_end(ids, eos, pad):
  config = _read('llama', **ids)
  assert (config.eos_id, config.pad_id) == (eos, pad)


def _edit(folder, **said):
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | said))


@pytest.mark.parametrize(
  'family, said, message',
  [
    ('llama', {'rope_parameters': {'rope_type': 'longrope', 'factor': 2.0}}, "'longrope'"),
    ('llama', {'rope_parameters': {'rope_type': 'linear'}}, "no field 'factor'"),
    ('llama', {'rope_parameters': {'mrope_section': [1, 2]}}, r'mrope_section is \[1, 2\]'),
    ('llama', {'partial_rotary_factor': 0.5}, 'partial_rotary_factor is 0.5'),
    ('llama', {'rope_parameters': {'full_attention': {}}}, 'by kind of attention are not computed'),
    ('llama', {'attention_bias': True}, 'attention_bias is true'),
    ('llama', {'mlp_bias': True}, 'mlp_bias is true'),
    ('llama', {'hidden_act': 'swish'}, "hidden_act 'swish' is not known"),
    ('llama', {'num_attention_heads': 3}, 'num_kv_heads 2 must divide num_heads 3'),
    ('llama', {'quantization_config': {'bits': 4}}, 'quantization_config is'),
    ('llama', {'vocab_size': 65}, r"embed_tokens.weight' has shape \(64, 24\), expected \(65"),
    ('llama', {'num_hidden_layers': 4}, "no tensor 'model.layers.3.input_layernorm.weight'"),
    ('qwen3', {'layer_types': ['full_attention'] * 2, 'use_sliding_window': True,
               'sliding_window': 3}, 'layer_types is .* expected 3 of'),
    ('gemma3', {'final_logit_softcapping': 30.0}, 'final_logit_softcapping is 30.0'),
    ('gemma3', {'use_bidirectional_attention': True}, 'use_bidirectional_attention is true'),
    ('gemma3', {'rope_parameters': {'sliding_attention': {'rope_type': 'linear', 'factor': 2.0}}},
     "sliding_attention are of rope_type 'linear'"),
    ('gemma3', {'model_type': 'gemma2'}, "model_type 'gemma2', expected llama or mistral"),
  ],
)  # fmt: skip
def test_what_is_computed_otherwise_is_refused(family, said, message, tmp_path):
  folders.decoder(family).save_pretrained(tmp_path)
  _edit(tmp_path, **said)
  with pytest.raises(ValueError, match=message):
    huggingface.load_decoder(tmp_path)


@pytest.mark.parametrize(
  'family, said, note',
  [
    ('llama', {'temperature': 0.5}, 'temperature = 0.5; answers are made as the command says'),
    ('llama', {'sliding_window': 7}, 'not obeyed: config.json: sliding_window = 7; not known'),
    ('llama', {'architectures': ['FalconForCausalLM']}, 'Falcon.*; read as LlamaForCausalLM'),
  ],
)
def test_what_is_not_obeyed_is_named(family, said, note, tmp_path):
  folders.decoder(family).save_pretrained(tmp_path)
  _edit(tmp_path, **said)
  assert any(re.search(note, line) for line in huggingface.open_decoder(tmp_path).notes)


def test_a_head_of_its_own_though_said_to_be_tied(tmp_path):
  folders.decoder('llama').save_pretrained(tmp_path)
  _edit(tmp_path, tie_word_embeddings=True)
  part = huggingface.open_decoder(tmp_path)
  assert not part.config.logits_via_embedding
  assert any('lm_head.weight is another than' in note for note in part.notes)


def test_what_transformers_cannot_say_is_refused():
  for changes, message in (
    ({'query_scale': 0.7}, 'query_scale 0.7 has no name in the configuration of a llama model'),
    ({'scale_embedding': True}, 'scale_embedding True has no name'),
    ({'window': 4, 'layer_pattern': ('local', 'global')}, 'layer_pattern .* of a mistral model'),
  ):
    with pytest.raises(ValueError, match=message):
      huggingface_decoder.decoder_json(DecoderConfig(**(_BASE | changes)))


@pytest.mark.parametrize('pattern, depth', [((), 3), (('local', 'global'), 5), (('local',) * 4, 3)])
def test_scanned_paths_and_back(pattern, depth):
  config = DecoderConfig(**(_BASE | {'window': 4, 'layer_pattern': pattern}))
  config = dataclasses.replace(config, num_decoder_layers=depth)
  places = {}
  for entry in decoder_maps.entries(config, decoder_maps.huggingface_names(config)):
    place = decoder_maps.scanned(config, entry.path)
    assert place not in places and decoder_maps.unscanned(config, *place) == entry.path
    places[place] = entry.path
  rows = [row for path, row in places if path.endswith('layers/layer_0/mlp/wo/kernel')]
  assert rows == list(range(depth // (len(pattern) or 1)))
