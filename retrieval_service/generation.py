"""One generation of the index, opened for searching; it never changes."""

import concurrent.futures
import dataclasses
import os

import faiss
import numpy as np

from retrieval_service import faiss_index
from retrieval_service import manifest as manifests
from retrieval_service.manifest import Manifest


@dataclasses.dataclass(frozen=True)
class GenerationResult:
  """The best passages of each query, best first.

  Attributes:
    ids: [batch, k] int64.
    scores: [batch, k] float32, never rising along a row.
    embeddings: [batch, k, dim] float16, or None where not asked for.
  """
  ids: np.ndarray
  scores: np.ndarray
  embeddings: np.ndarray | None


def check_files(folder: str, manifest: Manifest, *, checksums: bool) -> None:
  """Compares a generation's files with its manifest.

  Raises:
    ValueError: A file is missing, of another size or of other bytes; the
      message names it, both values and the remedy.
  """
  remedy = ('This generation is damaged and is not served: restore the file, '
            'or build the index again')
  for name, record in manifest.files.items():
    path = os.path.join(folder, name)
    if not os.path.exists(path):
      raise ValueError(
          f'{path} is missing; expected {record.bytes} bytes. {remedy}')
    found = os.path.getsize(path)
    if found != record.bytes:
      raise ValueError(f'{path} has {found} bytes; expected {record.bytes}. '
                       f'{remedy}')
    if checksums:
      digest = manifests.checksum(path)
      if digest != record.checksum:
        raise ValueError(f'{path} has checksum {digest}; expected '
                         f'{record.checksum} over {record.bytes} bytes. '
                         f'{remedy}')


class Generation:
  """A searchable generation: a FAISS index and the exact embeddings.

  Safe to search from several threads at once. Files are memory-mapped, so
  that opening is quick, memory is shared with other processes, and a folder
  removed meanwhile stays readable until the last user lets go.

  Attributes:
    folder: Where it lies.
    manifest: What it is.
    embeddings: [count, dim] float16, memory-mapped.
    ids: [count] int64, memory-mapped; None when row i has id i.
    index: The FAISS index over rows; read-only.
  """

  def __init__(
      self,
      folder: str,
      *,
      verify_checksums: bool = True,
      nprobe: int | None = None,
      rerank: int | None = None,
      threads: int | None = None,
  ):
    """Opens a generation.

    Args:
      folder: Its folder.
      verify_checksums: Reads every byte once; sizes are checked always.
      nprobe: In place of the value in its options.
      rerank: Likewise.
      threads: Threads for re-ranking; FAISS's own number belongs to the
        calling thread (`faiss.omp_set_num_threads`).

    Raises:
      FileNotFoundError: No manifest.
      ValueError: Damaged, naming the file.
    """
    self.folder = folder
    self.manifest = Manifest.read(folder)
    check_files(folder, self.manifest, checksums=verify_checksums)
    self.embeddings = self._map(manifests.EMBEDDINGS, np.float16).reshape(
        self.count, self.dim)
    self.ids = None
    if manifests.IDS in self.manifest.files:
      self.ids = self._map(manifests.IDS, np.int64)
    self.index = self.read_index()
    options = self.manifest.options
    self._rerank = options.rerank if rerank is None else rerank
    ivf = faiss_index.inverted_lists(self.index)
    if ivf is not None:
      nprobe = nprobe or options.nprobe
      ivf.nprobe = min(
          ivf.nlist, nprobe or faiss_index.default_nprobe(ivf.nlist))
    self._pool = None
    if threads and threads > 1:
      self._pool = concurrent.futures.ThreadPoolExecutor(threads, 'rerank')

  def _map(self, name: str, dtype) -> np.ndarray:
    mapped = np.memmap(os.path.join(self.folder, name), dtype, mode='r')
    return np.asarray(mapped)  # memmap's own class makes each slice slower

  def read_index(self, *, memory_map: bool = True) -> faiss.Index:
    """Another handle on the FAISS index; unmapped, it may be added to."""
    return faiss_index.read_index(
        os.path.join(self.folder, manifests.INDEX), memory_map=memory_map)

  @property
  def number(self) -> int:
    return self.manifest.generation

  @property
  def count(self) -> int:
    return self.manifest.count

  @property
  def dim(self) -> int:
    return self.manifest.dim

  def all_ids(self) -> np.ndarray:
    """[count] int64."""
    return np.arange(self.count) if self.ids is None else self.ids

  def search(
      self, queries: np.ndarray, k: int, return_embeddings: bool = False,
  ) -> GenerationResult:
    """The k passages of largest inner product for each query.

    The index proposes candidates; their scores are computed anew from the
    stored embeddings in float32, unless re-ranking is off. Equal scores are
    ordered by id.

    Args:
      queries: [batch, dim] float32.
      k: From 1 to `count`.
      return_embeddings: Also gathers the stored embeddings.

    Raises:
      ValueError: Wrong shape, k out of range, or a value that is not finite.
    """
    if queries.ndim != 2 or queries.shape[1] != self.dim:
      raise ValueError(
          f'the queries have dimension {queries.shape[-1]} and generation '
          f'{self.number} of the index has dimension {self.dim}: they must be '
          'embedded by the encoder that embedded the passages')
    if k < 1:
      raise ValueError(f'k must be at least 1, found {k}')
    if k > self.count:
      raise ValueError(f'k={k} passages wanted and generation {self.number} of '
                       f'the index holds {self.count}: lower k or add passages')
    queries = np.ascontiguousarray(queries, np.float32)
    if not np.isfinite(queries).all():
      row = int(np.flatnonzero(~np.isfinite(queries).all(axis=1))[0])
      raise ValueError(f'query {row} of {len(queries)} holds a value that is '
                       'not finite: check the query encoder')
    num = faiss_index.num_candidates(self.index, self._rerank, k)
    scores, rows = faiss_index.find_candidates(self.index, queries, num, k)
    if (rows[:, k - 1] < 0).any():  # a graph index may miss passages
      _, rows = faiss_index.exact_search(self.embeddings, queries, k)
      scores = None
    if self._rerank != 0 or scores is None:
      scores = faiss_index.exact_scores(
          self.embeddings, queries, rows, self._pool)
    ids = rows if self.ids is None else np.where(rows < 0, -1, self.ids[rows])
    best = np.lexsort((ids, -scores))[:, :k]
    embeddings = None
    if return_embeddings:
      embeddings = self.embeddings[np.take_along_axis(rows, best, axis=1)]
    return GenerationResult(np.take_along_axis(ids, best, axis=1),
                            np.take_along_axis(scores, best, axis=1),
                            embeddings)
