"""BART and FiD over BART against Hugging Face transformers."""

import dataclasses

import jax
import numpy as np
import pytest

from ralm_jax.interop import huggingface
from ralm_jax.models import fid
from ralm_jax.models.bart import Bart
from ralm_jax.models.generation import CachedReader, Prefix

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')
from tests.models import rag_world as world


@pytest.fixture(scope='module')
def peer():
  return world.bart_peer(scale_embedding=True, encoder_layers=2, decoder_layers=2)


@pytest.fixture(scope='module')
def loaded(peer, tmp_path_factory):
  folder = tmp_path_factory.mktemp('bart')
  peer.save_pretrained(folder)
  return huggingface.load_bart(folder)


def _targets():
  return (
    np.random.default_rng(2).integers(4, world.VOCAB, (world.BATCH, world.TARGET)).astype(np.int32)
  )


def test_logits(peer, loaded):
  config, params = loaded
  tokens, mask = (array[:, 0] for array in world.passages())
  targets = _targets()
  ours = Bart(config).apply({'params': params}, tokens, mask, targets)
  theirs = (
    peer(
      input_ids=world.long(tokens),
      attention_mask=world.long(mask),
      decoder_input_ids=world.long(targets),
    )
    .logits.detach()
    .numpy()
  )
  assert ours.dtype == np.float32 and np.abs(theirs).max() > 1
  np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_reading_several_passages_is_attending_to_all_encoder_states(peer, loaded):
  config, params = loaded
  tokens, mask = world.passages()
  targets = _targets()
  ours = fid.make_reader(config).apply({'params': params}, tokens, mask, targets)
  flat = lambda array: world.long(array.reshape(-1, world.LENGTH))
  encoded = peer.get_encoder()(input_ids=flat(tokens), attention_mask=flat(mask)).last_hidden_state
  theirs = (
    peer(
      encoder_outputs=(encoded.reshape(world.BATCH, -1, encoded.shape[-1]),),
      attention_mask=world.long(mask.reshape(world.BATCH, -1)),
      decoder_input_ids=world.long(targets),
    )
    .logits.detach()
    .numpy()
  )
  np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_scanned_layers_and_remat_give_the_same(loaded):
  config, params = loaded
  tokens, mask = world.passages()
  targets = _targets()
  expected = fid.make_reader(config).apply({'params': params}, tokens, mask, targets)
  from ralm_jax.interop import initial_weights

  stacked = {
    name: initial_weights.stack_layers(tree) if name in ('encoder', 'decoder') else tree
    for name, tree in params.items()
  }
  scanned = dataclasses.replace(config, scan_layers=True, remat_policy='dots')
  logits = fid.make_reader(scanned).apply({'params': stacked}, tokens, mask, targets)
  np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_too_long_an_input_says_what_to_change(loaded):
  config, params = loaded
  tokens = np.ones((1, config.max_positions + 1), np.int32)
  with pytest.raises(ValueError, match='max_positions 40; shorten'):
    Bart(config).apply({'params': params}, tokens, tokens, tokens[:, :3])


@pytest.mark.parametrize('kind', ['bart', 't5'])
def test_a_padded_prefix_is_the_unpadded_one(kind, loaded, tmp_path):
  """Rows of different prefixes, prefilled in chunks, against whole passes."""
  config, params = loaded
  if kind == 't5':
    world.t5_peer().save_pretrained(tmp_path)
    config, params = huggingface.load_t5(tmp_path)
  tokens, mask = world.passages()
  reader = fid.make_reader(config)
  encoded = reader.apply({'params': params}, tokens, mask, method='encode_passages')
  rows, keys = world.BATCH, world.PASSAGES * world.LENGTH
  prefixes = [[5, 6, 7, 8, 9, 10, 11], [12, 13]]
  padded = np.full((rows, 7), config.pad_id, np.int32)
  for row, prefix in zip(padded, prefixes):
    row[len(row) - len(prefix) :] = prefix
  expected = [
    reader.apply(
      {'params': params},
      tokens[i : i + 1],
      mask[i : i + 1],
      np.asarray([[config.decoder_start_id, *prefix]]),
    )[0, -1]
    for i, prefix in enumerate(prefixes)
  ]
  for chunk in (1, 3, 128):
    stepper = CachedReader(
      reader,
      params,
      encoded.reshape(rows, keys, -1),
      mask.reshape(rows, keys),
      4,
      prefill_chunk=chunk,
      prefix=Prefix(padded, np.asarray([7, 2])),
    )
    logits, cache = world.quick_jit(stepper.start)()
    np.testing.assert_allclose(logits, expected, atol=1e-4)
  # And the step behind it.
  logits, _ = stepper.step(np.asarray([[14], [15]]), cache)
  expected = reader.apply(
    {'params': params}, tokens[1:], mask[1:], np.asarray([[config.decoder_start_id, 12, 13, 15]])
  )[0, -1]
  np.testing.assert_allclose(logits[1, 0], expected, atol=1e-4)


@pytest.mark.slow
def test_final_logits_bias_gets_no_gradient(loaded):
  config, params = loaded
  tokens, mask = (array[:, 0] for array in world.passages())
  gradient = jax.grad(
    lambda params: Bart(config).apply({'params': params}, tokens, mask, _targets()).sum()
  )(params)
  assert not np.any(gradient['final_logits_bias'])
  assert np.any(gradient['token_embedder']['embedding'])
