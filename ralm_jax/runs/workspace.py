"""A workspace: what questions about a folder of documents need, built once and kept.

    WORKSPACE/workspace.json                        its format
    WORKSPACE/models/<reader>+<retriever>-<key>/    a run folder of converted weights
    WORKSPACE/documents/<folder>-<key>/corpora/     by vocabularies and documents
    WORKSPACE/documents/<folder>-<key>/indexes/     by retriever and corpus

What something is made of decides its name, so that a change builds anew what depends on it and
nothing else; embeddings of passages that stay are taken over. Each part is whole or goes on where
it was interrupted; one process builds at a time, the others wait for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
from typing import Any

from ralm_jax.checkpoints import specification
from ralm_jax.checkpoints.specification import Specification
from ralm_jax.data.corpus import passage_files, passage_store
from ralm_jax.data.corpus.corpus_manifest import Manifest
from ralm_jax.files import atomic_files, named_source
from ralm_jax.files.checksums import Remembered
from ralm_jax.interop import convert
from ralm_jax.interop.convert import Overrides
from ralm_jax.losses import option_types
from ralm_jax.losses.option_types import Count
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.runs import embedding, opening
from ralm_jax.runs.opening import OpenedCheckpoint
from retrieval_service.options import IndexOptions

_FORMAT = 1
_FILE = 'workspace.json'
# Raised where conversions or corpora of before would no longer be made so.
_MADE_BY = 1
#: Fields of `TextConfig` for readers that were trained to converse: without demonstrations their
#: answers are better so.
CHAT: dict[str, Any] = {
  'prompt_style': 'chat',
  'system_prompt': 'Answer in one short sentence from the context.',
  'target_length': 64,
}
# Passages up to which an index is searched exactly in this program, and by lists without codes.
_EXACT, _WITHOUT_CODES = 200_000, 2_000_000


@dataclasses.dataclass(frozen=True)
class Ingredients:
  """What answers are made from."""

  documents: str  #: a folder, a file or a glob
  reader: str  #: the name of its weights
  retriever: str
  max_words: Count = 100  #: of a passage; longer ones are cut into equal parts
  #: changes to the `TextConfig` that the weights come with, or to `CHAT`
  text: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    option_types.check_fields(self)


@dataclasses.dataclass(frozen=True)
class Opened:
  """What answers: parts that are whole and belong together."""

  checkpoint: OpenedCheckpoint
  source: IndexSource
  n_passages: int  #: in the corpus


class Workspace:
  """The parts that are made of some ingredients."""

  def __init__(self, directory: atomic_files.PathLike, ingredients: Ingredients):
    """Opens a workspace, made where there is none.

    Raises:
      FileNotFoundError: documents or weights that are not there.
      ValueError: no documents, a folder of something else, or a workspace of a newer version.
    """
    self._files = passage_files.find(ingredients.documents)
    self._ingredients = ingredients
    sides = {'reader': ingredients.reader, 'retriever': ingredients.retriever}
    self._sources = {side: named_source.resolve(name, side) for side, name in sides.items()}
    for side, path in self._sources.items():
      if not os.path.exists(path):
        raise FileNotFoundError(f'{side} {sides[side]}: no such file or folder here.')
    self.directory = pathlib.Path(os.path.abspath(directory))
    _check_format(self.directory)
    self._weights = {side: self._checksum(_files_of(path)) for side, path in self._sources.items()}
    self._documents = self._checksum(self._files.named)
    place = os.path.realpath(ingredients.documents)
    self._spec: Specification | None = None
    self._place = self.directory / 'documents' / f'{_slug(place)}-{_digest(place)}'

  def _checksum(self, files: Iterable[tuple[str, str]]) -> str:
    """Of files by name and path: of what they hold."""
    known = Remembered(self.directory / 'checksums.json')
    found = _digest([[name, known.sha256_of(path)] for name, path in files])
    known.save()
    return found

  @property
  def model(self) -> pathlib.Path:
    names = f'{_slug(self._ingredients.reader)}+{_slug(self._ingredients.retriever)}'
    return self.directory / 'models' / f'{names}-{_digest([_MADE_BY, self._weights])}'

  def _specification(self) -> Specification:
    """Of a model that is there; its vocabularies are loaded once."""
    if self._spec is None:
      spec, text = Specification.load(self.model), self._ingredients.text
      if 'prompt_style' not in text:
        text = {**_conversing(spec.tokenizer.reader_vocabulary), **text}
      self._spec = specification.with_text(spec, **text) if text else spec
    return self._spec

  @property
  def corpora(self) -> pathlib.Path:
    return self._place / 'corpora'

  @property
  def corpus(self) -> pathlib.Path:
    """Of a model that is there."""
    tokenizer = self._specification().tokenizer
    vocabularies = [
      tokenizer.reader_vocabulary.fingerprint,
      tokenizer.retriever_vocabulary.fingerprint,
    ]
    key = _digest([_MADE_BY, vocabularies, self._ingredients.max_words])
    return self.corpora / f'{self._documents}-{key}'

  @property
  def indexes(self) -> pathlib.Path:
    """Of all corpora, by one retriever."""
    text = self._specification().text
    form = [text.retriever_format, text.retriever_passage_length]
    return self._place / 'indexes' / _digest([_MADE_BY, self._weights['retriever'], form])

  @property
  def index(self) -> pathlib.Path:
    """Of a corpus that is there."""
    return self.indexes / _fingerprints(self.corpus)[0]

  def _is_whole(self) -> bool:
    try:
      return (self.index / 'CURRENT').exists()
    except FileNotFoundError:
      return False

  @contextlib.contextmanager
  def opened(self) -> Iterator[Opened]:
    """All parts, built where they are not there; none of them is removed meanwhile."""
    with _locked(self.directory / '.in_use', fcntl.LOCK_SH) as in_use:
      checkpoint = None
      if not self._is_whole():
        with _locked(self.directory / '.building', fcntl.LOCK_EX, self.directory):
          if not self._is_whole():
            checkpoint = self._build()
            self._remove_outdated(in_use)
      checkpoint = checkpoint or self._open_model()
      passages = Manifest.read(self.corpus).rows
      source = IndexSource(path=self.index)
      if passages <= _EXACT:  # No process of its own.
        source = dataclasses.replace(source, backend='device', device_dtype='float32')
      yield Opened(checkpoint, source, passages)

  def _open_model(self) -> OpenedCheckpoint:
    opened = opening.open_checkpoint(self.model)
    return dataclasses.replace(opened, spec=self._specification())

  def _build(self) -> OpenedCheckpoint:
    logging.info('workspace: %s', self.directory)
    wanted, files = self._ingredients, self._files
    if files.left_out:
      logging.info('%s: %s', wanted.documents, files.left_out)
    if not self.model.exists():
      logging.info('converting %s and %s', wanted.reader, wanted.retriever)
      self.model.parent.mkdir(parents=True, exist_ok=True)
      # One compiled layer for each stack: a tenth of the time to compile.
      overrides = Overrides(scan_layers=True)
      convert.convert(list(self._sources.items()), str(self.model), overrides=overrides)
    model = self._open_model()
    vocabularies = model.spec.tokenizer.reader_vocabulary, model.spec.tokenizer.retriever_vocabulary
    self.corpora.mkdir(parents=True, exist_ok=True)
    corpus = passage_store.build_corpus(
      files.paths, self.corpus, *vocabularies, max_words=wanted.max_words
    )
    if self._checksum(self._files.named) != self._documents:
      raise ValueError(f'{wanted.documents} changed while it was read; ask again.')
    logging.info('%s: %s passages', wanted.documents, f'{len(corpus):,}')
    if (self.index / 'CURRENT').exists():
      return model
    former = sorted(str(path.parent) for path in self.indexes.glob('*/CURRENT'))
    embedding.embed(
      checkpoint=model,
      corpus=str(self.corpus),
      output=str(self.index),
      options=IndexOptions(index_type=_index_type(len(corpus))),
      # Seconds of a laptop, so that the bar moves and an interruption costs little.
      batch_size=64,
      chunk_size=512,
      former=former,
    )
    return model

  def _remove_outdated(self, in_use: int) -> None:
    """Removes what was built of former documents or weights, unless another process uses it."""
    try:
      fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      pass
    else:
      weights = self.model.name.rpartition('-')[0]
      for path in self.model.parent.glob(f'{weights}-*'):
        if path != self.model:
          shutil.rmtree(path, ignore_errors=True)
      live = set()
      for corpus in self.corpora.iterdir():
        if corpus.name.startswith(f'{self._documents}-'):
          live |= set(_fingerprints(corpus))
        else:
          shutil.rmtree(corpus, ignore_errors=True)
      for index in self.indexes.parent.glob('*/*'):
        if index.name not in live:
          shutil.rmtree(index, ignore_errors=True)
    # A lock that could not be had took the former one along.
    fcntl.flock(in_use, fcntl.LOCK_SH)


def _conversing(reader: Any) -> dict[str, Any]:
  """`CHAT` as far as the chat template of a reader's vocabulary has it."""
  if getattr(reader, 'chat_template', None) is None:
    return {}
  try:
    reader.chat([{'role': role, 'content': 'x'} for role in ('system', 'user')])
  except ValueError:  # Mistral's has no system.
    return {name: value for name, value in CHAT.items() if name != 'system_prompt'}
  return CHAT


