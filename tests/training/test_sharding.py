"""The train step on eight fake devices is that of one, and truly sharded."""

import re

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from ralm_jax.training import optimizers, partitioning, train_state, train_step
from ralm_jax.training.partitioning import Partitioner
from tests.runs import tiny_run

FSDP = partitioning.standard_logical_axis_rules(parameter_partitioning_dims=2)
BATCHES = [tiny_run.make_batch(seed=seed) for seed in range(3)]
SMALL_BATCHES = [tiny_run.make_batch(size=2, seed=seed) for seed in range(3)]
# Six heads, and a retriever of as many, which four and eight do not divide.
SIX_HEADS = dict(reader=dict(num_heads=6), retriever=dict(num_heads=6, emb_dim=48))


@pytest.fixture(scope='module')
def one_device_losses() -> np.ndarray:
  return tiny_run.run_steps(tiny_run.one_device(), tiny_run.make_model(), BATCHES).losses


def _query_kernel(tree):
  return tree['encoder']['layers_0']['attention']['query']['kernel']


# Options, and how a kernel [embed, joined_kv] of the reader lies.
LAYOUTS = {
  'data': (dict(), P(None, None)),
  'model': (dict(num_partitions=8), P(None, 'model')),
  'both': (dict(num_partitions=2), P(None, 'model')),
  'fsdp': (dict(logical_axis_rules=FSDP), P('data', None)),
  'both_fsdp': (dict(num_partitions=2, logical_axis_rules=FSDP), P('data', 'model')),
}


@pytest.mark.parametrize(
  'layout',
  [
    name if name.startswith('both') else pytest.param(name, marks=pytest.mark.slow)
    for name in LAYOUTS
  ],
)
def test_three_steps_equal_one_device(layout, one_device_losses):
  options, expected_spec = LAYOUTS[layout]
  partitioner = Partitioner(**options)
  run = tiny_run.run_steps(partitioner, tiny_run.make_model(), BATCHES)
  np.testing.assert_allclose(run.losses, one_device_losses, rtol=1e-5, atol=1e-5)
  # Still one program: the state lies after a step as it did before.
  assert run.step.cache_size() == 1
  kernel = _query_kernel(run.state.params['reader'])
  assert kernel.sharding.spec == expected_spec
  shards = int(np.prod([partitioner.mesh.shape[a] for a in expected_spec if a]))
  assert kernel.addressable_shards[0].data.size == kernel.size // shards
  moment = _query_kernel(run.state.opt_state['reader'][0].mu)
  assert moment.sharding.spec == expected_spec


def test_batch_smaller_than_the_data_axis(capfd):
  expected = tiny_run.run_steps(tiny_run.one_device(), tiny_run.make_model(), SMALL_BATCHES).losses
  capfd.readouterr()
  run = tiny_run.run_steps(Partitioner(), tiny_run.make_model(), SMALL_BATCHES)
  np.testing.assert_allclose(run.losses, expected, rtol=1e-5, atol=1e-5)
  assert run.step.cache_size() == 1
  assert 'rematerialization' not in capfd.readouterr().err


@pytest.mark.slow
def test_heads_that_the_model_axis_does_not_divide(capfd):
  model = tiny_run.make_model(**SIX_HEADS)
  partitioner = Partitioner(num_partitions=4)
  run = tiny_run.run_steps(partitioner, model, BATCHES[:1])
  output = jax.jit(model.loss_fn)(tiny_run.make_params(model), BATCHES[0], None)
  np.testing.assert_allclose(
    run.losses[0], [output.reader.mean, output.retriever.mean], rtol=1e-5, atol=1e-5
  )
  # XLA warns where it can only replicate an array to lay it out anew.
  assert 'rematerialization' not in capfd.readouterr().err


def test_program_is_sharded_and_stays_on_the_devices():
  partitioner = Partitioner(num_partitions=2)
  model, updates = tiny_run.make_model(), tiny_run.adamw()
  state = train_state.initialize(model, updates, partitioner, params=tiny_run.make_params(model))
  batch = partitioner.put_batch(BATCHES[0])
  lowered = train_step.partition_train_step(
    model, updates, partitioner, compiler_options=tiny_run.QUICK_COMPILE
  ).lower(state, batch)
  # flax drops logical constraints without a word where contexts are mixed.
  assert lowered.as_text().count('sharding_constraint') > 50

  compiled = lowered.compile()
  for operation in ('send', 'recv', 'outfeed', 'infeed', 'custom-call'):
    calls = re.findall(rf' {operation}\(.*', compiled.as_text())
    assert not [c for c in calls if operation != 'custom-call' or 'callback' in c]
  # Every donated parameter and moment is updated in place: no copy of the state.
  memory = compiled.memory_analysis()
  state_bytes = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state.params)) * 3
  assert memory.alias_size_in_bytes >= state_bytes


def test_constraints_are_no_op_off_a_mesh():
  model = tiny_run.make_model()
  lowered = jax.jit(lambda p, b: model.loss_fn(p, b, None)).lower(
    tiny_run.make_params(model), BATCHES[0]
  )
  assert 'sharding_constraint' not in lowered.as_text()


def test_factored_optimizer_state():
  partitioner = Partitioner(num_partitions=2, logical_axis_rules=FSDP)
  updates = {
    name: optimizers.adafactor(1e-3, min_dim_size_to_factor=8) for name in ('reader', 'retriever')
  }
  model = tiny_run.make_model()
  run = tiny_run.run_steps(partitioner, model, BATCHES, updates)
  expected = tiny_run.run_steps(tiny_run.one_device(), model, BATCHES, updates)
  np.testing.assert_allclose(run.losses, expected.losses, rtol=1e-5, atol=1e-5)
  assert run.step.cache_size() == 1
  kernel = _query_kernel(run.state.params['reader'])
  assert kernel.sharding.spec == P('data', 'model')
  factored = [
    leaf
    for leaf in jax.tree.leaves(run.state.opt_state['reader'])
    if leaf.shape == (32,) and leaf.sharding.is_fully_replicated
  ]
  assert factored


@pytest.mark.slow
def test_scanned_and_rematerialised_layers_shard():
  sizes = dict(scan_layers=True, remat_policy='full')
  model = tiny_run.make_model(
    reader=dict(num_encoder_layers=2, num_decoder_layers=2, **sizes),
    retriever=dict(num_layers=2, **sizes),
  )
  expected = tiny_run.run_steps(tiny_run.one_device(), model, BATCHES)
  run = tiny_run.run_steps(Partitioner(num_partitions=2, logical_axis_rules=FSDP), model, BATCHES)
  np.testing.assert_allclose(run.losses, expected.losses, rtol=1e-5, atol=1e-5)
  kernel = run.state.params['reader']['encoder']['layers']['attention']['query']['kernel']
  assert kernel.sharding.spec == P(None, 'data', 'model')


def test_num_partitions_must_divide_the_devices():
  with pytest.raises(ValueError, match='num_partitions 3 must divide'):
    _ = Partitioner(num_partitions=3).mesh
