"""What an example must not see is never handed back, and the rest is found.

A real retrieval process over a socket, compared with NumPy on the raw fields.
"""

import numpy as np
import pytest

from ralm_jax.data import dates
from ralm_jax.data.corpus import passage_ids
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.retrieval import connect, retriever as retriever_lib
from ralm_jax.retrieval.augmenter import Shown
from ralm_jax.retrieval.index_source import IndexSource
from tests import tiny
from tests.retrieval import filter_world

SearchFilter = retriever_lib.SearchFilter


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  return filter_world.make_world(tmp_path_factory.mktemp('filters'))


@pytest.fixture(scope='module')
def client(world):
  with connect.connect(IndexSource(world.folder, threads=1)) as connected:
    yield connected.client


def test_the_first_are_all_dropped(world, client):
  """Queries whose nearest passages are of the one document they exclude."""
  recording = filter_world.Recording(client)
  retriever = filter_world.retriever(recording, world, search_filter=SearchFilter('document'))
  queries = world.centres
  excluded = filter_world.one_of_each_document(world)[:, None]
  plain = client.search(queries, 10).ids
  assert np.all(world.store.documents(plain) == world.store.documents(excluded))
  found = retriever.search(queries, excluded)
  filter_world.check(
    world, found, queries, 5, [filter_world.hidden(world, 'document', rows) for rows in excluded]
  )
  # Twice as many as wanted at first, and then deeper.
  assert recording.depths[:2] == [10, 20] and np.all(found.rows >= 0)


def test_only_who_is_short_is_searched_again(world, client):
  recording = filter_world.Recording(client)
  retriever = filter_world.retriever(recording, world, search_filter=SearchFilter('document'))
  queries = np.repeat(world.centres[:1], 4, axis=0)
  row = world.store.rows_of(['p0'])[0]
  excluded = np.array([[-1], [row], [-1], [-1]])
  found = retriever.search(queries, excluded)
  filter_world.check(
    world, found, queries, 5, [filter_world.hidden(world, 'document', rows) for rows in excluded]
  )
  assert recording.batches[0] == 4 and set(recording.batches[1:]) == {1}
  # And nobody where nothing is hidden: no more than wanted.
  for nothing in (None, np.full((4, 2), -1), np.zeros((4, 0), np.int64)):
    recording.depths.clear()
    retriever.search(queries, nothing, np.full(4, retriever_lib.NO_DATE_BOUND, np.int32))
    assert recording.depths == [5]


@pytest.mark.parametrize('by', ['passage', 'document', 'none'])
def test_documents_by_name(world, client, by):
  """Whatever the filter but 'none'; names that the corpus lacks hide nothing."""
  retriever = filter_world.retriever(client, world, search_filter=SearchFilter(by))
  queries = world.centres[:3]
  names = [['title 0', 'nobody'], [], ['title 5', 'title 2']]
  keys = passage_ids.keys_of_documents(names)
  assert keys.dtype == np.int64 and keys[1].tolist() == [0, 0]
  found = retriever.search(queries, None, None, keys)
  filter_world.check(
    world,
    found,
    queries,
    5,
    [
      lambda row, names=some: by != 'none' and world.fields[row]['title'] in names for some in names
    ],
  )
  # Together with what else is hidden.
  excluded = np.array([[-1], [world.store.rows_of(['p1'])[0]], [-1]])
  found = retriever.search(queries, excluded, exclude_document_keys=keys)
  filter_world.check(
    world,
    found,
    queries,
    5,
    [
      lambda row, i=i: (
        filter_world.hidden(world, by, excluded[i])(row)
        or by != 'none'
        and world.fields[row]['title'] in names[i]
      )
      for i in range(3)
    ],
  )


def test_too_few_remain(world, client):
  """Two passages of one document are left; or none at all."""
  retriever = filter_world.retriever(client, world, search_filter=SearchFilter('document'))
  rows = filter_world.one_of_each_document(world)
  queries = world.centres[:3]
  excluded = np.full((3, filter_world.DOCUMENTS), -1)
  excluded[0], excluded[1, 1:] = rows, rows[1:]
  found = retriever.search(
    queries,
    excluded,
    np.array([dates.NO_DATE_BOUND, dates.first_day('2006'), dates.NO_DATE_BOUND], np.int32),
  )
  hiddens = [
    filter_world.hidden(world, 'document', excluded[0]),
    filter_world.hidden(world, 'document', excluded[1], dates.first_day('2006')),
    filter_world.hidden(world, 'document', excluded[2]),
  ]
  assert [len(filter_world.best_rows(world, q, 5, h)) for q, h in zip(queries, hiddens)] == [
    0,
    2,
    5,
  ]
  filter_world.check(world, found, queries, 5, hiddens)
  assert np.all(found.rows[0] == -1) and np.all(found.scores[0] == -np.inf)


def test_parts_of_an_excluded_passage(world, client):
  """Whichever part is named, no other is handed back."""
  parts = world.store.rows_of(['p3', 'p3#1', 'p3#2'])
  queries = np.repeat(world.centres[3:4], 3, axis=0)
  retriever = filter_world.retriever(client, world, n_passages=8)
  assert set(parts) & set(retriever.search(queries).rows[0])
  found = retriever.search(queries, parts[:, None])
  filter_world.check(
    world, found, queries, 8, [filter_world.hidden(world, 'passage', [row]) for row in parts]
  )
  # Its neighbours are not its parts.
  assert np.all(world.store.documents(found.rows[:, 0]) == world.store.documents(parts))


