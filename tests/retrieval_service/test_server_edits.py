"""Live edits through a real process, and what they and builds do together."""

import errno
import signal
import threading

import grpc
import numpy as np
import pytest

from retrieval_service import (
  edit_log,
  generation_writer,
  protocol,
  retrieval_pb2,
  retrieval_pb2_grpc,
)
from retrieval_service.client import RetrievalClient
from retrieval_service.generations import GenerationStore
from retrieval_service.options import IndexOptions
from retrieval_service.server import RetrievalServer


def test_the_whole_way(client, vectors):
  data = vectors(60)
  with pytest.raises(RuntimeError, match='is empty: build it first'):
    client.edit(None, data[:1])
  client.build([(None, data[:50])], dim=32, metadata={'a': 1, 'b': 1})
  assert (client.status().edits, client.status().next_id) == (0, 50)
  assert client.search(data[:1], 1).edits == 0

  result = client.edit([7, 900], data[50:52], delete_ids=[3, 4], metadata={'b': 2})
  assert (result.generation, result.edits, result.count) == (1, 1, 49)
  assert result.ids.tolist() == [7, 900]
  status = client.status()
  assert status.metadata == {'a': 1, 'b': 2}
  assert (status.generation, status.count, status.edits, status.next_id) == (1, 49, 1, 901)
  found = client.search(data[50:52], 1, return_embeddings=True)
  assert found.ids.tolist() == [[7], [900]] and found.edits == 1
  np.testing.assert_array_equal(found.embeddings[:, 0], data[50:52].astype(np.float16))
  everything = client.search(data[:4], 49)
  assert not np.isin(everything.ids, [3, 4]).any()
  with pytest.raises(ValueError, match='k=50 .* holds 49'):
    client.search(data[:1], 50)

  assert client.compact() == 2
  assert client.search(data[50:52], 1).ids.tolist() == [[7], [900]]
  assert client.status().count == 49 and client.status().edits == 1
  assert client.status().metadata == {'a': 1, 'b': 2}
  former = client.search(data[:4], 49, generation=1)
  np.testing.assert_array_equal(former.ids, everything.ids)


def test_adding_and_deleting(client, vectors):
  data = vectors(60)
  client.build([(None, data[:50])], dim=32)
  assert client.add(None, data[50:52]).ids.tolist() == [50, 51]
  assert client.delete([50]).count == 51
  assert client.delete(np.array([51, 0], np.uint16)).ids.tolist() == []
  assert client.edit(metadata={'a': 1}).edits == 4
  for call, error, message in (
    (lambda: client.add([5], data[:1]), ValueError, 'id 5 exists already'),
    (lambda: client.add(None, np.zeros((0, 32))), ValueError, 'no vectors to'),
    (lambda: client.edit(), ValueError, 'no vectors to put or delete'),
    (lambda: client.edit([5]), ValueError, '1 ids came without embeddings'),
    (lambda: client.edit(None, data[0]), ValueError, r'\[rows, dim\]'),
    (lambda: client.edit([5.5], data[:1]), ValueError, 'must be integers'),
    (lambda: client.edit([1, 2], data[:1]), ValueError, r'ids of shape \[2\]'),
    (lambda: client.edit(None, data[:1, :31]), ValueError, 'dimension 31 and'),
    (lambda: client.edit([1], data[:1], delete_ids=[1]), ValueError, 'both'),
    (lambda: client.edit(metadata={'a': object()}), ValueError, 'be JSON'),
    (lambda: client.delete([7, 999]), LookupError, 'of id 999'),
    (lambda: client.delete([[7]]), ValueError, r'must be \[n\]'),
    (lambda: client.delete([0]), LookupError, 'of id 0'),
  ):
    with pytest.raises(error, match=message):
      call()
  assert client.status().edits == 4 and client.status().count == 49


def test_large_edits_travel_in_parts_and_are_one(client, vectors, monkeypatch):
  monkeypatch.setattr(protocol, 'CHUNK_BYTES', 1000)
  data = vectors(400)
  client.build([(None, data[:100])], dim=32)
  assert client.edit(None, data[100:]).edits == 1
  assert client.edit(np.arange(400) + 50, data).count == 450
  result = client.search(data, 1)
  assert (
    result.ids.ravel().tolist() == [i if i < 50 else i + 50 for i in range(400)]
    or result.edits == 2
  )


