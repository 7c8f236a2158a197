"""Greedy decoding with a cache against recomputation and transformers."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ralm_jax.decoding import decode
from ralm_jax.interop import huggingface
from ralm_jax.models.bert import BertConfig
from ralm_jax.models.retrieval_lm import ReaderBatch, RetrievalLM
from ralm_jax.models.t5 import T5Config

MAX_LENGTH = 10
EOS = 1
# Compiling is most of the time these tests take.
QUICKLY = {'xla_backend_optimization_level': 0}
VERSIONS = {
  '1.0': dict(mlp_activations=('relu',), logits_via_embedding=True),
  '1.1': dict(mlp_activations=('gelu', 'linear')),
}
SMALL = dict(
  vocab_size=23,
  emb_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=32,
  num_encoder_layers=2,
  num_decoder_layers=2,
)


def _model(config):
  return RetrievalLM(
    reader_config=config,
    retriever_config=BertConfig(vocab_size=23, emb_dim=16, num_heads=2, num_layers=1, mlp_dim=16),
  )


def _batch(size=6, passages=3, length=7):
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, 23, (size, passages, length)).astype(np.int32)
  lengths = rng.integers(3, length + 1, (size, passages))
  mask = np.arange(length) < lengths[..., None]
  return ReaderBatch(
    reader_tokens=np.where(mask, tokens, 0),
    reader_mask=mask,
    passage_mask=np.ones((size, passages), bool),
    target_tokens=np.zeros((size, 1), np.int32),
    target_mask=np.zeros((size, 1), bool),
  )


def _random_params(model, config):
  """Parameters with which the decoder listens to the encoder."""
  params = jax.tree.map(np.asarray, nn.meta.unbox(model.init(jax.random.key(3))))
  params['reader'] = jax.tree_util.tree_map_with_path(
    lambda path, x: x * (3.0 if 'encoder_decoder' in str(path) else 1.0), params['reader']
  )
  if config.logits_via_embedding:
    table = params['reader']['token_embedder']
    table['embedding'] = 3.0 * table['embedding']
  return params


def _predict(model, params, batch):
  run = jax.jit(
    lambda params, batch: model.predict(params, batch, max_length=MAX_LENGTH),
    compiler_options=QUICKLY,
  )
  return run(params, batch)


def _recompute(model, params, batch):
  """Ids and their log-probabilities, the whole prefix anew for every token."""
  size = batch.reader_tokens.shape[0]
  prefix = np.zeros((size, 1 + MAX_LENGTH), np.int32)
  log_probs = np.zeros((size, MAX_LENGTH))
  logits_of = jax.jit(
    lambda prefix: model.reader.apply(
      {'params': params['reader']}, batch.reader_tokens, batch.reader_mask, prefix
    ),
    compiler_options=QUICKLY,
  )
  for t in range(MAX_LENGTH):
    distribution = np.asarray(jax.nn.log_softmax(logits_of(prefix)[:, t]))
    prefix[:, t + 1] = distribution.argmax(-1)
    log_probs[:, t] = distribution.max(-1)
  return prefix[:, 1:], log_probs


def _first(row, token):
  return int(np.argmax(row == token)) if token in row else MAX_LENGTH


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('version', VERSIONS)
def test_cache_equals_recomputation(version, scan):
  config = T5Config(**SMALL, **VERSIONS[version], scan_layers=scan)
  model, batch = _model(config), _batch(size=12)
  params = _random_params(model, config)
  tokens, log_probs = _recompute(model, params, batch)
  # Of all tokens, let that one end a sequence with which rows end at the most
  # different lengths.
  eos_id = max(range(1, 23), key=lambda token: len({_first(row, token) for row in tokens}))
  ends = np.asarray([_first(row, eos_id) for row in tokens])
  assert len(set(ends)) >= 3, tokens
  kept = np.arange(MAX_LENGTH) <= ends[:, None]

  model = _model(dataclasses.replace(config, eos_id=eos_id))
  output = _predict(model, params, batch)
  np.testing.assert_array_equal(output.tokens[:, 0], np.where(kept, tokens, 0))
  np.testing.assert_allclose(output.log_probs[:, 0], np.sum(log_probs * kept, -1), atol=1e-4)


def test_n_context_limits_what_is_read():
  config = T5Config(**SMALL)
  batch = _batch()
  model = _model(config)
  params = _random_params(model, config)
  narrow = dataclasses.replace(
    batch, reader_tokens=batch.reader_tokens[:, :1], reader_mask=batch.reader_mask[:, :1]
  )
  limited = dataclasses.replace(model, n_context=1)
  np.testing.assert_array_equal(
    _predict(limited, params, batch).tokens, _predict(model, params, narrow).tokens
  )


@pytest.mark.parametrize('version', VERSIONS)
def test_same_ids_as_transformers(version, tmp_path):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  peer = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      vocab_size=23,
      d_model=16,
      d_kv=8,
      d_ff=32,
      num_layers=2,
      num_heads=2,
      feed_forward_proj='relu' if version == '1.0' else 'gated-gelu',
      tie_word_embeddings=version == '1.0',
      dropout_rate=0.0,
      decoder_start_token_id=0,
      initializer_factor=1.0,
    )
  ).eval()
  with torch.no_grad():
    for name, parameter in peer.named_parameters():
      if 'EncDecAttention' in name:
        parameter.mul_(3.0)
    if version == '1.0':
      peer.shared.weight.mul_(3.0)
    else:
      # transformers 5 ties every T5 head; version 1.1 has one of its own.
      peer.lm_head.weight = torch.nn.Parameter(torch.randn(23, 16))
  peer.config.save_pretrained(tmp_path)
  torch.save(peer.state_dict(), tmp_path / 'pytorch_model.bin')
  config, reader = huggingface.load_t5(tmp_path)
  model, batch = _model(config), _batch(size=12, passages=1)
  with torch.no_grad():
    expected = peer.generate(
      input_ids=torch.tensor(batch.reader_tokens[:, 0], dtype=torch.long),
      attention_mask=torch.tensor(batch.reader_mask[:, 0], dtype=torch.long),
      num_beams=1,
      do_sample=False,
      max_new_tokens=MAX_LENGTH,
    ).numpy()[:, 1:]
  expected = np.pad(expected, ((0, 0), (0, MAX_LENGTH - expected.shape[1])))
  output = _predict(model, {'reader': reader}, batch)
  np.testing.assert_array_equal(output.tokens[:, 0], expected)
  assert len({tuple(row) for row in expected}) > 3


class _Ending:
  """Prefers token 5 and ends row i of the batch once it has i + 2 tokens."""

  def __init__(self, batch):
    self.batch = batch
    self.steps = []

  def _logits(self, produced):
    ends = produced > jnp.arange(self.batch)
    return 9.0 * jax.nn.one_hot(jnp.where(ends, EOS, 5), 8)

  def start(self):
    return self._logits(0), jnp.ones((), jnp.int32)

  def expand(self, cache, n):
    assert n == 1
    return cache

  def step(self, tokens, cache):
    jax.debug.callback(lambda: self.steps.append(1))
    return self._logits(cache)[:, None], cache + 1


def _decode(stepper, max_length):
  run = jax.jit(lambda: decode.decode(stepper, max_length=max_length, eos_id=EOS, pad_id=0))
  decoded = jax.tree.map(lambda x: np.asarray(x)[:, 0], run())
  jax.effects_barrier()
  return decoded


def test_loop_stops_when_every_row_has_ended():
  stepper = _Ending(2)
  tokens = _decode(stepper, 20).tokens
  np.testing.assert_array_equal(tokens[:, :4], [[5, 1, 0, 0], [5, 5, 1, 0]])
  assert not tokens[:, 4:].any()
  assert len(stepper.steps) == 2


def test_never_longer_than_max_length():
  decoded = _decode(_Ending(7), 3)
  np.testing.assert_array_equal(decoded.tokens[-1], [5, 5, 5])
  each = -np.log1p(7 * np.exp(-9.0))
  # Row 0 has two tokens, its end included, all others three.
  np.testing.assert_allclose(decoded.log_probs, [2 * each] + [3 * each] * 6, atol=1e-6)


def test_an_id_outside_the_vocabulary_is_refused():
  with pytest.raises(ValueError, match='eos_id=8 is not in the vocabulary of 8'):
    decode.decode(_Ending(1), max_length=3, eos_id=8, pad_id=0)
