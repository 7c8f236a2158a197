"""Talking to the retrieval process: needs NumPy and gRPC, not FAISS."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
import functools
import os
from typing import Any
import uuid

import numpy as np

from retrieval_service import checks, protocol, retrieval_pb2, wire
from retrieval_service.connection import Connection, RetrievalError
from retrieval_service.editing import Editing
from retrieval_service.edits import WantedEdit
from retrieval_service.options import IndexOptions
from retrieval_service.results import (
  EditResult,
  IndexSwappedError,
  SearchResult,
  ServerStatus,
  SwapResult,
)
from retrieval_service.wire import Request, Vectors

__all__ = ['IndexSwappedError', 'RetrievalClient', 'RetrievalError']


class RetrievalClient(Editing):
  """A connection to a retrieval process; may be shared among threads.

  It is a `ralm_jax.retrieval.backend.SearchBackend`, where the methods are described that both
  backends have. Besides, every call raises `RetrievalError` where the process cannot be reached.
  """

  needs_strict_order = False

  def __init__(self, address: str, *, timeout_s: float = 60.0, retry_for_s: float = 300.0):
    """Connects to 'host:port' on the first call; a malformed address is a ValueError.

    One try of a call has `timeout_s`, builds and edits have any time; `retry_for_s` is how long an
    unreachable process is waited for.
    """
    self.address = address
    self.index_id = ''  #: that all calls are for, see `stay_with`; '': whichever is served
    self._connection = Connection(address, timeout_s=timeout_s, retry_for_s=retry_for_s)
    self._stub = self._connection.stub

  def __enter__(self) -> RetrievalClient:
    return self

  def __exit__(self, *unused_exception) -> None:
    self.close()

  def close(self) -> None:
    self._connection.close()

  def stay_with(self, index_id: str) -> None:
    """Makes every later call an error once another index than `status().index_id` is served."""
    self.index_id = index_id

  def search(
    self,
    query_embeddings: np.ndarray,
    k: int,
    *,
    return_embeddings: bool = False,
    generation: int | None = None,
    index_id: str = '',
  ) -> SearchResult:
    """See `SearchBackend.search`: all answers come from one generation of one index."""
    queries = np.ascontiguousarray(query_embeddings, '<f4')
    checks.check_queries(queries, k)
    batch, dim = queries.shape
    # Query, ids, scores and embeddings of one query: parts stay in the limits.
    row_bytes = 4 * dim + k * (12 + (2 * dim if return_embeddings else 0))
    step = max(1, protocol.SEARCH_BYTES // row_bytes)
    ask = functools.partial(self._search, k=k, return_embeddings=return_embeddings)
    index_id = index_id or self.index_id
    while True:
      first = ask(queries[:step], generation=generation or 0, index_id=index_id)
      try:
        rest = [
          ask(queries[begin : begin + step], generation=first.generation, index_id=first.index_id)
          for begin in range(step, batch, step)
        ]
      except IndexSwappedError:  # between two parts: all of them anew
        if index_id:
          raise
        continue
      return _joined([first, *rest]) if rest else first

  def _search(
    self, queries: np.ndarray, k: int, return_embeddings: bool, generation: int, index_id: str
  ) -> SearchResult:
    batch, dim = queries.shape
    request = retrieval_pb2.SearchRequest(
      queries=queries.tobytes(),
      dim=dim,
      k=k,
      return_embeddings=return_embeddings,
      generation=generation,
      index_id=index_id,
    )
    response = self._connection.call('search', self._stub.Search, request)
    embeddings = None
    if return_embeddings:
      embeddings = np.frombuffer(response.embeddings, '<f2').reshape(batch, k, dim)
    ids = np.frombuffer(response.ids, '<i8').reshape(batch, k)
    scores = np.frombuffer(response.scores, '<f4').reshape(batch, k)
    stamp = response.edits, response.index_id
    return SearchResult(ids, scores, response.generation, embeddings, *stamp)

  def build(
    self,
    chunks: Iterable[Vectors],
    *,
    dim: int,
    options: IndexOptions | None = None,
    metadata: dict[str, Any] | None = None,
    build_id: str | None = None,
    edits_applied: int | None = None,
    forget_edits: bool = False,
  ) -> int:
    """See `SearchBackend.build`.

    A collection of chunks is sent again when the process dies meanwhile, an iterator cannot be.
    """
    header = retrieval_pb2.BuildHeader(
      dim=dim,
      metadata_json=wire.write_metadata(metadata),
      build_id=build_id or uuid.uuid4().hex,
      edits_applied=edits_applied,
      forget_edits=forget_edits,
      index_id=self.index_id,
      options=wire.write_options(options or IndexOptions()),
    )
    build = self._stub.Build
    return self._upload('build', build, retrieval_pb2.BuildRequest, header, chunks).generation

  def compact(self) -> int:
    """Builds a generation with all edits folded in, trained anew."""
    request = retrieval_pb2.CompactRequest(build_id=uuid.uuid4().hex, index_id=self.index_id)
    return self._connection.call('compact', self._stub.Compact, request, timeout_s=None).generation

  def missing(self, ids: np.ndarray | Sequence[int]) -> np.ndarray:
    """Those of `ids`, [n] int64, that the served generation has not."""
    header = retrieval_pb2.EditHeader(
      dim=1, delete_ids=wire.write_ids(ids), check_only=True, index_id=self.index_id
    )
    response = self._upload('edit', self._stub.Edit, retrieval_pb2.EditRequest, header, [])
    return wire.read_ids(response.absent_ids)

  def _edit(
    self, wanted: WantedEdit, *, only_new_ids: bool = False, delete_absent: bool = False
  ) -> EditResult:
    if wanted.embeddings.ndim != 2:
      raise ValueError(
        f'embeddings must be [rows, dim], found shape {list(wanted.embeddings.shape)}'
      )
    header = retrieval_pb2.EditHeader(
      edit_id=uuid.uuid4().hex,
      dim=wanted.dim,
      delete_ids=wire.write_ids(wanted.delete_ids),
      metadata_json=wire.write_metadata(wanted.metadata),
      only_new_ids=only_new_ids,
      delete_absent=delete_absent,
      index_id=self.index_id,
    )
    chunks = [(wanted.ids, wanted.embeddings)]
    response = self._upload('edit', self._stub.Edit, retrieval_pb2.EditRequest, header, chunks)
    ids, absent = wire.read_ids(response.ids), wire.read_ids(response.absent_ids)
    return EditResult(response.generation, response.edits, response.count, ids, absent)

  def _upload(
    self, what: str, method: Callable, request: type, header: Any, chunks: Iterable[Vectors]
  ) -> Any:
    repeatable = iter(chunks) is not chunks
    if not repeatable:
      self.status()  # waits for the process before the one try there is
    failures = []  # gRPC swallows what a request iterator raises

    def requests() -> Iterator[Request]:
      try:
        yield request(header=header)
        for ids, embeddings in chunks:
          for chunk in wire.write_chunks(ids, embeddings, header.dim):
            yield request(chunk=chunk)
      except Exception as error:  # pylint: disable=broad-except
        failures.append(error)
        raise

    try:
      return self._connection.call(
        what, method, requests, timeout_s=None, retry=repeatable, failures=failures
      )
    except (RuntimeError, ConnectionError):
      if failures:
        raise failures[0] from None
      raise

  def status(self) -> ServerStatus:
    """What the process serves; IndexSwappedError where `stay_with` named another index."""
    return self._own(wire.read_status(self._connection.status()))

  def _own(self, status: ServerStatus) -> ServerStatus:
    if self.index_id and status.index_id != self.index_id:
      process = f'the retrieval process at {self.address}'
      raise IndexSwappedError.of(process, status.index_directory, status.index_id, self.index_id)
    return status

  def pin(self, owner: str, generations: Sequence[int]) -> None:
    """Says which generations `owner` needs from now on; [] for none."""
    request = retrieval_pb2.PinRequest(owner=owner, generations=generations, index_id=self.index_id)
    self._connection.call('pin', self._stub.Pin, request)

  def reload(self) -> int:
    """Serves what the index folder holds now: its CURRENT, and its edits."""
    # A generation is read whole before it is served: it takes what it takes.
    request = retrieval_pb2.ReloadRequest(index_id=self.index_id)
    return self._connection.call('reload', self._stub.Reload, request, timeout_s=None).generation

  def swap(self, index_directory: str | os.PathLike[str]) -> SwapResult:
    """Has the process serve another index folder on its machine, until it ends.

    It is opened and read aside first, which takes memory for both. Searches that have begun end on
    the former index, all later ones go to this one.

    Raises:
      ValueError: the path is relative, there is no index, or it is damaged, or of another
        dimension; the former one stays served.
    """
    folder = os.fspath(index_directory)
    request = retrieval_pb2.SwapRequest(index_directory=folder, index_id=self.index_id)
    response = self._connection.call('swap', self._stub.Swap, request, timeout_s=None)
    return SwapResult(
      response.index_id,
      response.generation,
      response.count,
      response.former_index_id,
      response.former_directory,
      tuple(response.pinned_by),
    )

  def wait_until_ready(self, timeout_s: float = 60.0) -> ServerStatus:
    """Waits until the process answers; RetrievalError where it does not."""
    return self._own(wire.read_status(self._connection.status(retry_for_s=timeout_s)))


def _joined(parts: list[SearchResult]) -> SearchResult:
  """The answers to the parts of one batch, from one generation."""
  first = parts[0]
  join = lambda name: np.concatenate([getattr(part, name) for part in parts])
  embeddings = None if first.embeddings is None else join('embeddings')
  edits = min(part.edits for part in parts)
  ids, scores = join('ids'), join('scores')
  return SearchResult(ids, scores, first.generation, embeddings, edits, first.index_id)
