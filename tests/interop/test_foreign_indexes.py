"""Atlas's index folders and embedding files, as corpora and indexes of ours."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import pickle
import tracemalloc

import numpy as np
import pytest

from ralm_jax.data.corpus import passage_store
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.corpus.passages import Passage
from ralm_jax.interop import atlas_passages, foreign_indexes
from ralm_jax.interop.atlas_passages import CorpusOptions
from ralm_jax.interop.files import embedding_files
from ralm_jax.interop.foreign_indexes import ConvertedIndex
from ralm_jax.retrieval import connect
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.retrieval.retriever import PassageRetriever
from retrieval_service.generation_writer import GenerationWriter
from retrieval_service.generations import GenerationStore
from retrieval_service.options import IndexOptions
from tests import tiny

torch = pytest.importorskip('torch')
DIM = 16


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> tiny.Data:
  return tiny.make_data(tmp_path_factory.mktemp('data'))


def passages(count=40) -> list[dict]:
  """As Atlas holds them in memory: the section is in the title already."""
  rows = []
  for i, passage in enumerate(tiny.passages()[:count]):
    section = 'History' if i % 3 == 0 else ''
    title = f'{passage["title"]}: {section}' if section else passage['title']
    rows.append({**passage, 'title': title, 'section': section})
  return rows


def vectors(count=40, seed=0, dim=DIM) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float16)


def write_atlas(folder: pathlib.Path, rows, embeddings, n_shards=4) -> pathlib.Path:
  """Writes as the original's `save_index` does."""
  folder.mkdir(parents=True, exist_ok=True)
  width = -(-len(rows) // n_shards)
  whole = torch.tensor(embeddings.T)  # [dim, passages]
  for i in range(n_shards):
    chosen = slice(i * width, (i + 1) * width)
    torch.save(whole[:, chosen], folder / f'embeddings.{i}.pt')
    with open(folder / f'passages.{i}.pt', 'wb') as file:
      pickle.dump(rows[chosen], file, protocol=pickle.HIGHEST_PROTOCOL)
  return folder


def convert(
  data, source, tmp_path, name='converted', options=IndexOptions(), progress=False, **more
):
  return foreign_indexes.convert_atlas_index(
    source,
    tmp_path / name / 'corpus',
    tmp_path / name / 'index',
    data.reader_vocabulary,
    data.retriever_vocabulary,
    options,
    CorpusOptions(**{'n_workers': 1, **more}),
    progress=progress,
  )


def best(queries, embeddings, k=5):
  scores = queries @ embeddings.astype(np.float32).T
  return np.argsort(-scores, axis=1, kind='stable')[:, :k]


def queries(seed=9) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=(6, DIM)).astype(np.float32)


def test_an_atlas_folder_is_searched(data, tmp_path):
  """By the real retrieval process, which finds corpus and passages itself."""
  rows, embeddings = passages(), vectors()
  result = convert(data, write_atlas(tmp_path / 'atlas', rows, embeddings), tmp_path)
  assert result == ConvertedIndex(1, 40, DIM)
  moved = (tmp_path / 'converted').rename(tmp_path / 'moved')
  with connect.connect(IndexSource(moved / 'index', threads=1)) as connected:
    retriever = PassageRetriever(connected.client, connected.store, 5)
    found = retriever.search(queries())
    store = connected.store
  expected = best(queries(), embeddings)
  np.testing.assert_array_equal(found.rows, expected)
  scores = queries() @ embeddings.astype(np.float32).T
  np.testing.assert_allclose(found.scores, np.take_along_axis(scores, expected, 1), rtol=1e-3)
  for row, passage in enumerate(rows):
    stored = store.passage(row)
    assert (stored.id, stored.text) == (passage['id'], passage['text'])
    # What models read is Atlas's title; the section is not there twice.
    assert stored.merged_title == passage['title']
    assert stored.section == passage['section']
    assert 'History' not in stored.title
  store.verify()


