"""Another index in place of the served one: whole, checked, and named."""

import collections
import gc
import os
import shutil
import stat
import threading
import weakref

import numpy as np
import pytest

from retrieval_service import generation_writer
from retrieval_service.client import IndexSwappedError, RetrievalClient
from retrieval_service.edits import Edit
from retrieval_service.generations import GenerationStore
from retrieval_service.live import LiveView
from retrieval_service.live_index import LiveIndex
from retrieval_service.local import LocalRetrievalServer
from retrieval_service.options import IndexOptions, ServingOptions
from retrieval_service.server import RetrievalServer
from retrieval_service.serving import Serving

DIM = 8
EYE = np.eye(DIM, dtype=np.float32)
_SETTINGS = ServingOptions(threads=1)


def publish(folder, mark, dim=DIM):
  """One more generation, of ids mark * 100 + i and vectors mark * e_i."""
  with generation_writer.begin(
    GenerationStore(folder), IndexOptions(), dim, {'mark': mark}
  ) as writer:
    writer.append(100 * mark + np.arange(dim), mark * np.eye(dim))
    writer.commit()
  return folder


@pytest.fixture
def one(tmp_path):
  return publish(tmp_path / 'one', 1)


@pytest.fixture
def two(tmp_path):
  return publish(tmp_path / 'two', 2)


@pytest.fixture
def served(one):
  """A client of a real process that serves `one`."""
  with (
    LocalRetrievalServer(one, threads=1) as server,
    RetrievalClient(server.address, retry_for_s=30) as client,
  ):
    yield client


def best(client, **options):
  result = client.search(EYE[:1], 1, **options)
  return int(result.ids[0, 0]), result.index_id, result.generation


def test_every_answer_names_its_index(served, one, two):
  ids = [GenerationStore(folder).index_id() for folder in (one, two)]
  assert len(set(ids)) == 2
  status = served.status()
  assert status.index_id == ids[0] and status.generation == 1
  assert best(served) == (100, ids[0], 1)
  done = served.swap(two)
  assert (done.index_id, done.generation, done.count) == (ids[1], 1, DIM)
  assert (done.former_index_id, done.former_directory) == (ids[0], str(one))
  # The same generation number, of another index.
  assert best(served) == (200, ids[1], 1)
  assert best(served, generation=1) == (200, ids[1], 1)
  status = served.status()
  assert status.index_id == ids[1] and status.index_directory == str(two)
  assert status.metadata == {'mark': 2} and status.next_id == 208
  served.swap(one)
  assert best(served) == (100, ids[0], 1)


def test_a_swap_to_what_is_served_reloads_it(served, one, two):
  publish(one, 3)
  assert best(served)[0] == 100
  done = served.swap(one)
  assert done.generation == 2 and done.former_index_id == done.index_id
  assert best(served)[0] == 300
  link = two.parent / 'link'
  link.symlink_to(one)
  served.swap(link)
  assert served.status().index_directory == str(one)


def _build_anew(folder, mark, edit=True):
  shutil.rmtree(folder)
  publish(folder, mark)
  if edit:  # so that there is a log that the former index could follow
    index = LiveIndex(GenerationStore(folder))
    index.edit(Edit(np.array([900 + mark]), mark * EYE[:1], np.zeros(0, np.int64)))


def test_an_index_built_anew_in_the_same_place(served, one, two):
  former = served.status().index_id
  served.delete([107])
  _build_anew(one, 3)
  store = GenerationStore(one)
  assert store.index_id() != former
  # The former one goes on, untouched by the other's edits, and changes nothing.
  for _ in range(2):
    assert best(served) == (100, former, 1)
    result = served.search(EYE, DIM - 1)
    assert set(result.ids.ravel().tolist()) == set(range(100, 107))
  for call in (
    served.reload,
    lambda: served.edit([5], EYE[:1]),
    lambda: served.delete([100]),
    lambda: served.pin('run', [1]),
    lambda: served.build([(None, EYE)], dim=DIM),
    served.compact,
  ):
    with pytest.raises(ValueError, match='holds another index now .*ralm swap'):
      call()
  assert store.numbers() == [1] and not store.pinned()
  assert store.edit_log().last == 1
  done = served.swap(one)
  assert done.former_index_id == former and done.index_id == store.index_id()
  assert done.count == DIM + 1 and not done.pinned_by
  assert best(served)[1:] == (done.index_id, 1)
  served.delete([300])
  assert store.edit_log().last == 2


