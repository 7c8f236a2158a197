"""The train step with decoder-only readers: which loss moves what, in parts and over a mesh."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from ralm_jax.models import dual_encoder
from ralm_jax.training import partitioning, train_state, train_step
from ralm_jax.training.optimizers import Optimizer
from ralm_jax.training.partitioning import Partitioner
from ralm_jax.training.train_step import StepOptions
from tests.runs import tiny_run

READINGS = ('in_context', 'parallel', 'rag_sequence', 'rag_token')
# Others run on request where they differ little.
FEW = [READINGS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in READINGS[1:])]
LOSSES = ('perplexity', 'attention', 'leave_one_out', 'emdr2')
FSDP = partitioning.standard_logical_axis_rules(parameter_partitioning_dims=2)
_jit = functools.partial(jax.jit, compiler_options=tiny_run.QUICK_COMPILE)


def _batch(**changes):
  """An example without passages, and one with fewer than the others, among the rest."""
  batch = tiny_run.make_prompt_batch(**changes)
  mask = np.array(batch.passage_mask)
  mask[0, 2:], mask[1] = False, False
  return batch.replace(passage_mask=mask)


def _params(model):
  params = tiny_run.make_params(tiny_run.make_decoder_model())
  if model.tied_retriever:
    return params
  return {**params, 'retriever': dual_encoder.untie(params['retriever'])}


def _moved(tree):
  return [bool(np.any(x)) for x in jax.tree.leaves(tree)]


def _cells():
  """Towers that the retriever's loss reaches; what differs least runs on request."""
  for reading in READINGS[:2]:
    for loss in LOSSES:
      for options, towers in (
        ({}, {'tied'}),
        ({'tied_retriever': False, 'query_side': 'frozen'}, {'query_encoder'}),
        ({'train_retriever': False}, set()),
      ):
        quick = loss == 'perplexity' or not (options or reading == 'parallel')
        yield pytest.param(reading, loss, options, towers, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize('reading, loss, options, towers', list(_cells()))
def test_no_loss_reaches_the_other_module(reading, loss, options, towers):
  model = tiny_run.make_decoder_model(reading=reading, gold_score=loss, **options)
  batch, params = _batch(), _params(model)

  @_jit
  def gradients(params):
    of = lambda part: jax.grad(lambda p: getattr(model.loss_fn(p, batch, None), part).total)(params)
    return of('reader'), of('retriever')

  of_reader, of_retriever = gradients(params)
  assert all(_moved(of_reader['reader'])) and not any(_moved(of_reader['retriever']))
  assert not any(_moved(of_retriever['reader']))
  found = of_retriever['retriever']
  if 'query_encoder' in found:
    assert {name for name in found if any(_moved(found[name]))} == towers
  else:
    assert any(_moved(found)) == bool(towers)


@pytest.mark.parametrize('reading', READINGS[2:])
def test_the_marginal_reaches_both(reading):
  batch = _batch()
  for learns in (True, False):
    model = tiny_run.make_decoder_model(reading=reading, train_retriever=learns)
    grads = _jit(jax.grad(lambda p, m=model: m.loss_fn(p, batch, None).reader.total))(
      _params(model)
    )
    assert all(_moved(grads['reader']))
    assert any(_moved(grads['retriever'])) == learns


@functools.lru_cache
def _sgd():
  """Of rate 1: it moves by the gradients."""
  return {name: Optimizer(optax.sgd(1.0), lambda _: 1.0, None) for name in ('reader', 'retriever')}


def _step(model, batch, params=None, optimizers=None, **options):
  optimizers = optimizers or _sgd()
  state = train_state.create(model, params or _params(model), optimizers, 0)
  return _jit(train_step.make_train_step(model, optimizers, StepOptions(**options)))(state, batch)


def _close(actual, expected, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


@pytest.mark.parametrize('reading', READINGS)
def test_microbatches_are_the_whole_batch(reading):
  """Also where passages are scored a few at a time."""
  batch = _batch()
  whole, metrics = _step(tiny_run.make_decoder_model(reading=reading), batch)
  model = tiny_run.make_decoder_model(reading=reading, gold_chunk=2)
  parts, in_parts = _step(model, batch, num_microbatches=4)
  _close(parts.params, whole.params, atol=2e-5, rtol=1e-4)
  for name in ('loss', 'loss/reader', 'target_tokens'):
    np.testing.assert_allclose(in_parts[name], metrics[name], rtol=1e-5)


@pytest.mark.parametrize('frozen', ['reader', 'retriever'])
@pytest.mark.parametrize('reading', ['in_context', 'rag_token'])
def test_a_module_without_an_optimizer_stays(reading, frozen):
  model = tiny_run.make_decoder_model(reading=reading, train_retriever=frozen != 'retriever')
  optimizers = {name: found for name, found in _sgd().items() if name != frozen}
  state, metrics = _step(model, _batch(), optimizers=optimizers)
  params = _params(model)
  assert metrics['skipped_steps'] == 0
  for name in ('reader', 'retriever'):
    same = jax.tree.leaves(jax.tree.map(np.array_equal, state.params[name], params[name]))
    assert all(same) if name == frozen else not all(same)


@pytest.mark.parametrize('reading', FEW)
def test_dropout_is_of_the_step(reading):
  """And passes behind gold scores have none."""
  model = tiny_run.make_decoder_model(reading=reading, reader={'dropout_rate': 0.3})
  batch, params = _batch(), _params(model)
  loss = _jit(lambda rng: model.loss_fn(params, batch, rng))
  one, same, other, without = (loss(rng) for rng in (*map(jax.random.key, (0, 0, 1)), None))
  assert one.reader.total == same.reader.total
  assert len({float(x.reader.total) for x in (one, other, without)}) == 3
  np.testing.assert_allclose(one.retriever.total, without.retriever.total, rtol=1e-5)


@pytest.mark.parametrize('reading', FEW)
def test_bfloat16(reading):
  """Finite, of float32 parameters, and nearly float32's."""
  sizes = {'dtype': 'bfloat16', 'scan_layers': True, 'remat_policy': 'full'}
  model = tiny_run.make_decoder_model(
    reading=reading, reader=sizes, retriever={'dtype': 'bfloat16'}
  )
  params = jax.tree.map(np.asarray, tiny_run.make_params(model))
  state, metrics = _step(model, _batch(), params)
  exact = tiny_run.make_decoder_model(reading=reading, reader={'scan_layers': True})
  _, expected = _step(exact, _batch(), params)
  assert metrics['skipped_steps'] == 0
  assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype('float32')}
  for name in ('loss', 'loss/reader', 'gradient_norm/reader'):
    np.testing.assert_allclose(metrics[name], expected[name], rtol=0.05)


# Partitions, how a kernel [embed, joined heads] of the reader lies.
MESHES = [(2, P('data', 'model')), pytest.param(4, P('data', 'model'), marks=pytest.mark.slow)]


@pytest.mark.parametrize('partitions, layout', MESHES)
@pytest.mark.parametrize('reading', FEW)
def test_a_mesh_is_one_device(reading, partitions, layout, capfd):
  model = tiny_run.make_decoder_model(reading=reading, gold_chunk=2)
  batches = [_batch(seed=seed) for seed in range(3)]
  expected = tiny_run.run_steps(tiny_run.one_device(), model, batches)
  capfd.readouterr()
  partitioner = Partitioner(num_partitions=partitions, logical_axis_rules=FSDP)
  run = tiny_run.run_steps(partitioner, model, batches)
  np.testing.assert_allclose(run.losses, expected.losses, rtol=2e-5, atol=1e-5)
  assert run.step.cache_size() == 1
  for name in ('query', 'key'):
    kernel = run.state.params['reader']['decoder']['layers_0']['attention'][name]['kernel']
    assert kernel.sharding.spec == layout
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
  # XLA warns where it can only replicate an array to lay it out anew.
  assert 'rematerialization' not in capfd.readouterr().err
