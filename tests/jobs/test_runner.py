"""Jobs: every cell once, with its manifest; what fails does not stop the rest."""

import json
import os
import shutil

import pytest

from ralm_jax import cli
from ralm_jax.evaluation.answering import AnswerOptions
from ralm_jax.jobs import results, runner, watch
from ralm_jax.jobs.cells import Cell
from ralm_jax.jobs.runner import Checkpoint, Index, JobOptions, TableOptions, Task
from ralm_jax.retrieval import connect as connection_lib
from ralm_jax.runs import evaluation, opening
from retrieval_service.client import RetrievalClient
from retrieval_service.local import LocalRetrievalServer
from tests import tiny

OPTIONS = JobOptions(batch_size=8, progress=False, search_queries=4)
TABLE = TableOptions(resamples=200)


@pytest.fixture(scope='module')
def trained():
  return tiny.trained()


@pytest.fixture
def questions(tmp_path):
  return tiny.write_jsonl(tmp_path / 'q.jsonl', tiny.questions()[:8])


@pytest.fixture
def other_index(trained, tmp_path):
  """A copy that goes its own way."""
  path = shutil.copytree(trained.index, tmp_path / 'other')
  (path / 'INDEX_ID').unlink(missing_ok=True)
  return path


@pytest.fixture
def evaluated(monkeypatch):
  """Checkpoint, task and index of what is evaluated, in order."""
  calls = []
  evaluate = evaluation.evaluate

  def counting(checkpoint, task, source, output, **options):
    calls.append('/'.join(str(output).split('/')[-4:-1]))
    return evaluate(checkpoint, task, source, output, **options)

  monkeypatch.setattr(evaluation, 'evaluate', counting)
  return calls


def run(trained, questions, tmp_path, indexes, tasks=None, **arguments):
  arguments.setdefault('checkpoints', f'{trained.run}/checkpoint_*')
  arguments.setdefault('table', TABLE)
  return runner.run(
    tasks=tasks or [Task('find', str(questions), retrieve_only=True)],
    indexes=indexes,
    output=str(tmp_path / 'out'),
    options=OPTIONS,
    **arguments,
  )


def test_every_cell_once(trained, questions, other_index, evaluated, tmp_path, monkeypatch, capsys):
  opened, served = [], []
  open_checkpoint = opening.open_checkpoint
  connect = connection_lib.connect
  monkeypatch.setattr(
    opening, 'open_checkpoint', lambda path: (opened.append(path), open_checkpoint(path))[1]
  )
  monkeypatch.setattr(
    connection_lib,
    'connect',
    lambda source, **options: (
      served.extend([source.path] if source.path else []),
      connect(source, **options),
    )[1],
  )
  indexes = [Index(str(trained.index), name='one'), Index(str(other_index))]
  rows = run(trained, questions, tmp_path, indexes)
  assert [(row['checkpoint'], row['task'], row['index']) for row in rows] == [
    (f'run-{step}', 'find', index) for step in (2, 4) for index in ('one', 'other')
  ]
  assert len(evaluated) == 4
  # There and back: of four, three are opened; each index is served once.
  assert [os.path.basename(path) for path in opened] == [
    'checkpoint_4',
    'checkpoint_2',
    'checkpoint_4',
  ]
  assert len(served) == 2
  out = tmp_path / 'out'
  lines = (out / 'results.jsonl').read_text().splitlines()
  assert [json.loads(line) for line in lines] == rows
  for row in rows:
    assert row['count'] == 8 and row['step'] in (2, 4)
    assert row['search_ms'] > 0 and row['index_bytes'] > 0
    assert row['index_passages'] == tiny.COUNT
    mean = row['metrics']['recall@1_gold']
    ends = row['intervals']['recall@1_gold']
    assert ends['low'] <= mean <= ends['high']
  manifest = json.loads((out / rows[0]['folder'] / 'manifest.json').read_text())
  assert manifest['inputs']['index']['generation'] == 1
  assert len(manifest['inputs']['questions']['0']) == 64
  assert manifest['versions']['jax'] and manifest['run'] == str(trained.run)
  shown = capsys.readouterr().out
  assert shown.startswith((out / 'table.md').read_text().rstrip('\n'))
  assert 'checkpoint × index' in shown and 'Paired tests' in shown
  # Nothing is left to do, and nothing is opened for it.
  assert run(trained, questions, tmp_path, indexes) == rows
  assert len(evaluated) == 4 and len(served) == 2
  # Another task is added: its cells alone.
  more = tiny.write_jsonl(tmp_path / 'more.jsonl', tiny.questions()[8:12])
  tasks = [
    Task('find', str(questions), retrieve_only=True),
    Task('more', str(more), retrieve_only=True),
  ]
  run(trained, questions, tmp_path, indexes[:1], tasks)
  assert evaluated[4:] == ['run-4/more/one', 'run-2/more/one']


