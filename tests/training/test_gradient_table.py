"""Which parameters each loss reaches in each regime, and none other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ralm_jax.models import dual_encoder
from ralm_jax.training import train_state, train_step
from ralm_jax.training.optimizers import Optimizer
from ralm_jax.training.train_step import StepOptions
from tests.runs import tiny_run

LOSSES = ('perplexity', 'attention', 'leave_one_out', 'emdr2')
_jit = functools.partial(jax.jit, compiler_options=tiny_run.QUICK_COMPILE)

# Regime: model options, towers that the retriever's loss reaches.
REGIMES = {
  'tied': (dict(), {'tied'}),
  'two towers': (dict(tied_retriever=False), {'query', 'passage'}),
  'query side, stored': (dict(tied_retriever=False, query_side='stored'), {'query'}),
  'query side, frozen': (dict(tied_retriever=False, query_side='frozen'), {'query'}),
  'query side, released': (dict(query_side='released'), {'tied'}),
  'fixed': (dict(train_retriever=False), set()),
}


def _model(loss, regime):
  return tiny_run.make_model(
    gold_score=loss, reader=dict(num_decoder_layers=2), **REGIMES[regime][0]
  )


@functools.lru_cache
def _params(tied):
  model = tiny_run.make_model(reader=dict(num_decoder_layers=2))
  params = tiny_run.make_params(model)
  if not tied:
    params = {**params, 'retriever': dual_encoder.untie(params['retriever'])}
  return params


@functools.lru_cache
def _batch(stored):
  batch = tiny_run.make_batch()
  if not stored:
    return batch
  model = tiny_run.make_model()
  embeddings = model.encode_passages(
    {'retriever': _params(True)['retriever']}, batch.retriever_tokens, batch.retriever_mask
  )
  return batch.replace(
    passage_embeddings=np.asarray(embeddings, np.float16),
    retriever_tokens=None,
    retriever_mask=None,
  )


def _towers(gradient):
  """Names of the retriever's towers with any gradient."""
  moved = lambda tree: any(np.any(x) for x in jax.tree.leaves(tree))
  towers = {'query': 'query_encoder', 'passage': 'passage_encoder'}
  if 'query_encoder' not in gradient:
    return {'tied'} if moved(gradient) else set()
  return {name for name, key in towers.items() if moved(gradient[key])}


def _cells():
  """The whole table; what differs least from other cells runs on request."""
  for loss in LOSSES:
    for regime in REGIMES:
      quick = loss == 'perplexity' or regime == 'tied'
      yield pytest.param(loss, regime, marks=[] if quick else [pytest.mark.slow])


@pytest.mark.parametrize('loss,regime', _cells())
def test_table(loss, regime):
  model = _model(loss, regime)
  params = _params(model.tied_retriever)
  batch = _batch(model.query_side == 'stored')

  @_jit
  def gradients(params):
    of = lambda part: jax.grad(lambda p: getattr(model.loss_fn(p, batch, None), part).total)(params)
    return of('reader'), of('retriever')

  of_reader_loss, of_retriever_loss = gradients(params)
  assert _towers(of_retriever_loss['retriever']) == REGIMES[regime][1]
  assert not any(np.any(x) for x in jax.tree.leaves(of_retriever_loss['reader']))
  assert not _towers(of_reader_loss['retriever'])
  # Every parameter of the reader, in its own loss.
  assert all(np.any(x) for x in jax.tree.leaves(of_reader_loss['reader']))


@pytest.mark.parametrize('query_side', ['stored', 'frozen'])
def test_query_side_moves_no_passage_embedding(query_side):
  """Bit for bit, whatever decay and moments the optimiser has."""
  model = _model('perplexity', f'query side, {query_side}')
  batch = _batch(query_side == 'stored')
  optimizers = tiny_run.adamw(0.05)
  params = _params(False)
  state = train_state.create(model, params, optimizers, 0)
  # The frozen tower has no optimiser state either.
  assert set(state.opt_state['retriever'][0].mu) == {'query_encoder'}
  step = _jit(train_step.make_train_step(model, optimizers))
  for _ in range(3):
    state, metrics = step(state, batch)
  assert metrics['gradient_norm/retriever'] > 0
  texts = tiny_run.make_batch(seed=5)
  embed = lambda p: _jit(model.encode_passages)(p, texts.retriever_tokens, texts.retriever_mask)
  np.testing.assert_array_equal(embed(params), embed(state.params))
  queries = lambda p: _jit(model.encode_queries)(p, texts.query_tokens, texts.query_mask)
  assert np.abs(queries(params) - queries(state.params)).max() > 1e-3


def test_released_query_side_moves_passages_with_the_queries():
  model = _model('perplexity', 'query side, released')
  state = train_state.create(model, _params(True), tiny_run.adamw(0.05), 0)
  after, _ = _jit(train_step.make_train_step(model, tiny_run.adamw(0.05)))(state, _batch(False))
  texts = _batch(False)
  embed = lambda p: model.encode_passages(p, texts.retriever_tokens, texts.retriever_mask)
  assert np.abs(embed(state.params) - embed(after.params)).max() > 1e-3


