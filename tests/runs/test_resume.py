"""A run that is killed, or loses its retrieval process, ends as if it had not."""

import glob
import os
import pathlib
import random
import re
import signal
import subprocess
import time

import numpy as np
import pytest

from retrieval_service import generation_writer
from retrieval_service.client import RetrievalClient
from retrieval_service.generations import GenerationStore
from retrieval_service.local import LocalRetrievalServer
from tests import tiny

STEPS = 14
COMMON = {'steps': STEPS, 'checkpoint': {'period': 3, 'keep': 2}, 'random_seed': 5}
RETRIEVAL_WARNING = 'waiting for the retrieval process'


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> tiny.Data:
  return tiny.make_data(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def uninterrupted(data, tmp_path_factory) -> pathlib.Path:
  """The run that all others are compared with; it builds the index."""
  folder = tmp_path_factory.mktemp('uninterrupted')
  _finish(folder, data)
  return folder


def _job(folder, data, **job):
  return {'data': str(data.folder), 'model_dir': str(folder / 'run'), **COMMON, **job}


def _finish(folder, data, **job) -> str:
  return tiny.start(folder / 'log', [_job(folder, data, **job)]).finish()


def _assert_same_end(folder, other) -> None:
  """Parameters and optimiser states are the same, bit for bit."""
  states = [tiny.load_checkpoint(f / 'run', STEPS) for f in (folder, other)]
  assert not tiny.differing(*states)
  assert int(states[0]['step']) == STEPS
  # The positions in the data, and what was retrieved for the next step.
  hosts = [
    np.load(f / 'run' / f'checkpoint_{STEPS}' / 'host' / 'process_00000-of-00001.npz')
    for f in (folder, other)
  ]
  assert hosts[0].files == hosts[1].files
  for name in hosts[0].files:
    if name.startswith('pending/'):
      np.testing.assert_array_equal(hosts[0][name], hosts[1][name])


@pytest.mark.slow
def test_killed_at_several_moments(data, uninterrupted, tmp_path):
  run = tmp_path / 'run'
  output = _finish(
    tmp_path,
    data,
    kills=[
      {'glob': f'{run}/checkpoint_3*tmp*'},
      {'glob': f'{run}/checkpoint_3'},
      {'delay': random.Random(0).uniform(1, 3)},
      {'glob': f'{run}/checkpoint_9*tmp*'},
    ],
  )
  assert output.count('KILLED') == 4
  # The first was killed while it wrote: what it left half-done is no
  # checkpoint, and the run began anew.
  assert 'leaving checkpoint_3.orbax-checkpoint-tmp' in output
  assert 'Resumed from checkpoint_3.' in output
  # Retrieval is real: now and then an answer stands in what was found.
  assert re.search(r'retrieval/recall (0\.\d|1)', output)
  _assert_same_end(tmp_path, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize('lookahead', [0, 1])
@pytest.mark.parametrize('seed', [1, 2])
def test_killed_at_random_moments(data, tmp_path, lookahead, seed):
  rng = random.Random(seed)
  plain, killed = tmp_path / 'plain', tmp_path / 'killed'
  for folder in (plain, killed):
    folder.mkdir()
  index = {'index': str(tmp_path / 'index')}
  options = {'retrieval_lookahead': lookahead, 'retrieval': index}
  kills = [{'delay': rng.uniform(0.3, 3)} for _ in range(6)]
  kills += [
    {'glob': f'{killed}/run/checkpoint_{step}*', 'delay': rng.uniform(0, 0.1)}
    for step in (6, 9, 12)
  ]
  # Killed first, so that building the index is interrupted as well.
  output = _finish(killed, data, kills=kills, **options)
  # How many of the random ones come in time depends on the machine's speed.
  assert output.count('KILLED') >= 4
  _finish(plain, data, **options)
  _assert_same_end(killed, plain)


@pytest.mark.slow
def test_without_look_ahead(data, tmp_path):
  """Strictly in order: candidates are those of the newest parameters."""
  folders = [tmp_path / name for name in ('killed', 'plain')]
  for folder in folders:
    folder.mkdir()
  killed = _job(
    folders[0], data, retrieval_lookahead=0, kills=[{'glob': f'{folders[0]}/run/checkpoint_6'}]
  )
  plain = _job(folders[1], data, retrieval_lookahead=0)
  output = tiny.start(tmp_path / 'log', [killed, plain]).finish()
  assert 'KILLED' in output and 'Resumed from checkpoint_' in output
  _assert_same_end(*folders)


def _stopped_at(process: tiny.Process, pattern: str) -> int:
  """Stops the forked trainer as soon as a file exists; its process id."""
  deadline = time.monotonic() + 200
  while time.monotonic() < deadline:
    assert process.popen.poll() is None, process.output()
    if glob.glob(pattern):
      (pid,) = _children(process.popen.pid, 'tests.tiny')
      os.kill(pid, signal.SIGSTOP)
      return pid
    time.sleep(0.001)
  raise AssertionError(f'no {pattern}; {process.output()}')


def _children(pid: int, program: str) -> list[int]:
  """Children of a process whose command line names a program."""
  found = []
  for path in glob.glob(f'/proc/{pid}/task/*/children'):
    found += pathlib.Path(path).read_text().split()
  return [
    int(child) for child in found if program in pathlib.Path(f'/proc/{child}/cmdline').read_text()
  ]


needs_proc = pytest.mark.skipif(
  not glob.glob('/proc/self/task/*/children'), reason='needs Linux /proc'
)


@needs_proc
def test_own_retrieval_process_is_killed(data, uninterrupted, tmp_path):
  process = tiny.start(
    tmp_path / 'log',
    [_job(tmp_path, data, checkpoint={**COMMON['checkpoint'], 'asynchronous': False})],
  )
  trainer = _stopped_at(process, f'{tmp_path}/run/checkpoint_3')
  (server,) = _children(trainer, 'retrieval_service')
  os.kill(server, signal.SIGKILL)
  os.kill(trainer, signal.SIGCONT)
  output = process.finish()
  assert 'starting it again' in output
  _assert_same_end(tmp_path, uninterrupted)


@needs_proc
@pytest.mark.slow
def test_retrieval_process_at_an_address_is_killed(data, uninterrupted, tmp_path):
  server = LocalRetrievalServer(data.folder / 'index', threads=1)
  try:
    process = tiny.start(
      tmp_path / 'log',
      [
        _job(
          tmp_path,
          data,
          retrieval={'address': server.address},
          checkpoint={**COMMON['checkpoint'], 'asynchronous': False},
        )
      ],
    )
    trainer = _stopped_at(process, f'{tmp_path}/run/checkpoint_3')
    server.process.kill()
    server.process.wait()
    os.kill(trainer, signal.SIGCONT)
    deadline = time.monotonic() + 100
    while RETRIEVAL_WARNING not in process.output():
      assert process.popen.poll() is None, process.output()
      assert time.monotonic() < deadline, process.output()
      time.sleep(0.05)
    assert server.ensure_alive()
    process.finish()
  finally:
    server.stop()
  _assert_same_end(tmp_path, uninterrupted)


@pytest.mark.slow
def test_generation_of_the_checkpoint_is_searched(data, uninterrupted, tmp_path):
  """Another generation becomes current while the run is down."""
  index = tmp_path / 'index'
  store = GenerationStore(data.folder / 'index')
  first = store.open_current()
  # An index whose second generation holds the passages turned around.
  copy = GenerationStore(index)
  embeddings = np.asarray(first.embeddings)
  metadata = dict(first.manifest.metadata, corpus_relative='../nowhere')
  with generation_writer.begin(copy, first.manifest.options, first.dim, metadata) as writer:
    writer.append(None, embeddings)
    writer.commit()

  with LocalRetrievalServer(index, threads=1, keep_generations=1) as server:
    retrieval = {'address': server.address}
    tiny.start(
      tmp_path / 'log', [_job(tmp_path, data, retrieval=retrieval) | {'steps': 6}]
    ).finish()
    with RetrievalClient(server.address) as client:
      for _ in range(3):
        client.build([(None, embeddings[::-1])], dim=first.dim, metadata=metadata)
      status = client.status()
      assert status.generation == 4
      # The run's checkpoints name the first, so it stays; none names the others.
      assert status.generations == (1, 4)
      fresh = tmp_path / 'fresh'
      output = tiny.start(
        tmp_path / 'log', [_job(folder, data, retrieval=retrieval) for folder in (tmp_path, fresh)]
      ).finish()
      assert 'Resumed from checkpoint_6' in output
      assert client.status().generations == (1, 4)
  _assert_same_end(tmp_path, uninterrupted)
  # The other generation would have given other passages.
  assert tiny.differing(*(tiny.load_checkpoint(f / 'run', STEPS) for f in (fresh, uninterrupted)))


@pytest.fixture
def small_disk(tmp_path):
  """A file system of its own of eight megabytes."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  mounted = (
    os.geteuid() == 0
    and subprocess.run(
      ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(folder)], capture_output=True
    ).returncode
    == 0
  )
  if not mounted:
    pytest.skip('no permission to mount a small file system')
  yield folder
  subprocess.run(['umount', '-l', str(folder)], check=True)


@pytest.mark.slow
def test_full_disk(data, uninterrupted, tmp_path, small_disk):
  """Training stops with one message, and goes on when there is space."""
  log = tmp_path / 'log'
  job = _job(small_disk, data)
  tiny.start(log, [{**job, 'steps': 6}]).finish()
  ballast = small_disk / 'ballast'
  free = os.statvfs(small_disk)
  ballast.write_bytes(bytes(free.f_bavail * free.f_bsize - 65536))
  output = tiny.start(log, [job]).finish(status=1)
  errors = [l for l in output.splitlines() if l.startswith('ralm job: error')]
  assert len(errors) == 1, output
  assert 'No space left on device' in errors[0]
  assert 'newest usable checkpoint is checkpoint_6' in errors[0]
  assert 'Traceback' not in output, output
  ballast.unlink()
  assert 'Resumed from checkpoint_6' in tiny.start(log, [job]).finish()
  _assert_same_end(small_disk, uninterrupted)
