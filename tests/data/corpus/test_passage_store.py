"""PassageStore: what goes in comes out, and no accident goes unnoticed."""

import contextlib
import gzip
import hashlib
import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ralm_jax.data.corpus import (
  building,
  identifiers,
  passage_store,
  passages as passages_lib,
  shards,
)
from ralm_jax.data.corpus.identifiers import HashSet
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.corpus.passages import Passage
from ralm_jax.data.corpus.shards import Shard
from ralm_jax.data.ragged import RaggedTokens
from ralm_jax.data.text import vocabularies

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture
def build(sentencepiece_file, wordpiece_file):
  """Builds with the small vocabularies, quietly and in this process."""

  def build_quietly(inputs, output, **options):
    options = dict(n_workers=1, progress=False) | options
    return passage_store.build_corpus(inputs, output, sentencepiece_file, wordpiece_file, **options)

  return build_quietly


def contents(directory: pathlib.Path) -> dict[str, str]:
  """Checksums of all files a corpus consists of."""
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in directory.iterdir()
    if path.name != '.lock'
  }


def stamps(directory: pathlib.Path) -> dict[str, tuple[int, int]]:
  """Tells shards that were written anew from those that were kept."""
  return {
    path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
    for path in directory.glob('shard-*.arrow')
  }


def test_texts_and_ids(small_store, small_passages):
  assert len(small_store) == 40
  for row, passage in enumerate(small_passages):
    stored = small_store.passage(row)
    assert stored.row == row
    for name in ('id', 'title', 'section', 'text', 'merged_title'):
      assert getattr(stored, name) == getattr(passage, name)
  rows = np.array([39, 0, -1, 16, 15])
  assert [p.id for p in small_store.passages(rows)] == ['p-39', 'p-0', '', 'p-16', 'p-15']
  ids = [p.id for p in small_passages][::-1]
  assert small_store.rows_of(ids).tolist() == list(range(39, -1, -1))
  assert small_store.rows_of([]).tolist() == []
  with pytest.raises(KeyError, match="no passage with id 'nobody'.*nor 1 others"):
    small_store.rows_of(['p-1', 'nobody', 'p-99'])
  assert small_store.rows_of(['p-1', 'nobody'], unknown=-1).tolist() == [1, -1]


def test_tokens(small_store, small_passages):
  rng = np.random.default_rng(0)
  rows = np.concatenate([rng.integers(-1, 40, 100), [-1, 5, 6, 7, 7, 39, 0]])
  for column in shards.TOKEN_COLUMNS:
    model, field = column.split('_')
    vocabulary = getattr(small_store, f'{model}_vocabulary')
    found = small_store.tokens(rows, column)
    assert found.values.dtype == np.int32 and found.offsets.dtype == np.int64
    for row, tokens in zip(rows, found.to_lists()):
      if row < 0:
        assert tokens == []
        continue
      passage = small_passages[row]
      assert tokens == vocabulary.encode(passage.merged_title if field == 'title' else passage.text)
    short = small_store.tokens(rows, column, max_length=3)
    assert short.to_lists() == [tokens[:3] for tokens in found.to_lists()]


@pytest.mark.parametrize('rows', [[], [-1], [-1, -1, 3], [3, -1], [20, 3, -1, 20]])
def test_tokens_of_few_rows(small_store, rows):
  found = small_store.tokens(np.array(rows, np.int64), 'reader_text')
  every = small_store.tokens(np.arange(40), 'reader_text')
  assert found.to_lists() == [every[row].tolist() if row >= 0 else [] for row in rows]


def test_wrong_rows_and_columns(small_store):
  for row in (-2, 40):
    with pytest.raises(IndexError, match=f'no row {row}; the store has 40 passages'):
      small_store.tokens(np.array([1, row]), 'reader_text')
    with pytest.raises(IndexError):
      small_store.passage(row)
  with pytest.raises(ValueError, match="no token column 'text'; there are: reader_title"):
    small_store.tokens(np.array([1]), 'text')
  with pytest.raises(ValueError, match='expected integer rows'):
    small_store.tokens(np.array([[1]]), 'reader_text')