def test_the_same_corpus_as_from_the_jsonl(data, tmp_path):
  """Texts and tokens are those of `ralm corpus` on the original file."""
  rows = passages()
  convert(data, write_atlas(tmp_path / 'atlas', rows, vectors()), tmp_path)
  converted = PassageStore.open(tmp_path / 'converted' / 'corpus')
  original = [{**row, 'title': row['title'].removesuffix(': History')} for row in rows]
  built = passage_store.build_corpus(
    tiny.write_jsonl(tmp_path / 'original.jsonl', original),
    tmp_path / 'built',
    data.reader_vocabulary,
    data.retriever_vocabulary,
    n_workers=1,
    progress=False,
  )
  everything = np.arange(40)
  assert converted.passages(everything) == built.passages(everything)
  for column in ('reader_title', 'reader_text', 'retriever_title'):
    first, second = (s.tokens(everything, column) for s in (converted, built))
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(first.offsets, second.offsets)
  np.testing.assert_array_equal(converted.documents(everything), built.documents(everything))


def test_compressed_indexes_and_other_types(data, tmp_path):
  rows, embeddings = passages(), vectors()
  source = write_atlas(tmp_path / 'atlas', rows, embeddings, n_shards=3)
  # bfloat16 and float32 are read as well; a transposed one is no copy.
  torch.save(torch.tensor(embeddings[:14].astype(np.float32)).t(), source / 'embeddings.0.pt')
  torch.save(torch.tensor(embeddings.T)[:, 14:28].bfloat16(), source / 'embeddings.1.pt')
  result = convert(data, source, tmp_path, options=IndexOptions(index_type='SQ8'))
  generation = GenerationStore(tmp_path / 'converted' / 'index').open(result.generation)
  assert generation.manifest.factory == 'SQ8'
  stored = np.asarray(generation.embeddings)
  np.testing.assert_array_equal(stored[:14], embeddings[:14])
  np.testing.assert_array_equal(stored[28:], embeddings[28:])
  np.testing.assert_allclose(stored[14:28], embeddings[14:28], rtol=1e-2)


def test_workers_and_small_shards_change_nothing(data, tmp_path):
  source = write_atlas(tmp_path / 'atlas', passages(), vectors())
  convert(data, source, tmp_path, 'one', shard_size=4)
  convert(data, source, tmp_path, 'two', shard_size=4, n_workers=2)
  one, two = (PassageStore.open(tmp_path / name / 'corpus') for name in ('one', 'two'))
  # Ten passages a file, in shards of four, four and two.
  assert len(list((tmp_path / 'one' / 'corpus').glob('*.arrow'))) == 12
  assert one.fingerprint == two.fingerprint and len(one) == 40


def test_going_on_after_an_interruption(data, tmp_path, monkeypatch):
  source = write_atlas(tmp_path / 'atlas', passages(), vectors())
  real, built = atlas_passages.building.build_shard, []

  def build(directory, settings, chunk):
    if len(built) == 2:
      raise KeyboardInterrupt
    built.append(chunk.index)
    return real(directory, settings, chunk)

  monkeypatch.setattr(atlas_passages.building, 'build_shard', build)
  with pytest.raises(KeyboardInterrupt):
    convert(data, source, tmp_path)
  assert built == [0, 1]
  with pytest.raises(FileNotFoundError, match='no finished corpus'):
    PassageStore.open(tmp_path / 'converted' / 'corpus')
  built.append('continues')
  # Now during the index: the corpus stays, no half index does.
  read = foreign_indexes._read_embeddings

  def read_two(shard):
    if '2.pt' in shard.embeddings:
      raise KeyboardInterrupt
    return read(shard)

  monkeypatch.setattr(foreign_indexes, '_read_embeddings', read_two)
  with pytest.raises(KeyboardInterrupt):
    convert(data, source, tmp_path)
  assert built == [0, 1, 'continues', 2, 3]
  index = GenerationStore(tmp_path / 'converted' / 'index')
  assert index.numbers() == [] and index.current() is None
  monkeypatch.setattr(foreign_indexes, '_read_embeddings', read)
  assert convert(data, source, tmp_path).passages == 40
  assert built == [0, 1, 'continues', 2, 3]
  with pytest.raises(FileExistsError, match='holds an index already'):
    convert(data, source, tmp_path)


def test_another_corpus_is_not_overwritten(data, tmp_path):
  source = write_atlas(tmp_path / 'atlas', passages(), vectors())
  convert(data, source, tmp_path)
  other = passages()
  other[11]['text'] = 'something else'
  write_atlas(tmp_path / 'atlas', other, vectors())
  with pytest.raises(FileExistsError, match='corpus of other passages'):
    foreign_indexes.convert_atlas_index(
      source,
      tmp_path / 'converted' / 'corpus',
      tmp_path / 'new',
      data.reader_vocabulary,
      data.retriever_vocabulary,
      corpus_options=CorpusOptions(n_workers=1),
      progress=False,
    )