def test_an_older_generation_of_another_index_is_not_taken_for_ours(served, one):
  for _ in range(3):  # the first one is then no longer open
    served.build([(None, EYE)], dim=DIM)
  _build_anew(one, 3, edit=False)
  with pytest.raises(ValueError, match='holds another index now'):
    served.search(EYE, 1, generation=1)


def test_a_link_that_was_turned(one, two, tmp_path):
  link = tmp_path / 'link'
  link.symlink_to(one)
  current = Serving(link, _SETTINGS)
  begun = current.served()
  link.unlink()
  link.symlink_to(two)
  current.swap(str(link))
  assert current.served().index.view().search(EYE[:1], 1).ids.tolist() == [[200]]
  # What was opened by the link is not what now lies behind it.
  current.swap(str(one))
  assert current.served() is not begun
  assert current.served().index.view().search(EYE[:1], 1).ids.tolist() == [[100]]


def test_a_relative_path_is_refused(served, two):
  with pytest.raises(ValueError, match='must be an absolute path, found .*two'):
    served.swap(os.path.relpath(two))


def test_a_build_that_two_swaps_come_between_is_served(one, two):
  started, proceed = threading.Event(), threading.Event()

  def chunks():
    yield None, 3 * EYE
    started.set()
    assert proceed.wait(30)
    yield None, 4 * EYE

  current = Serving(one, _SETTINGS)
  building = current.served().builder
  thread = threading.Thread(
    target=lambda served: served.builder.build(chunks(), DIM, IndexOptions()),
    args=(current.served(),),
  )
  thread.start()
  try:
    assert started.wait(30)
    current.swap(str(two))
    current.swap(str(one))
    assert current.served().builder is building
    assert building.building
  finally:
    proceed.set()
    thread.join()
  view = current.served().index.view()
  assert (view.number, view.count) == (2, 2 * DIM)
  # Nobody holds it any more after that: it is opened afresh.
  current.swap(str(two))
  del building, view, thread
  gc.collect()
  current.swap(str(one))
  assert current.served().index.current.number == 2


def test_builds_edits_and_pins_go_to_what_is_served(served, one, two):
  served.swap(two)
  served.pin('run', [1])
  served.delete([200])
  assert served.build([(None, 7 * EYE)], dim=DIM) == 2
  assert GenerationStore(one).numbers() == [1]
  assert GenerationStore(one).pinned() == {}
  assert GenerationStore(two).numbers() == [1, 2]
  assert GenerationStore(two).pinned() == {'run': [1]}
  assert GenerationStore(two).edit_log().last == 1
  assert served.swap(one).pinned_by == ('run',)
  assert served.status().edits == 0 and best(served)[0] == 100


def _cut(two):
  path = two / 'generation-00000001' / 'embeddings.float16'
  os.truncate(path, path.stat().st_size - 1)


def _change_a_byte(two):
  path = two / 'generation-00000001' / 'index.faiss'
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)


def _other_dimension(two):
  shutil.rmtree(two)
  publish(two, 2, dim=4)


@pytest.mark.parametrize(
  'breaking, message',
  [
    (shutil.rmtree, 'holds no index'),
    (lambda two: (two / 'CURRENT').unlink(), 'holds no index'),
    (lambda two: (two / 'CURRENT').write_text('nonsense'), 'CURRENT is damaged'),
    (lambda two: (two / 'INDEX_ID').write_text('nonsense'), 'INDEX_ID is damaged'),
    (lambda two: (two / 'edits.log').write_text('nonsense'), 'no log of edits'),
    (_cut, 'embeddings.float16 has'),
    (_change_a_byte, 'index.faiss has checksum'),
    (_other_dimension, 'vectors of dimension 4, and .* of dimension 8'),
  ],
)
def test_what_cannot_be_served_is_refused(served, one, two, breaking, message):
  before = best(served)
  breaking(two)
  with pytest.raises(ValueError, match=message):
    served.swap(two)
  assert best(served) == before
  assert served.status().index_directory == str(one)


def test_a_folder_that_is_no_index_is_left_alone(served, tmp_path):
  """Not even tidied up, as an index would be."""
  other = tmp_path / 'home'
  (other / '.tmp-precious').mkdir(parents=True)
  with pytest.raises(ValueError, match='holds no index'):
    served.swap(other)
  assert os.listdir(other) == ['.tmp-precious']


def test_a_copy_is_refused_until_it_is_another_index(served, one, tmp_path):
  copy = tmp_path / 'copy'
  shutil.copytree(one, copy)
  publish(copy, 5)
  assert GenerationStore(copy).index_id() == served.status().index_id
  with pytest.raises(ValueError, match='is a copy of .* remove INDEX_ID'):
    served.swap(copy)
  (copy / 'INDEX_ID').unlink()
  done = served.swap(copy)
  assert done.index_id not in ('', done.former_index_id)
  assert best(served)[0] == 500


