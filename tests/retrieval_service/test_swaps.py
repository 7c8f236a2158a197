"""An answer comes from one generation whole, however often they are swapped."""

import collections
import threading

import numpy as np
import pytest

from retrieval_service import generation_writer
from retrieval_service.client import RetrievalClient
from retrieval_service.generations import GenerationStore
from retrieval_service.local import LocalRetrievalServer
from retrieval_service.options import IndexOptions
from retrieval_service.server import RetrievalServer

DIM = 8
SWAPS = 100


def content(number):
  """Ids and vectors in which a generation's number can be read.

  Passage i of generation n has id 1000 n + i and the vector n e_i.
  """
  ids = 1000 * number + np.arange(DIM)
  return ids, (number * np.eye(DIM)).astype(np.float16)


def flaw(result, queries):
  """What shows that an answer is not of the generation that it names."""
  number = result.generation
  ids, vectors = content(number)
  axes = queries.argmax(axis=1)
  if not np.array_equal(result.ids[:, 0], ids[axes]):
    return 'the best id'
  if not (result.ids // 1000 == number).all():
    return 'another id'
  if not (result.scores[:, 0] == number).all() or result.scores[:, 1:].any():
    return 'a score'
  if result.embeddings is not None and not np.array_equal(
    result.embeddings, vectors[result.ids % 1000]
  ):
    return 'an embedding'
  return None


@pytest.mark.slow
def test_an_answer_is_of_one_generation_through_100_swaps(tmp_path):
  flaws, stop = [], threading.Event()
  seen = collections.defaultdict(set)

  def search(thread, address, k, batch, pick):
    rng = np.random.default_rng(thread)
    with RetrievalClient(address) as client:
      former = 0
      while not stop.is_set():
        queries = np.eye(DIM, dtype=np.float32)[rng.integers(0, DIM, batch)]
        number = pick(former)
        try:
          result = client.search(queries, k, return_embeddings=thread % 2 == 0, generation=number)
        except LookupError:  # two generations back, it may have been removed
          continue
        wrong = flaw(result, queries)
        if number is None and result.generation < former:
          wrong = 'an earlier generation than before'
        if number is not None and result.generation != number:
          wrong = 'another generation than asked for'
        if wrong:
          flaws.append((thread, wrong, number, former, result))
        former = result.generation
        seen[thread].add(former)

  def current(former):
    return None

  def same(former):
    """Stays with a generation while it exists, then takes the current one."""
    return former if former and former % 3 else None

  with (
    LocalRetrievalServer(tmp_path, threads=1) as server,
    RetrievalClient(server.address) as client,
  ):
    client.build([content(1)], dim=DIM)
    threads = [
      threading.Thread(target=search, args=(n, server.address, *arguments))
      for n, arguments in enumerate(
        ((1, 1, current), (DIM, 4, current), (3, 64, current), (DIM, 2, same))
      )
    ]
    for thread in threads:
      thread.start()
    try:
      for number in range(2, SWAPS + 2):
        assert client.build([content(number)], dim=DIM) == number
    finally:
      stop.set()
      for thread in threads:
        thread.join()
  assert not flaws
  assert sum(len(seen[thread]) for thread in range(3)) > SWAPS


def test_edits_hold_through_swaps(tmp_path):
  """Edits and swaps race; each edit is there from its acknowledgement on."""
  stop, wrong = threading.Event(), []
  query = np.full((1, DIM), 1, np.float32)
  done = []

  def edit(address):
    with RetrievalClient(address) as client:
      number = 0
      while not stop.is_set():
        number += 1
        # Passage 5 is replaced and one is added, the one before is deleted.
        client.edit(
          [5, 10_000 + number],
          [(1000 + number) * query[0]] * 2,
          delete_ids=[9999 + number] if number > 1 else [6],
        )
        for generation in (None, client.status().generation):
          result = client.search(query, 3, generation=generation)
          if (
            result.ids[0, :2].tolist() != [5, 10_000 + number]
            or result.ids[0, 2] > 7
            or result.edits != number
            or result.scores[0, 0] != DIM * (1000 + number)
          ):
            wrong.append((number, result))
        done.append(number)

  with (
    LocalRetrievalServer(tmp_path, threads=1) as server,
    RetrievalClient(server.address) as client,
  ):
    _, vectors = content(1)
    client.build([(None, vectors)], dim=DIM)
    editor = threading.Thread(target=edit, args=(server.address,))
    editor.start()
    try:
      for number in range(2, 42):
        before = len(done)
        if number % 4:
          client.build([(None, vectors)], dim=DIM)
        else:
          client.compact()
        while len(done) <= before and editor.is_alive():
          stop.wait(0.001)
    finally:
      stop.set()
      editor.join()
  assert not wrong and len(done) >= 40
  view = GenerationStore(tmp_path).open_live()
  assert view.number == 41 and view.edits == done[-1] and view.count == DIM


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


@pytest.mark.parametrize('what', ['a reload', 'a search by number'])
def test_reading_a_generation_stops_nobody_else(tmp_path, slow_opening, what):
  armed, opening, proceed = slow_opening
  store = GenerationStore(tmp_path)
  for number in (1, 2, 3):
    with generation_writer.begin(store, IndexOptions(), DIM) as writer:
      writer.append(*content(number))
      writer.commit()
  store.make_current(2)
  queries = np.eye(DIM, dtype=np.float32)[:1]
  with (
    RetrievalServer(tmp_path, 'localhost:0') as server,
    RetrievalClient(server.address, timeout_s=20, retry_for_s=0) as client,
  ):
    assert client.search(queries, 1, generation=1).generation == 1
    store.make_current(3)
    armed.set()
    answers = []
    work = {
      'a reload': client.reload,
      'a search by number': lambda: client.search(queries, 1, generation=3).generation,
    }[what]
    thread = threading.Thread(target=lambda: answers.append(work()))
    thread.start()
    assert opening.wait(20)
    # Each of these would wait, and fail at its deadline.
    assert client.search(queries, 1).generation == 2
    assert client.search(queries, 1, generation=1).generation == 1
    assert client.status().generation == 2
    client.delete([2007])
    assert not proceed.is_set() and not answers
    proceed.set()
    thread.join()
    assert answers == [3]
    assert client.search(queries, 1, generation=3).edits == 1
