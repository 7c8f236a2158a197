"""Cells: done once, by one worker, whoever dies meanwhile."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from ralm_jax.files import atomic_files
from ralm_jax.jobs import cells
from ralm_jax.jobs.cells import Cell, Claim, LostClaimError
from tests import tiny

INPUTS = {'checkpoint': {'step': 4}, 'index': {'id': 'a', 'generation': 1}}


def finish(cell, inputs=None, text='{}\n'):
  with cell.claimed() as claim:
    work = cell.begin(claim, inputs or INPUTS)
    (work / cells.PREDICTIONS).write_text(text)
    return cell.publish(claim, work, inputs or INPUTS, {'seconds': 1.0})


def names(cell):
  return sorted(path.name for path in cell.folder.iterdir())


def test_finished_once(tmp_path):
  cell = Cell(tmp_path / 'a' / 'b')
  assert cell.why_undone(INPUTS) == 'not evaluated yet'
  finish(cell)
  assert cell.why_undone(INPUTS) is None
  assert names(cell) == ['manifest.json', 'predictions.jsonl']
  assert cell.manifest()['seconds'] == 1.0


def test_says_what_has_changed(tmp_path):
  cell = Cell(tmp_path)
  finish(cell)
  changed = {'checkpoint': {'step': 6}, 'index': {'id': 'a', 'generation': 2}}
  assert cell.why_undone(changed) == ('checkpoint.step: 4 is now 6; index.generation: 1 is now 2')
  assert cell.why_undone(changed, ('checkpoint.step', 'index.generation')) is None
  assert 'index' in cell.why_undone({**INPUTS, 'index': None})
  # Tuples are lists in JSON: no change.
  finish(cell, {'files': ('x',)})
  assert cell.why_undone({'files': ('x',)}) is None


@pytest.mark.parametrize(
  'damage',
  [
    lambda folder: (folder / 'predictions.jsonl').unlink(),
    lambda folder: (folder / 'predictions.jsonl').write_text('{'),
    lambda folder: (folder / 'manifest.json').write_text('{"files"'),
    lambda folder: (folder / 'manifest.json').write_text('[]'),
  ],
)
def test_damaged(tmp_path, damage):
  cell = Cell(tmp_path)
  finish(cell)
  damage(tmp_path)
  assert cell.why_undone(INPUTS) == 'its files are damaged'
  finish(cell)
  assert cell.why_undone(INPUTS) is None


def test_a_failing_worker_leaves_the_cell_free(tmp_path):
  cell = Cell(tmp_path)
  with pytest.raises(KeyError), cell.claimed() as claim:
    (cell.begin(claim, INPUTS) / 'part').write_text('kept')
    with cell.claimed() as other:
      assert other is None
    raise KeyError
  with cell.claimed() as claim:
    assert (cell.begin(claim, INPUTS) / 'part').read_text() == 'kept'
  with cell.claimed() as claim:  # of other inputs it is of no use
    assert not (cell.begin(claim, {'other': 1}) / 'part').exists()


CLAIM = """
import sys, time
from ralm_jax.jobs import cells
cell = cells.Cell(sys.argv[1])
with cell.claimed() as claim:
  work = cell.begin(claim, {'x': 1})
  (work / 'part').write_text('begun')
  print(claim.number, flush=True)
  time.sleep(600)
"""


def test_a_killed_worker_is_recognised_at_once(tmp_path):
  cell = Cell(tmp_path / 'cell')
  worker = subprocess.Popen(
    [sys.executable, '-c', CLAIM, str(cell.folder)], stdout=subprocess.PIPE, cwd=tiny.ROOT
  )
  try:
    assert worker.stdout.readline() == b'1\n'
    with cell.claimed() as claim:
      assert claim is None
    worker.send_signal(signal.SIGKILL)
    worker.wait()
  finally:
    worker.kill()
    worker.stdout.close()
  with cell.claimed() as claim:
    assert claim.number == 2
    work = cell.begin(claim, {'x': 1})
    assert (work / 'part').read_text() == 'begun'
    cell.publish(claim, work, {'x': 1}, {})
  assert names(cell) == ['manifest.json', 'part']


def claim_of_another_host(cell, silent_s=0.0, token='another'):
  cell.folder.mkdir(parents=True, exist_ok=True)
  path = cell.folder / 'claim-1'
  path.write_text(json.dumps({'host': 'other', 'pid': 1, 'machine': 'other', 'token': token}))
  time = path.stat().st_mtime - silent_s
  os.utime(path, (time, time))


def test_a_worker_of_another_host_counts_by_its_heartbeat(tmp_path):
  cell = Cell(tmp_path)
  claim_of_another_host(cell, silent_s=50)
  with cell.claimed(timeout_s=60) as claim:
    assert claim is None
  with cell.claimed(timeout_s=40) as claim:
    assert claim.number == 2
    with cell.claimed(timeout_s=40) as other:
      assert other is None


def test_a_slow_worker_loses_its_cell(tmp_path):
  """It was stopped for long; what it then has must not spoil the other's."""
  cell = Cell(tmp_path)
  with cell.claimed() as slow:
    slow_work = cell.begin(slow, INPUTS)
    (slow_work / cells.PREDICTIONS).write_text('slow')
    # As if it were elsewhere.
    claim_of_another_host(cell, silent_s=1000, token=slow.token)
    with cell.claimed() as claim:
      work = cell.begin(claim, INPUTS)
      assert (work / cells.PREDICTIONS).read_text() == 'slow'
      (work / cells.PREDICTIONS).write_text('quick')
      with pytest.raises(LostClaimError):
        cell.publish(slow, slow_work, INPUTS, {})
      cell.publish(claim, work, INPUTS, {})
  assert (tmp_path / cells.PREDICTIONS).read_text() == 'quick'
  assert names(cell) == ['manifest.json', 'predictions.jsonl']


