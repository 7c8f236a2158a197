"""Several seeds of a run, and reports of mean and deviation."""

import json
import os
import signal
import statistics
import subprocess
import sys

import pytest

from ralm_jax import cli
from ralm_jax.commands import report, seeds
from ralm_jax.jobs import report as reports, watch
from tests import tiny
from tests.jobs import finished_cells


def metrics(folder, **values):
  folder.mkdir(parents=True)
  (folder / 'metrics.json').write_text(
    json.dumps({'count': 10, 'groups': {'a': {'f1': 1.0}}, **values})
  )
  return folder


def test_report_of_seeds(tmp_path, capsys):
  """The last evaluation of each run; a folder of seeds is one row."""
  scores = [0.25, 0.5, 1.0]
  for i, score in enumerate(scores):
    for step in (2, 10):
      metrics(
        tmp_path / f'nq/seed_{i}/inference_eval/step_{step}',
        exact_match=score if step == 10 else 0.0,
        mrr=None,
      )
  metrics(tmp_path / 'other', exact_match=0.125, f1=0.5)
  report.main([str(tmp_path / 'nq'), str(tmp_path / 'other')])
  lines = [
    [cell.strip() for cell in line.split('|')[1:-1]]
    for line in capsys.readouterr().out.splitlines()
  ]
  assert lines[0] == ['results', 'seeds', 'exact_match', 'f1']
  deviation = statistics.stdev(scores)
  assert lines[2] == [str(tmp_path / 'nq'), '3', f'0.5833 ± {deviation:.4f}', '–']
  assert lines[3] == [str(tmp_path / 'other'), '1', '0.1250', '0.5000']
  report.main(['--json', str(tmp_path / 'nq')])
  (row,) = json.loads(capsys.readouterr().out)
  assert row['exact_match']['deviation'] == pytest.approx(deviation)
  assert row['seeds']['seed_2'] == {'exact_match': 1.0}
  assert row['steps']['seed_2'] == 10


def test_report_of_seeds_at_different_steps(tmp_path, capsys):
  for seed, step in ((0, 2), (1, 10)):
    metrics(tmp_path / f'seed_{seed}/inference_eval/step_{step}', f1=0.5)
  report.main([str(tmp_path)])
  shown = capsys.readouterr().out
  assert f'{tmp_path}: differing steps: 2 in {tmp_path}/seed_0' in shown
  assert f', 10 in {tmp_path}/seed_1' in shown
  cells = tmp_path / 'out'
  for name, step in (('seed_0', 4), ('seed_1', 6)):
    finished_cells.cell(cells, name, 'nq', 'i', [1.0], run=f'/r/{name}', step=step)
  report.main([str(cells)])
  assert 'differing steps: 4 in' in capsys.readouterr().out


def test_report_of_folders_that_are_seeds(tmp_path, capsys):
  paths = [str(metrics(tmp_path / name, f1=score)) for name, score in (('x', 0.2), ('y', 0.4))]
  report.main([*paths, '--together', 'both', '--metrics', 'f1'])
  assert '| both    |     2 | 0.3000 ± 0.1414 |' in capsys.readouterr().out
  with pytest.raises(ValueError, match="the metric 'f2'; there are f1"):
    report.main([*paths, '--metrics', 'f2'])


def test_a_checkpoint_that_was_evaluated_twice_is_one_seed(tmp_path, capsys):
  """By what it holds, by run and step, or by where its metrics are."""
  of = {'run': '/r', 'step': 4, 'checkpoint': 'abc', 'asked': 'x'}
  first = metrics(tmp_path / 'a', f1=0.2, of=of)
  copy = metrics(tmp_path / 'b', f1=0.4, of={**of, 'run': '/copy', 'asked': 'y'})
  other = metrics(tmp_path / 'c', f1=0.6, of={**of, 'checkpoint': 'def'}, averaged_over={'f1': 3})
  report.main([*map(str, (first, copy, other, first)), '--together', 'all'])
  shown = capsys.readouterr().out
  assert '| all     |     2 | 0.4000 ± 0.2828 |' in shown  # of 0.2 and 0.6
  assert (
    f'{copy}/metrics.json is of the same checkpoint as {first}/metrics.json in another' in shown
  )
  assert 'all: f1 is averaged over 3 of 10 questions.' in shown
  report.main([*map(str, (first, copy, other)), '--together', 'all', '--json'])
  (row,) = json.loads(capsys.readouterr().out)
  assert list(row['seeds']) == ['a', 'c'] and row['f1']['count'] == 2
  assert row['questions'] == {'a': 10, 'c': 10} and 'another way' in row['notes'][0]
  for output in ('one', 'two'):
    finished_cells.cell(tmp_path / output, 'run-4', 'nq', 'i', [1.0], run='/r')
  report.main([str(tmp_path / 'one'), str(tmp_path / 'two')])
  assert '| run-4, nq @ i |     1 |' in capsys.readouterr().out


