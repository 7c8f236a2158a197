"""Decoder-only models in GGUF files, written as llama.cpp does of random models of transformers."""

import flax.traverse_util
import numpy as np
import pytest

pytest.importorskip('torch')
pytest.importorskip('gguf')
transformers = pytest.importorskip('transformers')

import torch

from ralm_jax.interop import decoder_maps, gguf_decoder, huggingface, recognition
from ralm_jax.models.decoder_config import RopeScaling
from ralm_jax.models.decoder_lm import DecoderLM
from tests.interop import gguf_files, huggingface_folders as folders

ARCHITECTURES = {'gemma3_text': 'gemma3', 'mistral': 'llama'}
# Rows of a multiple of the blocks of K-quants.
WIDE = {'hidden_size': 256, 'intermediate_size': 256, 'head_dim': 64, 'num_hidden_layers': 2}


def _in_pairs(weight, heads):
  """As llama.cpp's converter permutes the rows of queries and keys."""
  halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
  return halves.swapaxes(1, 2).reshape(weight.shape)


def _write(path, peer, types='F32', **changes):
  """What llama.cpp's converter makes of a model; None as a value leaves it out."""
  config = peer.config
  architecture = ARCHITECTURES.get(config.model_type, config.model_type)
  rope = config.rope_parameters
  rope = rope.get('full_attention', rope)
  said = {
    'context_length': config.max_position_embeddings,
    'embedding_length': config.hidden_size,
    'block_count': config.num_hidden_layers,
    'feed_forward_length': config.intermediate_size,
    'attention.head_count': config.num_attention_heads,
    'attention.head_count_kv': config.num_key_value_heads,
    'attention.layer_norm_rms_epsilon': config.rms_norm_eps,
    'attention.key_length': config.head_dim if hasattr(config, 'head_dim') else None,
    'rope.freq_base': rope['rope_theta'],
  }
  if architecture == 'gemma3':
    said['attention.sliding_window'] = config.sliding_window
  metadata = {f'{architecture}.{name}': v for name, v in (said | changes).items() if v is not None}
  metadata |= {
    f'tokenizer.ggml.{name}_token_id': i for i, name in enumerate(('padding', 'bos', 'eos'))
  }
  state = {name: value.detach().float().numpy() for name, value in peer.state_dict().items()}
  if config.tie_word_embeddings:
    del state['lm_head.weight']
  ours = gguf_decoder.DecoderConfig(
    num_decoder_layers=config.num_hidden_layers, post_norms=architecture == 'gemma3',
    query_key_norm=True, attention_bias=True,
  )  # fmt: skip
  # Names by our paths; which are right is what logits tell.
  theirs, names = (
    {e.path: e.name for e in decoder_maps.entries(ours, which)}
    for which in (decoder_maps.huggingface_names(ours), decoder_maps.gguf_names(architecture))
  )
  tensors = {}
  for ours_path, name in theirs.items():
    if name not in state:
      continue
    weight = state[name]
    if architecture == 'llama' and ('/query/' in ours_path or '/key/' in ours_path):
      query = '/query/' in ours_path
      weight = _in_pairs(
        weight, config.num_attention_heads if query else config.num_key_value_heads
      )
    if architecture == 'gemma3' and 'norm' in name:
      weight = weight + 1
    tensors[names[ours_path]] = weight
  if rope['rope_type'] == 'llama3':
    tensors['rope_freqs.weight'] = _divisors(peer)
  gguf_files.write(path, architecture, metadata, tensors, types)


def _divisors(peer):
  """Of frequencies, by transformers' own."""
  config, rope = peer.config, peer.config.rope_parameters
  plain = rope['rope_theta'] ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
  return (plain / peer.model.rotary_emb.inv_freq.numpy()).astype(np.float32)


def _logits(peer, tokens):
  with torch.no_grad():
    return peer(folders.long(tokens)).logits.numpy()


def _ours(config, params, tokens):
  return DecoderLM(config).apply({'params': params}, tokens, np.ones_like(tokens, bool))


TOKENS = np.random.default_rng(0).integers(3, folders.VOCABULARY, (2, 24))
FAMILIES = {
  'llama': {}, 'smollm': {}, 'qwen3': {}, 'mistral': {'sliding_window': None},
  'llama3': {'head_dim': 64},
  'qwen2': {'use_sliding_window': False, 'tie_word_embeddings': True},
  'gemma3': {'sliding_window_pattern': 6, 'num_hidden_layers': 7, 'query_pre_attn_scalar': 8},
}  # fmt: skip


@pytest.mark.parametrize('family', list(FAMILIES))
def test_a_file_is_the_model_that_it_was_made_of(family, tmp_path):
  peer = folders.decoder(family, **FAMILIES[family])
  _write(tmp_path / 'model.gguf', peer)
  peer.save_pretrained(tmp_path / 'folder')
  expected, leaves = huggingface.load_decoder(tmp_path / 'folder')
  config, params = huggingface.load_decoder(tmp_path / 'model.gguf')
  if family == 'llama3':
    assert config.rope_scaling.factor == pytest.approx(expected.rope_scaling.factor, rel=1e-6)
    scaling = RopeScaling(**(vars(config.rope_scaling) | {'factor': expected.rope_scaling.factor}))
    config = type(config)(**(vars(config) | {'rope_scaling': scaling}))
  assert config == expected
  flat = [flax.traverse_util.flatten_dict(tree, sep='/') for tree in (params, leaves)]
  assert flat[0].keys() == flat[1].keys()
  for path in flat[0]:
    np.testing.assert_array_equal(flat[0][path], flat[1][path], path)
  np.testing.assert_allclose(_ours(config, params, TOKENS), _logits(peer, TOKENS), atol=1e-4)


