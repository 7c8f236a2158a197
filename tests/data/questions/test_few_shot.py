"""Few-shot questions: by hash, and by somebody's list."""

import hashlib
import json
import random

import pytest

from ralm_jax.data.questions import few_shot, reading
from ralm_jax.data.questions.reading import Question


def make(count, **changes):
  return [
    Question(
      **{
        'id': f'id{i}',
        'question': f'what is {i}?',
        'answers': ('a',),
        'gold_passage_ids': (),
        'line': i + 1,
        'path': '/some/train.jsonl',
        **changes,
      }
    )
    for i in range(count)
  ]


def test_the_hash_that_is_documented():
  questions = make(50)
  found = few_shot.choose(questions, 7, seed=3)
  assert (
    found
    == sorted(
      questions, key=lambda q: hashlib.sha256(f'3:{q.id}:{q.question}'.encode()).hexdigest()
    )[:7]
  )


def test_more_shots_contain_fewer_in_any_order_of_the_file():
  questions = make(500)
  chosen = few_shot.choose(questions, 64)
  assert few_shot.choose(questions, 32) == chosen[:32]
  shuffled = random.Random(1).sample(questions, len(questions))
  assert few_shot.choose(shuffled, 64) == chosen
  assert few_shot.choose(questions, 64, seed=1) != chosen
  # Every question is as likely as any other.
  counts = [0] * 500
  for seed in range(200):
    for question in few_shot.choose(questions, 100, seed):
      counts[question.line - 1] += 1
  assert 15 < min(counts) and max(counts) < 70


def test_other_questions_take_single_places():
  questions = make(300)
  before = few_shot.choose(questions, 64)
  more = make(10, id='new', question='another?')[:1]
  after = few_shot.choose([*more, *questions], 64)
  assert len({q.id for q in before} - {q.id for q in after}) <= 1


def test_questions_without_ids(tmp_path):
  """An id made of file and line does not count, or a copy would choose others."""
  rows = [json.dumps({'question': f'what is {i}?', 'answer': ['a']}) + '\n' for i in range(200)]
  (tmp_path / 'a').mkdir()
  first, second = tmp_path / 'train.jsonl', tmp_path / 'a/copy.jsonl'
  first.write_text(''.join(rows))
  second.write_text(''.join(reversed(rows)))
  names = []
  for path in (first, second):
    found = few_shot.choose(reading.read_questions(path, record_format='nq_open'), 20)
    names.append([q.question for q in found])
  assert names[0] == names[1]
  # Also where two files of one name are told apart by their folders.
  (tmp_path / 'a/train.jsonl').write_text('{"question": "x", "answer": ["a"]}\n')
  both = reading.read_questions([first, tmp_path / 'a/train.jsonl'], record_format='nq_open')
  assert {q.question for q in few_shot.choose(both, 21)} >= set(names[0])


def test_equal_questions_are_told_apart_by_what_they_are():
  one, other = (make(1, id='x', answers=(a,))[0] for a in 'ab')
  assert few_shot.choose([one, other], 1) == few_shot.choose([other, one], 1)


def test_ids_that_occur_again_count_as_they_are_written(tmp_path):
  """Which one is numbered depends on the order."""
  rows = [
    json.dumps({'id': f'x{i // 4}', 'question': f'what is {i}?', 'answers': ['a']})
    for i in range(200)
  ]
  chosen = []
  for order in (rows, rows[::-1], random.Random(0).sample(rows, 200)):
    path = tmp_path / 'train.jsonl'
    path.write_text('\n'.join(order) + '\n')
    questions = reading.read_questions(path, duplicate_ids='number')
    assert sum('#' in question.id for question in questions) == 150
    chosen.append([q.question for q in few_shot.choose(questions, 30)])
  assert chosen[0] == chosen[1] == chosen[2]


@pytest.mark.parametrize(
  'shots, message',
  [
    (0, 'shots is 0; it must be at least 1'),
    (-3, 'at least 1'),
    (6, "shots is 6, but there are 5 questions to choose from in group 'art'"),
  ],
)
def test_too_many_or_none(shots, message):
  with pytest.raises(ValueError, match=message):
    few_shot.choose(make(5, group='art'), shots)


@pytest.mark.parametrize(
  'content',
  [
    '[7, 0, 3]',
    ' [7,\n 0,\n 3]\n',
    '7\n0\n3\n',
    '\ufeff7\r\n\r\n 0 \r\n3',
    'id7\nid0\nid3\n',
    '["id7", "id0", "id3"]',
    '[7, "id0", 3]',
    'id7\n0\n3',
  ],
)
def test_lists(tmp_path, content):
  """Numbers are lines from 0, in the order of the list."""
  path = tmp_path / 'list'
  path.write_text(content, 'utf-8')
  questions = make(10)
  assert [q.id for q in few_shot.listed(questions, path)] == ['id7', 'id0', 'id3']


def test_numbers_are_lines_of_the_file(tmp_path):
  """Whatever was left out of it, and wherever ids are numbers as well."""
  claims = tmp_path / 'train.jsonl'
  claims.write_text(
    ''.join(
      json.dumps(
        {'id': 3 - i, 'claim': f'c{i}', 'label': 'NOT ENOUGH INFO' if i == 1 else 'SUPPORTS'}
      )
      + '\n'
      for i in range(4)
    )
  )
  questions = reading.read_questions(claims, record_format='fever_2way')
  path = tmp_path / 'list.json'
  path.write_text('[3, 0]')
  assert [q.question for q in few_shot.listed(questions, path)] == ['c3', 'c0']
  path.write_text('["3", "0"]')
  assert [q.question for q in few_shot.listed(questions, path)] == ['c0', 'c3']
  path.write_text('2\n1\n')
  with pytest.raises(
    ValueError, match=(r'list.json:2: there is no question on line 1 \(counted from 0\) in .*train')
  ):
    few_shot.listed(questions, path)


@pytest.mark.parametrize(
  'content, message',
  [
    ('', ': lists no question'),
    ('[]', ': lists no question'),
    ('[1, 99]', ': entry 2: there is no question on line 99'),
    ('0\n\nidx\n', ":3: there is no question with id 'idx'"),
    ('0\n1\n0\n', ':3: 0 is listed twice'),
    ('[1, true]', ': entry 2: expected the number of a line or an id, found a bool'),
    ('[1.5]', ': entry 1: expected the number of a line or an id, found a number'),
    ('[-1]', ': entry 1: -1 is no line'),
    ('[1,\n 2', ':2: malformed JSON'),
    ('1\n-1\n', ":2: there is no question with id '-1'"),
  ],
)
def test_lists_that_name_no_question(tmp_path, content, message):
  path = tmp_path / 'list'
  path.write_text(content)
  with pytest.raises(ValueError) as caught:
    few_shot.listed(make(10), path)
  assert str(caught.value).startswith(f'{path}{message}')


def test_lists_that_cannot_be_read(tmp_path):
  with pytest.raises(FileNotFoundError):
    few_shot.listed(make(3), tmp_path / 'absent')
  path = tmp_path / 'list'
  path.write_bytes(b'1\n\xff\n')
  with pytest.raises(ValueError, match='list:2: not UTF-8'):
    few_shot.listed(make(3), path)


def test_numbers_mean_nothing_in_several_files(tmp_path):
  path = tmp_path / 'list'
  questions = [*make(3), *make(3, path='/some/dev.jsonl')]
  path.write_text('1\n')
  with pytest.raises(ValueError, match='mean nothing in 2 files'):
    few_shot.listed(questions, path)
  path.write_text('id1\n')
  assert len(few_shot.listed(questions, path)) == 1