def test_seeds_without_results_and_metrics_that_some_lack(tmp_path, capsys, caplog):
  metrics(tmp_path / 'seed_0', f1=0.2, exact_match=0.5)
  metrics(tmp_path / 'seed_1', f1=0.4)
  (tmp_path / 'seed_2').mkdir()
  report.main([str(tmp_path)])
  assert '0.5000 (of 1) |' in capsys.readouterr().out
  assert 'no results yet, or none whole, in seed_2' in caplog.text


def test_report_of_evaluation_jobs(tmp_path):
  for i, score in enumerate((0.0, 1.0)):
    finished_cells.cell(tmp_path, f'seed_{i}-4', 'nq', 'i', [score], run=f'/runs/nq/seed_{i}')
  finished_cells.cell(tmp_path, 'base-4', 'nq', 'i', [1.0], run='/runs/base')
  groups = {}
  for result in reports.collect(tmp_path):
    groups.setdefault(result.group, []).append(result.name)
  assert groups == {'base-4, nq @ i': ['base-4'], 'nq-4, nq @ i': ['seed_0', 'seed_1']}


def test_report_without_results(tmp_path):
  with pytest.raises(FileNotFoundError, match='holds no results'):
    reports.collect(tmp_path)
  (tmp_path / 'metrics.json').write_text('{"count"')
  with pytest.raises(ValueError, match='metrics.json is damaged'):
    reports.collect(tmp_path)


GIN = """
from __gin__ import dynamic_registration
from ralm_jax.data import text_config
from ralm_jax.models import bert
from ralm_jax.models import retrieval_lm
from ralm_jax.models import t5
include 'gin_configs/models/tiny.gin'
include 'gin_configs/runs/train.gin'
include 'gin_configs/runs/closed_book.gin'
TRAIN_STEPS = 2
BATCH_SIZE = 4
EVAL_PERIOD = 2
EVAL_BATCH_SIZE = 8
EVAL_NUM_EXAMPLES = 4
TARGET_LENGTH = 4
t5.T5Config.emb_dim = 16
t5.T5Config.mlp_dim = 16
t5.T5Config.num_encoder_layers = 1
t5.T5Config.num_decoder_layers = 1
bert.BertConfig.num_layers = 1
text_config.TextConfig.reader_query_length = 24
text_config.TextConfig.query_length = 24
"""


@pytest.fixture
def configuration(tmp_path):
  data = tiny.trained().data
  (tmp_path / 'run.gin').write_text(GIN)
  return [str(tmp_path / 'run.gin')], [
    f"MODEL_DIR = '{tmp_path}/run'",
    f"TRAIN_QUESTIONS = '{data.questions}'",
    f"EVAL_QUESTIONS = '{data.questions}'",
    f"READER_VOCABULARY = '{data.reader_vocabulary}'",
    f"RETRIEVER_VOCABULARY = '{data.retriever_vocabulary}'",
  ]


