"""Talking to the retrieval process: needs NumPy and gRPC, not FAISS."""

import dataclasses
import json
import logging
import random
import time
import uuid
from typing import Any
from collections.abc import Callable, Iterable, Iterator, Sequence

import grpc
import numpy as np

from retrieval_service import protocol
from retrieval_service import retrieval_pb2
from retrieval_service import retrieval_pb2_grpc
from retrieval_service import wire
from retrieval_service.options import IndexOptions

logger = logging.getLogger(__name__)

_CHANNEL_OPTIONS = protocol.MESSAGE_OPTIONS + (
    ('grpc.use_local_subchannel_pool', 1),
    ('grpc.enable_http_proxy', 0),  # the process is near, a proxy is not meant
    ('grpc.initial_reconnect_backoff_ms', 100),
    ('grpc.min_reconnect_backoff_ms', 100),
    ('grpc.max_reconnect_backoff_ms', 2000),
    # A host that vanishes without a word is noticed within a build, too.
    ('grpc.keepalive_time_ms', 30_000),
    ('grpc.keepalive_timeout_ms', 20_000),
)
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 5.0
_RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class RetrievalError(ConnectionError):
  """The retrieval process cannot be reached, or is something else."""


@dataclasses.dataclass(frozen=True)
class SearchResult:
  """The best passages of each query, best first.

  Attributes:
    ids: [batch, k] int64.
    scores: [batch, k] float32 inner products.
    generation: Which generation of the index answered.
    embeddings: [batch, k, dim] float16, or None where not asked for.
  """
  ids: np.ndarray
  scores: np.ndarray
  generation: int
  embeddings: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class ServerStatus:
  """What the process serves.

  Attributes:
    generation: Its number; 0 when the index is empty.
    count: Passages in it.
    dim: Their embedding size.
    options: The index options asked for; None when empty.
    factory: The FAISS factory string in use.
    metadata: What the builder said of it.
    generations: All generations on disk.
    building: Whether a new one is in the making.
    index_directory: The folder, on the server's machine.
  """
  generation: int
  count: int
  dim: int
  options: IndexOptions | None
  factory: str
  metadata: dict[str, Any]
  generations: tuple[int, ...]
  building: bool
  index_directory: str


