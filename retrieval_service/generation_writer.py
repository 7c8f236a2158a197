"""Writing a new generation aside, and committing it in one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import os
import shutil
import tempfile
from typing import Any

import numpy as np

from retrieval_service import checks, faiss_building, faiss_index, files, manifest
from retrieval_service.faiss_building import IndexPlan
from retrieval_service.files import FileRecord, HashingFile
from retrieval_service.generations import GenerationStore
from retrieval_service.manifest import Manifest
from retrieval_service.options import IndexOptions


@dataclasses.dataclass(frozen=True)
class EditBounds:
  """Up to which edits a generation's vectors stand in their place."""

  #: The last edit that the vectors know of, as `edit_log().last` gave it when their making began:
  #: what that edit and earlier ones put gives way to them. None: all edits there are.
  applied: int | None = None
  #: This edit and earlier ones, deletes among them, do not hold in the generation at all: for
  #: another corpus, whose ids mean other passages. None: those that the current one forgets.
  forgotten: int | None = None

  def of(self, store: GenerationStore) -> tuple[int, int]:
    """What they come to in an index, or ValueError."""
    last = store.edit_log().last
    applied, forgotten = last if self.applied is None else self.applied, self.forgotten
    if forgotten is None:
      number = store.current()
      forgotten = 0 if number is None else store.manifest(number).edits_forgotten
      forgotten = min(applied, forgotten)
    if not 0 <= forgotten <= applied <= last:
      raise ValueError(
        f'edits_applied={applied} and edits_forgotten={forgotten} must rise, up to {last}, the '
        'last edit of this index'
      )
    return applied, forgotten


def begin(
  store: GenerationStore,
  options: IndexOptions,
  dim: int,
  metadata: dict[str, Any] | None = None,
  *,
  build_id: str = '',
  edits: EditBounds = EditBounds(),
  progress: bool = False,
  check: Callable[[], None] = lambda: None,
) -> GenerationWriter:
  """Starts a new generation.

  Args:
    metadata: JSON that stays with the generation.
    build_id: what this build is called; a repeat is recognised by it.
    check: called now and then while building; raises to abandon it.

  Raises:
    ValueError: edits that have not been made, options, dimension or metadata that cannot be, or a
      damaged index.
  """
  applied, forgotten = edits.of(store)
  if dim < 1:
    raise ValueError(f'dim must be at least 1, found {dim}')
  try:
    metadata = json.loads(json.dumps(metadata or {}))
  except (TypeError, ValueError) as error:
    raise ValueError(f'metadata must be JSON: {error}') from error
  if not isinstance(metadata, dict):
    raise ValueError(f'metadata must be a dict, found {type(metadata)}')
  if not options.is_friendly:
    faiss_building.new_index(options.index_type, dim)  # fail before the upload
  # What is not known before the end is filled in by `commit`.
  draft = Manifest(0, dim, 0, options, '', False, {}, '', metadata, build_id)
  draft = dataclasses.replace(draft, edits_applied=applied, edits_forgotten=forgotten)
  return GenerationWriter(store, draft, progress=progress, check=check)


