"""A run that is started again with something else: refused, said, or free."""

import dataclasses
import json
import shutil

import jax
import pytest

from ralm_jax.checkpoints.store import Checkpoints
from ralm_jax.runs import gin_values
from ralm_jax.training import crop_training, optimizers
from ralm_jax.training.partitioning import Partitioner
from tests import tiny
from tests.runs import test_warm_start


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> tiny.Data:
  return tiny.make_data(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def begun(data, tmp_path_factory):
  """A closed-book run of two steps."""
  folder = tmp_path_factory.mktemp('begun') / 'run'
  _train(data, folder, 2)
  return folder


def _train(data, folder, steps, **options):
  return tiny.train(
    data, folder, steps=steps, closed_book=True, model={'train_retriever': False}, **options
  )


def _written(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def _without_ids(rows):
  return [{k: v for k, v in row.items() if k != 'id'} for row in rows]


OTHERS = {
  'other questions': lambda rows: [{**row, 'question': 'other ' + row['question']} for row in rows],
  'other answers': lambda rows: [{**row, 'answers': ['b']} for row in rows],
  'another order': lambda rows: rows[::-1],
  'a file that grew': lambda rows: [*rows, {'id': 'new', 'question': 'q', 'answers': ['a']}],
}
SAME = {
  'a copy elsewhere': lambda rows: rows,
  'written otherwise': lambda rows: [dict(reversed(row.items())) for row in rows],
  'other ids': _without_ids,
}


@pytest.mark.parametrize('change', OTHERS)
def test_other_questions_are_refused(change, data, begun, tmp_path):
  run = tmp_path / 'run'
  shutil.copytree(begun, run)
  questions = _written(tmp_path / 'questions.jsonl', OTHERS[change](tiny.questions()))
  before = (run / 'model.json').read_bytes()
  with pytest.raises(
    ValueError, match=r'checkpoint_2 was trained with examples 40 questions of SHA-256 \w{16}, this'
  ):
    _train(data, run, 4, questions=questions)
  assert Checkpoints(run, read_only=True).steps() == [2]
  assert (run / 'model.json').read_bytes() == before


@pytest.mark.parametrize('change', SAME)
def test_the_same_questions_are_not(change, data, begun, tmp_path):
  run = tmp_path / 'run'
  shutil.copytree(begun, run)
  questions = _written(tmp_path / 'named_otherwise.jsonl', SAME[change](tiny.questions()))
  assert int(_train(data, run, 3, questions=questions).step) == 3


def test_kinds_of_runs_are_told_apart(begun):
  store = Checkpoints(begun, read_only=True)
  with pytest.raises(ValueError, match='is of a training run.*another MODEL_DIR'):
    store.check_metadata(2, {'warm_start_steps': 2})
  store.check_metadata(2, {'seed': 0, 'batch_size': 4})


@pytest.mark.parametrize(
  'other, corpus, said',
  [
    ({'seed': 1}, 'a', 'seed 0, this run has 1'),
    ({'batch_size': 8}, 'a', 'batch_size 16, this run has 8'),
    ({}, 'b', 'corpus a, this run has b'),
    ({'steps': 3, 'temperature': 0.2}, 'a', None),
  ],
)
def test_a_warm_start(other, corpus, said, warm):
  store, config = warm
  config = dataclasses.replace(config, **other)
  if said is None:
    return crop_training.check_same(store, 1, config, {'corpus': corpus})
  with pytest.raises(ValueError, match=f'checkpoint_1 was trained with {said}'):
    crop_training.check_same(store, 1, config, {'corpus': corpus})


@pytest.fixture(scope='module')
def warm(tmp_path_factory):
  """Checkpoints of a warm start of one step, and its configuration."""
  model, params, config = test_warm_start.setup()
  config = dataclasses.replace(config, steps=1)
  store = Checkpoints(tmp_path_factory.mktemp('warm'))
  crop_training.warm_start(
    model,
    params,
    test_warm_start.sampler,
    optimizers.adamw(),
    config,
    partitioner=Partitioner(devices=jax.devices()[:1]),
    checkpoints=store,
    metadata={'corpus': 'a'},
    progress=False,
  )
  with pytest.raises(ValueError, match='is of a warm start.*another MODEL_DIR'):
    store.check_metadata(1, {'seed': 0})
  yield store, config
  store.close()


BEFORE = """
import __gin__
# Macros:
# ======
BATCH_SIZE = 8
LEARNING_RATE = 4e-05
MODEL_DIR = \\
    '/tmp/a/run'
N_PASSAGES = 20
TRAIN_STEPS = 10
EVAL_PERIOD = None

# Parameters for text_config.TextConfig:
text_config.TextConfig.question_format = '{question}'
text_config.TextConfig.n_passages = %N_PASSAGES
"""


@pytest.mark.parametrize(
  'old, new, said',
  [
    ("'/tmp/a/run'", "'/tmp/b'", []),
    ('TRAIN_STEPS = 10', 'TRAIN_STEPS = 20', []),
    ('EVAL_PERIOD = None', 'EVAL_PERIOD = 5', []),
    ('4e-05', '1e-4', ['LEARNING_RATE 4e-05 is now 1e-4']),
    ('= 20', '= \\\n    21', ['N_PASSAGES 20 is now 21']),
    (
      "'{question}'",
      "'Q: {question}'",
      ["text_config.TextConfig.question_format '{question}' is now 'Q: {question}'"],
    ),
    ('N_PASSAGES = 20', 'N_PASSAGES = 20\nGOLD_SCORE = 1', ['GOLD_SCORE unset is now 1']),
  ],
)
def test_what_is_said(old, new, said):
  assert old in BEFORE
  assert gin_values.changes(BEFORE, BEFORE.replace(old, new, 1)) == said


def test_a_mixture_is_told_apart_by_its_tasks():
  import seqio

  from ralm_jax.data import pipeline

  @dataclasses.dataclass
  class Source:
    fingerprints: dict

  class Task:
    def __init__(self, name, held):
      self.name, self.source = name, Source({'train': held} if held else {})

  class Mixture(seqio.Mixture):
    def __init__(self, tasks):
      self._own = tasks

    tasks = property(lambda self: list(self._own))

    def get_rate(self, task):
      return self._own[task]

  first, second = Task('a', '3 questions'), Task('b', '')
  assert pipeline.described(first, 'train') == '3 questions'
  assert pipeline.described(second, 'train') == 'task b'
  assert pipeline.described(Mixture({first: 1.0, second: 0.5}), 'train') == (
    '0.5 × task b, 1 × 3 questions'
  )
