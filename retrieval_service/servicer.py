"""What the retrieval process does on each call; `server.py` runs it."""

import collections
import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator

import faiss
import grpc
import numpy as np

from retrieval_service import protocol
from retrieval_service import retrieval_pb2
from retrieval_service import retrieval_pb2_grpc
from retrieval_service import wire
from retrieval_service.generation import Generation
from retrieval_service.generations import GenerationStore
from retrieval_service.options import IndexOptions

logger = logging.getLogger(__name__)


class _Abandoned(Exception):
  """The caller of a build went away."""


class _Precondition(Exception):
  """The call is right, but not in the state the index is in."""


class RetrievalServicer(retrieval_pb2_grpc.RetrievalServicer):
  """Serves one generation; older ones on request, by number."""

  def __init__(
      self,
      store: GenerationStore,
      *,
      nprobe: int | None = None,
      rerank: int | None = None,
      threads: int | None = None,
      build_threads: int | None = None,
      verify_checksums: bool = True,
      keep_generations: int = 2,
      max_older_open: int = 2,
  ):
    """Opens the current generation, if there is one; see `RetrievalServer`."""
    self._store = store
    self._threads = threads or faiss.omp_get_max_threads()
    self._open_options = dict(
        nprobe=nprobe, rerank=rerank, threads=self._threads)
    self._build_threads = build_threads or self._threads
    self._verify_checksums = verify_checksums
    self._keep_generations = keep_generations
    self._max_older_open = max_older_open
    self._build_lock = threading.Lock()
    self._swap_lock = threading.Lock()
    self._older_lock = threading.Lock()
    self._older: collections.OrderedDict[int, Generation] = (
        collections.OrderedDict())
    # Read once a request; replaced whole, never changed.
    self._current: Generation | None = None
    self._swap()

  @property
  def current(self) -> Generation | None:
    return self._current

  def prepare_thread(self) -> None:
    """OpenMP's thread number belongs to the calling thread: set it in each."""
    faiss.omp_set_num_threads(self._threads)

  def Search(self, request, context):
    with _errors_as_status(context):
      generation = self._generation(request.generation)
      if request.dim < 1 or len(request.queries) % (4 * request.dim):
        raise ValueError(
            f'{len(request.queries)} bytes of queries are no whole number of '
            f'float32 vectors of dimension {request.dim}')
      queries = np.frombuffer(request.queries, '<f4').reshape(-1, request.dim)
      result = generation.search(queries, request.k, request.return_embeddings)
      response = retrieval_pb2.SearchResponse(
          ids=result.ids.astype('<i8', copy=False).tobytes(),
          scores=result.scores.astype('<f4', copy=False).tobytes(),
          generation=generation.number)
      if result.embeddings is not None:
        response.embeddings = result.embeddings.astype(
            '<f2', copy=False).tobytes()
      return response

  def Build(self, request_iterator, context):
    with _errors_as_status(context):
      return self._write(request_iterator, context, extend=False)

  def Add(self, request_iterator, context):
    with _errors_as_status(context):
      return self._write(request_iterator, context, extend=True)

  def Status(self, request, context):
    with _errors_as_status(context):
      response = retrieval_pb2.StatusResponse(
          service=protocol.SERVICE_NAME,
          protocol_version=protocol.PROTOCOL_VERSION,
          generations=self._store.numbers(),
          building=self._build_lock.locked(),
          index_directory=self._store.directory)
      generation = self._current
      if generation is not None:
        manifest = generation.manifest
        response.generation = generation.number
        response.count = generation.count
        response.dim = generation.dim
        response.factory = manifest.factory
        response.metadata_json = json.dumps(manifest.metadata)
        response.options.CopyFrom(retrieval_pb2.IndexOptions(
            **manifest.options.to_dict()))
      return response

  def Pin(self, request, context):
    with _errors_as_status(context):
      self._store.pin(request.owner, request.generations)
      return retrieval_pb2.PinResponse()

  def Reload(self, request, context):
    with _errors_as_status(context):
      return _describe(self._swap())

  def _generation(self, number: int) -> Generation:
    current = self._current
    if number == 0:
      if current is None:
        raise _Precondition(f'the index in {self._store.directory} is empty: '
                            'build it first, or reload once it is written')
      return current
    if current is not None and current.number == number:
      return current
    with self._older_lock:
      generation = self._older.get(number)
      if generation is None:
        generation = self._store.open(
            number, verify_checksums=self._verify_checksums,
            **self._open_options)
      self._remember(generation)
      return generation

  def _remember(self, generation: Generation) -> None:
    """Keeps an older generation open; the caller holds its lock."""
    self._older[generation.number] = generation
    self._older.move_to_end(generation.number)
    while len(self._older) > self._max_older_open:
      self._older.popitem(last=False)

  def _swap(self, *, verify_checksums: bool | None = None) -> Generation | None:
    """Serves what CURRENT names; on an error the former one stays served."""
    if verify_checksums is None:
      verify_checksums = self._verify_checksums
    with self._swap_lock:
      number = self._store.current()
      if number is not None and (
          self._current is None or self._current.number != number):
        former = self._current
        self._current = self._store.open(
            number, verify_checksums=verify_checksums, **self._open_options)
        if former is not None:  # for those who still name it
          with self._older_lock:
            self._remember(former)
        logger.info('serving generation %d, %d vectors', number,
                    self._current.count)
      return self._current

  def _write(self, requests, context, *, extend: bool):
    """Builds or extends: one at a time, while searches go on."""

    def check() -> None:
      if not context.is_active():
        raise _Abandoned

    with self._turn_to_build(check), self._openmp_threads():
      header = _read_header(requests)
      base = self._current
      if base is not None and header.build_id and (
          base.manifest.build_id == header.build_id):
        return _describe(base)  # the answer was lost, not the work
      if extend and base is None:
        raise _Precondition(f'the index in {self._store.directory} is empty: '
                            'build it before adding to it')
      metadata = json.loads(header.metadata_json or '{}')
      if extend:
        metadata = {**base.manifest.metadata, **metadata}
      writer = self._store.begin(
          _read_options(header.options), header.dim, metadata,
          base=base if extend else None, build_id=header.build_id, check=check)
      with writer:
        for request in requests:
          writer.append(*wire.read_chunk(request, header.dim))
        check()
        if extend and writer.count == base.count:
          raise ValueError('no vectors to add')
        logger.info('building an index of %d vectors', writer.count)
        number = writer.commit()
      # Its bytes have just been written by us: no need to read them again.
      generation = self._swap(verify_checksums=False)
      removed = self._store.prune(self._keep_generations)
      if removed:
        logger.info('removed generations %s', removed)
      logger.info('generation %d is complete', number)
      return _describe(generation)

  @contextlib.contextmanager
  def _turn_to_build(self, check: Callable[[], None]) -> Iterator[None]:
    while not self._build_lock.acquire(timeout=0.5):
      check()
    try:
      yield
    finally:
      self._build_lock.release()

  @contextlib.contextmanager
  def _openmp_threads(self) -> Iterator[None]:
    faiss.omp_set_num_threads(self._build_threads)
    try:
      yield
    finally:
      faiss.omp_set_num_threads(self._threads)


