"""Byte-level BPE, the vocabulary of GPT-2, RoBERTa and BART.

A word has other ids behind a space than at the very beginning of a text: `encode` writes every word
with its space, `encode_start` the first one without, as `BartTokenizer` does. Everything behind the
first word is the same, which is why passages can still be tokenised once (`templates.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
import hashlib
import json
import pathlib
import re
from typing import Any

import tokenizers

from ralm_jax.data.text import base_vocabulary, sentence_piece_bpe
from ralm_jax.data.text.base_vocabulary import Path, Vocabulary

_SPECIALS = ('<s>', '<pad>', '</s>', '<unk>', '<mask>')
_ASCII_WHITESPACE = re.compile('[\t-\r\x1c-\x1f ]+')


class BytePairVocabulary(Vocabulary):
  """BART's byte-level BPE, as the `tokenizers` library runs it.

  Whitespace is collapsed, but a no-break space or another such character
  between two letters stays, as in the original. Names of special tokens in a
  text (`<mask>`, `</s>`) become their ids, as in the original, too.
  """

  suffix = '.json'
  first_word_differs = True

  def __init__(self, path: Path):
    """Reads `tokenizer.json`, or `vocab.json` with `merges.txt` beside it.

    Raises:
      FileNotFoundError: there is no such file, or no `merges.txt`.
      ValueError: it is damaged or no byte-level BPE with BART's special tokens.
    """
    self.path = pathlib.Path(path)
    content = base_vocabulary.read_json(self.path)
    if not isinstance(content, dict):
      raise ValueError(f'{self.path}: expected a JSON object')
    # In a vocab.json `model` may be a piece, as it is in GPT-2's: it has an id.
    if not isinstance(content.get('model', 0), int):
      vocab, merges, added = _parts_of_tokenizer(content, self.path)
    else:
      vocab, merges = content, _read_merges(self.path)
      added = [{'content': name, 'special': True} for name in _SPECIALS]
    ids = _checked_ids(vocab, added, self.path)
    self._bytes = _canonical(ids, merges, added)
    try:
      self._tokenizer = tokenizers.Tokenizer.from_buffer(self._bytes)
    except Exception as error:  # The library raises nothing more specific.
      raise ValueError(f'{self.path}: not a byte-level BPE: {error}') from error
    self.vocab_size = max(ids.values()) + 1
    self.bos_id, self.pad_id, self.eos_id, self.unk_id, self.mask_id = (
      ids[name] for name in _SPECIALS
    )
    self._known = frozenset(ids.values())
    self.fingerprint = hashlib.sha256(b'byte_pair\n' + self._bytes).hexdigest()

  def encode(self, text: str) -> list[int]:
    return self._ids(_spaced(text))

  def encode_start(self, text: str) -> list[int]:
    return self._ids(_collapsed(text))

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return self._batch_ids([_spaced(text) for text in texts])

  def encode_start_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return self._batch_ids([_collapsed(text) for text in texts])

  def _ids(self, text: str) -> list[int]:
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def _batch_ids(self, texts: list[str]) -> list[list[int]]:
    encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]

  def decode(self, ids: Iterable[int]) -> str:
    known = [int(i) for i in ids if int(i) in self._known]
    return self._tokenizer.decode(known, skip_special_tokens=True).strip()

  def name_of(self, token: int) -> str:
    return self._tokenizer.id_to_token(token) or ''

  def save(self, directory: Path, stem: str) -> str:
    """Writes one `tokenizer.json`, which `transformers` reads as well."""
    return base_vocabulary.write_copy(self._bytes, directory, stem + self.suffix)


def _collapsed(text: str) -> str:
  """Words with one space between them; other than ASCII's is part of a word but at its borders."""
  if text.isascii():
    return ' '.join(text.split())
  words = (word.strip() for word in _ASCII_WHITESPACE.split(text))
  return ' '.join(word for word in words if word)


def _spaced(text: str) -> str:
  collapsed = _collapsed(text)
  return ' ' + collapsed if collapsed else ''


def _read_merges(path: pathlib.Path) -> list[list[str]]:
  merges_path = path.with_name('merges.txt')
  if not merges_path.exists():
    raise FileNotFoundError(
      f'{merges_path}: no such file; {path.name} needs its merges.txt beside it '
      '(or name a tokenizer.json)'
    )
  try:
    # A byte order mark, as some editors write it, is no part of a piece.
    lines = merges_path.read_text('utf-8-sig').split('\n')
  except UnicodeDecodeError as error:
    raise ValueError(f'{merges_path}: not UTF-8: {error}') from error
  merges = []
  for number, line in enumerate(lines, start=1):
    line = line.removesuffix('\r')
    if not line or (number == 1 and line.startswith('#version')):
      continue
    pair = line.split(' ')
    if len(pair) != 2 or not all(pair):
      raise ValueError(f'{merges_path}:{number}: expected two pieces, found {line!r:.60}')
    merges.append(pair)
  return merges