def test_each_seed_once(configuration, tmp_path, monkeypatch, capsys):
  """A finished one is passed over, one that failed or was changed is not."""
  trained = []

  def train(flags, folder):
    trained.append(folder)
    assert f'--gin_bindings=MODEL_DIR = {folder!r}' in flags
    if len(trained) == 2:
      raise RuntimeError('stopped')
    step = 2 if len(trained) < 4 else 4
    (tmp_path / folder / f'checkpoint_{step}').mkdir(parents=True, exist_ok=True)
    metrics(tmp_path / folder / f'inference_eval/step_{step}', exact_match=0.25 * len(trained))

  monkeypatch.setattr(seeds, '_train', train)
  files, bindings = configuration
  folders = [str(tmp_path / f'run/seed_{i}') for i in range(3)]
  with pytest.raises(RuntimeError, match='stopped'):
    seeds.train_seeds(files, bindings, seeds=2)
  assert trained == folders[:2]
  results = seeds.train_seeds(files, bindings, seeds=2)
  assert trained == [*folders[:2], folders[1]]
  assert [result.metrics['exact_match'] for result in results] == [0.25, 0.75]
  assert '0.5000 ± 0.3536' in capsys.readouterr().out
  assert seeds.train_seeds(files, bindings, seeds=2) == results
  assert len(trained) == 3
  # More steps: each goes on.
  seeds.train_seeds(files, [*bindings, 'TRAIN_STEPS = 4'], seeds=2)
  assert trained[3:] == folders[:2]
  # Scores must not come to stand beside a configuration that they are not of.
  finished = (tmp_path / 'run/seed_0/finished.json').read_text()
  for other, message in (
    (['TRAIN_STEPS = 4', 'BATCH_SIZE = 8'], 'BATCH_SIZE = 4.*BATCH_SIZE = 8'),
    (['TRAIN_STEPS = 6', 'BATCH_SIZE = 8'], 'another configuration'),
    ([], 'TRAIN_STEPS: 4 is now 2'),
  ):
    with pytest.raises(ValueError, match=message):
      seeds.train_seeds(files, [*bindings, *other], seeds=3)
  assert (tmp_path / 'run/seed_0/finished.json').read_text() == finished
  # It may lie elsewhere.
  os.rename(tmp_path / 'run', tmp_path / 'moved')
  moved = [*bindings, 'TRAIN_STEPS = 4', f"MODEL_DIR = '{tmp_path}/moved'"]
  assert len(seeds.train_seeds(files, moved, seeds=2)) == 2
  with pytest.raises(ValueError, match='TRAIN_STEPSS'):
    seeds.train_seeds(files, [*bindings, 'TRAIN_STEPSS = 3'], seeds=2)
  assert len(trained) == 5


def test_questions_are_compared_by_content(configuration, tmp_path, monkeypatch):
  questions = tmp_path / 'questions.jsonl'
  content = tiny.trained().data.questions.read_text()
  questions.write_text(content)
  files, bindings = configuration
  bindings = [*bindings, f"TRAIN_QUESTIONS = '{questions}'", 'EVAL_QUESTIONS = None']
  trained = []
  monkeypatch.setattr(seeds, '_train', lambda flags, folder: trained.append(folder))
  monkeypatch.setattr(seeds, '_check_evaluated', lambda folder, evaluates: None)
  (tmp_path / 'run/seed_0').mkdir(parents=True)
  for _ in range(2):
    questions.write_text(content)  # again
    seeds.train_seeds(files, bindings, seeds=1)
  assert len(trained) == 1
  questions.write_text(content.replace('colour', 'color'))
  with pytest.raises(ValueError, match='the files of TRAIN_QUESTIONS hold something else'):
    seeds.train_seeds(files, bindings, seeds=1)


def test_a_run_without_its_last_evaluation_is_not_finished(configuration, tmp_path, monkeypatch):
  """It was stopped between its last checkpoint and the evaluation of that."""
  folder = tmp_path / 'run/seed_0'
  evaluated = []

  def train(*unused_arguments):
    for step in (2, 4):
      (folder / f'checkpoint_{step}').mkdir(parents=True, exist_ok=True)
    if evaluated or not (folder / 'inference_eval').exists():
      metrics(folder / f'inference_eval/step_{4 if evaluated else 2}', f1=0.5)

  monkeypatch.setattr(seeds, '_train', train)
  files, bindings = configuration
  for _ in range(2):
    with pytest.raises(RuntimeError, match='without an evaluation of its last'):
      seeds.train_seeds(files, bindings, seeds=1)
    assert not (folder / 'finished.json').exists()
  evaluated.append(True)
  (result,) = seeds.train_seeds(files, bindings, seeds=1)
  assert result.step == 4 and (folder / 'finished.json').exists()


PARENT = """
import sys
from ralm_jax.commands import seeds
seeds._run([sys.executable, '-c', sys.argv[1]])
"""
CHILD = """
import os, time
print(os.getpid(), flush=True)
time.sleep(600)
"""


def test_a_terminated_parent_takes_its_run_along():
  parent = subprocess.Popen(
    [sys.executable, '-c', PARENT, CHILD], cwd=tiny.ROOT, stdout=subprocess.PIPE
  )
  child = None
  try:
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
      os.kill(child, 0)
    child = None
  finally:
    parent.kill()
    parent.stdout.close()
    if child is not None:
      os.kill(child, signal.SIGKILL)


def test_the_former_handler_is_back():
  former = signal.getsignal(signal.SIGTERM)
  assert seeds._run([sys.executable, '-c', 'raise SystemExit(3)']) == 3
  assert signal.getsignal(signal.SIGTERM) is former


