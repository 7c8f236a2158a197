"""RAG's likelihoods against NumPy and Hugging Face's RAG classes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ralm_jax.interop import huggingface
from ralm_jax.models import rag
from ralm_jax.models.bert import BertConfig
from ralm_jax.models.readings import RagSequence, marginal
from ralm_jax.models.retrieval_lm import ReaderBatch, RetrievalLM

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
from tests.models import rag_world as world

RETRIEVER = BertConfig(
  vocab_size=world.VOCAB,
  emb_dim=16,
  num_heads=2,
  num_layers=1,
  mlp_dim=24,
  max_positions=16,
  embedding_init_stddev=0.5,
)


def _random(rng):
  prior = world.log_softmax(rng.normal(size=(2, 3)))
  log_probs = -rng.exponential(size=(2, 3, 5))
  mask = np.arange(5) < np.asarray([[5], [3]])
  return prior, log_probs, mask


def test_likelihoods_are_the_papers_formulas():
  prior, log_probs, mask = _random(np.random.default_rng(0))
  p, y = np.exp(prior), np.exp(log_probs)
  sequence, token = np.zeros(2), np.zeros(2)
  for b in range(2):
    length = mask[b].sum()
    sequence[b] = -np.log(sum(p[b, z] * np.prod(y[b, z, :length]) for z in range(3)))
    token[b] = -np.log(
      np.prod([sum(p[b, z] * y[b, z, i] for z in range(3)) for i in range(length)])
    )
  np.testing.assert_allclose(rag.sequence_nll(prior, log_probs, mask), sequence, rtol=1e-5)
  np.testing.assert_allclose(rag.token_nll(prior, log_probs, mask), token, rtol=1e-5)
  # What is masked does not matter, whatever it is.
  log_probs[1, :, 3:] = -np.inf
  np.testing.assert_allclose(rag.sequence_nll(prior, log_probs, mask), sequence, rtol=1e-5)
  np.testing.assert_allclose(rag.token_nll(prior, log_probs, mask), token, rtol=1e-5)


def test_one_token_makes_both_the_same():
  prior, log_probs, _ = _random(np.random.default_rng(1))
  mask = np.arange(5) < 1
  np.testing.assert_allclose(
    rag.sequence_nll(prior, log_probs, mask[None]),
    rag.token_nll(prior, log_probs, mask[None]),
    rtol=1e-6,
  )


def test_missing_passages_have_no_share_and_no_nan():
  mask = np.asarray([[True, True, False], [False, False, False]])
  scores = np.asarray([[1.0, 2.0, -np.inf], [-np.inf] * 3])
  prior, gradient = jax.value_and_grad(lambda scores: rag.log_prior(scores, mask)[0, 0])(
    jnp.asarray(scores)
  )
  assert np.isfinite(prior) and np.all(np.isfinite(gradient))
  probabilities = np.exp(rag.log_prior(jnp.asarray(scores), mask))
  np.testing.assert_allclose(probabilities[0], [1 / (1 + np.e), np.e / (1 + np.e), 0], rtol=1e-5)
  # The bare query stands in the first slot.
  np.testing.assert_allclose(probabilities[1], [1, 0, 0], rtol=1e-5)


def _peer(kind):
  return world.bart_peer() if kind == 'bart' else world.t5_peer()


def _load(kind, peer, folder):
  peer.save_pretrained(folder)
  return (huggingface.load_bart if kind == 'bart' else huggingface.load_t5)(folder)


def _batch(pad_id):
  rng = np.random.default_rng(3)
  tokens, mask = world.passages()
  target_mask = np.arange(world.TARGET) < np.asarray([[5], [3]])
  target = rng.integers(4, world.VOCAB, (2, world.TARGET))
  texts = lambda *shape: rng.integers(4, world.VOCAB, shape).astype(np.int32)
  return ReaderBatch(
    reader_tokens=tokens,
    reader_mask=mask,
    passage_mask=np.ones((2, world.PASSAGES), bool),
    target_tokens=np.where(target_mask, target, pad_id).astype(np.int32),
    target_mask=target_mask,
    query_tokens=texts(2, 6),
    query_mask=np.ones((2, 6), bool),
    retriever_tokens=texts(2, world.PASSAGES, 6),
    retriever_mask=np.ones((2, world.PASSAGES, 6), bool),
    passage_scores=world.scores(),
  )


@pytest.mark.parametrize('reading', ['rag_sequence', 'rag_token'])
@pytest.mark.parametrize('kind', ['bart', 't5'])
def test_likelihoods_are_those_of_hugging_face(kind, reading, tmp_path):
  peer = _peer(kind)
  config, params = _load(kind, peer, tmp_path)
  batch = _batch(config.pad_id)
  model = RetrievalLM(
    config, RETRIEVER, reading=reading, gold_score='none', scale_scores=False, temperature_score=1.0
  )
  ours = model.score({'reader': params}, batch)

  if kind == 't5':
    peer.config.bos_token_id = None  # T5 has none, the RAG classes ask for it.
  dpr = transformers.DPRQuestionEncoder(
    transformers.DPRConfig(
      vocab_size=world.VOCAB,
      hidden_size=16,
      num_hidden_layers=1,
      num_attention_heads=2,
      intermediate_size=24,
      max_position_embeddings=16,
    )
  )
  classes = {
    'rag_sequence': transformers.RagSequenceForGeneration,
    'rag_token': transformers.RagTokenForGeneration,
  }
  combined = classes[reading](
    question_encoder=dpr.eval(),
    generator=peer,
    config=transformers.RagConfig.from_question_encoder_generator_configs(
      dpr.config, peer.config, n_docs=world.PASSAGES
    ),
  ).eval()
  # There the labels themselves are the decoder's inputs and, one to the left,
  # what is predicted.
  labels = np.concatenate([np.full((2, 1), config.decoder_start_id), batch.target_tokens], axis=1)
  flat = lambda array: world.long(array.reshape(-1, world.LENGTH))
  theirs = (
    combined(
      context_input_ids=flat(batch.reader_tokens),
      context_attention_mask=flat(batch.reader_mask),
      doc_scores=torch.tensor(world.scores()),
      labels=world.long(labels),
      n_docs=world.PASSAGES,
    )
    .loss.detach()
    .numpy()
  )
  np.testing.assert_allclose(-ours, theirs, atol=1e-4)


def _rag_model(config, **changes):
  return RetrievalLM(
    config,
    RETRIEVER,
    **{
      **dict(
        reading='rag_sequence',
        gold_score='none',
        scale_scores=False,
        temperature_score=1.0,
        tied_retriever=False,
        pooling='cls',
      ),
      **changes,
    },
  )


@pytest.fixture(scope='module')
def bart_model(tmp_path_factory):
  config, reader = _load('bart', world.bart_peer(), tmp_path_factory.mktemp('bart'))
  model = _rag_model(config)
  from flax import linen as nn

  params = nn.meta.unbox(model.init(jax.random.key(0)))
  return model, {**params, 'reader': reader}, _batch(config.pad_id)


def _gradients(model, params, batch):
  def loss(params):
    output = model.loss_fn(params, batch, None)
    return output.reader.total / output.reader.weight, output

  return world.quick_jit(jax.value_and_grad(loss, has_aux=True))(params)


@pytest.mark.parametrize('reading', ['rag_sequence', 'rag_token'])
def test_both_towers_and_the_generator_learn_from_the_likelihood(reading, bart_model):
  model, params, batch = bart_model
  model = dataclasses.replace(model, reading=reading)
  (loss, output), gradient = _gradients(model, params, batch)
  # The loss is that of `score`, with the encoders' own scores as the prior.
  by_encoders = batch.replace(passage_scores=None)
  np.testing.assert_allclose(loss, -np.mean(model.score(params, by_encoders)), rtol=1e-5)
  assert float(output.reader.weight) == 2
  np.testing.assert_allclose(output.metrics['nll_per_token'].total / 8, loss * 2 / 8, rtol=1e-5)
  for part in (
    gradient['reader'],
    gradient['retriever']['query_encoder'],
    gradient['retriever']['passage_encoder'],
  ):
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(part)) > 1e-6
  # A step along the query encoder's gradient lowers the loss.
  moved = dict(
    params,
    retriever=dict(
      params['retriever'],
      query_encoder=jax.tree.map(
        lambda p, g: p - 1e-2 * g,
        params['retriever']['query_encoder'],
        gradient['retriever']['query_encoder'],
      ),
    ),
  )
  assert _gradients(model, moved, batch)[0][0] < loss


def test_the_prior_s_gradient_is_posterior_minus_prior(bart_model):
  model, params, batch = bart_model
  log_probs = marginal.token_log_probs(model.reader, params['reader'], batch)
  gradient = jax.grad(
    lambda scores: -RagSequence().marginal_loss(log_probs, scores, batch)[0].total
  )(batch.passage_scores)
  joint = world.log_softmax(batch.passage_scores) + np.sum(
    log_probs * batch.target_mask[:, None], -1
  )
  expected = np.exp(world.log_softmax(joint)) - np.exp(world.log_softmax(batch.passage_scores))
  np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize('query_side', ['frozen', 'stored'])
def test_frozen_passages_and_index_are_the_papers_choice(query_side, bart_model):
  model, params, batch = bart_model
  (expected, _), full = _gradients(model, params, batch)
  if query_side == 'stored':
    batch = batch.replace(
      passage_embeddings=model.encode_passages(
        params, batch.retriever_tokens, batch.retriever_mask
      ),
      retriever_tokens=None,
      retriever_mask=None,
    )
  model = dataclasses.replace(model, query_side=query_side)
  (loss, _), gradient = _gradients(model, params, batch)
  np.testing.assert_allclose(loss, expected, rtol=1e-4)
  towers = gradient['retriever']
  assert not any(np.any(x) for x in jax.tree.leaves(towers['passage_encoder']))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
    towers['query_encoder'],
    full['retriever']['query_encoder'],
  )


def test_chunks_of_passages_change_nothing(bart_model):
  model, params, batch = bart_model
  (loss, _), gradient = _gradients(model, params, batch)
  chunked = dataclasses.replace(model, gold_chunk=1)
  (chunked_loss, _), chunked_gradient = _gradients(chunked, params, batch)
  np.testing.assert_allclose(chunked_loss, loss, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), chunked_gradient, gradient)


def test_a_padding_example_counts_for_nothing(bart_model):
  model, params, batch = bart_model
  (loss, _), _ = _gradients(model, params, batch)
  doubled = jax.tree.map(lambda x: np.concatenate([x, x]), batch)
  is_example = np.arange(4)[:, None] < 2
  doubled = doubled.replace(
    target_mask=doubled.target_mask & is_example, passage_mask=doubled.passage_mask & is_example
  )
  (padded_loss, _), gradient = _gradients(model, params, doubled)
  np.testing.assert_allclose(padded_loss, loss, rtol=1e-5)
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(gold_score='perplexity'), "set gold_score = 'none'"),
    (dict(n_context=2), 'n_context does not go with'),
    (dict(label_smoothing=0.1), 'label_smoothing does not go with'),
    (dict(reading='rag'), "reading 'rag' is unknown"),
  ],
)
def test_what_does_not_go_together_is_refused(changes, message, bart_model):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(bart_model[0], **changes)


@pytest.mark.slow
def test_a_frozen_step_gives_the_retriever_no_gradient(bart_model):
  model, params, batch = bart_model

  def loss(params, learns):
    return model.loss_fn(params, batch, None, retriever_learns=learns).reader.total

  frozen = jax.grad(loss)(params, jnp.asarray(False))
  learning = jax.grad(loss)(params, jnp.asarray(True))
  assert not any(np.any(x) for x in jax.tree.leaves(frozen['retriever']))
  assert any(np.any(x) for x in jax.tree.leaves(learning['retriever']))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), frozen['reader'], learning['reader']
  )