def test_ids_that_repeat_or_lack(data, tmp_path):
  rows = passages()
  rows[31]['id'] = 'p4'
  source = write_atlas(tmp_path / 'atlas', rows, vectors())
  with pytest.raises(ValueError, match=r"passages\.3\.pt: the id 'p4' is that"):
    convert(data, source, tmp_path)
  del rows[31]['id']
  write_atlas(source, rows, vectors())
  with pytest.raises(ValueError, match=r'passages\.3\.pt:2: a passage without'):
    convert(data, source, tmp_path)
  convert(data, source, tmp_path, 'renamed', own_ids=False)
  store = PassageStore.open(tmp_path / 'renamed' / 'corpus')
  assert [store.passage(row).id for row in (0, 31, 39)] == ['0', '31', '39']


def damage_atlas(source: pathlib.Path, kind: str) -> str:
  """Damages a folder; returns what the error says."""
  if kind == 'missing_passages':
    (source / 'passages.2.pt').unlink()
    return r'has no passages\.2\.pt, but files up to 3'
  if kind == 'missing_embeddings':
    (source / 'embeddings.0.pt').unlink()
    return r'has no embeddings\.0\.pt'
  if kind == 'counts':
    pickled = pickle.dumps(passages()[:9])
    (source / 'passages.1.pt').write_bytes(pickled)
    return r'passages\.1\.pt holds 9 passages, .* embeddings 10'
  if kind == 'dimension':
    torch.save(torch.zeros(DIM + 1, 10), source / 'embeddings.3.pt')
    return r'embeddings\.3\.pt has embeddings of size 17'
  if kind == 'truncated_embeddings':
    path = source / 'embeddings.1.pt'
    path.write_bytes(path.read_bytes()[:-200])
    return r'embeddings\.1\.pt is truncated'
  if kind == 'truncated_passages':
    path = source / 'passages.1.pt'
    path.write_bytes(path.read_bytes()[:-20])
    return r'passages\.1\.pt is truncated'
  if kind == 'zeros':
    torch.save(torch.zeros(DIM, 10), source / 'embeddings.1.pt')
    return r'embeddings\.1\.pt holds nothing but zeros'
  if kind == 'not_finite':
    torch.save(torch.full((DIM, 10), float('nan')), source / 'embeddings.1.pt')
    return r'embeddings\.1\.pt: the embedding of passage 10 holds a value'
  if kind == 'no_tensor':
    torch.save({'x': torch.zeros(3)}, source / 'embeddings.1.pt')
    return r'embeddings\.1\.pt holds a dict, expected one tensor'
  if kind == 'integers':
    torch.save(torch.zeros(DIM, 10).long(), source / 'embeddings.1.pt')
    return r'embeddings\.1\.pt holds a tensor of int64'
  if kind == 'flat':
    torch.save(torch.zeros(10), source / 'embeddings.1.pt')
    return r'shape \(10,\), expected \[dim, passages\]'
  value = {
    'no_list': {'id': '1'},
    'no_dicts': ['text'] * 10,
    'no_text': [{'id': str(i)} for i in range(10)],
    'number': [{'id': str(i), 'text': [3]} for i in range(10)],
  }[kind]
  (source / 'passages.1.pt').write_bytes(pickle.dumps(value))
  return {
    'no_list': r'passages\.1\.pt holds a dict, expected a list',
    'no_dicts': r"passages\.1\.pt:1: expected a dict .* found 'text'",
    'no_text': r"passages\.1\.pt:1: no 'text'",
    'number': r"passages\.1\.pt:1: 'text' must be a string",
  }[kind]


@pytest.mark.parametrize(
  'kind',
  [
    'missing_passages',
    'missing_embeddings',
    'counts',
    'dimension',
    'truncated_embeddings',
    'truncated_passages',
    'zeros',
    'not_finite',
    'no_tensor',
    'integers',
    'flat',
    'no_list',
    'no_dicts',
    'no_text',
    'number',
  ],
)
def test_damaged_folders(data, tmp_path, kind):
  source = write_atlas(tmp_path / 'atlas', passages(), vectors())
  expected = damage_atlas(source, kind)
  with pytest.raises((ValueError, FileNotFoundError), match=expected):
    convert(data, source, tmp_path)
  index = GenerationStore(tmp_path / 'converted' / 'index')
  assert index.numbers() == []


