"""What searches see of a generation and its edits, against a plain dict."""

import logging
import os

import numpy as np
import pytest

from retrieval_service import generation_writer, overlay
from retrieval_service.edits import Edit
from retrieval_service.generation_writer import EditBounds
from retrieval_service.generations import GenerationStore
from retrieval_service.index_builder import IndexBuilder
from retrieval_service.live_index import EmptyIndexError, LiveIndex
from retrieval_service.options import IndexOptions

DIM = 32


class Model:
  """What an index should hold: id -> vector."""

  def __init__(self, ids, vectors):
    self.vectors = dict(zip(ids, vectors.astype(np.float16)))

  def edit(self, ids, vectors, delete_ids):
    for passage in delete_ids:
      del self.vectors[passage]
    self.vectors.update(zip(ids, vectors.astype(np.float16)))

  def search(self, queries, k):
    ids = np.array(sorted(self.vectors))
    matrix = np.stack([self.vectors[i] for i in ids]).astype(np.float32)
    scores = np.stack([np.einsum('nd,d->n', matrix, query) for query in queries])
    best = np.argsort(-scores, axis=1, kind='stable')[:, :k]
    return ids[best], np.take_along_axis(scores, best, axis=1)

  def check(self, view, queries, k, least=1.0):
    """Compares answers; `least` is the share of the true best to be found."""
    assert view.count == len(self.vectors)
    ids, scores = self.search(queries, k)
    result = view.search(queries, k, return_embeddings=True)
    if least == 1.0:
      np.testing.assert_array_equal(result.ids, ids)
      np.testing.assert_allclose(result.scores, scores, rtol=1e-6)
    found = np.mean([len(set(a) & set(b)) / k for a, b in zip(result.ids, ids)])
    assert found >= least
    assert (np.diff(result.scores, axis=1) <= 0).all()
    for row in range(len(queries)):
      assert len(set(result.ids[row])) == k
      for passage, embedding in zip(result.ids[row], result.embeddings[row]):
        np.testing.assert_array_equal(embedding, self.vectors[passage])


def put(ids, vectors, delete_ids=(), **fields):
  return Edit(
    None if ids is None else np.asarray(ids, np.int64),
    np.asarray(vectors),
    np.asarray(delete_ids, np.int64),
    **fields,
  )


def delete(ids):
  return put([], np.zeros((0, DIM), np.float32), ids)


def write(store, ids, vectors, options=IndexOptions(), **settings):
  with generation_writer.begin(store, options, vectors.shape[1], **settings) as writer:
    writer.append(ids, vectors)
    return writer.commit()


def live(directory, ids, vectors, options=IndexOptions()):
  store = GenerationStore(directory)
  write(store, ids, vectors, options)
  return LiveIndex(store)


@pytest.mark.parametrize(
  'options,least',
  [
    (IndexOptions(), 1.0),
    (IndexOptions('pq', bytes_per_vector=8, rerank=300), 0.95),
    (IndexOptions('ivf_flat', nprobe=2), 0.5),
    (IndexOptions('HNSW16'), 0.8),
  ],
  ids=lambda value: getattr(value, 'index_type', None),
)
@pytest.mark.parametrize('shuffled', [False, True])
def test_random_edits(tmp_path, vectors, options, least, shuffled):
  rng = np.random.default_rng(0)
  data, pool = vectors(600, DIM), vectors(3000, DIM, seed=1)
  queries = vectors(8, DIM, seed=2)
  ids = rng.choice(5000, 600, replace=False) if shuffled else np.arange(600)
  index = live(tmp_path, ids if shuffled else None, data, options)
  model = Model(ids.tolist(), data)
  used = 0
  for _ in range(25):
    known = np.array(sorted(model.vectors))
    chosen = rng.choice(known, 14, replace=False)
    new = np.setdiff1d(rng.integers(0, 6000, 8), chosen)
    ids = np.concatenate([chosen[:6], new])
    part = pool[used : used + len(ids)]
    used += len(ids)
    edited = index.edit(put(ids, part, chosen[6:]))
    model.edit(ids.tolist(), part, chosen[6:].tolist())
    model.check(index.view(), queries, 10, least)
    assert edited.count == len(model.vectors)
  # Another process, or this one after a restart, sees the same.
  model.check(GenerationStore(tmp_path).open_live(), queries, 10, least)
  former = index.view()
  IndexBuilder(index).compact()
  compacted = index.view()
  assert compacted.number == 2 and not len(compacted.overlay.ids)
  assert not len(compacted.overlay.dead_rows)
  model.check(compacted, queries, 10, least)
  model.check(former, queries, 10, least)
  model.check(index.view(1), queries, 10, least)


