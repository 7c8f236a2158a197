"""Filtering, checks and embedding, around a real search."""

import os
import threading

import numpy as np
import pytest

from ralm_jax.data.corpus import passage_store
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.models.retrieval_lm import ReaderBatch
from ralm_jax.retrieval import assembler, connect, embedding, retriever as retriever_lib
from ralm_jax.retrieval.assembler import Assembler
from ralm_jax.retrieval.embedding import PassageEmbedder
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.retrieval.retriever import PassageRetriever, Retrieved
from ralm_jax.runs import opening
from retrieval_service.generations import GenerationStore
from retrieval_service.options import IndexOptions
from tests import tiny


@pytest.fixture(scope='module')
def trained() -> tiny.Trained:
  return tiny.trained()


@pytest.fixture(scope='module')
def connected(trained):
  with connect.connect(IndexSource(trained.index, threads=1)) as connection:
    yield connection


@pytest.fixture(scope='module')
def retriever(connected):
  return PassageRetriever(connected.client, connected.store, 5)


@pytest.fixture
def queries():
  return np.random.default_rng(0).standard_normal((6, 16)).astype(np.float32)


def test_finds_what_exhaustive_search_finds(trained, retriever, queries):
  stored = GenerationStore(trained.index).open_current().embeddings
  scores = queries @ np.asarray(stored, np.float32).T
  found = retriever.search(queries)
  np.testing.assert_array_equal(found.rows, np.argsort(-scores, axis=1, kind='stable')[:, :5])
  np.testing.assert_allclose(found.scores, -np.sort(-scores)[:, :5], rtol=1e-5)
  assert found.generation == 1


def test_excluded_rows_give_way_to_the_next(retriever, queries):
  plain = retriever.search(queries)
  excluded = np.stack([plain.rows[:, 0], np.full(6, -1), plain.rows[:, 3]], 1)
  found = retriever.search(queries, excluded)
  assert found.rows.shape == (6, 5)
  for before, after, dropped in zip(plain.rows, found.rows, excluded):
    assert not set(dropped) & set(after)
    kept = [row for row in before if row not in dropped]
    assert list(after[: len(kept)]) == kept
    assert np.all(after >= 0)
  assert np.all(np.diff(found.scores) <= 0)


def test_probabilities(retriever, queries):
  found = retriever.search(queries)
  logits = found.scores / 4 / 0.1
  expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  np.testing.assert_allclose(found.probabilities(0.4), expected, rtol=1e-4)


def test_closed_book_has_one_empty_slot():
  found = Retrieved.none(3)
  assert found.rows.tolist() == [[-1]] * 3
  np.testing.assert_array_equal(found.probabilities(4.0), np.zeros((3, 1)))


def test_corpus_may_have_grown(trained, connected, tmp_path):
  """An index stays valid for the rows it was built of, and no others."""
  import shutil

  from ralm_jax.data.corpus import passages

  shutil.copytree(trained.data.corpus, tmp_path / 'corpus')
  passage_store.append_passages(tmp_path / 'corpus', [passages.Passage('new', 't', '', 'text')])
  grown = PassageStore.open(tmp_path / 'corpus')
  metadata = connected.client.status().metadata
  retriever_lib.check_index_of_corpus(metadata, 40, grown)
  # Of two who add at once, the later edit may name the earlier state.
  retriever_lib.check_index_of_corpus(metadata, 41, grown)
  with pytest.raises(ValueError, match='another corpus'):
    retriever_lib.check_index_of_corpus(metadata, 42, grown)
  with pytest.raises(ValueError, match='does not say of which corpus'):
    retriever_lib.check_index_of_corpus({}, 40, grown)


def test_moved_together(trained, tmp_path):
  """Index and corpus find each other after a move of both."""
  import shutil

  shutil.copytree(trained.data.corpus, tmp_path / 'corpus')
  shutil.copytree(trained.index, tmp_path / 'index')
  metadata = {'corpus': '/gone', 'corpus_relative': '../corpus'}
  assert connect.find_corpus(metadata, tmp_path / 'index') == str(tmp_path / 'corpus')


