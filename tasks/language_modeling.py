"""Pre-training tasks on passages and on TensorFlow Datasets' texts.

An example is made of a passage (`ralm_jax/data/pretext/objectives.py`), which it names, so
that a search leaves it out: bind `retriever.SearchFilter.by = 'document'` to
leave the rest of its document out as well. Texts of TensorFlow Datasets are no
passages of the corpus; they name their document, all of which is left out.

What is the same in every epoch (texts, tokens, salient spans) comes before
seqio's cache, the noise after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
import logging
import os
import pathlib
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from ralm_jax.data import wikitext
from ralm_jax.data.corpus import passages
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.corpus.passages import Passage
from ralm_jax.data.pretext.objectives import (
  MaskedSpans,
  Objective,
  PretextTokenizer,
  Source,
  TitleSection,
)
from ralm_jax.data.text.base_vocabulary import SentinelVocabulary, Vocabulary
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text_config import TextConfig
from ralm_jax.files import atomic_files
from ralm_jax.losses.option_types import Count
from ralm_jax.tasks import pretext_pipeline, registration, tfds_tasks
from ralm_jax.tasks.pretext_pipeline import ExampleMaker, PassageRows, Passages

Path = str | os.PathLike[str]

# Of a document, see `TextFields`.
_COLUMNS = ('text', 'title', 'id', 'document')


def passage_task(
  name: str = 'passages',
  *,
  corpus: Path | PassageStore,
  objective: Objective = MaskedSpans(),
  text: TextConfig | None = None,
  min_words: int = 10,
  shots: Count | None = None,
  shots_list: str | None = None,
) -> str:
  """Registers a pretext task on the passages of a corpus; returns its name.

  In gin: `MIXTURE_OR_TASK_NAME = @language_modeling.passage_task()`. There is
  one split, 'train'. Shuffling draws from the whole corpus, whatever its size.
  The corpus's vocabularies must be the model's.

  Of `text` only the lengths count; passages of fewer than `min_words` are left out.

  Raises:
    ValueError: the objective needs something else, no passage of the corpus makes an example, or
      `shots` or `shots_list` is set: they are chosen of questions.
  """
  if shots is not None or shots_list:
    raise ValueError(
      f'A few shots (gin: SHOTS = {shots!r}, SHOTS_LIST = {shots_list!r}) are '
      'chosen of questions; pre-training takes every passage of the corpus. '
      'Leave them at None, or build a smaller CORPUS.'
    )
  store, tokenizer, maker = _opened(corpus, objective, text, min_words)
  source = PassageRows(store)
  source.fingerprints = {'train': f'passages of the corpus {store.fingerprint[:16]}'}
  if not any(len(maker.prepare(_of_store(store, rows))[0]) for rows in source.chunks()):
    raise ValueError(
      f'{store.directory}: no passage has {min_words} words and what {type(objective).__name__} '
      'needs (TitleSection: a section; SalientSpans: a name, date or number).'
    )
  preparing = functools.partial(
    pretext_pipeline.prepare_in_batches,
    columns=('row',),
    size=pretext_pipeline.BATCH,
    prepare=lambda rows: maker.prepare(_of_store(store, source.rows(rows))),
  )
  return registration.register(name, source, [preparing, *_drawn_examples(maker)], tokenizer)


def _drawn_examples(maker: ExampleMaker) -> list[Any]:
  """The last preprocessors of a pretext task: what is drawn anew in every epoch."""
  making = functools.partial(pretext_pipeline.make_in_batches, maker=maker)
  return [seqio.CacheDatasetPlaceholder(), making]


@dataclasses.dataclass(frozen=True)
class TextFields:
  """Where a data set of TensorFlow Datasets has what."""

  text: str = 'text'  # The feature with the document's text.
  title: str | None = None  # With its title; None if there is none.
  # With the document's name in the corpus that is searched: the id of a passage there, of
  # which all parts are left out. None names no passage.
  id: str | None = None
  # 'plain', or 'wiki40b' for a text with its markers, which has title and sections inside.
  layout: str = 'plain'
  # With the source document's name in the corpus that is searched, the `document` of its
  # passages or else their title; all of them are left out. None names none, but for 'wiki40b' the
  # title inside.
  document: str | None = None

  def __post_init__(self):
    if self.layout not in ('plain', 'wiki40b'):
      raise ValueError(f"TextFields.layout {self.layout!r} must be 'plain' or 'wiki40b'.")

  @property
  def excludes(self) -> bool:
    """Whether anything is left out of what is retrieved."""
    return bool(self.id or self.document or self.layout == 'wiki40b')


# By the first part of a data set's name.
KNOWN_FIELDS: Mapping[str, TextFields] = {
  'wikipedia': TextFields(title='title', document='title'),
  'wiki40b': TextFields(layout='wiki40b'),  # The title inside.
  # For a corpus of web pages that are named by their addresses.
  'c4': TextFields(document='url'),
}


def tfds_text_task(
  name: str = 'tfds_text',
  *,
  tfds_name: str,
  reader_vocabulary: Path | Vocabulary,
  retriever_vocabulary: Path | Vocabulary,
  tfds_data_dir: Path | None = None,
  splits: Sequence[str] | Mapping[str, str] | None = None,
  fields: TextFields | None = None,
  objective: Objective = MaskedSpans(),
  text: TextConfig | None = None,
  min_words: int = 10,
  max_words: int | None = 100,
) -> str:
  """Registers a pretext task on a text data set of TensorFlow Datasets.

  Args:
    tfds_name: of the data set: 'wikipedia/20230601.en:1.0.0', 'wiki40b/en:1.3.0',
      'c4/en:3.1.0'; the version can be left out with `tfds_data_dir`.
    tfds_data_dir: folder of prepared data sets; None for TFDS's own.
    splits: names, or what to call slices (`{'train': 'train[:1%]'}`).
    fields: where it has what; None for a data set of `KNOWN_FIELDS`.
    text, min_words: as `passage_task`.
    max_words: cuts longer texts into equal parts (`passages.split_long`).

  Raises:
    FileNotFoundError: `tfds_data_dir` has no such data set.
    ValueError: the data set is not known and `fields` is not given, or the objective needs
      something else.
  """
  if fields is None:
    kind = tfds_name.partition('/')[0].partition(':')[0]
    if kind not in KNOWN_FIELDS:
      raise ValueError(
        f'{tfds_name!r}: what its features are is known for {", ".join(sorted(KNOWN_FIELDS))} '
        'alone; give `fields` (language_modeling.TextFields).'
      )
    fields = KNOWN_FIELDS[kind]
  if isinstance(objective, TitleSection) and fields.layout == 'plain':
    raise ValueError(f'TitleSection needs sections, which {tfds_name!r} does not have.')
  if not fields.excludes:
    logging.warning(
      f'Task {name}: texts of {tfds_name} name no document of the corpus that is searched, so that '
      'nothing is excluded from retrieval: the very text that was masked may be retrieved. Name '
      'the feature in TextFields.document.'
    )
  tokenizer = registration.make_tokenizer(text, reader_vocabulary, retriever_vocabulary)
  source = tfds_tasks.tfds_source(tfds_name, tfds_data_dir, splits)
  origin = f'{source.tfds_dataset.name} {splits} {fields} {max_words}'
  maker = ExampleMaker(objective, PretextTokenizer(tokenizer), min_words, origin)
  selecting = functools.partial(_select, fields=fields)
  preparing = functools.partial(
    pretext_pipeline.prepare_in_batches,
    columns=_COLUMNS,
    size=8,
    prepare=lambda *documents: maker.prepare(_of_documents(documents, fields.layout, max_words)),
  )
  steps = [selecting, preparing, *_drawn_examples(maker)]
  return registration.register(name, source, steps, tokenizer)


def write_questions(
  output: Path,
  *,
  corpus: Path | PassageStore,
  objective: Objective = MaskedSpans(),
  text: TextConfig | None = None,
  min_words: int = 10,
  count: int | None = None,
  seed: int = 0,
) -> int:
  """Writes fixed examples as a question file, to evaluate a pretext task on.

  Evaluate with question_format '{question}', target_format '{answer}' and the
  metrics of language modelling. `target` has the sentinels, `answers` has not,
  as predictions are written without them. Each example is that of its passage,
  seed and place, and excludes its passage. Texts are those of the reader's ids.

  Arguments are those of `passage_task`, and `count`: of passages evenly spread
  over the corpus so many become questions, of which 16 times as many are looked
  at; None for one of every passage. Returns their number.

  Raises:
    ValueError: no passage makes an example.
  """
  store, _, maker = _opened(corpus, objective, text, min_words)
  rows = PassageRows(store).rows(None)
  if count is not None:
    rows = rows[_spread(len(rows), 16 * count)]
  columns = maker.prepare(_of_store(store, rows))
  if not len(columns[0]):
    raise ValueError(f'{store.directory}: no passage makes an example.')
  chosen = _spread(len(columns[0]), count or len(columns[0]))
  columns = tuple(column[chosen] for column in columns)
  seeds = np.stack([np.full(len(chosen), seed), chosen], axis=1)
  _, queries, targets = maker.make(columns, seeds)
  vocabulary = store.reader_vocabulary
  with_sentinels = vocabulary.decode
  if isinstance(vocabulary, SentinelVocabulary):
    with_sentinels = functools.partial(vocabulary.decode, keep_sentinels=True)
  lines = []
  for excluded, query, target in zip(columns[0], queries.to_lists(), targets.to_lists()):
    ids = json.loads(excluded)
    row = {'id': ids[0], 'question': with_sentinels(query), 'answers': [vocabulary.decode(target)]}
    row |= {'target': with_sentinels(target), 'exclude_passage_ids': ids}
    lines.append(json.dumps(row, ensure_ascii=False))
  atomic_files.write(output, '\n'.join([*lines, '']))
  return len(lines)


def _spread(size: int, count: int) -> np.ndarray:
  """At most `count` of the numbers below `size`, evenly spread."""
  return np.unique(np.linspace(0, size - 1, min(count, size)).astype(np.int64))


def _opened(
  corpus: Path | PassageStore, objective: Objective, text: TextConfig | None, min_words: int
) -> tuple[PassageStore, QueryTokenizer, ExampleMaker]:
  store = corpus if isinstance(corpus, PassageStore) else PassageStore.open(pathlib.Path(corpus))
  tokenizer = registration.make_tokenizer(text, store.reader_vocabulary, store.retriever_vocabulary)
  maker = ExampleMaker(objective, PretextTokenizer(tokenizer), min_words, store.fingerprint)
  return store, tokenizer, maker


def _of_store(store: PassageStore, rows: np.ndarray) -> Passages:
  stored = store.passages(rows)
  return Passages(
    [passage.id for passage in stored],
    [Source(passage.title, passage.section, passage.text) for passage in stored],
    store.tokens(rows, 'reader_text'),
  )


def _of_documents(columns: Sequence[np.ndarray], layout: str, max_words: int | None) -> Passages:
  """Cuts `text`, `title`, `id` and `document` of documents into passages."""
  excluded, documents, sources = [], [], []
  for row in zip(*columns):
    text, title, name, document = (value.decode() for value in row)
    sections = [{'title': title, 'section': '', 'text': text}]
    if layout == 'wiki40b':
      sections = wikitext.wiki40b_sections(text)
    for section in sections:
      for part in passages.split_long(Passage('', **section), max_words):
        sources.append(Source(part.title, part.section, part.text))
        excluded.append(name)
        inside = part.title if layout == 'wiki40b' else ''
        documents.append(document or inside)
  return Passages(excluded, sources, documents=documents)


@seqio.map_over_dataset
def _select(example: Mapping[str, tf.Tensor], fields: TextFields) -> dict[str, tf.Tensor]:
  """`text`, `title`, `id` and `document`, strings; '' for what is not there."""
  chosen = {name: getattr(fields, name) for name in _COLUMNS}
  for feature in chosen.values():
    if feature is not None and feature not in example:
      raise ValueError(
        f'The data set has no feature {feature!r}; it has {", ".join(sorted(example))}.'
      )
  result = {}
  for name, feature in chosen.items():
    value = tf.constant('') if feature is None else example[feature]
    result[name] = value if value.dtype == tf.string else tf.strings.as_string(value)
  return result
