"""Question files of others, read as our own layout: values worked out by hand."""

import csv
import json
import logging

import pytest

from ralm_jax.data.questions import reading
from ralm_jax.data.questions.rows import FilePassage


@pytest.mark.parametrize(
  'row, expected',
  [
    # nq_open, web_questions, hotpot_qa, squad, trivia_qa of Hugging Face.
    ({'question': 'q', 'answer': ['a', 'b']}, ('f:1', ('a', 'b'), None)),
    ({'url': 'u', 'question': 'q', 'answers': ['a']}, ('f:1', ('a',), None)),
    ({'id': '5a', 'question': 'q', 'answer': 'a', 'context': {}}, ('5a', ('a',), None)),
    (
      {'id': '5', 'question': 'q', 'answers': {'text': ['a', 'b', 'a'], 'answer_start': [1, 2, 1]}},
      ('5', ('a', 'b'), None),
    ),
    (
      {'question_id': 'tc', 'question': 'q', 'answer': {'value': 'V', 'aliases': ['a', 'V']}},
      ('tc', ('a', 'V'), 'V'),
    ),
    # PopQA and BEIR.
    ({'id': 3, 'question': 'q', 'possible_answers': ['a', 'b']}, ('3', ('a', 'b'), None)),
    ({'_id': 'b', 'text': 'q', 'answers': ['a'], 'metadata': {}}, ('b', ('a',), None)),
    ({'qid': 9, 'query': 'q', 'answers': ['a']}, ('9', ('a',), None)),
  ],
)
def test_field_names(tmp_path, row, expected):
  path = tmp_path / 'f'
  path.write_text(json.dumps(row) + '\n')
  [found] = reading.read_questions(path)
  assert (found.id, found.answers, found.target) == expected and found.question == 'q'


def test_files_of_fid(tmp_path):
  path = tmp_path / 'train.json'
  ctxs = [{'id': '3', 'title': 'T', 'text': 'x', 'score': '81.2'}]
  row = {'id': 7, 'question': 'q', 'target': 'A', 'answers': ['a', 'A'], 'ctxs': ctxs}
  path.write_text(json.dumps([row]))
  [found] = reading.read_questions(path)
  assert (found.id, found.answers, found.target) == ('7', ('a', 'A'), 'A')
  assert found.passages == (FilePassage('3', 'T', 'x'),)


def test_popqa(tmp_path):
  path = tmp_path / 'popQA.tsv'
  rows = [['4', 'politician', 'What is "X"?', '["politician", "political leader"]']]
  with open(path, 'w', newline='', encoding='utf-8') as file:
    writer = csv.writer(file, delimiter='\t')
    writer.writerows([['id', 'obj', 'question', 'possible_answers'], *rows])
  [found] = reading.read_questions(path)
  assert (found.id, found.question) == ('4', 'What is "X"?')
  assert found.answers == ('politician', 'political leader')


def test_squad(tmp_path, caplog):
  answer = {'text': 'a', 'answer_start': 0}
  qas = [
    {'id': '1', 'question': 'q', 'answers': [answer, {'text': 'b', 'answer_start': 2}, answer]},
    {'id': '2', 'question': 'r', 'answers': [], 'is_impossible': True},
    {'id': '3', 'question': 's', 'answers': [answer], 'is_impossible': False},
  ]
  whole = {
    'version': 'v2.0',
    'data': [{'title': 'T', 'paragraphs': [{'context': 'c', 'qas': qas}]}],
  }
  path = tmp_path / 'dev-v2.0.json'
  path.write_text(json.dumps(whole))
  with caplog.at_level(logging.INFO):
    found = reading.read_questions(path)
  assert [(q.id, q.question, q.answers) for q in found] == [
    ('1', 'q', ('a', 'b')),
    ('3', 's', ('a',)),
  ]
  assert found[0].passages == (FilePassage('', 'T', 'c'),)
  assert 'left out 1 of 3 records, which are no questions of qa' in caplog.text
  assert [q.answers for q in reading.read_questions(path, require_answers=False)][1] == ()
