"""WordPiece, the vocabulary of BERT, cased or not, with what its folder says of it."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import tokenizers

from ralm_jax.data.text import base_vocabulary
from ralm_jax.data.text.base_vocabulary import Path, Vocabulary

_ROLES = ('pad', 'unk', 'cls', 'sep', 'mask')
# `BertJapaneseTokenizer` and its like cut words by other means.
_CLASSES = (
  'Bert',
  'DistilBert',
  'Electra',
  'MobileBert',
  'DPR',
  'MPNet',
  'PreTrained',
  'Tokenizers',
)


@dataclasses.dataclass(frozen=True)
class WordPieceOptions:
  """How texts become pieces; the defaults are those of uncased BERT."""

  lowercase: bool = True
  strip_accents: bool | None = None  #: None strips them where it lower-cases
  clean_text: bool = True
  handle_chinese_chars: bool = True  #: each of them a word
  max_characters: int = 100  #: of a word; a longer one is unknown
  specials: tuple[str, ...] = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')  #: in `_ROLES`' order
  #: Tokens that are looked for before anything else, beside the special ones: content, id,
  #: and how each is matched.
  added: tuple[tuple[str, int, tuple[tuple[str, bool], ...]], ...] = ()


class WordPieceVocabulary(Vocabulary):
  """BERT's WordPiece, names of special tokens in a text included.

  One of a `tokenizer.json` that does what a `vocab.txt` alone does is the same vocabulary.
  """

  def __init__(self, path: Path):
    """Reads `vocab.txt`, a piece a line, with its `tokenizer_config.json`, or `tokenizer.json`.

    Raises:
      ValueError: it is none, or cuts texts otherwise than BERT.
    """
    self.path = pathlib.Path(path)
    content = base_vocabulary.read_file(self.path)
    config = _config_beside(self.path)
    if content.lstrip(b'\xef\xbb\xbf \t\r\n')[:1] == b'{':
      ids, options = _parts_of_tokenizer(base_vocabulary.read_json(self.path), config, self.path)
      content = ''.join(f'{piece}\n' for piece in ids).encode('utf-8')
    else:
      ids = _pieces(content, self.path)
      options = _configured(WordPieceOptions(added=_tokens_beside(self.path, config, ids)), config)
    missing = [name for name in options.specials if name not in ids]
    if missing:
      raise ValueError(f'{self.path}: not a WordPiece vocabulary: no line {", ".join(missing)}')
    self.options = options
    self._tokenizer = _tokenizer(ids, options)
    self.vocab_size = max([*ids.values(), *(i for _, i, _ in options.added)]) + 1
    self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
      ids[name] for name in options.specials
    )
    self.eos_id = self.sep_id
    # What a vocab.txt says alone, as it always was.
    self._lines = content if options == WordPieceOptions() and _is_list(ids) else None
    if self._lines is not None:
      self.fingerprint = hashlib.sha256(b'wordpiece uncased\n' + content).hexdigest()
    else:
      parts = json.dumps([[*ids.items()], dataclasses.asdict(options)])
      self.fingerprint = hashlib.sha256(b'wordpiece\n' + parts.encode()).hexdigest()
    self.suffix = '.json' if self._lines is None else '.txt'

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

  def save(self, directory: Path, stem: str) -> str:
    """Writes `vocab.txt` where it says all, else a `tokenizer.json`."""
    if self._lines is None:
      return self.save_json(directory, stem)
    return base_vocabulary.write_copy(self._lines, directory, stem + self.suffix)

  def save_json(self, directory: Path, stem: str = 'tokenizer') -> str:
    content = self._tokenizer.to_str().encode('utf-8')
    return base_vocabulary.write_copy(content, directory, f'{stem}.json')

  def name_of(self, token: int) -> str:
    return self._tokenizer.id_to_token(token) or ''

  def huggingface_config(self) -> dict[str, Any]:
    options = self.options
    return {
      'tokenizer_class': 'BertTokenizer',
      'do_lower_case': options.lowercase,
      'strip_accents': options.strip_accents,
      'tokenize_chinese_chars': options.handle_chinese_chars,
      **{f'{role}_token': name for role, name in zip(_ROLES, options.specials)},
    }


def _is_list(ids: Mapping[str, int]) -> bool:
  return list(ids.values()) == list(range(len(ids)))


def _pieces(content: bytes, path: pathlib.Path) -> dict[str, int]:
  """Ids of the lines of a `vocab.txt`."""
  try:
    # Not splitlines(): vocabularies hold pieces such as U+2028.
    pieces = content.decode('utf-8').split('\n')
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}: not a WordPiece vocabulary: {error}') from error
  pieces = [piece.removesuffix('\r') for piece in pieces]
  if not pieces[-1]:
    pieces.pop()
  ids: dict[str, int] = {}
  for line, piece in enumerate(pieces, start=1):
    if piece in ids:
      raise ValueError(f'{path}:{line}: piece {piece!r} is already on line {ids[piece] + 1}')
    ids[piece] = line - 1
  return ids


def _config_beside(path: pathlib.Path) -> dict[str, Any]:
  """What the folder of a model says of its vocabulary; empty where it says nothing."""
  config: dict[str, Any] = {}
  if path.name in ('vocab.txt', 'tokenizer.json'):
    beside = path.with_name('tokenizer_config.json')
    config = base_vocabulary.read_json(beside) if beside.exists() else {}
    beside = path.with_name('sentence_bert_config.json')
    if beside.exists() and base_vocabulary.read_json(beside).get('do_lower_case'):
      config['lower_first'] = True
  name = config.get('tokenizer_class') or 'BertTokenizer'
  if not name.startswith(_CLASSES) or name.startswith('BertJapanese'):
    raise ValueError(
      f'{path.with_name("tokenizer_config.json")}: tokenizer_class {name} cuts texts otherwise '
      'than BERT; save its tokenizer.json, if transformers can, or convert another model'
    )
  if config.get('do_basic_tokenize', True) is False:
    raise ValueError(
      f'{path.with_name("tokenizer_config.json")}: do_basic_tokenize false is not computed here'
    )
  return config


def _configured(options: WordPieceOptions, config: Mapping[str, Any]) -> WordPieceOptions:
  """With what a `tokenizer_config.json` says, which has the last word in transformers, too."""
  changes = {
    ours: config[theirs]
    for ours, theirs in (
      ('lowercase', 'do_lower_case'),
      ('strip_accents', 'strip_accents'),
      ('handle_chinese_chars', 'tokenize_chinese_chars'),
    )
    if theirs in config
  }
  names = (
    _content(config.get(f'{role}_token')) or name for role, name in zip(_ROLES, options.specials)
  )
  options = dataclasses.replace(options, **changes, specials=tuple(names))
  if config.get('lower_first') and not options.lowercase:
    # Of sentence-transformers: lower-cased before the model's own tokenizer.
    strips = bool(options.strip_accents)
    options = dataclasses.replace(options, lowercase=True, strip_accents=strips)
  if options.strip_accents == options.lowercase:
    options = dataclasses.replace(options, strip_accents=None)
  return options


def _content(token: Any) -> str | None:
  return token['content'] if isinstance(token, Mapping) else token


def _tokens_beside(
  path: pathlib.Path, config: Mapping[str, Any], ids: Mapping[str, int]
) -> tuple[Any, ...]:
  """Tokens that a user has added to a `vocab.txt`."""
  tokens = {
    token['content']: {**token, 'id': int(i)}
    for i, token in (config.get('added_tokens_decoder') or {}).items()
  }
  beside = path.with_name('added_tokens.json')
  if path.name == 'vocab.txt' and beside.exists():
    for name, i in base_vocabulary.read_json(beside).items():
      tokens.setdefault(name, {'content': name, 'id': i})
  more = config.get('additional_special_tokens') or config.get('extra_special_tokens') or ()
  for name in map(_content, more if isinstance(more, list) else ()):
    if name not in ids and name not in tokens:
      raise ValueError(
        f'{path}: tokenizer_config.json beside it names the special token {name!r}, which has no '
        'id; save the tokenizer with transformers 5, whose tokenizer.json says it'
      )
  specials = {_content(config.get(f'{role}_token')) for role in _ROLES}
  return _added(tokens.values(), {*WordPieceOptions.specials, *specials}, ids, path)


def _added(
  tokens: Iterable[Mapping[str, Any]],
  specials: set[Any],
  ids: Mapping[str, int],
  path: pathlib.Path,
) -> tuple[Any, ...]:
  found = []
  for token in sorted(tokens, key=lambda token: token['id']):
    name = token['content']
    if ids.get(name, token['id']) != token['id']:
      raise ValueError(f'{path}: two ids for the token {name!r}, {ids[name]} and {token["id"]}')
    if name not in specials:
      flags = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')
      found.append((name, token['id'], tuple((flag, bool(token.get(flag))) for flag in flags)))
  return tuple(found)


def _parts_of_tokenizer(
  content: Any, config: Mapping[str, Any], path: pathlib.Path
) -> tuple[dict[str, int], WordPieceOptions]:
  """Ids and options of a `tokenizer.json`."""
  try:
    model, normalizer = content['model'], content.get('normalizer') or {}
    pre_tokenizer = (content.get('pre_tokenizer') or {}).get('type')
    for name, found, wanted in (
      ('normalizer', normalizer.get('type'), 'BertNormalizer'),
      ('pre_tokenizer', pre_tokenizer, 'BertPreTokenizer'),
      ('continuing_subword_prefix', model.get('continuing_subword_prefix'), '##'),
    ):
      if found != wanted:
        raise ValueError(f'{path}: its {name} is {found!r}, of BERT it is {wanted!r}')
    tokens = {token['content']: token for token in content.get('added_tokens') or ()}
    specials = tuple(
      _content(config.get(f'{role}_token')) or name
      for role, name in zip(_ROLES, WordPieceOptions.specials)
    )
    ids = dict(sorted(model['vocab'].items(), key=lambda item: item[1]))
    added = _added(tokens.values(), set(specials), ids, path)
    options = WordPieceOptions(
      lowercase=normalizer.get('lowercase', True),
      strip_accents=normalizer.get('strip_accents'),
      clean_text=normalizer.get('clean_text', True),
      handle_chinese_chars=normalizer.get('handle_chinese_chars', True),
      max_characters=model.get('max_input_chars_per_word', 100),
      specials=specials,
      added=added,
    )
  except (AttributeError, KeyError, TypeError) as error:
    raise ValueError(
      f'{path}: not a tokenizer.json of the tokenizers library: {type(error).__name__}: {error}'
    ) from error
  return ids, _configured(options, config)


def _tokenizer(ids: dict[str, int], options: WordPieceOptions) -> tokenizers.Tokenizer:
  pad, unk, cls, sep, mask = options.specials
  made = tokenizers.Tokenizer(
    tokenizers.models.WordPiece(ids, unk_token=unk, max_input_chars_per_word=options.max_characters)
  )
  made.normalizer = tokenizers.normalizers.BertNormalizer(
    options.clean_text, options.handle_chinese_chars, options.strip_accents, options.lowercase
  )
  made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single=f'{cls} $A {sep}', special_tokens=[(cls, ids[cls]), (sep, ids[sep])]
  )
  made.decoder = tokenizers.decoders.WordPiece('##')
  made.add_special_tokens([pad, unk, cls, sep, mask])
  for name, i, flags in options.added:
    token = tokenizers.AddedToken(name, **dict(flags))
    add = made.add_special_tokens if token.special else made.add_tokens
    add([token])
    if made.token_to_id(name) != i:
      raise ValueError(f'the added token {name!r} has id {i}, not the next one')
  return made
