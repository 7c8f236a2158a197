"""The vocabulary of a decoder-only reader: byte-level BPE, or SentencePiece's with byte fallback.

Its texts are exact: no whitespace is collapsed, and `decode` strips nothing. A prompt is put
together from segments (`encode_segment`) whose borders lie behind a newline or at a special token,
where no token reaches across. Names of special tokens in a text stay text, as with
`split_special_tokens` of transformers: a passage that holds `<|im_end|>` ends no turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from typing import Any

import tokenizers

from ralm_jax.data.text import base_vocabulary, chat_template, tokenizer_parts
from ralm_jax.data.text.base_vocabulary import Path, Vocabulary
from ralm_jax.data.text.chat_template import Messages
from ralm_jax.data.text.tokenizer_parts import TokenizerParts

_METASPACE = '\u2581'  # How SentencePiece writes a space.
_WHITESPACE = tuple(map(chr, filter(lambda i: chr(i).isspace(), range(0x3001))))


@dataclasses.dataclass(frozen=True)
class Prefix:
  """A space that is written before a text."""

  unless: tuple[str, ...] = ()  #: what a text begins with that gets none
  each: bool = True  #: also behind every special token

  def before(self, text: str) -> str:
    return f' {text}' if text and not text.startswith(self.unless) else text


class DecoderVocabulary(Vocabulary):
  """A `tokenizer.json` with a BPE model and what lies beside it, run by `tokenizers`."""

  suffix = '.json'
  first_word_differs = True

  eos_id: int  # Ends an answer: the end of a turn where its chat template has turns.
  end_ids: tuple[int, ...]  # All tokens that end an answer, `eos_id` first.
  chat_template: str | None

  def __init__(self, path: Path | TokenizerParts):
    """Reads a `tokenizer.json` with what lies beside it, or what `save` has written.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or nothing says which token ends a text.
    """
    parts = path if isinstance(path, TokenizerParts) else TokenizerParts.read(pathlib.Path(path))
    self.path = parts.path
    self._parts = parts
    bare, self._prefix = _without_prefix(parts.content)
    self._bytes = json.dumps(bare, ensure_ascii=False).encode()
    self._tokenizer = self._made()
    roles = parts.roles(self._tokenizer)
    self.eos_id, self.end_ids, self.pad_id = roles.end_ids[0], roles.end_ids, roles.pad_id
    self.bos_id = roles.bos_id
    # Where there is none, nothing is unknown.
    self.unk_id = self.pad_id if roles.unk_id is None else roles.unk_id
    self.chat_template = parts.config.get('chat_template')
    self.vocab_size = max(self._tokenizer.get_vocab().values()) + 1
    self._tokenizer.encode_special_tokens = True  # That is, their names are text.
    self._refuse_special_tokens_of_text()
    decided = {key: part for key, part in parts.content.items() if key != 'post_processor'}
    ids = [self.bos_id, self.pad_id, roles.unk_id, *self.end_ids]
    described = json.dumps([decided, ids], sort_keys=True).encode()
    self.fingerprint = hashlib.sha256(b'decoder\n' + described).hexdigest()

  def _made(self) -> tokenizers.Tokenizer:
    try:
      return tokenizers.Tokenizer.from_buffer(self._bytes)
    except Exception as error:  # The library raises nothing more specific.
      raise ValueError(f'{self.path}: not a tokenizer.json: {error}') from error

  def __reduce__(self) -> tuple[Any, ...]:
    """A pickled tokenizer would forget that names of special tokens are text."""
    return type(self), (self._parts,)

  @functools.cached_property
  def _of_templates(self) -> tokenizers.Tokenizer:
    """A second one, since what is special is a setting that threads would share."""
    return self._made()

  @functools.cached_property
  def _borders(self) -> re.Pattern[str]:
    """Where special tokens stand in a template."""
    added = self._tokenizer.get_added_tokens_decoder().values()
    names = sorted((token.content for token in added), key=len, reverse=True)
    return re.compile(f'({"|".join(map(re.escape, names))})')

  def _refuse_special_tokens_of_text(self) -> None:
    special = tokenizer_parts.special_tokens(self._tokenizer)
    names = [token.content for token in special.values()]
    for i, name, ids in zip(special, names, self.encode_segment_batch(names)):
      if i in ids:
        raise ValueError(
          f'{self.path}: the text {name!r} becomes the special token of this name, so that a '
          'passage could end an answer; leave its merges out of the model'
        )

  def encode(self, text: str) -> list[int]:
    """Ids of `text` behind a space."""
    return self.encode_segment(_spaced(text))

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return self.encode_segment_batch([_spaced(text) for text in texts])

  def encode_start(self, text: str) -> list[int]:
    """Ids of `text` at the very beginning, as transformers has them without special tokens."""
    return self.encode_segment(self._started(text))

  def encode_start_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return self.encode_segment_batch([self._started(text) for text in texts])

  def _started(self, text: str) -> str:
    return text if self._prefix is None else self._prefix.before(text)

  def encode_segment(self, text: str, special: bool = False) -> list[int]:
    """Ids as they stand inside a prompt, behind a newline or a special token.

    With `special`, names of special tokens become their ids, which is for templates alone.
    """
    return self.encode_segment_batch([text], special)[0]

  def encode_segment_batch(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
    """`encode_segment` of every text, faster than one call for each."""
    tokenizer, texts = self._tokenizer, list(texts)
    if special:
      tokenizer, prefix = self._of_templates, self._prefix
      if prefix is not None and prefix.each:
        texts = [self._spaced_behind_names(text, prefix) for text in texts]
    try:
      found = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    except TypeError as error:
      broken = next((text for text in texts if not _is_unicode(text)), None)
      if broken is None:
        raise
      raise ValueError(
        f'{self.path}: {broken!r:.80} holds half a character (a lone surrogate), which has no '
        'token; read the text as UTF-8 or leave it out'
      ) from error
    return [encoding.ids for encoding in found]

  def _spaced_behind_names(self, text: str, prefix: Prefix) -> str:
    first, *rest = self._borders.split(text)  # Text, name, text, name, and so on.
    return first + ''.join(
      part if at % 2 == 0 else prefix.before(part) for at, part in enumerate(rest)
    )

  def decode(self, ids: Iterable[int]) -> str:
    """Exact text of `ids` without special tokens, a leading space included.

    What is no whole character of UTF-8 becomes U+FFFD.
    """
    known = [int(i) for i in ids if 0 <= int(i) < self.vocab_size]
    return self._tokenizer.decode(known, skip_special_tokens=True)

  def name_of(self, token: int) -> str:
    return self._tokenizer.id_to_token(int(token)) or ''

  def stop_ids(self, stop_string: str) -> tuple[int, ...]:
    """Ids of all tokens whose text contains `stop_string`; special ones have no text."""
    if not stop_string:
      raise ValueError('an empty stop string is in every token; leave it out')
    return tuple(i for i, text in enumerate(self._texts) if stop_string in text)

  @functools.cached_property
  def _texts(self) -> list[str]:
    """Of each token by itself."""
    return self._tokenizer.decode_batch([[i] for i in range(self.vocab_size)])

  @property
  def special_names(self) -> dict[str, str]:
    """What a chat template calls `bos_token`, `eos_token` and so on."""
    return self._parts.names()

  def chat(self, messages: Messages, add_generation_prompt: bool = False, **variables: Any) -> str:
    """The text of a conversation by the chat template; ValueError where there is none or it fails.

    Encode it with `encode_segment(..., special=True)`.
    """
    if self.chat_template is None:
      raise ValueError(
        f'{self.path}: no chat template lies beside it (chat_template.jinja, or in '
        'tokenizer_config.json); use the plain prompt style (--text '
        'prompt_style=plain)'
      )
    return chat_template.render(
      self.chat_template,
      messages,
      {**self.special_names, **variables},
      add_generation_prompt=add_generation_prompt,
      where=self.path,
    )

  def save(self, directory: Path, stem: str) -> str:
    """Writes one file with all that its folder says, which `load_vocabulary` reads alone."""
    parts = self._parts
    own = {'config': parts.config, 'generation': parts.generation}
    content = json.dumps({tokenizer_parts.OWN: own, **parts.content}, ensure_ascii=False)
    return base_vocabulary.write_copy(content.encode(), directory, stem + self.suffix)

  def huggingface_files(self) -> dict[str, Any]:
    """JSON files of a folder from which transformers reads the same ids, roles and template."""
    # A chat template may write the end that the folder names, which need not be a turn's.
    named = {'eos_token': self.name_of(self.eos_id), **self._parts.config}
    return {
      'tokenizer.json': self._parts.content,
      'tokenizer_config.json': {
        **named,
        'pad_token': self.name_of(self.pad_id),
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'add_bos_token': self.bos_id is not None,
        'clean_up_tokenization_spaces': False,
      },
      'generation_config.json': {
        'bos_token_id': self.bos_id,
        'eos_token_id': [*self.end_ids],
        'pad_token_id': self.pad_id,
      },
    }


def _spaced(text: str) -> str:
  return f' {text}' if text else ''


def _is_unicode(text: str) -> bool:
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def _without_prefix(content: dict[str, Any]) -> tuple[dict[str, Any], Prefix | None]:
  """A `tokenizer.json` that writes no space before a text and strips none; the space it wrote."""
  found: list[Prefix] = []

  def changed(part: Any) -> Any:
    if not isinstance(part, dict):
      return part
    part = dict(part)
    for key in ('normalizers', 'pretokenizers', 'decoders'):
      if key in part:
        part[key] = [new for old in part[key] if (new := changed(old)) is not None]
    kind = part.get('type')
    if kind == 'Prepend':
      found.append(Prefix())
      return None
    if kind == 'Strip' and 'start' in part:  # The decoder of this name.
      return None
    if kind == 'Metaspace':
      scheme = part.get('prepend_scheme', 'always')
      if part.pop('add_prefix_space', True) and scheme != 'never':
        found.append(Prefix((' ', _METASPACE), each=scheme == 'always'))
      part['prepend_scheme'] = 'never'
    if kind == 'ByteLevel' and part.get('add_prefix_space'):
      found.append(Prefix(_WHITESPACE))
      part['add_prefix_space'] = False
    return part

  bare = {key: changed(content[key]) for key in ('normalizer', 'pre_tokenizer')}
  prefix = found[0] if found else None
  return {**content, **bare, 'decoder': changed(content['decoder'])}, prefix
