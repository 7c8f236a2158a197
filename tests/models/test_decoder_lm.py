"""DecoderLM against transformers on random weights, and against itself read in parts."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ralm_jax.models import attention, decoder_lm, grouped_attention
from ralm_jax.models.decoder_config import DecoderConfig
from ralm_jax.models.decoder_lm import DecoderLM
from tests.models import decoder_peers
from tests.models.decoder_peers import FAMILIES

torch = pytest.importorskip('torch')

LENGTHS = (14, 9, 3)


def batch(side='right', lengths=LENGTHS):
  """Rows of different lengths, longer than the window of 5."""
  rng = np.random.default_rng(0)
  longest = max(lengths)
  tokens = rng.integers(3, decoder_peers.VOCABULARY, (len(lengths), longest)).astype(np.int32)
  mask = np.arange(longest) < np.asarray(lengths)[:, None]
  mask = mask if side == 'right' else mask[:, ::-1].copy()
  return np.where(mask, tokens, 0), mask


def peer_logits(peer, tokens, mask):
  positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
  return peer(
    input_ids=torch.tensor(tokens, dtype=torch.long),
    attention_mask=torch.tensor(mask, dtype=torch.long),
    position_ids=torch.tensor(positions, dtype=torch.long),
  ).logits


@pytest.mark.parametrize('side', ['right', 'left'])
@pytest.mark.parametrize('name', FAMILIES)
def test_logits(name, side):
  family = FAMILIES[name]
  peer, config = family.peer(), family.config(scan_layers=side == 'left')
  params = decoder_peers.params_of(peer.state_dict(), config)
  tokens, mask = batch(side)
  with torch.no_grad():
    expected = peer_logits(peer, tokens, mask).numpy()
  actual = DecoderLM(config).apply({'params': params}, tokens, mask)
  assert actual.dtype == jnp.float32 and np.std(expected) > 0.1
  np.testing.assert_allclose(actual[mask], expected[mask], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('name', ['linear', 'llama3', 'yarn', 'dynamic'])
def test_scaled_rope_beyond_the_pretrained_positions(name):
  family = FAMILIES[name]
  peer, config = family.peer(), family.config()
  params = decoder_peers.params_of(peer.state_dict(), config)
  tokens, mask = batch(lengths=(90,))
  with torch.no_grad():
    expected = peer_logits(peer, tokens, mask).numpy()
  model = DecoderLM(config)
  np.testing.assert_allclose(
    model.apply({'params': params}, tokens, mask), expected, atol=2e-4, rtol=1e-4
  )
  without = DecoderLM(dataclasses.replace(config, rope_scaling=None))
  assert np.max(np.abs(without.apply({'params': params}, tokens, mask) - expected)) > 1e-2


@pytest.mark.parametrize('name', ['llama', 'mistral', 'qwen2', 'qwen3', 'gemma3'])
def test_gradients(name):
  family = FAMILIES[name]
  peer, config = family.peer(), family.config(remat_policy='full')
  params = decoder_peers.params_of(peer.state_dict(), config)
  tokens, mask = batch('left')
  targets = np.roll(tokens, -1, axis=1)
  logits = peer_logits(peer, tokens, mask)[torch.tensor(mask)]
  torch.nn.functional.cross_entropy(
    logits, torch.tensor(targets[mask], dtype=torch.long)
  ).backward()
  grads = {name: parameter.grad for name, parameter in peer.named_parameters()}

  def loss(params):
    logits = DecoderLM(config).apply({'params': params}, tokens, mask)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
    return -jnp.sum(log_probs[..., 0] * mask) / jnp.sum(mask)

  actual = flax.traverse_util.flatten_dict(jax.jit(jax.grad(loss))(params), sep='/')
  expected = decoder_peers.params_of(grads, config, offset=0.0)
  expected = flax.traverse_util.flatten_dict(expected, sep='/')
  assert actual.keys() == expected.keys()
  for path, value in expected.items():
    np.testing.assert_allclose(actual[path], value, atol=1e-4, rtol=1e-3, err_msg=path)


@pytest.mark.parametrize('scan', [False, True])
def test_bfloat16(scan):
  """Within its rounding of float32, which logits are in."""
  (exact, params), (model, _) = (
    model_and_params('gemma3', scan_layers=scan, dtype=dtype) for dtype in ('float32', 'bfloat16')
  )
  tokens, mask = batch(lengths=(6, 6))
  expected, _ = read(exact, params, tokens, mask)
  actual, context = read(model, params, tokens, mask)
  assert actual.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(context.layers)} == {jnp.dtype('bfloat16')}
  error = np.abs(actual - expected)
  assert 1e-4 < np.mean(error) < 0.05 * np.std(expected)


def model_and_params(name, **changes):
  config = FAMILIES[name].config(**changes)
  model = DecoderLM(config)
  params = decoder_peers.params_of(FAMILIES[name].peer().state_dict(), config)
  return model, params


def read(model, params, tokens, mask, contexts=(), norm_weights=None, **static):
  lengths = jnp.full((len(tokens),), 70) if model.config.rope_scaling else None

  @jax.jit
  def run(params, tokens, mask, contexts, norm_weights):
    options = dict(norm_weights=norm_weights, lengths=lengths, method='read', **static)
    return model.apply({'params': params}, tokens, mask, contexts, **options)

  return run(params, tokens, mask, contexts, norm_weights)


@pytest.mark.parametrize('name', ['mistral', 'gemma3', 'dynamic'])
def test_a_text_read_in_parts_is_the_whole(name):
  model, params = model_and_params(name)
  tokens, mask = batch(lengths=(14, 14))
  mask[1, [0, 1, 6, 9]] = False  # padding and holes
  whole, _ = read(model, params, tokens, mask)
  first = read(model, params, tokens[:, :4], mask[:, :4], logits=0)
  assert first[0] is None
  _, second = read(model, params, tokens[:, 4:11], mask[:, 4:11], (first[1],))
  rest, _ = read(model, params, tokens[:, 11:], mask[:, 11:], (first[1], second), logits=2)
  np.testing.assert_allclose(rest, whole[:, -2:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('name', ['mistral', 'gemma3'])
def test_one_head_serves_the_batch(name):
  model, params = model_and_params(name)
  tokens, mask = batch(lengths=(6, 4, 5, 6))
  head, _ = batch(lengths=(7,))
  _, context = read(model, params, head, np.ones_like(head, bool))
  assert {leaf.shape[0] for leaf in jax.tree.leaves(context)} == {1}
  actual, own = read(model, params, tokens, mask, (context,))
  repeated = np.concatenate([np.repeat(head, 4, axis=0), tokens], axis=1)
  whole_mask = np.concatenate([np.ones((4, 7), bool), mask], axis=1)
  whole, _ = read(model, params, repeated, whole_mask)
  np.testing.assert_allclose(actual[mask], whole[:, 7:][mask], atol=1e-5, rtol=1e-4)
  np.testing.assert_array_equal(own.positions[0], np.arange(7, 13))
  # Nowhere in the program is the head's key there once a row.
  program = jax.jit(lambda *args: read(model, params, *args)[0]).lower(tokens, mask, (context,))
  shape = f'4x7x{model.config.num_kv_heads}x{model.config.head_dim}x'
  assert shape.replace('4x7', '1x7') in program.as_text() and shape not in program.as_text()


@pytest.mark.parametrize('name', ['llama', 'gemma3'])
def test_parallel_contexts(name):
  """Two passages behind one head, read side by side, and a question behind the longer of them."""
  model, params = model_and_params(name, window=None, layer_pattern=())
  rng = np.random.default_rng(1)
  head, passages, question = (rng.integers(3, 61, shape) for shape in ((1, 3), (4, 5), (2, 4)))
  mask = np.ones((4, 5), bool)
  mask[1, 3:] = False
  _, shared = read(model, params, head, np.ones((1, 3), bool))
  _, each = read(model, params, passages, mask, (shared,))
  both = each.joined(2)
  np.testing.assert_array_equal(both.positions[0], [3, 4, 5, 6, 7, 3, 4, 5, 5, 5])
  logits, own = read(model, params, question, np.ones((2, 4), bool), (shared, both))
  np.testing.assert_array_equal(own.positions, [[8, 9, 10, 11]] * 2)
  # A passage that a row does not see is as one that is not there.
  alone = dataclasses.replace(both, mask=both.mask & (np.arange(10) < 5))
  first = jax.tree.map(lambda array: array[::2], each)
  np.testing.assert_allclose(
    read(model, params, question, np.ones((2, 4), bool), (shared, alone))[0],
    read(model, params, question, np.ones((2, 4), bool), (shared, first))[0],
    atol=1e-5,
  )
  # Rows of one context that see other parts of it.
  halves = jnp.stack([both.mask, alone.mask], axis=1).reshape(4, 10)
  parts = dataclasses.replace(both, mask=halves)
  rows, _ = read(
    model, params, np.repeat(question, 2, axis=0), np.ones((4, 4), bool), (shared, parts)
  )
  np.testing.assert_allclose(rows[::2], logits, atol=1e-5)
  assert np.max(np.abs(rows[1::2] - logits)) > 1e-3


@pytest.mark.parametrize('scan', [False, True])
def test_attention_norms(scan):
  """Against the peer's attention probabilities and values."""
  family = FAMILIES['qwen3']
  peer, config = family.peer(), family.config(scan_layers=scan)
  params = decoder_peers.params_of(peer.state_dict(), config)
  peer.set_attn_implementation('eager')
  tokens, mask = batch(lengths=(9, 9))
  weights = np.arange(8, dtype=np.float32).reshape(2, 4)
  with torch.no_grad():
    found = peer(torch.tensor(tokens, dtype=torch.long), output_attentions=True, use_cache=True)
  expected = []
  for probabilities, layer in zip(found.attentions, found.cache.layers):
    size = layer.values.norm(dim=-1).repeat_interleave(2, dim=1).numpy()  # [b, h, keys]
    by_key = np.einsum('bhqk,bhk,bq->bk', probabilities[:, :, 5:].numpy(), size, weights)
    expected.append(by_key / config.num_heads)
  model = DecoderLM(config)
  _, context = read(model, params, tokens[:, :5], mask[:, :5])
  options = dict(norm_weights=weights, mutable=[attention.NORMS])
  _, variables = read(model, params, tokens[:, 5:], mask[:, 5:], (context,), **options)
  for last in (None, 2):
    actual = decoder_lm.attention_norms(variables, last)
    np.testing.assert_allclose(actual, np.sum(expected[-(last or 3) :], axis=0), atol=1e-4)


