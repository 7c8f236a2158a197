"""Two processes over jax.distributed: one failure stops both, nothing hangs."""

import glob
import re
import shutil
import time

import numpy as np
import pytest

from ralm_jax.training.multihost import Agreement
from retrieval_service.generations import GenerationStore
from retrieval_service.local import LocalRetrievalServer
from tests import tiny

STEPS = 6
# Two processes train alike in every run, by test_multiprocess.
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> tiny.Data:
  data = tiny.make_data(tmp_path_factory.mktemp('data'))
  # Which of several answers is drawn depends on the shard an example is in.
  tiny.write_jsonl(
    data.questions,
    [{**question, 'answers': question['answers'][:1]} for question in tiny.questions()],
  )
  return data


@pytest.fixture(scope='module')
def one_process(data, tmp_path_factory) -> str:
  """Output of a run on one process of two devices; it builds the index."""
  folder = tmp_path_factory.mktemp('one')
  return _start(folder, data, 1)[0].finish()


@pytest.fixture(scope='module')
def two_processes(data, one_process, tmp_path_factory):
  """Folder and outputs of the same run on two processes of one device."""
  folder = tmp_path_factory.mktemp('two')
  return folder, [p.finish() for p in _start(folder, data, 2)]


def _start(folder, data, count, own=(), **job):
  """Starts a run of `count` processes; `own` changes the jobs of each."""
  address = f'localhost:{tiny.free_port()}'
  started = []
  for index in range(count):
    process = (
      {}
      if count == 1
      else {
        'process': {'coordinator_address': address, 'num_processes': count, 'process_id': index}
      }
    )
    started.append(
      tiny.start(
        folder / f'log{index}',
        [
          {
            'data': str(data.folder),
            'model_dir': str(folder / 'run'),
            'steps': STEPS,
            'devices': None,
            'checkpoint': {'period': 4, 'asynchronous': False},
            'random_seed': 3,
            # In file order, the two shards of a batch make up the same batch.
            'dataset': {'batch_size': 8, 'shuffle': False},
            'model': {'reader': {'dropout_rate': 0.0}, 'retriever': {'dropout_rate': 0.0}},
            **process,
            **job,
            **(own[index] if own else {}),
          }
        ],
        devices=2 // count,
      )
    )
  return started


def _losses(output: str) -> np.ndarray:
  """[steps, 2]: the reader's and the retriever's loss as printed."""
  found = re.findall(r'step \d+/\d+ +loss/reader (\S+) +loss/retriever (\S+)', output)
  return np.asarray(found, np.float64)


def test_losses_of_one_process(one_process, two_processes):
  _, outputs = two_processes
  losses = _losses(one_process)
  assert losses.shape == (STEPS, 2) and np.all(losses > 0)
  # Printed with four digits.
  np.testing.assert_allclose(_losses(outputs[0]), losses, rtol=1e-3, atol=1e-4)
  assert not len(_losses(outputs[1]))  # the first process alone reports


def test_resumes_on_two_processes(data, two_processes, tmp_path):
  """Ended at the checkpoint of step 4 and started again: the same end."""
  folder, outputs = two_processes
  first = [p.finish() for p in _start(tmp_path, data, 2, steps=4)]
  rest = [p.finish() for p in _start(tmp_path, data, 2)]
  assert 'Resumed from checkpoint_4' in rest[1]
  np.testing.assert_array_equal(
    np.concatenate([_losses(first[0]), _losses(rest[0])]), _losses(outputs[0])
  )
  assert not tiny.differing(*(tiny.load_checkpoint(f / 'run', STEPS) for f in (folder, tmp_path)))


def test_refresh_on_two_processes(data, one_process, tmp_path):
  """Each embeds its part of every chunk, the first one uploads them."""
  numbers, embeddings, losses = [], [], []
  for count in (1, 2):
    folder = tmp_path / str(count)
    shutil.copytree(data.folder / 'index', folder / 'index')
    outputs = [
      p.finish()
      for p in _start(
        folder,
        data,
        count,
        retrieval={
          'index': str(folder / 'index'),
          'refresh_index': '1-100:3',
          # Chunks of 32 passages, and one of 8.
          'embed_batch_size': 1,
        },
      )
    ]
    assert 'Refreshed the index at step 1' in outputs[0]
    store = GenerationStore(folder / 'index')
    numbers.append(store.numbers())
    embeddings.append(np.asarray(store.open_current().embeddings))
    losses.append(_losses(outputs[0]))
  assert numbers[0] == numbers[1] and numbers[0][-1] == 3
  assert embeddings[0].shape == (tiny.COUNT, 16)
  np.testing.assert_allclose(*embeddings, atol=2e-3)
  np.testing.assert_allclose(*losses, rtol=1e-3, atol=1e-4)


def test_other_number_of_processes_is_refused(data, two_processes):
  folder, _ = two_processes
  output = _start(folder, data, 1, steps=8)[0].finish(status=1)
  assert 'written by another number of processes than 1' in output
  assert 'Traceback' not in output


def _assert_both_stop(processes) -> None:
  outputs = [p.finish(status=1) for p in processes]
  errors = [
    [line for line in output.splitlines() if line.startswith('ralm job: error')]
    for output in outputs
  ]
  assert [len(lines) for lines in errors] == [1, 1], outputs
  assert 'cannot be reached' in errors[1][0]
  assert 'Process 1 failed, so all processes stop' in errors[0][0]
  assert 'cannot be reached' in errors[0][0]
  for output in outputs:
    assert 'Traceback' not in output, output


def test_search_that_fails_in_mid_training(data, one_process, tmp_path):
  """One host's retrieval process goes away for good."""
  with LocalRetrievalServer(data.folder / 'index', threads=1) as server:
    processes = _start(
      tmp_path,
      data,
      2,
      steps=2000,
      own=({}, {'retrieval': {'address': server.address, 'retry_for_s': 2}}),
    )
    deadline = time.monotonic() + 200
    while not glob.glob(f'{tmp_path}/run/checkpoint_4'):
      assert all(p.popen.poll() is None for p in processes), (
        processes[0].output(),
        processes[1].output(),
      )
      assert time.monotonic() < deadline
      time.sleep(0.02)
    server.process.kill()
    _assert_both_stop(processes)


def test_retrieval_process_that_is_never_there(data, one_process, tmp_path):
  _assert_both_stop(
    _start(
      tmp_path,
      data,
      2,
      own=({}, {'retrieval': {'address': f'localhost:{tiny.free_port()}', 'retry_for_s': 2}}),
    )
  )


def test_one_process_agrees_with_itself():
  agreement = Agreement()
  with agreement.together():
    pass
  with pytest.raises(KeyError, match='own'), agreement.together():
    raise KeyError('own')
