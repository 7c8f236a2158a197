"""A SentencePiece vocabulary as `tokenizer.json` holds it, of T5 and others."""

from collections.abc import Iterable, Sequence
import hashlib
import itertools
import json
import pathlib

import tokenizers

from ralm_jax.data.text import base_vocabulary
from ralm_jax.data.text.base_vocabulary import Path, SentinelVocabulary

_PADS, _ENDS = ('<pad>', '[PAD]'), ('</s>', '[SEP]')


class UnigramVocabulary(SentinelVocabulary):
  """A `tokenizer.json` with a Unigram model, run by the `tokenizers` library as it is.

  Names of special tokens and of sentinels in a text become their ids, as in `transformers`.
  """

  suffix = '.json'

  def __init__(self, path: Path):
    """Reads a `tokenizer.json`.

    Raises:
      ValueError: it is damaged, has no padding, or does not split at whitespace.
    """
    self.path = pathlib.Path(path)
    content = base_vocabulary.read_json(self.path)
    content |= {'truncation': None, 'padding': None}
    self._bytes = json.dumps(content, sort_keys=True, ensure_ascii=False).encode('utf-8')
    try:
      self._tokenizer = tokenizers.Tokenizer.from_buffer(self._bytes)
    except Exception as error:  # The library raises nothing more specific.
      raise ValueError(f'{self.path}: not a tokenizer.json: {error}') from error
    ids = self._tokenizer.get_vocab(with_added_tokens=True)
    self.vocab_size = max(ids.values()) + 1
    self.pad_id, self.eos_id = self._special_id(ids, _PADS), self._special_id(ids, _ENDS)
    self.unk_id = content['model'].get('unk_id') or 0
    framed, bare = (self._tokenizer.encode('a', add_special_tokens=s).ids for s in (True, False))
    before = len(framed) - len(bare) - 1
    if before not in (0, 1) or framed != [*framed[:before], *bare, self.eos_id]:
      raise ValueError(f'{self.path}: its texts do not end with {_ENDS[0]}; expected as in T5')
    self.bos_id = framed[0] if before else None
    count = next(i for i in itertools.count() if f'<extra_id_{i}>' not in ids)
    last = self.vocab_size - 1
    regular = all(ids[f'<extra_id_{i}>'] == last - i for i in range(count))
    self.extra_ids = count if regular else 0
    self._special = frozenset(
      i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special
    )
    self._refuse_pieces_across_whitespace()
    self.fingerprint = hashlib.sha256(b'unigram\n' + self._bytes).hexdigest()

  def _special_id(self, ids: dict[str, int], names: Sequence[str]) -> int:
    found = next((ids[name] for name in names if name in ids), None)
    if found is None:
      raise ValueError(f'{self.path}: has no token {names[0]}')
    return found

  def _refuse_pieces_across_whitespace(self) -> None:
    apart = self.encode('a') + self.encode('b')
    if self.encode('a b') != apart or self.encode('  a  \n b ') != apart:
      raise ValueError(
        f'{self.path}: does not split at whitespace, so ids of a passage cannot be put behind ids '
        'of a query'
      )

  def encode(self, text: str) -> list[int]:
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]

  def decode(self, ids: Iterable[int], keep_sentinels: bool = False) -> str:
    first_sentinel = self.vocab_size - self.extra_ids
    runs: list[str] = []
    own = lambda token: 0 <= token < self.vocab_size and token not in self._special
    for is_sentinel, run in itertools.groupby(map(int, ids), lambda i: i >= first_sentinel):
      if not is_sentinel:
        runs.append(self._tokenizer.decode([token for token in run if own(token)]))
      elif keep_sentinels:
        runs += [f'<extra_id_{self.vocab_size - 1 - i}>' for i in run if i < self.vocab_size]
    return ' '.join(filter(None, runs))

  def name_of(self, token: int) -> str:
    return self._tokenizer.id_to_token(token) or ''

  def save(self, directory: Path, stem: str) -> str:
    return base_vocabulary.write_copy(self._bytes, directory, stem + self.suffix)