@pytest.mark.slow
def test_real_runs(configuration, tmp_path, monkeypatch):
  """Each a process of its own, from `ralm train`'s own command line."""
  for name, value in tiny.environment(1).items():
    monkeypatch.setenv(name, value)
  files, bindings = configuration
  results = seeds.train_seeds(files, bindings, seeds=2)
  assert [result.name for result in results] == ['seed_0', 'seed_1']
  assert [result.count for result in results] == [4, 4]
  texts = [(tmp_path / f'run/seed_{i}/config.gin').read_text() for i in range(2)]
  assert 'RANDOM_SEED = 0' in texts[0] and 'RANDOM_SEED = 1' in texts[1]
  states = [tiny.load_checkpoint(tmp_path / f'run/seed_{i}', 2) for i in range(2)]
  assert tiny.differing(*states)
  assert watch.last_step(tmp_path / 'run/seed_0') == 2
  with pytest.raises(RuntimeError, match='seed_0 ended with status 1'):
    seeds.train_seeds(
      files,
      [*bindings, "INITIAL_CHECKPOINT_PATH = 'nowhere'", f"MODEL_DIR = '{tmp_path}/bad'"],
      seeds=2,
    )
  assert not (tmp_path / 'bad/seed_1').exists()


def test_each_seed_has_an_index_of_its_own(tmp_path, monkeypatch):
  """Where it changes; else seed 1 would begin with what seed 0 has left."""
  (tmp_path / 'run.gin').write_text("""
INDEX = None
RETRIEVAL_ADDRESS = None
REFRESH_INDEX = None
FOLLOW_CURRENT = False
RANDOM_SEED = 0
MODEL_DIR = %gin.REQUIRED
seeds_probe.x = (
    %INDEX, %RETRIEVAL_ADDRESS, %REFRESH_INDEX, %FOLLOW_CURRENT, %RANDOM_SEED, %MODEL_DIR)
""")
  import gin

  if 'seeds_probe' not in gin.config._REGISTRY:
    gin.external_configurable(lambda x=None: x, name='seeds_probe')
  trained = []

  def train(flags, unused_folder):
    bound = [flag.partition('=') for flag in flags]
    trained.append(dict(value.split(' = ') for name, _, value in bound if name == '--gin_bindings'))

  monkeypatch.setattr(seeds, '_train', train)
  monkeypatch.setattr(seeds.atomic_files, 'write', lambda *_: None)

  def run(**macros):
    del trained[:]
    seeds.train_seeds(
      [str(tmp_path / 'run.gin')],
      [
        f'{name} = {value!r}'
        for name, value in {'MODEL_DIR': str(tmp_path / 'run'), **macros}.items()
      ],
      seeds=[3, 5],
    )
    assert [one['RANDOM_SEED'] for one in trained] == ['3', '5']
    return [one.get('INDEX') for one in trained]

  index = tmp_path / 'index'
  own = [repr(f'{index}-seed_{i}') for i in (3, 5)]
  assert run() == [None, None]
  assert run(INDEX=str(index)) == own  # each builds it anew
  index.mkdir()
  (index / 'CURRENT').touch()
  assert run(INDEX=str(index)) == [repr(str(index))] * 2
  assert run(INDEX=str(index), REFRESH_INDEX='500') == own
  assert run(INDEX=str(index), FOLLOW_CURRENT=True) == own
  for changed in ({'REFRESH_INDEX': '500'}, {'FOLLOW_CURRENT': True}):
    with pytest.raises(ValueError, match='Every seed would refresh'):
      run(RETRIEVAL_ADDRESS='host:1', **changed)


def test_what_cannot_be(configuration):
  files, bindings = configuration
  for bad in (0, [], [1, 1], [-1]):
    with pytest.raises(ValueError, match='seeds must be'):
      seeds.train_seeds(files, bindings, seeds=bad)


def test_flag(configuration, monkeypatch):
  """`ralm train --seeds`, which trains nothing in its own process."""
  (file,), bindings = configuration
  calls = []
  monkeypatch.setattr(seeds, 'train_seeds', lambda *arguments: calls.append(arguments))
  assert (
    cli.main(
      [
        'train',
        f'--gin_file={file}',
        '--gin.RANDOM_SEED=1',
        '--gin_bindings',
        bindings[0],
        '--seeds',
        '3',
      ]
    )
    == 0
  )
  assert calls == [([file], [bindings[0], 'RANDOM_SEED = 1'], ['.'], 3)]


def test_command(tmp_path, capsys):
  assert cli.main(['report', str(tmp_path)]) == 1
  assert 'holds no results' in capsys.readouterr().err
