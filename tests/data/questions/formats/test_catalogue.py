"""Published question files: each layout, what is dropped, and what is wrong."""

import gzip
import json
import random

import pytest

from ralm_jax.data.questions import reading
from ralm_jax.data.questions.formats import catalogue
from ralm_jax.data.questions.formats.records import RecordFormat
from ralm_jax.files import byte_streams, json_records
from ralm_jax.files.json_records import JsonReader

FEVER = {
  'id': 7,
  'verifiable': 'VERIFIABLE',
  'label': 'SUPPORTS',
  'claim': 'The file exists.',
  'evidence': [[[1, 2, 'File', 0]]],
}
CLUE = {
  'category': 'FILES',
  'air_date': '2004-12-31',
  'value': '$200',
  'question': '\'It holds <i>text</i> &amp; <a href="http://x.y/z.jpg">more</a>\'',
  'answer': 'a <b>file</b>',
  'round': 'Jeopardy!',
  'show_number': '4680',
}
MS_MARCO = [
  {
    'query_id': 11,
    'query': 'what is a file',
    'query_type': 'DESCRIPTION',
    'answers': ['A thing.'],
    'passages': [{'is_selected': 1, 'passage_text': 'x'}],
    'wellFormedAnswers': ['A file is a thing.', 'Files are things.'],
  },
  {
    'query_id': 12,
    'query': 'who',
    'answers': ['No Answer Present.'],
    'passages': [],
    'wellFormedAnswers': '[]',
  },
  {
    'query_id': 13,
    'query': 'where',
    'answers': ['there', ''],
    'passages': [{'passage_text': 'y "quoted" \\ \u00e9 }],['}],
    'wellFormedAnswers': '[]',
  },
  {'query_id': 14, 'query': 'when', 'answers': ['now'], 'passages': [], 'wellFormedAnswers': []},
]


def columns(rows, **changes):
  names = dict.fromkeys(name for row in rows for name in row)
  return {
    **{
      name: {str(900 + i): row[name] for i, row in enumerate(rows) if name in row} for name in names
    },
    **changes,
  }


def write_lines(path, *rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), 'utf-8')
  return path


def read(path, record_format, **options):
  found = reading.read_questions(path, record_format=record_format, **options)
  return [(q.id, q.question, q.answers) for q in found]


def test_real_fever(shared_data):
  path = shared_data / 'fever/paper_dev_first3000.jsonl'
  with open(path, encoding='utf-8') as file:
    rows = [json.loads(line) for line in file]
  answers = {'SUPPORTS': 'true', 'REFUTES': 'false', 'NOT ENOUGH INFO': 'maybe'}
  expected = [(str(row['id']), row['claim'], (answers[row['label']],)) for row in rows]
  assert len(expected) == 3000
  assert read(path, 'fever') == expected
  two_way = read(path, 'fever_2way')
  assert two_way == [row for row in expected if row[2] != ('maybe',)]
  assert {row[2] for row in two_way} == {('true',), ('false',)}


def test_real_fever_symmetric(shared_data):
  for path in sorted((shared_data / 'fever_symmetric').glob('*/*.jsonl')):
    found = read(path, 'fever_2way', duplicate_ids='number')
    assert found == read(path, 'fever', duplicate_ids='number')
    assert {row[2] for row in found} == {('true',), ('false',)}


@pytest.mark.parametrize(
  'label, answer',
  [
    ('supports', 'true'),
    ('Refutes ', 'false'),
    ('not_enough_info', 'maybe'),
    ('NOT-ENOUGH-INFO', 'maybe'),
    ('Not Enough Info', 'maybe'),
  ],
)
def test_labels_of_fever_however_they_are_written(tmp_path, label, answer):
  path = write_lines(tmp_path / 'f.jsonl', {'id': 1, 'claim': 'x is y', 'label': label})
  assert read(path, 'fever') == [('1', 'x is y', (answer,))]


def test_fever_without_labels(tmp_path):
  path = write_lines(tmp_path / 'test.jsonl', {'id': 3, 'claim': 'It is so.'})
  for record_format in ('fever', 'fever_2way'):
    assert read(path, record_format, require_answers=False) == [('3', 'It is so.', ())]
    with pytest.raises(ValueError, match=r"test.jsonl:1: missing field 'label'"):
      read(path, record_format)


EXPECTED_MS_MARCO = [
  ('11', 'what is a file', ('A file is a thing.', 'Files are things.')),
  ('13', 'where', ('there',)),
  ('14', 'when', ('now',)),
]


