"""The loop: what is retrieved when, what is saved, when it evaluates."""

import dataclasses

import numpy as np
import pytest

from ralm_jax.checkpoints.store import Checkpoints
from ralm_jax.data.batches import QueryBatch
from ralm_jax.models.retrieval_lm import ReaderBatch
from ralm_jax.retrieval.augmenter import RetrievalAugmenter
from ralm_jax.retrieval.retriever import Retrieved
from ralm_jax.training.train_step import StepOptions
from ralm_jax.training.trainer import Progress, Saving, Trainer
from tests.runs import tiny_run


class Counter:
  """A stream whose batches hold their number."""

  def __init__(self):
    self.position = 0

  def __next__(self) -> QueryBatch:
    self.position += 1
    tokens = np.full((8, 4), self.position, np.int32)
    return QueryBatch(tokens, tokens, tokens, np.arange(8))

  def state(self):
    return {'position': np.asarray(self.position)}

  def restore(self, state):
    self.position = int(state['position'])


class Assembler:
  """Makes the same random batch of each number, in every run."""

  def reader_batch(self, queries, rows, **unused) -> ReaderBatch:
    return tiny_run.make_batch(seed=int(queries.query_tokens[0, 0]))


class Recorder(RetrievalAugmenter):
  """A real augmenter that writes down what it is asked for."""

  def __init__(self, model, partitioner, events):
    super().__init__(model, partitioner, Assembler(), None)
    self._events = events

  def submit(self, params, queries, step):
    self._events.append(f'retrieve {step} = batch {queries.query_tokens[0, 0]}')
    return super().submit(params, queries, step)


class Refresh:
  """Due at given steps; writes down when it happens."""

  def __init__(self, steps, events):
    self._steps, self._events = steps, events

  def due(self, step):
    return step in self._steps

  def refresh(self, params, step):
    assert params.keys() == {'reader', 'retriever'}
    self._events.append(f'refresh {step}')
    return {}


def _trainer(lookahead, folder=None, events=None, period=2, refresh=None, metadata=None):
  model, partitioner = tiny_run.make_model(), tiny_run.one_device()
  events = [] if events is None else events

  def on_checkpoint(step, generation):
    events.append(f'saved {step} of generation {generation}')

  trainer = Trainer(
    model,
    tiny_run.adamw(),
    partitioner,
    Recorder(model, partitioner, events),
    StepOptions(retrieval_lookahead=lookahead),
    saving=folder and Saving(Checkpoints(folder), period, metadata or {}, on_checkpoint),
    index_refresh=refresh and Refresh(refresh, events),
  )
  step_fn = trainer.step_fn

  def step(state, batch):
    events.append(f'step {int(state.step)}')
    return step_fn(state, batch)

  trainer.step_fn = step
  return trainer, events


EXPECTED = {
  0: [
    'retrieve 0 = batch 1',
    'step 0',
    'retrieve 1 = batch 2',
    'step 1',
    'retrieve 2 = batch 3',
    'saved 2 of generation 0',
    'step 2',
    'retrieve 3 = batch 4',
    'saved 3 of generation 0',
  ],
  1: [
    'retrieve 0 = batch 1',
    'retrieve 1 = batch 2',
    'step 0',
    'retrieve 2 = batch 3',
    'step 1',
    'saved 2 of generation 0',
    'retrieve 3 = batch 4',
    'step 2',
    'saved 3 of generation 0',
  ],
}


@pytest.mark.parametrize('lookahead', [0, 1])
def test_order_and_resume(lookahead, tmp_path):
  trainer, events = _trainer(lookahead, tmp_path)
  evaluated = []
  state = trainer.train(
    Progress(trainer.initialize(1)),
    Counter(),
    3,
    eval_period=2,
    evaluate=lambda s: evaluated.append(int(s.step)),
  )
  assert events == EXPECTED[lookahead]
  assert evaluated == [2, 3]
  assert int(state.step) == 3

  # Goes on: the batch that was waiting is not retrieved again.
  events.clear()
  iterator = Counter()
  progress = trainer.resume(iterator)
  assert progress.step == 3 and iterator.position == 4 and not events
  pending = progress.pending.result()
  assert pending.queries.query_tokens[0, 0] == 4
  trainer.train(progress, iterator, 4)
  assert 'retrieve 4 = batch 5' in events
  assert not any(event.endswith('batch 4') for event in events)


