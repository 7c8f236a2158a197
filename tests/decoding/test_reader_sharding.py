"""A real reader's beam search keeps its batch and its caches in place."""

import re

from flax import linen as nn
import jax
import numpy as np
import pytest

from ralm_jax.decoding.options import DecodingOptions
from ralm_jax.models.fid import FusionInDecoder
from ralm_jax.models.generation import Generation
from ralm_jax.models.prediction import ReadPassages
from ralm_jax.models.readings import READINGS
from ralm_jax.models.t5 import T5Config
from ralm_jax.training.partitioning import Partitioner

BATCH, PASSAGES, LENGTH, MAX_LENGTH = 8, 2, 5, 5
QUICKLY = {'xla_backend_optimization_level': 0}


@pytest.mark.parametrize('reading, scan', [('fusion', True), ('rag_token', False)])
def test_devices_exchange_no_caches(reading, scan):
  config = T5Config(
    vocab_size=40,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=2,
    scan_layers=scan,
  )
  reader = FusionInDecoder(config)
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, 40, (BATCH, PASSAGES, LENGTH)).astype(np.int32)
  mask = np.ones(tokens.shape, bool)
  params = nn.meta.unbox(
    jax.jit(reader.init)(jax.random.key(0), tokens, mask, tokens[:, 0])['params']
  )
  prior = np.log(rng.dirichlet(np.ones(PASSAGES), BATCH)).astype(np.float32)

  def run(params, tokens, mask, prior):
    generation = Generation(MAX_LENGTH, DecodingOptions(num_beams=3, num_return=2))
    passages = ReadPassages(reader, params, tokens, mask, generation)
    return READINGS[reading]().predict(passages, log_prior=prior)

  expected = jax.jit(run, compiler_options=QUICKLY)(params, tokens, mask, prior)
  partitioner = Partitioner()
  inputs = (
    jax.device_put(params, partitioner.replicated),
    *partitioner.put_batch((tokens, mask, prior)),
  )
  compiled = partitioner.partition(run, compiler_options=QUICKLY).lower(*inputs).compile()
  decoded = compiled(*inputs)
  np.testing.assert_array_equal(decoded.tokens, expected.tokens)
  np.testing.assert_allclose(decoded.scores, expected.scores, rtol=1e-4)
  # All that devices tell each other is whether all of them are done.
  moved = re.findall(
    r' = (\S+) (?:all-gather|all-to-all|all-reduce|collective-permute)'
    r'(?:-start)?\(',
    compiled.as_text(),
  )
  assert moved and set(moved) == {'pred[]'}, moved