def test_no_folder(data, tmp_path):
  with pytest.raises(FileNotFoundError, match='is not a folder'):
    convert(data, tmp_path / 'nothing', tmp_path)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(FileNotFoundError, match='holds no embeddings.0.pt'):
    convert(data, tmp_path / 'empty', tmp_path)


class Attack:
  """Pickles as a call."""

  def __init__(self, *call):
    self.call = call

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('file', ['passages.1.pt', 'embeddings.1.pt'])
def test_a_malicious_folder_runs_nothing(data, tmp_path, file):
  touch = tmp_path / 'was_here'
  source = write_atlas(tmp_path / 'atlas', passages(), vectors())
  attack = [Attack(os.system, (f'touch {touch}',))] * 10
  if file.startswith('passages'):
    (source / file).write_bytes(pickle.dumps(attack))
  else:
    torch.save(attack, source / file)
  with pytest.raises(ValueError, match='nothing in the file was executed'):
    convert(data, source, tmp_path)
  assert not touch.exists()


# Embeddings of a corpus that exists.

Files = collections.namedtuple('Files', 'folder ids embeddings')


def write_contriever(folder, ids, embeddings, n_files=3, protocol=4) -> None:
  """`passages_00`, …: what Contriever's generate_passage_embeddings.py saves."""
  for i, part in enumerate(np.array_split(np.arange(len(ids)), n_files)):
    (folder / f'passages_{i:02d}').write_bytes(
      pickle.dumps(([ids[j] for j in part], embeddings[part]), protocol)
    )


def write_dpr(folder, ids, embeddings, n_files=3, protocol=4) -> None:
  """`wikipedia_passages_0.pkl`, …: what DPR's generate_dense_embeddings.py saves."""
  for i, part in enumerate(np.array_split(np.arange(len(ids)), n_files)):
    (folder / f'wikipedia_passages_{i}.pkl').write_bytes(
      pickle.dumps([(f'wiki:{ids[j]}', embeddings[j].astype(np.float32)) for j in part], protocol)
    )


WRITERS = {'contriever': write_contriever, 'dpr': write_dpr}
PREFIXES = {'contriever': '', 'dpr': 'wiki:'}


@pytest.fixture
def files(tmp_path) -> Files:
  (tmp_path / 'embeddings').mkdir()
  ids = [passage['id'] for passage in tiny.passages()]
  return Files(tmp_path / 'embeddings', ids, vectors())


def convert_files(data, files, tmp_path, name='index', **options):
  return foreign_indexes.convert_embeddings(
    str(files.folder / '*'), data.corpus, tmp_path / name, **{'progress': False, **options}
  )


@pytest.mark.parametrize('shuffled', [False, True])
@pytest.mark.parametrize('kind', WRITERS)
def test_embedding_files_are_searched(data, files, tmp_path, kind, shuffled):
  order = np.arange(40)
  if shuffled:
    order = np.random.default_rng(1).permutation(40)
  WRITERS[kind](files.folder, [files.ids[i] for i in order], files.embeddings[order])
  result = convert_files(data, files, tmp_path, id_prefix=PREFIXES[kind])
  assert result == ConvertedIndex(1, 40, DIM)
  with connect.connect(IndexSource(tmp_path / 'index', threads=1)) as connected:
    retriever = PassageRetriever(connected.client, connected.store, 5)
    found = retriever.search(queries())
    assert connected.store.fingerprint == PassageStore.open(data.corpus).fingerprint
  np.testing.assert_array_equal(found.rows, best(queries(), files.embeddings))
  generation = GenerationStore(tmp_path / 'index').open_current()
  # In the corpus's order no ids are stored at all.
  assert (generation.ids is None) == (not shuffled)


@pytest.mark.parametrize('protocol', [2, 5])
@pytest.mark.parametrize('kind', WRITERS)
def test_protocols_and_pieces(data, files, tmp_path, monkeypatch, kind, protocol):
  WRITERS[kind](files.folder, files.ids, files.embeddings, protocol=protocol)
  monkeypatch.setattr(embedding_files, 'PIECE', 3)
  convert_files(data, files, tmp_path, id_prefix=PREFIXES[kind])
  generation = GenerationStore(tmp_path / 'index').open_current()
  np.testing.assert_array_equal(generation.embeddings, files.embeddings)


