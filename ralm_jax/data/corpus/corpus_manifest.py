"""The manifest of a corpus folder: what it is made of, written last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib

from ralm_jax.data.corpus.shards import ShardEntry
from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.vocabularies import Vocabulary
from ralm_jax.files import atomic_files

FORMAT_VERSION = 1
FILE_NAME = 'manifest.json'


@dataclasses.dataclass(frozen=True)
class VocabularyEntry:
  """A vocabulary of a corpus."""

  file: str  # Name of its copy in the corpus folder.
  fingerprint: str
  extra_ids: int  # Sentinels of a SentencePiece vocabulary; else 0.
  vocab_size: int

  @classmethod
  def of(cls, role: str, vocabulary: Vocabulary) -> VocabularyEntry:
    """The entry of a vocabulary in the role `reader` or `retriever`."""
    return cls(
      file=f'{role}_vocabulary{vocabulary.suffix}',
      fingerprint=vocabulary.fingerprint,
      extra_ids=getattr(vocabulary, 'extra_ids', 0),
      vocab_size=vocabulary.vocab_size,
    )

  def load(self, directory: pathlib.Path) -> Vocabulary:
    """Reads the copy; ValueError if it is not the one the corpus knows."""
    vocabulary = vocabularies.load_vocabulary(directory / self.file, self.extra_ids)
    if vocabulary.fingerprint != self.fingerprint:
      raise ValueError(
        f'{directory / self.file}: not the vocabulary the corpus was built '
        'with (checksums differ); put the original back or rebuild the corpus'
      )
    return vocabulary


@dataclasses.dataclass(frozen=True)
class Settings:
  """Everything besides the passages that decides what a shard holds."""

  vocabularies: Mapping[str, VocabularyEntry]
  max_words: int | None  #: longer texts are cut; None for no limit
  #: whether shards keep documents and dates. False in corpora built before there was such a thing,
  #: whose shards are repaired as they were.
  provenance: bool = True

  @property
  def fingerprint(self) -> str:
    """SHA-256 of the settings and of the shards' format."""
    return _digest(
      {
        'format_version': FORMAT_VERSION,
        'max_words': self.max_words,
        'vocabularies': {role: entry.fingerprint for role, entry in self.vocabularies.items()},
        **({'provenance': True} if self.provenance else {}),
      }
    )


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a corpus folder holds."""

  settings: Settings
  shards: tuple[ShardEntry, ...]

  @property
  def rows(self) -> int:
    return sum(shard.rows for shard in self.shards)

  @property
  def history(self) -> dict[str, int]:
    """Fingerprint → number of rows after each shard; what it names never changes."""
    fingerprint, rows, history = self.settings.fingerprint, 0, {}
    for shard in self.shards:
      fingerprint = _digest([fingerprint, shard.sha256])
      rows += shard.rows
      history[fingerprint] = rows
    return history

  @property
  def fingerprint(self) -> str:
    """Identifies every passage and token of the corpus."""
    return list(self.history)[-1]

  def write(self, directory: pathlib.Path) -> None:
    content = {
      'format_version': FORMAT_VERSION,
      'fingerprint': self.fingerprint,
      'passages': self.rows,
      'max_words': self.settings.max_words,
      'provenance': self.settings.provenance,
      'vocabularies': {
        role: dataclasses.asdict(entry) for role, entry in self.settings.vocabularies.items()
      },
      'shards': [dataclasses.asdict(shard) for shard in self.shards],
    }
    atomic_files.write_json(directory / FILE_NAME, content, indent=1)

  @classmethod
  def read(cls, directory: pathlib.Path) -> Manifest:
    """Reads a folder's manifest: FileNotFoundError without, ValueError where it is damaged."""
    path = directory / FILE_NAME
    if not path.exists():
      raise FileNotFoundError(
        f'{directory}: no finished corpus here ({FILE_NAME} is missing); '
        'build it with `ralm corpus`, which resumes where it was interrupted'
      )
    try:
      content = json.loads(path.read_bytes())
      version = content['format_version']
      if version == FORMAT_VERSION:
        entries = content['vocabularies']
        by_role = {role: VocabularyEntry(**entries[role]) for role in ('reader', 'retriever')}
        settings = Settings(by_role, content['max_words'], content.get('provenance', False))
        shards = tuple(ShardEntry(**s) for s in content['shards'])
        if shards:
          return cls(settings, shards)
        raise ValueError('no shards')
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f'{path}: damaged: {type(error).__name__}: {error}; delete it and run `ralm corpus` again'
      ) from error
    raise ValueError(
      f'{path}: format version {version!r}, but this program reads '
      f'{FORMAT_VERSION}; build the corpus again'
    )

  def check_sizes(self, directory: pathlib.Path) -> None:
    """Raises ValueError if a shard is missing or has not its full size."""
    for shard in self.shards:
      path = directory / shard.file
      found = path.stat().st_size if path.exists() else None
      if found == shard.bytes:
        continue
      remedy = (
        'run the same `ralm corpus` command again, it rebuilds only what is damaged'
        if shard.source
        else 'it holds passages added later: restore it from a copy'
      )
      problem = 'missing'
      if found is not None:
        how = 'truncated' if found < shard.bytes else 'too long'
        problem = f'{how}: found {found:,} bytes'
      raise ValueError(f'{path}: {problem}, expected {shard.bytes:,}; {remedy}')


@contextlib.contextmanager
def writing(directory: pathlib.Path) -> Iterator[None]:
  """Holds the folder's lock, which dies with the holder; BlockingIOError where it is taken."""
  descriptor = os.open(directory / '.lock', os.O_CREAT | os.O_RDWR)
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise BlockingIOError(
        f'{directory}: another process is writing to this corpus; wait until it is done'
      ) from error
    yield
  finally:
    os.close(descriptor)


def _digest(value: object) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
