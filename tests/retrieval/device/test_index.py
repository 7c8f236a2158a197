"""Generations, edits, threads and processes of an index on the devices."""

import os
import pathlib
import subprocess
import sys
import threading

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from ralm_jax.retrieval.device.index import DeviceIndex
from ralm_jax.retrieval.device.search import DeviceOptions
from ralm_jax.retrieval.device.view import DeviceView
from retrieval_service import generation_writer
from retrieval_service.client import RetrievalClient
from retrieval_service.generations import GenerationStore
from retrieval_service.local import LocalRetrievalServer
from retrieval_service.options import IndexOptions
from tests import tiny
from tests.retrieval.device.brute_force import DIM, MESHES, as_kept, build, exact, queries, vectors

WORKER = pathlib.Path(__file__).with_name('index_worker.py')


@pytest.fixture(params=MESHES)
def mesh(request):
  return MESHES[request.param]


def test_one_program_serves_a_refresh_and_batches_alike(tmp_path):
  with build(tmp_path, vectors(100)) as index:
    for batch, k in ((8, 9), (5, 16), (8, 16)):
      index.search(queries(batch), k)
    index.build([(None, vectors(100, 1))], dim=DIM)
    index.search(queries(8), 10)
    index.add(None, vectors(3, 2))
    index.delete([4])
    index.search(queries(8), 10)
    assert index.device_search.search.cache_size() == 1
    index.search(queries(9), 10)
    assert index.device_search.search.cache_size() == 2


def test_agrees_with_flat_search_in_a_process(tmp_path):
  """Both serve one folder, written by either, edits included."""
  stored, wanted = vectors(300), queries(20)
  with DeviceIndex(tmp_path, MESHES['4x2'], DeviceOptions(dtype='float32')) as index:
    index.build([(np.arange(0, 600, 2), stored)], dim=DIM)
    with LocalRetrievalServer(tmp_path, threads=1) as server:
      with RetrievalClient(server.address) as client:

        def compare():
          ours = index.search(wanted, 50, return_embeddings=True)
          theirs = client.search(wanted, 50, return_embeddings=True)
          np.testing.assert_array_equal(ours.ids, theirs.ids)
          np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-5)
          np.testing.assert_array_equal(ours.embeddings, theirs.embeddings)
          assert ours.generation == theirs.generation
          assert ours.edits == theirs.edits
          return ours

        compare()
        client.edit([7, 8], vectors(2, 3), delete_ids=[0, 2])
        index.reload()
        assert compare().edits == 1
        client.build([(None, vectors(200, 4))], dim=DIM)
        index.reload()
        assert compare().generation == 2
        index.add(None, vectors(3, 5))
        client.reload()
        compare()
        index.compact()
        client.reload()
        assert compare().generation == 3
        mine, its = index.status(), client.status()
  for name in (
    'generation',
    'count',
    'dim',
    'options',
    'factory',
    'metadata',
    'generations',
    'index_directory',
    'edits',
    'next_id',
  ):
    assert getattr(mine, name) == getattr(its, name), name


def test_errors_are_those_of_the_process(tmp_path):
  index = build(tmp_path, vectors(30))
  cases = [
    (queries(), 31, {}),
    (queries(), 0, {}),
    (queries(dim=8), 3, {}),
    (queries()[0], 3, {}),
    (queries() * np.nan, 3, {}),
    (queries(), 3, {'generation': 7}),
  ]
  with LocalRetrievalServer(tmp_path, threads=1) as server:
    with RetrievalClient(server.address) as client:
      for wanted, k, options in cases:
        with pytest.raises((ValueError, LookupError)) as theirs:
          client.search(wanted, k, **options)
        with pytest.raises(theirs.type) as ours:
          index.search(wanted, k, **options)
        assert str(ours.value) == str(theirs.value)
  with pytest.raises(ValueError, match='beyond what float32 can hold'):
    index.search(np.full((1, DIM), 3e38, np.float32), 3)


def test_an_empty_folder_is_searched_once_it_is_built(tmp_path):
  with DeviceIndex(tmp_path / 'index', MESHES['8x1']) as index:
    assert index.status().generation == 0 and index.status().count == 0
    with pytest.raises(RuntimeError, match='is empty: build it first'):
      index.search(queries(), 3)
    assert index.reload() == 0
    assert index.build([(None, vectors(20))], dim=DIM) == 1
    assert index.wait_until_ready().count == 20
    assert index.search(queries(), 20).generation == 1


