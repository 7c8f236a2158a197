"""DecoderLM over a mesh of eight devices does what it does on one, and leaves caches in place."""

import re

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ralm_jax.decoding.options import DecodingOptions
from ralm_jax.models import prediction
from ralm_jax.models.decoder_config import DecoderConfig
from ralm_jax.models.decoder_lm import DecoderLM
from ralm_jax.models.decoder_stepper import DecoderStepper
from ralm_jax.training.partitioning import Partitioner

BATCH, LENGTH, CHUNK, MAX_LENGTH = 8, 12, 5, 5
QUICKLY = {'xla_backend_optimization_level': 0}


def make(num_kv_heads, scan):
  config = DecoderConfig(
    vocab_size=40,
    emb_dim=16,
    num_heads=8,
    num_kv_heads=num_kv_heads,
    head_dim=8,
    mlp_dim=24,
    num_decoder_layers=3,
    window=4,
    layer_pattern=('local', 'global'),
    query_key_norm=True,
    attention_bias=True,
    scan_layers=scan,
    remat_policy='dots' if scan else 'none',
  )
  model = DecoderLM(config)
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, 40, (BATCH, LENGTH)).astype(np.int32)
  mask = np.arange(LENGTH) >= rng.integers(0, 8, BATCH)[:, None]
  boxed = jax.jit(model.init)(jax.random.key(0), tokens[:1], mask[:1])['params']
  return model, boxed, tokens, mask


def head_of(model, params):
  """A context that the whole batch shares."""
  tokens = np.arange(3, 10, dtype=np.int32)[None]
  return model.apply({'params': params}, tokens, tokens > 0, logits=0, method='read')[1]


def beams(model):
  def run(params, tokens, mask):
    contexts = (head_of(model, params),)
    stepper = DecoderStepper(
      model, params, contexts, tokens, mask, MAX_LENGTH, prefill_chunk=CHUNK, stop_ids=(7,)
    )
    return prediction.decode(stepper, DecodingOptions(num_beams=3, num_return=2), None)

  return run


def loss(model):
  def run(params, tokens, mask):
    logits, _ = model.apply(
      {'params': params}, tokens, mask, (head_of(model, params),), method='read'
    )
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)
    return -jnp.sum(log_probs[..., 0] * mask) / jnp.sum(mask)

  return jax.value_and_grad(run)


# Key heads that the model axis of 4 divides, or exceeds.
@pytest.mark.parametrize('num_kv_heads, scan', [(4, True), (2, False)])
def test_over_data_and_model(num_kv_heads, scan):
  model, boxed, tokens, mask = make(num_kv_heads, scan)
  partitioner = Partitioner(num_partitions=4)
  assert dict(partitioner.mesh.shape) == {'data': 2, 'model': 4}
  params = nn.meta.unbox(boxed)
  inputs = (
    jax.device_put(params, partitioner.param_shardings(boxed)),
    *partitioner.put_batch((tokens, mask)),
  )
  for function in (loss(model), beams(model)):
    expected = jax.jit(function, compiler_options=QUICKLY)(params, tokens, mask)
    partitioned = partitioner.partition(function, compiler_options=QUICKLY)
    actual = partitioned(*inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), actual, expected)
  # Decoding: nothing larger than the hidden states of a chunk of a device's prompts is moved.
  moved = moved_sizes(partitioned.lower(*inputs).compile().as_text())
  assert moved and max(moved) <= BATCH // 2 * CHUNK * model.config.emb_dim


def test_over_data_alone_devices_exchange_no_caches():
  model, boxed, tokens, mask = make(4, True)
  partitioner = Partitioner()
  inputs = (
    jax.device_put(nn.meta.unbox(boxed), partitioner.replicated),
    *partitioner.put_batch((tokens, mask)),
  )
  compiled = partitioner.partition(beams(model), compiler_options=QUICKLY).lower(*inputs).compile()
  # All that devices tell each other is whether all of them are done.
  assert moved_sizes(compiled.as_text()) == {1}


def moved_sizes(program):
  """Numbers of elements that collectives move."""
  shapes = re.findall(
    r' = \w+\[([\d,]*)\]\S* (?:all-gather|all-to-all|all-reduce|collective-permute)(?:-start)?\(',
    program,
  )
  return {int(np.prod([int(size) for size in shape.split(',') if size])) for shape in shapes}
