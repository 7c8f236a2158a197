import logging

import numpy as np
import pytest

from retrieval_service import faiss_building, faiss_index, generation_writer
from retrieval_service.faiss_building import IndexPlan
from retrieval_service.generations import GenerationStore
from retrieval_service.options import IndexOptions

# Options and the least share of the true best 10 that they must find.
INDEXES = [
  (IndexOptions(), 1.0),
  (IndexOptions('pq', bytes_per_vector=8), 0.97),
  (IndexOptions('pq', bytes_per_vector=4, opq=True, train_size=300), 0.8),
  (IndexOptions('ivf_flat'), 0.97),
  (IndexOptions('ivf_pq', bytes_per_vector=8), 0.95),
  (IndexOptions('PCAR16,SQ4'), 0.9),
  (IndexOptions('PCAR16,IVF16,PQ8np', nprobe=8), 0.9),
  (IndexOptions('PQ8x4fs'), 0.9),
  (IndexOptions('HNSW16'), 0.8),
]


@pytest.mark.parametrize(
  'options,least', INDEXES, ids=lambda value: getattr(value, 'index_type', None)
)
def test_recall_against_exact_search(tmp_path, vectors, options, least):
  data, queries = vectors(2000), vectors(50, seed=1)
  store = GenerationStore(tmp_path)
  with generation_writer.begin(store, options, 32) as writer:
    writer.append(None, data)
    writer.commit()
  result = store.open_current().search(queries, 10)
  stored = data.astype(np.float16).astype(np.float32)
  scores = queries @ stored.T
  true_ids = np.argsort(-scores, axis=1, kind='stable')[:, :10]
  recall = np.mean([len(set(found) & set(true)) / 10 for found, true in zip(result.ids, true_ids)])
  assert recall >= least
  # Whatever was found carries its exact score, best first.
  np.testing.assert_allclose(
    result.scores, np.take_along_axis(scores, result.ids, axis=1), rtol=1e-5
  )
  assert (np.diff(result.scores, axis=1) <= 0).all()


def test_flat_equals_exact_search_at_any_batch_size(tmp_path, vectors):
  data, queries = vectors(500), vectors(64, seed=1)
  store = GenerationStore(tmp_path)
  with generation_writer.begin(store, IndexOptions(), 32) as writer:
    writer.append(None, data)
    writer.commit()
  generation = store.open_current()
  whole = generation.search(queries, 20)
  one = generation.search(queries[:1], 20)
  np.testing.assert_array_equal(whole.ids[:1], one.ids)
  np.testing.assert_array_equal(whole.scores[:1], one.scores)
  _, rows = faiss_index.exact_search(data.astype(np.float16), queries, 20, chunk_rows=77)
  np.testing.assert_array_equal(whole.ids, rows)


def test_equal_scores_are_ordered_by_id(tmp_path, vectors):
  store = GenerationStore(tmp_path)
  same = np.repeat(vectors(1), 6, axis=0)
  with generation_writer.begin(store, IndexOptions(), 32) as writer:
    writer.append(np.array([9, 4, 7, 1, 8, 3]), same)
    writer.commit()
  result = store.open_current().search(same[:1], 4)
  assert result.ids.tolist() == [[1, 3, 4, 7]]


def test_without_reranking_scores_are_the_index_s_own(tmp_path, vectors):
  data = vectors(1000)
  store = GenerationStore(tmp_path)
  options = IndexOptions('pq', bytes_per_vector=4, rerank=0)
  with generation_writer.begin(store, options, 32) as writer:
    writer.append(None, data)
    number = writer.commit()
  approximate = store.open(number).search(data[:5], 3)
  exact = store.open(number, rerank=50).search(data[:5], 3)
  assert not np.allclose(approximate.scores, exact.scores, rtol=1e-4)
  assert exact.ids[:, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
  'factory',
  [
    'IVF16,Flat',
    'IVF16,PQ8np',
    'PCAR16,IVF16,Flat',
    'IVF16,PQ8np,RFlat',
    'OPQ4_16,IVF16,PQ4np',
    'IVF16,SQ8',
    'IVF16,PQ8x4fs',
  ],
)
def test_few_visited_lists_still_give_k_passages(tmp_path, vectors, factory):
  data = vectors(800)
  index = faiss_building.new_index(factory, 32)
  index.train(data[:300])
  index.add(data)
  ivf = faiss_index.inverted_lists(index)
  ivf.nprobe = 1
  assert (index.search(data[:3], 800)[1][:, 700] < 0).all()
  _, rows = faiss_index.find_candidates(index, data[:3], 800, 800)
  assert (np.sort(rows, axis=1) == np.arange(800)).all()
  assert ivf.nprobe == 1


