"""What the folder of a decoder-only model says of its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import tokenizers

from ralm_jax.data.text import base_vocabulary, chat_template
from ralm_jax.data.text.chat_template import ChatTemplateError

OWN = 'ralm_jax'  # Under which a saved file holds the other files' parts.
ROLES = ('bos_token', 'eos_token', 'pad_token', 'unk_token')
_KEPT = (*ROLES, 'add_bos_token', 'chat_template')
_MORE = ('cls_token', 'sep_token', 'mask_token')
_LISTS = ('additional_special_tokens', 'extra_special_tokens')
_FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')


@dataclasses.dataclass(frozen=True)
class TokenizerParts:
  """The files of a tokenizer, as far as they decide ids; `path` is for messages."""

  content: dict[str, Any]  #: `tokenizer.json`, with every special token among its added tokens
  config: dict[str, Any]  #: `tokenizer_config.json`: names of special tokens, template
  generation: dict[str, Any]  #: `generation_config.json`: `eos_token_id` and `pad_token_id`
  path: pathlib.Path

  @classmethod
  def read(cls, path: pathlib.Path) -> TokenizerParts:
    """Reads `tokenizer.json` with what lies beside it, or what a vocabulary has saved.

    Raises:
      ValueError: a file is damaged.
    """
    content = base_vocabulary.read_json(path)
    return cls.beside(content, path)

  @classmethod
  def beside(
    cls, content: dict[str, Any], path: pathlib.Path, defaults: Mapping[str, Any] = {}
  ) -> TokenizerParts:
    """Of a `tokenizer.json`'s content, with what lies beside `path`, or else `defaults`."""
    if OWN in content:
      own = content.pop(OWN)
      return cls.of(content, own['config'], own['generation'], path)
    config = {
      **defaults,
      **_read_beside(path, 'special_tokens_map.json'),
      **_read_beside(path, 'tokenizer_config.json'),
    }
    beside = path.with_name('chat_template.jinja')
    if beside.is_file():
      config['chat_template'] = beside.read_text('utf-8')
    generation: dict[str, Any] = {}
    for name in ('config.json', 'generation_config.json'):
      said = _read_beside(path, name)
      said = {**(said.get('text_config') or {}), **said}  # Of a model that sees, too.
      config.setdefault('model_type', said.get('model_type'))
      for key in ('eos_token_id', 'pad_token_id'):
        if said.get(key) is not None:
          generation[key] = said[key]
    return cls.of(content, config, generation, path)

  @classmethod
  def of(
    cls,
    content: dict[str, Any],
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    path: pathlib.Path,
  ) -> TokenizerParts:
    """Of the files' contents; ValueError where they are not what their names say."""
    try:
      kept = {key: config[key] for key in _KEPT if config.get(key) is not None}
      kept |= {role: _name(kept[role]) for role in ROLES if role in kept}
      if isinstance(kept.get('chat_template'), list):  # Several, by their names.
        named = {entry['name']: entry['template'] for entry in kept.pop('chat_template')}
        kept |= {'chat_template': named['default']} if 'default' in named else {}
      if not isinstance(kept.get('chat_template', ''), str):
        raise TypeError(f'chat_template is {kept["chat_template"]!r:.60}')
      return cls(_canonical(content, config), kept, dict(generation), path)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise ValueError(
        f'{path}: not a tokenizer.json of the tokenizers library with its tokenizer_config.json: '
        f'{type(error).__name__}: {error}'
      ) from error

  def roles(self, tokenizer: tokenizers.Tokenizer) -> TokenRoles:
    """Raises ValueError where nothing says which token ends a text."""
    ids = {role: tokenizer.token_to_id(name) for role, name in self.names().items()}
    end_ids = self._ends(tokenizer, ids.get('eos_token'))
    bos_id = ids.get('bos_token') if self.config.get('add_bos_token') else None
    if 'add_bos_token' not in self.config:  # Else the tokenizer's own frame tells.
      framed, bare = (tokenizer.encode('a', add_special_tokens=s).ids for s in (True, False))
      bos_id = framed[0] if len(framed) > len(bare) and framed[1 : 1 + len(bare)] == bare else None
    return TokenRoles(
      pad_id=self._pad(tokenizer, ids, end_ids),
      bos_id=bos_id,
      unk_id=ids.get('unk_token'),
      end_ids=end_ids,
    )

  def _ends(self, tokenizer: tokenizers.Tokenizer, eos_id: int | None) -> tuple[int, ...]:
    """What ends an answer: the end of a turn, then other ends."""
    found = [] if eos_id is None else [eos_id]
    found += [i for i in _ids(self.generation.get('eos_token_id')) if i not in found]
    ends = [i for i in found if tokenizer.id_to_token(i) is not None]
    if not ends:
      raise ValueError(
        f'{self.path}: nothing says which token ends a text; put tokenizer_config.json with its '
        'eos_token (or generation_config.json with its eos_token_id) beside it'
      )
    if len(ends) > 1 and 'chat_template' in self.config:
      turn = self._end_of_turn([tokenizer.id_to_token(i) or '' for i in ends])
      if turn is not None:
        ends.insert(0, ends.pop(turn))
    return tuple(ends)

  def _end_of_turn(self, names: Sequence[str]) -> int | None:
    """Which of the names the chat template writes behind an answer."""
    said = 'an answer'
    turns = [{'role': 'user', 'content': 'a question'}, {'role': 'assistant', 'content': said}]
    try:
      text = chat_template.render(self.config['chat_template'], turns, self.names())
    except ChatTemplateError:
      return None  # Whoever uses the template is told.
    behind = text.rpartition(said)[2]
    places = [(behind.find(name), at) for at, name in enumerate(names) if name in behind]
    return min(places)[1] if places else None

  def _pad(
    self, tokenizer: tokenizers.Tokenizer, ids: Mapping[str, int | None], ends: Sequence[int]
  ) -> int:
    """The pad token, or a special one that neither text nor chat makes, where it is an end."""
    said = [ids.get('pad_token'), *_ids(self.generation.get('pad_token_id'))]
    for pad_id in said:
      if pad_id is not None and pad_id != ends[0] and tokenizer.id_to_token(pad_id) is not None:
        return pad_id
    special = {i: token.content for i, token in special_tokens(tokenizer).items()}
    template = self.config.get('chat_template', '')
    taken = {*ends, ids.get('bos_token')}
    free = [i for i, name in special.items() if i not in taken and name not in template]

    def rank(i: int) -> tuple[bool, bool, bool, int]:
      name = special[i].lower()
      spare = any(word in name for word in ('reserved', 'unused'))
      return 'pad' not in name, not spare, i == ids.get('unk_token'), i

    if not free:  # Ends that an answer does not end with, rather than none.
      free = [i for i in special if i != ends[0]]
    if not free:
      raise ValueError(
        f'{self.path}: no special token but {special.get(ends[0])!r}, which ends a text, so that '
        'nothing can fill what is behind an end; name a pad_token in tokenizer_config.json'
      )
    return min(free, key=rank)

  def names(self) -> dict[str, str]:
    """What a chat template knows of special tokens."""
    return {role: self.config[role] for role in ROLES if role in self.config}


