"""Sampling: what is drawn from, against transformers, and what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ralm_jax.decoding import decode, sampling
from ralm_jax.decoding.options import DecodingOptions
from tests.decoding import steppers

EOS, PAD = 1, 0
VOCAB = 6
QUICKLY = {'xla_backend_optimization_level': 0}


def _draws(table, options, max_length, seed=0, **kwargs):
  tables = table[None]
  run = jax.jit(
    lambda tables, key: decode.decode(
      steppers.Chain(tables, max_length),
      options,
      max_length=max_length,
      eos_id=EOS,
      pad_id=PAD,
      rng=key,
      **kwargs,
    ),
    compiler_options=QUICKLY,
  )
  return jax.tree.map(lambda x: np.asarray(x)[0], run(tables, jax.random.key(seed)))


def _table(seed=0):
  rng = np.random.default_rng(seed)
  return (1.5 * rng.normal(size=(VOCAB,) * 3)).astype(np.float32)


def _probabilities(logits):
  return np.asarray(jax.nn.softmax(jnp.asarray(logits), axis=-1))


@pytest.mark.parametrize(
  'choices',
  [
    dict(temperature=0.7),
    dict(top_k=1),
    dict(top_k=20),
    dict(top_k=10**6),
    dict(top_p=0.05),
    dict(top_p=0.8),
    dict(top_p=0.999),
    dict(temperature=1.9, top_k=50, top_p=0.6),
  ],
  ids=str,
)
def test_warpers_are_those_of_transformers(choices):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  rng = np.random.default_rng(0)
  logits = rng.normal(scale=3.0, size=(2, 5, 500)).astype(np.float32)
  # Ruled out already, as by a forced token or a minimum length.
  logits[0, 0, :] = -np.inf
  logits[0, 0, 3] = 0.0
  logits[0, 1, 100:] = -np.inf
  options = DecodingOptions(sample=True, **choices)
  warpers = transformers.LogitsProcessorList()
  if 'temperature' in choices:
    warpers.append(transformers.TemperatureLogitsWarper(choices['temperature']))
  if 'top_k' in choices:
    warpers.append(transformers.TopKLogitsWarper(choices['top_k']))
  if 'top_p' in choices:
    warpers.append(transformers.TopPLogitsWarper(choices['top_p']))
  expected = warpers(None, torch.tensor(logits.reshape(10, 500))).numpy()
  found = np.asarray(jax.jit(sampling.warp, static_argnums=1)(logits, options))
  # One rounding apart in the division, never in what is kept.
  np.testing.assert_allclose(found.reshape(10, 500), expected, rtol=1e-6)


def test_equal_scores():
  scores = jnp.asarray([[1.0, 2.0, 2.0, 0.0, -3.0], [0.0, -0.0, 0.0, -1.0, -1.0]])
  kept = np.isfinite(sampling.keep_top_k(scores, 1))
  np.testing.assert_array_equal(
    kept, [[False, True, True, False, False], [True, True, True, False, False]]
  )
  kept = np.isfinite(sampling.keep_top_p(scores, 0.2))
  np.testing.assert_array_equal(
    kept, [[False, True, True, False, False], [True, True, True, False, False]]
  )
  # So small a part that rounding would leave nothing.
  kept = np.isfinite(sampling.keep_top_p(scores, 1e-12))
  assert kept.any(axis=-1).all()


@pytest.mark.parametrize(
  'choices', [dict(), dict(temperature=0.5), dict(top_k=3), dict(top_p=0.7)], ids=str
)
def test_frequencies(choices):
  count = 20_000
  options = DecodingOptions(sample=True, num_return=count, **choices)
  table = _table()
  tokens = _draws(table, options, 2).tokens
  warped = np.asarray(sampling.warp(jnp.asarray(table), options))

  def check(drawn, logits):
    frequencies = np.bincount(drawn, minlength=VOCAB) / len(drawn)
    probabilities = _probabilities(logits)
    deviations = np.sqrt(probabilities * (1 - probabilities) / len(drawn))
    assert (np.abs(frequencies - probabilities) <= 4.5 * deviations + 1e-7).all()

  first, second = tokens[:, 0], tokens[:, 1]
  check(first, warped[0, 0])
  for token in range(VOCAB):
    if token != EOS and np.sum(first == token) > 500:
      check(second[first == token], warped[0, token])
  assert (second[first == EOS] == PAD).all()
  if not choices:
    # The two tokens together: draws do not repeat each other's randomness.
    assert len({tuple(row) for row in tokens}) > 20


def test_log_probs_are_the_models_own():
  table = _table(1)
  options = DecodingOptions(sample=True, num_return=50, temperature=3.0, top_p=0.9, min_length=2)
  decoded = _draws(table, options, 5)
  log_probs = np.asarray(jax.nn.log_softmax(table, axis=-1))
  lengths = set()
  for tokens, total, score in zip(decoded.tokens, decoded.log_probs, decoded.scores):
    length = list(tokens).index(EOS) + 1 if EOS in tokens else 5
    lengths.add(length)
    assert (tokens[length:] == PAD).all()
    context = (0, 0, *tokens)
    expected = sum(log_probs[context[t], context[t + 1], tokens[t]] for t in range(length))
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert score == total
  # A sequence of three has two tokens before its end.
  assert min(lengths) == 3 and len(lengths) > 1


def test_forced_tokens_are_drawn_with_certainty():
  options = DecodingOptions(sample=True, num_return=30, temperature=2.0, top_k=4, top_p=0.5)
  tokens = _draws(_table(2), options, 4, forced_first_id=5, forced_last_id=3).tokens
  assert (tokens[:, 0] == 5).all()
  assert np.isin(tokens[:, -1], (3, PAD)).all()
  # What stands last of a sequence that goes all the way is what was forced.
  unended = ~(tokens[:, :3] == EOS).any(axis=-1)
  assert unended.any() and (tokens[unended, -1] == 3).all()


def test_keys():
  table, options = _table(3), DecodingOptions(sample=True, num_return=8)
  first = _draws(table, options, 6)
  np.testing.assert_array_equal(first.tokens, _draws(table, options, 6).tokens)
  assert (first.tokens != _draws(table, options, 6, seed=1).tokens).any()
  assert len({tuple(row) for row in first.tokens}) > 4
  with pytest.raises(ValueError, match='needs a key'):
    decode.decode(steppers.Chain(table[None], 6), options, max_length=6, eos_id=EOS, pad_id=PAD)


def test_the_single_likeliest_token_is_greedy():
  table = _table(4)
  drawn = _draws(table, DecodingOptions(sample=True, top_k=1, num_return=3), 6)
  greedy = _draws(table, DecodingOptions(), 6)
  np.testing.assert_array_equal(drawn.tokens, np.repeat(greedy.tokens, 3, axis=0))
  np.testing.assert_allclose(drawn.log_probs, greedy.log_probs[0], rtol=1e-5)


def test_keys_of_examples():
  """What an example draws is its own: alone, or as any row of a batch, few draws or many."""
  tables = np.stack([_table(i) for i in range(4)])
  keys = jax.random.split(jax.random.key(7), 4)

  def draw(rows, count):
    return np.asarray(
      decode.decode(
        steppers.Chain(tables[rows], 5),
        DecodingOptions(sample=True, num_return=count),
        max_length=5,
        eos_id=EOS,
        pad_id=PAD,
        rng=keys[np.asarray(rows)],
      ).tokens
    )

  together = draw([0, 1, 2, 3], 6)
  np.testing.assert_array_equal(draw([3, 1], 6), together[[3, 1]])
  np.testing.assert_array_equal(draw([2], 3), together[[2], :3])