def test_what_a_graph_misses_is_found_by_exact_search(tmp_path, vectors):
  data = vectors(800)
  store = GenerationStore(tmp_path)
  with generation_writer.begin(store, IndexOptions('HNSW2'), 32) as writer:
    writer.append(None, data)
    writer.commit()
  result = store.open_current().search(data[:3], 800)
  assert (np.sort(result.ids, axis=1) == np.arange(800)).all()


@pytest.mark.parametrize(
  'factory', ['Flat', 'PQ8np', 'IVF16,Flat', 'IVF16,PQ8np', 'SQ8', 'PQ8x4fs']
)
def test_dropped_rows_never_shorten_an_answer(vectors, factory):
  """All of the best are dead: FAISS has to be asked again and again."""
  data, queries = vectors(2000), vectors(4, seed=1)
  index = faiss_building.new_index(factory, 32)
  index.train(data)
  index.add(data)
  if ivf := faiss_index.inverted_lists(index):
    ivf.nprobe = 1
  _, ranked = index.search(queries[:1], 2000)
  for number_dead in (1, 50, 700, 1500, 1990):
    dead = np.sort(ranked[0, :number_dead])
    if number_dead > 1000:  # the visited list holds no more
      dead = np.arange(number_dead)
    num = min(100, 2000 - number_dead)
    least = min(10, num)
    scores, rows = faiss_index.find_live_candidates(index, queries, num, least, dead)
    assert rows.shape == scores.shape == (4, num)
    assert (rows[:, :least] >= 0).all()
    assert not np.isin(rows, dead).any()
    for row in rows:
      assert len(set(row[row >= 0])) == (row >= 0).sum()
    if ivf is None:
      assert (rows >= 0).all()
    if factory == 'Flat':
      _, expected = faiss_index.exact_search(data, queries, num, dead=dead)
      np.testing.assert_array_equal(rows, expected)


def test_plans():
  plan = faiss_building.plan_index
  assert plan(IndexOptions('pq'), 768, 10**6).factory == 'PQ64np'
  assert plan(IndexOptions('pq', opq=True), 768, 10**6).factory == ('OPQ64_256,PQ64np')
  million = plan(IndexOptions('ivf_flat'), 768, 10**6)
  assert million.factory == 'IVF4000,Flat'
  assert million.train_size >= 39 * 4000
  assert plan(IndexOptions('ivf_flat'), 768, 1000).factory == 'IVF25,Flat'
  sampled = plan(IndexOptions('ivf_pq', train_size=3900), 768, 10**6)
  assert sampled == IndexPlan('IVF100,PQ64np', 3900)


def test_tiny_corpus_falls_back_to_flat_and_says_so(vectors, caplog):
  with caplog.at_level(logging.WARNING):
    index, plan = faiss_building.build_index(vectors(100), IndexOptions('pq', bytes_per_vector=8))
  assert plan.factory == 'Flat' and plan.fallback and index.ntotal == 100
  assert 'needs at least 256 training vectors and has 100' in caplog.text


@pytest.mark.parametrize(
  'options,message',
  [
    (IndexOptions('PQ8np'), '100 vectors cannot train'),
    (IndexOptions('Bogus12'), 'could not parse index string Bogus12'),
    (IndexOptions('LSH'), 'not a FAISS factory string for inner product'),
    (IndexOptions('ivf_flat', nlist=101), 'nlist=101 needs at least'),
  ],
)
def test_indexes_that_cannot_be(vectors, options, message):
  with pytest.raises(ValueError, match=message):
    faiss_building.build_index(vectors(100), options)


def test_code_size_must_divide_the_dimension(vectors):
  with pytest.raises(ValueError, match=r'=5 does not divide the dimension 32'):
    faiss_building.build_index(vectors(300), IndexOptions('pq', bytes_per_vector=5))


@pytest.mark.parametrize(
  'fields,name',
  [
    ({'index_type': ''}, 'index_type'),
    ({'nprobe': 0}, 'nprobe'),
    ({'rerank': -1}, 'rerank'),
    ({'bytes_per_vector': None}, 'bytes_per_vector'),
    ({'train_size': 1.5}, 'train_size'),
  ],
)
def test_bad_options_name_the_field(fields, name):
  with pytest.raises(ValueError, match=name):
    IndexOptions(**fields)
  with pytest.raises(ValueError, match='unknown index option nprobes'):
    IndexOptions.from_dict({'nprobes': 3})
