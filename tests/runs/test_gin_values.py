"""Values of gin that cannot be meant, and paths from home: by the real command."""

import os

import pytest

from ralm_jax import cli

TRAIN = ('--gin_file=gin_configs/models/tiny.gin', '--gin_file=gin_configs/runs/train.gin')
REQUIRED = {
  'MODEL_DIR': 'run',
  'TRAIN_STEPS': '10',
  'TRAIN_QUESTIONS': 'q.jsonl',
  'READER_VOCABULARY': 'spiece.model',
  'RETRIEVER_VOCABULARY': 'vocab.txt',
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
  import gin

  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  gin.clear_config()
  yield
  gin.clear_config()


def _train(*bindings: str, flags=('--dry_run',)) -> int:
  given = [f'--gin.{name}={value}' for name, value in REQUIRED.items()]
  return cli.main(['train', *TRAIN, *given, *bindings, *flags])


@pytest.mark.parametrize(
  'binding, error',
  [
    ('MODEL_DIR=20261130', 'MODEL_DIR must be a text (a number is one in quotes'),
    ('TRAIN_STEPS=abc', "TRAIN_STEPS must be a whole number, at least 1, not 'abc'"),
    ('TRAIN_STEPS=-1', 'TRAIN_STEPS must be at least 1, not -1'),
    ('TRAIN_STEPS=1e4', 'TRAIN_STEPS must be a whole number, not 10000.0'),
    ('BATCH_SIZE=0', 'BATCH_SIZE must be at least 1, not 0'),
    ('LEARNING_RATE=nan', "LEARNING_RATE must be a number, at least 0, not 'nan'"),
    ('LEARNING_RATE=1e-4x', "LEARNING_RATE must be a number, at least 0, not '1e-4x'"),
    ('LEARNING_RATE=-1', 'LEARNING_RATE must be at least 0, not -1'),
    ('RETRIEVER_LEARNING_RATE=1e999', 'RETRIEVER_LEARNING_RATE must be a number'),
    ('DTYPE=fp8', "DTYPE must be one of float32, bfloat16, float16, not 'fp8'"),
    ('DROPOUT_RATE=1.0', 'DROPOUT_RATE must be from 0 to below 1, not 1.0'),
    ('TEMPERATURE_GOLD=0', 'TEMPERATURE_GOLD must be above 0, not 0'),
    ('N_PASSAGES=0', 'N_PASSAGES must be at least 1, not 0'),
    ('EVAL_PERIOD=0', 'EVAL_PERIOD must be at least 1 or None, not 0'),
    ('CHECKPOINT_PERIOD=-1', 'CHECKPOINT_PERIOD must be at least 0, not -1'),
    ('TIED_RETRIEVER=yes', "TIED_RETRIEVER must be True or False, not 'yes'"),
    ('READER_OPTIMIZER=adamw', 'READER_OPTIMIZER must be a reference to what makes Optimizer'),
    ('RANDOM_SEED=-1', 'RANDOM_SEED must be from 0 to 4294967295, not -1'),  # not SHOTS_SEED
    ('SHOTS_SEED=x', "SHOTS_SEED must be a whole number, from 0 to 4294967295, not 'x'"),
    ('REMAT_POLICY=some', "REMAT_POLICY must be one of 'none', 'dots', 'full', not 'some'"),
    ('optimizers.adamw.b1=1', 'adamw.b1 must be from 0 to below 1, not 1'),
    ('LERNING_RATE=1e-4', 'Did you mean LEARNING_RATE?'),
  ],
)
def test_values_that_cannot_be_meant(binding, error, capsys, tmp_path):
  assert _train(f'--gin.{binding}', flags=()) == 1
  shown = capsys.readouterr().err
  assert f'ralm train: error: {error}' in shown or (error[:3] == 'Did' and error in shown), shown
  assert 'Traceback' not in shown
  assert set(os.listdir(tmp_path)) <= {'home'}  # where a library may have a cache


@pytest.mark.parametrize(
  'binding', ['WEIGHT_DECAY=0', 'LEARNING_RATE=1', 'GLOBAL_CLIP_NORM=0.5', 'EVAL_PERIOD=None']
)
def test_values_that_can(binding):
  assert _train(f'--gin.{binding}') == 0


def test_paths_from_home(capsys, tmp_path):
  bindings = ['MODEL_DIR=~/run', 'INDEX=~/index', "EVAL_QUESTIONS=['~/a', 'b~/c']"]
  assert _train(*(f'--gin.{binding}' for binding in bindings)) == 0
  shown, home = capsys.readouterr().out, tmp_path / 'home'
  assert f"MODEL_DIR = \\\n    '{home}/run'" in shown or f"MODEL_DIR = '{home}/run'" in shown
  assert f'{home}/index' in shown and f'{home}/a' in shown
  assert 'b~/c' in shown


def test_flags_from_home(tmp_path, capsys):
  """As `--flag=~/path`, which a shell leaves as it is."""
  assert cli.main(['eval', '--checkpoint=~/run', '--questions=~/q.jsonl', '--output=~/o']) == 1
  assert f'{tmp_path}/home/q.jsonl' in capsys.readouterr().err