@pytest.mark.parametrize(
  'settings, match',
  [
    ({'dtype': 'int8'}, 'one of bfloat16, float16, float32, not .int8'),
    ({'recall_target': 0}, 'recall_target must be above 0'),
    ({'block_rows': 0}, 'block_rows must be at least 1'),
    ({'spare_rows': 0}, 'spare_rows must be at least 1'),
    ({'resident': 0}, 'resident must be at least 1'),
  ],
)
def test_settings_that_cannot_be(settings, match):
  with pytest.raises(ValueError, match=match):
    DeviceOptions(**settings)


@pytest.mark.parametrize('resident', [1, 2, None])
def test_generations_by_number(resident, tmp_path):
  """A pinned generation stays searchable, whatever becomes current."""
  contents = [vectors(60, seed) for seed in range(4)]
  with build(tmp_path, contents[0], resident=resident) as index:
    index.pin('run', [1])
    for stored in contents[1:]:
      index.build([(None, stored)], dim=DIM)
    for number in (None, 1, 4, 1, 3, None):
      found = index.search(queries(), 5, generation=number)
      assert found.generation == (number or 4)
      ids, _ = exact(as_kept(contents[found.generation - 1], 'bfloat16'), queries(), 5)
      np.testing.assert_array_equal(found.ids, ids)
      assert len(index.residency.numbers) <= (resident or 2)
      assert index.residency.numbers[-1] == found.generation
    with pytest.raises(LookupError, match='holds no generation 2'):
      index.search(queries(), 5, generation=2)
    assert index.status().generations == (1, 3, 4)


def test_one_generation_at_a_time_where_there_is_room_for_one(tmp_path, monkeypatch):
  def held() -> int:
    return sum(array.nbytes for array in jax.live_arrays() if array.dtype == jax.numpy.bfloat16)

  held_before_loading = []
  load = DeviceView.load

  def watched_load(*arguments):
    held_before_loading.append(held())
    return load(*arguments)

  monkeypatch.setattr(DeviceView, 'load', watched_load)
  start = held()
  with build(tmp_path, vectors(4000), resident=1, spare_rows=16) as index:
    index.search(queries(), 3)
    assert held() - start >= 4000 * DIM * 2
    index.build([(None, vectors(4000, 1))], dim=DIM)
    index.search(queries(), 3)
  assert held_before_loading == [start, start] and held() == start


def test_follows_what_another_program_writes(tmp_path):
  with build(tmp_path, vectors(40)) as index:
    assert index.search(queries(), 3).generation == 1
    store = GenerationStore(tmp_path)
    with generation_writer.begin(store, IndexOptions(), DIM, {'by': 'another'}) as new:
      new.append(None, vectors(50, 1))
      new.commit()
    assert index.search(queries(), 3).generation == 1
    assert index.reload() == 2
    assert index.search(queries(), 50).generation == 2
    assert index.status().metadata == {'by': 'another'}


def test_a_damaged_generation_is_refused(tmp_path):
  with build(tmp_path, vectors(40)) as index:
    store = GenerationStore(tmp_path)
    with generation_writer.begin(store, IndexOptions(), DIM) as new:
      new.append(None, vectors(40, 1))
      new.commit()
    path = tmp_path / 'generation-00000002' / 'embeddings.float16'
    path.write_bytes(path.read_bytes()[:-1] + b'x')
    with pytest.raises(ValueError, match='embeddings.float16 has checksum'):
      index.reload()
    assert index.search(queries(), 3).generation == 1
  with pytest.raises(ValueError, match='embeddings.float16 has checksum'):
    DeviceIndex(tmp_path, MESHES['8x1'])


def test_a_repeated_build_is_not_made_again(tmp_path):
  with build(tmp_path, vectors(40)) as index:
    first = index.build([(None, vectors(9))], dim=DIM, build_id='refresh 1')
    second = index.build([(None, vectors(7))], dim=DIM, build_id='refresh 2')
    chunks = iter([(None, vectors(9))])
    assert index.build(chunks, dim=DIM, build_id='refresh 1') == first == 2
    assert second == 3 and index.status().generation == 2
    assert index.search(queries(), 9).generation == 2


