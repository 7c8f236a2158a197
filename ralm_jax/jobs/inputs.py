"""What the results of an evaluation depend on, told apart by content."""

from __future__ import annotations

from collections.abc import Mapping
import contextlib
import dataclasses
import importlib.metadata
import os
from typing import Any

from ralm_jax.checkpoints import specification, store
from ralm_jax.evaluation import option_fields
from ralm_jax.evaluation.kilt_predictions import PageOptions
from ralm_jax.files import checksums, input_files
from ralm_jax.jobs.config import FoundCheckpoint, Index, Task
from ralm_jax.retrieval import connect
from retrieval_service import manifest as index_manifest
from retrieval_service.client import RetrievalClient
from retrieval_service.generations import GenerationStore
from retrieval_service.manifest import Manifest

_PACKAGES = (
  *('ralm_jax', 'jax', 'jaxlib', 'flax', 'numpy', 'orbax-checkpoint', 'faiss-cpu', 'seqio'),
  *('tensorflow', 'sentencepiece', 'tokenizers', 'rouge-score', 'sacrebleu'),
)


@dataclasses.dataclass(frozen=True)
class IndexState:
  """What an index is at one moment."""

  id: str  #: tells it from all others
  generation: int  #: the one that is searched
  edits: int  #: the last live edit's number
  # Passages of the generation; not known of an older one that another process serves.
  count: int | None
  directory: str  #: its folder, on the machine that serves it

  @classmethod
  def of(cls, index: Index, retry_for_s: float = 30.0) -> IndexState:
    """Read from its folder, without serving it, or asked of its process."""
    if index.path is not None:
      connect.check_index_folder(index.path)
      store = GenerationStore(index.path)
      number = index.generation or store.current() or 0
      manifest = Manifest.read(store.folder(number))
      return cls(store.index_id(), number, store.edit_log().last, manifest.count, store.directory)
    with RetrievalClient(index.address or '', retry_for_s=retry_for_s) as client:
      status = client.status()
    number = index.generation or status.generation
    count = status.count if number == status.generation else None
    return cls(status.index_id, number, status.edits, count, status.index_directory)

  def memory_bytes(self, index: Index) -> int | None:
    """What searching it takes; None where its folder is out of reach."""
    try:
      store = GenerationStore(self.directory)
      manifest = Manifest.read(store.folder(self.generation))
    except (OSError, ValueError):
      return None
    if index.backend == 'device':
      width = 4 if index.device_dtype == 'float32' else 2
      return manifest.count * manifest.dim * width
    record = manifest.files.get(index_manifest.INDEX)
    return record.bytes if record else None


class Fingerprints:
  """SHA-256 of files, of each once as long as it stays as it is."""

  def __init__(self):
    self._known: dict[tuple[str, int, int], str] = {}

  def of_file(self, path: str | os.PathLike[str]) -> str:
    stat = os.stat(path)
    key = (os.path.realpath(path), stat.st_mtime_ns, stat.st_size)
    if key not in self._known:
      self._known[key] = checksums.sha256_of(path)
    return self._known[key]

  def of_files(self, files: Any) -> dict[str, str]:
    """By number, so that files may be moved and renamed; globs are allowed."""
    return {str(i): self.of_file(path) for i, path in enumerate(input_files.expand_inputs(files))}


def checkpoint_inputs(checkpoint: FoundCheckpoint, fingerprints: Fingerprints) -> dict[str, Any]:
  """What a checkpoint is, wherever it lies, as JSON values; FileNotFoundError if it is gone."""
  model = None  # opening the checkpoint will say what is wrong
  with contextlib.suppress(FileNotFoundError):
    # Layers, text formats, and the vocabularies' own fingerprints.
    model = fingerprints.of_file(os.path.join(checkpoint.directory, specification.FILE))
  fingerprint = store.fingerprint(checkpoint.path)
  if not os.path.isdir(checkpoint.path):
    raise FileNotFoundError(f'{checkpoint.path} does not exist any more.')
  return {'step': checkpoint.step, 'model': model, 'fingerprint': fingerprint}


def task_inputs(
  task: Task, index: Index | None, state: IndexState | None, fingerprints: Fingerprints
) -> dict[str, Any]:
  """All but the checkpoint that decides results, as JSON values."""
  choices = option_fields.flatten(task.evaluation())
  del choices['questions']  # by content, wherever they lie
  if PageOptions(choices['page_field'], choices['page_separators']) == PageOptions() and (
    'kilt' not in (choices['metrics'], choices['record_format'].partition('_')[0])
  ):
    # Cells without pages that were finished before these could be named stay finished.
    del choices['page_field'], choices['page_separators']
  search: dict[str, Any] | None = None
  if index is not None:
    search = {'backend': index.backend, 'nprobe': index.nprobe, 'rerank': index.rerank}
    if index.backend == 'device':
      search['device_dtype'] = index.device_dtype
      search |= {'approximate': True} if index.approximate else {}
  if choices['sample']:
    choices['drawn_by'] = 'question'  # those of before were drawn by the batch
  return {
    'questions': fingerprints.of_files(task.questions),
    'index': state and {name: getattr(state, name) for name in ('id', 'generation', 'edits')},
    'search': search,
    'task': choices,
  }


def package_versions() -> Mapping[str, str]:
  """Of the packages that results may depend on."""
  found = {}
  for name in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found