def test_a_part_of_a_corpus(data, files, tmp_path):
  """Both kinds of mismatch are errors unless allowed."""
  ids = [*files.ids[:30], 'x1', 'x2']
  write_contriever(files.folder, ids, files.embeddings[:32])
  with pytest.raises(ValueError, match="passages_02: .* no passage 'x1' .and 1 "):
    convert_files(data, files, tmp_path)
  with pytest.raises(ValueError, match="10 of 40 passages .* them 'p30'"):
    convert_files(data, files, tmp_path, allow_unused=True)
  assert GenerationStore(tmp_path / 'index').numbers() == []
  result = convert_files(data, files, tmp_path, allow_unused=True, allow_missing=True)
  assert result.passages == 30
  generation = GenerationStore(tmp_path / 'index').open_current()
  np.testing.assert_array_equal(generation.embeddings, files.embeddings[:30])
  write_contriever(files.folder, ['y'] * 40, files.embeddings)
  with pytest.raises(ValueError, match='none of the embeddings is of a passage'):
    convert_files(data, files, tmp_path, 'other', allow_unused=True, allow_missing=True)


def test_the_prefix_is_asked_for(data, files, tmp_path):
  write_dpr(files.folder, files.ids, files.embeddings)
  with pytest.raises(ValueError, match="'wiki:p0' .* is 'p0'.*id_prefix"):
    convert_files(data, files, tmp_path)


@pytest.mark.parametrize('n_files', [1, 4])
def test_an_embedding_that_comes_twice(data, files, tmp_path, n_files):
  ids = list(files.ids)
  ids[39] = ids[0]
  write_contriever(files.folder, ids, files.embeddings, n_files)
  last = n_files - 1
  with pytest.raises(
    ValueError,
    match=(f"passages_0{last}: the embedding of 'p0' comes twice, first in .*passages_00"),
  ):
    convert_files(data, files, tmp_path)


def test_a_replaced_passage(data, files, tmp_path):
  """Its newest row has the embedding; the old one is not missed."""
  import shutil

  corpus = tmp_path / 'corpus'
  shutil.copytree(data.corpus, corpus)
  rows = passage_store.append_passages(corpus, [Passage('p3', 't', '', 'new text')], replace=True)
  write_contriever(files.folder, files.ids, files.embeddings)
  foreign_indexes.convert_embeddings(
    str(files.folder / '*'), corpus, tmp_path / 'index', progress=False
  )
  generation = GenerationStore(tmp_path / 'index').open_current()
  assert generation.count == 40 and generation.ids[3] == rows[0] == 40


LAYOUTS = {
  'dict': ({'a': 1}, 'holds a dict of 1; expected'),
  'numbers': ([1.0, 2.0], 'holds a list of 2; expected'),
  'lengths': ((['p0'], np.zeros((2, 4), np.float32)), 'a list of 1 and an array'),
  'flat': ((['p0'], np.zeros(1, np.float32)), r'an array \(1,\)'),
  'integers': ((['p0'], np.zeros((1, 4), int)), 'numbers of type int64'),
  'none': (([], np.zeros((0, 4), np.float32)), 'holds no embedding'),
  'empty': ([], 'holds no embedding'),
  'ragged': (
    [
      ('p0', np.zeros(3, np.float32)),
      ('p1', np.zeros(4, np.float32)),
      ('p2', np.zeros(4, np.float32)),
    ],
    r'shapes \[\(3,\), \(4,\)\]',
  ),
  'ids': (([b'p0'], np.zeros((1, 4), np.float32)), 'ids as strings, found b'),
  'large': ((['p0'], np.full((1, 4), 1e6, np.float32)), 'beyond 65504'),
}


@pytest.mark.parametrize('name', LAYOUTS)
def test_other_layouts(data, files, tmp_path, name):
  value, message = LAYOUTS[name]
  path = files.folder / 'passages_00'
  path.write_bytes(pickle.dumps(value))
  with pytest.raises(ValueError, match=f'passages_00.*{message}'):
    convert_files(data, files, tmp_path, allow_missing=True)


def test_dimensions_that_differ(data, files, tmp_path):
  write_contriever(files.folder, files.ids[:20], files.embeddings[:20], 1)
  (files.folder / 'passages_01').write_bytes(
    pickle.dumps((files.ids[20:], np.zeros((20, 8), np.float16)))
  )
  with pytest.raises(ValueError, match='passages_01 has embeddings of size 8'):
    convert_files(data, files, tmp_path)


