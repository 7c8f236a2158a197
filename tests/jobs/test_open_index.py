"""The index under evaluation jobs: its generations, and one that moves on."""

import shutil

import numpy as np
import pytest

from ralm_jax.evaluation import prediction_files
from ralm_jax.jobs import open_index, results as job_results, runner
from ralm_jax.jobs.inputs import IndexState
from ralm_jax.jobs.runner import Index, JobOptions, TableOptions, Task
from ralm_jax.jobs.worker import Worker
from retrieval_service import generation_writer
from retrieval_service.client import RetrievalClient
from retrieval_service.generations import GenerationStore
from retrieval_service.results import ServerStatus
from tests import tiny

OPTIONS = JobOptions(batch_size=8, progress=False, search_queries=4)
TABLE = TableOptions(resamples=200)


@pytest.fixture(scope='module')
def trained():
  return tiny.trained()


@pytest.fixture
def tasks(tmp_path):
  questions = tiny.write_jsonl(tmp_path / 'q.jsonl', tiny.questions()[:8])
  return [Task('find', str(questions), retrieve_only=True)]


@pytest.fixture
def index(trained, tmp_path):
  """A copy that goes its own way."""
  path = shutil.copytree(trained.index, tmp_path / 'index')
  (path / 'INDEX_ID').unlink(missing_ok=True)
  return path


def commit_another(index):
  """A generation in which every passage is embedded as another one."""
  store = GenerationStore(index)
  view = store.open_current()
  manifest = view.manifest
  with generation_writer.begin(store, manifest.options, manifest.dim, manifest.metadata) as writer:
    writer.append(None, np.roll(np.asarray(view.embeddings), 7, axis=0))
    writer.commit()


def test_generations_of_one_index(trained, tasks, index, tmp_path, monkeypatch):
  """The same questions against several generations: a column each."""
  commit_another(index)
  searched = []
  search = RetrievalClient.search
  monkeypatch.setattr(
    RetrievalClient,
    'search',
    lambda *arguments, **options: (
      searched.append(options.get('generation')),
      search(*arguments, **options),
    )[1],
  )
  rows = runner.run(
    tasks=tasks,
    checkpoints=f'{trained.run}/checkpoint_4',
    indexes=[
      Index(str(index), generation=1),
      Index(str(index), generation=2),
      Index(str(index), name='current'),
    ],
    output=str(tmp_path / 'out'),
    options=OPTIONS,
    table=TABLE,
    show=False,
  )
  assert [row['index'] for row in rows] == ['current', 'index generation 1', 'index generation 2']
  found = {
    row['index']: [
      [p['id'] for p in record['passages']]
      for record in (prediction_files.read(tmp_path / 'out' / row['folder'] / 'predictions.jsonl'))
    ]
    for row in rows
  }
  assert found['current'] == found['index generation 2']
  assert found['current'] != found['index generation 1']
  assert set(searched) == {1, 2}  # to time searches, too


def test_an_index_that_moves_on(trained, tasks, index, tmp_path):
  """Answers are from the generation that the manifest names."""
  with Worker(tasks, str(index), tmp_path / 'out', options=OPTIONS, table=TABLE) as worker:
    worker.work(f'{trained.run}/checkpoint_2')
    commit_another(index)
    worker.work(f'{trained.run}/checkpoint_4')
    rows = job_results.read_cells(tmp_path / 'out', worker.wanted())
    worker.check()
  assert [row['generation'] for row in rows] == [1, 2]
  for row in rows:
    records = prediction_files.read(tmp_path / 'out' / row['folder'] / 'predictions.jsonl')
    assert {(record['index'], record['generation']) for record in records} == {
      (row['index_id'], row['generation'])
    }
  assert [row['outdated'] for row in rows] == ['index.generation: 1 is now 2', None]


def test_answers_of_another_state():
  index = Index(retrieval_address='host:1')
  state = IndexState('a', 1, 0, 10, '')
  records = [{'index': 'a', 'generation': 1}, {'index': None, 'generation': None}]
  open_index.check_answers(records, index, state, state)
  for changes in ({'generation': 2}, {'index': 'b'}):
    with pytest.raises(RuntimeError, match='answers are from . generation .;'):
      open_index.check_answers([*records, {**records[0], **changes}], index, state, state)
  later = IndexState('a', 2, 0, 10, '')
  with pytest.raises(RuntimeError, match='the index changed meanwhile'):
    open_index.check_answers(records, index, state, later)
  # Our own process was asked for that very generation.
  open_index.check_answers(records, Index('folder'), state, later)


def test_passages_of_an_older_generation_are_not_known(monkeypatch):
  """A process counts those that it serves."""
  status = ServerStatus(2, 10, 4, None, '', {}, (1, 2), False, '/nowhere', index_id='a')
  monkeypatch.setattr(RetrievalClient, 'status', lambda self: status)
  for generation, count in ((None, 10), (2, 10), (1, None)):
    state = IndexState.of(Index(retrieval_address='localhost:1', generation=generation))
    assert state.count == count and state.generation == (generation or 2)