@dataclasses.dataclass(frozen=True)
class TokenRoles:
  """Which tokens stand for what."""

  pad_id: int
  bos_id: int | None  #: None where texts begin without one
  unk_id: int | None
  end_ids: tuple[int, ...]  #: all that end an answer, the end of a turn first


def special_tokens(tokenizer: tokenizers.Tokenizer) -> dict[int, tokenizers.AddedToken]:
  """Those whose names text may not become."""
  added = tokenizer.get_added_tokens_decoder()
  return {i: token for i, token in sorted(added.items()) if token.special}


def _canonical(content: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
  """A `tokenizer.json` of nothing but what decides ids, its special tokens complete."""
  model = dict(content['model'])
  merges = model['merges']
  model['merges'] = [m.split(' ') if isinstance(m, str) else list(m) for m in merges]
  model['dropout'] = None
  parts = {key: content.get(key) for key in ('normalizer', 'pre_tokenizer', 'decoder')}
  whole = {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    **parts,
    'post_processor': content.get('post_processor'),
    'model': model,
    'added_tokens': _added_tokens(content.get('added_tokens') or (), model['vocab'], config),
  }
  _as_llama(whole, config)
  return whole


def _as_llama(content: dict[str, Any], config: Mapping[str, Any]) -> None:
  """Transformers 5 begins a text of Llama 2 otherwise than the file says, but not of Mistral."""
  name = str(config.get('tokenizer_class') or '').removesuffix('Fast')
  others = str(config.get('model_type') or '').startswith(('mistral', 'mixtral', 'ministral'))
  if name != 'LlamaTokenizer' or others or 'ByteLevel' in str(content['pre_tokenizer']):
    return
  scheme = 'always' if config.get('legacy') else 'first'
  if config.get('add_prefix_space') is False:
    scheme = 'never'
  content['normalizer'] = None
  content['pre_tokenizer'] = {
    'type': 'Metaspace',
    'replacement': '\u2581',
    'prepend_scheme': scheme,
    'split': False,
  }


def _added_tokens(
  listed: Iterable[Mapping[str, Any]], vocab: Mapping[str, int], config: Mapping[str, Any]
) -> list[dict[str, Any]]:
  """With those of `tokenizer_config.json`, which has the last word on what is special."""
  tokens = {token['content']: dict(token) for token in listed}
  for i, token in (config.get('added_tokens_decoder') or {}).items():
    tokens.setdefault(token['content'], {**token, 'id': int(i)})
  for role in (*ROLES, *_MORE, *_LISTS):
    said = config.get(role)
    for token in said if isinstance(said, list) else [said]:
      if not isinstance(token, (str, Mapping)):
        continue
      name = _name(token)
      if name in tokens:
        tokens[name]['special'] = True
      elif name in vocab:
        flags = {**token} if isinstance(token, Mapping) else {}
        tokens[name] = {**flags, 'content': name, 'id': vocab[name], 'special': True}
  return [
    {'id': token['id'], 'content': name, **{flag: bool(token.get(flag)) for flag in _FLAGS}}
    for name, token in sorted(tokens.items(), key=lambda item: item[1]['id'])
  ]


def _name(token: Any) -> str:
  name = token['content'] if isinstance(token, Mapping) else token
  if not isinstance(name, str):
    raise TypeError(f'a special token is {name!r:.60}')
  return name


def _ids(found: Any) -> list[int]:
  """Of an id, a list of them, or nothing; -1 is none in old configurations."""
  found = found if isinstance(found, list) else [found]
  return [i for i in found if isinstance(i, int) and i >= 0]


def _read_beside(path: pathlib.Path, name: str) -> dict[str, Any]:
  beside = path.with_name(name)
  return base_vocabulary.read_json(beside) if beside.is_file() else {}
