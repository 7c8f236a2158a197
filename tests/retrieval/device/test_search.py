"""The search program on a mesh of eight fake devices, against NumPy."""

import re

import jax
from jax.sharding import NamedSharding, PartitionSpec
import ml_dtypes
import numpy as np
import pytest

from ralm_jax.retrieval.device import search as device_search
from ralm_jax.retrieval.device.search import DeviceOptions, DeviceSearch, Layout, Rows, TopK
from ralm_jax.training.partitioning import Partitioner
from tests.retrieval.device.brute_force import DIM, MESHES, as_kept, build, exact, queries, vectors


@pytest.fixture(params=MESHES)
def mesh(request) -> Partitioner:
  return MESHES[request.param]


# Fewer rows than devices, a block and a row, several blocks, whole blocks.
@pytest.mark.parametrize('count', [3, 129, 333, 1024])
@pytest.mark.parametrize('dtype', device_search.DTYPES)
def test_is_exhaustive_search(mesh, dtype, count, tmp_path):
  stored, wanted = vectors(count), queries()
  k = min(count, 7)
  with build(tmp_path, stored, mesh, dtype=dtype, block_rows=16) as index:
    found = index.search(wanted, k, return_embeddings=True)
  ids, scores = exact(as_kept(stored, dtype), wanted, k)
  np.testing.assert_array_equal(found.ids, ids)
  np.testing.assert_allclose(found.scores, scores, rtol=2e-6, atol=2e-6)
  np.testing.assert_array_equal(found.embeddings, stored[ids])
  assert found.ids.dtype == np.int64 and found.scores.dtype == np.float32
  assert found.embeddings.dtype == np.float16 and found.generation == 1


@pytest.mark.parametrize('batch', [1, 8, 11])
def test_batches_of_any_size(mesh, batch, tmp_path):
  stored, wanted = vectors(200), queries(batch)
  with build(tmp_path, stored, mesh) as index:
    found = index.search(wanted, 20)
  ids, _ = exact(as_kept(stored, 'bfloat16'), wanted, 20)
  np.testing.assert_array_equal(found.ids, ids)


def test_queries_keep_float32_where_units_multiply_bfloat16(mesh):
  """Split into parts, as accelerators search, the scores are just as exact."""
  stored, wanted = vectors(100, dim=256), queries(dim=256)
  search = DeviceSearch(mesh, DeviceOptions(block_rows=16))
  base, added = search.layout(100), search.layout(1)
  wanted_rows = TopK(10, (base.blocks, added.blocks))
  arguments = dict(mesh=mesh.mesh, recall_target=0.9, split_queries=True)
  rows = search.put(base, stored), search.put(added, stored[:0])
  found = mesh.partition(lambda q, b, a: device_search.search(q, b, a, wanted_rows, **arguments))(
    search.put_queries(wanted)[0], *rows
  )
  ids, scores = exact(as_kept(stored, 'bfloat16'), wanted, 10)
  np.testing.assert_array_equal(found.rows, ids)
  np.testing.assert_allclose(found.scores, scores, rtol=2e-6, atol=1e-5)


def test_equal_scores_come_by_id(mesh, tmp_path):
  stored = np.repeat(vectors(40), 3, axis=0)
  ids = np.random.default_rng(0).permutation(1000)[:120]
  with build(tmp_path, stored, mesh, ids=ids, block_rows=16) as index:
    found = index.search(queries(), 30)
  assert (np.diff(found.scores) <= 0).all()
  tie = np.diff(found.scores) == 0
  assert tie.sum() >= 5 * 20
  assert (np.diff(found.ids)[tie] > 0).all()
  ranked, _ = exact(as_kept(stored[::3], 'bfloat16'), queries(), 10)
  np.testing.assert_array_equal(
    found.ids, np.sort(ids.reshape(40, 3), axis=1)[ranked].reshape(5, 30)
  )


