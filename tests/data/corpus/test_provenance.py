"""Documents, dates and versions of passages: what filters go by."""

import json

import numpy as np
import pytest

from ralm_jax.data import dates
from ralm_jax.data.corpus import corpus_manifest, passage_store, passages as passages_lib
from ralm_jax.data.corpus.corpus_manifest import Settings
from ralm_jax.data.corpus.passage_ids import RowsOfIds
from ralm_jax.data.corpus.passage_store import PassageStore

Passage = passages_lib.Passage

ROWS = [
  {'id': 'a', 'title': 'Rome', 'section': 'History', 'text': 'one', 'date': '2019'},
  {'id': 'b', 'title': 'Rome', 'section': 'Food', 'text': 'two', 'date': '2019-03-05'},
  {'id': 'c', 'title': 'Italy', 'text': 'three', 'document': 'Rome'},
  {'id': 'd', 'title': 'Rome', 'text': 'four', 'document': 17, 'date': 2020},
  {'id': 'e', 'title': '', 'text': 'five', 'date': None},
  {'id': 'f', 'text': 'six', 'document': None},
  {'id': 'g', 'text': ' '.join(f'w{i}' for i in range(25)), 'date': '2020-02'},
  {'id': 'g-1', 'title': 'g', 'text': 'seven'},
]


@pytest.fixture
def build(tmp_path, sentencepiece_file, wordpiece_file):

  def build_quietly(rows=ROWS, name='corpus', **options):
    path = tmp_path / f'{name}.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return passage_store.build_corpus(
      path,
      tmp_path / name,
      sentencepiece_file,
      wordpiece_file,
      **{'n_workers': 1, 'progress': False, **options},
    )

  return build_quietly


def rows_of(store, *ids):
  return store.rows_of(ids)


def test_documents(build):
  store = build(shard_size=3, max_words=10)
  keys = dict(zip('abcdef', store.documents(rows_of(store, *'abcdef'))))
  # By title, unless named; the section does not matter.
  assert keys['a'] == keys['b'] == keys['c']
  # A document of its own, whatever its title.
  assert keys['d'] not in (keys['a'], keys['e'])
  # The untitled are strangers to each other, but the parts of one are not.
  parts = store.documents(rows_of(store, 'g', 'g#1', 'g#2'))
  assert len(set(parts)) == 1
  assert len({keys['e'], keys['f'], parts[0], *store.documents(rows_of(store, 'g-1'))}) == 4
  assert store.documents(np.array([[0, -1], [1, 0]])).tolist() == [
    [keys['a'], 0],
    [keys['b'], keys['a']],
  ]
  assert keys['a'] != 0 and store.documents(np.array([0])).dtype == np.int64
  with pytest.raises(IndexError, match='no row 99'):
    store.documents(np.array([0, 99]))


def test_sources(build):
  store = build(shard_size=3, max_words=10)
  parts = store.sources(rows_of(store, 'g', 'g#1', 'g#2'))
  assert len(set(parts)) == 1
  others = store.sources(rows_of(store, *'abcdef', 'g-1'))
  assert len({*others, parts[0]}) == 8
  assert [p.part_of for p in store.passages(rows_of(store, 'a', 'g', 'g#2'))] == ['', '', 'g']
  assert [p.source_id for p in store.passages(rows_of(store, 'g', 'g#2'))] == ['g', 'g']


def test_ids_that_only_look_like_parts(build):
  """Where nothing was cut, `x#1` is a passage of its own."""
  rows = [{'id': 'x', 'text': 'a'}, {'id': 'x#1', 'text': 'b'}, {'id': 'x#2', 'text': 'c'}]
  for options in ({}, {'max_words': 10}):
    store = build(rows, f'corpus{len(options)}', **options)
    assert len(set(store.sources(np.arange(3)))) == 3
    assert len(set(store.documents(np.arange(3)))) == 3
    assert store.find(['x']).rows.tolist() == [0]
    assert store.passage(1).part_of == '' and store.passage(1).source_id == 'x#1'


