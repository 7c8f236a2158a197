"""What a run folder says of itself, so that commands need not be told again.

`MODEL_DIR/model.json` holds the model and the text formats, and
`MODEL_DIR/vocabularies/` copies of both vocabulary files.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import json
import os
from typing import Any

from ralm_jax.checkpoints import registering
from ralm_jax.data.text import templates, vocabularies
from ralm_jax.data.text.base_vocabulary import Vocabulary
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text_config import TextConfig
from ralm_jax.files import atomic_files
from ralm_jax.models import dual_encoder
from ralm_jax.models.bart import BartConfig
from ralm_jax.models.decoder_config import DecoderConfig
from ralm_jax.models.readings import READINGS
from ralm_jax.models.retrieval_lm import RetrievalLM
from ralm_jax.models.t5 import T5Config

FILE = 'model.json'
_FORMAT = 1
# What model.json calls the reader's architecture; absent means T5.
_READERS: dict[str, Any] = {'t5': T5Config, 'bart': BartConfig, 'decoder': DecoderConfig}


@dataclasses.dataclass(frozen=True)
class Specification:
  """A model with its texts."""

  model: RetrievalLM  #: reader, retriever and losses
  tokenizer: QueryTokenizer  #: formats, lengths and both vocabularies

  @property
  def text(self) -> TextConfig:
    return self.tokenizer.text

  def check(self) -> None:
    """Raises ValueError where model and vocabularies do not fit."""
    self._check_kind()
    for side, config, vocabulary in (
      ('reader', self.model.reader_config, self.tokenizer.reader_vocabulary),
      ('retriever', self.model.retriever_config, self.tokenizer.retriever_vocabulary),
    ):
      if vocabulary.vocab_size > config.vocab_size:
        raise ValueError(
          f'The {side} vocabulary {vocabulary.path} has {vocabulary.vocab_size} ids, the {side} '
          f"model only {config.vocab_size}; use the model's own vocabulary, or set its vocab_size."
        )
      if vocabulary.pad_id != config.pad_id:
        raise ValueError(
          f'The {side} vocabulary {vocabulary.path} pads with id {vocabulary.pad_id}, the {side} '
          f"model with {config.pad_id}; use the model's own vocabulary, or set its pad_id."
        )
    vocabulary, reader = self.tokenizer.reader_vocabulary, self.model.reader_config
    if vocabulary.eos_id != reader.eos_id:
      raise ValueError(
        f'The reader vocabulary {vocabulary.path} ends sequences with id {vocabulary.eos_id}, the '
        f"reader with {reader.eos_id}; use the model's own vocabulary, or set its eos_id."
      )
    if self.model.marginalizes and self.text.closed_book:
      raise ValueError(
        f'RetrievalLM.reading {self.model.reading!r} is marginal over '
        "passages, but reader_format = '{query}' shows none; use reading = "
        f'{self.model.closed_book().reading!r} (gin: READING), or a reader_format with {{text}}.'
      )
    self._check_prompts()
    for side, config, lengths in (
      ('reader', reader, ('passage_length', 'target_length')),
      ('retriever', self.model.retriever_config, ('query_length', 'retriever_passage_length')),
    ):
      longest = max(getattr(self.text, length) for length in lengths)
      positions = getattr(config, 'max_positions', None)
      if positions is not None and longest > positions:
        raise ValueError(
          f'TextConfig asks for {longest} {side} tokens, the {side} has {positions} positions; '
          f'shorten {" or ".join(lengths)}.'
        )

  def _check_kind(self) -> None:
    """Raises ValueError where the reader's vocabulary is that of another kind of reader."""
    decodes = isinstance(self.model.reader_config, DecoderConfig)
    if decodes == (self.tokenizer.prompts is not None):
      return
    kinds = ['a reader with an encoder (T5, BART)', 'a decoder-only reader']
    raise ValueError(
      f'The reader vocabulary {self.tokenizer.reader_vocabulary.path} is that of '
      f"{kinds[not decodes]}, the model's is {kinds[decodes]}; use the model's own vocabulary."
    )

  def _check_prompts(self) -> None:
    """Raises ValueError where prompts leave answers no positions, or are not of this reader."""
    text, config = self.text, self.model.reader_config
    if not isinstance(config, DecoderConfig):
      for name in ('prompt_style', 'system_prompt', 'prompt_length'):
        value = getattr(text, name)
        if value != getattr(TextConfig, name):
          raise ValueError(
            f'TextConfig.{name} {value!r} is of decoder-only readers, and this one has an encoder; '
            'leave it out.'
          )
      return
    asked = text.prompt_length or text.reader_query_length
    if asked + text.target_length > config.max_positions:
      name = 'prompt_length' if text.prompt_length else 'reader_query_length'
      raise ValueError(
        f'TextConfig.{name} {asked} and target_length {text.target_length} together are more than '
        f'the {config.max_positions} positions of the reader; lower {name} (--text) or '
        'target_length (--max_length).'
      )

  def check_same_vocabularies(self, directory: str | os.PathLike[str]) -> None:
    """Raises ValueError where a run folder was saved with other vocabularies."""
    saved = self.load(directory).tokenizer
    for side in ('reader', 'retriever'):
      ours = getattr(self.tokenizer, f'{side}_vocabulary')
      theirs = getattr(saved, f'{side}_vocabulary')
      if ours.fingerprint != theirs.fingerprint:
        raise ValueError(
          f'{directory} holds checkpoints trained with another {side} vocabulary ({theirs.path}) '
          f'than {ours.path}; use that file, or another MODEL_DIR.'
        )

  def save(self, directory: str | os.PathLike[str]) -> None:
    """Writes model.json and the vocabularies."""
    folder = os.path.join(directory, 'vocabularies')
    os.makedirs(folder, exist_ok=True)
    files = {}
    for side in ('reader', 'retriever'):
      vocabulary = getattr(self.tokenizer, f'{side}_vocabulary')
      name = vocabulary.save(folder, side)
      files[side] = {
        'file': f'vocabularies/{name}',
        'extra_ids': getattr(vocabulary, 'extra_ids', 0),
        'fingerprint': vocabulary.fingerprint,
      }
    config = self.model.reader_config
    content = {
      'format': _FORMAT,
      'reader': next(name for name, kind in _READERS.items() if isinstance(config, kind)),
      'modules': registering.modules_of(self.model),
      'retriever': dual_encoder.encoder_name(self.model.retriever_config),
      'model': _plain(dataclasses.asdict(self.model)),
      'text': dataclasses.asdict(self.text),
      'vocabularies': files,
    }
    atomic_files.write_json(os.path.join(directory, FILE), content, indent=2)

  @classmethod
  def load(cls, directory: str | os.PathLike[str]) -> Specification:
    """Reads what `save` wrote; FileNotFoundError without it, ValueError where damaged."""
    path = os.path.join(directory, FILE)
    try:
      with open(path, encoding='utf-8') as file:
        content = json.load(file)
      registering.load(content.get('modules', ()), path)
      model_fields = dict(content['model'])
      reader_class = _READERS[content.get('reader', 't5')]
      model_fields['reader_config'] = reader_class(**model_fields['reader_config'])
      # Absent in what was saved before there was a choice.
      retriever_class, _ = dual_encoder.ENCODERS[content.get('retriever', 'bert')]
      model_fields['retriever_config'] = retriever_class(**model_fields['retriever_config'])
      model = RetrievalLM(**model_fields)
      text = TextConfig(**content['text'])
      files = content['vocabularies']
    except FileNotFoundError:
      raise FileNotFoundError(
        f'{path} does not exist; is {directory} the MODEL_DIR of a run?'
      ) from None
    except (KeyError, TypeError, json.JSONDecodeError) as e:
      raise ValueError(f'{path} is damaged or of another version ({e!r}).') from e
    loaded = {}
    for side, entry in files.items():
      vocabulary = vocabularies.load_vocabulary(
        os.path.join(directory, entry['file']), extra_ids=entry['extra_ids']
      )
      if vocabulary.fingerprint != entry['fingerprint']:
        raise ValueError(
          f'{vocabulary.path} is not the {side} vocabulary the model was '
          'trained with; restore the file.'
        )
      loaded[side] = vocabulary
    return cls(model, QueryTokenizer(text, loaded['reader'], loaded['retriever']))