def test_no_section_leaves_the_title_alone(small_store):
  title = small_store.tokens([0, 1], 'reader_title').to_lists()
  encode = small_store.reader_vocabulary.encode
  assert title == [encode('title number 0: history'), encode('title number 1')]


def test_files_layouts_and_splitting(tmp_path, build, small_passages, write_jsonl):
  write_jsonl(tmp_path / 'b.jsonl', small_passages[:10])
  (tmp_path / 'c.jsonl.gz').write_bytes(
    gzip.compress(write_jsonl(tmp_path / 'rest', small_passages[10:]).read_bytes())
  )
  (tmp_path / 'a.tsv').write_text('id\ttext\ttitle\n1\tone text\tone title\n')
  store = build(
    [tmp_path / '*.tsv', tmp_path / '*.jsonl*'], tmp_path / 'corpus', max_words=20, shard_size=8
  )
  expected = list(
    passages_lib.iterate_passages(
      [tmp_path / 'a.tsv', tmp_path / 'b.jsonl', tmp_path / 'c.jsonl.gz'], max_words=20
    )
  )
  assert [p.id for p in expected[:8]] == ['1', 'p-0', 'p-1', 'p-2', 'p-3', 'p-4', 'p-5', 'p-5#1']
  assert len(store) == len(expected) and store.max_words == 20
  for passage, stored in zip(expected, store.passages(np.arange(len(store)))):
    assert (stored.id, stored.title, stored.section, stored.text) == (
      passage.id,
      passage.title,
      passage.section,
      passage.text,
    )


