"""Lists written as text, and answers that are none."""

import json

import numpy as np
import pytest

from ralm_jax.data.questions import answer_texts, reading
from tests import tiny


@pytest.mark.parametrize(
  'answers', [['Lyon', 'Lyons'], ["it's", 'a "b"'], ['é', '\n'], ['one'], []]
)
@pytest.mark.parametrize(
  'written',
  [
    str,
    json.dumps,
    lambda texts: str(np.array(texts, object)),
    lambda texts: repr(np.array(texts, object)),
    lambda texts: '[' + ', '.join('u' + repr(text) for text in texts) + ']',
  ],
)
def test_a_list_written_as_text(answers, written):
  """As Python 3, JSON, NumPy (where Python would read one text) and Python 2 write it."""
  assert answer_texts.listed(written(answers)) == answers


@pytest.mark.parametrize(
  'text',
  ['[sic] foo', '[12]', '[Ss]mith', "['a', 1]", "[['a']]", "['a'b']", "['a'] and ['b']", 'a', '['],
)
def test_texts_that_begin_with_a_bracket(text):
  assert answer_texts.listed(text) is None


@pytest.mark.parametrize(
  'record_format, row',
  [
    ('nq_open', {'answer': "['Lyon', 'Lyons']"}),
    ('nq_open', {'answer': '["Lyon", "Lyons"]'}),
    ('nq_open', {'golden_answers': "['Lyon' 'Lyons']"}),
    ('nq_open', {'answer': ['Lyon', 'Lyons', '<unk>', ' ']}),
    ('qa', {'answer': "['Lyon', 'Lyons']"}),
    ('qa', {'answers': "['Lyon' 'Lyons']"}),
    ('qa', {'answers': ['N/A'], 'golden_answers': ['Lyon', 'Lyons']}),
    ('web_questions', {'answers': "['Lyon', 'Lyons']"}),
  ],
)
def test_answers_of_formats(tmp_path, record_format, row):
  path = tiny.write_jsonl(tmp_path / 'q.jsonl', [{'question': 'which city', **row}])
  (question,) = reading.read_questions(path, record_format=record_format)
  assert question.answers == ('Lyon', 'Lyons')


def test_a_table_of_numpy_lists(tmp_path):
  path = tmp_path / 'q.tsv'
  path.write_text("which city\t['Lyon' 'Lyons']\nwhich\t['a', 'b']\n")
  found = reading.read_questions(path, record_format='nq_open')
  assert [q.answers for q in found] == [('Lyon', 'Lyons'), ('a', 'b')]


@pytest.mark.parametrize(
  'record_format, row',
  [
    ('qa', {'answers': ['<unk>']}),
    ('qa', {'answer': 'N/A'}),
    ('qa', {'answers': '[]'}),
    ('qa', {'target': '<unk>'}),
    ('nq_open', {'answer': ['']}),
    # Hugging Face's copy of TriviaQA's hidden test set.
    ('triviaqa', {'answer': {'value': '<unk>', 'aliases': [], 'normalized_value': '<unk>'}}),
  ],
)
def test_hidden_answers_are_none(tmp_path, record_format, row):
  path = tiny.write_jsonl(tmp_path / 'q.jsonl', [{'question': 'which city', **row}])
  (question,) = reading.read_questions(path, record_format=record_format, require_answers=False)
  assert question.answers == () and question.target is None
  with pytest.raises(ValueError, match='q.jsonl:1.*(no answer|hidden).*ralm infer'):
    reading.read_questions(path, record_format=record_format)
