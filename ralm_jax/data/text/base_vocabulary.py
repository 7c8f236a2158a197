"""What every vocabulary does, whatever its kind."""

import abc
import codecs
from collections.abc import Iterable, Sequence
import json
import pathlib
from typing import Any

from ralm_jax.files import atomic_files

Path = str | pathlib.Path


class Vocabulary(abc.ABC):
  """Text to token ids and back."""

  path: pathlib.Path
  vocab_size: int  # Sentinels included.
  pad_id: int  # Fills arrays behind the last token.
  eos_id: int  # Ends a sequence: `</s>`, or `[SEP]` for WordPiece.
  unk_id: int  # Of whatever the vocabulary cannot write.
  bos_id: int | None = None  # Begins a sequence, where there is such a thing.
  fingerprint: str  # SHA-256 of the content and of the options that change ids.
  first_word_differs: bool = False  # Whether `encode_start` may differ from `encode`.
  suffix: str  # Of the file that `save` writes.

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """Token ids of `text`, without special tokens."""

  @abc.abstractmethod
  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of every text, faster than one call for each."""

  def encode_start(self, text: str) -> list[int]:
    return self.encode(text)

  def encode_start_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode_start` of every text, faster than one call for each."""
    return self.encode_batch(texts)

  @abc.abstractmethod
  def decode(self, ids: Iterable[int]) -> str:
    """Text of `ids`, without special tokens."""

  @abc.abstractmethod
  def name_of(self, token: int) -> str:
    """How the vocabulary writes one id."""

  @property
  def reader_prefix(self) -> list[int]:
    """Ids that a reader's inputs and targets begin with: `<s>` or nothing."""
    return [] if self.bos_id is None else [self.bos_id]

  @property
  def retriever_prefix(self) -> list[int]:
    """Ids that an encoder's inputs begin with: `[CLS]`, `<s>` or nothing."""
    return self.reader_prefix

  def save(self, directory: Path, stem: str) -> str:
    """Writes one file that `load_vocabulary` reads, unless it is there; returns its name."""
    return write_copy(read_file(self.path), directory, stem + self.suffix)

  def huggingface_config(self) -> dict[str, Any] | None:
    """The `tokenizer_config.json` without which `transformers` reads the file otherwise."""
    return None

  def __repr__(self) -> str:
    return f'{type(self).__name__}({str(self.path)!r})'


class SentinelVocabulary(Vocabulary):
  """One that may have T5's sentinels, `<extra_id_0>` being the last of all ids."""

  extra_ids: int

  def sentinel_id(self, index: int) -> int:
    if not 0 <= index < self.extra_ids:
      raise ValueError(f'sentinel {index} is not one of the {self.extra_ids} of {self.path}')
    return self.vocab_size - 1 - index

  @abc.abstractmethod
  def decode(self, ids: Iterable[int], keep_sentinels: bool = False) -> str:
    """Text of `ids`, with sentinels or without; other special tokens are left out."""


def read_file(path: Path) -> bytes:
  """The bytes of a vocabulary file; one clear error if there is none."""
  path = pathlib.Path(path)
  if path.is_dir():
    raise ValueError(
      f'{path}: a folder without a vocabulary; name one that has spiece.model, vocab.txt, '
      'tokenizer.json, tokenizer.model or vocab.json, or the file itself'
    )
  if not path.exists():
    raise FileNotFoundError(f'{path}: no such vocabulary file')
  return path.read_bytes()


def read_json(path: Path) -> Any:
  """The content of a JSON file; ValueError where it is none."""
  content = read_file(path)
  try:
    return json.loads(content.removeprefix(codecs.BOM_UTF8))
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path}: damaged, not whole JSON ({error}); fetch the file again') from error


def write_copy(content: bytes, directory: Path, name: str) -> str:
  """Writes `directory/name` unless it has this content; returns the name."""
  path = pathlib.Path(directory) / name
  if not path.exists() or path.read_bytes() != content:
    atomic_files.write(path, content)
  return name
