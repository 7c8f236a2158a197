"""Passage files: both layouts, and one clear error for each kind of bad input."""

import gzip
import json
import subprocess
import sys

import pytest

from ralm_jax.data.corpus import passages
from ralm_jax.data.corpus.passages import LineReader, Passage
from ralm_jax.files import input_files

GOOD = '{"id": "a", "title": "T", "section": "S", "text": "one two"}'


def read(*inputs, **options):
  return list(passages.iterate_passages([str(i) for i in inputs], **options))


def test_jsonl(tmp_path):
  path = tmp_path / 'p.jsonl'
  path.write_text(GOOD + '\n{"id": 7, "text": "tab\\tnew\\nline", "section": null, "more": [1]}')
  first, second = read(path)
  assert first == Passage('a', 'T', 'S', 'one two')
  assert first.merged_title == 'T: S' and first.source_document == 'T'
  assert second == Passage('7', '', '', 'tab\tnew\nline')
  assert second.merged_title == ''


def test_dpr_tsv(tmp_path):
  path = tmp_path / 'psgs.tsv'
  path.write_text(
    'id\ttext\ttitle\n'
    '1\t"Aaron ( or ; ""Ahärôn"") is a prophet"\tAaron\n'
    '2\tplain, "inner" text\t"""Quoted"" title"\n',
    encoding='utf-8',
  )
  assert read(path) == [
    Passage('1', 'Aaron', '', 'Aaron ( or ; "Ahärôn") is a prophet'),
    Passage('2', '"Quoted" title', '', 'plain, "inner" text'),
  ]


def test_content_decides_the_format(tmp_path):
  (tmp_path / 'a.txt').write_text('id\ttext\ttitle\n1\tx\ty\n')
  (tmp_path / 'b.tsv').write_text(GOOD + '\n')
  (tmp_path / 'c').write_bytes(b'\xef\xbb\xbf' + GOOD.replace('"a"', '"c"').encode())
  assert [p.id for p in read(tmp_path / '*')] == ['1', 'a', 'c']


DPR = 'id\ttext\ttitle\n'


@pytest.mark.parametrize(
  'content, expected',
  [
    ('{"id": "1", "text": "alpha", "title": 1984}', [('1', '1984', 'alpha')]),
    ('{"id": 1, "text": 2.5, "title": 1e20}', [('1', '1e+20', '2.5')]),
    ('{"_id": "1", "title": "T", "text": "a", "metadata": {}}', [('1', 'T', 'a')]),
    ('{"id": "1", "contents": "\\"T\\"\\na\\nb"}', [('1', 'T', 'a\nb')]),
    ('{"id": "1", "contents": "T\\na"}', [('1', 'T', 'a')]),
    ('{"id": "1", "contents": "\\na"}', [('1', '', 'a')]),
    ('{"id": "1", "contents": "just a text"}', [('1', '', 'just a text')]),
    ('{"id": "1", "title": "T", "contents": "a\\nb"}', [('1', 'T', 'a\nb')]),
    ('{"docid": "1", "passage": "a", "title": null}', [('1', '', 'a')]),
    ('{"id": "1", "text": "", "title": ""}', [('1', '', '')]),
    (
      DPR + '1\t"first line\nsecond line"\tT\n2\tb\tU\n',
      [('1', 'T', 'first line\nsecond line'), ('2', 'U', 'b')],
    ),
    (DPR + '1\t' + 'word ' * 30000 + '\tT\n', [('1', 'T', 'word ' * 30000)]),
    (DPR + '1\ta\tT\n' + DPR + '2\tb\tU\n' + DPR, [('1', 'T', 'a'), ('2', 'U', 'b')]),
    (DPR + '1\t"Hello" he said\t"T"" x\n', [('1', '"T"" x', '"Hello" he said')]),
    (DPR + '2\t"never closed\tb', [('2', 'b', '"never closed')]),
    ('\ufeff' + DPR.replace('\n', '\r\n') + '1\ta\tT\r\n', [('1', 'T', 'a')]),
    ('title,_id,text,url\n"a, b",1,"x ""y""",z\n', [('1', 'a, b', 'x "y"')]),
  ],
)
def test_files_of_others(tmp_path, content, expected):
  path = tmp_path / 'passages'
  path.write_text(content, 'utf-8', newline='')
  assert [(p.id, p.title, p.text) for p in read(path)] == expected