def test_what_a_graph_misses_is_found_among_the_living(tmp_path, vectors):
  data = vectors(400, DIM)
  index = live(tmp_path, None, data, IndexOptions('HNSW2'))
  index.edit(delete(range(0, 400, 2)))
  result = index.view().search(data[:3], 200)
  assert (np.sort(result.ids, axis=1) == np.arange(1, 400, 2)).all()


def test_equal_scores_are_ordered_by_id_across_the_overlay(tmp_path, vectors):
  same = np.repeat(vectors(1, DIM), 6, axis=0)
  index = live(tmp_path, np.array([9, 4, 7, 1, 8, 3]), same)
  index.edit(put([2, 8, 0, 30], same[:4], [4]))
  result = index.view().search(same[:1], 8)
  assert result.ids.tolist() == [[0, 1, 2, 3, 7, 8, 9, 30]]


def test_everything_deleted_and_put_again(tmp_path, vectors):
  data = vectors(20, DIM)
  index = live(tmp_path, None, data)
  index.edit(delete(range(20)))
  assert index.view().count == 0
  with pytest.raises(ValueError, match='k=1 passages wanted .* holds 0'):
    index.view().search(data[:1], 1)
  with pytest.raises(ValueError, match='needs at least 1 vector'):
    IndexBuilder(index).compact()
  index.edit(put([3], data[:1]))
  assert index.view().search(data[:1], 1).ids.tolist() == [[3]]
  with pytest.raises(ValueError, match='k=2 passages wanted .* holds 1'):
    index.view().search(data[:1], 2)


@pytest.mark.parametrize(
  'edit,error,message',
  [
    (put([1, 1], np.zeros((2, DIM))), ValueError, 'id 1 occurs more than once'),
    (put([-1], np.zeros((1, DIM))), ValueError, 'not be negative, found -1'),
    (put([1, 2], np.zeros((1, DIM))), ValueError, r'ids of shape \[2\]'),
    (put([1], np.zeros((1, 9))), ValueError, 'dimension 9 and the index.* 32'),
    (put([1], np.full((1, DIM), np.nan)), ValueError, 'passage 1 holds a value'),
    (put([1], np.full((1, DIM), 1e6)), ValueError, 'passage 1 holds a value'),
    (put([1], np.zeros((1, DIM)), [1]), ValueError, 'both put and deleted'),
    (put([], np.zeros((0, DIM))), ValueError, 'no vectors to put or delete'),
    (put([50], np.zeros((1, DIM)), [3, 77]), LookupError, 'of id 77'),
  ],
)
def test_bad_edits_change_nothing(tmp_path, vectors, edit, error, message):
  data = vectors(20, DIM)
  index = live(tmp_path, None, data)
  index.edit(delete([4]))
  with pytest.raises(error, match=message):
    index.edit(edit)
  with pytest.raises(LookupError, match='of id 4 .*nothing was deleted'):
    index.edit(delete([4]))
  assert index.edits == 1 == GenerationStore(tmp_path).edit_log().last
  assert index.view().count == 19
  assert index.view().search(data[:1], 1).ids.tolist() == [[0]]


def test_only_new_ids_may_be_added(tmp_path, vectors):
  index = live(tmp_path, None, vectors(20, DIM))
  index.edit(put([90], np.zeros((1, DIM)), [3]))
  for known in (5, 90):
    with pytest.raises(ValueError, match=f'passage id {known} exists already'):
      index.edit(put([1000, known], np.zeros((2, DIM))), only_new_ids=True)
  index.edit(put([3], np.zeros((1, DIM))), only_new_ids=True)
  assert index.edits == 2