REFRESHED = {
  0: [
    'refresh 0',
    'retrieve 0 = batch 1',
    'step 0',
    'retrieve 1 = batch 2',
    'step 1',
    'refresh 2',
    'retrieve 2 = batch 3',
    'saved 2 of generation 0',
    'step 2',
    'refresh 3',
    'retrieve 3 = batch 4',
    'step 3',
    'refresh 4',
    'retrieve 4 = batch 5',
    'saved 4 of generation 0',
  ],
  # Nothing is retrieved ahead across a refresh.
  1: [
    'refresh 0',
    'retrieve 0 = batch 1',
    'retrieve 1 = batch 2',
    'step 0',
    'step 1',
    'refresh 2',
    'retrieve 2 = batch 3',
    'saved 2 of generation 0',
    'step 2',
    'refresh 3',
    'retrieve 3 = batch 4',
    'step 3',
    'refresh 4',
    'retrieve 4 = batch 5',
    'saved 4 of generation 0',
  ],
}


@pytest.mark.parametrize('lookahead', [0, 1])
def test_order_of_refreshes(lookahead, tmp_path):
  trainer, events = _trainer(lookahead, tmp_path, refresh=(0, 2, 3, 4))
  trainer.train(
    Progress(trainer.initialize(1)),
    Counter(),
    4,
    eval_period=4,
    evaluate=lambda s: events.append('evaluate'),
  )
  assert events == [*REFRESHED[lookahead], 'evaluate']

  # The last checkpoint holds the refresh of its step: none at the start.
  events.clear()
  iterator = Counter()
  trainer.train(trainer.resume(iterator), iterator, 5)
  assert not any(event.startswith('refresh') for event in events)
  assert 'retrieve 4 = batch 5' not in events


def test_other_settings_are_refused(tmp_path):
  trainer, _ = _trainer(1, tmp_path, metadata={'seed': 1, 'batch_size': 8})
  trainer.train(Progress(trainer.initialize(1)), Counter(), 2)
  for name, metadata in (
    ('batch_size 8', {'seed': 1, 'batch_size': 16}),
    ('seed 1', {'seed': 2, 'batch_size': 8}),
  ):
    other, _ = _trainer(1, tmp_path, metadata=metadata)
    with pytest.raises(ValueError, match=f'checkpoint_2 .*{name}.*INITIAL'):
      other.resume(Counter())
  # What a checkpoint of before does not say, cannot differ.
  again, _ = _trainer(1, tmp_path, metadata={'seed': 1, 'something': 3})
  assert again.resume(Counter()).step == 2


def test_nothing_to_resume(tmp_path):
  trainer, _ = _trainer(1, tmp_path)
  assert trainer.resume(Counter()) is None


def test_snapshot_holds_the_search(tmp_path):
  """Rows, scores and generation come back as they were."""
  trainer, _ = _trainer(1)
  augmenter = trainer._source  # pylint: disable=protected-access
  queries = next(Counter())
  queries = dataclasses.replace(queries, gold_rows=np.full((8, 1), 7))
  found = Retrieved(
    np.arange(16).reshape(8, 2), np.linspace(0, 1, 16, dtype=np.float32).reshape(8, 2), 5
  )
  arrays = {
    **{
      f'queries/{f.name}': v
      for f in dataclasses.fields(queries)
      if (v := getattr(queries, f.name)) is not None
    },
    'rows': found.rows,
    'scores': found.scores,
    'generation': np.asarray(5),
  }
  again = augmenter.resume(arrays, 3)
  snapshot = again.snapshot()
  assert snapshot.keys() == arrays.keys()
  for name, value in arrays.items():
    np.testing.assert_array_equal(snapshot[name], value)
  assert again.result().retrieved.generation == 5


def test_look_ahead_must_be_0_or_1():
  with pytest.raises(ValueError, match='must be 0 or 1'):
    _trainer(2)
