"""Reading question files: the forms in use, and one clear error for each fault."""

import gzip
import json
import random

import pytest

from ralm_jax.data import dates
from ralm_jax.data.option_values import METRICS_FAMILIES
from ralm_jax.data.questions import reading
from ralm_jax.data.questions.reading import Question

GOOD = {'question': 'who?', 'answers': ['I'], 'id': 'q1'}


def write(path, *rows):
  lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
  path.write_text(''.join(line + '\n' for line in lines), 'utf-8')
  return path


def read_one(tmp_path, row, **options):
  [question] = reading.read_questions(write(tmp_path / 'q.jsonl', row), **options)
  return question


def test_all_fields(tmp_path):
  row = {
    'question': 'wer ist Röntgen ?',
    'answers': ['A ', 'B'],
    'id': 7,
    'gold_passage_ids': ['p1', 2, 'p1'],
    'target': 'B',
    'other': [1],
  }
  path = write(tmp_path / 'q.jsonl', GOOD, row)
  assert reading.read_questions(path)[1] == Question(
    id='7',
    question='wer ist Röntgen ?',
    answers=('A ', 'B'),
    gold_passage_ids=('p1', '2'),
    line=2,
    path=str(path),
    target='B',
  )


@pytest.mark.parametrize(
  'fields, answers',
  [
    ({'answers': ['x', 'y']}, ('x', 'y')),
    ({'golden_answers': ['x']}, ('x',)),
    ({'answer': 'x'}, ('x',)),
    ({'answer': ['x', 'y']}, ('x', 'y')),
    ({'target': 'x'}, ('x',)),
    ({'target': 'x', 'answers': ['y']}, ('y',)),
    ({'answers': None, 'answer': 'x'}, ('x',)),
    ({'answers': ['', 'x', ' ']}, ('x',)),
    ({'answers': [], 'target': 'x'}, ('x',)),
    ({'answers': [], 'answer': 'x', 'target': 'y'}, ('x',)),
    ({'answers': [' '], 'golden_answers': [], 'answer': ['x']}, ('x',)),
  ],
)
def test_answer_fields(tmp_path, fields, answers):
  assert read_one(tmp_path, {'question': 'q', **fields}).answers == answers


@pytest.mark.parametrize(
  'fields, ids',
  [
    ({}, ()),
    ({'gold_passage_id': 'p'}, ('p',)),
    ({'gold_passage_id': 3}, ('3',)),
    ({'gold_passage_id': None, 'gold_passage_ids': []}, ()),
    ({'gold_passage_id': 'p', 'gold_passage_ids': ['r', 'p']}, ('p', 'r')),
  ],
)
def test_gold_passages(tmp_path, fields, ids):
  assert read_one(tmp_path, {**GOOD, **fields}).gold_passage_ids == ids


@pytest.mark.parametrize(
  'fields, ids',
  [
    ({}, ()),
    ({'exclude_passage_ids': None}, ()),
    ({'exclude_passage_ids': ['p', 3, 'p']}, ('p', '3')),
    ({'exclude_passage_id': 'p', 'exclude_passage_ids': ['r', 'p']}, ('p', 'r')),
  ],
)
def test_excluded_passages(tmp_path, fields, ids):
  assert read_one(tmp_path, {**GOOD, **fields}).exclude_passage_ids == ids


@pytest.mark.parametrize(
  'written, read, first_day',
  [
    (None, None, '9999-99-99'),
    ('2019-05-17', '2019-05-17', '2019-05-17'),
    ('2019-05', '2019-05', '2019-05-01'),
    (2019, '2019', '2019-01-01'),
  ],
)
def test_date_of_a_question(tmp_path, written, read, first_day):
  question = read_one(tmp_path, {**GOOD, 'date': written})
  assert question.date == read
  assert question.max_date == (dates.NO_DATE_BOUND if read is None else dates.first_day(first_day))


def test_missing_ids_come_from_the_position(tmp_path):
  row = {'question': 'q', 'answers': ['a']}
  first = write(tmp_path / 'first.jsonl', row, {**row, 'id': 'own'}, row)
  ids = [q.id for q in reading.read_questions(first)]
  assert ids == ['first.jsonl:1', 'own', 'first.jsonl:3']
  # Another file beside it changes nothing, unless it has the same name.
  second = write(tmp_path / 'second.jsonl', row)
  both = reading.read_questions([second, first])
  assert [q.id for q in both] == ['second.jsonl:1', *ids]
  (tmp_path / 'sub').mkdir()
  namesake = write(tmp_path / 'sub' / 'second.jsonl', row)
  both = reading.read_questions([second, namesake])
  assert [q.id for q in both] == [f'{second}:1', f'{namesake}:1']