def test_stored_embeddings_give_the_gradient_of_encoded_ones():
  """Up to what float16 rounds off."""
  gradients = []
  for side in ('stored', 'frozen'):
    model = _model('perplexity', f'query side, {side}')
    gradients.append(
      _jit(
        jax.grad(
          lambda p, m=model, b=_batch(side == 'stored'): m.loss_fn(p, b, None).retriever.total
        )
      )(_params(False))
    )
  for one, two in zip(*map(jax.tree.leaves, gradients)):
    np.testing.assert_allclose(one, two, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize('loss', ['perplexity', 'attention'])
def test_first_steps_without_the_retriever(loss):
  """freeze_retriever_steps: nothing of it moves but its schedule."""
  model = _model(loss, 'tied')
  schedule = lambda count: jnp.float32(0.01) * (count + 1)
  optimizers = {
    name: Optimizer(optax.adamw(schedule), schedule, None) for name in ('reader', 'retriever')
  }
  step = _jit(train_step.make_train_step(model, optimizers, StepOptions(freeze_retriever_steps=2)))
  state = train_state.create(model, _params(True), optimizers, 0)
  batch = tiny_run.make_batch()
  for number in range(4):
    before, (state, metrics) = state, step(state, batch)
    frozen = number < 2
    same = all(
      np.array_equal(x, y)
      for x, y in zip(
        jax.tree.leaves(before.params['retriever']), jax.tree.leaves(state.params['retriever'])
      )
    )
    assert same == frozen
    assert (metrics['loss/retriever'] == 0) == frozen
    # The schedule counts frozen steps, Adam's moments do not.
    assert metrics['learning_rate/retriever'] == pytest.approx(0.01 * (number + 1))
    adam = state.opt_state['retriever'][0]
    assert adam.count == max(0, number - 1)
    assert np.isfinite(metrics['loss'])


@pytest.mark.parametrize(
  'options,message',
  [
    (dict(query_side='stored'), 'takes two towers'),
    (dict(query_side='released', tied_retriever=False), 'that of tied towers'),
    (dict(query_side='both'), "query_side 'both' is unknown"),
    (dict(compared_gold_scores=['loop']), "names 'loop'"),
    (dict(gold_attention_layers=3), 'between 1 and the 1 decoder layers'),
    (dict(emdr2_level='word'), "emdr2_level 'word'"),
  ],
)
def test_bad_options(options, message):
  with pytest.raises(ValueError, match=message):
    tiny_run.make_model(**options)


def test_reranking_keeps_the_best_by_the_current_encoder():
  model = tiny_run.make_model()
  params = _params(True)
  batch = tiny_run.make_batch(passages=6)
  mask = np.array(batch.passage_mask)
  mask[0, 3:] = False  # fewer candidates than are kept
  mask[1, 0] = False
  batch = batch.replace(passage_mask=mask)
  for chunk in (None, 2):
    reranked = _jit(lambda p, b, c=chunk: model.rerank(p, b, 4, chunk=c))(params, batch)
    queries = model.encode_queries(params, batch.query_tokens, batch.query_mask)
    passages = model.encode_passages(params, batch.retriever_tokens, batch.retriever_mask)
    scores = np.einsum('bd,bnd->bn', queries, passages)
    scores = np.where(mask, scores, -np.inf)
    order = np.argsort(-scores, axis=-1, kind='stable')[:, :4]
    np.testing.assert_array_equal(reranked.chosen, order)
    rows = np.arange(8)[:, None]
    for name in (
      'reader_tokens',
      'reader_mask',
      'retriever_tokens',
      'retriever_mask',
      'passage_mask',
    ):
      np.testing.assert_array_equal(
        getattr(reranked.batch, name), getattr(batch, name)[rows, order]
      )
    assert not np.isfinite(reranked.scores[0, 3])
  with pytest.raises(ValueError, match='7 passages cannot be kept of 6'):
    model.rerank(params, batch, 7)


def test_dropout_does_not_reach_a_frozen_passage_encoder():
  model = dataclasses.replace(
    _model('perplexity', 'query side, frozen'),
    retriever_config=dataclasses.replace(tiny_run.RETRIEVER, dropout_rate=0.5),
  )
  params, batch = _params(False), tiny_run.make_batch()
  scores = [model.retriever_scores(params, batch, jax.random.key(i)) for i in range(2)]
  assert np.abs(scores[0] - scores[1]).max() > 1e-3
  clean = dual_encoder.retriever_scores(
    model.retriever.apply(
      {'params': params['retriever']},
      batch.query_tokens,
      batch.query_mask,
      deterministic=False,
      rngs={'dropout': jax.random.key(0)},
      method='encode_queries',
    ),
    model.encode_passages(params, batch.retriever_tokens, batch.retriever_mask),
  )
  np.testing.assert_allclose(scores[0], clean, rtol=1e-5, atol=1e-6)