def test_an_edit_is_there_after_a_kill(client, server, vectors):
  """Killed at once after each acknowledgement, several times over."""
  data = vectors(60)
  client.build([(None, data[:50])], dim=32)
  for number in range(3):
    client.edit([100 + number], data[50 + number : 51 + number], delete_ids=[number])
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    server.ensure_alive()
    assert client.status().edits == number + 1
    assert client.status().count == 50
  assert client.search(data[50:53], 1).ids.ravel().tolist() == [100, 101, 102]
  assert not np.isin(client.search(data[:3], 50).ids, [0, 1, 2]).any()


def test_an_edit_survives_a_process_killed_in_mid_call(server, client, vectors):
  """The client sends it again, and it is done once."""
  data = vectors(400)
  client.build([(None, data[:50])], dim=32)
  stop = threading.Event()

  def kill():
    while not stop.wait(0.3):
      server.process.send_signal(signal.SIGKILL)
      server.process.wait()
      server.ensure_alive()

  killer = threading.Thread(target=kill)
  killer.start()
  try:
    for number in range(100):
      client.add(None, data[50 + number : 51 + number])
  finally:
    stop.set()
    killer.join()
  assert client.status().edits == 100 and client.status().count == 150
  assert client.search(data[:150], 1).ids.ravel().tolist() == list(range(150))


def test_a_repeated_edit_is_answered_not_redone(client, server, vectors):
  """What a client does whose answer was lost."""
  data = vectors(30)
  client.build([(None, data[:20])], dim=32)
  header = retrieval_pb2.EditHeader(dim=32, edit_id='same', delete_ids=np.array([3]).tobytes())
  chunk = retrieval_pb2.Chunk(embeddings=data[20:21].tobytes(), type=retrieval_pb2.Chunk.FLOAT32)
  with grpc.insecure_channel(server.address) as channel:
    stub = retrieval_pb2_grpc.RetrievalStub(channel)
    for _ in range(2):
      response = stub.Edit(
        iter([retrieval_pb2.EditRequest(header=header), retrieval_pb2.EditRequest(chunk=chunk)])
      )
      assert (response.edits, response.count) == (1, 20)
      assert np.frombuffer(response.ids, '<i8').tolist() == [20]


def test_a_damaged_log_does_not_start(client, server, vectors, tmp_path):
  client.build([(None, vectors(20))], dim=32)
  client.delete([3])
  client.delete([4])
  server.stop()
  path = tmp_path / 'index' / 'edits.log'
  content = bytearray(path.read_bytes())
  content[30] ^= 1
  path.write_bytes(content)
  with pytest.raises(RuntimeError, match=f'{path} is damaged at byte 13'):
    server.ensure_alive()


