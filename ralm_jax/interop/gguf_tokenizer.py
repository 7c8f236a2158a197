"""The tokenizer of a GGUF file: what its metadata says, as a `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Sequence
import pathlib
from typing import Any

from ralm_jax.data.text import sentence_piece_bpe, vocabularies
from ralm_jax.data.text.base_vocabulary import Vocabulary
from ralm_jax.data.text.decoder_vocabulary import DecoderVocabulary
from ralm_jax.data.text.sentence_piece_bpe import Pieces
from ralm_jax.data.text.tokenizer_parts import TokenizerParts
from ralm_jax.files import named_source
from ralm_jax.interop.files.gguf_file import GgufFile

Json = dict[str, Any]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r'[^\r\n\p{L}\p{N}]?\p{L}+'
_REST = r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
_UPPER, _LOWER = r'[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]', r'[\p{Ll}\p{Lm}\p{Lo}\p{M}]'
_LETTERS = rf'[^\r\n\p{{L}}\p{{N}}]?(?:{_UPPER}*{_LOWER}+|{_UPPER}+{_LOWER}*)'
# What splits texts before merges, by tokenizer.ggml.pre; None is GPT-2's own.
_SPLITS: dict[str, str | None] = {
  'gpt-2': None,
  'default': None,
  'smollm': None,
  'llama-bpe': rf'{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}',
  'llama3': rf'{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}',
  'qwen2': rf'{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}',
  'tekken': rf'{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+',
}
# Of these, words that are tokens are not merged, and texts begin with the bos token.
_LLAMA3 = ('llama-bpe', 'llama3', 'tekken')


def load_vocabulary(name: str) -> Vocabulary:
  """A vocabulary by any name of `files/named_source.py`, that of a GGUF file, too."""
  path = named_source.resolve(name, vocabulary=True)
  if path.endswith(named_source.GGUF):
    return vocabulary(GgufFile(path))
  return vocabularies.load_vocabulary(path)


def vocabulary(file: GgufFile) -> DecoderVocabulary:
  """The vocabulary of a file; ValueError where it has none, or one of another kind."""
  raw, where = file.metadata, file.description
  get = lambda name, default=None: raw.get(f'tokenizer.ggml.{name}', default)
  tokens, kinds = get('tokens'), get('token_type')
  if not isinstance(tokens, list) or not tokens:
    raise ValueError(f'{where} holds no tokens; name a tokenizer.json with --reader_vocabulary.')
  if not isinstance(kinds, list) or len(kinds) != len(tokens):
    kinds = [1] * len(tokens)
  model = get('model')
  makers = {'gpt2': _byte_level, 'llama': _sentence_piece}
  if model not in makers:
    raise ValueError(
      f'{where}: tokenizer.ggml.model is {model!r}, expected {" or ".join(map(repr, makers))}; '
      'name a tokenizer.json with --reader_vocabulary.'
    )
  content = makers[model](raw, where, tokens, kinds)
  named: Json = {}
  for role, theirs in (('bos', 'bos'), ('eos', 'eos'), ('unk', 'unknown'), ('pad', 'padding')):
    i = get(f'{theirs}_token_id')
    if isinstance(i, int) and 0 <= i < len(tokens):
      named[f'{role}_token'] = tokens[i]
  config = {
    **named,
    # llama.cpp's own choice where the file does not say.
    'add_bos_token': bool(get('add_bos_token', model == 'llama' or get('pre') in _LLAMA3)),
    'chat_template': raw.get('tokenizer.chat_template'),
  }
  ends = [get(f'{name}_token_id') for name in ('eos', 'eot', 'eom')]
  generation = {'eos_token_id': [i for i in ends if isinstance(i, int)]}
  parts = TokenizerParts.of(content, config, generation, pathlib.Path(where))
  return DecoderVocabulary(parts)


def _byte_level(raw: Json, where: str, tokens: Sequence[str], kinds: Sequence[int]) -> Json:
  """GPT-2's kind: texts are split, then bytes are merged."""
  name = raw.get('tokenizer.ggml.pre', 'default')
  if name not in _SPLITS:
    raise ValueError(
      f'{where}: tokenizer.ggml.pre is {name!r}, expected {", ".join(_SPLITS)}; '
      'name a tokenizer.json with --reader_vocabulary.'
    )
  pattern = _SPLITS[name]
  byte_level = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True}
  steps: list[Json] = [{**byte_level, 'use_regex': pattern is None}]
  if name == 'smollm':
    steps.insert(0, {'type': 'Digits', 'individual_digits': True})
  if pattern is not None:
    split = {'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Isolated'}
    steps.insert(0, {**split, 'invert': False})
  return {
    'normalizer': {'type': 'NFC'} if name == 'qwen2' else None,
    'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': steps},
    'decoder': {**byte_level, 'use_regex': True},
    'model': sentence_piece_bpe.bpe_json(
      {token: i for i, token in enumerate(tokens)},
      [merge.split(' ') for merge in raw.get('tokenizer.ggml.merges') or ()],
      ignore_merges=name in _LLAMA3,
    ),
    'added_tokens': sentence_piece_bpe.added_tokens(tokens, kinds, normalized=False),
  }


def _sentence_piece(raw: Json, where: str, tokens: Sequence[str], kinds: Sequence[int]) -> Json:
  """SentencePiece's BPE with byte fallback, whose merges are told by scores."""
  scores = raw.get('tokenizer.ggml.scores')
  if not isinstance(scores, list) or len(scores) != len(tokens):
    raise ValueError(f'{where}: tokenizer.ggml.scores are not one for each of the tokens.')
  dummy_prefix = bool(raw.get('tokenizer.ggml.add_space_prefix', True))
  return sentence_piece_bpe.tokenizer_json(Pieces(tokens, scores, kinds), dummy_prefix)