def test_a_started_process_serves_its_own_index(one, two):
  """A swap is no change of any folder; a restart ends it."""
  with (
    LocalRetrievalServer(one, threads=1) as server,
    RetrievalClient(server.address, retry_for_s=30) as client,
  ):
    before = best(client)
    client.swap(two)
    server.process.kill()
    server.process.wait()
    server.ensure_alive()
    assert best(client) == before


class TestIndexId:
  def test_it_outlasts_restarts_and_generations(self, one):
    first = GenerationStore(one).index_id()
    assert len(first) == 32
    publish(one, 3)
    assert GenerationStore(one).index_id() == first

  def test_an_empty_index_keeps_the_id_it_was_served_with(self, tmp_path):
    with RetrievalServer(tmp_path / 'new', 'localhost:0') as server:
      with RetrievalClient(server.address) as client:
        found = client.status().index_id
        assert found
        client.build([(None, EYE)], dim=DIM)
        assert best(client)[1] == found
    assert GenerationStore(tmp_path / 'new').index_id() == found

  def test_a_folder_that_does_not_exist_has_none(self, tmp_path):
    assert GenerationStore(tmp_path / 'none').index_id() == ''
    assert not (tmp_path / 'none').exists()

  def test_an_older_index_is_given_one(self, one):
    (one / 'INDEX_ID').unlink()
    found = GenerationStore(one).index_id()
    assert found and (one / 'INDEX_ID').read_text() == found + '\n'

  def test_an_older_index_that_can_only_be_read(self, one, tmp_path, monkeypatch, caplog):
    (one / 'INDEX_ID').unlink()
    shutil.copytree(one, tmp_path / 'copy')

    def refuse(self):
      raise PermissionError('read-only')

    monkeypatch.setattr(GenerationStore, 'lock', refuse)
    found = GenerationStore(one).index_id()
    assert len(found) == 32 and not (one / 'INDEX_ID').exists()
    assert f'{one} has no INDEX_ID' in caplog.text
    assert 'with write access' in caplog.text
    assert GenerationStore(tmp_path / 'copy').index_id() == found

  def test_others_may_read_it(self, one):
    assert stat.S_IMODE((one / 'INDEX_ID').stat().st_mode) == 0o644


class TestStayWith:
  """A client of one index is never answered by, nor changes, another."""

  @pytest.mark.parametrize(
    'call',
    [
      lambda client: client.search(EYE, 1),
      lambda client: client.search(EYE, 1, generation=1),
      lambda client: client.build([(None, EYE)], dim=DIM),
      lambda client: client.compact(),
      lambda client: client.edit([5], EYE[:1]),
      lambda client: client.add([5], EYE[:1]),
      lambda client: client.delete([200]),
      lambda client: client.missing([200]),
      lambda client: client.pin('run', [1]),
      lambda client: client.reload(),
      lambda client: client.status(),
      lambda client: client.wait_until_ready(5),
      lambda client: client.swap('/'),
    ],
  )
  def test_any_call_is_one_error(self, served, one, two, call):
    with RetrievalClient(served.address, retry_for_s=0) as bound:
      bound.stay_with(bound.status().index_id)
      assert best(bound)[0] == 100
      served.swap(two)
      with pytest.raises(IndexSwappedError, match='ralm swap') as caught:
        call(bound)
      assert GenerationStore(one).index_id() in str(caught.value)
      assert str(two) in str(caught.value)
      store = GenerationStore(two)
      assert store.numbers() == [1] and not store.pinned()
      assert store.edit_log().last == 0
      served.swap(one)
      assert best(bound)[0] == 100 and bound.status().count == DIM


def test_a_search_for_one_index_alone(served, two):
  first = served.status().index_id
  assert best(served, index_id=first)[0] == 100
  second = served.swap(two).index_id
  with pytest.raises(IndexSwappedError):
    best(served, index_id=first)
  assert best(served, index_id=second)[0] == 200