def test_gzip_and_globs(tmp_path):
  with gzip.open(tmp_path / 'b.jsonl.gz', 'wt') as file:
    file.write(GOOD.replace('"a"', '"b"') + '\n')
  (tmp_path / 'a.jsonl').write_text(GOOD + '\n')
  # Compressed whatever the name.
  with gzip.open(tmp_path / 'c.tsv', 'wt') as file:
    file.write('id\ttext\ttitle\r\nc\tx\ty\r\n')
  found = read(tmp_path / '*.jsonl*', tmp_path / 'c.tsv', tmp_path / 'a.jsonl')
  assert [p.id for p in found] == ['a', 'b', 'c']
  assert found[2].title == 'y'


def test_a_file_whose_name_looks_like_a_glob(tmp_path):
  path = tmp_path / 'part[1].jsonl'
  path.write_text(GOOD)
  assert input_files.expand_inputs(path) == [str(path)]


@pytest.mark.parametrize(
  'line, message',
  [
    ('{"id": "b", "text": "x"', 'malformed JSON'),
    ('{"id": ' + '9' * 5000 + '}', 'malformed JSON'),
    ('', 'blank line'),
    ('   ', 'blank line'),
    ('["b", "x"]', 'expected a JSON object, found a list'),
    ('{"text": "x", "title": "t"}', "no 'id'; found: 'text', 'title'"),
    ('{"id": "b"}', "no 'text'; found: 'id'"),
    ('{"id": "", "text": "x"}', "'id' is empty"),
    ('{"id": true, "text": "x"}', "'id' must be a string, found a boolean"),
    ('{"id": 1.5, "text": "x"}', "'id' must be a string, found a number"),
    ('{"id": "b", "text": null}', "'text' must be a string, found null"),
    ('{"id": "b", "text": ["x"]}', "'text' must be a string, found a list"),
    ('{"id": "b", "text": "x", "title": [3]}', "'title' must be a string, found a list"),
    ('{"id": "b", "text": "x", "title": NaN}', "'title' must be a string, found a number"),
    ('{"id": "b", "txt": "x"}', "no 'text'; found: 'id', 'txt'. Field 'txt': did you mean 'text'?"),
    ('{"id": "b", "text": "\\ud800"}', "'text' is not valid Unicode"),
  ],
)
def test_bad_jsonl_lines(tmp_path, line, message):
  path = tmp_path / 'p.jsonl'
  path.write_text(f'{GOOD}\n{line}\n')
  with pytest.raises(ValueError) as caught:
    read(path)
  assert str(caught.value).startswith(f'{path}:2: {message}')


@pytest.mark.parametrize(
  'line, message',
  [
    ('2\ttext only', 'expected 3 tab-separated columns (id, text, title), found 2'),
    ('2\ta\tb\tc', 'expected 3 tab-separated columns (id, text, title), found 4'),
    ('2\t"never closed', 'expected 3 tab-separated columns'),
    ('', 'blank line'),
    ('\tx\ty', "'id' is empty"),
  ],
)
def test_bad_tsv_lines(tmp_path, line, message):
  path = tmp_path / 'p.tsv'
  path.write_text(f'id\ttext\ttitle\n{line}\n')
  with pytest.raises(ValueError) as caught:
    read(path)
  assert str(caught.value).startswith(f'{path}:2: {message}')


