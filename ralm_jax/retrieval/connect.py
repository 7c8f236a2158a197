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
from ralm_jax.retrieval.device.index import DeviceIndex
from ralm_jax.training.partitioning import Partitioner
from retrieval_service.client import RetrievalClient
from retrieval_service.local import LocalRetrievalServer
from retrieval_service.results import ServerStatus

BACKENDS = ('process', 'device')


@dataclasses.dataclass(frozen=True)
class Connection:
  """What searches an index, and the corpus its ids belong to.

  Attributes:
    client: of the index.
    store: the corpus.
    corpus: the folder that was asked for; None took the one the index names.
  """

  client: RetrievalClient | DeviceIndex
  store: PassageStore
  corpus: str | os.PathLike[str] | None = None

  def open_corpus(self, status: ServerStatus, former: PassageStore) -> PassageStore:
    """The corpus of an index that took another's place.

    Args:
      status: of the process that serves it.
      former: the corpus of the one before; returned if it is the same folder.

    Raises:
      ValueError: the index names none.
      FileNotFoundError: it is not where the index says.
    """
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
  *,
  index: str | os.PathLike[str] | None = None,
  address: str | None = None,
  corpus: str | os.PathLike[str] | None = None,
  retry_for_s: float = 300.0,
  nprobe: int | None = None,
  rerank: int | None = None,
  threads: int | None = None,
  backend: str = 'process',
  partitioner: Partitioner | None = None,
  device_dtype: str = 'bfloat16',
  approximate: bool = False,
  follow_swaps: bool = False,
) -> Iterator[Connection]:
  """Connects to `address`, or starts a process for `index` on loopback.

  A process of our own is supervised: it is started again when it dies, and
  ends with this program even if that is killed. With the backend 'device' there
  is none: the index lies on the devices of this program.

  Args:
    index: the INDEX folder; not with `address`.
    address: 'host:port' of a running process.
    corpus: the CORPUS folder; None takes the one the index names.
    retry_for_s: how long searches wait for a dead process.
    nprobe: inverted lists visited, of our own process.
    rerank: candidates re-ranked, of our own process.
    threads: FAISS threads, of our own process.
    backend: 'process' or 'device'.
    partitioner: of the mesh whose devices hold the index, all of this program's
      by default; of the backend 'device', as is what follows.
    device_dtype: 'bfloat16', 'float16' or 'float32'.
    approximate: approximate top-k, which a TPU is faster at.
    follow_swaps: whether the caller minds which index answers: a process may be
      told to serve another. Without, every call is an error from then on
      (`RetrievalClient.stay_with`).

  Raises:
    ValueError: both or neither of `index` and `address`; an unknown backend, or
      one that does not go with the address.
    FileNotFoundError: there is no such index or corpus.
    retrieval_service.client.RetrievalError: the process cannot be reached.
  """
  if (index is None) == (address is None):
    raise ValueError(
      'Give either an index folder (--index) or the address of a running '
      'retrieval process (--retrieval_address).'
    )
  check_backend(backend, address)
  with contextlib.ExitStack() as stack:
    if index is not None:
      check_index_folder(index)
    if backend == 'device':
      client = DeviceIndex(
        index, partitioner or Partitioner(), dtype=device_dtype, approximate=approximate
      )
    else:
      if address is None:
        server = stack.enter_context(
          LocalRetrievalServer(index, nprobe=nprobe, rerank=rerank, threads=threads)
        )
        stack.enter_context(_supervised(server))
        address = server.address
      client = RetrievalClient(address, retry_for_s=retry_for_s)
    stack.enter_context(client)
    status = client.status()
    if backend == 'process' and not follow_swaps:
      client.stay_with(status.index_id)
    store = PassageStore.open(corpus or find_corpus(status.metadata, index))
    yield Connection(client, store, corpus)


def check_backend(backend: str, address: str | None) -> None:
  """Raises ValueError for a backend that cannot be."""
  if backend not in BACKENDS:
    raise ValueError(f'The retrieval backend is one of {", ".join(BACKENDS)}, not {backend!r}.')
  if backend == 'device' and address is not None:
    raise ValueError(
      "The backend 'device' searches an index folder on this program's own "
      'devices; give the folder (--index) in place of the address '
      f'{address}.'
    )


def check_lookahead(client: object, retrieval_lookahead: int) -> None:
  """Raises ValueError where searching during a step could end in a deadlock.

  See `DeviceIndex.needs_strict_order`.
  """
  if retrieval_lookahead and getattr(client, 'needs_strict_order', False):
    raise ValueError(
      "The backend 'device' on several processes searches with all devices "
      'together, and a search during the train step could come before it on '
      'one host and after it on another; set retrieval_lookahead to 0 (gin: '
      'RETRIEVAL_LOOKAHEAD = 0).'
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
def _supervised(server: LocalRetrievalServer, period_s: float = 1.0) -> Iterator[None]:
  """Restarts the process while the context lasts, should it die."""
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
    yield
  finally:
    stopping.set()
    thread.join()