def test_dates(build):
  store = build(shard_size=3, max_words=10)
  found = dict(zip('abcdefg', store.dates(rows_of(store, *'abcdefg')).tolist()))
  # The last day that a date allows.
  assert found['a'] == dates.last_day('2019-12-31')
  assert found['b'] == dates.last_day('2019-03-05')
  assert found['d'] == dates.last_day('2020-12-31')
  assert found['c'] == found['e'] == found['f'] == dates.NO_DATE
  assert store.dates(rows_of(store, 'g#2')).tolist() == [dates.last_day('2020-02-29')]
  assert store.dates(np.array([-1])).tolist() == [dates.NO_DATE]
  assert store.dates(np.array([0])).dtype == np.int32
  assert store.passage(0).date == '2019-12-31' and store.passage(2).date == ''
  assert store.has_dates()
  assert not build([{'id': 'a', 'text': 'x'}], 'undated').has_dates()


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'date': 'May 2019'}, "'date': 'May 2019' is no date; write 'YYYY'"),
    ({'date': ''}, "'date': '' is no date"),
    ({'date': '2019-02-30'}, "'date': '2019-02-30' is no date"),
    ({'date': 20190501}, "'date': '20190501' is no date"),
    ({'date': ['2019']}, "'date' must be a string, found a list"),
    ({'date': True}, "'date' must be a string, found a boolean"),
    ({'document': ['x']}, "'document' must be a string, found a list"),
    ({'document': '\ud800'}, "'document' is not valid Unicode"),
  ],
)
def test_bad_fields_are_named(build, tmp_path, fields, message):
  with pytest.raises(ValueError) as caught:
    build([ROWS[0], {'id': 'z', 'text': 'x', **fields}])
  assert str(caught.value).startswith(f'{tmp_path}/corpus.jsonl:2: {message}')


def test_appended_passages_have_them_too(build):
  store = build()
  rows = passage_store.append_passages(
    store.directory, [Passage('n', 'Other', '', 'x', document='Rome', date='2001')]
  )
  store.reload()
  assert store.documents(rows) == store.documents(rows_of(store, 'a'))
  assert store.dates(rows).tolist() == [dates.last_day('2001')]
  with pytest.raises(ValueError, match="passage 'm': date 'soon' is no date"):
    passage_store.append_passages(store.directory, [Passage('m', '', '', 'x', date='soon')])


@pytest.fixture
def build_old(build, monkeypatch):
  """Builds as it was before there were documents and dates."""

  def build_without(*args, **options):
    with monkeypatch.context() as patch:
      patch.setattr(Settings.__init__, '__defaults__', (False,))
      store = build(*args, **options)
    path = store.directory / corpus_manifest.FILE_NAME
    content = json.loads(path.read_text())
    assert content.pop('provenance') is False
    path.write_text(json.dumps(content))
    return PassageStore.open(store.directory)

  return build_without


def test_older_corpora(build, build_old):
  """By title, without dates; and repaired as they were."""
  store = build_old(shard_size=3, max_words=10)
  new = build(name='new', shard_size=3, max_words=10)
  rows = np.arange(len(store))
  assert store.sources(rows).tolist() == new.sources(rows).tolist()
  assert [p.part_of for p in store.passages(rows)] == [p.part_of for p in new.passages(rows)]
  keys = dict(zip('abcdef', store.documents(rows_of(store, *'abcdef'))))
  assert keys['a'] == keys['b'] == keys['d'] != keys['c']
  assert len({keys['a'], keys['c'], keys['e'], keys['f']}) == 4
  assert len(set(store.documents(rows_of(store, 'g', 'g#1')))) == 1
  assert not store.has_dates()
  assert set(store.dates(rows).tolist()) == {dates.NO_DATE}
  # A corpus that nothing was cut in has no parts.
  plain = build_old([{'id': i, 'text': 'a'} for i in ('x', 'x#1')], 'plain')
  assert len(set(plain.sources(np.arange(2)))) == 2
  # A shard that is damaged comes back byte for byte.
  path = store.directory / 'shard-00001.arrow'
  whole = path.read_bytes()
  path.write_bytes(whole[:-10])
  again = build(shard_size=3, max_words=10)
  assert path.read_bytes() == whole and again.fingerprint == store.fingerprint
  # What is added is new all the same.
  added = passage_store.append_passages(
    store.directory, [Passage('n', 'x', '', 'y', document='Rome', date='2001')]
  )
  again.reload()
  assert again.has_dates() and again.documents(added)[0] == keys['a']


