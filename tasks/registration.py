"""seqio tasks of questions: what every task of question files is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
import dataclasses
import functools
import json
import logging
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from ralm_jax.data import features
from ralm_jax.data.features import TokenIds
from ralm_jax.data.pipeline import UnboundTask
from ralm_jax.data.questions import answer_patterns, few_shot, reading
from ralm_jax.data.questions.reading import Question
from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.base_vocabulary import Path, Vocabulary
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text_config import TextConfig


def read_splits(
  splits: Mapping[str, Any],
  *,
  require_answers: bool = True,
  duplicate_ids: str = 'number',
  record_format: str = 'qa',
  on_error: str = 'raise',
  shots: int | None = None,
  shots_seed: int = 0,
  shots_list: str | None = None,
) -> dict[str, list[Question]]:
  """Reads the files of each split; a bad line is reported before anything runs.

  Of a question whose answers are patterns and that has no target, the target is
  a text made of a pattern. It is left out if none can be made; the log says so.

  Args:
    splits: files or globs by split; None where there is none.
    shots: only so many training questions, chosen by hash (`few_shot.choose`).
    shots_list: file that lists the training questions to take instead.
    require_answers: whether what has no answer is an error; else it is left out.

  Raises:
    ValueError: no file is given, a line is wrong (with file and line), or a
      split has no question with an answer to train on.
  """
  splits = {split: paths for split, paths in splits.items() if paths}
  if not splits:
    raise ValueError(
      'The task needs files: bind its `train` or `validation`, e.g. qa.jsonl_task.train.'
    )
  options = {
    'require_answers': require_answers,
    'duplicate_ids': duplicate_ids,
    'record_format': record_format,
    'on_error': on_error,
  }
  loaded = {
    split: [
      question
      for question in _with_targets(_noted(split, reading.read_questions(paths, **options)))
      # The numbers of a list are positions in the file.
      if _is_answered(question) or (split == 'train' and shots_list)
    ]
    for split, paths in splits.items()
  }
  if 'train' in loaded:
    loaded['train'] = choose_shots(loaded['train'], shots, shots_seed, shots_list)
  for split, rows in loaded.items():
    if not any(map(_is_answered, rows)):
      raise ValueError(f'{splits[split]} has no question with an answer to train on.')
  return {split: [row for row in rows if _is_answered(row)] for split, rows in loaded.items()}


def _noted(split: str, questions: list[Question]) -> list[Question]:
  """The same questions; the log says how many have no answer to train on."""
  lacking = [question for question in questions if not question.answers]
  if lacking:
    logging.warning(
      f'{split}: left out {len(lacking):,} of {len(questions):,} questions, which have no answer, '
      f'such as {lacking[0].id!r}'
    )
  return questions


def _is_answered(question: Question) -> bool:
  """Whether there is a text to train on."""
  return bool(question.answers) and (not question.patterns or question.target is not None)


def _with_targets(questions: Iterable[Question]) -> list[Question]:
  """Questions whose patterns have an example of them as target, if there is one."""
  result = [
    dataclasses.replace(question, target=answer_patterns.example(question.answers))
    if question.patterns and question.target is None
    else question
    for question in questions
  ]
  without = [q for q in result if q.answers and not _is_answered(q)]
  if without:
    first = without[0]
    logging.warning(
      f'{first.path}: left out {len(without)} questions: no text can be made of their patterns to '
      f'train on, such as {first.answers[0]!r} of {first.id!r}; name one in the field target'
    )
  return result


def choose_shots(
  questions: Sequence[Question],
  shots: int | None = None,
  shots_seed: int = 0,
  shots_list: str | None = None,
) -> list[Question]:
  """The questions of a few-shot run; ValueError for too few, or both a number and a list."""
  if shots_list and shots is not None:
    raise ValueError(
      'Give `shots`, a number of questions chosen by hash, or `shots_list`, '
      'a file that names them, not both.'
    )
  if shots_list:
    return few_shot.listed(questions, shots_list)
  return list(questions) if shots is None else few_shot.choose(questions, shots, shots_seed)


def make_tokenizer(
  text: TextConfig | None,
  reader_vocabulary: Path | Vocabulary,
  retriever_vocabulary: Path | Vocabulary,
) -> QueryTokenizer:
  """Of formats (None for the default ones) and of vocabularies or their files."""
  return QueryTokenizer(
    text or TextConfig(),
    *map(vocabularies.load_vocabulary, (reader_vocabulary, retriever_vocabulary)),
  )


def register_questions(
  name: str, splits: Mapping[str, Sequence[Question]], tokenizer: QueryTokenizer
) -> str:
  """Registers a task of questions in memory and returns its name."""
  for split, questions in splits.items():
    warn_of_cut_texts(split, questions, tokenizer)
  queries = functools.partial(tokenize_queries, tokenizer=tokenizer)
  steps = [queries, *drawn_answers(tokenizer)]
  return register(name, in_memory(_dataset, splits, splits), steps, tokenizer)


def warn_of_cut_texts(split: str, questions: Sequence[Question], tokenizer: QueryTokenizer) -> None:
  """Says how many texts are longer than what is trained on; of several answers the first counts."""
  targets = [question.target or question.answers[0] for question in questions]
  cut = tokenizer.count_cut([question.question for question in questions], targets)
  found = [f'{n:,} {what}' for what, n in cut.items() if n]
  if found:
    logging.warning(
      f'{split}: of {len(questions):,} questions are cut: {", ".join(found)}; raise these fields '
      'of TextConfig to train on all of them'
    )


def in_memory(
  dataset_of: Callable[[Any], tf.data.Dataset],
  splits: Mapping[str, Sized],
  questions: Mapping[str, Sequence[Question]],
) -> seqio.DataSource:
  """A source of what each split holds, which was made of these questions."""

  def dataset(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
    del shuffle_files, seed
    return dataset_of(splits[split])

  sizes = {split: len(rows) for split, rows in splits.items()}
  source = seqio.FunctionDataSource(dataset, splits=list(splits), num_input_examples=sizes)
  # What a run that goes on must have the same (`pipeline.described`).
  source.fingerprints = {split: reading.fingerprint(rows) for split, rows in questions.items()}
  return source


def drawn_answers(tokenizer: QueryTokenizer) -> list[Any]:
  """The last preprocessors of a question task: what is drawn anew in every epoch."""
  targets = functools.partial(tokenize_targets, tokenizer=tokenizer)
  return [seqio.CacheDatasetPlaceholder(), choose_answer, targets]


def declare(name: str, maker: Callable[..., str], **arguments: Any) -> None:
  """Registers a task by name alone, unless there is one of that name.

  The maker, such as `qa.jsonl_task`, is called with the name, these arguments,
  and files and vocabularies once they are known (`pipeline.UnboundTask`).
  """
  if name not in seqio.TaskRegistry.names():
    seqio.TaskRegistry.add_provider(name, UnboundTask(name, maker, arguments))


def register(
  name: str, source: seqio.DataSource, preprocessors: Sequence[Any], tokenizer: QueryTokenizer
) -> str:
  """Registers a task, in place of one that has its name, and returns its name."""
  if name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(name)
  seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=list(preprocessors),
    output_features=output_features(tokenizer),
  )
  return name


def output_features(tokenizer: QueryTokenizer) -> Mapping[str, seqio.Feature]:
  """The features of every retrieval-augmented task; already tokenised.

  What an example says of passages (`features.PASSAGE_FEATURES`) is optional,
  but the tasks of a mixture have all or none of it.
  """

  def feature(vocabulary: Vocabulary) -> seqio.Feature:
    return seqio.Feature(
      TokenIds(vocabulary.vocab_size, vocabulary.eos_id, vocabulary.pad_id), add_eos=False
    )

  passed = functools.partial(seqio.Feature, add_eos=False, required=False, rank=0)
  return {
    'query': feature(tokenizer.retriever_vocabulary),
    'reader_query': feature(tokenizer.reader_vocabulary),
    'targets': feature(tokenizer.reader_vocabulary),
    **{
      name: passed(seqio.PassThroughVocabulary(1), dtype=value.dtype)
      for name, value in features.PASSAGE_FEATURES.items()
    },
  }


def _dataset(rows: Sequence[Question]) -> tf.data.Dataset:
  """from_tensor_slices keeps the iterator checkpointable."""
  return tf.data.Dataset.from_tensor_slices(
    {
      'id': tf.constant([row.id for row in rows]),
      'question': tf.constant([row.question for row in rows]),
      'answers': tf.ragged.constant(
        [[row.target] if row.target else list(row.answers) for row in rows], dtype=tf.string
      ),
      'exclude_ids': _json_lists(row.exclude_passage_ids for row in rows),
      'gold_ids': _json_lists(row.gold_passage_ids for row in rows),
      'max_date': tf.constant([row.max_date for row in rows], tf.int32),
    }
  )


def _json_lists(lists: Iterable[tuple[str, ...]]) -> tf.Tensor:
  """[N] strings; '' for an empty list."""
  return tf.constant([json.dumps(ids) if ids else '' for ids in lists])


@seqio.map_over_dataset(num_seeds=1)
def choose_answer(example: Mapping[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
  """Draws one of the answers, anew in every epoch."""
  answers = tf.convert_to_tensor(example['answers'])
  index = tf.random.stateless_uniform((), seed, maxval=tf.size(answers), dtype=tf.int32)
  rest = {k: v for k, v in example.items() if k != 'answers'}
  return {**rest, 'answer': answers[index]}


def tokenize(dataset: tf.data.Dataset, tokenizer: QueryTokenizer) -> tf.data.Dataset:
  """`question` and `answer` to `query`, `reader_query` and `targets`; the rest stays as it is."""
  return tokenize_targets(tokenize_queries(dataset, tokenizer), tokenizer)


def tokenize_queries(dataset: tf.data.Dataset, tokenizer: QueryTokenizer) -> tf.data.Dataset:
  """`question` to `query` and `reader_query`; the rest stays as it is."""

  def encode(question: bytes) -> tuple[np.ndarray, ...]:
    text = question.decode('utf-8')
    return _int32(tokenizer.retriever_question(text), tokenizer.reader_question(text))

  return _encoded(dataset, encode, 'question', ('query', 'reader_query'))


def tokenize_targets(dataset: tf.data.Dataset, tokenizer: QueryTokenizer) -> tf.data.Dataset:
  """`answer` to `targets`; the rest stays as it is."""

  def encode(answer: bytes) -> tuple[np.ndarray, ...]:
    return _int32(tokenizer.target(answer.decode('utf-8')))

  return _encoded(dataset, encode, 'answer', ('targets',))


def _int32(*sequences: Sequence[int]) -> tuple[np.ndarray, ...]:
  return tuple(np.asarray(ids, np.int32) for ids in sequences)


def _encoded(
  dataset: tf.data.Dataset, encode: Any, text: str, names: Sequence[str]
) -> tf.data.Dataset:
  """Puts token ids in place of a text.

  A stateless numpy_function, not py_function: the latter cannot be saved with
  the iterator's position.
  """

  def convert(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    encoded = tf.numpy_function(encode, [example[text]], [tf.int32] * len(names), stateful=False)
    return {
      **{name: value for name, value in example.items() if name != text},
      **{name: tf.ensure_shape(ids, (None,)) for name, ids in zip(names, encoded)},
    }

  return dataset.map(convert, num_parallel_calls=tf.data.AUTOTUNE)