@pytest.mark.parametrize('chunk', [1, 2, 7, 64, 1 << 20])
@pytest.mark.parametrize('layout', ['columns', 'indented', 'lines', 'gzip'])
def test_ms_marco(tmp_path, monkeypatch, layout, chunk):
  """Wherever the reader happens to cut the file."""
  monkeypatch.setattr(json_records, '_CHUNK', chunk)
  path = tmp_path / 'dev_v2.1.json'
  if layout == 'lines':
    write_lines(path, *MS_MARCO)
  else:
    text = json.dumps(
      columns(MS_MARCO), indent=1 if layout == 'indented' else None, ensure_ascii=layout == 'gzip'
    )
    path.write_bytes(text.encode() if layout != 'gzip' else gzip.compress(text.encode()))
  assert read(path, 'ms_marco') == EXPECTED_MS_MARCO


def test_ms_marco_without_answers(tmp_path):
  """The blind set; ids are then those of the table where there is no other."""
  rows = [{'query': 'who'}, {'query': 'where'}]
  path = tmp_path / 'eval.json'
  path.write_text(json.dumps(columns(rows)))
  assert read(path, 'ms_marco', require_answers=False) == [('900', 'who', ()), ('901', 'where', ())]
  with pytest.raises(ValueError, match=r"eval.json: record '900': missing field 'answers'"):
    read(path, 'ms_marco')
  path.write_text(json.dumps(columns(MS_MARCO[1:2])))
  with pytest.raises(ValueError, match='holds no questions; expected questions of MS MARCO'):
    read(path, 'ms_marco')


def test_ms_marco_answers_in_other_shapes(tmp_path):
  none = ['No Answer Present.']
  path = write_lines(
    tmp_path / 'q.jsonl',
    {'query': 'a', 'query_id': 1, 'answers': none, 'wellFormedAnswers': none},
    {'query': 'b', 'query_id': 2, 'answers': ['x'], 'wellFormedAnswers': none},
    {'query': 'c', 'query_id': 3, 'answers': '["x", "y"]'},
    {'query': 'd', 'query_id': 4, 'answers': 'x', 'wellFormedAnswers': ' ["A b."]'},
    {'query': 'e', 'query_id': 5, 'answers': 'x', 'wellFormedAnswers': '[ ]'},
    {'query': 'f', 'query_id': 6, 'answers': '[sic] foo'},
    {'query': 'g', 'query_id': 7, 'answers': "['x', 'y']"},
  )
  assert read(path, 'ms_marco') == [
    ('2', 'b', ('x',)),
    ('3', 'c', ('x', 'y')),
    ('4', 'd', ('A b.',)),
    ('5', 'e', ('x',)),
    ('6', 'f', ('[sic] foo',)),
    ('7', 'g', ('x', 'y')),
  ]


def test_ms_marco_table_with_gaps(tmp_path):
  path = tmp_path / 'train.json'
  path.write_text(json.dumps({'query': {'0': 'q', '1': 'r'}, 'answers': {'0': ['a']}}))
  with pytest.raises(
    ValueError, match=("record '1': missing field 'answers'; found 'query', 'query_id'. ")
  ):
    read(path, 'ms_marco')


@pytest.mark.parametrize('layout', ['array', 'lines'])
def test_jeopardy(tmp_path, layout):
  """The entity asks for the clue."""
  clues = [
    CLUE,
    {**CLUE, 'answer': 'Copernicus', 'question': "'Tis said he's late"},
    {'clue': "''", 'answer': 'left out'},
    {'question': '\'<a href="x.jpg"></a>\'', 'answer': 'left out'},
    {'question': ' &nbsp;<br/>', 'answer': 'left out'},
    {'clue': "'", 'answer': 'x < y', 'id': 'c9'},
    {'clue': "'A line breaks'", 'answer': '<br>', 'id': 'c10'},
  ]
  path = tmp_path / 'JEOPARDY_QUESTIONS1.json'
  if layout == 'array':
    path.write_text('\ufeff' + json.dumps(clues, indent=2), 'utf-8')
  else:
    write_lines(path, *clues)
  assert read(path, 'jeopardy') == [
    ('JEOPARDY_QUESTIONS1.json:1', 'a file', ('It holds text & more',)),
    ('JEOPARDY_QUESTIONS1.json:2', 'Copernicus', ("'Tis said he's late",)),
    ('c9', 'x < y', ("'",)),
    ('c10', '<br>', ('A line breaks',)),
  ]
  found = reading.read_questions(path, record_format='jeopardy')
  assert [question.line for question in found] == [1, 2, 6, 7]
  # The day of the broadcast is no bound on what may be shown.
  assert found[0].date is None