def test_replacing(build):
  store = build(shard_size=3, max_words=10)
  n = len(store)
  short = Passage('g', '', '', 'now it is short')
  for passages in ([Passage('a', '', '', 'x')], [short]):
    with pytest.raises(ValueError, match='duplicate id .* replace that passage'):
      passage_store.append_passages(store.directory, passages)
  with pytest.raises(ValueError, match="duplicate id 'a' among"):
    passage_store.append_passages(store.directory, [Passage('a', '', '', 'x')] * 2, replace=True)
  assert len(PassageStore.open(store.directory)) == n
  rows = passage_store.append_passages(
    store.directory,
    [Passage('a', 'Rome', '', 'new'), short, Passage('new', '', '', 'x')],
    replace=True,
  )
  store.reload()
  assert rows.tolist() == [n, n + 1, n + 2]
  assert rows_of(store, 'a', 'g', 'new', 'b').tolist() == [n, n + 1, n + 2, 1]
  assert store.passage(n).text == 'new' and store.passage(0).text == 'one'
  found = store.find(['g', 'a', 'nobody', 'b'])
  assert sorted(zip(found.positions.tolist(), found.rows.tolist(), found.versions.tolist())) == [
    (0, 6, 1),
    (0, 7, 1),
    (0, 8, 1),
    (0, n + 1, 0),
    (1, 0, 1),
    (1, n, 0),
    (3, 1, 0),
  ]
  # A passage stays itself, whatever row it is in.
  assert len(set(store.sources(np.array([6, 7, n + 1])))) == 1
  assert store.superseded().tolist() == [0, 6, 7, 8]
  passage_store.append_passages(store.directory, [Passage('a', '', '', 'newer')], replace=True)
  store.reload()
  assert rows_of(store, 'a').tolist() == [n + 3]
  assert store.superseded().tolist() == [0, 6, 7, 8, n]
  found = store.find(['a'])
  assert sorted(zip(found.rows.tolist(), found.versions.tolist())) == [(0, 2), (n, 1), (n + 3, 0)]
  again = build(shard_size=3, max_words=10)
  assert again.superseded().tolist() == [0, 6, 7, 8, n] and len(again) == n + 4


def test_a_long_passage_takes_the_place_of_a_short_one(build):
  store = build(max_words=10)
  n = len(store)
  rows = passage_store.append_passages(
    store.directory, [Passage('a', '', '', ' '.join('w' * 22))], replace=True
  )
  store.reload()
  assert rows.tolist() == [n, n + 1, n + 2]
  found = store.find(['a'])
  assert found.rows[found.is_newest].tolist() == rows.tolist()
  assert found.rows[~found.is_newest].tolist() == [0]


def test_a_part_is_not_replaced_alone(build):
  store = build(max_words=10)
  with pytest.raises(ValueError, match="id 'g#1' belongs to another passage"):
    passage_store.append_passages(store.directory, [Passage('g#1', '', '', 'x')], replace=True)
  assert len(PassageStore.open(store.directory)) == len(store)


def test_nothing_was_replaced(build):
  store = build()
  assert store.superseded().tolist() == []
  passage_store.append_passages(store.directory, [Passage('n', '', '', 'x')])
  store.reload()
  assert store.superseded().tolist() == []


def test_rows_of_examples(build, caplog):
  store = build(shard_size=3, max_words=10)
  rows_of_ids = RowsOfIds(store)
  assert rows_of_ids([(), ()]) is None
  assert rows_of_ids([['b'], [], ['g', 'a']]).tolist() == [[1, -1, -1, -1], [-1] * 4, [6, 7, 8, 0]]
  assert not caplog.records
  # Unknown ones are said once.
  assert rows_of_ids([['nobody'], ['a', 'noone']]).tolist() == [[-1], [0]]
  assert rows_of_ids([['neither'], ['b']]).tolist() == [[-1], [1]]
  assert len(caplog.records) == 1 and "'nobody'" in caplog.text
  RowsOfIds(store, 'demonstrations', 'others are shown')([['noone'], ['a']])
  assert 'The demonstrations name passages' in caplog.text
  assert "'noone' (1 of the 2 demonstrations at hand); others are shown." in caplog.text
  # What was replaced is found in its new row once the store knows it.
  n = len(store)
  passage_store.append_passages(store.directory, [Passage('a', '', '', 'new')], replace=True)
  assert rows_of_ids([['a']]).tolist() == [[0]]
  store.reload()
  assert rows_of_ids([['a']]).tolist() == [[n]]