def test_dead_process_is_started_again(trained, queries):
  with connect.connect(IndexSource(trained.index, threads=1)) as connection:
    retriever = PassageRetriever(connection.client, connection.store, 3)
    before = retriever.search(queries)
    (child,) = _servers()
    os.kill(child, 9)
    after = retriever.search(queries)
  np.testing.assert_array_equal(before.rows, after.rows)
  assert not [t for t in threading.enumerate() if t.name == 'supervisor' and not t.is_alive()]


def _servers() -> list[int]:
  """Retrieval processes that this one started last."""
  import glob
  import pathlib

  found = []
  for path in glob.glob(f'/proc/{os.getpid()}/task/*/children'):
    for child in pathlib.Path(path).read_text().split():
      command = pathlib.Path(f'/proc/{child}/cmdline').read_text()
      if 'retrieval_service.server' in command:
        found.append(int(child))
  return sorted(found)[-1:]


@pytest.fixture(scope='module')
def opened(trained):
  return opening.open_checkpoint(trained.run)


@pytest.fixture(scope='module')
def embedder(trained, opened):
  store = PassageStore.open(trained.data.corpus)
  return PassageEmbedder(
    opened.spec.model, opened.partitioner, Assembler(opened.spec.tokenizer, store), batch_size=16
  ), store


def test_embeddings_depend_on_the_passage_alone(embedder, opened):
  """Not on the batch it is in, nor on the length that is padded to."""
  embed, store = embedder
  everything = embed.embed(opened.params, np.arange(len(store)))
  assert everything.shape == (40, 16) and everything.dtype == np.float32
  some = np.array([7, 3, 39])
  np.testing.assert_allclose(embed.embed(opened.params, some), everything[some], atol=1e-5)


def test_embedding_goes_on_where_it_was_interrupted(embedder, opened, tmp_path, monkeypatch):
  embed, store = embedder
  build = lambda index: embedding.build_generation(
    embed, opened.params, store, index, IndexOptions(), chunk_size=12, progress=False
  )
  done = []

  class Interrupted(Exception):
    pass

  original = PassageEmbedder.embed

  def interrupted(self, params, rows):
    if len(done) == 2:
      raise Interrupted
    done.append(rows[0])
    return original(self, params, rows)

  monkeypatch.setattr(PassageEmbedder, 'embed', interrupted)
  with pytest.raises(Interrupted):
    build(tmp_path / 'index')
  assert GenerationStore(tmp_path / 'index').current() is None
  monkeypatch.setattr(
    PassageEmbedder,
    'embed',
    lambda self, params, rows: done.append(rows[0]) or original(self, params, rows),
  )
  assert build(tmp_path / 'index') == 1
  assert done == [0, 12, 24, 36]
  monkeypatch.undo()
  build(tmp_path / 'whole')
  one, other = (
    np.asarray(GenerationStore(tmp_path / name).open_current().embeddings)
    for name in ('index', 'whole')
  )
  np.testing.assert_array_equal(one, other)
  assert not list((tmp_path / 'index').glob('embedding.*'))


def _batch(reader_tokens, passage_mask, target):
  reader_tokens, target = np.asarray(reader_tokens), np.asarray(target)
  return ReaderBatch(reader_tokens, reader_tokens > 0, np.asarray(passage_mask), target, target > 0)


def test_recall_of_a_batch():
  batch = _batch(
    [
      [[5, 6, 7, 1], [8, 9, 4, 1]],
      [[5, 6, 7, 1], [8, 9, 4, 1]],
      [[5, 6, 7, 1], [8, 9, 4, 1]],
      [[5, 6, 7, 1], [0, 0, 0, 0]],
    ],
    [[True, True], [True, False], [True, True], [False, False]],
    # Found in the second passage; only in one that is not there; not as a
    # whole; no passage at all, which does not count.
    [[30, 9, 4, 1], [30, 9, 4, 1], [30, 6, 8, 1], [30, 6, 1, 0]],
  )
  assert assembler.answer_recall(batch, 1) == pytest.approx(1 / 3)
  assert assembler.answer_recall(batch, 0) == 0