def test_a_failed_build_changes_nothing(tmp_path):
  def chunks():
    yield None, vectors(30)
    raise OSError('the encoder stopped')

  with build(tmp_path, vectors(40)) as index:
    with pytest.raises(OSError, match='the encoder stopped'):
      index.build(chunks(), dim=DIM)
    with pytest.raises(ValueError, match='do not fit the index'):
      index.build([(None, vectors(3, dim=8))], dim=DIM)
    assert index.search(queries(), 40).generation == 1
    assert not index.status().building


class Reference:
  """What edits come to, in a dict."""

  def __init__(self, stored: np.ndarray):
    self.held = dict(enumerate(stored))

  def check(self, index: DeviceIndex, **options) -> None:
    ids = np.array(sorted(self.held))
    kept = as_kept(np.stack([self.held[i] for i in ids]), 'bfloat16')
    found = index.search(queries(), len(ids), return_embeddings=True, **options)
    ranked, scores = exact(kept, queries(), len(ids))
    np.testing.assert_array_equal(found.ids, ids[ranked])
    np.testing.assert_allclose(found.scores, scores, rtol=2e-6, atol=2e-6)
    for row, embeddings in zip(found.ids, found.embeddings):
      np.testing.assert_array_equal(embeddings, np.stack([self.held[i] for i in row]))
    with pytest.raises(ValueError, match=f'holds {len(ids)}: lower k'):
      index.search(queries(), len(ids) + 1, **options)


def test_edits(mesh, tmp_path):
  """Random ones, against a dict; the room for added vectors runs out twice."""
  rng = np.random.default_rng(3)
  stored = vectors(70)
  reference = Reference(stored)
  with build(tmp_path, stored, mesh, spare_rows=16) as index:
    for step in range(14):
      held = np.array(sorted(reference.held))
      deleted = rng.choice(held, rng.integers(0, 6), replace=False)
      replaced = rng.choice(np.setdiff1d(held, deleted), 3, replace=False)
      put = np.concatenate([replaced, rng.integers(100, 400, 4)])
      put = np.setdiff1d(put, deleted)
      new = vectors(len(put), seed=100 + step)
      result = index.edit(put, new, delete_ids=deleted)
      for passage in deleted:
        del reference.held[passage]
      reference.held.update(zip(put, new))
      assert result.edits == step + 1 and result.generation == 1
      assert result.count == len(reference.held)
      assert index.search(queries(), 1).edits == step + 1
      if step % 3 == 0:
        reference.check(index)
    assert index.status().count == len(reference.held)
  # A restart finds them, an older generation keeps them, compacting folds them.
  with DeviceIndex(tmp_path, mesh) as index:
    reference.check(index)
    index.pin('run', [1])
    assert index.compact() == 2
    reference.check(index)
    reference.check(index, generation=1)


def test_wrong_edits_change_nothing(tmp_path):
  with build(tmp_path, vectors(20)) as index:
    with pytest.raises(LookupError, match='99'):
      index.edit([30], vectors(1), delete_ids=[3, 99])
    with pytest.raises(ValueError, match='7'):
      index.edit([7], vectors(1), delete_ids=[7])
    with pytest.raises(ValueError, match='5'):
      index.add([21, 5], vectors(2))
    assert index.search(queries(), 20).edits == 0
    index.add(None, vectors(2))
    index.delete([3, 21])
    found = index.search(queries(), 20)
    assert set(found.ids[0]) == set(range(21)) - {3}
    assert index.status().next_id == 22


def test_a_deleted_passage_stays_away_from_later_generations(tmp_path):
  stored = vectors(30)
  with build(tmp_path, stored) as index:
    store = GenerationStore(tmp_path)
    with generation_writer.begin(store, IndexOptions(), DIM) as writer:
      index.edit([40], vectors(1, 5), delete_ids=[3])
      writer.append(None, stored)
      writer.commit()
    assert index.reload() == 2
    found = index.search(queries(), 30)
    assert set(found.ids[0]) == set(range(30)) - {3} | {40}