class GenerationWriter:
  """Takes vectors, then trains, writes and publishes a generation.

  Use as a context manager: without a commit, or on an exception, nothing
  remains and the former generation stays current.

      with generation_writer.begin(store, options, dim, metadata) as writer:
        writer.append(ids, embeddings)
        number = writer.commit()
  """

  def __init__(
    self, store: GenerationStore, draft: Manifest, *, progress: bool, check: Callable[[], None]
  ):
    """Creates the folder aside; `begin` makes the draft of the manifest."""
    self._store = store
    self._draft = draft
    self._progress = progress
    self._check = check
    self._ids: list[np.ndarray] = []
    self.count = 0
    self._done = False
    # Under the store's lock, or a cleaner could come before the inner lock.
    os.makedirs(store.directory, exist_ok=True)
    with self._explained(), store.lock():
      self._folder = tempfile.mkdtemp(prefix='.tmp-generation-', dir=store.directory)
      self._lock = open(self._path(manifest.WRITER_LOCK), 'wb')
      fcntl.flock(self._lock, fcntl.LOCK_EX)
    self._file = HashingFile(self._path(manifest.EMBEDDINGS))

  def __enter__(self) -> GenerationWriter:
    return self

  def __exit__(self, *unused_exception) -> None:
    self.abort()

  def append(self, ids: np.ndarray | None, embeddings: np.ndarray) -> None:
    """Appends vectors [rows, d] under ids [rows] int64; None continues the row numbers.

    Raises:
      ValueError: shapes that do not fit, negative ids, or values float16 cannot hold.
      OSError: the disk is full.
    """
    if self._done:
      raise ValueError('this generation is committed or abandoned already')
    if embeddings.ndim != 2 or embeddings.shape[1] != self._draft.dim:
      raise ValueError(
        f'embeddings of shape {list(embeddings.shape)} do not '
        f'fit the index, which has dimension {self._draft.dim}'
      )
    rows = len(embeddings)
    if ids is None:
      ids = np.arange(self.count, self.count + rows)
    ids = checks.passage_ids(ids, rows)
    stored = checks.as_float16(embeddings, ids)
    with self._explained():
      self._file.write(stored)
    self._ids.append(ids)
    self.count += rows

  def commit(self, make_current: bool = True) -> int:
    """Trains and writes the index, publishes the generation; gives its number.

    Raises:
      ValueError: no vectors, duplicate ids, or too few for the index.
      OSError: the disk is full.
    """
    ids = np.concatenate(self._ids) if self._ids else np.zeros(0, np.int64)
    ids_are_rows = np.array_equal(ids, np.arange(len(ids)))
    if not ids_are_rows:
      checks.check_distinct(ids)
    with self._explained():
      written = {manifest.EMBEDDINGS: self._file.finish()}
      if not ids_are_rows:
        file = HashingFile(self._path(manifest.IDS))
        file.write(ids)
        written[manifest.IDS] = file.finish()
    embeddings = np.zeros((0, self._draft.dim), np.float16)
    if len(ids):  # an empty file cannot be mapped
      shape = (len(ids), self._draft.dim)
      embeddings = np.memmap(self._path(manifest.EMBEDDINGS), np.float16, 'r', shape=shape)
    index, plan = faiss_building.build_index(
      embeddings, self._draft.options, progress=self._progress, check=self._check
    )
    with self._explained():
      file = HashingFile(self._path(manifest.INDEX))
      try:
        faiss_index.write_index(index, file.write)
        written[manifest.INDEX] = file.finish()
      finally:
        file.close()
      self._check()
      return self._publish(plan, written, ids, make_current)

  def _publish(
    self, plan: IndexPlan, written: dict[str, FileRecord], ids: np.ndarray, make_current: bool
  ) -> int:
    with self._store.lock():
      self._store.ensure_index_id()
      number = max(self._store.numbers(), default=0) + 1
      final = dataclasses.replace(
        self._draft,
        generation=number,
        count=len(ids),
        factory=plan.factory,
        fallback=plan.fallback,
        files=written,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        make_current=make_current,
        next_id=max(int(ids.max()) + 1, self._store.next_id()),
      )
      files.write_text(self._path(manifest.MANIFEST), final.to_json())
      os.remove(self._path(manifest.WRITER_LOCK))
      os.chmod(self._folder, 0o755)  # mkdtemp's 0700 would hide it
      files.flush_folder(self._folder)
      os.rename(self._folder, self._store.folder(number))
      self._done = True
      files.flush_folder(self._store.directory)
      if make_current:
        self._store.point_at(number)
    self._lock.close()
    return number

  def abort(self) -> None:
    """Removes what was written; nothing to do after a commit."""
    self._file.close()
    if not self._done:
      shutil.rmtree(self._folder, ignore_errors=True)
      self._done = True
    self._lock.close()

  def _path(self, name: str) -> str:
    return os.path.join(self._folder, name)

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """Turns a full disk into one message that tells what to do."""
    try:
      yield
    except OSError as error:
      if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise
      raise OSError(
        error.errno,
        f'no space left for a new generation in {self._store.directory} (stopped after '
        f'{self.count} vectors of {2 * self._draft.dim} bytes plus their index). The former '
        'generation stays in use: free space, or remove old generations, and build again',
      ) from error
