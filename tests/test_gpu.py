"""On a GPU: `JAX_PLATFORMS=cuda,cpu python -m pytest -m gpu`.

Needs jax, flax, optax and pytest alone.
"""

import jax
import numpy as np
import pytest

from ralm_jax.models.bert import BertConfig
from ralm_jax.models.retrieval_lm import ReaderBatch, RetrievalLM
from ralm_jax.models.t5 import T5Config
from ralm_jax.training import optimizers, train_state, train_step
from ralm_jax.training.partitioning import Partitioner

pytestmark = pytest.mark.gpu


def _devices(platform):
  try:
    return jax.devices(platform)[:1]
  except RuntimeError:
    pytest.skip(f'no {platform} device; set JAX_PLATFORMS=cuda,cpu')


def _batch():
  rng = np.random.default_rng(0)
  tokens = lambda *shape: rng.integers(3, 90, shape).astype(np.int32)
  mask = lambda *shape: np.arange(shape[-1]) < rng.integers(2, shape[-1], shape[:-1] + (1,))
  return ReaderBatch(
    tokens(4, 3, 16),
    mask(4, 3, 16),
    np.ones((4, 3), bool),
    tokens(4, 8),
    mask(4, 8),
    tokens(4, 12),
    mask(4, 12),
    tokens(4, 3, 16),
    mask(4, 3, 16),
  )


def _losses(devices, dtype):
  model = RetrievalLM(
    T5Config(
      vocab_size=128,
      emb_dim=64,
      num_heads=4,
      head_dim=16,
      mlp_dim=128,
      num_encoder_layers=2,
      num_decoder_layers=2,
      dtype=dtype,
    ),
    BertConfig(
      vocab_size=128,
      emb_dim=64,
      num_heads=4,
      num_layers=2,
      mlp_dim=128,
      max_positions=32,
      dtype=dtype,
    ),
  )
  # Random numbers must not depend on the device.
  params = jax.tree.map(
    np.asarray,
    jax.device_get(train_state.initialize(model, {}, Partitioner(devices=_devices('cpu'))).params),
  )
  partitioner = Partitioner(devices=devices)
  optimizer = optimizers.adamw(1e-3)
  rules = {'reader': optimizer, 'retriever': optimizer}
  state = train_state.initialize(model, rules, partitioner, params=params)
  step = train_step.partition_train_step(model, rules, partitioner)
  losses = []
  for _ in range(3):
    state, metrics = step(state, partitioner.put_batch(_batch()))
    losses.append([float(metrics['loss/reader']), float(metrics['loss/retriever'])])
  return np.asarray(losses)


def test_three_steps_agree_with_the_cpu():
  with jax.default_matmul_precision('highest'):
    expected = _losses(_devices('cpu'), 'float32')
    np.testing.assert_allclose(_losses(_devices('cuda'), 'float32'), expected, rtol=1e-3)
  np.testing.assert_allclose(_losses(_devices('cuda'), 'bfloat16'), expected, rtol=0.1)