def test_truncated_and_malicious_files(data, files, tmp_path):
  write_contriever(files.folder, files.ids, files.embeddings)
  path = files.folder / 'passages_01'
  path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(ValueError, match='passages_01 is truncated'):
    convert_files(data, files, tmp_path)
  touch = tmp_path / 'was_here'
  path.write_bytes(pickle.dumps((files.ids, Attack(os.system, (f'touch {touch}',)))))
  with pytest.raises(ValueError, match='passages_01 names posix.system'):
    convert_files(data, files, tmp_path)
  assert not touch.exists()
  with pytest.raises(FileNotFoundError, match='no file matches'):
    foreign_indexes.convert_embeddings(str(tmp_path / 'nothing*'), data.corpus, tmp_path / 'index')
  assert GenerationStore(tmp_path / 'index').numbers() == []


def test_integer_ids(tmp_path, data):
  """As psgs_w100's are once they went through pandas."""
  rows = [{'id': str(i), 'text': 'the text'} for i in range(4)]
  passage_store.build_corpus(
    tiny.write_jsonl(tmp_path / 'p.jsonl', rows),
    tmp_path / 'corpus',
    data.reader_vocabulary,
    data.retriever_vocabulary,
    n_workers=1,
    progress=False,
  )
  (tmp_path / 'file').write_bytes(pickle.dumps((np.arange(4), vectors(4))))
  result = foreign_indexes.convert_embeddings(
    tmp_path / 'file', tmp_path / 'corpus', tmp_path / 'index', progress=False
  )
  assert result.passages == 4


def peak_bytes(function, monkeypatch) -> int:
  """The most that Python and NumPy held at once, until FAISS took over."""
  peaks = []
  commit = GenerationWriter.commit

  def commit_(self, *arguments):
    peaks.append(tracemalloc.get_traced_memory()[1])
    return commit(self, *arguments)

  monkeypatch.setattr(GenerationWriter, 'commit', commit_)
  tracemalloc.start()
  try:
    function()
  finally:
    tracemalloc.stop()
  return peaks[0]


@pytest.mark.parametrize('kind', ['atlas', *WRITERS])
def test_one_shard_in_memory(data, tmp_path, monkeypatch, kind):
  """Twelve shards of 1.2 MB need the memory of about one."""
  count, dim, shards = 1200, 6144, 12
  # As many bytes beside the text as twice the embeddings.
  rows = [
    {'id': str(i), 'text': 'the', 'title': '', 'other': f'{i:06}' * 4096} for i in range(count)
  ]
  embeddings = np.ones((count, dim), np.float16)
  size = embeddings.nbytes // shards
  source = tmp_path / 'source'
  source.mkdir()
  if kind == 'atlas':
    write_atlas(source, rows, embeddings, shards)
    make = lambda: convert(data, source, tmp_path)
  else:
    passage_store.build_corpus(
      tiny.write_jsonl(tmp_path / 'p.jsonl', rows),
      tmp_path / 'corpus',
      data.reader_vocabulary,
      data.retriever_vocabulary,
      n_workers=1,
      progress=False,
    )
    WRITERS[kind](source, [row['id'] for row in rows], embeddings, shards)
    make = lambda: foreign_indexes.convert_embeddings(
      str(source / '*'),
      tmp_path / 'corpus',
      tmp_path / 'index',
      id_prefix=PREFIXES[kind],
      progress=False,
    )
  del embeddings, rows
  # A shard, its transposition for the writer and what reading it takes; DPR's
  # numbers have twice the size in their files.
  limit = {'atlas': 3.5, 'contriever': 2, 'dpr': 6.5}[kind]
  peak = peak_bytes(make, monkeypatch)
  assert size < peak < limit * size


def test_metadata_names_the_origin(data, files, tmp_path):
  write_contriever(files.folder, files.ids, files.embeddings)
  convert_files(data, files, tmp_path)
  generation = GenerationStore(tmp_path / 'index').open_current()
  metadata = generation.manifest.metadata
  assert 'passages_00 and 2 other files' in metadata['checkpoint']
  # No encoder of ours made it, which is not the same as an outdated one.
  assert metadata['encoder_fingerprint'] == ''
  assert json.dumps(metadata)
