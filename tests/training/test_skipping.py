"""Runs whose steps are not finite: they stop, and keep the last good checkpoint."""

import dataclasses
import logging

from flax import linen as nn
import jax
import numpy as np
import pytest

from ralm_jax.checkpoints.store import Checkpoints
from ralm_jax.runs import training
from ralm_jax.training import crop_training, optimizers
from ralm_jax.training.partitioning import Partitioner
from ralm_jax.training.skipping import SkippedSteps
from ralm_jax.training.train_step import StepOptions
from ralm_jax.training.trainer import Progress
from tests import tiny
from tests.runs import test_warm_start as warm
from tests.training import test_trainer


@pytest.mark.parametrize(
  'most, totals, stopped_at',
  [
    (3, [0, 1, 2, 3], 4),  # the steps 2, 3 and 4
    (3, [1, 2, 2, 3, 4, 4, 5, 6], None),  # never three in a row
    (1, [0, 0, 1], 3),
    (None, range(1, 50), None),
  ],
)
def test_so_many_in_a_row(most, totals, stopped_at):
  skipped, step = SkippedSteps(most), 0

  def run():
    nonlocal step
    for step, total in enumerate(totals, 1):
      skipped.add(step, np.int32(total))
    skipped.settle()

  if stopped_at is None:
    return run()
  with pytest.raises(RuntimeError, match='steps? in a row were skipped.*LEARNING_RATE'):
    run()
  # Known when the next one is dispatched, or waited for.
  assert step == stopped_at


def test_those_before_this_start_do_not_count(caplog):
  skipped = SkippedSteps(2, already=7)
  skipped.add(10, np.int32(7))
  assert not skipped.settle()
  skipped.add(11, np.int32(8))
  assert skipped.settle()
  skipped.report(2)
  assert '1 of 2 steps were skipped' in caplog.text


class _Broken:
  """A step function that says from one on that it skips."""

  def __init__(self, step_fn, first):
    self._step_fn, self._first = step_fn, first

  def __call__(self, state, batch):
    broken = int(state.step) >= self._first
    state, metrics = self._step_fn(state, batch)
    state = state.replace(skipped_steps=state.skipped_steps + broken)
    return state, {**metrics, 'skipped_steps': state.skipped_steps.astype('float32')}


def test_no_checkpoint_takes_a_good_ones_place(tmp_path):
  """Of a run that saves every 2 steps and keeps 3, all in a row of bad ones would be gone."""
  trainer, events = test_trainer._trainer(1, tmp_path)
  trainer._max_skipped_steps = 9
  trainer.step_fn = _Broken(trainer.step_fn, 4)
  with pytest.raises(RuntimeError, match='9 steps in a row.* step 4 was the last that counted'):
    trainer.train(Progress(trainer.initialize(1)), test_trainer.Counter(), 40)
  assert [event for event in events if 'saved' in event] == [
    'saved 2 of generation 0',
    'saved 4 of generation 0',
  ]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return tiny.make_data(tmp_path_factory.mktemp('data'))


@pytest.mark.parametrize('learning_rate', [1e30, 1e39])
def test_a_learning_rate_that_breaks_the_run(data, tmp_path, learning_rate):
  """1e30 makes parameters that are finite and useless, 1e39 infinite ones, which are not taken."""
  optimizer = optimizers.adamw(learning_rate)
  with pytest.raises(RuntimeError, match='4 steps in a row were skipped'):
    tiny.train(
      data,
      tmp_path / 'run',
      steps=60,
      closed_book=True,
      model={'train_retriever': False},
      optimizers={'reader': optimizer},
      max_skipped_steps=4,
      checkpoint={'period': 1, 'keep': None, 'asynchronous': False},
    )
  for step in Checkpoints(tmp_path / 'run', read_only=True).steps():
    params = tiny.load_checkpoint(tmp_path / 'run', step)['params']
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_devices_are_done_when_a_run_fails():
  """An interpreter that ends while they compute aborts, and the status says another thing."""
  slow = jax.jit(lambda x: jax.lax.fori_loop(0, 100, lambda _, x: x @ x, x))
  slow(np.zeros((400, 400), np.float32)).block_until_ready()
  with pytest.raises(ValueError, match='told'), training._settled():
    state = slow(np.zeros((400, 400), np.float32))
    raise ValueError('told')
  assert state.is_ready()


def test_a_warm_start(tmp_path, caplog):
  model, params, config = warm.setup()
  store = Checkpoints(tmp_path / 'run')
  with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match='5 steps in a row'):
    crop_training.warm_start(
      model,
      nn.meta.unbox(params),
      warm.sampler,
      optimizers.adamw(1e30, weight_decay=1e30),
      dataclasses.replace(config, max_skipped_steps=5),
      partitioner=Partitioner(devices=jax.devices()[:1]),
      checkpoints=store,
      checkpoint_period=2,
      progress=False,
    )
  assert set(store.steps()) <= {2}
  store.close()


def test_how_many_is_an_option():
  assert StepOptions().max_skipped_steps == 20
  with pytest.raises(ValueError, match='max_skipped_steps must be at least 1 or None'):
    StepOptions(max_skipped_steps=0)
