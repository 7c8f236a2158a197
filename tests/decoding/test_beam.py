"""Beam search over toy languages, where every sequence can be written down."""

import itertools
import re

import jax
import numpy as np
import pytest

from ralm_jax.decoding import decode
from ralm_jax.decoding.options import DecodingOptions
from ralm_jax.training import partitioning
from ralm_jax.training.partitioning import Partitioner
from tests.decoding import steppers

EOS, PAD = 1, 0
# Compiling is most of the time these tests take.
QUICKLY = {'xla_backend_optimization_level': 0}


def _tables(batch, vocab, seed=0, contexts=None):
  contexts = contexts or vocab
  rng = np.random.default_rng(seed)
  shape = (batch, contexts, contexts, vocab)
  return rng.normal(scale=2.0, size=shape).astype(np.float32)


def _decode(tables, options, max_length, **kwargs):
  return decode.decode(
    steppers.Chain(tables, max_length),
    options,
    max_length=max_length,
    eos_id=EOS,
    pad_id=PAD,
    **kwargs,
  )


def _sequences(table, max_length, length_penalty, min_length=0):
  """All sequences of a language: (score, log-probability, tokens), best first."""
  log_probs = np.asarray(jax.nn.log_softmax(table.astype(np.float64), axis=-1))
  found = []
  for length in range(1, max_length + 1):
    for tokens in itertools.product(range(len(table)), repeat=length):
      whole = tokens[-1] == EOS or length == max_length
      if not whole or EOS in tokens[:-1]:
        continue
      if tokens[-1] == EOS and length <= min_length:
        continue
      context = (0, 0) + tokens
      total = sum(log_probs[context[i], context[i + 1], token] for i, token in enumerate(tokens))
      padded = tokens + (PAD,) * (max_length - length)
      found.append((total / length**length_penalty, total, padded))
  return sorted(found, reverse=True)


@pytest.mark.parametrize('length_penalty, min_length', [(0.0, 0), (2.0, 2), (-1.0, 0)])
def test_a_wide_search_finds_the_best_of_all_sequences(length_penalty, min_length):
  tables = _tables(3, 4)
  # More beams than there are prefixes: nothing is pruned.
  options = DecodingOptions(
    num_beams=64,
    num_return=8,
    length_penalty=length_penalty,
    early_stopping='never',
    min_length=min_length,
  )
  decoded = jax.jit(lambda tables: _decode(tables, options, 4), compiler_options=QUICKLY)(tables)
  for i, table in enumerate(tables):
    scores, log_probs, tokens = zip(*_sequences(table, 4, length_penalty, min_length)[:8])
    np.testing.assert_array_equal(decoded.tokens[i], tokens)
    np.testing.assert_allclose(decoded.scores[i], scores, rtol=1e-5)
    np.testing.assert_allclose(decoded.log_probs[i], log_probs, rtol=1e-5)


@pytest.mark.parametrize('early_stopping', [False, True])
def test_an_example_does_not_depend_on_its_batch(early_stopping):
  tables = _tables(6, 7, seed=1)
  options = DecodingOptions(num_beams=3, num_return=3, early_stopping=early_stopping)
  run = jax.jit(lambda tables: _decode(tables, options, 9), compiler_options=QUICKLY)
  together = run(tables)
  alone = [run(table[None]) for table in tables]
  for i, decoded in enumerate(alone):
    np.testing.assert_array_equal(decoded.tokens[0], together.tokens[i])
    np.testing.assert_allclose(decoded.scores[0], together.scores[i], rtol=1e-6)
  # Their searches end at different places.
  ends = [int(np.sum(np.asarray(x.tokens) != PAD, -1).max()) for x in alone]
  assert len(set(ends)) > 1, ends


def test_what_is_forced_counts_in_log_probs_but_not_in_scores():
  tables = _tables(2, 5, seed=2)
  options = DecodingOptions(num_beams=2, length_penalty=0.0)
  decoded = jax.jit(
    lambda tables: _decode(tables, options, 3, forced_first_id=4, forced_last_id=3),
    compiler_options=QUICKLY,
  )(tables)
  log_probs = np.asarray(jax.nn.log_softmax(tables, axis=-1))
  for i, tokens in enumerate(np.asarray(decoded.tokens[:, 0])):
    assert tokens[0] == 4 and tokens[2] in (3, PAD)
    context = (0, 0, *tokens)
    each = [log_probs[i, context[t], context[t + 1], tokens[t]] for t in range(3)]
    length = 3 if tokens[2] == 3 else 2
    np.testing.assert_allclose(decoded.log_probs[i, 0], sum(each[:length]), rtol=1e-5)
    np.testing.assert_allclose(decoded.scores[i, 0], each[1], rtol=1e-5)


@pytest.mark.parametrize(
  'choices, least, most',
  [
    # Two sequences have ended after two tokens, and True asks no more.
    (dict(early_stopping=True), 1, 1),
    # A running one gains by its length alone, and so goes on to the end.
    (dict(early_stopping=False), 19, 19),
    # Without a reward for length nothing is to be gained.
    (dict(early_stopping='never', length_penalty=0.0), 1, 3),
  ],
  ids=str,
)
def test_stops_as_soon_as_its_rule_says(choices, least, most):
  steps = []

  class Counting(steppers.Chain):
    def step(self, tokens, cache):
      jax.debug.callback(lambda: steps.append(1))
      return super().step(tokens, cache)

  tables = np.zeros((2, 6, 6, 6), np.float32)
  tables[..., [EOS, 5]] = 9.0
  options = DecodingOptions(**dict(num_beams=2, length_penalty=2.0) | choices)
  jax.block_until_ready(
    jax.jit(
      lambda tables: decode.decode(
        Counting(tables, 20), options, max_length=20, eos_id=EOS, pad_id=PAD
      ),
      compiler_options=QUICKLY,
    )(tables)
  )
  jax.effects_barrier()
  assert least <= len(steps) <= most


BEAMS = DecodingOptions(num_beams=3, num_return=2)
DRAWS = DecodingOptions(sample=True, num_return=2, temperature=2.0, top_k=40, top_p=0.9)


@pytest.mark.parametrize('options, num_partitions', [(BEAMS, 1), (BEAMS, 2), (DRAWS, 1)])
def test_a_sharded_batch_stays_where_it_is(options, num_partitions):
  # More tokens than one block of `top_k`.
  tables = _tables(16, 300, contexts=5)
  run = lambda tables: _decode(tables, options, 6, rng=jax.random.key(0))
  expected = jax.jit(run, compiler_options=QUICKLY)(tables)
  partitioner = Partitioner(num_partitions=num_partitions)
  tables = partitioner.put_batch(tables)
  sharded = partitioner.partition(run, compiler_options=QUICKLY)
  compiled = sharded.lower(tables).compile()
  decoded = compiled(tables)
  np.testing.assert_array_equal(decoded.tokens, expected.tokens)
  np.testing.assert_allclose(decoded.scores, expected.scores, rtol=1e-5)
  assert decoded.tokens.sharding.spec[0] == partitioning.DATA
  # All that devices tell each other is whether all of them are done.
  moved = re.findall(
    r' = (\S+) (?:all-gather|all-to-all|all-reduce|collective-permute)'
    r'(?:-start)?\(',
    compiled.as_text(),
  )
  assert moved and set(moved) == {'pred[]'}, moved