def test_ids_left_open_follow_on_and_are_never_used_twice(tmp_path, vectors):
  data = vectors(20, DIM)
  index = live(tmp_path, np.arange(20) * 10, data)
  assert index.next_id == 191
  assert index.edit(put(None, data[:3])).ids.tolist() == [191, 192, 193]
  index.edit(delete([193, 190]))
  assert index.edit(put(None, data[:1])).ids.tolist() == [194]
  write(index.store, np.arange(5), data[:5])  # a smaller corpus
  index.reload()
  index.store.prune(1)
  assert index.next_id == 195 == LiveIndex(GenerationStore(tmp_path)).next_id
  os.remove(tmp_path / 'edits.log')
  assert LiveIndex(GenerationStore(tmp_path)).next_id == 191


def test_a_repeated_edit_is_answered_not_redone(tmp_path, vectors):
  data = vectors(20, DIM)
  index = live(tmp_path, None, data)
  first = index.edit(put(None, data[:2], [3], edit_id='a'))
  for again in (index, LiveIndex(GenerationStore(tmp_path))):
    second = again.edit(put(None, data[:2], [3], edit_id='a'))
    assert second.edits == first.edits == again.edits == 1
    assert second.ids.tolist() == first.ids.tolist() == [20, 21]
    assert second.count == 21


def test_an_empty_index_cannot_be_edited(tmp_path):
  index = LiveIndex(GenerationStore(tmp_path))
  for work in (lambda: index.edit(delete([1])), index.view, IndexBuilder(index).compact):
    with pytest.raises(EmptyIndexError, match='is empty: build it first'):
      work()
  assert index.current is None
  assert GenerationStore(tmp_path).open_live() is None


def test_deletes_outlast_generations_until_the_id_is_put_again(tmp_path, vectors):
  data = vectors(20, DIM)
  index = live(tmp_path, None, data)
  index.edit(delete([3, 5]))
  write(index.store, None, -data)  # a refresh from a corpus that has them still
  index.reload()
  assert index.view().number == 2 and index.view().count == 18
  assert 3 not in index.view().search(-data[3:4], 18).ids
  index.edit(put([3], data[3:4]))
  assert index.view().search(data[3:4], 1).ids.tolist() == [[3]]
  assert index.view(1).search(data[3:4], 1).ids.tolist() == [[3]]
  write(index.store, None, -data)  # knows of that edit: its own vector holds
  index.reload()
  assert index.view().count == 19
  assert index.view().search(-data[3:4], 1).ids.tolist() == [[3]]
  assert 5 not in index.view().search(-data[5:6], 19).ids
  # ... but in the older generations the vector put does.
  assert index.view(2).search(data[3:4], 1).ids.tolist() == [[3]]


def test_vectors_put_outlast_generations_that_lack_them(tmp_path, vectors):
  data = vectors(30, DIM)
  index = live(tmp_path, None, data[:20])
  index.edit(put([7, 25], data[20:22]))
  builder = IndexBuilder(index)
  builder.build([(None, data[:20])], DIM, IndexOptions())
  assert index.view().number == 2 and index.view().count == 21
  # The generation's own passage 7 holds, and 25 is carried over.
  assert index.view().search(data[7:8], 1).ids.tolist() == [[7]]
  assert index.view().search(data[21:22], 1).ids.tolist() == [[25]]
  # Compacted it is in the generation, and still is in the next.
  builder.compact()
  assert not index.view().overlay.count and index.view().generation.count == 21
  builder.build([(None, data[:20])], DIM, IndexOptions())
  assert index.view().search(data[21:22], 1).ids.tolist() == [[25]]


