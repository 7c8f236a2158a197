"""The process, its client and what lies between: real sockets throughout."""

import concurrent.futures
import errno
import logging
import signal
import socket
import subprocess
import sys
import threading

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
import numpy as np
import pytest

from retrieval_service import generation_writer, protocol, retrieval_pb2, retrieval_pb2_grpc
from retrieval_service.client import RetrievalClient, RetrievalError
from retrieval_service.files import HashingFile
from retrieval_service.generations import GenerationStore
from retrieval_service.local import LocalRetrievalServer
from retrieval_service.options import IndexOptions
from retrieval_service.server import RetrievalServer


def test_the_whole_way(client, server, vectors, tmp_path):
  data = vectors(600)
  empty = client.status()
  assert (empty.generation, empty.count, empty.options) == (0, 0, None)
  with pytest.raises(RuntimeError, match='is empty: build it first'):
    client.search(data[:1], 1)
  with pytest.raises(RuntimeError, match='is empty: build it first'):
    client.add(None, data[:1])

  options = IndexOptions('pq', bytes_per_vector=8, rerank=200)
  metadata = {'corpus': '/a/corpus', 'fingerprint': 'x', 'step': 3}
  chunks = ((np.arange(i, i + 100) * 2, data[i : i + 100]) for i in range(0, 600, 100))
  assert client.build(chunks, dim=32, options=options, metadata=metadata) == 1
  status = client.status()
  assert (status.generation, status.count, status.dim) == (1, 600, 32)
  assert status.options == options and status.factory == 'PQ8np'
  assert status.metadata == metadata and status.generations == (1,)
  assert status.index_directory == str(tmp_path / 'index')

  result = client.search(data[:7], k=5, return_embeddings=True)
  assert result.ids.shape == result.scores.shape == (7, 5)
  assert result.ids.dtype == np.int64 and result.scores.dtype == np.float32
  assert result.ids[:, 0].tolist() == [0, 2, 4, 6, 8, 10, 12]
  assert result.generation == 1
  np.testing.assert_array_equal(result.embeddings, data.astype(np.float16)[result.ids // 2])
  expected = GenerationStore(tmp_path / 'index').open(1).search(data[:7], 5)
  np.testing.assert_array_equal(result.ids, expected.ids)
  np.testing.assert_array_equal(result.scores, expected.scores)
  assert client.search(data[:1], 5).embeddings is None


def test_pins_hold_generations_through_builds_and_restarts(client, server, vectors):
  data = vectors(20)
  client.build([(None, data)], dim=32)
  client.pin('run 1', [1])
  for _ in range(3):
    client.build([(None, -data)], dim=32)
  assert client.status().generations == (1, 3, 4)
  server.process.kill()
  server.process.wait()
  server.ensure_alive()
  client.build([(None, -data)], dim=32)
  assert client.search(data[:1], 1, generation=1).ids.tolist() == [[0]]
  with pytest.raises(LookupError, match='no generation 99 to pin'):
    client.pin('run 1', [99])
  client.pin('run 1', [])
  client.build([(None, -data)], dim=32)
  assert client.status().generations == (5, 6)


def test_reload_serves_what_another_process_wrote(client, vectors, tmp_path):
  client.build([(None, vectors(20))], dim=32)
  store = GenerationStore(tmp_path / 'index')
  with generation_writer.begin(store, IndexOptions(), 16) as writer:
    writer.append(None, vectors(30, 16))
    writer.commit()
  assert client.status().generation == 1
  assert client.reload() == 2
  assert client.search(vectors(1, 16), 1).generation == 2


def test_a_damaged_reload_leaves_the_former_served(client, vectors, tmp_path):
  client.build([(None, vectors(20))], dim=32)
  (tmp_path / 'index' / 'CURRENT').write_text('nonsense')
  with pytest.raises(ValueError, match='CURRENT is damaged.*to serve it: echo'):
    client.reload()
  assert client.search(vectors(1), 1).generation == 1


def test_searches_go_on_during_builds_and_never_mix(client, vectors):
  """Every generation holds its own ids only: a mixture would show."""
  data = vectors(400)

  def ids(number):
    return np.arange(400) + 1000 * number

  client.build([(ids(1), data)], dim=32)
  stop = threading.Event()
  seen, wrong = set(), []

  def search():
    while not stop.is_set():
      result = client.search(data[:16], 10)
      seen.add(result.generation)
      if set((result.ids // 1000).ravel()) != {result.generation}:
        wrong.append(result)

  searcher = threading.Thread(target=search)
  searcher.start()
  try:
    for number in range(2, 5):
      client.build([(ids(number), data)], dim=32, options=IndexOptions('pq', bytes_per_vector=8))
  finally:
    stop.set()
    searcher.join()
  assert not wrong and len(seen) >= 2


def test_large_calls_are_cut_and_of_one_generation(client, vectors, monkeypatch):
  data = vectors(300)
  monkeypatch.setattr(protocol, 'CHUNK_BYTES', 1000)
  client.build([(None, data)], dim=32)
  whole = client.search(data, 20, return_embeddings=True)
  monkeypatch.setattr(protocol, 'SEARCH_BYTES', 10_000)
  parts = client.search(data, 20, return_embeddings=True)
  np.testing.assert_array_equal(whole.ids, parts.ids)
  np.testing.assert_array_equal(whole.scores, parts.scores)
  np.testing.assert_array_equal(whole.embeddings, parts.embeddings)


def test_answers_beyond_grpc_s_own_limit(client, vectors):
  data = vectors(3000, 256)
  client.build([(None, data)], dim=256)
  result = client.search(data[:8], 3000, return_embeddings=True)  # 12 MB
  assert result.embeddings.shape == (8, 3000, 256)


@pytest.mark.parametrize(
  'queries,k,message',
  [
    (np.zeros((2, 31)), 1, 'queries have dimension 31 .* has dimension 32'),
    (np.zeros((2, 32)), 21, 'k=21 passages wanted .* holds 20'),
    (np.zeros((2, 32)), 0, 'k must be at least 1'),
    (np.zeros(32), 1, r'must be \[batch, dim\], found shape \[32\]'),
    (np.full((2, 32), np.nan), 1, 'query 0 of 2 holds a value'),
  ],
)
def test_bad_searches(client, vectors, queries, k, message):
  client.build([(None, vectors(20))], dim=32)
  with pytest.raises(ValueError, match=message):
    client.search(queries, k)


def test_bad_builds_change_nothing(client, vectors, caplog):
  data = vectors(20)
  client.build([(None, data)], dim=32)
  for chunks, options, message in (
    ([], IndexOptions(), 'needs at least 1 vector'),
    ([(None, data[:, :9])], IndexOptions(), r'\[20, 9\] do not fit'),
    (((None, chunk) for chunk in (data, data[:, :9])), IndexOptions(), r'\[20, 9\] do not fit'),
    ([(np.zeros(20, int), data)], IndexOptions(), 'id 0 occurs more than'),
    ([(np.zeros(20), data)], IndexOptions(), 'ids must be integers'),
    ([(None, data * np.inf)], IndexOptions(), 'passage 0 holds a value'),
    ([(None, data)], IndexOptions('Bogus'), 'could not parse'),
  ):
    with pytest.raises(ValueError, match=message):
      client.build(chunks, dim=32, options=options)
  with pytest.raises(ValueError, match='metadata must be JSON'):
    client.build([(None, data)], dim=32, metadata={'a': object()})
  assert client.status().generations == (1,)


def test_a_repeated_build_is_answered_not_redone(client, server, vectors):
  """What a client does whose answer was lost."""
  data = vectors(20)
  header = retrieval_pb2.BuildHeader(dim=32, build_id='same')
  chunk = retrieval_pb2.Chunk(embeddings=data.tobytes(), type=retrieval_pb2.Chunk.FLOAT32)
  with grpc.insecure_channel(server.address) as channel:
    stub = retrieval_pb2_grpc.RetrievalStub(channel)
    for _ in range(2):
      response = stub.Build(
        iter([retrieval_pb2.BuildRequest(header=header), retrieval_pb2.BuildRequest(chunk=chunk)])
      )
      assert response.generation == 1


def test_a_full_disk_is_one_error_and_the_former_index_is_served(tmp_path, vectors, monkeypatch):
  data = vectors(20)
  with (
    RetrievalServer(tmp_path, 'localhost:0') as server,
    RetrievalClient(server.address) as client,
  ):
    client.build([(None, data)], dim=32)

    def full(self, data):
      raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(HashingFile, 'write', full)
    with pytest.raises(RuntimeError, match='no space left.*former generation'):
      client.build([(None, data)], dim=32)
    assert client.search(data[:1], 1).generation == 1


def test_health(client, server):
  with grpc.insecure_channel(server.address) as channel:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ('', 'retrieval_service.Retrieval'):
      answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
      assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_killed_and_restarted_the_client_goes_on(client, server, vectors, caplog):
  data = vectors(20)
  client.build([(None, data)], dim=32)
  address = server.address
  assert not server.ensure_alive()
  server.process.send_signal(signal.SIGKILL)
  server.process.wait()
  restart = threading.Timer(0.5, server.ensure_alive)
  restart.start()
  with caplog.at_level(logging.WARNING):
    assert client.search(data[:1], 1).ids.tolist() == [[0]]
  restart.join()
  assert server.address == address
  assert f'waiting for the retrieval process at {address}' in caplog.text


def test_a_build_survives_a_killed_process(client, server, vectors):
  """The vectors are a list, so that the client can send them again."""
  data = vectors(3000)
  killed = []

  class Chunks(list):
    def __iter__(self):
      for chunk in super().__iter__():
        yield chunk
        if not killed:
          server.process.kill()
          server.process.wait()
          killed.append(True)
          server.ensure_alive()

  client.build(Chunks([(None, data[:1000]), (None, data[1000:])]), dim=32)
  assert killed and client.status().count == 3000


def test_nobody_there(vectors):
  with socket.create_server(('localhost', 0)) as taken:
    port = taken.getsockname()[1]
  with RetrievalClient(f'localhost:{port}', retry_for_s=0.5) as client:
    with pytest.raises(RetrievalError) as error:
      client.search(vectors(1), 1)
    with pytest.raises(RetrievalError):
      client.wait_until_ready(timeout_s=0.2)
  message = str(error.value)
  assert f'localhost:{port} cannot be reached: search failed' in message
  assert 'python -m retrieval_service.server --index INDEX' in message


def test_garbage_on_the_port_is_refused_at_once(vectors):
  listener = socket.create_server(('localhost', 0))

  def babble():
    while True:
      try:
        connection, _ = listener.accept()
      except OSError:
        return
      with connection:
        connection.sendall(b'220 mail.example.org ESMTP\r\n')

  threading.Thread(target=babble, daemon=True).start()
  address = f'localhost:{listener.getsockname()[1]}'
  with RetrievalClient(address, retry_for_s=10_000) as client:
    with pytest.raises(RetrievalError, match=f'{address} is no retrieval'):
      client.search(vectors(1), 1)
  listener.shutdown(socket.SHUT_RDWR)
  listener.close()


def _grpc_server(handlers=()):
  server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
  for handler in handlers:
    handler(server)
  port = server.add_insecure_port('localhost:0')
  server.start()
  return server, f'localhost:{port}'


def test_a_grpc_server_without_the_service_is_refused_at_once(vectors):
  server, address = _grpc_server()
  with RetrievalClient(address, retry_for_s=10_000) as client:
    with pytest.raises(RetrievalError, match='is no retrieval process or an'):
      client.search(vectors(1), 1)
  server.stop(None)


@pytest.mark.parametrize(
  'service,version,message',
  [
    (protocol.SERVICE_NAME, 99, 'speaks protocol version 99 and this client'),
    ('other', 1, 'answers, but is no retrieval process'),
  ],
)
def test_another_protocol_is_refused_at_once(vectors, service, version, message):

  class Other(retrieval_pb2_grpc.RetrievalServicer):
    def Status(self, request, context):
      return retrieval_pb2.StatusResponse(service=service, protocol_version=version)

  server, address = _grpc_server(
    [lambda s: retrieval_pb2_grpc.add_RetrievalServicer_to_server(Other(), s)]
  )
  with RetrievalClient(address, retry_for_s=10_000) as client:
    with pytest.raises(RetrievalError, match=message):
      client.search(vectors(1), 1)
  server.stop(None)


@pytest.mark.parametrize('address', ['localhost', 'localhost:x', ':50051', ''])
def test_malformed_addresses(address):
  with pytest.raises(ValueError, match='is not host:port'):
    RetrievalClient(address)


def test_the_process_as_a_command(tmp_path, vectors):
  store = GenerationStore(tmp_path)
  with generation_writer.begin(store, IndexOptions(), 32) as writer:
    writer.append(None, vectors(12))
    writer.commit()
  process = subprocess.Popen(
    [
      sys.executable,
      '-m',
      'retrieval_service.server',
      '--index',
      tmp_path,
      '--address',
      'localhost:0',
    ],
    stdout=subprocess.PIPE,
    text=True,
  )
  line = process.stdout.readline()
  assert line.startswith('retrieval process ready at localhost:')
  assert line.endswith(' (generation 1, 12 passages)\n')
  process.terminate()
  rest, _ = process.communicate(timeout=30)
  assert rest == '' and process.returncode == 0


def test_a_damaged_index_does_not_start(tmp_path):
  (tmp_path / 'CURRENT').write_text('generation-00000003')
  with pytest.raises(RuntimeError) as error:
    LocalRetrievalServer(tmp_path)
  assert 'names generation-00000003, which does not exist' in str(error.value)
  assert 'status 1' in str(error.value)


def test_a_taken_port_is_an_error(server, tmp_path):
  with pytest.raises(OSError, match=f'cannot listen on {server.address}'):
    RetrievalServer(tmp_path / 'other', server.address)


def test_the_process_ends_with_a_killed_parent(tmp_path):
  """The parent is killed: only the end of the pipe can tell the child."""
  program = (
    'import sys, time; from retrieval_service.local import *; '
    f'server = LocalRetrievalServer({str(tmp_path)!r}); '
    'print(server.address, flush=True); time.sleep(100)'
  )
  parent = subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE, text=True)
  address = parent.stdout.readline().strip()
  with RetrievalClient(address, retry_for_s=5) as client:
    assert client.status().generation == 0
    parent.kill()
    parent.wait()
    host, port = protocol.split_address(address)
    for _ in range(300):
      try:
        socket.create_connection((host, port), 1).close()
      except OSError:
        return
      threading.Event().wait(0.1)
  pytest.fail('the retrieval process outlived its parent')


def test_imports_stay_light():
  for module, heavy in (
    ('client', 'faiss jax'),
    ('local', 'faiss jax'),
    ('options', 'faiss grpc'),
    ('server', 'jax ralm_jax'),
  ):
    program = (
      f'import sys, retrieval_service.{module}; '
      f'sys.exit(str(set({heavy.split()}) & set(sys.modules) or ""))'
    )
    done = subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == '', f'{module} imports {done.stderr}'