def _parts_of_tokenizer(
  content: Mapping[str, Any], path: pathlib.Path
) -> tuple[dict[str, int], list[list[str]], list[dict[str, Any]]]:
  """Vocabulary, merges and added tokens of a `tokenizer.json`."""
  try:
    model = content['model']
    # Some files of old versions leave the type out.
    model_type = model.get('type', 'BPE' if 'merges' in model else None)
    pre_tokenizer = content.get('pre_tokenizer') or {}
    prefix_space = pre_tokenizer.get('add_prefix_space', False)
    odd = next(
      (
        name
        for name, found, wanted in (
          ('model', model_type, ('BPE',)),
          ('pre_tokenizer', pre_tokenizer.get('type'), ('ByteLevel',)),
          ('pre_tokenizer.use_regex', pre_tokenizer.get('use_regex', True), (True,)),
          # First words would silently get other ids than its owner knows.
          ('pre_tokenizer.add_prefix_space', prefix_space, (False,)),
          ('normalizer', content.get('normalizer'), (None,)),
          ('byte_fallback', model.get('byte_fallback', False), (False,)),
          ('ignore_merges', model.get('ignore_merges', False), (False,)),
          ('continuing_subword_prefix', model.get('continuing_subword_prefix'), (None, '')),
          ('end_of_word_suffix', model.get('end_of_word_suffix'), (None, '')),
        )
        if found not in wanted
      ),
      None,
    )
    if odd is None:
      merges = [
        merge.split(' ') if isinstance(merge, str) else list(merge) for merge in model['merges']
      ]
      added = [dict(token) for token in content.get('added_tokens') or ()]
      vocab = dict(model['vocab'])
      for token in added:
        if vocab.setdefault(token['content'], token['id']) != token['id']:
          raise ValueError(f'two ids for {token["content"]!r}')
      return vocab, merges, added
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f'{path}: not a tokenizer.json of the tokenizers library: {type(error).__name__}: {error}'
    ) from error
  if model_type != 'BPE':
    odd += f' {model_type}'
  raise ValueError(f'{path}: not a byte-level BPE as GPT-2 and BART have it ({odd})')


def _checked_ids(
  vocab: Mapping[str, Any], added: Sequence[Mapping[str, Any]], path: pathlib.Path
) -> dict[str, int]:
  """The vocabulary in the order of its ids; ValueError if it cannot be used."""
  wrong = next((piece for piece, i in vocab.items() if type(i) is not int or i < 0), None)
  if wrong is not None:
    raise ValueError(f'{path}: the id of {wrong!r} is {vocab[wrong]!r:.40}')
  ids = dict(sorted(vocab.items(), key=lambda item: item[1]))
  if len(set(ids.values())) < len(ids):
    raise ValueError(f'{path}: two pieces have the same id')
  missing = [name for name in _SPECIALS if name not in ids]
  if missing:
    raise ValueError(f'{path}: not a vocabulary of BART: it has no {", ".join(missing)}')
  letters = set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) - set(ids)
  if letters:
    raise ValueError(
      f'{path}: {len(letters)} of the 256 bytes have no id, so that texts '
      'would be lost; train it with ByteLevel.alphabet() as initial alphabet'
    )
  for token in added:
    name = token['content']
    if token.get('rstrip') or any(character.isspace() for character in name):
      raise ValueError(
        f'{path}: token {name!r} takes in the space behind it, so ids of a '
        'passage cannot be put behind it; set its rstrip to false'
      )
  return ids


def _canonical(
  ids: Mapping[str, int], merges: Sequence[Sequence[str]], added: Sequence[Mapping[str, Any]]
) -> bytes:
  """A `tokenizer.json` of nothing but what decides ids, always written alike."""
  names = {token['content']: token for token in added}
  # What a file leaves out (all of vocab.json's) is still a special token.
  for name in _SPECIALS:
    names.setdefault(name, {'content': name, 'special': True})
  tokens = [
    {
      'id': ids[name],
      'content': name,
      'single_word': bool(token.get('single_word')),
      # As in the original, <mask> stands for a word and its space, whether or
      # not a file says so: vocab.json cannot.
      'lstrip': name == '<mask>' or bool(token.get('lstrip')),
      'rstrip': False,
      'normalized': False,
      'special': name in _SPECIALS or bool(token.get('special')),
    }
    for name, token in sorted(names.items(), key=lambda item: ids[item[0]])
  ]
  # The order of keys decides the fingerprint.
  byte_level = dict(type='ByteLevel', add_prefix_space=False, trim_offsets=True, use_regex=True)
  return json.dumps(
    {
      'version': '1.0',
      'truncation': None,
      'padding': None,
      'added_tokens': tokens,
      'normalizer': None,
      'pre_tokenizer': byte_level,
      'post_processor': {
        'type': 'RobertaProcessing',
        'sep': ['</s>', ids['</s>']],
        'cls': ['<s>', ids['<s>']],
        'trim_offsets': True,
        'add_prefix_space': False,
      },
      'decoder': byte_level,
      'model': sentence_piece_bpe.bpe_json(ids, merges),
    },
    ensure_ascii=False,
  ).encode('utf-8')
