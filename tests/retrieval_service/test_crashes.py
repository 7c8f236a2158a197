"""A process killed at any point of a build, an edit or a rewrite."""

import signal
import subprocess
import sys

import numpy as np
import pytest

from retrieval_service import generation_writer
from retrieval_service.client import RetrievalClient, RetrievalError
from retrieval_service.generations import GenerationStore
from retrieval_service.live_index import LiveIndex
from retrieval_service.options import IndexOptions

DIM = 16
# A server that kills itself before its n-th step towards the disk, once armed
# by a file: whatever the module does, it goes by one of these calls.
_PROGRAM = """
import os, signal, sys
from retrieval_service import edit_log, server

index, last = sys.argv[1], int(sys.argv[2])
steps = 0

def step(function):
  def stepping(*arguments, **options):
    global steps
    if os.path.exists(index + '.armed'):
      steps += 1
      with open(index + '.steps', 'a') as file:
        file.write(f'{function.__name__} {arguments[-1]}\\n')
      if steps == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments, **options)
  return stepping

for name in ('fsync', 'rename', 'replace', 'remove'):
  setattr(os, name, step(getattr(os, name)))
edit_log._REWRITE_BYTES, edit_log._RECENT = 0, 1
edit_log._write = step(edit_log._write)
sys.exit(server.main(
    ['--index', index, '--address', 'localhost:0', '--no-verify_checksums']))
"""


class Doomed:
  """A server process that dies at a step of the work that is timed."""

  def __init__(self, index, last):
    self._index = index
    self._process = subprocess.Popen(
      [sys.executable, '-c', _PROGRAM, str(index), str(last)],
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
    )
    line = self._process.stdout.readline()
    self.client = RetrievalClient(line.split()[4], retry_for_s=0)

  def __enter__(self):
    return self

  def __exit__(self, *unused_exception):
    self.client.close()
    self._process.kill()
    self._process.communicate()

  def dies_during(self, work):
    """Whether it does; work is a call of the client."""
    armed = self._index.with_name(self._index.name + '.armed')
    armed.touch()
    try:
      work(self.client)
      return False
    except RetrievalError:
      self._process.wait(30)
      assert self._process.returncode == -signal.SIGKILL
      return True
    finally:
      armed.unlink()


def until_it_survives(index, work, check):
  """Kills at the first step, at the second...; the next process is checked.

  Args:
    index: The index folder.
    work: What is killed, of a client and the number of the try.
    check: Called with a client, the try's number and whether it survived.

  Returns:
    The steps of the work, as the process that survived noted them.
  """
  steps = index.with_name(index.name + '.steps')
  for last in range(1, 60):
    with Doomed(index, last) as server:
      if last > 1:
        check(server.client, last - 1, False)
      steps.unlink(missing_ok=True)
      if not server.dies_during(lambda client, last=last: work(client, last)):
        check(server.client, last, True)
        return steps.read_text()
  pytest.fail('it never ended')


@pytest.fixture
def index(tmp_path, vectors):
  store = GenerationStore(tmp_path / 'index')
  with generation_writer.begin(store, IndexOptions(), DIM) as writer:
    writer.append(np.arange(20) + 100, vectors(20, DIM))
    writer.commit()
  return tmp_path / 'index'


def test_a_build_killed_at_any_step_leaves_a_whole_index(index, vectors):
  """The former generation is served until CURRENT names the new one.

  Made again under its name, what was complete is not made twice.
  """
  data = vectors(20, DIM)
  outcomes = []

  def build(client, last, data=-data):
    # An iterator, so that the client does not try again by itself. Each try is
    # another generation: ids tell which.
    return client.build(
      iter([(np.arange(20) + 100 * (last + 1), data)]), dim=DIM, build_id=f'build {last}'
    )

  def served(client):
    result = client.search(np.concatenate([data, -data]), 20)
    (found,) = set((result.ids // 100).ravel())
    assert client.status().count == 20
    return found

  def check(client, last, done):
    found = served(client)
    complete = GenerationStore(index).find_build(f'build {last}')
    if complete:
      assert found == last + 1 or not done
    else:
      assert found == last and not done
    outcomes.append((found == last + 1, complete is not None))
    before = client.status().generations
    number = build(client, last)
    assert number == (complete or before[-1] + 1)
    assert served(client) == last + 1

  steps = until_it_survives(index, build, check)
  # Killed before it was complete, between that and CURRENT, and after.
  assert outcomes.count((False, False)) >= 5
  assert outcomes.count((False, True)) >= 2
  assert outcomes.count((True, True)) >= 2
  assert 'CURRENT' in steps and not list(index.glob('.tmp-*'))


def test_edits_killed_at_any_step_are_there_whole_or_not_at_all(index, vectors):
  """Steps of three appends and of the rewrite that they bring about."""
  data = vectors(400, DIM)
  known = [0]  # edits acknowledged, or seen after a kill

  def edit(client, last):
    for _ in range(3):
      number = known[-1] + 1
      client.edit(
        [1, 200 + number],
        data[2 * number : 2 * number + 2],
        delete_ids=[199 + number] if number > 1 else [119],
      )
      known.append(number)

  def check(client, last, done):
    edits = client.status().edits
    assert edits in (known[-1], known[-1] + 1 - done)
    known.append(edits)
    if edits:
      found = client.search(data[2 * edits : 2 * edits + 2], 21)
      assert found.ids[:, 0].tolist() == [1, 200 + edits]
      assert sorted(found.ids[0]) == [1, *range(100, 119), 200 + edits]

  steps = until_it_survives(index, edit, check)
  assert 'edits.log' in steps and known[-1] >= 10
  assert LiveIndex(GenerationStore(index)).edits == known[-1]
  assert not list(index.glob('.tmp-*'))
