"""MMLU's csv files, the published ones and damaged ones."""

import gzip

import pytest

from ralm_jax.data.questions.formats import mmlu

SUBJECTS = {
  'astronomy': 152,
  'college_computer_science': 100,
  'high_school_biology': 310,
  'marketing': 234,
  'us_foreign_policy': 100,
  'world_religions': 171,
}


def write(tmp_path, content, name='astronomy_dev.csv'):
  path = tmp_path / name
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return str(path)


def test_records_of_several_lines(tmp_path):
  path = write(
    tmp_path,
    '"Two lines,\nand ""quotes""",a,"b, c",d,e,B\r\n\nshort?,1,2,3,4,D\n',
    'us_foreign_policy_val.csv',
  )
  first, second = mmlu.MMLU.records(path)
  assert first.row == {
    'question': 'Two lines,\nand "quotes"',
    'options': ['a', 'b, c', 'd', 'e'],
    'answers': ['B'],
    'group': 'us_foreign_policy',
  }
  assert (first.number, first.where) == (1, f'{path}:1')
  assert (second.number, second.where) == (4, f'{path}:4')


def test_gzip_and_byte_order_mark(tmp_path):
  content = gzip.compress('\ufeffwhy?,1,2,3,4,A\n'.encode())
  (record,) = mmlu.MMLU.records(write(tmp_path, content, 'marketing_test.csv.gz'))
  assert record.row['question'] == 'why?'
  assert record.row['group'] == 'marketing'


@pytest.mark.parametrize(
  'name, subject',
  [
    ('/x/high_school_biology_test.csv', 'high_school_biology'),
    ('abstract_algebra.csv', 'abstract_algebra'),
    ('race.csv', 'race'),
    ('x_valid.csv', 'x'),
  ],
)
def test_subjects(name, subject):
  assert mmlu.subject(name) == subject


BAD = [
  ('q,1,2,3,A', 'found 5 columns, expected 6'),
  ('q,1,2,3,4,5,A', 'found 7 columns'),
  ('q,1,2,3,4,E', "is 'E'; expected one of A, B, C, D"),
  ('q,1,2,3,4,a', "is 'a'"),
  ('q,1,2,3,4,0', "is '0'"),
  ('q,1,2,3,4,', "is ''"),
  ('question,A,B,C,D,answer', 'no header'),
  ('q,1, ,3,4,A', 'option B is blank'),
  (' ,1,2,3,4,A', r'question \(column 1\) is blank'),
  (b'caf\xe9,1,2,3,4,A', 'column 1 is not UTF-8'),
]


@pytest.mark.parametrize('line, message', BAD)
def test_malformed_record(tmp_path, line, message):
  line = line if isinstance(line, bytes) else line.encode()
  path = write(tmp_path, b'"on two\nlines",1,2,3,4,A\n' + line + b'\nlast,1,2,3,4,B\n')
  with pytest.raises(ValueError, match=message) as raised:
    list(mmlu.MMLU.records(path))
  assert str(raised.value).startswith(f'{path}:3: ')
  errors = []
  records = list(mmlu.MMLU.records(path, on_error=errors.append))
  assert [r.number for r in records] == [1, 4]
  assert [str(error) for error in errors] == [str(raised.value)]


def test_blind_questions(tmp_path):
  path = write(tmp_path, 'q,1,2,3,4,\n')
  (record,) = mmlu.MMLU.records(path, require_answers=False)
  assert 'answers' not in record.row


@pytest.mark.parametrize('subject', SUBJECTS)
def test_published_files(shared_data, subject):
  folder = shared_data / 'mmlu'
  if not folder.is_dir():
    pytest.skip('MMLU is not among the real data')
  tests = list(mmlu.MMLU.records(str(folder / f'test/{subject}_test.csv')))
  shots = list(mmlu.MMLU.records(str(folder / f'dev/{subject}_dev.csv')))
  assert (len(tests), len(shots)) == (SUBJECTS[subject], 5)
  for record in tests + shots:
    assert record.row['group'] == subject and len(record.row['options']) == 4
    assert record.row['answers'][0] in 'ABCD'


def test_a_stray_quotation_mark_does_not_join_records(tmp_path):
  path = tmp_path / 'x_test.csv'
  path.write_text('"What is,A1,B1,C1,D1,A\n"Q2",A,B,C,D,B\nQ3,a,b,c,d,C\n')
  with pytest.raises(ValueError, match=r'x_test.csv:1: malformed csv: .* written twice'):
    list(mmlu.MMLU.records(str(path), True, None))
  errors = []
  (record,) = mmlu.MMLU.records(str(path), True, errors.append)
  assert record.number == 3 and record.row['question'] == 'Q3'
  assert len(errors) == 1
