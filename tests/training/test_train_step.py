"""The train step: what it computes, what it leaves alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ralm_jax.training import train_state, train_step
from ralm_jax.training.optimizers import Optimizer
from ralm_jax.training.train_step import StepOptions
from tests.runs import tiny_run

MODEL = tiny_run.make_model()
BATCH = tiny_run.make_batch()
PARAMS = tiny_run.make_params(MODEL)
_jit = functools.partial(jax.jit, compiler_options=tiny_run.QUICK_COMPILE)


def _sgd(reader_clip=None, retriever_clip=None):
  """SGD of rate 1 moves by the gradients."""
  clips = {'reader': reader_clip, 'retriever': retriever_clip}
  return {name: Optimizer(optax.sgd(1.0), lambda _: 1.0, clip) for name, clip in clips.items()}


@functools.lru_cache
def _gradient_step(model, num_microbatches):
  """Compiled once for all batches of a shape."""
  return _jit(train_step.make_train_step(model, _sgd(), StepOptions(num_microbatches)))


def _gradients(model, batch=BATCH, num_microbatches=1, step=None):
  """Gradients (where the step does not clip) and metrics."""
  state = train_state.create(MODEL, PARAMS, _sgd(), 0)
  new_state, metrics = (step or _gradient_step(model, num_microbatches))(state, batch)
  grads = jax.tree.map(lambda old, new: old - new, PARAMS, new_state.params)
  return grads, {name: float(x) for name, x in metrics.items()}


def _assert_close(actual, expected, atol=1e-5):
  paths = jax.tree_util.tree_leaves_with_path(expected)
  flat = dict(jax.tree_util.tree_leaves_with_path(actual))
  assert len(flat) == len(paths)
  for path, value in paths:
    np.testing.assert_allclose(flat[path], value, atol=atol, rtol=1e-4, err_msg=str(path))


def _largest(tree):
  return max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(tree))


@_jit
def _clipping_step(state, batch, limits):
  """One program for all limits of the modules; infinite ones clip nothing."""
  return train_step.make_train_step(MODEL, _sgd(*limits))(state, batch)


@pytest.fixture(scope='module')
def direct():
  return _gradients(MODEL, step=lambda *args: _clipping_step(*args, (jnp.inf, jnp.inf)))


def test_microbatches_give_the_direct_gradient(direct):
  grads, metrics = _gradients(MODEL, num_microbatches=4)
  _assert_close(grads, direct[0])
  for name, value in direct[1].items():
    assert metrics[name] == pytest.approx(value, abs=1e-5, rel=1e-5), name


def test_microbatches_of_unequal_weight_and_padding_rows():
  # Rows of one microbatch have no target at all, those of another few.
  mask = BATCH.target_mask.copy()
  mask[[1, 5]] = False
  mask[[2, 6], 1:] = False
  batch = BATCH.replace(target_mask=mask)
  grads, metrics = _gradients(MODEL, batch)
  split, split_metrics = _gradients(MODEL, batch, num_microbatches=4)
  _assert_close(split, grads)
  assert split_metrics['loss'] == pytest.approx(metrics['loss'], rel=1e-5)
  # Left out altogether, the padding rows change nothing either.
  rows = np.asarray([0, 2, 3, 4, 6, 7])
  kept, kept_metrics = _gradients(MODEL, jax.tree.map(lambda x: x[rows], batch))
  _assert_close(kept, grads)
  assert kept_metrics['loss'] == pytest.approx(metrics['loss'], rel=1e-5)


def test_microbatches_must_divide_the_batch():
  with pytest.raises(ValueError, match='num_microbatches 3 must divide'):
    _gradients(MODEL, num_microbatches=3)


def test_padding_passages_change_nothing(direct):
  def widen(array, fill):
    if array.ndim < 2 or array.shape[1] != 4:
      return array
    padding = np.full((8, 2, *array.shape[2:]), fill, array.dtype)
    return np.concatenate([array, padding], 1)

  # Tokens of a padding passage may be anything; its masks are false.
  batch = dataclasses.replace(
    BATCH,
    **{
      name: widen(getattr(BATCH, name), 5 if name.endswith('tokens') else False)
      for name in (
        'reader_tokens',
        'reader_mask',
        'passage_mask',
        'retriever_tokens',
        'retriever_mask',
      )
    },
  )
  grads, metrics = _gradients(MODEL, batch)
  _assert_close(grads, direct[0])
  for name, value in direct[1].items():
    assert metrics[name] == pytest.approx(value, abs=1e-5, rel=1e-5), name


@pytest.mark.parametrize('options', [dict(gold_encoder='shared'), dict(gold_chunk=2)], ids=str)
def test_options_that_compute_the_same(options, direct):
  grads, metrics = _gradients(tiny_run.make_model(**options))
  _assert_close(grads, direct[0])
  assert metrics['loss'] == pytest.approx(direct[1]['loss'], rel=1e-5)


def test_gold_scores_see_no_dropout(direct):
  clean = direct[1]  # The parameters are the same, and MODEL has no dropout.
  model = tiny_run.make_model(reader=dict(dropout_rate=0.5))
  loss = lambda model: _jit(model.loss_fn)(PARAMS, BATCH, jax.random.key(0))
  dropped = loss(model)
  assert abs(dropped.reader.mean - clean['loss/reader']) > 1e-2
  np.testing.assert_allclose(dropped.retriever.mean, clean['loss/retriever'], rtol=1e-5)
  # 'shared' is the documented exception: the states carry the dropout.
  shared = loss(dataclasses.replace(model, gold_encoder='shared'))
  assert abs(shared.retriever.mean - clean['loss/retriever']) > 1e-4


def test_fewer_passages_read_than_scored(direct):
  model = tiny_run.make_model(n_context=2)
  output = _jit(model.loss_fn)(PARAMS, BATCH, None)
  narrow = dataclasses.replace(
    BATCH, reader_tokens=BATCH.reader_tokens[:, :2], reader_mask=BATCH.reader_mask[:, :2]
  )
  alone = tiny_run.make_model(train_retriever=False)
  reader = _jit(alone.loss_fn)(PARAMS, narrow, None)
  # The reader reads the first two; the retriever learns from all four.
  np.testing.assert_allclose(output.reader.mean, reader.reader.mean, rtol=1e-5)
  np.testing.assert_allclose(output.retriever.mean, direct[1]['loss/retriever'], rtol=1e-5)


def test_no_gradient_crosses_between_reader_and_retriever():
  @_jit
  def grads(params):
    loss = lambda p: (lambda output: (output.reader.total, output.retriever.total))(
      MODEL.loss_fn(p, BATCH, None)
    )
    return jax.jacrev(loss)(params)

  of_reader_loss, of_retriever_loss = grads(PARAMS)
  assert _largest(of_reader_loss['retriever']) == 0.0
  assert _largest(of_retriever_loss['reader']) == 0.0
  assert _largest(of_reader_loss['reader']) > 0.0
  assert _largest(of_retriever_loss['retriever']) > 0.0


DROPPING = tiny_run.make_model(reader=dict(dropout_rate=0.3), retriever=dict(dropout_rate=0.3))


@pytest.fixture(scope='module')
def adamw_step():
  return _jit(train_step.make_train_step(DROPPING, tiny_run.adamw()))


@pytest.mark.parametrize('broken', ['reader', 'retriever'])
def test_a_step_that_is_not_finite_changes_nothing(broken, adamw_step):
  optimizers = tiny_run.adamw()
  params = jax.tree.map(jnp.asarray, PARAMS)
  state = train_state.create(MODEL, params, optimizers, 0)
  step = adamw_step
  state, metrics = step(state, BATCH)
  assert metrics['skipped_steps'] == 0

  table = state.params[broken]['token_embedder']['embedding']
  poisoned = table.at[BATCH.reader_tokens[0, 0, 0]].set(jnp.nan)
  poisoned = poisoned.at[BATCH.query_tokens[0, 0]].set(jnp.nan)
  bad = state.replace(
    params={
      **state.params,
      broken: {**state.params[broken], 'token_embedder': {'embedding': poisoned}},
    }
  )
  after, metrics = step(bad, BATCH)
  assert metrics['skipped_steps'] == 1 and after.skipped_steps == 1
  assert after.step == bad.step + 1
  for new, old in zip(
    jax.tree.leaves((after.params, after.opt_state)), jax.tree.leaves((bad.params, bad.opt_state))
  ):
    np.testing.assert_array_equal(new, old)
  # And it goes on as if nothing had been.
  healthy, metrics = step(after.replace(params=state.params), tiny_run.make_batch(seed=1))
  assert np.isfinite(metrics['loss']) and healthy.skipped_steps == 1
  assert metrics['gradient_norm/reader'] > 0


@pytest.mark.parametrize('frozen', ['reader', 'retriever'])
def test_a_module_without_optimizer_stays_bit_for_bit(frozen):
  optimizers = tiny_run.adamw()
  del optimizers[frozen]
  state = train_state.create(MODEL, PARAMS, optimizers, 0)
  after, metrics = _jit(train_step.make_train_step(MODEL, optimizers))(state, BATCH)
  (trained,) = optimizers
  for new, old in zip(jax.tree.leaves(after.params[frozen]), jax.tree.leaves(PARAMS[frozen])):
    np.testing.assert_array_equal(new, old)
  assert _largest(jax.tree.map(lambda a, b: a - b, after.params[trained], PARAMS[trained])) > 0
  assert f'gradient_norm/{frozen}' not in metrics


def test_clipping_per_module(direct):
  grads, metrics = direct
  limit = 0.5 * min(metrics['gradient_norm/reader'], metrics['gradient_norm/retriever'])
  loose = 10.0 * max(metrics['gradient_norm/reader'], metrics['gradient_norm/retriever'])
  moved, clipped = _gradients(MODEL, step=lambda *args: _clipping_step(*args, (limit, loose)))
  assert float(optax.tree.norm(moved['reader'])) == pytest.approx(limit, rel=1e-3)
  scale = limit / metrics['gradient_norm/reader']
  _assert_close(moved['reader'], jax.tree.map(lambda g: g * scale, grads['reader']))
  _assert_close(moved['retriever'], grads['retriever'])
  # The logged norm is the one before clipping.
  assert clipped['gradient_norm/reader'] == pytest.approx(metrics['gradient_norm/reader'], rel=1e-5)


def test_clipping_all_modules_together(direct):
  grads, metrics = direct
  norms = [metrics[f'gradient_norm/{name}'] for name in ('reader', 'retriever')]
  limit = 0.5 * float(np.hypot(*norms))
  options = StepOptions(global_clip_norm=limit)
  moved, _ = _gradients(
    MODEL, step=_jit(train_step.make_train_step(MODEL, _sgd(1e-6, 1e-6), options))
  )
  assert float(optax.tree.norm(moved)) == pytest.approx(limit, rel=1e-3)
  _assert_close(moved, jax.tree.map(lambda g: g * 0.5, grads))


def test_dropout_differs_from_step_to_step_and_repeats(adamw_step):
  state = train_state.create(DROPPING, PARAMS, tiny_run.adamw(), 0)
  first, metrics = adamw_step(state, BATCH)
  _, again = adamw_step(state, BATCH)
  # The same parameters, one step later.
  _, second = adamw_step(first.replace(params=state.params), BATCH)
  assert metrics['loss'] == again['loss']
  assert metrics['loss/reader'] != second['loss/reader']
  assert metrics['loss/retriever'] != second['loss/retriever']


@pytest.mark.parametrize(
  'options,message',
  [(dict(gold_chunk=3), 'gold_chunk 3 must divide'), (dict(gold_score='attention_'), 'gold_score')],
)
def test_bad_options(options, message):
  with pytest.raises(ValueError, match=message):
    model = tiny_run.make_model(**options)
    jax.eval_shape(lambda p: model.loss_fn(p, BATCH, None), PARAMS)


def test_parameters_of_another_shape():
  wider = tiny_run.make_model(reader=dict(mlp_dim=80))
  with pytest.raises(ValueError, match=r'mlp/wi_0/kernel has shape \(32, 64\)'):
    train_state.initialize(wider, tiny_run.adamw(), tiny_run.one_device(), params=PARAMS)