def test_a_full_disk_is_one_error_and_nothing_is_half_applied(tmp_path, vectors, monkeypatch):
  data = vectors(30)
  with (
    RetrievalServer(tmp_path, 'localhost:0') as server,
    RetrievalClient(server.address) as client,
  ):
    client.build([(None, data[:20])], dim=32)
    client.delete([3])

    def full(file, data):
      file.write(data[: len(data) // 2])
      raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patched:
      patched.setattr(edit_log, '_write', full)
      with pytest.raises(RuntimeError, match='no space left .* former edits do'):
        client.edit([3, 5], data[20:22], delete_ids=[4])
    assert client.status().edits == 1 and client.status().count == 19
    assert client.search(data[20:22], 19).ids.max() == 19
    assert client.edit([3], data[20:21], delete_ids=[4]).edits == 2
  assert GenerationStore(tmp_path).open_live().count == 19


@pytest.fixture
def paused_build(monkeypatch):
  """Builds of this process wait, all vectors received, for an event."""
  arrived, proceed = threading.Event(), threading.Event()
  begin = generation_writer.begin

  def paused(*arguments, **settings):
    writer = begin(*arguments, **settings)
    commit = writer.commit

    def slow() -> int:
      arrived.set()
      assert proceed.wait(30)
      return commit()

    writer.commit = slow
    return writer

  monkeypatch.setattr(generation_writer, 'begin', paused)
  return arrived, proceed


@pytest.mark.parametrize('compact', [False, True])
def test_edits_made_during_a_build_outlast_it(tmp_path, vectors, paused_build, compact):
  arrived, proceed = paused_build
  data = vectors(100)
  with (
    RetrievalServer(tmp_path, 'localhost:0') as server,
    RetrievalClient(server.address) as client,
  ):
    proceed.set()
    client.build([(None, data[:50])], dim=32)
    client.delete([9])
    arrived.clear()
    proceed.clear()
    work = client.compact if compact else lambda: client.build([(None, data[:50])], dim=32)
    builder = threading.Thread(target=work)
    builder.start()
    assert arrived.wait(30)
    assert client.status().building
    client.edit([60], data[60:61])  # added
    client.edit([5], data[61:62])  # replaced
    client.delete([6])  # deleted
    client.edit([7], data[62:63])  # replaced, then deleted
    client.delete([7])
    client.edit([9], data[63:64])  # deleted before, put again
    expected = {60: 60, 5: 61, 9: 63, 8: 8}

    def check(number, count):
      result = client.search(data[list(expected.values())], 1)
      assert result.ids.ravel().tolist() == list(expected)
      assert result.generation == number and result.edits == 7
      everything = client.search(data[:8], count)
      assert not np.isin(everything.ids, [6, 7]).any()
      assert client.status().count == count

    check(1, 49)
    proceed.set()
    builder.join()
    check(2, 49)
  view = GenerationStore(tmp_path).open_live()
  assert view.count == 49 and view.number == 2
  assert view.generation.manifest.edits_applied == 1


def test_a_build_whose_caller_goes_away_is_abandoned(tmp_path, vectors, paused_build):
  arrived, proceed = paused_build
  data = vectors(50)
  with (
    RetrievalServer(tmp_path, 'localhost:0') as server,
    RetrievalClient(server.address, retry_for_s=0.1) as client,
  ):
    proceed.set()
    client.build([(None, data)], dim=32)
    arrived.clear()
    proceed.clear()
    with RetrievalClient(server.address, retry_for_s=0.1) as leaving:

      def build():
        with pytest.raises(Exception):  # noqa: B017 - its channel was closed
          leaving.build([(None, data)], dim=32)

      builder = threading.Thread(target=build)
      builder.start()
      assert arrived.wait(30)
    builder.join()
    proceed.set()
    client.delete([1])
    # The next build has its turn once that one is gone.
    assert client.build([(None, data)], dim=32) == 2
    assert client.status().generations == (1, 2)
  assert not list(tmp_path.glob('.tmp-*'))


def test_no_search_that_starts_after_a_delete_finds_the_passage(client, vectors):
  """Threads search while passages go, current and older generation alike."""
  count = 300
  data = vectors(count)
  client.build([(None, data)], dim=32)
  client.build([(None, -data)], dim=32, options=IndexOptions('pq', bytes_per_vector=8))
  deleted, wrong, searches = [], [], []
  stop = threading.Event()

  def search(generation, return_embeddings):
    number = 0
    while not stop.is_set():
      known = deleted[:]
      # Queries next to what was deleted last, so that it would come first.
      rows = known[-4:] or [0]
      sign = 1 if generation == 1 else -1
      result = client.search(
        sign * data[rows], 40, generation=generation, return_embeddings=return_embeddings
      )
      if np.isin(result.ids, known).any() or result.edits < len(known):
        wrong.append((known, result))
      if return_embeddings and not np.array_equal(
        result.embeddings, (sign * data[result.ids]).astype(np.float16)
      ):
        wrong.append(result)
      number += 1
    searches.append(number)

  threads = [
    threading.Thread(target=search, args=arguments)
    for arguments in ((None, False), (1, False), (1, True), (None, True))
  ]
  for thread in threads:
    thread.start()
  try:
    for passage in np.random.default_rng(0).permutation(count)[:200].tolist():
      client.delete([passage])
      deleted.append(passage)
  finally:
    stop.set()
    for thread in threads:
      thread.join()
  assert not wrong and len(searches) == 4 and min(searches) > 3


def test_replaced_passages_are_old_or_new_but_never_absent(client, vectors):
  data = vectors(50)
  client.build([(None, data)], dim=32)
  one = np.eye(32, dtype=np.float32)[:1]
  client.edit([7], 10 * one)
  stop, wrong, seen = threading.Event(), [], set()

  def search():
    while not stop.is_set():
      result = client.search(one, 1, return_embeddings=True)
      seen.add(result.edits)
      value = 10 + result.edits - 1
      if (
        result.ids[0, 0] != 7 or result.scores[0, 0] != value or result.embeddings[0, 0, 0] != value
      ):
        wrong.append(result)

  threads = [threading.Thread(target=search) for _ in range(3)]
  for thread in threads:
    thread.start()
  for number in range(1, 200):
    assert client.edit([7], (10 + number) * one).edits == number + 1
  stop.set()
  for thread in threads:
    thread.join()
  assert not wrong and len(seen) > 10