def test_globs_gzip_and_repeats(tmp_path):
  def row(name):
    return {**GOOD, 'id': name}

  write(tmp_path / 'b.jsonl', row('b'))
  # Told by content, so the name need not end in .gz.
  (tmp_path / 'a.jsonl').write_bytes(gzip.compress(json.dumps(row('a')).encode()))
  write(tmp_path / 'odd[1].jsonl', row('odd'))
  (tmp_path / 'folder.jsonl').mkdir()

  def ids(paths):
    return [q.id for q in reading.read_questions(paths)]

  assert ids(str(tmp_path / '*.jsonl')) == ['a', 'b', 'odd']
  assert ids([tmp_path / 'b.jsonl', tmp_path / '*.jsonl']) == ['b', 'a', 'odd']
  assert ids(tmp_path / 'odd[1].jsonl') == ['odd']


def test_line_ends_mark_and_separators(tmp_path):
  path = tmp_path / 'q.jsonl'
  # A byte order mark, CRLF, a raw U+2028 inside a string, no final newline.
  path.write_bytes(
    b'\xef\xbb\xbf'
    + '\r\n'.join(
      json.dumps({'question': f'q{i}\u2028', 'answers': ['é']}, ensure_ascii=False)
      for i in range(3)
    ).encode()
  )
  found = reading.read_questions(path)
  assert [(q.line, q.question) for q in found] == [
    (1, 'q0\u2028'),
    (2, 'q1\u2028'),
    (3, 'q2\u2028'),
  ]


@pytest.mark.parametrize(
  'row, message',
  [
    ('{"question": "q", ', r'malformed JSON at column \d+'),
    ('', 'blank line'),
    ('  \t', 'blank line'),
    ('["q"]', 'expected a JSON object, found a list'),
    ('3', 'found a number'),
    ('1' * 5000, 'malformed JSON'),
    ('[' * 200000, 'malformed JSON'),
    ({'answers': ['a']}, "missing field 'question'; found 'answers'"),
    ({'quesiton': 'q', 'answers': ['a']}, "found .*'quesiton': did you mean 'question'"),
    ({'question': 5, 'answers': ['a']}, "'question' must be a string, found a n"),
    ({'question': ' ', 'answers': ['a']}, "'question' is blank"),
    ({'question': '\ud800', 'answers': ['a']}, "'question' holds half a surro"),
    ({'question': 'q'}, "missing field 'answers'; found 'question'"),
    ({'question': 'q', 'answers': []}, "'answers' holds no answer"),
    ({'question': 'q', 'answers': ['', ' ']}, "'answers' holds no answer"),
    ({'question': 'q', 'target': ''}, "'target' holds no answer"),
    ({'question': 'q', 'answers': 'a'}, "'answers' must be a list of strings, found a string"),
    ({'question': 'q', 'answers': {'a': 1}}, "'answers' must be a list"),
    ({'question': 'q', 'answers': ['a', 1]}, r"'answers\[1\]' must be a string"),
    (
      {'question': 'q', 'golden_answers': [None]},
      r"'golden_answers\[0\]' must be a string, found null",
    ),
    ({'question': 'q', 'answer': True}, "'answer' must be .* found a boolean"),
    ({'question': 'q', 'answers': ['a'], 'target': []}, "'target' must be a str"),
    (
      {**GOOD, 'metrics': 'nonsense'},
      "field 'metrics' is 'nonsense'; choose one of qa, label, kilt, ",
    ),
    ({**GOOD, 'metrics': ['qa']}, "'metrics' must be a string"),
    ({**GOOD, 'id': 1.5}, "'id' must be a string or an integer, found a number"),
    ({**GOOD, 'id': True}, "'id' must be .* found a boolean"),
    ({**GOOD, 'id': ''}, "'id' is blank"),
    ({**GOOD, 'gold_passage_id': ['p']}, "'gold_passage_id' must be .* a list"),
    ({**GOOD, 'gold_passage_ids': 'p'}, "'gold_passage_ids' must be a list"),
    (
      {**GOOD, 'gold_passage_ids': ['p', {}]},
      r"'gold_passage_ids\[1\]' must be .* found an object",
    ),
  ],
)
def test_faults_name_file_line_and_field(tmp_path, row, message):
  path = write(tmp_path / 'q.jsonl', {**GOOD, 'id': 'other'}, row, GOOD)
  with pytest.raises(ValueError, match=message) as error:
    reading.read_questions(path)
  assert str(error.value).startswith(f'{path}:2: ')


@pytest.mark.parametrize(
  'fields', [{}, {'answers': []}, {'answers': ['']}, {'answer': None}, {'target': ' '}]
)
def test_answers_may_be_absent_when_not_required(tmp_path, fields):
  row = {'question': 'q', **fields}
  question = read_one(tmp_path, row, require_answers=False)
  assert question.answers == () and question.target is None
  # What is there must still be right.
  with pytest.raises(ValueError, match="'answers' must be a list"):
    read_one(tmp_path, {'question': 'q', 'answers': 'a'}, require_answers=False)