def test_what_has_changed_is_done_again(
  trained, questions, other_index, evaluated, tmp_path, caplog
):
  indexes = [Index(str(other_index), name='i')]
  arguments = {'checkpoints': [Checkpoint(str(trained.run / 'checkpoint_4'), name='c')]}
  (row,) = run(trained, questions, tmp_path, indexes, **arguments)
  assert row['checkpoint'] == 'c'
  tiny.write_jsonl(questions, tiny.questions()[:5])
  with caplog.at_level('INFO'):
    (row,) = run(trained, questions, tmp_path, indexes, **arguments)
  assert row['count'] == 5 and len(evaluated) == 2
  assert 'is evaluated again: questions.0' in caplog.text
  # The same content under another name is the same.
  moved = questions.rename(tmp_path / 'moved.jsonl')
  run(trained, moved, tmp_path, indexes, **arguments)
  assert len(evaluated) == 2
  # A live edit of the index is a change.
  with LocalRetrievalServer(other_index) as server:
    with RetrievalClient(server.address) as client:
      client.delete([3])
      run(trained, moved, tmp_path, indexes, **arguments)
      assert len(evaluated) == 3
      # A running process of that index, in place of its folder.
      run(
        trained, moved, tmp_path, [Index(retrieval_address=server.address, name='i')], **arguments
      )
      assert len(evaluated) == 3
  # As are a task's choices.
  tasks = [Task('find', str(moved), retrieve_only=True, n_passages=2)]
  run(trained, moved, tmp_path, indexes, tasks, **arguments)
  assert len(evaluated) == 4


def test_answers_and_closed_book(trained, questions, evaluated, tmp_path):
  """One real answer of a reader; without passages the index does not count."""
  tasks = [
    Task('qa', str(questions)),
    Task('blind', str(questions), passages_from='none', answering=AnswerOptions(max_length=2)),
  ]
  indexes = [Index(str(trained.index), name='i')]
  rows = run(trained, questions, tmp_path, indexes, tasks, checkpoints=str(trained.run))
  assert [(row['task'], row['index']) for row in rows] == [('blind', 'none'), ('qa', 'i')]
  assert sorted(evaluated) == ['run-4/blind/none', 'run-4/qa/i']
  for row in rows:
    assert {'exact_match', 'f1'} <= row['metrics'].keys()
  assert rows[0]['index_id'] is None and rows[0]['search_ms'] is None


def test_one_failure_does_not_stop_the_others(trained, questions, evaluated, tmp_path):
  broken = tmp_path / 'broken.jsonl'
  broken.write_text('{"question": "x"}\n')
  tasks = [
    Task('bad', str(broken), retrieve_only=True),
    Task('absent', str(tmp_path / 'no.jsonl'), retrieve_only=True),
    Task('good', str(questions), retrieve_only=True),
  ]
  indexes = [str(trained.index)]
  with pytest.raises(RuntimeError, match='2 of 3 cells failed') as raised:
    run(trained, questions, tmp_path, indexes, tasks, checkpoints=str(trained.run))
  message = str(raised.value)
  assert 'run-4 × bad × index: ValueError' in message
  assert f'{broken}:1' in message and 'no.jsonl' in message
  assert [row['task'] for row in results.read_cells(tmp_path / 'out')] == ['good']
  # Repaired, they are done, and only they.
  tiny.write_jsonl(broken, tiny.questions()[:2])
  tiny.write_jsonl(tmp_path / 'no.jsonl', tiny.questions()[:2])
  del evaluated[:]
  assert len(run(trained, questions, tmp_path, indexes, tasks, checkpoints=str(trained.run))) == 3
  assert [call.split('/')[1] for call in evaluated] == ['bad', 'absent']