def _flaw(result, marks):
  """What shows that an answer is not of the one index that it names."""
  mark = marks.get(result.index_id)
  if mark is None:
    return 'an unknown index'
  if not (result.ids // 100 == mark).all():
    return 'an id of another'
  if not (result.scores[:, 0] == mark).all():
    return 'a score of another'
  expected = mark * np.eye(DIM)[result.ids % 100]
  if not np.array_equal(result.embeddings, expected):
    return 'an embedding of another'
  return None


def test_an_answer_is_of_one_index_through_many_swaps(served, one, two, monkeypatch):
  # Large batches are cut: the parts of one come from one index, too.
  monkeypatch.setattr('retrieval_service.protocol.SEARCH_BYTES', 1000)
  marks = {GenerationStore(one).index_id(): 1, GenerationStore(two).index_id(): 2}
  flaws, stop = [], threading.Event()
  seen = collections.Counter()

  def search(seed, batch, only):
    rng = np.random.default_rng(seed)
    with RetrievalClient(served.address) as client:
      while not stop.is_set():
        queries = EYE[rng.integers(0, DIM, batch)]
        wanted = client.status().index_id if only else ''
        try:
          result = client.search(queries, 3, return_embeddings=True, index_id=wanted)
        except IndexSwappedError:
          assert only
          continue
        if wanted and result.index_id != wanted:
          flaws.append('another index than asked for')
        wrong = _flaw(result, marks)
        if wrong:
          flaws.append(wrong)
        seen[seed, result.index_id] += 1

  threads = [
    threading.Thread(target=search, args=arguments)
    for arguments in ((0, 1, False), (1, 40, False), (2, 40, True))
  ]
  for thread in threads:
    thread.start()
  try:
    for number in range(60):
      before = sum(seen.values())
      done = served.swap((two, one)[number % 2])
      assert marks[done.index_id] == 2 - number % 2
      while sum(seen.values()) < before + 3 and any(thread.is_alive() for thread in threads):
        stop.wait(0.001)
  finally:
    stop.set()
    for thread in threads:
      thread.join()
  assert not flaws
  assert {(seed, mark) for seed in range(3) for mark in marks} <= set(seen)


@pytest.fixture
def slow_opening(monkeypatch):
  """Once armed, opening a generation takes until an event."""
  armed, opening, proceed = (threading.Event() for _ in range(3))
  original = GenerationStore.open

  def slow(self, number, **options):
    generation = original(self, number, **options)
    if armed.is_set():
      opening.set()
      assert proceed.wait(30)
    return generation

  monkeypatch.setattr(GenerationStore, 'open', slow)
  return armed, opening, proceed


def test_a_swap_stops_nobody(one, two, slow_opening):
  armed, opening, proceed = slow_opening
  with (
    RetrievalServer(one, 'localhost:0') as server,
    RetrievalClient(server.address, timeout_s=20, retry_for_s=0) as client,
  ):
    armed.set()
    done = []
    thread = threading.Thread(target=lambda: done.append(client.swap(two)))
    thread.start()
    assert opening.wait(20)
    # Each of these would wait, and fail at its deadline.
    assert best(client)[0] == 100
    assert client.status().index_directory == str(one)
    client.delete([100])
    assert best(client)[0] == 101 and not done
    proceed.set()
    thread.join()
    assert done and best(client)[0] == 200


@pytest.mark.parametrize('when', ['taken', 'searched'])
def test_a_search_that_a_swap_overtakes(one, two, monkeypatch, when):
  """It ends on the former index, and says so."""
  owner, name = {'taken': (LiveIndex, 'view'), 'searched': (LiveView, 'search')}[when]
  original = getattr(owner, name)
  armed = [True]

  def overtaken(self, *arguments, **options):
    if armed:
      armed.clear()
      with RetrievalClient(server.address) as other:
        assert other.swap(two).former_directory == str(one)
        assert best(other)[0] == 200
    return original(self, *arguments, **options)

  with (
    RetrievalServer(one, 'localhost:0') as server,
    RetrievalClient(server.address, retry_for_s=0) as client,
  ):
    first = client.status().index_id
    monkeypatch.setattr(owner, name, overtaken)
    assert best(client) == (100, first, 1)
    found, second, _ = best(client)
    assert found == 200 and second != first


def test_a_call_ends_on_the_index_it_began_with(one, two):
  """And the former one is let go after the last such call."""
  current = Serving(one, _SETTINGS)
  begun = current.served()
  former = weakref.ref(begun.index.view().generation)
  current.swap(str(two))
  result = begun.index.view().search(EYE[:1], 1)
  assert result.ids.tolist() == [[100]]
  assert current.served().index.view().search(EYE[:1], 1).ids.tolist() == [[200]]
  del begun, result
  gc.collect()
  assert former() is None


def test_an_empty_index_may_give_way_to_any(tmp_path, two):
  current = Serving(tmp_path / 'empty', _SETTINGS)
  current.swap(str(two))
  assert current.served().index.current.count == DIM
