"""Writing a new generation aside, and committing it in one step."""

from collections.abc import Callable
import contextlib
import datetime
import errno
import fcntl
import json
import os
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from retrieval_service import faiss_building, manifest as manifests
from retrieval_service.faiss_building import IndexPlan
from retrieval_service.manifest import FileRecord, HashingFile, Manifest
from retrieval_service.options import IndexOptions

if TYPE_CHECKING:
  from retrieval_service.generations import GenerationStore


class GenerationWriter:
  """Takes vectors, then trains, writes and publishes a generation.

  Use as a context manager: without a commit, or on an exception, nothing
  remains and the former generation stays current.

      with store.begin(options, dim, metadata) as writer:
        writer.append(ids, embeddings)
        number = writer.commit()
  """

  def __init__(
    self,
    store: 'GenerationStore',
    options: IndexOptions,
    dim: int,
    metadata: dict[str, Any],
    *,
    build_id: str = '',
    edits_applied: int = 0,
    edits_forgotten: int = 0,
    progress: bool = False,
    check: Callable[[], None] = lambda: None,
  ):
    """Creates the folder aside.

    Args:
      store: Where the generation goes.
      options: The index to build.
      dim: Embedding size.
      metadata: JSON that stays with the generation.
      build_id: Recorded in the manifest, as the next two are.
      edits_applied: See `Manifest`.
      edits_forgotten: Likewise.
      progress: Shows a bar on stderr while adding.
      check: Called now and then while building; raises to abandon it.

    Raises:
      ValueError: Options, dimension or metadata that cannot be.
    """
    if dim < 1:
      raise ValueError(f'dim must be at least 1, found {dim}')
    try:
      self._metadata = json.loads(json.dumps(metadata))
    except (TypeError, ValueError) as error:
      raise ValueError(f'metadata must be JSON: {error}') from error
    if not isinstance(self._metadata, dict):
      raise ValueError(f'metadata must be a dict, found {type(metadata)}')
    self._store = store
    self._options = options
    self._dim = dim
    self._build_id = build_id
    self._edits_applied = edits_applied
    self._edits_forgotten = edits_forgotten
    self._progress = progress
    self._check = check
    self._count = 0
    self._ids: list[np.ndarray] = []
    if not options.is_friendly:
      faiss_building.new_index(options.index_type, dim)  # fail before the upload
    self._open()

  def _open(self) -> None:
    # Under the store's lock, or a cleaner could come before the inner lock.
    with self._explained(), self._store.lock():
      self._folder = tempfile.mkdtemp(prefix='.tmp-generation-', dir=self._store.directory)
      self._lock = open(os.path.join(self._folder, manifests.WRITER_LOCK), 'wb')
      fcntl.flock(self._lock, fcntl.LOCK_EX)
    self._file = HashingFile(self._path(manifests.EMBEDDINGS))

  def __enter__(self) -> 'GenerationWriter':
    return self

  def __exit__(self, *unused_exception) -> None:
    self.abort()

  @property
  def count(self) -> int:
    """Vectors so far."""
    return self._count

  def append(self, ids: np.ndarray | None, embeddings: np.ndarray) -> None:
    """Appends vectors.

    Args:
      ids: [rows] int64, not negative; None continues the row numbers.
      embeddings: [rows, dim] float16 or float32; stored as float16.

    Raises:
      ValueError: Shapes that do not fit, or values float16 cannot hold.
      OSError: The disk is full.
    """
    if self._folder is None:
      raise ValueError('this generation is committed or abandoned already')
    if embeddings.ndim != 2 or embeddings.shape[1] != self._dim:
      raise ValueError(
        f'embeddings of shape {list(embeddings.shape)} do not '
        f'fit the index, which has dimension {self._dim}'
      )
    rows = len(embeddings)
    if ids is None:
      ids = np.arange(self._count, self._count + rows)
    ids = np.asarray(ids, np.int64)
    if ids.shape != (rows,):
      raise ValueError(f'{rows} embeddings came with ids of shape {list(ids.shape)}')
    if rows and ids.min() < 0:
      raise ValueError(f'passage ids must not be negative, found {ids.min()}')
    with np.errstate(over='ignore'):
      stored = np.ascontiguousarray(embeddings, np.float16)
    finite = np.isfinite(stored).all(axis=1)
    if not finite.all():
      row = int(np.flatnonzero(~finite)[0])
      raise ValueError(
        f'the embedding of passage {ids[row]} holds a value that float16 '
        'cannot: not a number, or beyond 65504; check the passage encoder'
      )
    with self._explained():
      self._file.write(stored)
    self._ids.append(ids)
    self._count += rows

  def commit(self, make_current: bool = True) -> int:
    """Trains and writes the index, publishes the generation.

    Args:
      make_current: Also points CURRENT at it.

    Returns:
      The new generation's number.

    Raises:
      ValueError: No vectors, duplicate ids, or too few for the index.
      OSError: The disk is full.
    """
    ids = np.concatenate(self._ids) if self._ids else np.zeros(0, np.int64)
    ids_are_rows = np.array_equal(ids, np.arange(len(ids)))
    if not ids_are_rows:
      self._refuse_duplicates(ids)
    with self._explained():
      files = {manifests.EMBEDDINGS: self._file.finish()}
      if not ids_are_rows:
        file = HashingFile(self._path(manifests.IDS))
        file.write(ids)
        files[manifests.IDS] = file.finish()
    embeddings = (
      np.memmap(self._path(manifests.EMBEDDINGS), np.float16, 'r', shape=(len(ids), self._dim))
      if len(ids)
      else (np.zeros((0, self._dim), np.float16))
    )
    index, plan = faiss_building.build_index(
      embeddings, self._options, progress=self._progress, check=self._check
    )
    with self._explained():
      files[manifests.INDEX] = self._write_index(index)
      self._check()
      return self._publish(plan, files, ids, make_current)

  def _refuse_duplicates(self, ids: np.ndarray) -> None:
    order = np.argsort(ids, kind='stable')
    repeats = np.flatnonzero(np.diff(ids[order]) == 0)
    if not len(repeats):
      return
    duplicate = ids[order[repeats[0]]]
    raise ValueError(
      f'passage id {duplicate} occurs more than once ({len(repeats)} repeats in all)'
    )

  def _write_index(self, index: faiss.Index) -> FileRecord:
    file = HashingFile(self._path(manifests.INDEX))
    try:
      faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
      return file.finish()
    finally:
      file.close()

  def _publish(
    self, plan: IndexPlan, files: dict[str, FileRecord], ids: np.ndarray, make_current: bool
  ) -> int:
    with self._store.lock():
      self._store.ensure_index_id()
      number = max(self._store.numbers(), default=0) + 1
      manifest = Manifest(
        generation=number,
        dim=self._dim,
        count=len(ids),
        options=self._options,
        factory=plan.factory,
        fallback=plan.fallback,
        files=files,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        metadata=self._metadata,
        build_id=self._build_id,
        make_current=make_current,
        edits_applied=self._edits_applied,
        edits_forgotten=self._edits_forgotten,
        next_id=max(int(ids.max()) + 1, self._store.next_id()),
      )
      manifests.write_text(self._path(manifests.MANIFEST), manifest.to_json())
      os.remove(self._path(manifests.WRITER_LOCK))
      os.chmod(self._folder, 0o755)  # mkdtemp's 0700 would hide it
      manifests.flush_folder(self._folder)
      os.rename(self._folder, self._store.folder(number))
      self._folder = None
      manifests.flush_folder(self._store.directory)
      if make_current:
        self._store.point_at(number)
    self._lock.close()
    return number

  def abort(self) -> None:
    """Removes what was written; nothing to do after a commit."""
    self._file.close()
    if self._folder is not None:
      shutil.rmtree(self._folder, ignore_errors=True)
      self._folder = None
    self._lock.close()

  def _path(self, name: str) -> str:
    return os.path.join(self._folder, name)

  @contextlib.contextmanager
  def _explained(self):
    """Turns a full disk into one message that tells what to do."""
    try:
      yield
    except OSError as error:
      if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise
      raise OSError(
        error.errno,
        f'no space left for a new generation in {self._store.directory} '
        f'(stopped after {self._count} vectors of {2 * self._dim} bytes plus '
        'their index). The former generation stays in use: free space, or '
        'remove old generations, and build again',
      ) from error
