"""Question answering on sets that TensorFlow Datasets carries.

They are read from a folder of prepared data sets, `tfds_data_dir`, or from
TFDS's own, into which TFDS downloads what is not there. Prompts, targets and
the draw among answers are those of every question task (`registration.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import functools
import os
import pathlib
import re
from typing import Any

import seqio
import tensorflow as tf

from ralm_jax.data import features
from ralm_jax.data.text.vocabularies import Vocabulary
from ralm_jax.data.text_config import TextConfig
from ralm_jax.tasks import registration

Example = Mapping[str, Any]
_VERSION = re.compile(r'\d+\.\d+\.\d+')


def tfds_task(
  name: str,
  *,
  tfds_name: str,
  convert: Callable[[Example], Example],
  reader_vocabulary: str | Vocabulary,
  retriever_vocabulary: str | Vocabulary,
  tfds_data_dir: str | os.PathLike[str] | None = None,
  splits: Sequence[str] | Mapping[str, str] | None = None,
  text: TextConfig | None = None,
) -> str:
  """Registers a question task on a data set of TensorFlow Datasets; returns its name.

  Args:
    tfds_name: of the data set, `name/config:version`; the version, which may be
      '1.*.*', can be left out with `tfds_data_dir`, for the newest there.
    convert: makes `question` and `answers` [n], strings, of its features.
      Questions without answers are left out.
    tfds_data_dir: folder of prepared data sets; None for TFDS's own.
    splits: names, or what to call slices, such as `{'train': 'train[:79168]',
      'validation': 'train[79168:]'}`; None for all.
  """
  tokenizer = registration.make_tokenizer(text, reader_vocabulary, retriever_vocabulary)
  questions = functools.partial(_questions, convert=convert)
  queries = functools.partial(registration.tokenize_queries, tokenizer=tokenizer)
  steps = [questions, queries, *registration.drawn_answers(tokenizer)]
  source = tfds_source(tfds_name, tfds_data_dir, splits)
  return registration.register(name, source, steps, tokenizer)


def tfds_source(
  tfds_name: str,
  tfds_data_dir: str | os.PathLike[str] | None,
  splits: Sequence[str] | Mapping[str, str] | None,
) -> seqio.TfdsDataSource:
  """A source, offline where a folder is given; FileNotFoundError where that has no such set."""
  if tfds_data_dir is None:
    return seqio.TfdsDataSource(tfds_name, splits=splits)
  folder = pathlib.Path(tfds_data_dir)
  name, _, version = tfds_name.partition(':')
  # '1.*.*' is a pattern as it stands, which other folders fit, too.
  prepared = [
    path.parent.name
    for path in folder.glob(f'{name}/{version or "*"}/dataset_info.json')
    if _VERSION.fullmatch(path.parent.name)
  ]
  if not prepared:
    found = sorted(
      f'{path.parent.parent.relative_to(folder)}:{path.parent.name}'
      for path in folder.glob('*/**/dataset_info.json')
    )
    raise FileNotFoundError(
      f'{folder}: no prepared data set {tfds_name!r}; there are: {", ".join(found) or "none"}. '
      f'Prepare it with `tfds build {name}` where there is a network, and copy its folder here.'
    )
  newest = max(prepared, key=lambda version: [int(number) for number in version.split('.')])
  # Else seqio would ask Google's bucket for it first.
  return seqio.TfdsDataSource(f'{name}:{newest}', os.fspath(folder), splits, read_only=True)


def from_nq(example: Example) -> Example:
  """Of `natural_questions_open`: `question` and `answer` [n]."""
  return {'question': example['question'], 'answers': example['answer']}


def from_trivia_qa(example: Example) -> Example:
  """Of `trivia_qa`: `question` and `answer`, of which `value` is the target.

  In title case where it is all upper case; its test split has no answers.
  """
  value = example['answer']['value']
  # Hidden answers are written so.
  known = tf.logical_and(value != '<unk>', value != '')
  answers = tf.boolean_mask([_title_case(value)], [known])
  return {'question': example['question'], 'answers': answers}


def from_web_questions(example: Example) -> Example:
  """Of `web_questions`: `question` and `answers` [n]."""
  return {'question': example['question'], 'answers': example['answers']}


# Arguments of `tfds_task`. What papers call the test split of NQ is `validation`;
# TriviaQA is unfiltered, without its documents.
NATURAL_QUESTIONS_OPEN = {'tfds_name': 'natural_questions_open:1.*.*', 'convert': from_nq}
TRIVIA_QA = {'tfds_name': 'trivia_qa/unfiltered.nocontext:1.*.*', 'convert': from_trivia_qa}
WEB_QUESTIONS = {'tfds_name': 'web_questions:1.*.*', 'convert': from_web_questions}


def natural_questions_open(name: str = 'tfds_nq_open', **task: Any) -> str:
  """Natural Questions, open (Lee et al. 2019); arguments of `tfds_task`."""
  return tfds_task(name, **{**NATURAL_QUESTIONS_OPEN, **task})


def trivia_qa(name: str = 'tfds_trivia_qa', **task: Any) -> str:
  """TriviaQA (Joshi et al. 2017); arguments of `tfds_task`."""
  return tfds_task(name, **{**TRIVIA_QA, **task})


def web_questions(name: str = 'tfds_web_questions', **task: Any) -> str:
  """WebQuestions (Berant et al. 2013); arguments of `tfds_task`."""
  return tfds_task(name, **{**WEB_QUESTIONS, **task})


def _title_case(value: tf.Tensor) -> tf.Tensor:
  """As Python's `title` where `isupper` holds, as Atlas prepares TriviaQA."""

  def convert(text: bytes) -> bytes:
    text = text.decode('utf-8')
    return (text.title() if text.isupper() else text).encode('utf-8')

  return tf.ensure_shape(tf.numpy_function(convert, [value], tf.string, stateful=False), [])


def _questions(dataset: tf.data.Dataset, convert: Callable[[Example], Example]) -> tf.data.Dataset:
  """What `registration.tokenize_queries` and `choose_answer` read."""

  def select(example: Example) -> dict[str, tf.Tensor]:
    converted = convert(example)
    return {
      'question': converted['question'],
      'answers': converted['answers'],
      # As tasks of question files, to be mixed with them.
      **features.PASSAGE_FEATURES,
    }

  return dataset.map(select, num_parallel_calls=tf.data.AUTOTUNE).filter(
    lambda example: tf.size(example['answers']) > 0
  )