def test_bad_files(tmp_path):
  path = tmp_path / 'p.tsv'
  path.write_text('1\ttext\ttitle\n')
  with pytest.raises(ValueError, match=':1: expected the header'):
    read(path)
  path = tmp_path / 'notes.txt'
  path.write_text('some notes\n')
  with pytest.raises(ValueError, match=':1: neither JSON lines nor'):
    read(path)
  path = tmp_path / 'latin.jsonl'
  path.write_bytes(GOOD.encode() + b'\n{"id": "b", "text": "caf\xe9"}\n')
  with pytest.raises(ValueError, match='latin.jsonl:2: not UTF-8'):
    read(path)
  whole = gzip.compress((GOOD + '\n').encode() * 200)
  path = tmp_path / 'torn.jsonl.gz'
  flipped = whole[:20] + bytes([whole[20] ^ 255]) + whole[21:]
  for damaged in (whole[: len(whole) // 2], flipped):
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match='torn.jsonl.gz:[0-9]+: the gzipped file is damaged'):
      list(LineReader(path))


def test_nothing_to_read(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'\*\.jsonl: no file matches'):
    read(tmp_path / '*.jsonl')
  with pytest.raises(FileNotFoundError, match='no such file'):
    read(tmp_path / 'p.jsonl')
  with pytest.raises(ValueError, match='a folder'):
    read(tmp_path)
  with pytest.raises(ValueError, match='no file was named'):
    read()
  for name, content in (('e.jsonl', ''), ('e.tsv', 'id\ttext\ttitle\n')):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f'empty corpus: no passage in .*{name}'):
      read(tmp_path / name)


def test_duplicate_ids_name_both_lines(tmp_path):
  first, second = tmp_path / '1.jsonl', tmp_path / '2.jsonl'
  other = GOOD.replace('"a"', '"b"')
  first.write_text(f'{other}\n{GOOD}\n')
  second.write_text(f'{GOOD}\n')
  with pytest.raises(ValueError) as caught:
    read(first, second)
  assert str(caught.value).startswith(f"{second}:1: duplicate id 'a', first on {first}:2")
  assert passages.find_lines([str(first), str(second)], 'a') == [(str(first), 2), (str(second), 1)]


@pytest.mark.parametrize('n_words', [1, 9, 10, 11, 20, 21, 99, 101])
def test_split_long(n_words):
  text = '  '.join(f'w{i}' for i in range(n_words)) + ' '
  passage = Passage('x', 'T', 'S', text)
  parts = passages.split_long(passage, 10)
  sizes = [len(part.text.split()) for part in parts]
  assert len(parts) == -(-n_words // 10)
  assert max(sizes) <= 10 and max(sizes) - min(sizes) <= 1
  assert ' '.join(part.text for part in parts).split() == text.split()
  assert [part.id for part in parts] == ['x', *(f'x#{i}' for i in range(1, len(parts)))]
  assert {passages.source_id(part.id) for part in parts} == {'x'}
  assert {(part.title, part.section) for part in parts} == {('T', 'S')}
  if len(parts) == 1:
    assert parts == [passage]  # Untouched, whitespace included.
  else:
    assert parts[0].text in text  # Whitespace inside a part stays.


def test_split_long_limits():
  passage = Passage('x', '', '', 'a b c')
  assert passages.split_long(passage, None) == [passage]
  with pytest.raises(ValueError, match='at least 1'):
    passages.split_long(passage, 0)


def test_real_passages(shared_data):
  n_lines = 0
  for path in sorted((shared_data / 'passages').glob('*.jsonl')):
    with open(path, encoding='utf-8') as file:
      n_lines += sum(1 for _ in file)
  found = read(shared_data / 'passages/*.jsonl')
  assert len(found) == n_lines
  parts = read(shared_data / 'passages/*.jsonl', max_words=200)
  assert max(len(p.text.split()) for p in parts) <= 200
  with open(shared_data / 'passages/timeqa.jsonl', encoding='utf-8') as file:
    first = json.loads(file.readline())
  by_id = {p.id: p for p in found}
  assert by_id[first['id']].merged_title == (
    f'{first["title"]}: {first["section"]}' if first['section'] else first['title']
  )


def test_the_package_loads_arrow_late():
  code = (
    'import sys, ralm_jax.data.corpus.identifiers\n'
    'assert "pyarrow" not in sys.modules and "jax" not in sys.modules\n'
    'from ralm_jax.data.corpus import Passage, PassageStore, build_corpus\n'
    'assert "pyarrow" in sys.modules and "jax" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