def test_jeopardy_entities_without_clues(tmp_path):
  path = write_lines(tmp_path / 'entities.jsonl', {'answer': 'Copernicus'})
  assert read(path, 'jeopardy', require_answers=False) == [('entities.jsonl:1', 'Copernicus', ())]
  with pytest.raises(ValueError, match="missing field 'question'"):
    read(path, 'jeopardy')


@pytest.mark.parametrize(
  'record_format, row, message',
  [
    ('fever', {**FEVER, 'label': 'support'}, "field 'label' is 'support'; expected SUP"),
    ('fever', {**FEVER, 'label': 1}, "field 'label' is 1"),
    ('fever', {**FEVER, 'claim': ' '}, "field 'claim' must be a text, found a blank one"),
    ('fever', {**FEVER, 'claim': [1]}, "field 'claim' must be a text, found a list"),
    ('fever', {**FEVER, 'id': [1]}, "field 'id' must be a string or an integer"),
    (
      'fever',
      {'question': 'q', 'answers': ['a']},
      "missing field 'claim'; found 'question', 'answers'. Is record_format",
    ),
    ('ms_marco', {'query': 'q', 'answers': {'a': 1}}, "field 'answers' must be a list"),
    ('ms_marco', {'query': 'q', 'answers': [1]}, 'found a list of other things'),
    (
      'ms_marco',
      {'query': 'q', 'answers': ['a'], 'wellFormedAnswers': [[]]},
      "field 'wellFormedAnswers' must be",
    ),
    ('ms_marco', {'query': 'q', 'answers': '[1]'}, 'found a list of other things'),
    ('ms_marco', {'question': 'q'}, "missing field 'query'"),
    ('jeopardy', {**CLUE, 'answer': None}, "missing field 'answer'"),
    ('jeopardy', {**CLUE, 'question': ''}, "field 'question' must be a text"),
    ('qa', FEVER, "missing field 'question'"),
  ],
)
def test_malformed_lines(tmp_path, record_format, row, message):
  good = {
    'fever': FEVER,
    'ms_marco': MS_MARCO[0],
    'jeopardy': CLUE,
    'qa': {'question': 'q', 'answers': ['a']},
  }[record_format]
  path = write_lines(tmp_path / 'some.jsonl', good, row)
  with pytest.raises(ValueError) as caught:
    read(path, record_format)
  assert str(caught.value).startswith(f'{path}:2: ')
  assert message in str(caught.value)


@pytest.mark.parametrize(
  'record_format, content, message',
  [
    ('jeopardy', '[{"answer": "a", "question": "b"}, 3]', 'record 2: expected an object'),
    ('jeopardy', '[{"answer": "a", "question": "b"}', "expected ',' or ']', at its end"),
    ('jeopardy', '[{"answer": "a", "question": "b"} {}]', "expected ',' or ']', before"),
    ('jeopardy', '[{"answer": "a", "quest', 'malformed JSON: Unterminated string'),
    ('jeopardy', '[{"answer": "a", "question": "b"}] x', 'expected the end of the file'),
    ('jeopardy', '[]', 'holds no questions; expected an array of clues'),
    ('jeopardy', '', 'holds no questions'),
    ('ms_marco', '{"query": {"1": "q"}, "answers": {"1": ["a"]', 'at its end'),
    ('ms_marco', '{"query": {"1": "q", 2: 3}}', 'a key must be a string'),
    ('ms_marco', '{"query": {"1"; "q"}}', "expected ':'"),
    ('ms_marco', '{"query": {"1": "q"}, "query": {"2": "r"}}', "column 'query' is there twice"),
    ('ms_marco', '{"answers": {"1": ["a"]}}', "missing column 'query'; found 'answers'"),
    ('ms_marco', '{"query": {"1": ""}, "answers": {}}', "record '1': field 'query' must"),
    ('fever', '{"id": 1\n', 'some.json:1: malformed JSON'),
    ('squad', '{}', "record_format is 'squad'; it must be one of qa, nq_open, triviaqa, "),
  ],
)
def test_damaged_files(tmp_path, record_format, content, message):
  path = tmp_path / 'some.json'
  path.write_text(content)
  with pytest.raises(ValueError) as caught:
    read(path, record_format)
  assert message in str(caught.value)
  assert str(path) in str(caught.value) or record_format == 'squad'


