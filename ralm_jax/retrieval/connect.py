"""Opening an index: a retrieval process, remote or our own, or the devices."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import logging
import os
import threading

from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.retrieval import retriever
from ralm_jax.retrieval.backend import SearchBackend
from ralm_jax.retrieval.device.index import DeviceIndex
from ralm_jax.retrieval.device.search import DeviceOptions
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.training.partitioning import Partitioner
from retrieval_service.client import RetrievalClient
from retrieval_service.local import LocalRetrievalServer
from retrieval_service.results import ServerStatus


@dataclasses.dataclass(frozen=True)
class Connection:
  """What searches an index, and the corpus its ids belong to."""

  client: SearchBackend
  store: PassageStore
  corpus: str | os.PathLike[str] | None = None  #: that was asked for; None took the index's own

  def open_corpus(self, status: ServerStatus, former: PassageStore) -> PassageStore:
    """The corpus of an index that took another's place, see `find_corpus`; maybe `former`."""
    if self.corpus is not None and retriever.is_index_of_corpus(
      status.metadata, status.next_id, self.store
    ):
      return self.store
    path = find_corpus(status.metadata, status.index_directory)
    if os.path.realpath(path) == os.path.realpath(former.directory):
      return former
    return PassageStore.open(path)


@contextlib.contextmanager
def connect(
  source: IndexSource, *, partitioner: Partitioner | None = None, follow_swaps: bool = False
) -> Iterator[Connection]:
  """Connects to the address, or starts a process for the folder on loopback.

  A process of our own is supervised: it is started again when it dies, and ends with this program
  even if that is killed. With the backend 'device' there is none: the index lies on the devices of
  this program.

  Args:
    partitioner: of the mesh whose devices hold the index, all by default.
    follow_swaps: whether the caller minds which index answers: a process may be told to serve
      another. Without, every call is an error from then on (`RetrievalClient.stay_with`).

  Raises:
    ValueError: both or neither of folder and address, or a backend that does not go with it.
    FileNotFoundError: there is no such index or corpus.
    retrieval_service.client.RetrievalError: the process cannot be reached.
  """
  if (source.path is None) == (source.address is None):
    raise ValueError(
      'Give either an index folder (--index) or the address of a running '
      'retrieval process (--retrieval_address).'
    )
  source.check_backend()
  if source.path is not None:
    check_index_folder(source.path)
  with contextlib.ExitStack() as stack:
    client: RetrievalClient | DeviceIndex
    if source.backend == 'device' and source.path is not None:
      options = DeviceOptions(source.device_dtype, source.approximate)
      client = DeviceIndex(source.path, partitioner or Partitioner(), options)
    else:
      address = source.address or stack.enter_context(_serving(source))
      client = RetrievalClient(address, retry_for_s=source.retry_for_s)
    stack.enter_context(client)
    status = client.status()
    if isinstance(client, RetrievalClient) and not follow_swaps:
      client.stay_with(status.index_id)
    store = PassageStore.open(os.fspath(source.corpus or find_corpus(status.metadata, source.path)))
    yield Connection(client, store, source.corpus)


def check_lookahead(client: SearchBackend, retrieval_lookahead: int) -> None:
  """Raises ValueError where searching during a step could end in a deadlock."""
  if retrieval_lookahead and client.needs_strict_order:
    raise ValueError(
      "The backend 'device' on several processes searches with all devices together, and a search "
      'during the train step could come before it on one host and after it on another; set '
      'retrieval_lookahead to 0 (gin: RETRIEVAL_LOOKAHEAD = 0).'
    )


def check_index_folder(index: str | os.PathLike[str]) -> None:
  """Raises FileNotFoundError unless an index has been built there."""
  if not os.path.exists(os.path.join(index, 'CURRENT')):
    raise FileNotFoundError(
      f'{os.fspath(index)} holds no index; build one with `ralm embed '
      '--checkpoint CKPT --corpus CORPUS --output INDEX`.'
    )


def find_corpus(metadata: dict, index: str | os.PathLike[str] | None = None) -> str:
  """The corpus an index names, also after both were moved together.

  Raises:
    ValueError: the index names none.
    FileNotFoundError: it is not where the index says.
  """
  if 'corpus' not in metadata:
    raise ValueError('The index does not name its corpus; build it with `ralm embed`.')
  candidates = [metadata['corpus']]
  if index is not None and 'corpus_relative' in metadata:
    candidates.insert(0, os.path.normpath(os.path.join(index, metadata['corpus_relative'])))
  for path in candidates:
    if os.path.isdir(path):
      return path
  raise FileNotFoundError(
    f'The index was built of the corpus {metadata["corpus"]}, which is not '
    'there; say where it is with --corpus.'
  )


@contextlib.contextmanager
def _serving(source: IndexSource, period_s: float = 1.0) -> Iterator[str]:
  """The address of a process of our own, which is restarted should it die."""
  with LocalRetrievalServer(
    source.path or '', nprobe=source.nprobe, rerank=source.rerank, threads=source.threads
  ) as server:
    stopping = threading.Event()

    def watch() -> None:
      while not stopping.wait(period_s):
        try:
          server.ensure_alive()
        except RuntimeError as e:
          logging.error('The retrieval process does not start again: %s', e)

    thread = threading.Thread(target=watch, daemon=True, name='supervisor')
    thread.start()
    try:
      yield server.address
    finally:
      stopping.set()
      thread.join()
