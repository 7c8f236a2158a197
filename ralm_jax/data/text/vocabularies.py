"""SentencePiece, WordPiece and byte-level BPE vocabularies, one interface.

All are free of TensorFlow: the same objects serve corpus building, the input
pipeline, the evaluator and `ralm ask`.

Every vocabulary here *splits at whitespace*: `encode(a + ' ' + b)` equals `encode(a) + encode(b)`.
Passages are therefore tokenised once, and reader inputs are put together from ids instead of being
tokenised again every step. A file for which this does not hold is refused. Where the first word of
a text has ids of its own (BPE), `encode_start` gives those; the property is that of `encode`, and
`encode_start(a + ' ' + b)` is `encode_start(a) + encode(b)`.
"""

import codecs
from collections.abc import Iterable, Sequence
import hashlib
import pathlib
import re

import sentencepiece
import tokenizers

from ralm_jax.data.text import base_vocabulary
from ralm_jax.data.text.base_vocabulary import Path, Vocabulary
from ralm_jax.data.text.byte_pair_vocabulary import BytePairVocabulary

_SENTINEL = re.compile(r'\s*<extra_id_(0|[1-9][0-9]*)>\s*')
_WORD_BOUNDARY = '\u2581'  # SentencePiece writes a space as this character.


class SentencePieceVocabulary(Vocabulary):
  """A SentencePiece model with T5's sentinels on top.

  Sentinel `<extra_id_i>` has id `vocab_size - 1 - i`: 32099 downwards for the
  T5 vocabulary, whose model file holds 32,000 pieces. The literal string in a
  text becomes that id, and the whitespace around it goes, so that the next
  word keeps its word boundary: `'<extra_id_0> A'` is `[32099, 71]`.
  """

  suffix = '.model'

  def __init__(self, path: Path, extra_ids: int = 100):
    """Reads a SentencePiece model; ValueError for one that lacks pieces or crosses whitespace."""
    self.path = pathlib.Path(path)
    self.extra_ids = extra_ids
    content = base_vocabulary.read_file(self.path)
    self._processor = sentencepiece.SentencePieceProcessor()
    try:
      self._processor.LoadFromSerializedProto(content)
    except RuntimeError as error:
      raise ValueError(f'{self.path}: not a SentencePiece model: {error}') from error
    if not {2, 3} <= _message_fields(content):
      raise ValueError(
        f'{self.path}: damaged: the end of the model, with the settings of its '
        'trainer and normalizer, is missing; fetch the file again'
      )
    self.vocab_size = self._processor.vocab_size() + extra_ids
    self.pad_id = self._special_id('pad_id')
    self.eos_id = self._special_id('eos_id')
    self.unk_id = self._special_id('unk_id')
    self._refuse_pieces_across_whitespace()
    name = f'sentencepiece extra_ids={extra_ids}\n'.encode()
    self.fingerprint = hashlib.sha256(name + content).hexdigest()

  def _special_id(self, name: str) -> int:
    value = getattr(self._processor, name)()
    if value < 0:
      raise ValueError(
        f'{self.path}: the model has no {name}; train it with '
        'pad_id=0, eos_id=1, unk_id=2, bos_id=-1'
      )
    return value

  def _refuse_pieces_across_whitespace(self) -> None:
    encode = self._processor.encode
    joined, apart = encode('a b'), encode('a') + encode('b')
    pieces = (self._processor.id_to_piece(i) for i in range(self._processor.vocab_size()))
    crossing = next((p for p in pieces if _WORD_BOUNDARY in p[1:]), None)
    if joined != apart or encode('  a  \n b ') != apart or crossing:
      found = f' (piece {crossing!r})' if crossing else ''
      raise ValueError(
        f'{self.path}: the model does not split at whitespace{found}, so ids of a passage cannot '
        'be put behind ids of a query; train it with split_by_whitespace, add_dummy_prefix and '
        'remove_extra_whitespaces, and without treat_whitespace_as_suffix'
      )

  def sentinel_id(self, index: int) -> int:
    if not 0 <= index < self.extra_ids:
      raise ValueError(f'sentinel {index} is not one of the {self.extra_ids} of {self.path}')
    return self.vocab_size - 1 - index

  def encode(self, text: str) -> list[int]:
    if '<extra_id_' not in text:
      return self._processor.encode(text)
    ids, start = [], 0
    for match in _SENTINEL.finditer(text):
      index = int(match[1])
      if index >= self.extra_ids:
        continue  # No such sentinel: ordinary text.
      ids += self._processor.encode(text[start : match.start()])
      ids.append(self.sentinel_id(index))
      start = match.end()
    return ids + self._processor.encode(text[start:])

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    texts = list(texts)
    if any('<extra_id_' in text for text in texts):
      return [self.encode(text) for text in texts]
    # One thread: callers that want more cores run several processes.
    return self._processor.encode(texts, num_threads=1)

  def decode(self, ids: Iterable[int], keep_sentinels: bool = False) -> str:
    """Text of `ids`, with sentinels or without; padding, eos and unknown ids are left out."""
    n_pieces = self._processor.vocab_size()
    texts, run = [], []
    for token in map(int, ids):
      if 0 <= token < n_pieces:
        if token not in (self.pad_id, self.eos_id):
          run.append(token)
      elif keep_sentinels and n_pieces <= token < self.vocab_size:
        texts += [self._processor.decode(run), f'<extra_id_{self.vocab_size - 1 - token}>']
        run = []
    return ' '.join(text for text in (*texts, self._processor.decode(run)) if text)


