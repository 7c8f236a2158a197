"""Files that are damaged as a whole: an error, also where records may be left out."""

import gzip
import json
import random
import tracemalloc

import pytest

from ralm_jax.data.questions import reading
from ralm_jax.data.questions.formats import mmlu
from ralm_jax.files import json_records

CLUE = {'answer': 'a file', 'clue': 'It holds text'}


def read(path, record_format, on_error='skip'):
  return reading.read_questions(path, record_format=record_format, on_error=on_error)


def message(path, record_format):
  """What reading says, which is the same whether records may be left out."""
  said = []
  for on_error in ('raise', 'skip'):
    with pytest.raises(ValueError) as caught:
      read(path, record_format, on_error)
    said.append(str(caught.value))
  assert said[0] == said[1]
  return said[0].removeprefix(str(path))


def rows_of(count):
  generator = random.Random(0)
  return [
    {
      'id': i,
      'claim': generator.randbytes(99).hex(),
      'label': 'SUPPORTS',
      'query': 'q',
      'answers': ['a'],
      **CLUE,
    }
    for i in range(count)
  ]


@pytest.mark.parametrize(
  'record_format, layout',
  [
    ('fever', 'lines'),
    ('jeopardy', 'lines'),
    ('jeopardy', 'array'),
    ('ms_marco', 'columns'),
    ('mmlu', 'csv'),
    ('nq_open', 'table'),
  ],
)
def test_compression_cut_short(tmp_path, record_format, layout):
  rows = rows_of(2000)
  text = {
    'lines': '\n'.join(map(json.dumps, rows)) + '\n',
    'array': json.dumps(rows),
    'columns': json.dumps(
      {
        name: {str(i): row[name] for i, row in enumerate(rows)}
        for name in ('query', 'answers', 'claim')
      }
    ),
    'csv': ''.join(f'{row["claim"]},1,2,3,4,A\n' for row in rows),
    'table': ''.join(f'{row["claim"]}\t["a"]\n' for row in rows),
  }[layout]
  path = tmp_path / f'some.{"tsv" if layout == "table" else "x"}.gz'
  whole = gzip.compress(text.encode())
  path.write_bytes(whole)
  assert len(read(path, record_format)) == 2000
  path.write_bytes(whole[:-2000])
  assert 'the gzipped file is damaged' in message(path, record_format)


def test_an_array_that_is_broken_or_cut_short(tmp_path):
  path = tmp_path / 'some.json'
  text = json.dumps([CLUE] * 300, indent=1)
  path.write_text(text)
  assert len(read(path, 'jeopardy')) == 300
  for cut, expected in (
    (text[:-3], 'at its end'),
    (text[: len(text) // 2], 'malformed JSON'),
    (text + 'x', "expected the end of the file, before 'x'"),
  ):
    path.write_text(cut)
    assert expected in message(path, 'jeopardy')
  # A record that is wrong by itself is left out.
  path.write_text(text[:-2] + ', 3' + text[-2:])
  assert len(read(path, 'jeopardy')) == 300


def test_an_array_that_is_not_utf8(tmp_path):
  path = tmp_path / 'some.json'
  path.write_bytes(json.dumps([CLUE, CLUE]).encode().replace(b'holds', b'h\xf6lds'))
  assert message(path, 'jeopardy').startswith(': not UTF-8')


@pytest.mark.parametrize('chunk', [7, 1000, 1 << 20])
def test_a_broken_record_is_named_by_number_line_and_text(tmp_path, monkeypatch, chunk):
  monkeypatch.setattr(json_records, '_CHUNK', chunk)
  path = tmp_path / 'some.json'
  records = [json.dumps(CLUE)] * 300
  records[99] = '{"answer": "a", "clue" "no colon"}'
  text = '[\n' + ',\n'.join(records) + '\n]'
  path.write_text(text)
  said = message(path, 'jeopardy')
  assert said.startswith(
    ":101: record 100: malformed JSON: Expecting ':' delimiter, before '\"no colon\"},"
  ), said
  assert '(column 24)' in said
  path.write_text(text.replace('\n', ''))
  column = text.replace('\n', '').index('"no colon"') + 1
  assert ':1: record 100: ' in message(path, 'jeopardy')
  assert f'(column {column})' in message(path, 'jeopardy')
  # A comma that is missing comes after a record.
  path.write_text('[\n' + ',\n'.join(records[:99]) + '\n{}]')
  assert message(path, 'jeopardy').startswith(
    ":101: after record 99: malformed JSON: expected ',' or ']', before '{}]'"
  )


@pytest.mark.parametrize(
  'broken',
  [
    '{"answer": "a", "clue" "x"}',
    '{"answer": tru}',
    '{answer: 1}',
    '{"a": 1e}',
    '[1e, 2]',
    '1e+',
    '{"answer": "a\\q"}',
    '{"a": "tab\t"}',
    '-',
  ],
)
def test_the_rest_of_the_file_is_not_read_into_memory(tmp_path, monkeypatch, broken):
  """Only as far as it takes to be sure that more text would not mend it."""
  monkeypatch.setattr(json_records, '_CHUNK', 1000)
  path = tmp_path / 'some.json'
  path.write_text('[' + broken + ', ' + ', '.join([json.dumps(CLUE)] * 100000) + ']')
  tracemalloc.start()
  with pytest.raises(ValueError, match='some.json:1: .*malformed JSON'):
    read(path, 'jeopardy')
  _, most = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert most < 1 << 20 < path.stat().st_size


def test_values_are_bounded(tmp_path, monkeypatch):
  monkeypatch.setattr(json_records, '_CHUNK', 1000)
  monkeypatch.setattr(json_records, '_MOST', 10000)
  path = tmp_path / 'some.json'
  path.write_text(json.dumps([CLUE, {**CLUE, 'clue': 'x' * 9000}]))
  assert len(read(path, 'jeopardy')) == 2
  path.write_text(json.dumps([CLUE, {**CLUE, 'clue': 'x' * 100000}]))
  assert message(path, 'jeopardy').startswith(
    ':1: record 2: malformed JSON: a value of more than 10,000 characters'
  )
  # What is read past may be larger, if its parts are not.
  trivia = {'Question': 'q', 'Answer': {'Value': 'a', 'Aliases': []}}
  path.write_text(json.dumps({'Domain': 'web', 'Pages': ['x' * 100] * 1000, 'Data': [trivia]}))
  assert len(read(path, 'triviaqa')) == 1


def test_quotation_marks_of_csv_left_open(tmp_path):
  path = tmp_path / 'astronomy_test.csv'
  path.write_text('q,1,2,3,4,A\n"open,1,2,3,4,B\nq,1,2,3,4,C\n')
  errors = []
  with pytest.raises(ValueError, match=':2: malformed csv: a quotation mark is'):
    list(mmlu.MMLU.records(str(path), on_error=errors.append))
  assert errors == []
  # Of marks within a text that are not doubled only the record is lost.
  path.write_text('q,1,2,3,4,A\n"a "b" c",1,2,3,4,B\nq,1,2,3,4,C\n')
  assert len(list(mmlu.MMLU.records(str(path), on_error=errors.append))) == 2
  assert [str(error)[: len(str(path)) + 2] for error in errors] == [f'{path}:2']