class RetrievalClient:
  """A connection to a retrieval process; may be shared among threads."""

  def __init__(
      self,
      address: str,
      *,
      timeout_s: float = 60.0,
      retry_for_s: float = 300.0,
  ):
    """Connects on the first call.

    Args:
      address: 'host:port'.
      timeout_s: For one try of a call; builds have none.
      retry_for_s: How long an unreachable process is waited for.

    Raises:
      ValueError: The address is malformed.
    """
    protocol.split_address(address)
    self.address = address
    self._timeout_s = timeout_s
    self._retry_for_s = retry_for_s
    self._channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
    self._stub = retrieval_pb2_grpc.RetrievalStub(self._channel)
    self._acquainted = False

  def __enter__(self) -> 'RetrievalClient':
    return self

  def __exit__(self, *unused_exception) -> None:
    self.close()

  def close(self) -> None:
    self._channel.close()

  def search(
      self,
      query_embeddings: np.ndarray,
      k: int,
      *,
      return_embeddings: bool = False,
      generation: int | None = None,
  ) -> SearchResult:
    """The k passages of largest inner product for each query.

    All answers of one call come from one generation.

    Args:
      query_embeddings: [batch, dim], converted to float32.
      k: Passages for each query.
      return_embeddings: Also brings the stored embeddings.
      generation: An older generation's number; None: the current one.

    Raises:
      ValueError: Wrong shape or dimension, or more passages than there are.
      LookupError: The generation does not exist any more.
      RuntimeError: The index is empty, or the process failed.
      RetrievalError: The process cannot be reached.
    """
    queries = np.ascontiguousarray(query_embeddings, '<f4')
    if queries.ndim != 2:
      raise ValueError('query_embeddings must be [batch, dim], found shape '
                       f'{list(queries.shape)}')
    if k < 1:
      raise ValueError(f'k must be at least 1, found {k}')
    batch, dim = queries.shape
    # Query, ids, scores and embeddings of one query: parts stay in the limits.
    row_bytes = 4 * dim + k * (12 + (2 * dim if return_embeddings else 0))
    step = max(1, protocol.SEARCH_BYTES // row_bytes)
    if batch <= step:
      return self._search(queries, k, return_embeddings, generation or 0)
    parts = []
    for begin in range(0, batch, step):
      parts.append(self._search(queries[begin:begin + step], k,
                                return_embeddings, generation or 0))
      generation = parts[0].generation
    return SearchResult(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.scores for part in parts]),
        parts[0].generation,
        np.concatenate([part.embeddings for part in parts])
        if return_embeddings else None)

  def _search(self, queries, k, return_embeddings, generation) -> SearchResult:
    batch, dim = queries.shape
    response = self._call('search', self._stub.Search,
                          retrieval_pb2.SearchRequest(
                              queries=queries.tobytes(), dim=dim, k=k,
                              return_embeddings=return_embeddings,
                              generation=generation))
    embeddings = None
    if return_embeddings:
      embeddings = np.frombuffer(
          response.embeddings, '<f2').reshape(batch, k, dim)
    return SearchResult(
        np.frombuffer(response.ids, '<i8').reshape(batch, k),
        np.frombuffer(response.scores, '<f4').reshape(batch, k),
        response.generation, embeddings)

  def build(
      self,
      chunks: Iterable[tuple[np.ndarray | None, np.ndarray]],
      *,
      dim: int,
      options: IndexOptions | None = None,
      metadata: dict[str, Any] | None = None,
  ) -> int:
    """Uploads vectors and builds a generation, which is served from then on.

    Args:
      chunks: Pairs of ids ([rows] int64, or None for row numbers throughout)
        and embeddings ([rows, dim], float16 as such, all else as float32); of
        any size. A collection is sent again when the process dies meanwhile;
        an iterator can only be sent once.
      dim: Embedding size.
      options: The index to build; None: a flat one.
      metadata: JSON that stays with the generation.

    Returns:
      The new generation's number.

    Raises:
      ValueError: What the process says of the vectors or the options.
      RuntimeError: The build failed, on a full disk for one.
      RetrievalError: The process cannot be reached, or died in mid-build.
    """
    options = options or IndexOptions()
    header = retrieval_pb2.BuildHeader(
        dim=dim, metadata_json=_to_json(metadata), build_id=uuid.uuid4().hex,
        options=retrieval_pb2.IndexOptions(**options.to_dict()))
    return self._upload('build', self._stub.Build, header, chunks)

  def add(
      self,
      ids: np.ndarray | None,
      embeddings: np.ndarray,
      metadata: dict[str, Any] | None = None,
  ) -> int:
    """Adds vectors to the current generation, as a new one.

    Args:
      ids: [rows] int64, none of which the index has; None: on from its count.
      embeddings: [rows, dim].
      metadata: Merged over what the index has.

    Returns:
      The new generation's number.

    Raises:
      As `build`; RuntimeError where the index is empty.
    """
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2:
      raise ValueError('embeddings must be [rows, dim], found shape '
                       f'{list(embeddings.shape)}')
    header = retrieval_pb2.BuildHeader(
        dim=embeddings.shape[1], metadata_json=_to_json(metadata),
        build_id=uuid.uuid4().hex)
    return self._upload('add', self._stub.Add, header, [(ids, embeddings)])

  def _upload(self, what, method, header, chunks) -> int:
    repeatable = iter(chunks) is not chunks
    if not repeatable:
      self.status()  # waits for the process before the one try there is
    failures = []  # gRPC swallows what a request iterator raises

    def requests() -> Iterator[retrieval_pb2.BuildRequest]:
      try:
        yield retrieval_pb2.BuildRequest(header=header)
        for ids, embeddings in chunks:
          yield from wire.write_chunks(ids, embeddings, header.dim)
      except Exception as error:  # pylint: disable=broad-except
        failures.append(error)
        raise

    try:
      response = self._call(what, method, requests, timeout_s=None,
                            retry=repeatable, failures=failures)
    except (RuntimeError, ConnectionError):
      if failures:
        raise failures[0] from None
      raise
    return response.generation

  def status(self) -> ServerStatus:
    """What the process serves.

    Raises:
      RetrievalError: It cannot be reached, or speaks another version.
    """
    response = self._call('status', self._stub.Status,
                          retrieval_pb2.StatusRequest(
                              protocol_version=protocol.PROTOCOL_VERSION))
    return self._read_status(response)

  def pin(self, owner: str, generations: Sequence[int]) -> None:
    """Says which generations `owner` needs from now on; [] for none.

    Raises:
      LookupError: One of them does not exist.
    """
    self._call('pin', self._stub.Pin, retrieval_pb2.PinRequest(
        owner=owner, generations=generations))

  def reload(self) -> int:
    """Serves what the index folder's CURRENT names now; returns its number."""
    return self._call('reload', self._stub.Reload,
                      retrieval_pb2.ReloadRequest()).generation

  def wait_until_ready(self, timeout_s: float = 60.0) -> ServerStatus:
    """Waits until the process answers.

    Raises:
      RetrievalError: It does not within `timeout_s`.
    """
    response = self._call(
        'status', self._stub.Status,
        retrieval_pb2.StatusRequest(protocol_version=protocol.PROTOCOL_VERSION),
        retry_for_s=timeout_s)
    return self._read_status(response)

  def _read_status(self, response) -> ServerStatus:
    if response.service != protocol.SERVICE_NAME:
      raise RetrievalError(f'{self.address} answers, but is no retrieval '
                           'process: check the address')
    if response.protocol_version != protocol.PROTOCOL_VERSION:
      raise RetrievalError(
          f'the retrieval process at {self.address} speaks protocol version '
          f'{response.protocol_version} and this client '
          f'{protocol.PROTOCOL_VERSION}: run the same release on both sides')
    options = None
    if response.generation:
      options = IndexOptions.from_dict(
          {field.name: value for field, value in response.options.ListFields()})
    return ServerStatus(
        generation=response.generation, count=response.count, dim=response.dim,
        options=options, factory=response.factory,
        metadata=json.loads(response.metadata_json or '{}'),
        generations=tuple(response.generations), building=response.building,
        index_directory=response.index_directory)

  def _call(
      self,
      what: str,
      method: Callable,
      request,
      *,
      timeout_s: float | None = -1,
      retry: bool = True,
      retry_for_s: float | None = None,
      failures: Sequence[Exception] = (),
  ):
    """One call, repeated while the process cannot be reached.

    `request` is a message, or a function that starts a stream of them.
    """
    if timeout_s == -1:
      timeout_s = self._timeout_s
    if retry_for_s is None:
      retry_for_s = self._retry_for_s
    give_up = time.monotonic() + retry_for_s
    wait_s = _FIRST_WAIT_S
    warned = False
    while True:
      try:
        if not self._acquainted and what != 'status':
          self._read_status(self._stub.Status(
              retrieval_pb2.StatusRequest(
                  protocol_version=protocol.PROTOCOL_VERSION),
              timeout=self._timeout_s))
        response = method(request() if callable(request) else request,
                          timeout=timeout_s)
        self._acquainted = True
        return response
      except grpc.RpcError as error:
        if error.code() not in _RETRIED or failures:
          raise self._explain(what, error) from error
        self._acquainted = False  # another process may come up there
        self._refuse_stranger(error)
        if not retry or time.monotonic() + wait_s > give_up:
          raise RetrievalError(
              f'the retrieval process at {self.address} cannot be reached: '
              f'{what} failed with {error.code().name} ({error.details()})' + (
                  f', tried for {retry_for_s:.0f} s' if retry else
                  ' and cannot be repeated') +
              '. Start it with: python -m retrieval_service.server --index '
              f'INDEX --address {self.address}') from error
        if not warned:
          logger.warning(
              'waiting for the retrieval process at %s: %s failed with %s; '
              'trying for %.0f s', self.address, what, error.code().name,
              retry_for_s)
          warned = True
      time.sleep(wait_s * random.uniform(0.8, 1.0))  # hosts spread out
      wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

  def _explain(self, what: str, error: grpc.RpcError) -> Exception:
    """The exception for a status that no repetition would change."""
    code, details = error.code(), error.details()
    if code == grpc.StatusCode.INVALID_ARGUMENT:
      return ValueError(details)
    if code == grpc.StatusCode.NOT_FOUND:
      return LookupError(details)
    if code == grpc.StatusCode.FAILED_PRECONDITION:
      return RuntimeError(details)
    if code == grpc.StatusCode.UNIMPLEMENTED:
      return RetrievalError(
          f'{self.address} answers, but is no retrieval process or an older '
          f'one ({details}): check the address')
    if not self._acquainted and code in (grpc.StatusCode.UNKNOWN,
                                         grpc.StatusCode.INTERNAL):
      return RetrievalError(f'{self.address} does not answer as a retrieval '
                            f'process does ({details}): check the address')
    return RuntimeError(f'{what} failed at the retrieval process at '
                        f'{self.address}: {details} ({code.name})')

  def _refuse_stranger(self, error: grpc.RpcError) -> None:
    """Raises if what listens there does not even speak HTTP/2.

    gRPC reports it as unavailable, like a process that is just starting.
    """
    opening = protocol.foreign_opening(self.address)
    if opening is not None:
      raise RetrievalError(
          f'what listens at {self.address} is no retrieval process (it opens '
          f'with {opening!r}): check the address') from error


def _to_json(metadata: dict[str, Any] | None) -> str:
  try:
    return json.dumps(metadata or {})
  except (TypeError, ValueError) as error:
    raise ValueError(f'metadata must be JSON: {error}') from error
