"""DecoderStepper's ids are those of transformers' `generate`, with less in memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ralm_jax.decoding import sampling
from ralm_jax.decoding.options import DecodingOptions
from ralm_jax.decoding.stepper import Stepper
from ralm_jax.models import prediction
from ralm_jax.models.decoder_lm import DecoderLM
from ralm_jax.models.decoder_stepper import DecoderStepper
from ralm_jax.models.generation import Generation, Prefix
from tests.models import decoder_peers
from tests.models.decoder_peers import FAMILIES, VOCABULARY

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

# Prompts and what is produced are longer than the window of 5.
LENGTHS, MAX_LENGTH = (14, 9, 3, 1), 9
QUICKLY = {'xla_backend_optimization_level': 0}


def prompts(lengths=LENGTHS, seed=0):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(3, VOCABULARY, (len(lengths), max(lengths))).astype(np.int32)
  mask = np.arange(max(lengths)) >= max(lengths) - np.asarray(lengths)[:, None]
  return np.where(mask, tokens, 0), mask


@functools.cache
def pair(name, **changes):
  family = FAMILIES[name]
  peer, config = family.peer(), family.config(**changes)
  return peer, DecoderLM(config), decoder_peers.params_of(peer.state_dict(), config)


def decode(model, params, options, tokens, mask, rng=None, **fields):
  """Tokens of one compiled decoding."""

  @functools.partial(jax.jit, compiler_options=QUICKLY)
  def run(params, tokens, mask, fields):
    stepper = DecoderStepper(
      model, params, prompt_tokens=tokens, prompt_mask=mask, **dict(contexts=()) | fields | static
    )
    return prediction.decode(stepper, options, rng)

  static = {key: fields.pop(key) for key in ('prefill_chunk', 'stop_ids') if key in fields}
  static['max_length'] = MAX_LENGTH
  return run(params, tokens, mask, fields)


def generate(peer, options, tokens, mask, **kwargs):
  with torch.no_grad():
    found = peer.generate(
      input_ids=torch.tensor(tokens, dtype=torch.long),
      attention_mask=torch.tensor(mask, dtype=torch.long),
      do_sample=False,
      num_beams=options.num_beams,
      num_return_sequences=options.num_return,
      max_new_tokens=MAX_LENGTH,
      length_penalty=options.length_penalty,
      **kwargs,
    )
  found = found.numpy()[:, tokens.shape[1] :]
  found = np.pad(found, ((0, 0), (0, MAX_LENGTH - found.shape[1])))
  ends = (found == 2).astype(int)
  # They pad a beam search with the end of sequence.
  found = np.where(np.cumsum(ends, axis=1) - ends > 0, 0, found)
  return found.reshape(len(tokens), options.num_return, MAX_LENGTH)


@pytest.mark.parametrize(
  'options',
  [DecodingOptions(), DecodingOptions(num_beams=3, num_return=2, length_penalty=0.7)],
  ids=['greedy', 'beams'],
)
@pytest.mark.parametrize('name', ['llama', 'mistral', 'qwen2', 'qwen3', 'gemma3'])
def test_ids_of_each_family(name, options):
  peer, model, params = pair(name, scan_layers=name in ('qwen3', 'gemma3'))
  tokens, mask = prompts()
  expected = generate(peer, options, tokens, mask)
  whole = decode(model, params, options, tokens, mask, prefill_chunk=64)
  np.testing.assert_array_equal(whole.tokens, expected)
  parts = decode(model, params, options, tokens, mask, prefill_chunk=4)
  np.testing.assert_array_equal(parts.tokens, expected)
  np.testing.assert_allclose(parts.log_probs, whole.log_probs, atol=1e-4)


def test_sampled_ids():
  """Theirs with our random numbers: the likeliest of warped logits with Gumbel noise."""
  peer, model, params = pair('mistral')
  options = DecodingOptions(sample=True, temperature=1.7, top_k=7)
  tokens, mask = prompts()
  keys = jax.random.split(jax.random.key(3), len(tokens))

  def with_noise(ids, logits):
    step = jnp.asarray(ids.shape[1] - tokens.shape[1])
    of_rows = sampling.fold_in(sampling.fold_in(keys, jnp.arange(1)), step)
    draw = functools.partial(jax.random.gumbel, shape=(VOCABULARY,))
    warped = sampling.warp(jnp.asarray(logits.numpy()), options)
    return torch.tensor(np.asarray(warped + jax.vmap(draw)(of_rows[:, 0])))

  expected = generate(peer, DecodingOptions(), tokens, mask, logits_processor=[with_noise])
  drawn = decode(model, params, options, tokens, mask, rng=keys)
  np.testing.assert_array_equal(drawn.tokens, expected)


@pytest.mark.parametrize('name', ['mistral', 'gemma3', 'dynamic'])
def test_prefix_and_contexts_are_parts_of_the_prompt(name):
  peer, model, params = pair(name)
  options = DecodingOptions(num_beams=2)
  head, (tokens, mask) = prompts((7,), seed=1)[0], prompts((6, 4, 6))
  lengths = np.asarray([3, 0, 2])
  prefix_tokens, prefix_mask = prompts(lengths, seed=2)
  parts = [np.repeat(head, 3, axis=0), tokens, prefix_tokens]
  masks = [np.ones((3, 7), bool), mask, prefix_mask]
  texts = [
    np.concatenate(parts, axis=1)[row][np.concatenate(masks, axis=1)[row]] for row in range(3)
  ]
  whole = np.zeros((3, 16), np.int32)
  for row, text in enumerate(texts):
    whole[row, 16 - len(text) :] = text
  expected = generate(peer, options, whole, whole > 0)

  @functools.partial(jax.jit, compiler_options=QUICKLY)
  def run(params):
    _, context = model.apply(
      {'params': params}, head, np.ones_like(head, bool), logits=0, method='read'
    )
    prefix = Prefix(jnp.asarray(prefix_tokens), jnp.asarray(lengths))
    stepper = DecoderStepper(
      model, params, (context,), tokens, mask, MAX_LENGTH, prefix=prefix, prefill_chunk=4
    )
    return prediction.decode(stepper, options, None)

  np.testing.assert_array_equal(run(params).tokens, expected)


def stepper_of(name, passages=1, beams=1, **fields):
  _, model, params = pair(name)
  tokens, mask = prompts((9, 14, 12, 4))
  prior = None
  if passages > 1:
    prior = jnp.log(np.random.default_rng(4).dirichlet(np.ones(2), 2).astype(np.float32))
  fields = dict(log_prior=prior, prefill_chunk=5) | fields
  return DecoderStepper(model, params, (), tokens, mask, MAX_LENGTH, **fields)


def test_what_a_step_gives_is_what_is_scored():
  """RAG-Token's marginal, and each passage's own probability of a text, by one long reading."""
  stepper = stepper_of('gemma3', passages=2)
  assert isinstance(stepper, Stepper)
  rng = np.random.default_rng(5)
  candidates = rng.integers(3, VOCABULARY, (2, 3, 8)).astype(np.int32)
  counted = np.arange(8) < np.asarray([8, 1, 5])[:, None]
  counted = np.broadcast_to(counted, candidates.shape)

  @functools.partial(jax.jit, compiler_options=QUICKLY)
  def steps(candidates):
    logits, cache = stepper.start()
    scores = stepper.score(candidates, counted, cache)
    found, cache = [jnp.repeat(logits[:, None], 3, axis=1)], stepper.expand(cache, 3)
    for i in range(candidates.shape[-1] - 1):
      logits, cache = stepper.step(candidates[..., i], cache)
      found.append(logits)
    return jnp.stack(found, axis=2), scores

  found, scores = steps(candidates)
  whole, texts = stepper.prompt_tokens, candidates[:, None].repeat(2, axis=1).reshape(4, 3, 8)
  both = np.concatenate([whole[:, None].repeat(3, axis=1), texts], axis=-1).reshape(12, -1)
  mask = np.concatenate([stepper.prompt_mask.repeat(3, axis=0), np.ones((12, 8), bool)], axis=1)
  logits = jax.jit(stepper.reader.apply)({'params': stepper.params}, both, mask)
  log_probs = jax.nn.log_softmax(logits[:, 13:-1].reshape(2, 2, 3, 8, VOCABULARY))
  prior = np.asarray(stepper.log_prior)[:, :, None, None, None]
  np.testing.assert_allclose(found, jax.nn.logsumexp(prior + log_probs, axis=1), atol=1e-4)
  chosen = np.take_along_axis(log_probs, candidates[:, None, ..., None], axis=-1)[..., 0]
  np.testing.assert_allclose(scores, np.sum(chosen * counted[:, None], axis=-1), atol=1e-3)


def test_stop_ids_end_as_the_end_of_sequence():
  tokens, mask = prompts()
  _, model, params = pair('llama')
  free = np.asarray(decode(model, params, DecodingOptions(), tokens, mask).tokens)[:, 0]
  stops = tuple(int(free[row, 3]) for row in range(2))
  found = decode(model, params, DecodingOptions(), tokens, mask, stop_ids=stops)
  for row, text in zip(np.asarray(found.tokens)[:, 0], free):
    end = np.flatnonzero(np.isin(text, (*stops, 2)))
    kept = text[: end[0]] if len(end) else text
    # Together, two stops may also be likelier than what was taken before.
    cut = np.flatnonzero(row == 2)
    assert len(cut) and list(row[: cut[0]]) == list(kept[: cut[0]])
    assert not np.isin(row, stops).any()
  stepper = stepper_of('llama', stop_ids=stops)
  plain = jax.nn.softmax(stepper_of('llama').start()[0])
  ended = np.exp(stepper.start()[0])
  np.testing.assert_allclose(ended[:, 2], np.sum(plain[:, [2, *stops]], axis=1), rtol=1e-4)
  np.testing.assert_allclose(np.sum(ended, axis=-1), 1.0, rtol=1e-5)
  assert not ended[:, stops].any()


@pytest.mark.parametrize('name', ['mistral', 'gemma3'])
def test_local_layers_never_hold_more_than_the_window(name):
  stepper = stepper_of(name)
  config = stepper.reader.config
  _, cache = jax.eval_shape(stepper.start)
  cache = jax.eval_shape(lambda cache: stepper.expand(cache, 3), cache)
  tokens = jnp.zeros((4, 3), jnp.int32)
  _, cache = jax.eval_shape(stepper.step, tokens, cache)
  for held, length in ((cache.prompt, 14), (cache.produced, MAX_LENGTH - 1)):
    for name, keys in held.layers.items():
      local = config.is_local(int(name[-1]))
      assert keys.key.shape[1] == keys.value.shape[1] == (config.window if local else length)
  # Prompts are there once an example, whatever the beams.
  assert {len(leaf) for leaf in jax.tree.leaves(cache.prompt)} == {4}
  assert {len(leaf) for leaf in jax.tree.leaves(cache.produced)} == {12}


@pytest.mark.parametrize('rag_decoding', ['thorough', 'fast'])
def test_rag_sequence(rag_decoding):
  stepper = stepper_of('qwen3', passages=2)
  options = DecodingOptions(num_beams=2, num_return=2)
  generation = Generation(MAX_LENGTH, options, rag_decoding=rag_decoding)
  found = jax.jit(lambda: prediction.decode_by_sequence(stepper, generation, None))()
  alone = dataclasses.replace(stepper, log_prior=None)
  of_each = jax.jit(lambda: prediction.decode(alone, options, None))().tokens
  assert found.tokens[0, 0].tolist() in of_each[:2].reshape(-1, MAX_LENGTH).tolist()
  assert np.all(np.diff(found.scores) <= 0) and np.all(np.isfinite(found.scores[:, 0]))