def random_value(generator, depth=0):
  kind = generator.randrange(7 if depth < 3 else 5)
  if kind == 0:
    return generator.choice([True, False, None])
  if kind == 1:
    return generator.choice([0, -12, 3.25, 1e30, 10**15])
  if kind < 5:
    return ''.join(generator.choices('aé"\\\n{}[],: 東🙂', k=generator.randrange(9)))
  many = [random_value(generator, depth + 1) for _ in range(generator.randrange(4))]
  return many if kind == 5 else {f'k{i}"': v for i, v in enumerate(many)}


def test_reading_part_by_part_equals_reading_whole(tmp_path, monkeypatch):
  generator = random.Random(0)
  path = tmp_path / 'value.json'
  for chunk in (1, 3, 10, 1000):
    monkeypatch.setattr(json_records, '_CHUNK', chunk)
    for _ in range(60):
      table = {
        f'c{i}': [random_value(generator) for _ in range(generator.randrange(4))]
        for i in range(generator.randrange(4))
      }
      path.write_text(
        json.dumps(
          table, indent=generator.choice([None, 2]), ensure_ascii=generator.random() < 0.5
        ),
        'utf-8',
      )
      with byte_streams.open_bytes(str(path)) as file:
        reader = JsonReader(file, str(path))
        found = {key: [reader.value() for _ in reader.elements()] for key in reader.members()}
        reader.end()
      assert found == table


def test_every_format_says_what_it_expects():
  assert tuple(catalogue.FORMATS) == (
    'qa',
    'nq_open',
    'triviaqa',
    'web_questions',
    'curated_trec',
    'fever',
    'fever_2way',
    'fever_symmetric',
    'kilt_fever',
    'kilt_aida',
    'kilt_wned',
    'kilt_cweb',
    'kilt_trex',
    'kilt_zsre',
    'kilt_nq',
    'kilt_hotpotqa',
    'kilt_triviaqa',
    'kilt_eli5',
    'kilt_wow',
    'mmlu',
    'ms_marco',
    'jeopardy',
    'templama',
    'dated',
  )
  assert all(one.expected for one in catalogue.FORMATS.values())


def test_a_format_of_ones_own(tmp_path, monkeypatch):
  """The worked example of CONTRIBUTING.md."""
  monkeypatch.setattr(catalogue, 'FORMATS', dict(catalogue.FORMATS))

  def riddle(fields):
    if fields.get('solved') is False:
      return None  # Left out.
    return {
      'question': fields.text('riddle'),
      'answers': fields.answers('solution', 'solutions') or [],
      **fields.id('number'),
    }

  riddles = RecordFormat(
    'riddles', 'one riddle and its solution a line', riddle, metrics='long_answer'
  )
  assert catalogue.register(riddles) is catalogue.register(riddles)
  path = write_lines(
    tmp_path / 'r.jsonl',
    {'number': 1, 'riddle': 'What has keys?', 'solution': 'a piano'},
    {'number': 2, 'riddle': 'Who?', 'solved': False},
  )
  (question,) = reading.read_questions(path, record_format='riddles')
  assert (question.id, question.answers, question.metrics) == ('1', ('a piano',), 'long_answer')
  path = write_lines(tmp_path / 'r.jsonl', {'riddle': ' ', 'solution': 'x'})
  with pytest.raises(ValueError, match="r.jsonl:1: field 'riddle' must be a text, found a blank"):
    read(path, 'riddles')
  (tmp_path / 'r.jsonl').write_text('')
  with pytest.raises(ValueError, match='holds no questions; expected one riddle and'):
    read(path, 'riddles')
  with pytest.raises(ValueError, match="is a record format 'riddles' already"):
    catalogue.register(RecordFormat('riddles', 'x', riddle))
  with pytest.raises(ValueError, match="'riddle'; it must be one of qa, .*riddles"):
    read(path, 'riddle')


def read_on(path, record_format, require_answers=True):
  """Questions of the records, and the errors of those left out."""
  errors = []
  found = catalogue.find(record_format).records(str(path), require_answers, errors.append)
  questions = [record.row['question'] for record in found]
  assert all(isinstance(error, ValueError) for error in errors)
  return questions, [str(error).removeprefix(str(path)) for error in errors]