def test_long_texts_attend_in_parts(monkeypatch):
  """To the same logits, norms and gradients, with less memory."""
  model, params = model_and_params('gemma3')
  tokens, mask = batch('left')
  _, context = read(model, params, tokens[:, :4], mask[:, :4])

  def everything(params):
    def loss(params):
      logits, variables = read(
        model, params, tokens[:, 4:], mask[:, 4:], (context,), mutable=[attention.NORMS]
      )
      return jnp.sum(jax.nn.log_softmax(logits[0])[..., 3]), (logits, variables)

    return jax.value_and_grad(loss, has_aux=True)(params)

  expected = jax.jit(everything)(params)
  monkeypatch.setattr(grouped_attention, 'QUERIES_AT_ONCE', 4)
  actual = jax.jit(lambda params: everything(params))(params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), actual, expected)


def test_memory_of_long_texts():
  """8,192 tokens: no scores of each with each, 268 million a head."""
  config = DecoderConfig(
    vocab_size=8,
    emb_dim=8,
    mlp_dim=8,
    num_decoder_layers=1,
    num_heads=4,
    num_kv_heads=1,
    head_dim=4,
  )
  model = DecoderLM(config)
  tokens = jax.ShapeDtypeStruct((1, 8192), jnp.int32)
  params = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)['params']

  def loss(params, tokens):
    return jnp.sum(model.apply({'params': params}, tokens, tokens > 0))

  compiled = jax.jit(jax.grad(loss)).lower(flax.core.meta.unbox(params), tokens).compile()
  scores_of_a_part = 4 * 1024 * 8192 * 4
  assert compiled.memory_analysis().temp_size_in_bytes < 5 * scores_of_a_part
