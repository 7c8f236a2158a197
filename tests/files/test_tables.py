"""Records of tables: what csv quotes, and what only begins with a quotation mark."""

import csv
import io

import pytest

from ralm_jax.files import tables
from ralm_jax.files.json_records import LineReader


def read(tmp_path, text, width=3, delimiter='\t'):
  path = tmp_path / 't.tsv'
  path.write_text(text, 'utf-8', newline='')
  return [
    (number, tables.columns(content.decode(), delimiter))
    for number, content in tables.records(LineReader(str(path)), delimiter, width)
  ]


ROWS = [
  ['1', 'plain', 'T'],
  ['2', 'two\nlines and a\ttab', 'T "x"'],
  ['3', '"quoted"', '"'],
  ['4', 'a\r\nb\n\n"c"\n', ''],
  ['5', 'x' * 200000, '1984'],
]


@pytest.mark.parametrize('delimiter', ['\t', ','])
@pytest.mark.parametrize('quoting', [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_what_csv_writes(tmp_path, quoting, delimiter):
  file = io.StringIO(newline='')
  csv.writer(file, delimiter=delimiter, quoting=quoting).writerows(ROWS)
  found = read(tmp_path, file.getvalue(), delimiter=delimiter)
  assert [row for _, row in found] == ROWS
  assert [number for number, _ in found] == [1, 2, 4, 5, 10]


@pytest.mark.parametrize(
  'line, fields',
  [
    ('1\t"Hello" he said\tT', ['1', '"Hello" he said', 'T']),
    ('1\t"Hello, he said\tT', ['1', '"Hello, he said', 'T']),
    ('1\tsaid "x"\t"T', ['1', 'said "x"', '"T']),
    ('1\t"He ""x"" y"\tT', ['1', 'He "x" y', 'T']),
    ('1\t""\t""""', ['1', '', '"']),
    ('1\ta ""b"" c\t', ['1', 'a ""b"" c', '']),
    ('1\t"a" "b"\tT', ['1', '"a" "b"', 'T']),
  ],
)
def test_texts_that_begin_with_a_quotation_mark(tmp_path, line, fields):
  assert read(tmp_path, line + '\n') == [(1, fields)]
  others = '9\tx\tU\n', '8\t"y"\tV\n', '7\t5 "z" z\tW\n'
  for other in others:
    assert read(tmp_path, f'{line}\r\n{other}{other}')[0] == (1, fields)
    assert len(read(tmp_path, f'{line}\n{other}{other}')) == 3


def test_a_mark_that_may_be_closed_in_another_record(tmp_path):
  with pytest.raises(ValueError, match=r't.tsv:1: a quotation mark begins a field .* line 2'):
    read(tmp_path, '1\t"open\tT\n2\t5 feet 6"\tU\n')