def test_approximate_search_is_valid(mesh, tmp_path):
  stored, wanted = vectors(500), queries()
  with build(tmp_path, stored, mesh, approximate=True, recall_target=0.8, block_rows=32) as index:
    found = index.search(wanted, 20)
    everything = index.search(wanted, 500)
  kept = as_kept(stored, 'bfloat16')
  ids, _ = exact(kept, wanted, 20)
  hits = [len(set(a) & set(b)) for a, b in zip(found.ids, ids)]
  assert np.mean(hits) / 20 >= 0.8
  np.testing.assert_allclose(
    found.scores,
    np.take_along_axis(wanted.astype(np.float64) @ kept.T, found.ids, 1),
    rtol=2e-6,
    atol=2e-6,
  )
  assert (np.sort(everything.ids) == np.arange(500)).all()


def test_approximation_that_comes_short_gives_way_to_exact_search(tmp_path, monkeypatch):
  """A TPU's approximation may lose rows that share a bin; stood in for here."""

  def lossy(operand, k, **unused):
    values, places = jax.lax.top_k(operand, k)
    return jax.numpy.where(places % 2, -np.inf, values), places

  monkeypatch.setattr(jax.lax, 'approx_max_k', lossy)
  stored, wanted = vectors(50), queries()
  with build(tmp_path, stored, approximate=True) as index:
    found = index.search(wanted, 40)
  ids, _ = exact(as_kept(stored, 'bfloat16'), wanted, 40)
  np.testing.assert_array_equal(found.ids, ids)


def test_only_the_best_of_each_shard_travel(mesh):
  """No collective moves more than [shards, batch, k]; embeddings stay."""
  search = DeviceSearch(mesh, DeviceOptions(block_rows=4096))
  base, added = search.layout(70_000), search.layout(1024)
  rows = [
    Rows(
      *(
        jax.ShapeDtypeStruct(
          shape, dtype, sharding=NamedSharding(mesh.mesh, PartitionSpec(('data', 'model')))
        )
        for shape, dtype in (((layout.rows, 64), 'bfloat16'), ((layout.rows,), 'bool'))
      )
    )
    for layout in (base, added)
  ]
  text = (
    search.search.lower(
      search.put_queries(queries(8, dim=64))[0], *rows, wanted=TopK(32, (base.blocks, added.blocks))
    )
    .compile()
    .as_text()
  )
  results = re.findall(
    r'= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute|'
    r'collective-broadcast|reduce-scatter|ragged-all-to-all)(?:-start)?\(',
    text,
  )
  moved = [shape for result in results for shape in re.findall(r'(\w+)\[([\d,]*)\]', result)]
  assert sorted(moved) == [('f32', f'{mesh.mesh.size},8,32'), ('s32', f'{mesh.mesh.size},8,32')]
  # Nor is there a score for each row at any time.
  assert base.blocks > 1 and f'f32[8,{base.block}]' in text
  assert f'f32[8,{base.blocks * base.block}]' not in text


class Watched:
  """An array on disk that remembers how many rows are read at a time."""

  def __init__(self, stored: np.ndarray):
    self._stored = stored
    self.shape = stored.shape
    self.read: list[int] = []

  def __getitem__(self, rows: slice) -> np.ndarray:
    self.read.append(len(self._stored[rows]))
    return self._stored[rows]


def test_rows_lie_on_all_devices_and_are_read_a_share_at_a_time(mesh):
  stored, devices = vectors(100), mesh.mesh.size
  search = DeviceSearch(mesh)
  share = search.layout(100).rows // devices
  watched = Watched(stored)
  rows = search.put(search.layout(100), watched)
  assert len(watched.read) == devices and sum(watched.read) == 100
  assert max(watched.read) <= share
  shards = rows.embeddings.addressable_shards
  assert {shard.device for shard in shards} == set(mesh.mesh.devices.flat)
  assert {shard.data.shape for shard in shards} == {(share, DIM)}
  assert rows.embeddings.dtype == jax.numpy.bfloat16
  np.testing.assert_array_equal(
    np.asarray(rows.embeddings)[:100], stored.astype(ml_dtypes.bfloat16)
  )


def test_more_rows_than_int32_numbers():
  with pytest.raises(ValueError, match='exceed the 2147483647 rows'):
    Layout.of(2**31, 8, 1024)