@pytest.mark.parametrize(
  'bound', ['1999', '2000-01-31', '2004-05-30', '2004-05-31', '2010', '2016-12-31', '9999']
)
def test_dates(world, client, bound):
  retriever = filter_world.retriever(client, world)
  day = dates.first_day(bound)
  queries = world.centres
  found = retriever.search(queries, None, np.full(len(queries), day, np.int32))
  filter_world.check(
    world, found, queries, 5, [filter_world.hidden(world, 'passage', (), day)] * len(queries)
  )
  there = found.rows[found.rows >= 0]
  assert np.all(world.store.dates(there) <= day)
  assert len(there) == (0 if bound == '1999' else there.size)


def test_a_corpus_without_dates(world, client, tmp_path):
  """Nothing could be shown, which is said and not done."""
  store = PassageStore.open(world.store.directory)
  store.has_dates = lambda: False
  retriever = filter_world.retriever(client, world, store=store)
  bounds = np.full(1, dates.first_day('2010'), np.int32)
  with pytest.raises(ValueError, match="no passage .* has one.*'date'"):
    retriever.search(world.centres[:1], None, bounds)
  retriever.search(world.centres[:1], None, np.full(1, retriever_lib.NO_DATE_BOUND, np.int32))
  unfiltered = filter_world.retriever(
    client, world, store=store, search_filter=SearchFilter('none')
  )
  assert np.all(unfiltered.search(world.centres[:1], None, bounds).rows >= 0)


def test_anything_at_all(world, client):
  """Random questions, exclusions and bounds against brute force."""
  generator = np.random.default_rng(1)
  for trial in range(60):
    by = ('passage', 'document', 'none')[trial % 3]
    n = int(generator.integers(1, 12))
    batch = int(generator.integers(1, 6))
    ratio = float(generator.choice([1.0, 1.3, 2.0, 5.0]))
    retriever = filter_world.retriever(
      client,
      world,
      n_passages=n,
      search_filter=SearchFilter(by, ratio),
      return_embeddings=bool(trial % 2),
    )
    queries = world.centres[generator.integers(0, filter_world.DOCUMENTS, batch)]
    queries = queries + 0.3 * generator.standard_normal(queries.shape).astype(np.float32)
    excluded = bounds = None
    if generator.random() < 0.8:
      excluded = generator.integers(-1, len(world.store), (batch, int(generator.integers(0, 15))))
    if generator.random() < 0.5:
      bounds = generator.choice(
        [
          retriever_lib.NO_DATE_BOUND,
          dates.first_day('2001'),
          dates.first_day('2008'),
          dates.first_day('2015'),
        ],
        batch,
      ).astype(np.int32)
    found = retriever.search(queries, excluded, bounds)
    hiddens = [
      filter_world.hidden(
        world,
        by,
        () if excluded is None else excluded[i],
        None if bounds is None or bounds[i] == retriever_lib.NO_DATE_BOUND else bounds[i],
      )
      for i in range(batch)
    ]
    filter_world.check(world, found, queries, n, hiddens)
    for row, hidden in zip(found.rows, hiddens):
      assert not any(hidden(int(one)) for one in row if one >= 0)
    if trial % 2:
      there = found.rows >= 0
      np.testing.assert_array_equal(found.embeddings[there], world.embeddings[found.rows[there]])
      assert not np.any(found.embeddings[~there])
      assert found.embeddings.dtype == np.float16
    else:
      assert found.embeddings is None


def test_the_deepest_search(world, client, caplog):
  """Where it is not enough the rest is empty, and the log says so once."""
  retriever = filter_world.retriever(
    client, world, search_filter=SearchFilter('document', max_candidates=13)
  )
  excluded = world.store.rows_of(['p0'])[None]
  for _ in range(2):
    found = retriever.search(world.centres[:1], excluded)
    rows = client.search(world.centres[:1], 13).ids[0]
    kept = [row for row in rows if not filter_world.hidden(world, 'document', excluded[0])(row)]
    assert 0 < len(kept) < 5
    assert found.rows[0].tolist() == kept + [-1] * (5 - len(kept))
  assert len(caplog.records) == 1 and 'max_candidates' in caplog.text
  # But never less deep than what is wanted without a filter.
  retriever = filter_world.retriever(
    client, world, search_filter=SearchFilter('document', max_candidates=1)
  )
  assert np.all(retriever.search(world.centres[:1]).rows >= 0)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'by': 'title'}, "by 'title' must be one of passage, document, none"),
    ({'overretrieve_ratio': 0.5}, 'at least 1, not 0.5'),
  ],
)
def test_bad_filters(options, message):
  with pytest.raises(ValueError, match=message):
    SearchFilter(**options)


def test_bad_queries_are_complained_of(world, client):
  retriever = filter_world.retriever(client, world)
  with pytest.raises(ValueError, match='not finite'):
    retriever.search(np.full((1, filter_world.DIM), np.nan, np.float32))


def test_training_honours_what_examples_exclude(tmp_path):
  """From the question file through task, iterator and search to the reader."""
  data = tiny.make_data(tmp_path)
  rows = [q | {'exclude_passage_ids': [q['gold_passage_id']]} for q in tiny.questions()]
  shown = []

  def record(queries, found, step):
    del step
    shown.append((queries, found))
    return Shown(queries, found)

  tiny.train(
    data,
    tmp_path / 'run',
    steps=2,
    augmentation=record,
    questions=tiny.write_jsonl(tmp_path / 'q.jsonl', rows),
    text={'n_passages': 20},
  )
  assert len(shown) >= 2
  for queries, found in shown:
    assert found.shape == (4, 20) and np.all(found >= 0)
    # Each question's gold passage is the one it excludes.
    np.testing.assert_array_equal(queries.exclude_rows, queries.gold_rows)
    assert np.all(queries.exclude_rows >= 0)
    assert not np.any(found == queries.exclude_rows)
