"""Searching while the index changes, and in several processes at once."""

from concurrent import futures
import dataclasses
import threading
import types

from jax.experimental import multihost_utils
import numpy as np
import pytest

from ralm_jax.data import dates
from ralm_jax.data.corpus import passage_store
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.corpus.passages import Passage
from ralm_jax.retrieval import connect, retriever as retriever_lib
from ralm_jax.retrieval.index_source import IndexSource
from tests.retrieval import filter_world

SearchFilter = retriever_lib.SearchFilter


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  return filter_world.make_world(tmp_path_factory.mktemp('filters'))


@pytest.fixture(scope='module')
def client(world):
  with connect.connect(IndexSource(world.folder, threads=1)) as connected:
    yield connected.client


@pytest.fixture
def own(tmp_path):
  """A world and a client that a test may change."""
  world = filter_world.make_world(tmp_path)
  with connect.connect(IndexSource(world.folder, threads=1)) as connected:
    yield types.SimpleNamespace(world=world, client=connected.client, store=connected.store)


def test_one_generation_answers(own):
  """One that is swapped in between two depths must not be mixed in."""
  world = own.world
  moved = np.roll(world.embeddings, 7, axis=0)

  def swap(count: int) -> None:
    if count == 1:
      filter_world.publish(world.folder, world.store, moved)
      own.client.reload()

  recording = filter_world.Recording(own.client, swap)
  retriever = filter_world.retriever(recording, world, search_filter=SearchFilter('document'))
  excluded = world.store.rows_of(['p0'])[None]
  found = retriever.search(world.centres[:1], excluded)
  assert found.generation == 1 and len(recording.depths) > 1
  hidden = filter_world.hidden(world, 'document', excluded[0])
  filter_world.check(world, found, world.centres[:1], 5, [hidden])
  after = retriever.search(world.centres[:1], excluded)
  assert after.generation == 2
  filter_world.check(
    dataclasses.replace(world, embeddings=moved), after, world.centres[:1], 5, [hidden]
  )


def test_a_generation_that_goes_away(own):
  """The whole search starts again in the one that took its place."""
  world = own.world
  gone = []

  def remove(count: int) -> None:
    if count == 1 and not gone:
      gone.append(1)
      raise LookupError('the index holds no generation 1')

  recording = filter_world.Recording(own.client, remove)
  retriever = filter_world.retriever(recording, world, search_filter=SearchFilter('document'))
  excluded = world.store.rows_of(['p0'])[None]
  found = retriever.search(world.centres[:1], excluded)
  filter_world.check(
    world, found, world.centres[:1], 5, [filter_world.hidden(world, 'document', excluded[0])]
  )
  assert gone and recording.depths[:3] == [10, 10, 20]


def test_a_pinned_generation_that_goes_away(own):
  retriever = filter_world.retriever(own.client, own.world, generation=7)
  with pytest.raises(LookupError, match='generation 7'):
    retriever.search(own.world.centres[:1])


def test_a_live_index(own):
  """Passages come, change and go while a retriever searches."""
  world, client = own.world, own.client
  retriever = filter_world.retriever(client, world, store=own.store)
  query = world.centres[:1]
  best = retriever.search(query).rows[0]
  # Replaced: another row, but the same passage for those who exclude it.
  passage = own.store.passage(int(best[0]))
  assert not passage.part_of
  (row,) = passage_store.append_passages(
    world.store.directory, [Passage(passage.id, 'elsewhere', '', 'new text')], replace=True
  )
  client.edit([row], 2 * query, delete_ids=[best[0]], metadata={'corpus_fingerprint': 'x'})
  assert row >= len(own.store)
  found = retriever.search(query)
  assert found.rows[0].tolist() == [row, *best[1:], found.rows[0, -1]][:5]
  assert own.store.passage(int(row)).text == 'new text'
  for excluded in (best[0], row):
    hidden = retriever.search(query, np.array([[excluded]])).rows[0]
    assert hidden.tolist()[:4] == best[1:].tolist()
    assert row not in hidden and best[0] not in hidden
  # Deleted: the index holds less than a deep search asks for.
  keep = np.array([*best[1:3], row])
  client.delete(np.setdiff1d(np.arange(len(own.store)), [*keep, best[0]]))
  found = retriever.search(query)
  assert found.rows[0].tolist() == [row, *best[1:3], -1, -1]
  found = retriever.search(query, np.array([[row]]))
  assert found.rows[0].tolist() == [*best[1:3], -1, -1, -1]
  # And there are more again.
  client.add(best[3:4], world.embeddings[best[3:4]])
  assert retriever.search(query).rows[0].tolist() == [row, *best[1:4], -1]
  assert retriever.search(query, np.array([[row]])).rows[0].tolist() == [*best[1:4], -1, -1]