def test_a_worker_that_wakes_up_after_all_are_gone(tmp_path):
  """Numbers begin at 1 again; the new claim 1 is not its own."""
  cell = Cell(tmp_path)
  slow = Claim(tmp_path, cell._take('slow', 10), 'slow', 1000)
  slow_work = cell.begin(slow, INPUTS)
  claim_of_another_host(cell, silent_s=1000, token='slow')
  with cell.claimed():
    pass  # takes over and leaves
  with cell.claimed() as claim:
    assert claim.number == slow.number == 1
    work = cell.begin(claim, {'other': 1})
    assert work != slow_work
    with pytest.raises(LostClaimError):
      slow.check()
    with pytest.raises(LostClaimError):
      cell.publish(slow, slow_work, INPUTS, {})
    slow.release()
    claim.check()
    cell.publish(claim, work, {'other': 1}, {})
  assert names(cell) == ['manifest.json']


def test_a_beat_is_of_our_own_claim_alone(tmp_path):
  cell = Cell(tmp_path)
  with cell.claimed(timeout_s=0.04) as claim:
    claim_of_another_host(cell, silent_s=1000)
    claim._thread.join(10)
    assert not claim._thread.is_alive()
  assert (tmp_path / 'claim-1').exists()


def test_writers_of_one_file_have_a_file_each(tmp_path):
  """Threads, and containers that share a folder, share their ids."""
  path = tmp_path / 'x'
  with atomic_files.replacing(path) as one, atomic_files.replacing(path) as other:
    one.write_text('1')
    other.write_text('2')
  assert path.read_text() == '1' and names(Cell(tmp_path)) == ['x']
  with atomic_files.replacing(path) as aside:
    aside.write_text('3')
    atomic_files.remove_unfinished(tmp_path)
    assert not aside.exists()
    aside.write_text('4')
  assert path.read_text() == '4'


def test_heartbeat(tmp_path):
  cell = Cell(tmp_path)
  touched = threading.Event()
  with cell.claimed(timeout_s=0.04):
    path = tmp_path / 'claim-1'
    os.utime(path, (1, 1))
    while path.stat().st_mtime == 1:
      assert not touched.wait(0.01)


RACE = """
import pathlib, sys
from ralm_jax.jobs import cells
root, me = pathlib.Path(sys.argv[1]), sys.argv[2]
print('ready', flush=True)
sys.stdin.readline()
for i in range(40):
  cell = cells.Cell(root / str(i))
  with cell.claimed() as claim:
    if claim is not None and cell.why_undone({'i': i}) is not None:
      work = cell.begin(claim, {'i': i})
      with open(root / f'done-{i}', 'a') as file:
        file.write(me)
      cell.publish(claim, work, {'i': i}, {})
"""


def test_workers_that_race(tmp_path):
  """Every cell once, also those that a dead worker had claimed."""
  for i in range(0, 40, 2):
    claim_of_another_host(Cell(tmp_path / str(i)), silent_s=10_000)
  workers = [
    subprocess.Popen(
      [sys.executable, '-c', RACE, str(tmp_path), str(i)],
      cwd=tiny.ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
    )
    for i in range(3)
  ]
  for worker in workers:
    assert worker.stdout.readline() == b'ready\n'
  for worker in workers:
    worker.stdin.write(b'go\n')
    worker.stdin.flush()
  for worker in workers:
    worker.communicate(timeout=60)
    assert worker.returncode == 0
  done = [pathlib.Path(tmp_path / f'done-{i}').read_text() for i in range(40)]
  assert [len(text) for text in done] == [1] * 40
  assert not list(tmp_path.rglob('claim-*')) + list(tmp_path.rglob('work-*'))


def test_names_as_folders():
  assert cells.file_name('nq/dev (64 shots)') == 'nq_dev_64_shots'
  assert cells.file_name('host:80') == 'host_80'
  assert '/' not in cells.file_name('../../x')
  with pytest.raises(ValueError, match='choose another'):
    cells.file_name('..')