def _describe(generation: Generation | None):
  if generation is None:
    return retrieval_pb2.GenerationResponse()
  return retrieval_pb2.GenerationResponse(
      generation=generation.number, count=generation.count)


def _read_header(requests):
  first = next(requests, None)
  if first is None or first.WhichOneof('part') != 'header':
    raise ValueError('the first message of a build must be its header')
  return first.header


def _read_options(message) -> IndexOptions:
  return IndexOptions.from_dict(
      {field.name: value for field, value in message.ListFields()})


@contextlib.contextmanager
def _errors_as_status(context: grpc.ServicerContext) -> Iterator[None]:
  """Every error reaches the caller as one status with one message."""
  try:
    yield
    return
  except _Abandoned:
    logger.warning('a build was abandoned by its caller; nothing changed')
    code, message = grpc.StatusCode.CANCELLED, 'abandoned by the caller'
  except _Precondition as error:
    code, message = grpc.StatusCode.FAILED_PRECONDITION, str(error)
  except ValueError as error:
    code, message = grpc.StatusCode.INVALID_ARGUMENT, str(error)
  except LookupError as error:
    code, message = grpc.StatusCode.NOT_FOUND, str(error.args[0])
  except OSError as error:
    logger.error('%s', error)
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    message = error.strerror or str(error)
  except grpc.RpcError:
    code, message = grpc.StatusCode.CANCELLED, 'the upload ended early'
  except Exception as error:  # pylint: disable=broad-except
    logger.exception('a call failed')
    code = grpc.StatusCode.INTERNAL
    message = f'{type(error).__name__}: {error}'
  context.abort(code, message)
