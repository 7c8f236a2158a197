"""Scores of option letters, against the model's own likelihood of each."""

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ralm_jax.models.bert import BertConfig
from ralm_jax.models.choices import ChoiceTokens
from ralm_jax.models.reader_batch import ReaderBatch
from ralm_jax.models.retrieval_lm import RetrievalLM
from ralm_jax.models.t5 import T5Config

# Less optimised code compiles twice as fast; the tests are about the program.
quick_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
BATCH, PASSAGES, LENGTH, VOCAB = 3, 4, 6, 40
ONE_TOKEN = [[39, 7, 1], [39, 9, 1], [39, 12, 1]]
MORE_TOKENS = [[39, 3, 7, 1], [39, 9, 1], [39, 3, 12, 1]]


def make_model(reading, **changes):
  return RetrievalLM(
    reader_config=T5Config(
      vocab_size=VOCAB,
      emb_dim=16,
      num_heads=2,
      head_dim=8,
      mlp_dim=24,
      num_encoder_layers=1,
      num_decoder_layers=1,
    ),
    retriever_config=BertConfig(
      vocab_size=VOCAB, emb_dim=16, num_heads=2, num_layers=1, mlp_dim=24, max_positions=16
    ),
    reading=reading,
    **changes,
    **({} if reading == 'fusion' else {'gold_score': 'none'}),
  )


def make_batch():
  rng = np.random.default_rng(0)
  lengths = rng.integers(3, LENGTH + 1, (BATCH, PASSAGES, 1))
  passage_mask = np.ones((BATCH, PASSAGES), bool)
  passage_mask[1, 2:] = False
  return ReaderBatch(
    reader_tokens=rng.integers(2, VOCAB, (BATCH, PASSAGES, LENGTH)),
    reader_mask=np.arange(LENGTH) < lengths,
    passage_mask=passage_mask,
    target_tokens=np.zeros((BATCH, 1), np.int32),
    target_mask=np.zeros((BATCH, 1), bool),
    passage_scores=rng.normal(0, 3, (BATCH, PASSAGES)).astype(np.float32),
  )


@pytest.fixture(scope='module')
def params():
  return nn.meta.unbox(quick_jit(make_model('fusion').init)(jax.random.key(0)))


def scores(model, params, batch, targets):
  tokens = ChoiceTokens.make(targets)
  return quick_jit(functools.partial(model.choice_logits, choices=tokens))(params, batch)


def log_likelihoods(model, params, batch, targets):
  """[B, n] by `RetrievalLM.score`, one letter at a time."""
  score = quick_jit(model.score)
  columns = []
  for target in targets:
    row = np.zeros(4, np.int32)
    row[: len(target)] = target
    tokens = np.tile(row, (BATCH, 1))
    columns.append(
      score(
        params,
        batch.replace(
          target_tokens=tokens, target_mask=np.tile(np.arange(4) < len(target), (BATCH, 1))
        ),
      )
    )
  return np.stack(columns, axis=1)


def test_fusion_gives_raw_logits_behind_the_sentinel(params):
  model, batch = make_model('fusion', n_context=3), make_batch()
  assert ChoiceTokens.make(ONE_TOKEN).position == 1
  found = scores(model, params, batch, ONE_TOKEN)
  assert found.shape == (BATCH, 3) and found.dtype == jnp.float32
  # As Atlas: the logits of a teacher-forced target at decoder position 1.
  inputs = np.tile([0, 39, 12], (BATCH, 1))
  read = (batch.reader_mask & batch.passage_mask[..., None])[:, :3]
  logits = quick_jit(model.reader.apply)(
    {'params': params['reader']}, batch.reader_tokens[:, :3], read, inputs
  )
  np.testing.assert_allclose(found, logits[:, 1, jnp.asarray([7, 9, 12])], atol=1e-5)


def test_fusion_with_letters_of_several_tokens(params):
  model, batch = make_model('fusion', n_context=2), make_batch()
  assert ChoiceTokens.make(MORE_TOKENS).position is None
  np.testing.assert_allclose(
    scores(model, params, batch, MORE_TOKENS),
    log_likelihoods(model, params, batch, MORE_TOKENS),
    atol=1e-4,
  )


@pytest.mark.parametrize('reading', ['rag_sequence', 'rag_token'])
def test_rag_gives_marginal_likelihoods(params, reading):
  model, batch = make_model(reading), make_batch()
  expected = log_likelihoods(model, params, batch, MORE_TOKENS)
  np.testing.assert_allclose(scores(model, params, batch, MORE_TOKENS), expected, atol=1e-4)
  # Some passages at a time, and with the search's scores the other way round.
  other = batch.replace(passage_scores=-batch.passage_scores)
  chunked = dataclasses.replace(model, gold_chunk=2)
  found = scores(chunked, params, other, MORE_TOKENS)
  np.testing.assert_allclose(found, log_likelihoods(model, params, other, MORE_TOKENS), atol=1e-4)
  assert not np.allclose(found, expected, atol=1e-3)


def test_letters_that_cannot_be_told_apart():
  with pytest.raises(ValueError, match=r'Options 1 and 3 have the same target'):
    ChoiceTokens.make([[5, 2, 1], [5, 7, 1], [5, 2, 1]])


def test_positions():
  make = ChoiceTokens.make
  assert make([[4], [5]]).position == 0
  assert make([[9, 4, 6], [9, 5, 7]]).position is None
  assert make([[9, 4, 1], [9, 5, 1], [9, 4, 6, 1]]).position is None