GOOD = {
  'nq_open': {'question': 'q', 'answer': ['a']},
  'triviaqa': {'question': 'q', 'answers': ['a']},
  'web_questions': {'question': 'q', 'answers': ['a']},
  'curated_trec': {'question': 'q', 'answer': ['a']},
  'fever': {**FEVER, 'claim': 'q'},
  'fever_2way': {**FEVER, 'claim': 'q'},
  'fever_symmetric': {**FEVER, 'claim': 'q', 'evidence': 'e'},
  'kilt_nq': {'id': '1', 'input': 'q', 'output': [{'answer': 'a'}]},
  'ms_marco': {'query': 'q', 'answers': ['a']},
  'jeopardy': {'answer': 'q', 'clue': 'c'},
  'templama': {'query': 'q _X_', 'answer': [{'name': 'a'}], 'date': '2017'},
  'dated': {'question': 'q', 'answers': ['a'], 'date': 2017},
}


@pytest.mark.parametrize('record_format', GOOD)
def test_reading_goes_on_after_malformed_lines(tmp_path, record_format):
  path = tmp_path / 'some.jsonl'
  good = json.dumps(GOOD[record_format]).encode()
  path.write_bytes(
    b'\n'.join([good, b'', b'{"a": 1', b'[1]', b'{"x": "\xff"}', b'{"x": 3}', good]) + b'\n'
  )
  questions, errors = read_on(path, record_format)
  expected = 'q <extra_id_0>' if record_format == 'templama' else 'q'
  assert questions == [expected, expected]
  for line, (error, message) in enumerate(
    zip(
      errors,
      ('blank line', 'malformed JSON', 'expected a JSON object', 'not UTF-8', 'missing field'),
      strict=True,
    ),
    start=2,
  ):
    assert error.startswith(f':{line}: ') and message in error


def test_reading_goes_on_within_an_array(tmp_path):
  path = tmp_path / 'some.json'
  path.write_text(json.dumps([CLUE, 3, {'answer': 'x'}, CLUE]))
  assert read_on(path, 'jeopardy') == (
    ['a file', 'a file'],
    [
      ': record 2: expected an object, found a number',
      ": record 3: missing field 'question'; found 'answer'. Is record_format "
      'the one of this file?',
    ],
  )


def test_reading_goes_on_within_columns(tmp_path):
  path = tmp_path / 'dev.json'
  rows = [MS_MARCO[0], {'query': '', 'answers': ['a']}, MS_MARCO[2]]
  path.write_text(json.dumps(columns(rows)))
  assert read_on(path, 'ms_marco') == (
    ['what is a file', 'where'],
    [": record '901': field 'query' must be a text, found a blank one"],
  )


def test_symmetric_claims_bring_their_evidence(shared_data):
  """Both versions, whose fields have other names."""
  for path in sorted((shared_data / 'fever_symmetric').glob('*/*.jsonl')):
    with open(path, encoding='utf-8') as file:
      rows = [json.loads(line) for line in file]
    found = reading.read_questions(path, record_format='fever_symmetric')
    assert [(q.id, q.question, q.answers, [p.text for p in q.passages]) for q in found] == [
      (
        row['id'],
        row['claim'],
        ({'SUPPORTS': 'true', 'REFUTES': 'false'}[row['label']],),
        [row.get('evidence', row.get('evidence_sentence'))],
      )
      for row in rows
    ]
    assert len(found) > 700


def test_symmetric_claims_need_evidence(tmp_path):
  path = write_lines(tmp_path / 'some.jsonl', FEVER)
  with pytest.raises(ValueError, match=":1: field 'evidence' must be a text"):
    read(path, 'fever_symmetric')
  path = write_lines(tmp_path / 'some.jsonl', {'claim': 'c', 'gold_label': 'SUPPORTS'})
  with pytest.raises(ValueError, match=":1: missing field 'evidence'"):
    read(path, 'fever_symmetric')


def test_evaluation_reads_the_format_it_is_told(tmp_path):
  """The claims are read (or refused) before any checkpoint is looked for."""
  from ralm_jax.commands import evaluate

  path = write_lines(tmp_path / 'fever.jsonl', FEVER)
  flags = [
    '--checkpoint',
    str(tmp_path / 'absent'),
    '--questions',
    str(path),
    '--output',
    str(tmp_path / 'out'),
  ]
  with pytest.raises(ValueError, match="missing field 'question'"):
    evaluate.main(flags)
  for command in (evaluate.main, evaluate.infer):
    with pytest.raises(FileNotFoundError, match='absent'):
      command([*flags, '--record_format', 'fever'])
