"""Questions of years: TempLAMA, dated files, and answers that changed."""

import json

import pytest

from ralm_jax.data import dates
from ralm_jax.data.questions import by_year, reading


def query(subject, year, *names, **changes):
  return {
    'query': f'{subject} plays for _X_.',
    'date': year,
    'relation': 'P54',
    'answer': [{'wikidata_id': f'Q{n}', 'name': n} for n in names],
    'id': f'{subject}_P54_{year}',
    **changes,
  }


def write_lines(path, *rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), 'utf-8')
  return path


def read(path, record_format='templama', **options):
  return reading.read_questions(path, record_format=record_format, **options)


def test_templama(tmp_path):
  path = write_lines(
    tmp_path / 'test.json',
    query('Ann', '2017', 'A', 'B', 'A'),
    query('Ann', 2020, 'C'),
    query('Bob', '2018', answer={'name': 'D'}),
  )
  found = read(path)
  assert [(q.id, q.question, q.answers, q.group) for q in found] == [
    ('Ann_P54_2017', 'Ann plays for <extra_id_0>.', ('A', 'B'), '2017'),
    ('Ann_P54_2020', 'Ann plays for <extra_id_0>.', ('C',), '2020'),
    ('Bob_P54_2018', 'Bob plays for <extra_id_0>.', ('D',), '2018'),
  ]
  assert found[1].metadata == {'date': '2020', 'relation': 'P54'}
  # The index decides what is known: an undated passage may be shown.
  assert {q.max_date for q in found} == {dates.NO_DATE_BOUND}


def test_any_dated_file(tmp_path):
  row = {
    'question': 'who?',
    'answers': ['I'],
    'id': 'x',
    'group': 'easy',
    'date': '2019-05',
    'gold_passage_id': 'p',
    'metadata': {'n': 1},
  }
  path = write_lines(tmp_path / 'q.jsonl', row, {**row, 'id': 'y', 'date': 2020})
  first, second = read(path, 'dated')
  assert (first.group, second.group) == ('2019', '2020')
  assert first.metadata == {'n': 1, 'date': '2019-05', 'group': 'easy'}
  assert first.gold_passage_ids == ('p',) and first.date is None
  # Our own layout means a bound.
  assert read(path, 'qa')[0].date == '2019-05'


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'query': 'Ann plays.'}, "field 'query' must hold _X_ once"),
    ({'query': '_X_ plays _X_.'}, "field 'query' must hold _X_ once"),
    ({'query': None}, "missing field 'query'"),
    ({'date': None}, "missing field 'date'"),
    ({'date': '2017-13'}, "field 'date' must be a date: '2017-13' is no date"),
    ({'date': True}, "field 'date' must be a date: 'True' is no date"),
    ({'date': [2017]}, "field 'date' must be a date"),
    ({'answer': None}, "missing field 'answer'"),
    ({'answer': ['A']}, "field 'answer' must be a list of objects"),
    ({'answer': [{'wikidata_id': 'Q1'}]}, "in 'answer[0]': missing field 'name'"),
    ({'answer': []}, "field 'answers' holds no answer"),
  ],
)
def test_malformed_queries(tmp_path, changes, message):
  path = write_lines(
    tmp_path / 't.jsonl', query('A', '2017', 'x'), query('B', '2017', 'y', **changes)
  )
  with pytest.raises(ValueError) as caught:
    read(path)
  assert str(caught.value).startswith(f'{path}:2: ')
  assert message in str(caught.value)
  assert [q.id for q in read(path, on_error='skip')] == ['A_P54_2017']


def test_queries_without_answers(tmp_path):
  path = write_lines(tmp_path / 't.jsonl', query('A', '2017', answer=None))
  [question] = read(path, require_answers=False)
  assert question.answers == () and question.group == '2017'


def test_answers_that_changed(tmp_path):
  rows = [
    query('New', '2017', 'A'),
    query('New', '2018', 'B'),
    query('New', '2020', 'C'),
    query('Same', '2017', 'A'),
    query('Same', '2020', 'A'),
    query('Part', '2017', 'A', 'B'),
    query('Part', '2020', 'B', 'C'),
    query('Gone', '2017', 'A'),
    query('Late', '2020', 'A'),
    query('Many', '2020', 'D', 'E'),
    query('Many', '2017', 'A', 'B'),
    query('Other', '2010', 'A'),
    query('Other', '2011', 'B'),
  ]
  found = read(write_lines(tmp_path / 't.jsonl', *rows))
  chosen = by_year.disjoint_years(found)
  assert {year: [q.id for q in some] for year, some in chosen.items()} == {
    '2017': ['New_P54_2017', 'Many_P54_2017'],
    '2020': ['New_P54_2020', 'Many_P54_2020'],
  }
  # Later years are compared with the first of them.
  chosen = by_year.disjoint_years(found, [2017, '2018', 2020])
  assert [q.id for q in chosen['2018']] == ['New_P54_2018']


def test_people_of_one_name(tmp_path):
  """No answer of 2017 may be one of 2020, whoever is asked about."""
  rows = [
    query('Ann', '2017', 'A'),
    query('Ann', '2017', 'B', id='other_2017'),
    query('Ann', '2020', 'B'),
    query('Bob', '2017', 'A'),
    query('Bob', '2017', 'B', id='bob_2017'),
    query('Bob', '2020', 'C'),
  ]
  chosen = by_year.disjoint_years(read(write_lines(tmp_path / 't.jsonl', *rows)))
  assert [[q.id for q in some] for some in chosen.values()] == [
    ['Bob_P54_2017', 'bob_2017'],
    ['Bob_P54_2020'],
  ]


def test_years_that_cannot_be(tmp_path):
  found = read(write_lines(tmp_path / 't.jsonl', query('A', '2017', 'x')))
  for years in ([2017], [2017, '2017'], [2017, 2020, 2017], []):
    with pytest.raises(ValueError, match='give two or more, each once'):
      by_year.disjoint_years(found, years)
  with pytest.raises(ValueError, match='no question is of the year 2020'):
    by_year.disjoint_years(found)