def test_searches_during_swaps_see_one_generation(tmp_path):
  """Each generation's vectors carry its number; a mixture would show."""
  dim, count, swaps = 8, 64, 40
  base = np.zeros((count, dim), np.float16)
  base[:, 0] = np.arange(count) / count

  def content(number: int) -> np.ndarray:
    made = base.copy()
    made[:, 1] = number
    return made

  wanted = np.zeros((4, dim), np.float32)
  wanted[:, 0], wanted[:, 1] = 1, 1
  checked, failures, stop = [0, 0, 0], [], threading.Event()

  def search(thread: int) -> None:
    latest = 0
    while not stop.is_set():
      found = index.search(wanted, count, return_embeddings=True)
      numbers = np.rint(found.scores - found.embeddings[..., 0])
      if not (
        (numbers == found.generation).all()
        and (found.embeddings[..., 1] == found.generation).all()
        and (found.ids == np.arange(count)[::-1]).all()
        and found.generation >= latest
      ):
        failures.append((found.generation, numbers, found.ids))
        return
      latest = found.generation
      checked[thread] += 1

  with build(tmp_path, content(1), dtype='float32') as index:
    index.search(wanted, count)
    threads = [threading.Thread(target=search, args=(i,)) for i in range(3)]
    for thread in threads:
      thread.start()
    for number in range(2, swaps + 2):
      assert index.build([(None, content(number))], dim=dim) == number
    stop.set()
    for thread in threads:
      thread.join()
    assert not failures, failures[0]
    assert min(checked) > 0
    assert index.search(wanted, 3).generation == swaps + 1


def test_searches_during_edits_see_whole_ones(tmp_path):
  """Each edit moves ten passages at once; searches see all ten or none."""
  dim, count = 8, 40
  wanted = np.zeros((2, dim), np.float32)
  wanted[:, 0] = 1

  def content(value: float, rows: int) -> np.ndarray:
    made = np.zeros((rows, dim), np.float16)
    made[:, 0] = value
    return made

  failures, stop = [], threading.Event()

  def search() -> None:
    while not stop.is_set():
      found = index.search(wanted, 10)
      if not (found.scores == found.edits).all():
        failures.append((found.edits, found.scores))
        return

  with build(tmp_path, content(0, count), spare_rows=16) as index:
    index.search(wanted, 10)
    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
      thread.start()
    moving = np.arange(10)
    for number in range(1, 31):
      goal = (moving + 10) % 50
      index.edit(goal, content(number, 10), delete_ids=moving)
      moving = goal
    stop.set()
    for thread in threads:
      thread.join()
    assert not failures, failures[0]
    assert index.search(wanted, 10).edits == 30


def test_searches_beside_a_step_with_collectives(tmp_path):
  """As with look-ahead: a thread searches while this one dispatches steps."""
  partitioner = MESHES['4x2']
  step = partitioner.partition(lambda x: x - 1e-3 * (x @ x.T) @ x)
  sharding = NamedSharding(partitioner.mesh, PartitionSpec('data', 'model'))
  state = jax.device_put(np.eye(64, 128, dtype=np.float32), sharding)
  with build(tmp_path, vectors(100), partitioner) as index:
    expected = index.search(queries(), 10)
    answers = []
    for _ in range(50):
      thread = threading.Thread(target=lambda: answers.append(index.search(queries(), 10)))
      thread.start()
      state = step(state)
      thread.join()
    jax.block_until_ready(state)
  assert len(answers) == 50
  for answer in answers:
    np.testing.assert_array_equal(answer.ids, expected.ids)
    np.testing.assert_array_equal(answer.scores, expected.scores)


@pytest.mark.parametrize(
  'partitions',
  [
    pytest.param(1, marks=pytest.mark.slow),
    2,
    # One data partition, of two processes.
    pytest.param(8, marks=pytest.mark.slow),
  ],
)
def test_two_processes_search_together(partitions, tmp_path):
  coordinator = f'localhost:{tiny.free_port()}'
  environment = {
    **os.environ,
    'PYTHONPATH': os.pathsep.join([str(tiny.ROOT), os.environ.get('PYTHONPATH', '')]),
  }
  logs = [tmp_path / f'log_{i}' for i in range(2)]
  processes = []
  try:
    for i, log in enumerate(logs):
      with open(log, 'wb') as file:
        processes.append(
          subprocess.Popen(
            [
              sys.executable,
              str(WORKER),
              coordinator,
              str(i),
              str(partitions),
              str(tmp_path / 'index'),
            ],
            stdout=file,
            stderr=file,
            env=environment,
          )
        )
    codes = [process.wait(timeout=120) for process in processes]
  finally:
    for process in processes:
      process.kill()
      process.wait()
  assert codes == [0, 0], '\n'.join(log.read_text(errors='replace')[-3000:] for log in logs)