class WordPieceVocabulary(Vocabulary):
  """BERT's uncased WordPiece, as Contriever and DPR use it, names of special tokens included."""

  suffix = '.txt'

  def __init__(self, path: Path):
    """Reads a BERT `vocab.txt`, a piece a line; ValueError where it is none."""
    self.path = pathlib.Path(path)
    content = base_vocabulary.read_file(self.path)
    try:
      # Not splitlines(): vocabularies hold pieces such as U+2028.
      pieces = content.decode('utf-8').split('\n')
    except UnicodeDecodeError as error:
      raise ValueError(f'{self.path}: not a WordPiece vocabulary: {error}') from error
    pieces = [piece.removesuffix('\r') for piece in pieces]
    if not pieces[-1]:
      pieces.pop()
    ids: dict[str, int] = {}
    for line, piece in enumerate(pieces, start=1):
      if piece in ids:
        raise ValueError(f'{self.path}:{line}: piece {piece!r} is already on line {ids[piece] + 1}')
      ids[piece] = line - 1
    missing = [name for name in ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]') if name not in ids]
    if missing:
      raise ValueError(f'{self.path}: not a WordPiece vocabulary: no line {", ".join(missing)}')
    self._tokenizer = tokenizers.BertWordPieceTokenizer(ids, lowercase=True)
    self.vocab_size = len(ids)
    self.pad_id, self.unk_id = ids['[PAD]'], ids['[UNK]']
    self.cls_id, self.sep_id = ids['[CLS]'], ids['[SEP]']
    self.eos_id = self.sep_id
    self.fingerprint = hashlib.sha256(b'wordpiece uncased\n' + content).hexdigest()

  def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
    """Token ids of `text`, with or without `[CLS]` before and `[SEP]` behind."""
    return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

  def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = False) -> list[list[int]]:
    encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=add_special_tokens)
    return [encoding.ids for encoding in encodings]

  def decode(self, ids: Iterable[int]) -> str:
    known = [int(i) for i in ids if 0 <= int(i) < self.vocab_size]
    return self._tokenizer.decode(known, skip_special_tokens=True)

  @property
  def retriever_prefix(self) -> list[int]:
    return [self.cls_id]


def load_vocabulary(path: Path | Vocabulary, extra_ids: int = 100) -> Vocabulary:
  """Reads a vocabulary file, told by content; what is a vocabulary already is returned.

  It is a SentencePiece model (`*.model`), which gets `extra_ids` sentinels, a BERT `vocab.txt`, a
  byte-level BPE's `tokenizer.json`, or its `vocab.json` with `merges.txt` beside it.

  Raises:
    ValueError: the file is no vocabulary of these kinds.
  """
  if isinstance(path, Vocabulary):
    return path
  path = pathlib.Path(path)
  content = base_vocabulary.read_file(path)
  # A SentencePiece model is a protocol buffer whose first field is a piece.
  if content[:1] == b'\x0a':
    return SentencePieceVocabulary(path, extra_ids)
  if content.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b'{':
    # Only GPT-2's kind of BPE is written as JSON here.
    if b'"model"' in content or b'"<s>"' in content:
      return BytePairVocabulary(path)
  elif b'[UNK]' in content:
    return WordPieceVocabulary(path)
  raise ValueError(
    f'{path}: neither a SentencePiece model (spiece.model) nor a BERT '
    'WordPiece vocabulary (vocab.txt, one piece a line, with [UNK]) nor a '
    'byte-level BPE (tokenizer.json, or vocab.json beside merges.txt)'
  )


def _message_fields(content: bytes) -> set[int]:
  """Numbers of a protocol buffer's fields: a model's pieces (1), trainer (2) and normalizer (3)."""
  at, found = 0, set()

  def varint() -> int:
    nonlocal at
    value = shift = 0
    while True:
      byte = content[at]
      at += 1
      value |= (byte & 127) << shift
      shift += 7
      if byte < 128:
        return value

  while at < len(content):
    key = varint()
    if key & 7 != 2:  # No message: nothing that a model of today has.
      break
    found.add(key >> 3)
    size = varint()
    at += size
  return found