def _fingerprints(corpus: pathlib.Path) -> list[str]:
  """What a corpus was when it was built and since, as folders are named."""
  manifest = Manifest.read(corpus)
  built = sum(bool(shard.source) for shard in manifest.shards)
  return [fingerprint[:16] for fingerprint in list(manifest.history)[built - 1 :]]


def _index_type(passages: int) -> str:
  if passages <= _EXACT:
    return 'flat'
  return 'ivf_flat' if passages <= _WITHOUT_CODES else 'ivf_pq'


def _check_format(directory: pathlib.Path) -> None:
  """Makes a workspace of a folder that is empty or missing; ValueError for another's."""
  path = directory / _FILE
  try:
    found = json.loads(path.read_bytes())['format']
  except FileNotFoundError:
    if directory.is_dir() and any(map(_is_foreign, directory.iterdir())):
      raise ValueError(
        f'{directory} is no workspace (there is no {_FILE}) and not empty; name another folder '
        'with --workspace.'
      ) from None
    directory.mkdir(parents=True, exist_ok=True)
    atomic_files.write_json(path, {'format': _FORMAT})
    return
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'{path} is damaged ({error}); remove {directory}, which is then built again.'
    ) from error
  if found != _FORMAT:
    raise ValueError(
      f'{directory} is of format {found!r}, this program knows {_FORMAT}: a newer version made it. '
      'Update this one, or name another folder with --workspace.'
    )


def _is_foreign(path: pathlib.Path) -> bool:
  # Another process may be making the workspace just now.
  return atomic_files.UNFINISHED not in path.name


def _files_of(weights: str) -> Iterator[tuple[str, str]]:
  """The files of weights: name, path."""
  if os.path.isfile(weights):
    yield '', weights
  for folder, below, files in os.walk(weights):
    below[:] = sorted(name for name in below if name[0] != '.')
    for name in sorted(name for name in files if name[0] != '.'):
      path = os.path.join(folder, name)
      yield os.path.relpath(path, weights), path


@contextlib.contextmanager
def _locked(path: pathlib.Path, how: int, busy: pathlib.Path | None = None) -> Iterator[int]:
  """Holds a lock, which dies with the holder; says so where `busy` has to be waited for."""
  descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
  try:
    try:
      fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
      if busy is not None:
        logging.info('another process builds in %s; waiting for it', busy)
      fcntl.flock(descriptor, how)
    yield descriptor
  finally:
    os.close(descriptor)


def _digest(value: Any) -> str:
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _slug(path: str) -> str:
  """A name for people."""
  return re.sub(r'[^\w.]+', '_', os.path.basename(os.path.normpath(path)))[:40] or '_'