def test_a_build_that_began_before_an_edit_gives_way_to_it(tmp_path, vectors):
  data = vectors(30, DIM)
  index = live(tmp_path, None, data[:20])
  began = index.edits
  index.edit(put([7], data[20:21], metadata={'a': 2}))
  IndexBuilder(index).build(
    [(None, data[:20])], DIM, IndexOptions(), {'a': 1, 'b': 1}, edits_applied=began
  )
  assert index.view().search(data[20:21], 1).ids.tolist() == [[7]]
  assert index.view().metadata == {'a': 2, 'b': 1}
  IndexBuilder(index).build([(None, data[:20])], DIM, IndexOptions(), {'a': 1})
  assert index.view().search(data[7:8], 1).ids.tolist() == [[7]]
  assert index.view().metadata == {'a': 1}
  with pytest.raises(ValueError, match='edits_applied=9 .* up to 1'):
    IndexBuilder(index).build([(None, data)], DIM, IndexOptions(), edits_applied=9)


def test_another_corpus_can_forget_the_edits(tmp_path, vectors):
  data = vectors(30, DIM)
  index = live(tmp_path, None, data[:20])
  index.edit(put([25], data[20:21], [3]))
  builder = IndexBuilder(index)
  builder.build([(None, -data[:20])], DIM, IndexOptions(), forget_edits=True)
  assert index.view().count == 20
  assert index.view().search(-data[3:4], 1).ids.tolist() == [[3]]
  assert index.view(1).count == 20 and 3 not in index.view(1).search(data[3:4], 20).ids
  index.edit(delete([4]))
  for work in (builder.compact, lambda: builder.build([(None, -data[:20])], DIM, IndexOptions())):
    work()
    assert index.view().count == 19
    assert index.view().search(-data[3:4], 1).ids.tolist() == [[3]]
    assert 4 not in index.view().search(-data[4:5], 19).ids


def test_vectors_of_another_dimension_are_left_out(tmp_path, vectors, caplog):
  data, other = vectors(20, DIM), vectors(20, 16)
  index = live(tmp_path, None, data)
  index.edit(put([7, 25], data[:2], [3]))
  index.edit(put([26], data[:1]))
  write(index.store, np.arange(10), other[:10], edits=EditBounds(applied=0))
  with caplog.at_level(logging.WARNING):
    index.reload()
  assert '3 vectors put by edits have dimension 32' in caplog.text
  assert index.view().count == 9
  assert index.view().search(other[7:8], 1).ids.tolist() == [[7]]
  index.edit(put([8, 30], other[10:12], [2]))
  assert index.view().search(other[10:11], 1).ids.tolist() == [[8]]
  assert index.view().count == 9
  # The older generation goes without them, with the delete.
  assert index.view(1).search(data[8:9], 1).ids.tolist() == [[8]]
  assert 2 not in index.view(1).search(data[2:3], 20).ids
  assert index.view(1).count == 20


def test_a_grown_index_gets_the_type_it_was_too_small_for(tmp_path, vectors):
  data = vectors(350, DIM)
  index = live(tmp_path, None, data[:50], IndexOptions('pq', bytes_per_vector=8))
  assert index.view().generation.manifest.fallback
  index.edit(put(None, data[50:]))
  view = IndexBuilder(index).compact()
  assert view.generation.manifest.factory == 'PQ8np'
  assert view.generation.ids is None and view.count == 350
  np.testing.assert_array_equal(view.generation.embeddings, data.astype(np.float16))


def test_a_compacted_generation_keeps_the_order(tmp_path, vectors):
  data = vectors(40, DIM)
  index = live(tmp_path, np.arange(20) * 3, data[:20])
  index.edit(put([100, 30, 61, 6], data[20:24], [0, 33]))
  index.edit(put([30], data[30:31], [100], metadata={'a': 1}))
  view = IndexBuilder(index).compact()
  expected = [i for i in range(3, 60, 3) if i != 33] + [61]
  assert view.generation.ids.tolist() == expected
  for passage, source in ((3, 1), (6, 23), (30, 30), (61, 22), (57, 19)):
    np.testing.assert_array_equal(
      view.generation.embeddings[expected.index(passage)], data[source].astype(np.float16)
    )
  assert view.metadata == {'a': 1} and view.edits == 2
  assert view.generation.manifest.edits_applied == 2


