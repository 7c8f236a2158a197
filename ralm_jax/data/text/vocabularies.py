"""SentencePiece, WordPiece and byte-level BPE vocabularies, one interface.

All are free of TensorFlow: the same objects serve corpus building, the input
pipeline, the evaluator and `ralm ask`.

Every vocabulary here *splits at whitespace*: `encode(a + ' ' + b)` equals `encode(a) + encode(b)`.
Passages are therefore tokenised once, and reader inputs are put together from ids instead of being
tokenised again every step. A file for which this does not hold is refused. Where the first word of
a text has ids of its own (BPE), `encode_start` gives those; the property is that of `encode`, and
`encode_start(a + ' ' + b)` is `encode_start(a) + encode(b)`. A decoder-only reader's keeps all
whitespace, so that this holds between words alone; its prompts are made of segments.
"""

import codecs
from collections.abc import Iterable, Sequence
import hashlib
import os
import pathlib
import re
from typing import Any

import sentencepiece

from ralm_jax.data.text import base_vocabulary, sentence_piece_bpe
from ralm_jax.data.text.base_vocabulary import Path, SentinelVocabulary, Vocabulary
from ralm_jax.data.text.byte_pair_vocabulary import BytePairVocabulary
from ralm_jax.data.text.decoder_vocabulary import DecoderVocabulary
from ralm_jax.data.text.tokenizer_parts import TokenizerParts
from ralm_jax.data.text.unigram_vocabulary import UnigramVocabulary
from ralm_jax.data.text.word_piece_vocabulary import WordPieceVocabulary
from ralm_jax.files import byte_streams, named_source

_SENTINEL = re.compile(r'\s*<extra_id_(0|[1-9][0-9]*)>\s*')
_WORD_BOUNDARY = '\u2581'  # SentencePiece writes a space as this character.


class SentencePieceVocabulary(SentinelVocabulary):
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
    fields = _fields(content)
    if not {2, 3} <= fields.keys():
      raise ValueError(
        f'{self.path}: damaged: the end of the model, with the settings of its '
        'trainer and normalizer, is missing; fetch the file again'
      )
    self._normalizer = fields[3]
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

  def name_of(self, token: int) -> str:
    return self._processor.id_to_piece(token)

  def scored_pieces(self) -> list[tuple[str, float]]:
    """All pieces with their log-probabilities."""
    ids = list(range(self._processor.vocab_size()))
    return [*zip(self._processor.id_to_piece(ids), self._processor.get_score(ids))]

  def character_map(self) -> bytes:
    """How characters are normalised, as SentencePiece has it compiled."""
    return _fields(self._normalizer).get(2, b'')

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


_OF_JSON = {'WordPiece': WordPieceVocabulary, 'Unigram': UnigramVocabulary}