def test_rebuilding_changes_nothing_and_repairs(tmp_path, build, small_passages, write_jsonl):
  source = write_jsonl(tmp_path / 'p.jsonl', small_passages)
  store = build(source, tmp_path / 'corpus', shard_size=16)
  before, kept = contents(store.directory), stamps(store.directory)
  assert not list(store.directory.glob('*receipt*'))
  again = build(source, tmp_path / 'corpus', shard_size=16)
  assert again.fingerprint == store.fingerprint
  assert contents(store.directory) == before and stamps(store.directory) == kept

  # A flipped byte, which a size does not show.
  path = store.directory / 'shard-00001.arrow'
  damaged = bytearray(path.read_bytes())
  damaged[len(damaged) // 2] ^= 255
  path.write_bytes(damaged)
  with pytest.raises(ValueError, match='shard-00001.arrow: damaged'):
    PassageStore.open(store.directory).verify()
  build(source, tmp_path / 'corpus', shard_size=16).verify()
  assert contents(store.directory) == before
  assert stamps(store.directory)['shard-00000.arrow'] == kept['shard-00000.arrow']


def test_another_corpus_is_not_overwritten(tmp_path, build, small_passages, write_jsonl):
  source = write_jsonl(tmp_path / 'p.jsonl', small_passages)
  store = build(source, tmp_path / 'corpus', shard_size=16)
  before = contents(store.directory)
  other = write_jsonl(tmp_path / 'other.jsonl', small_passages[:32])
  for inputs, options in [
    (source, dict(max_words=10)),
    (other, {}),
    ([source, write_jsonl(tmp_path / 'x', [Passage('x', '', '', 'y')])], {}),
    (source, dict(shard_size=20)),
  ]:
    with pytest.raises(FileExistsError, match='holds a finished corpus of other'):
      build(inputs, tmp_path / 'corpus', **(dict(shard_size=16) | options))
    assert contents(store.directory) == before
  assert len(build(other, tmp_path / 'corpus', resume=False, shard_size=16)) == 32
  assert len(list(store.directory.glob('shard-*'))) == 2


def test_bad_input_is_named(tmp_path, build, small_passages, write_jsonl):
  source = write_jsonl(tmp_path / 'p.jsonl', small_passages)
  with open(source, 'a', encoding='utf-8') as file:
    file.write('{"id": "p-40", "txt": "x"}\n')
  with pytest.raises(ValueError, match=r'p.jsonl:41: no \'text\'; found: \'id\', \'txt\''):
    build(source, tmp_path / 'corpus', shard_size=16)
  with pytest.raises(FileNotFoundError, match='no finished corpus here'):
    PassageStore.open(tmp_path / 'corpus')
  # Repaired, the same command goes on with the shards it had.
  kept = stamps(tmp_path / 'corpus')
  assert len(kept) == 2
  write_jsonl(source, small_passages)
  assert len(build(source, tmp_path / 'corpus', shard_size=16)) == 40
  assert kept.items() <= stamps(tmp_path / 'corpus').items()


def test_other_options_do_not_reuse_shards(tmp_path, build, small_passages, write_jsonl):
  source = write_jsonl(tmp_path / 'p.jsonl', small_passages)
  with open(source, 'a', encoding='utf-8') as file:
    file.write('bad\n')
  with pytest.raises(ValueError, match='p.jsonl:41: malformed JSON'):
    build(source, tmp_path / 'corpus', shard_size=16)
  write_jsonl(source, small_passages)
  store = build(source, tmp_path / 'corpus', shard_size=16, max_words=20)
  assert contents(store.directory) == contents(
    build(source, tmp_path / 'fresh', shard_size=16, max_words=20).directory
  )


@pytest.mark.parametrize('first, second', [(2, 5), (2, 33)])
def test_duplicate_ids_name_both_lines(tmp_path, build, small_passages, write_jsonl, first, second):
  items = list(small_passages)
  items[second] = Passage(items[first].id, 'other', '', 'other text')
  source = write_jsonl(tmp_path / 'p.jsonl', items)
  with pytest.raises(ValueError) as caught:
    build(source, tmp_path / 'corpus', shard_size=16)
  assert str(caught.value).startswith(
    f"{source}:{second + 1}: duplicate id 'p-2', first on {source}:{first + 1}"
  )


def test_ids_that_share_a_hash(tmp_path, build, small_passages, write_jsonl, monkeypatch):
  # Every id under one of three hashes: only comparing the ids keeps them apart.
  monkeypatch.setattr(
    identifiers, 'hash_ids', lambda ids: np.array([sum(i.encode()) % 3 for i in ids], np.uint64)
  )
  store = build(
    write_jsonl(tmp_path / 'p.jsonl', small_passages), tmp_path / 'corpus', shard_size=16
  )
  assert store.rows_of([p.id for p in small_passages]).tolist() == list(range(40))
  assert store.rows_of(['nobody'], unknown=-1).tolist() == [-1]
  items = [*small_passages, small_passages[3]]
  with pytest.raises(ValueError, match="p.jsonl:41: duplicate id 'p-3', first on .*:4;"):
    build(write_jsonl(tmp_path / 'p.jsonl', items), tmp_path / 'twice', shard_size=16)


def test_hash_set_finds_everything():
  rng = np.random.default_rng(0)
  known = HashSet()
  hashes = rng.integers(0, 500, 1000).astype(np.uint64)
  for start in range(0, 1000, 90):
    part = hashes[start : start + 90]
    known.add(part, start + np.arange(len(part)))
  asked = np.arange(0, 600, 7, dtype=np.uint64)
  positions, numbers = known.find(asked)
  assert sorted(zip(positions.tolist(), numbers.tolist())) == [
    (i, int(n)) for i, h in enumerate(asked) for n in np.flatnonzero(hashes == h)
  ]


@pytest.mark.parametrize(
  'damage, message',
  [
    (
      lambda path: path.write_bytes(path.read_bytes()[:-100]),
      r'shard-00001.arrow: truncated: found [\d,]+ bytes, expected [\d,]+; run the same',
    ),
    (lambda path: path.write_bytes(path.read_bytes() + b'x'), 'too long'),
    (lambda path: path.unlink(), 'shard-00001.arrow: missing'),
  ],
)
def test_a_damaged_shard_is_noticed_on_opening(
  tmp_path, build, small_passages, write_jsonl, damage, message
):
  source = write_jsonl(tmp_path / 'p.jsonl', small_passages)
  store = build(source, tmp_path / 'corpus', shard_size=16)
  before = contents(store.directory)
  damage(store.directory / 'shard-00001.arrow')
  with pytest.raises(ValueError, match=message):
    PassageStore.open(store.directory)
  build(source, tmp_path / 'corpus', shard_size=16)  # The remedy it names.
  assert contents(store.directory) == before


def test_damaged_manifest_and_vocabulary(
  tmp_path, build, small_passages, write_jsonl, wordpiece_file
):
  store = build(write_jsonl(tmp_path / 'p.jsonl', small_passages), tmp_path / 'corpus')
  manifest = store.directory / 'manifest.json'
  whole = manifest.read_text()
  for content, message in [
    (whole[:50], 'manifest.json: damaged'),
    ('{}', 'manifest.json: damaged: KeyError'),
    (whole.replace('"format_version": 1', '"format_version": 9'), 'format version 9'),
  ]:
    manifest.write_text(content)
    with pytest.raises(ValueError, match=message):
      PassageStore.open(store.directory)
  manifest.write_text(whole)
  (store.directory / 'retriever_vocabulary.txt').write_text(wordpiece_file.read_text() + 'more\n')
  with pytest.raises(ValueError, match='not the vocabulary the corpus was built with'):
    _ = PassageStore.open(store.directory).retriever_vocabulary


@pytest.mark.parametrize('vocab_size, width', [(65_536, 16), (65_537, 32)])
def test_token_width(tmp_path, vocab_size, width):
  tokens = RaggedTokens.from_lists([[0, vocab_size - 1, 65_535], [1]])
  items = [Passage(i, '', '', '') for i in 'ab']
  shards.write_shard(
    tmp_path / 'shard.arrow',
    items,
    dict.fromkeys(shards.TOKEN_COLUMNS, tokens),
    {'reader': vocab_size, 'retriever': 100},
  )
  shard = Shard(tmp_path / 'shard.arrow')
  values, offsets = shard.token_column('reader_text')
  assert values.dtype == np.dtype(f'uint{width}')
  assert values.tolist() == tokens.values.tolist() and offsets.tolist() == [0, 3, 4]
  assert shard.token_column('retriever_text')[0].dtype == np.uint16


def test_opening_keeps_no_file_descriptors(small_store):
  store = PassageStore.open(small_store.directory)
  before = len(os.listdir('/proc/self/fd'))
  store.tokens(np.arange(40), 'reader_text')
  assert len(os.listdir('/proc/self/fd')) == before


def test_append(tmp_path, build, small_passages, write_jsonl):
  source = write_jsonl(tmp_path / 'p.jsonl', small_passages)
  store = build(source, tmp_path / 'corpus', shard_size=16, max_words=30)
  n, fingerprint = len(store), store.fingerprint
  before = stamps(store.directory)
  long_text = ' '.join(f'word{i}' for i in range(45))
  rows = passage_store.append_passages(
    store.directory,
    [Passage('new', 'title', 'history', 'the new passage'), Passage('long', '', '', long_text)],
  )
  assert rows.tolist() == [n, n + 1, n + 2]
  assert len(store) == n
  store.reload()
  assert len(store) == n + 3 and store.fingerprint != fingerprint
  assert store.rows_at(fingerprint) == n
  assert store.rows_at(store.fingerprint) == n + 3
  assert store.rows_at('another') is None
  assert store.rows_of(['long#1', 'p-3', 'new']).tolist() == [n + 2, 3, n]
  assert store.tokens(rows[:1], 'reader_title').to_lists() == [
    store.reader_vocabulary.encode('title: history')
  ]
  assert before.items() <= stamps(store.directory).items()
  for items, message in [
    ([Passage('p-1', '', '', 'x')], "duplicate id 'p-1', already in row 1"),
    ([Passage('long#1', '', '', 'x')], 'already in row'),
    ([Passage('y', '', '', 'x')] * 2, "duplicate id 'y' among"),
    ([Passage('', '', '', 'x')], 'without id'),
  ]:
    with pytest.raises(ValueError, match=message):
      passage_store.append_passages(store.directory, items)
  assert passage_store.append_passages(store.directory, []).tolist() == []
  # Building again keeps what was added.
  again = build(source, tmp_path / 'corpus', shard_size=16, max_words=30)
  assert again.fingerprint == store.fingerprint


def test_a_replaced_corpus_is_noticed(tmp_path, build, small_passages, write_jsonl):
  store = build(write_jsonl(tmp_path / 'p.jsonl', small_passages), tmp_path / 'corpus')
  build(write_jsonl(tmp_path / 'p.jsonl', small_passages[:9]), tmp_path / 'corpus', resume=False)
  with pytest.raises(ValueError, match='replaced by another one'):
    store.reload()


def test_two_writers(tmp_path, build, small_passages, write_jsonl):
  from ralm_jax.data.corpus import corpus_manifest as manifest  # pylint: disable=g-import-not-at-top

  source = write_jsonl(tmp_path / 'p.jsonl', small_passages)
  (tmp_path / 'corpus').mkdir()
  with manifest.writing(tmp_path / 'corpus'):
    with pytest.raises(BlockingIOError, match='another process is writing'):
      build(source, tmp_path / 'corpus')


def test_one_vocabulary_for_both(tmp_path, small_passages, write_jsonl, sentencepiece_file):
  vocabulary = vocabularies.load_vocabulary(sentencepiece_file, extra_ids=7)
  store = passage_store.build_corpus(
    write_jsonl(tmp_path / 'p.jsonl', small_passages),
    tmp_path / 'corpus',
    vocabulary,
    vocabulary,
    progress=False,
  )
  assert store.retriever_vocabulary.vocab_size == vocabulary.vocab_size
  rows = np.arange(len(store))
  assert (
    store.tokens(rows, 'reader_text').to_lists() == store.tokens(rows, 'retriever_text').to_lists()
  )


@pytest.mark.parametrize('options', [dict(shard_size=0), dict(max_words=0), dict(n_workers=0)])
def test_bad_options(tmp_path, build, options):
  with pytest.raises(ValueError, match=f'{next(iter(options))} must be at least 1'):
    build(tmp_path / 'p.jsonl', tmp_path / 'corpus', **options)


def test_parallel_equals_serial_and_survives_a_kill(
  tmp_path, build, sentencepiece_file, wordpiece_file, small_passages, write_jsonl
):
  items = [Passage(f'{i}', p.title, p.section, p.text) for i, p in enumerate(small_passages * 300)]
  source = write_jsonl(tmp_path / 'p.jsonl', items)
  serial = build(source, tmp_path / 'serial', shard_size=100)
  script = tmp_path / 'build.py'
  script.write_text(
    'import sys\n'
    'from ralm_jax.data.corpus import passage_store as corpus\n'
    "if __name__ == '__main__':\n"
    '  corpus.build_corpus(*sys.argv[1:5], shard_size=100, n_workers=2)\n'
  )
  output = tmp_path / 'parallel'
  process = subprocess.Popen(
    [sys.executable, script, source, output, sentencepiece_file, wordpiece_file],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    start_new_session=True,
    stderr=subprocess.PIPE,
  )
  try:
    # In the middle of the work: some of the 120 shards are there.
    while len(list(output.glob('*.receipt.json'))) < 5:
      assert process.poll() is None, process.stderr.read().decode()
      time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / 'manifest.json').exists()
    # Its workers end with it, although nobody could tell them: the pipe that
    # they share with it closes. (The time only bounds a failure.)
    process.communicate(timeout=60)
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
  with pytest.raises(FileNotFoundError, match='no finished corpus here'):
    PassageStore.open(output)
  receipts = {
    path.name.replace('.receipt.json', '.arrow') for path in output.glob('*.receipt.json')
  }
  kept = {name: stamp for name, stamp in stamps(output).items() if name in receipts}
  assert 5 <= len(kept) < 120
  (output / 'shard-00077.arrow.unfinished-1').write_bytes(b'half')
  resumed = build(source, output, shard_size=100, n_workers=2)
  assert kept.items() <= stamps(output).items()
  assert contents(output) == contents(serial.directory)
  assert resumed.fingerprint == serial.fingerprint
  assert not multiprocessing.active_children()


