"""Talking to the retrieval process: needs NumPy and gRPC, not FAISS."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import functools
import json
import os
from typing import Any
import uuid

import numpy as np

from retrieval_service import protocol, retrieval_pb2, wire
from retrieval_service.connection import Connection, RetrievalError
from retrieval_service.options import IndexOptions
from retrieval_service.results import (
  EditResult,
  IndexSwappedError,
  SearchResult,
  ServerStatus,
  SwapResult,
)
from retrieval_service.wire import Request

__all__ = [
  'EditResult',
  'IndexSwappedError',
  'RetrievalClient',
  'RetrievalError',
  'SearchResult',
  'ServerStatus',
  'SwapResult',
]


class RetrievalClient:
  """A connection to a retrieval process; may be shared among threads.

  Attributes:
    address: 'host:port'.
    index_id: The index that all calls are for, see `stay_with`; '': whichever
      is served.
  """

  def __init__(self, address: str, *, timeout_s: float = 60.0, retry_for_s: float = 300.0):
    """Connects on the first call.

    Args:
      address: 'host:port'.
      timeout_s: For one try of a call; builds and edits have none.
      retry_for_s: How long an unreachable process is waited for.

    Raises:
      ValueError: The address is malformed.
    """
    self.address = address
    self.index_id = ''
    self._connection = Connection(address, timeout_s=timeout_s, retry_for_s=retry_for_s)
    self._stub = self._connection.stub

  def __enter__(self) -> 'RetrievalClient':
    return self

  def __exit__(self, *unused_exception) -> None:
    self.close()

  def close(self) -> None:
    self._connection.close()

  def stay_with(self, index_id: str) -> None:
    """Makes every later call an error once another index is served.

    For those who would take what it says for what their own index says, and
    who change the index.

    Args:
      index_id: As `status().index_id` gave it.
    """
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
    """The k passages of largest inner product for each query.

    All answers of one call come from one generation of one index.

    Args:
      query_embeddings: [batch, dim], converted to float32.
      k: Passages for each query.
      return_embeddings: Also brings the stored embeddings.
      generation: An older generation's number; None: the current one.
      index_id: The index it must be, in place of `stay_with`; '': that.

    Raises:
      ValueError: Wrong shape or dimension, or more passages than there are.
      LookupError: The generation does not exist any more.
      IndexSwappedError: Another index is served.
      RuntimeError: The index is empty, or the process failed.
      RetrievalError: The process cannot be reached.
    """
    queries = np.ascontiguousarray(query_embeddings, '<f4')
    if queries.ndim != 2:
      raise ValueError(f'query_embeddings must be [batch, dim], found shape {list(queries.shape)}')
    if k < 1:
      raise ValueError(f'k must be at least 1, found {k}')
    batch, dim = queries.shape
    # Query, ids, scores and embeddings of one query: parts stay in the limits.
    row_bytes = 4 * dim + k * (12 + (2 * dim if return_embeddings else 0))
    step = max(1, protocol.SEARCH_BYTES // row_bytes)
    search = functools.partial(self._search, k=k, return_embeddings=return_embeddings)
    index_id = index_id or self.index_id
    if batch <= step:
      return search(queries, generation=generation or 0, index_id=index_id)
    parts = [queries[begin : begin + step] for begin in range(0, batch, step)]
    answers = []
    while len(answers) < len(parts):
      answers = [search(parts[0], generation=generation or 0, index_id=index_id)]
      first = answers[0]
      try:
        answers += [
          search(part, generation=first.generation, index_id=first.index_id) for part in parts[1:]
        ]
      except IndexSwappedError:  # between two parts: all of them anew
        if index_id:
          raise
    return SearchResult(
      np.concatenate([answer.ids for answer in answers]),
      np.concatenate([answer.scores for answer in answers]),
      first.generation,
      np.concatenate([answer.embeddings for answer in answers]) if return_embeddings else None,
      min(answer.edits for answer in answers),
      first.index_id,
    )

  def _search(self, queries, k, return_embeddings, generation, index_id) -> SearchResult:
    batch, dim = queries.shape
    response = self._connection.call(
      'search',
      self._stub.Search,
      retrieval_pb2.SearchRequest(
        queries=queries.tobytes(),
        dim=dim,
        k=k,
        return_embeddings=return_embeddings,
        generation=generation,
        index_id=index_id,
      ),
    )
    embeddings = None
    if return_embeddings:
      embeddings = np.frombuffer(response.embeddings, '<f2').reshape(batch, k, dim)
    return SearchResult(
      np.frombuffer(response.ids, '<i8').reshape(batch, k),
      np.frombuffer(response.scores, '<f4').reshape(batch, k),
      response.generation,
      embeddings,
      response.edits,
      response.index_id,
    )

  def build(
    self,
    chunks: Iterable[tuple[np.ndarray | None, np.ndarray]],
    *,
    dim: int,
    options: IndexOptions | None = None,
    metadata: dict[str, Any] | None = None,
    build_id: str | None = None,
    edits_applied: int | None = None,
    forget_edits: bool = False,
  ) -> int:
    """Uploads vectors and builds a generation, which is served from then on.

    Passages that edits deleted stay deleted in it, until their ids are put
    again; vectors that edits put stay where it has no such id.

    Args:
      chunks: Pairs of ids ([rows] int64, or None for row numbers throughout)
        and embeddings ([rows, dim], float16 as such, all else as float32); of
        any size. A collection is sent again when the process dies meanwhile;
        an iterator can only be sent once.
      dim: Embedding size.
      options: The index to build; None: a flat one.
      metadata: JSON that stays with the generation.
      build_id: A name of one's own: a whole generation on disk of that name is
        served again instead, whatever the chunks are.
      edits_applied: The last edit that the vectors know of (`status().edits`
        when their making began): later ones hold in place of what the
        generation has. None: all there are when the upload begins.
      forget_edits: Those edits do not hold in it, nor in later generations:
        for another corpus, whose ids mean other passages.

    Returns:
      The new generation's number.

    Raises:
      ValueError: What the process says of the vectors or the options.
      RuntimeError: The build failed, on a full disk for one.
      RetrievalError: The process cannot be reached, or died in mid-build.
    """
    options = options or IndexOptions()
    header = retrieval_pb2.BuildHeader(
      dim=dim,
      metadata_json=_to_json(metadata),
      build_id=build_id or uuid.uuid4().hex,
      edits_applied=edits_applied,
      forget_edits=forget_edits,
      index_id=self.index_id,
      options=retrieval_pb2.IndexOptions(**options.to_dict()),
    )
    return self._upload(
      'build', self._stub.Build, retrieval_pb2.BuildRequest, header, chunks
    ).generation

  def compact(self) -> int:
    """Builds a generation with all edits folded in, trained anew.

    Searches are then as fast as if it had been built so.

    Returns:
      The new generation's number.

    Raises:
      ValueError: All passages are deleted.
      RuntimeError: The index is empty, or the build failed.
      RetrievalError: The process cannot be reached.
    """
    return self._connection.call(
      'compact',
      self._stub.Compact,
      retrieval_pb2.CompactRequest(build_id=uuid.uuid4().hex, index_id=self.index_id),
      timeout_s=None,
    ).generation

  def edit(
    self,
    ids: np.ndarray | None = None,
    embeddings: np.ndarray | None = None,
    *,
    delete_ids: np.ndarray | Sequence[int] | None = None,
    metadata: dict[str, Any] | None = None,
    delete_absent: bool = False,
  ) -> EditResult:
    """Puts and deletes passages by id, without a rebuild: all or nothing.

    When it returns, the edit is on the disk, and every search that starts
    later sees it, of older generations too. It lasts, through later
    generations as well (see `build`).

    Args:
      ids: [rows] int64 to put the vectors under, in place of what is there;
        None: on from `status().next_id`.
      embeddings: [rows, dim]; None: nothing is put.
      delete_ids: [deletes] int64 of passages to delete.
      metadata: JSON merged over that of the index.
      delete_absent: Whether passages may be deleted that the served generation
        has not; they are then out of all others, and of those built later.

    Raises:
      ValueError: Vectors or ids that cannot be, or one id in both.
      LookupError: A passage to delete does not exist, without `delete_absent`.
      RuntimeError: The index is empty, or the disk is full.
      RetrievalError: The process cannot be reached.
      In each case but the last nothing has changed.
    """
    return self._edit(ids, embeddings, delete_ids, metadata, delete_absent=delete_absent)

  def missing(self, ids: np.ndarray | Sequence[int]) -> np.ndarray:
    """Those of `ids`, [n] int64, that the served generation has not."""
    header = retrieval_pb2.EditHeader(
      dim=1, delete_ids=wire.write_ids(ids), check_only=True, index_id=self.index_id
    )
    response = self._upload('edit', self._stub.Edit, retrieval_pb2.EditRequest, header, [])
    return wire.read_ids(response.absent_ids)

  def add(
    self, ids: np.ndarray | None, embeddings: np.ndarray, metadata: dict[str, Any] | None = None
  ) -> EditResult:
    """As `edit`, of ids that the index does not have, or ValueError."""
    return self._edit(ids, embeddings, None, metadata, only_new_ids=True)

  def delete(self, ids: np.ndarray | Sequence[int]) -> EditResult:
    """Deletes passages by id; see `edit`."""
    return self._edit(None, None, ids, None)

  def _edit(
    self,
    ids,
    embeddings,
    delete_ids,
    metadata,
    only_new_ids: bool = False,
    delete_absent: bool = False,
  ) -> EditResult:
    if embeddings is None:
      if ids is not None and len(ids):
        raise ValueError(
          f'{len(ids)} ids came without embeddings; to delete passages give delete_ids'
        )
      embeddings = np.zeros((0, 1), np.float16)
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2:
      raise ValueError(f'embeddings must be [rows, dim], found shape {list(embeddings.shape)}')
    header = retrieval_pb2.EditHeader(
      edit_id=uuid.uuid4().hex,
      dim=embeddings.shape[1],
      delete_ids=wire.write_ids([] if delete_ids is None else delete_ids),
      metadata_json=_to_json(metadata),
      only_new_ids=only_new_ids,
      delete_absent=delete_absent,
      index_id=self.index_id,
    )
    response = self._upload(
      'edit', self._stub.Edit, retrieval_pb2.EditRequest, header, [(ids, embeddings)]
    )
    return EditResult(
      response.generation,
      response.edits,
      response.count,
      wire.read_ids(response.ids),
      wire.read_ids(response.absent_ids),
    )

  def _upload(
    self,
    what: str,
    method: Callable,
    request: type,
    header,
    chunks: Iterable[tuple[np.ndarray | None, np.ndarray]],
  ):
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
    """What the process serves.

    Raises:
      IndexSwappedError: It serves another index than that of `stay_with`.
      RetrievalError: It cannot be reached, or speaks another version.
    """
    return self._own(_read_status(self._connection.status()))

  def _own(self, status: ServerStatus) -> ServerStatus:
    if self.index_id and status.index_id != self.index_id:
      raise IndexSwappedError.of(
        f'the retrieval process at {self.address}',
        status.index_directory,
        status.index_id,
        self.index_id,
      )
    return status

  def pin(self, owner: str, generations: Sequence[int]) -> None:
    """Says which generations `owner` needs from now on; [] for none.

    Raises:
      LookupError: One of them does not exist.
    """
    self._connection.call(
      'pin',
      self._stub.Pin,
      retrieval_pb2.PinRequest(owner=owner, generations=generations, index_id=self.index_id),
    )

  def reload(self) -> int:
    """Serves what the index folder holds now: its CURRENT, and its edits.

    Returns:
      The number of the generation served.

    Raises:
      ValueError: It is damaged; the former one stays served.
    """
    # A generation is read whole before it is served: it takes what it takes.
    return self._connection.call(
      'reload',
      self._stub.Reload,
      retrieval_pb2.ReloadRequest(index_id=self.index_id),
      timeout_s=None,
    ).generation

  def swap(self, index_directory: str | os.PathLike) -> SwapResult:
    """Has the process serve another index folder, until it ends.

    It is opened and read aside first, which takes memory for both. Searches
    that have begun end on the former index, all later ones go to this one.

    Args:
      index_directory: On the process's machine, absolute.

    Raises:
      ValueError: There is no index, or it is damaged, or of another dimension;
        the former one stays served.
    """
    response = self._connection.call(
      'swap',
      self._stub.Swap,
      retrieval_pb2.SwapRequest(index_directory=os.fspath(index_directory), index_id=self.index_id),
      timeout_s=None,
    )
    return SwapResult(
      response.index_id,
      response.generation,
      response.count,
      response.former_index_id,
      response.former_directory,
      tuple(response.pinned_by),
    )

  def wait_until_ready(self, timeout_s: float = 60.0) -> ServerStatus:
    """Waits until the process answers.

    Raises:
      RetrievalError: It does not within `timeout_s`.
    """
    return self._own(_read_status(self._connection.status(retry_for_s=timeout_s)))


def _read_status(response: retrieval_pb2.StatusResponse) -> ServerStatus:
  options = None
  if response.generation:
    options = IndexOptions.from_dict(
      {field.name: value for field, value in response.options.ListFields()}
    )
  return ServerStatus(
    generation=response.generation,
    count=response.count,
    dim=response.dim,
    options=options,
    factory=response.factory,
    metadata=json.loads(response.metadata_json or '{}'),
    generations=tuple(response.generations),
    building=response.building,
    index_directory=response.index_directory,
    edits=response.edits,
    next_id=response.next_id,
    index_id=response.index_id,
  )


def _to_json(metadata: dict[str, Any] | None) -> str:
  try:
    return json.dumps(metadata or {})
  except (TypeError, ValueError) as error:
    raise ValueError(f'metadata must be JSON: {error}') from error