@pytest.mark.parametrize('kind', gguf_files.TYPES)
def test_quantised_weights_as_transformers_reads_them(kind, tmp_path):
  """Its own reading of GGUF is the peer."""
  family = 'gemma3' if kind == 'Q4_K' else 'llama'
  peer = folders.decoder(family, **WIDE, sliding_window_pattern=6, query_pre_attn_scalar=64)
  _write(tmp_path / 'model.gguf', peer, kind, vocab_size=folders.VOCABULARY)
  config, params = huggingface.load_decoder(tmp_path)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, gguf_file='model.gguf', dtype=torch.float32
  ).eval()
  expected = folders.decoder_leaves(theirs)
  found = flax.traverse_util.flatten_dict(params, sep='/')
  assert found.keys() == expected.keys() and config.max_positions == 96
  for path, array in found.items():
    # It takes one from Gemma's norms, and adds it again when it computes.
    np.testing.assert_allclose(array, expected[path], rtol=0, atol=1e-6, err_msg=path)


@pytest.mark.parametrize('positions, high', [(8192, 4.0), (32, 4.0), (64, 3.0)])
def test_llama_3_scaling_is_found_in_its_frequencies(positions, high, tmp_path):
  rope = {
    **{'rope_type': 'llama3', 'rope_theta': 10_000.0, 'factor': 8.0, 'low_freq_factor': 1.0},
    **{'high_freq_factor': high, 'original_max_position_embeddings': positions},
  }
  peer = folders.decoder('llama', head_dim=64, rope_parameters=rope, max_position_embeddings=99999)
  _write(tmp_path / 'model.gguf', peer)
  found = huggingface.open_decoder(tmp_path).config.rope_scaling
  assert found.factor == pytest.approx(8, rel=1e-6)
  assert found == RopeScaling('llama3', found.factor, positions, 1.0, high)


@pytest.mark.parametrize(
  'family, changes, message',
  [
    ('llama', {'expert_count': 8}, 'expert_count is 8, which is not computed here'),
    ('llama', {'rope.dimension_count': 4}, 'rope.dimension_count is 4, expected 6'),
    ('llama', {'rope.scaling.type': 'longrope'}, "rope.scaling.type 'longrope' is not"),
    ('llama', {'attention.head_count': None}, "no field 'attention.head_count'"),
    ('llama', {'block_count': 4}, "has no tensor 'blk.3.attn_norm.weight'"),
    ('llama', {'feed_forward_length': 33}, r"'blk.0.ffn_gate.weight' has shape \(32, 24\), expect"),
    ('llama', {'attention.head_count_kv': [2, 2, 1]}, r'head_count_kv is \[2, 2, 1\]'),
  ],
)  # fmt: skip
def test_what_is_computed_otherwise_is_refused(family, changes, message, tmp_path):
  _write(tmp_path / 'model.gguf', folders.decoder(family), **changes)
  with pytest.raises(ValueError, match=f'model.gguf.*{message}'):
    huggingface.load_decoder(tmp_path / 'model.gguf')


def test_another_architecture_and_several_files(tmp_path):
  gguf_files.write(tmp_path / 'a.gguf', 'mamba', {}, {'x': np.ones(3, np.float32)})
  with pytest.raises(ValueError, match="a.gguf is of architecture 'mamba', expected llama, qwen2"):
    recognition.recognise(str(tmp_path))
  (tmp_path / 'b.gguf').write_bytes(b'')
  with pytest.raises(ValueError, match='holds several models, a.gguf, b.gguf; name the file'):
    recognition.recognise(str(tmp_path), 'reader')


def test_scaling_and_windows_of_metadata(tmp_path):
  said = {
    'rope.scaling.type': 'yarn', 'rope.scaling.factor': 4.0, 'attention.sliding_window': 5,
    'rope.scaling.original_context_length': 24, 'attention.head_count_kv': [2, 2, 2],
    'rope.scaling.nonsense': 3,
  }  # fmt: skip
  _write(tmp_path / 'model.gguf', folders.decoder('llama'), **said)
  part = huggingface.open_decoder(tmp_path / 'model.gguf')
  assert part.config.rope_scaling == RopeScaling('yarn', 4.0, 24)
  assert (part.config.window, part.config.layer_pattern) == (5, ('local',))
  assert 'not obeyed: model.gguf: rope.scaling.nonsense = 3; not known' in part.notes
  said = {'rope.scaling.type': 'linear', 'rope.scaling.factor': 8.0, 'rope.freq_base_swa': 20.0}
  _write(tmp_path / 'model.gguf', folders.decoder('gemma3'), **said)
  config = huggingface.open_decoder(tmp_path / 'model.gguf').config
  assert (config.rope_scaling, config.local_rope_base) == (RopeScaling('linear', 8.0), 20.0)