def test_an_index_ahead_of_its_corpus(own):
  retriever = filter_world.retriever(own.client, own.world)
  own.client.add([len(own.store)], 2 * own.world.centres[:1])
  with pytest.raises(ValueError, match='it is a copy older than'):
    retriever.search(own.world.centres[:1])


def test_an_older_generation_that_holds_less(own):
  """A deep search of a pinned generation brings all of it."""
  world = own.world
  more = passage_store.append_passages(
    world.store.directory, [Passage(f'more{i}', '', '', 'x') for i in range(50)]
  )
  own.store.reload()
  filter_world.publish(
    world.folder, own.store, np.concatenate([world.embeddings, world.embeddings[: len(more)]])
  )
  own.client.reload()
  retriever = filter_world.retriever(
    own.client, world, store=own.store, generation=1, search_filter=SearchFilter('document')
  )
  excluded = filter_world.one_of_each_document(world)[None, 1:]
  hidden = filter_world.hidden(world, 'document', excluded[0], dates.first_day('2006'))
  found = retriever.search(
    world.centres[:1], excluded, np.array([dates.first_day('2006')], np.int32)
  )
  assert found.generation == 1
  filter_world.check(world, found, world.centres[:1], 5, [hidden])


class Together:
  """One of two processes whose searches are one program of both.

  Threads stand in for the processes; each search of one waits for the other's
  and must be as deep, with as many queries.
  """

  needs_strict_order = True

  def __init__(self, client, meeting):
    self._client, self._meeting = client, meeting
    self.asked = []

  def status(self):
    return self._client.status()

  def search(self, queries, k, **options):
    assert self._meeting((len(queries), k)) == {(len(queries), k)}
    self.asked.append((len(queries), k))
    return self._client.search(queries, k, **options)


def _two_processes(monkeypatch, work):
  """Runs `work(number, meeting)` in two threads that meet."""
  barrier, brought = threading.Barrier(2, timeout=30), {}
  numbers = {}

  def meeting(value):
    brought[numbers[threading.get_ident()]] = value
    barrier.wait()
    result = set(brought.values())
    barrier.wait()
    return result

  def run(number):
    numbers[threading.get_ident()] = number
    try:
      return work(number, meeting)
    except Exception:
      barrier.abort()
      raise

  monkeypatch.setattr(
    multihost_utils, 'process_allgather', lambda value: np.array(list(meeting(int(value))))
  )
  with futures.ThreadPoolExecutor(2) as pool:
    return [one.result() for one in [pool.submit(run, i) for i in range(2)]]


def test_processes_that_search_together(world, client, monkeypatch):
  """One is left short, the other excludes nothing: both search as often."""
  documents = filter_world.one_of_each_document(world)

  def work(number, meeting):
    together = Together(client, meeting)
    retriever = filter_world.retriever(together, world, search_filter=SearchFilter('document'))
    excluded = [documents[None, :1], None][number]
    found = retriever.search(world.centres[:1], excluded)
    filter_world.check(
      world,
      found,
      world.centres[:1],
      5,
      [filter_world.hidden(world, 'document', () if excluded is None else excluded[0])],
    )
    # And where nobody hides anything, once.
    retriever.search(world.centres[:1])
    # All of the index, where that is what it takes.
    found = retriever.search(
      world.centres[:1],
      [None, documents[None, 1:]][number],
      [None, np.array([dates.first_day('2006')], np.int32)][number],
    )
    assert np.sum(found.rows >= 0) == (5, 2)[number]
    return together.asked

  one, other = _two_processes(monkeypatch, work)
  assert one == other
  assert one[:3] == [(1, 10), (1, 20), (1, 5)] and one[-1] == (1, len(world.store))


def test_an_error_of_one_process_is_one_of_all(world, client, monkeypatch):
  """Nobody is left waiting in a search that the other does not make."""
  store = PassageStore.open(world.store.directory)
  store.has_dates = lambda: False

  def work(number, meeting):
    retriever = filter_world.retriever(Together(client, meeting), world, store=store)
    bounds = np.full(1, [dates.first_day('2010'), retriever_lib.NO_DATE_BOUND][number], np.int32)
    with pytest.raises((ValueError, RuntimeError)) as raised:
      retriever.search(world.centres[:1], None, bounds)
    return str(raised.value)

  messages = _two_processes(monkeypatch, work)
  assert 'questions have dates' in messages[0] and 'another process' in messages[1]