def test_what_answers_are_scored_by(tmp_path):
  for family in ('', *METRICS_FAMILIES):
    assert read_one(tmp_path, {**GOOD, 'metrics': family}).metrics == family


def test_duplicate_ids(tmp_path):
  first = write(tmp_path / 'a.jsonl', GOOD, {**GOOD, 'id': 'q2'})
  second = write(tmp_path / 'b.jsonl', GOOD, {**GOOD, 'id': 'q1#2'}, GOOD)
  with pytest.raises(ValueError) as error:
    reading.read_questions([first, second])
  assert str(error.value).startswith(
    f"{second}:1: field 'id': 'q1' is already the id of {first}:1;"
  )
  numbered = reading.read_questions([first, second], duplicate_ids='number')
  assert [(q.id, q.source_id) for q in numbered] == [
    ('q1', ''),
    ('q2', ''),
    ('q1#2', 'q1'),
    ('q1#2#2', 'q1#2'),
    ('q1#3', 'q1'),
  ]
  with pytest.raises(ValueError, match="must be 'error' or 'number'"):
    reading.read_questions(first, duplicate_ids='skip')


def test_file_faults(tmp_path):
  with pytest.raises(FileNotFoundError, match='gone.jsonl: no such file'):
    reading.read_questions(tmp_path / 'gone.jsonl')
  with pytest.raises(FileNotFoundError, match='no file matches'):
    reading.read_questions(str(tmp_path / '*.nothing'))
  with pytest.raises(ValueError, match='a folder; write .*jsonl'):
    reading.read_questions(tmp_path)
  with pytest.raises(ValueError, match='no file was named'):
    reading.read_questions([])
  empty = write(tmp_path / 'empty.jsonl')
  good = write(tmp_path / 'good.jsonl', GOOD)
  with pytest.raises(ValueError, match='empty.jsonl: holds no questions'):
    reading.read_questions([good, empty])

  latin = tmp_path / 'latin.jsonl'
  latin.write_bytes(b'{"question": "q", "answers": ["\xe9"]}\n')
  with pytest.raises(ValueError, match=r'latin.jsonl:1: not UTF-8 at byte 31'):
    reading.read_questions(latin)


def test_damaged_gzip(tmp_path):
  numbers = random.Random(0)
  rows = ''.join(
    json.dumps({'question': f'q {numbers.random()}', 'answers': ['a']}) + '\n' for _ in range(2000)
  )
  whole = gzip.compress(rows.encode())
  path = tmp_path / 'q.jsonl.gz'
  path.write_bytes(whole)
  assert len(reading.read_questions(path)) == 2000
  broken = bytearray(whole)
  broken[len(broken) // 2] ^= 0xFF
  for content in (whole[: len(whole) // 2], whole[:-4], bytes(broken)):
    path.write_bytes(content)
    # A flipped bit may also surface as a line that is no longer JSON or UTF-8.
    with pytest.raises(ValueError, match=r'q.jsonl.gz:\d+: '):
      reading.read_questions(path)
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match='damaged or cut short'):
    reading.read_questions(path)


@pytest.mark.parametrize(
  'name, count, options',
  [
    ('qa/qed_dev.jsonl', 1355, {}),
    ('qa/xquad_en.jsonl', 1190, {}),
    ('qa/qed_train.jsonl', 7167, {'require_answers': False}),
    ('qa/timeqa_train.jsonl', 982, {'duplicate_ids': 'number'}),
    ('psgs_w100/nq_test_sample.jsonl', 17, {}),
  ],
)
def test_real_files(shared_data, name, count, options):
  path = shared_data / name
  found = reading.read_questions(path, **options)
  assert len(found) == count
  assert len({question.id for question in found}) == count
  with path.open(encoding='utf-8') as lines:
    for number, (line, question) in enumerate(zip(lines, found), 1):
      row = json.loads(line)
      assert question.line == number
      assert question.question == row['question']
      answers = row.get('answers', row.get('golden_answers'))
      assert list(question.answers) == [a for a in answers if a]


@pytest.mark.parametrize(
  'field,near',
  [
    ('gold_pasage_id', 'gold_passage_id'),
    ('Gold_passage_ids', 'gold_passage_ids'),
    ('exclude_pasage_ids', 'exclude_passage_ids'),
    ('anwers', None),  # no warning but an error: they are missing
    ('source', None),
    ('url', None),
  ],
)
def test_misspelt_fields_are_named(field, near, tmp_path, caplog):
  row = {'question': 'who', 'answers': ['a'], field: 'x'}
  path = tmp_path / 'q.jsonl'
  path.write_text(f'{json.dumps({"question": "w", "answers": ["b"]})}\n{json.dumps(row)}\n' * 2)
  reading.read_questions(path)
  expected = [f"{path}:2 (and on): field '{field}' is not read; did you mean '{near}'?"]
  assert [one.getMessage() for one in caplog.records] == (expected if near else [])