def test_a_worker_error_reaches_the_caller(tmp_path, build, small_passages, write_jsonl):
  source = write_jsonl(tmp_path / 'p.jsonl', small_passages)
  with open(source, 'a', encoding='utf-8') as file:
    file.write(json.dumps({'id': 1, 'text': [2]}) + '\n')
  with pytest.raises(ValueError, match="p.jsonl:41: 'text' must be a string"):
    build(source, tmp_path / 'corpus', shard_size=10, n_workers=2)
  assert not multiprocessing.active_children()


def test_chunks_span_files(tmp_path, small_passages, write_jsonl):
  paths = [
    str(write_jsonl(tmp_path / f'{i}.jsonl', small_passages[i : i + 5])) for i in range(0, 15, 5)
  ]
  chunks = list(building.read_chunks(paths, 7))
  assert [sum(len(s.contents) for s in chunk.segments) for chunk in chunks] == [7, 7, 1]
  assert [[s.first_number for s in chunk.segments] for chunk in chunks] == [[1, 1], [3, 1], [5]]
  assert chunks[-1].position == sum(map(os.path.getsize, paths))


def test_real_corpus(shared_data, tmp_path):
  store = passage_store.build_corpus(
    shared_data / 'passages/[hx]*.jsonl',
    tmp_path / 'corpus',
    shared_data / 'tokenizers/t5/spiece.model',
    shared_data / 'tokenizers/bert-base-uncased/vocab.txt',
    max_words=100,
    shard_size=400,
    progress=False,
  )
  rng = np.random.default_rng(0)
  rows = rng.integers(0, len(store), 300)
  passages = store.passages(rows)
  assert max(len(p.text.split()) for p in passages) <= 100
  for model, vocabulary in (
    ('reader', store.reader_vocabulary),
    ('retriever', store.retriever_vocabulary),
  ):
    for field in ('title', 'text'):
      texts = [p.merged_title if field == 'title' else p.text for p in passages]
      assert store.tokens(rows, f'{model}_{field}').to_lists() == (vocabulary.encode_batch(texts))
  assert store.rows_of([p.id for p in passages]).tolist() == rows.tolist()


def test_records_of_several_lines_and_empty_passages(tmp_path, build):
  """Numbers of lines, chunks and checksums follow records; empty passages are counted."""
  header = 'id\ttext\ttitle\n'
  first = header + '1\t"a\nb"\tT\n2\t\t\n' + header + '3\tc\tU\n4\t" "\t\n'
  source = tmp_path / 'p.tsv'
  source.write_text(first)
  for shard_size in (1, 2, 100):
    store = build(source, tmp_path / f'corpus{shard_size}', shard_size=shard_size)
    assert [p.text for p in store.passages(range(4))] == ['a\nb', '', 'c', ' ']
    assert store.count_empty() == 2
  source.write_text(first + '5\tonly\n')
  with pytest.raises(ValueError, match='p.tsv:8: expected 3 tab-separated columns'):
    build(source, tmp_path / 'other')