def test_shards_and_other_workers(trained, questions, evaluated, tmp_path, caplog):
  tasks = [Task(name, str(questions), retrieve_only=True) for name in 'abc']
  indexes = [str(trained.index)]
  newest = {'checkpoints': str(trained.run)}
  for i in range(2):
    run(trained, questions, tmp_path, indexes, tasks, shard=f'{i}/2', **newest)
  assert [call.split('/')[1] for call in evaluated] == ['a', 'b', 'c']
  # One that another worker is at is left to it.
  cell = Cell(results.cell_folder(tmp_path / 'out', 'run-4', 'a', 'index'))
  (cell.folder / 'metrics.json').unlink()
  with cell.claimed(), caplog.at_level('INFO'):
    rows = run(trained, questions, tmp_path, indexes, tasks, **newest)
  assert len(rows) == 2 and len(evaluated) == 3
  assert '1 cells are being done by other workers' in caplog.text


def test_watch(trained, questions, evaluated, tmp_path):
  """Checkpoints of a run, each once, those that come later among them."""
  directory = tmp_path / 'run'
  directory.mkdir()
  for name in ('model.json', 'vocabularies'):
    (directory / name).symlink_to(trained.run / name)
  shutil.copytree(trained.run / 'checkpoint_2', directory / 'checkpoint_2')

  def sleep(seconds):
    assert seconds == 7
    shutil.copytree(trained.run / 'checkpoint_4', tmp_path / 'aside')
    os.rename(tmp_path / 'aside', directory / 'checkpoint_4')

  follow = watch.follow
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(watch, 'follow', lambda run, **arguments: follow(run, **arguments, sleep=sleep))
    rows = run(
      trained,
      questions,
      tmp_path,
      [str(trained.index)],
      checkpoints=(),
      watch=str(directory),
      until_step=4,
      poll_s=7,
    )
  assert evaluated == ['run-2/find/index', 'run-4/find/index']
  assert [row['step'] for row in rows] == [2, 4]


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'shard': '2/2'}, "write 'I/N'"),
    ({'checkpoints': ()}, 'a run to watch'),
    ({'checkpoints': 'no/such/*'}, 'no checkpoint matches'),
    ({'indexes': ()}, 'reads passages'),
    ({'indexes': ['x/index', 'y/index']}, "one folder, 'index' and 'index'"),
    ({'indexes': 5}, 'indexes is 5; give a text, Index'),
    ({'checkpoints': [5]}, 'checkpoints holds 5, which is neither'),
    ({'tasks': ['nq']}, "'nq', which is no Task"),
    (
      {'table': TableOptions(baseline='run4')},
      "BASELINE\\) is 'run4'; the checkpoints are 'run-2', 'run-4'",
    ),
  ],
)
def test_what_cannot_be(trained, questions, tmp_path, arguments, message):
  values = {'indexes': [str(trained.index)], **arguments}
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    run(trained, questions, tmp_path, **values)
  assert not (tmp_path / 'out').exists()


def test_a_run_by_what_it_is(trained, questions, evaluated, tmp_path):
  """Moved it is the same; with another model.json it is not."""
  directory = shutil.copytree(
    trained.run, tmp_path / 'a' / 'run', ignore=shutil.ignore_patterns('*_2')
  )
  index = [str(trained.index)]
  run(trained, questions, tmp_path, index, checkpoints=str(directory))
  moved = directory.rename(tmp_path / 'run')
  (row,) = run(trained, questions, tmp_path, index, checkpoints=str(moved))
  assert len(evaluated) == 1
  manifest = json.loads((tmp_path / 'out' / row['folder'] / 'manifest.json').read_text())
  assert manifest['checkpoint'] == str(directory / 'checkpoint_4')
  model = json.loads((moved / 'model.json').read_text())
  model['text']['n_passages'] += 1
  (moved / 'model.json').write_text(json.dumps(model))
  run(trained, questions, tmp_path, index, checkpoints=str(moved))
  assert len(evaluated) == 2


def test_outdated_cells(trained, questions, evaluated, tmp_path):
  """What cannot be made anew is marked, as is what is not asked for any more."""
  other = tiny.write_jsonl(tmp_path / 'other.jsonl', tiny.questions()[:2])
  tasks = [
    Task(name, str(path), retrieve_only=True)
    for name, path in (('kept', other), ('find', questions), ('gone', other))
  ]
  arguments = {'indexes': [str(trained.index)], 'checkpoints': str(trained.run)}
  rows = run(trained, questions, tmp_path, tasks=tasks, **arguments)
  assert [row['outdated'] for row in rows] == [None] * 3
  questions.write_text('{"question": "x"}\n')
  with pytest.raises(RuntimeError, match='1 of 2 cells failed'):
    run(trained, questions, tmp_path, tasks=tasks[:2], **arguments)
  lines = (tmp_path / 'out' / 'results.jsonl').read_text().splitlines()
  outdated = {row['task']: row['outdated'] for row in map(json.loads, lines)}
  assert outdated['kept'] is None
  assert outdated['gone'] == 'not configured any more'
  assert outdated['find'].startswith('questions.0: ')
  assert (tmp_path / 'out' / 'table.md').read_text().count('- run-4, ') == 2
  assert len(evaluated) == 4


