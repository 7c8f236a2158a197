"""What tasks of question files train on, and what they refuse."""

import logging

import pytest
import seqio

from ralm_jax.data.text import vocabularies
from ralm_jax.data.text_config import TextConfig
from ralm_jax.tasks import qa, registration
from tests import tiny

OPEN = 'x(?=y)'  # No text can be made of it.


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return tiny.make_data(tmp_path_factory.mktemp('registration'))


def make(data, name, path, **options):
  text = TextConfig(**options.pop('text', {}))
  return qa.jsonl_task(
    name,
    train=str(path),
    text=text,
    reader_vocabulary=str(data.reader_vocabulary),
    retriever_vocabulary=str(data.retriever_vocabulary),
    **options,
  )


def examples(name):
  dataset = seqio.get_mixture_or_task(name).get_dataset(None, 'train', shuffle=False)
  return list(dataset.as_numpy_iterator())


def targets(data, name):
  vocabulary = vocabularies.load_vocabulary(data.reader_vocabulary)
  return [vocabulary.decode(row['targets']) for row in examples(name)]


def test_patterns_are_no_targets(data, tmp_path, caplog):
  path = tiny.write_jsonl(
    tmp_path / 'q.jsonl',
    [
      {'id': 'a', 'question': 'p', 'answers': ['(red|blue)s?'], 'patterns': True},
      {'id': 'b', 'question': 'q', 'answers': [OPEN], 'patterns': True},
      {'id': 'c', 'question': 'r', 'answers': [OPEN], 'patterns': True, 'target': 'green'},
      {'id': 'd', 'question': 's', 'answers': ['red']},
      {'id': 'e', 'question': 't', 'answers': [OPEN], 'patterns': True},
    ],
  )
  with caplog.at_level(logging.WARNING):
    name = make(data, 'patterns', path)
  assert targets(data, name) == ['red', 'green', 'red']
  assert seqio.get_mixture_or_task(name).num_input_examples('train') == 3
  [record] = [r for r in caplog.records if 'left out' in r.getMessage()]
  assert record.getMessage().startswith(
    f'{path}: left out 2 questions: no text can be made of their patterns to '
    f"train on, such as {OPEN!r} of 'b'"
  )
  # Shots are of questions that can be trained on; a list is of lines.
  assert len(registration.read_splits({'train': str(path)}, shots=3)['train']) == 3
  listed = tmp_path / 'list'
  listed.write_text('[4, 0, 2]')
  chosen = registration.read_splits({'train': str(path)}, shots_list=str(listed))['train']
  assert [q.id for q in chosen] == ['a', 'c']


def test_nothing_but_patterns_of_which_no_text_is_made(data, tmp_path):
  path = tiny.write_jsonl(tmp_path / 'q.jsonl', [{'question': 'q', 'answer': [OPEN]}])
  with pytest.raises(ValueError, match='no question with an answer to train on'):
    qa.jsonl_task(
      train=str(path),
      record_format='curated_trec',
      reader_vocabulary=str(data.reader_vocabulary),
      retriever_vocabulary=str(data.retriever_vocabulary),
    )


def test_options_are_not_lost_silently(data, tmp_path):
  path = tiny.write_jsonl(
    tmp_path / 'q.jsonl',
    [
      {'question': 'p', 'answers': ['x']},
      {'question': 'q', 'options': ['red', 'blue'], 'answers': ['B']},
    ],
  )
  with pytest.raises(
    ValueError, match=(r'q\.jsonl:2: .*tasks\.multiple_choice\.mmlu_task .*multiple_choice\.gin')
  ):
    make(data, 'with_options', path)


def test_long_questions_keep_the_sentinel(data, tmp_path):
  path = tiny.write_jsonl(
    tmp_path / 'q.jsonl', [{'question': 'which colour ' * 60 + '?', 'answers': ['red']}]
  )
  name = make(data, 'long', path, text={'reader_query_length': 24})
  vocabulary = vocabularies.load_vocabulary(data.reader_vocabulary)
  [row] = examples(name)
  assert len(row['reader_query']) == 24
  assert row['reader_query'][-1] == vocabulary.sentinel_id(0)


def test_what_is_cut_or_left_out_of_training_is_counted(data, tmp_path, caplog):
  rows = [
    {'id': 'a', 'question': 'red', 'answers': ['red']},
    {'id': 'b', 'question': 'red', 'answers': ['red ' * 40]},
    {'id': 'c', 'question': 'blue ' * 60, 'answers': ['red', 'red ' * 40]},
    {'id': 'd', 'question': 'red', 'answers': ['<unk>']},
  ]
  path = tiny.write_jsonl(tmp_path / 'q.jsonl', rows)
  text = {'target_length': 16, 'query_length': 40, 'reader_query_length': 300}
  make(data, 'counted', path, text=text, require_answers=False)
  assert "train: left out 1 of 4 questions, which have no answer, such as 'd'" in caplog.text
  assert (
    'train: of 3 questions are cut: 1 queries (query_length), 1 targets (target_length);'
    in caplog.text
  )
  assert [len(row['targets']) for row in examples('counted')][1] == 16


def test_records_that_a_format_leaves_out_are_counted(data, tmp_path, caplog):
  labels = ('SUPPORTS', 'NOT ENOUGH INFO', 'REFUTES', 'NOT ENOUGH INFO')
  rows = [{'id': i, 'claim': 'red', 'label': label} for i, label in enumerate(labels)]
  path = tiny.write_jsonl(tmp_path / 'q.jsonl', rows)
  make(data, 'two_way', path, record_format='fever_2way')
  assert f'{path}: left out 2 of 4 records, which are no questions of fever_2way' in caplog.text