def _plain(value: Any) -> Any:
  """JSON values; dtypes by name."""
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if value is None or isinstance(value, (str, int, float, bool)):
    return value
  import numpy as np

  return np.dtype(value).name


def with_ids_of(
  model: RetrievalLM, vocabulary: Vocabulary, names: Sequence[str] = ('pad_id', 'eos_id', 'bos_id')
) -> RetrievalLM:
  """A decoder-only reader with its vocabulary's special ids; another one as it is.

  A decoder's configuration may pad with an end, and have several of them; its own tokenizer says
  which one answers end with.
  """
  reader = model.reader_config
  if not isinstance(reader, DecoderConfig):
    return model
  ids: dict[str, Any] = {name: getattr(vocabulary, name) for name in names}
  return dataclasses.replace(model, reader_config=dataclasses.replace(reader, **ids))


def with_text(spec: Specification, **changes: Any) -> Specification:
  """The same model with other formats or lengths; ValueError where it cannot have them."""
  changed = dataclasses.replace(
    spec,
    tokenizer=dataclasses.replace(spec.tokenizer, text=dataclasses.replace(spec.text, **changes)),
  )
  changed.check()
  return changed


def with_reading(
  spec: Specification, reading: str | None = None, passage_order: str | None = None
) -> Specification:
  """The same model for answering in another way; None keeps its own.

  Raises:
    ValueError: the reader cannot read so.
  """
  changes: dict[str, Any] = {}
  if passage_order is not None:
    if spec.tokenizer.prompts is None:
      raise ValueError(
        'An order of passages is of decoder-only readers; this one reads each passage by itself: '
        'leave --passage_order out.'
      )
    changes['passage_order'] = passage_order
  if reading is not None and reading != spec.model.reading:
    # What teaches the retriever may not go with the other reading, and nothing is taught here.
    changes |= {'reading': reading, 'gold_score': 'none', 'compared_gold_scores': ()}
    if reading in READINGS and READINGS[reading].marginalizes:
      changes['n_context'] = None
  return dataclasses.replace(spec, model=dataclasses.replace(spec.model, **changes))


def without_passages(spec: Specification) -> Specification:
  """The same reader, closed-book: it reads the query alone."""
  if spec.model.marginalizes:
    spec = dataclasses.replace(spec, model=spec.model.closed_book())
  return with_text(spec, reader_format=templates.CLOSED_BOOK_FORMAT)
