"""The retriever's warm start: the loss against NumPy, learning, resuming."""

from flax import linen as nn
import jax
import numpy as np
import pytest

from ralm_jax.checkpoints.store import Checkpoints
from ralm_jax.losses import contrastive
from ralm_jax.models.bert import BertConfig
from ralm_jax.models.retrieval_lm import RetrievalLM
from ralm_jax.models.t5 import T5Config
from ralm_jax.training import crop_training, optimizers
from ralm_jax.training.crop_training import WarmStartConfig
from ralm_jax.training.partitioning import Partitioner


@pytest.mark.parametrize('symmetric', [False, True])
def test_contrastive_loss_is_the_formula(symmetric):
  rng = np.random.default_rng(0)
  queries, passages = rng.normal(size=(2, 5, 8)).astype(np.float32)
  loss, correct = contrastive.in_batch_contrastive(
    queries, passages, temperature=0.5, symmetric=symmetric
  )
  scores = queries @ passages.T / np.sqrt(8) / 0.5

  def mean_nll(scores):
    log_probs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    return -np.mean(np.diag(log_probs))

  expected = mean_nll(scores)
  if symmetric:
    expected = 0.5 * (expected + mean_nll(scores.T))
  np.testing.assert_allclose(loss.mean, expected, rtol=1e-5)
  assert correct.mean == np.mean(scores.argmax(-1) == np.arange(5))


def sampler(size, generator):
  """Pairs that share two of eight tokens which no other pair has."""
  own = generator.permutation(40)[:size, None] + 10
  draw = lambda: np.concatenate([own, own, generator.integers(60, 90, (size, 6))], -1).astype(
    np.int32
  )
  mask = np.ones((size, 8), bool)
  return (draw(), mask), (draw(), mask)


def setup():
  model = RetrievalLM(
    T5Config(
      vocab_size=100,
      emb_dim=16,
      num_heads=2,
      head_dim=8,
      mlp_dim=16,
      num_encoder_layers=1,
      num_decoder_layers=1,
    ),
    BertConfig(vocab_size=100, emb_dim=16, num_heads=2, num_layers=0, mlp_dim=16, max_positions=16),
  )
  params = nn.meta.unbox(model.init(jax.random.key(0)))
  config = WarmStartConfig(steps=60, batch_size=16, temperature=0.1)
  return model, params, config


def test_it_learns_leaves_the_reader_alone_and_resumes_exactly(tmp_path):
  model, params, config = setup()
  optimizer = optimizers.adamw(3e-2, weight_decay=0.0)
  partitioner = Partitioner(devices=jax.devices()[:1])

  def run(steps, store=None):
    import dataclasses

    return crop_training.warm_start(
      model,
      params,
      sampler,
      optimizer,
      dataclasses.replace(config, steps=steps),
      partitioner=partitioner,
      checkpoints=store,
      checkpoint_period=25,
      progress=False,
    )

  trained = run(60)
  assert all(jax.tree.leaves(jax.tree.map(np.array_equal, trained['reader'], params['reader'])))

  def found(params):
    queries, passages = sampler(16, np.random.default_rng(99))
    scores = model.encode_queries(params, *queries) @ model.encode_passages(params, *passages).T
    return np.mean(np.argmax(scores, -1) == np.arange(16))

  assert found(trained) > max(0.9, found(params))

  store = Checkpoints(tmp_path / 'run')
  run(25, store)
  resumed = run(60, store)
  store.close()
  assert all(
    jax.tree.leaves(jax.tree.map(np.array_equal, trained['retriever'], resumed['retriever']))
  )