def test_failures_before_there_is_anything(trained, questions, tmp_path):
  with pytest.raises(RuntimeError, match='2 of 2 cells failed.*\n.*nowhere'):
    run(trained, questions, tmp_path, [str(tmp_path / 'nowhere')])
  assert (tmp_path / 'out' / 'table.md').read_text() == ('No cell is finished yet.\n')


def test_questions_without_answers(trained, tmp_path):
  """`require_answers` overrides what the tasks say."""
  path = tiny.write_jsonl(tmp_path / 'q.jsonl', [{'question': 'which colour?'}])
  arguments = {'indexes': [str(trained.index)], 'checkpoints': str(trained.run)}
  with pytest.raises(RuntimeError, match='1 of 1 cells failed'):
    run(trained, path, tmp_path, **arguments)
  (row,) = run(trained, path, tmp_path, require_answers=False, **arguments)
  assert row['count'] == 1


def test_a_cell_that_another_worker_took(trained, questions, tmp_path, monkeypatch, caplog):
  """Is no failure, whatever has become of the files."""

  def evaluate(checkpoint, task, source, output, **unused_options):
    folder = tmp_path.joinpath(output).parent
    (folder / 'claim-7').write_text('{}')
    shutil.rmtree(output)
    raise FileNotFoundError('predictions')

  monkeypatch.setattr(evaluation, 'evaluate', evaluate)
  tasks = [Task('find', str(questions), retrieve_only=True)]
  with caplog.at_level('INFO'):
    assert (
      run(trained, questions, tmp_path, [str(trained.index)], tasks, checkpoints=str(trained.run))
      == []
    )
  assert 'another worker took this cell over' in caplog.text
  assert '1 cells are being done by other workers' in caplog.text


def test_from_gin(trained, questions, tmp_path):
  """`jobs` as configurations name it, down to what a task's reader does."""
  (tmp_path / 'jobs.gin').write_text("""
from __gin__ import dynamic_registration
from ralm_jax import jobs
include 'gin_configs/runs/evaluation.gin'
TASKS = [@find/jobs.Task()]
find/jobs.Task.name = 'find'
find/jobs.Task.questions = %QUESTIONS
find/jobs.Task.retrieve_only = True
QUESTIONS = %gin.REQUIRED
""")
  arguments = [
    'eval',
    f'--gin_file={tmp_path}/jobs.gin',
    f'--gin.OUTPUT={tmp_path}/out',
    f'--gin.CHECKPOINTS={trained.run}/checkpoint_*',
    f'--gin.QUESTIONS={questions}',
    f'--gin.INDEXES={trained.index}',
    '--gin.EVAL_BATCH_SIZE=8',
    '--gin.SHARD=0/2',
  ]
  assert cli.main(arguments) == 0
  (row,) = results.read_cells(tmp_path / 'out')
  assert row['checkpoint'] == 'run-4'
  manifest = json.loads((tmp_path / 'out' / row['folder'] / 'manifest.json').read_text())
  assert 'jobs.Task.retrieve_only = True' in manifest['gin']
  questions.write_text('{"question": ')
  assert cli.main(arguments) == 1


def test_watch_by_flags(trained, questions, evaluated, tmp_path):
  arguments = [
    'eval',
    '--watch',
    str(trained.run),
    '--questions',
    str(questions),
    '--index',
    str(trained.index),
    '--retrieve_only',
    '--n_passages',
    '2',
    '--batch_size',
    '8',
    '--idle_s',
    '0',
    '--until_step',
    '4',
    '--output',
    str(tmp_path / 'out'),
  ]
  assert cli.main(arguments) == 0
  rows = results.read_cells(tmp_path / 'out')
  assert [row['step'] for row in rows] == [2, 4]
  assert evaluated == ['run-2/questions/index', 'run-4/questions/index']
  with pytest.raises(SystemExit):
    cli.main([*arguments, '--checkpoint', str(trained.run)])