def test_a_named_build_is_found_among_all_generations(tmp_path, vectors):
  data = vectors(20, DIM)
  index = LiveIndex(GenerationStore(tmp_path))
  builder = IndexBuilder(index, keep_generations=3)
  for name in ('a', 'b', 'c'):
    builder.build([(None, data)], DIM, IndexOptions(), build_id=name)
  assert builder.build([], DIM, IndexOptions(), build_id='b').number == 2
  assert index.view().number == 2 == GenerationStore(tmp_path).current()
  os.truncate(os.path.join(index.store.folder(3), 'index.faiss'), 5)
  assert builder.build([(None, data)], DIM, IndexOptions(), build_id='c').number == 4


def test_other_processes_edits_are_seen(tmp_path, vectors):
  data = vectors(30, DIM)
  one = live(tmp_path, None, data[:20])
  other = LiveIndex(GenerationStore(tmp_path))
  one.edit(delete([3]))
  other.edit(put([20], data[20:21]))  # with its own edit it sees the first
  assert other.view().count == 20 and other.edits == 2
  # A search that starts after another's edit sees it, unasked.
  assert one.view().count == 20
  other.edit(delete([4]))
  assert one.view().count == 19 and 4 not in one.view().search(data[4:5], 19).ids
  assert one.view().search(data[20:21], 1).ids.tolist() == [[20]]


def test_absent_passages_are_deleted_where_they_are(tmp_path, vectors):
  """One that is in an older generation alone, and one that is yet to come."""
  data = vectors(30, DIM)
  index = live(tmp_path, None, data[:20])
  builder = IndexBuilder(index)
  builder.build([(np.arange(1, 20), data[1:20])], DIM, IndexOptions())
  assert index.missing(np.array([0, 5, 25])).tolist() == [0, 25]
  with pytest.raises(LookupError, match='no passage of id 0'):
    index.edit(delete([0, 5, 25]))
  edited = index.edit(delete([0, 5, 25]), delete_absent=True)
  assert edited.absent_ids.tolist() == [0, 25]
  assert index.view().count == 18 and index.view(1).count == 18
  assert 0 not in index.view(1).search(data[:1], 18).ids
  builder.build([(None, data)], DIM, IndexOptions(), edits_applied=0)
  assert index.view().count == 27
  for passage in (0, 5, 25):
    assert passage not in index.view().search(data[passage : passage + 1], 27).ids


def test_a_view_never_changes(tmp_path, vectors):
  """Not by edits, nor when the overlay's buffer grows or is rebuilt."""
  data, queries = vectors(400, DIM), vectors(4, DIM, seed=1)
  index = live(tmp_path, None, data[:50])
  kept = []
  for number in range(30):
    index.edit(put(np.arange(number * 3, number * 3 + 60) % 130, data[number : number + 60]))
    view = index.view()
    kept.append((view, view.count, view.search(queries, 20, True)))
  for view, count, expected in kept:
    again = view.search(queries, 20, True)
    assert view.count == count
    for name in ('ids', 'scores', 'embeddings'):
      np.testing.assert_array_equal(getattr(again, name), getattr(expected, name))


def test_replacing_over_and_over_does_not_grow_the_overlay(tmp_path, vectors, monkeypatch):
  monkeypatch.setattr(overlay, '_LEAST_REBUILD', 40)
  data = vectors(400, DIM)
  index = live(tmp_path, None, data[:50])
  model = Model(range(50), data[:50])
  for number in range(60):
    ids = np.arange(5) + number % 7
    index.edit(put(ids, data[number : number + 5]))
    model.edit(ids.tolist(), data[number : number + 5], [])
    model.check(index.view(), data[:2], 5)
  assert len(index.view().overlay.ids) < 60
  assert index.view().overlay.count == 11


def test_an_edit_that_failed_half_way_is_made_good(tmp_path, vectors, monkeypatch):
  data = vectors(30, DIM)
  index = live(tmp_path, None, data[:20])

  def exhausted(*arguments):
    raise MemoryError

  with monkeypatch.context() as patched:
    patched.setattr(overlay, '_longer', exhausted)
    with pytest.raises(MemoryError):
      index.edit(put([3], data[20:21], edit_id='a'))
  assert index.edit(put([3], data[20:21], edit_id='a')).edits == 1
  assert index.view().search(data[20:21], 1).ids.tolist() == [[3]]
  assert index.view().count == 20