def load_vocabulary(path: Path | Vocabulary, extra_ids: int = 100) -> Vocabulary:
  """Reads a vocabulary, told by content; what is a vocabulary already is returned.

  It may be named in all ways of `files/named_source.py`. A file is a SentencePiece model
  (`*.model`), which gets `extra_ids` sentinels or is of a decoder-only reader, a BERT `vocab.txt`
  (with `tokenizer_config.json` beside it), a `tokenizer.json` of WordPiece, Unigram or BPE (BART's,
  or a decoder-only reader's), or BART's `vocab.json` with `merges.txt` beside it.

  Raises:
    FileNotFoundError: as `named_source.locate`.
    ValueError: the file is no vocabulary of these kinds, or the folder holds none.
  """
  if isinstance(path, Vocabulary):
    return path
  path = pathlib.Path(named_source.resolve(os.fspath(path), vocabulary=True))
  if path.is_dir() and (found := in_folder(path, extra_ids)):
    return found
  content = base_vocabulary.read_file(path)
  # A SentencePiece model is a protocol buffer whose first field is a piece.
  if content[:1] == b'\x0a':
    decoder = sentence_piece_bpe.read_model(path, content)
    return _with_sentinels(path, extra_ids) if decoder is None else DecoderVocabulary(decoder)
  if content.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b'{':
    parts = base_vocabulary.read_json(path)
    model = parts.get('model')
    kind = model.get('type') if isinstance(model, dict) else None
    if kind in _OF_JSON:
      return _OF_JSON[kind](path)
    if kind in ('BPE', None) and _is_decoder(parts):
      return DecoderVocabulary(TokenizerParts.beside(parts, path))
    if model is not None or '<s>' in parts:
      return BytePairVocabulary(path)
  elif b'[UNK]' in content:
    return WordPieceVocabulary(path)
  byte_streams.check_fetched(str(path))
  if content[:4] == b'GGUF':
    raise ValueError(
      f'{path}: a GGUF file, whose vocabulary ralm convert and ralm corpus read; name the one that '
      'they wrote, such as MODEL_DIR/vocabularies/reader.json'
    )
  raise ValueError(
    f'{path}: neither a SentencePiece model (spiece.model) nor a BERT '
    'WordPiece vocabulary (vocab.txt, one piece a line, with [UNK]) nor a '
    'byte-level BPE (tokenizer.json, or vocab.json beside merges.txt)'
  )


def in_folder(folder: Path, extra_ids: int = 100) -> Vocabulary | None:
  """The vocabulary of a model's folder; None where it holds none."""
  files = [os.path.join(folder, name) for name in named_source.VOCABULARY]
  files = [file for file in files if os.path.isfile(file)]
  # T5's own file, with which corpora may have been built, but for tokens added since.
  count = 2 if files and files[0].endswith('.model') else 1
  found = [load_vocabulary(file, extra_ids) for file in files[:count]]
  return max(found, key=lambda vocabulary: vocabulary.vocab_size, default=None)


def _is_decoder(content: dict[str, Any]) -> bool:
  """Whether a BPE's special tokens are not those of BART, which frames and masks its texts."""
  added = content.get('added_tokens')
  added = added if isinstance(added, list) else []
  # Gemma has <s> as a tag of HTML.
  names = {t.get('content') for t in added if t.get('special', True)}
  return bool(names) and not {'<s>', '<mask>'} <= names


def _with_sentinels(path: pathlib.Path, extra_ids: int) -> SentencePieceVocabulary:
  """With as many as a T5's own files say; ValueError for tokens that have been added besides."""
  said: dict[str, dict[str, Any]] = {
    name: base_vocabulary.read_json(beside) if (beside := path.with_name(name)).is_file() else {}
    for name in ('tokenizer_config.json', 'added_tokens.json')
  }
  found = said['tokenizer_config.json'].get('extra_ids')
  vocabulary = SentencePieceVocabulary(path, extra_ids if found is None else found)
  beyond = [name for name, i in said['added_tokens.json'].items() if i >= vocabulary.vocab_size]
  if beyond and not path.with_name('tokenizer.json').is_file():
    raise ValueError(
      f'{path} has no {", ".join(beyond[:3])}, which added_tokens.json beside it adds; save the '
      'tokenizer with transformers 5, which writes tokenizer.json'
    )
  return vocabulary


def _fields(message: bytes) -> dict[int, bytes]:
  """A protocol buffer's fields of bytes, the last of each number, up to one of another type.

  A model's are its pieces (1), trainer (2) and normalizer (3).
  """
  at, found = 0, dict[int, bytes]()

  def varint() -> int:
    nonlocal at
    value = shift = 0
    while True:
      byte = message[at]
      at += 1
      value |= (byte & 127) << shift
      shift += 7
      if byte < 128:
        return value

  while at < len(message):
    key = varint()
    if key & 7 != 2:  # Nothing that is needed of a model of today follows.
      break
    size = varint()
    found[key >> 3] = message[at : at + size]
    at += size
  return found
