"""A corpus of documents and dates with an index, and brute force to compare."""

from __future__ import annotations

import dataclasses

import numpy as np

from ralm_jax.data import dates
from ralm_jax.data.corpus import passage_store
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.retrieval import retriever as retriever_lib
from ralm_jax.retrieval.retriever import PassageRetriever
from retrieval_service import generation_writer
from retrieval_service.generations import GenerationStore
from retrieval_service.options import IndexOptions
from tests import tiny

COUNT, DOCUMENTS, DIM = 120, 12, 16
SearchFilter = retriever_lib.SearchFilter


def _fields(i: int) -> dict:
  """Ten passages a document; every fifth is undated, every tenth is long."""
  text = ' '.join(f'w{j}' for j in range(25 if i % 10 == 3 else 5))
  fields = {'id': f'p{i}', 'title': f'title {i % DOCUMENTS}', 'text': text}
  if i % 5:
    fields['date'] = f'{2000 + i % 17}-{1 + i % 12:02}'
  return fields


@dataclasses.dataclass(frozen=True)
class World:
  """An index whose passages lie close to others of their document.

  Attributes:
    store: the corpus.
    folder: the index.
    centres: [documents, dim] around which the passages lie.
    embeddings: [rows, dim] float16.
    fields: of each row, as its passage was written.
  """

  store: PassageStore
  folder: str
  centres: np.ndarray
  embeddings: np.ndarray
  fields: list[dict]


def publish(folder, store, embeddings) -> int:
  metadata = {'corpus': str(store.directory), 'corpus_fingerprint': store.fingerprint}
  with generation_writer.begin(GenerationStore(folder), IndexOptions(), DIM, metadata) as writer:
    writer.append(None, embeddings)
    return writer.commit()


def make_world(folder) -> World:
  data = tiny.make_data(folder)  # for its vocabularies
  path = tiny.write_jsonl(folder / 'p.jsonl', [_fields(i) for i in range(COUNT)])
  store = passage_store.build_corpus(
    path,
    folder / 'filtered',
    data.reader_vocabulary,
    data.retriever_vocabulary,
    max_words=10,
    shard_size=50,
    n_workers=1,
    progress=False,
  )
  fields = [_fields(int(p.source_id[1:])) for p in store.passages(np.arange(len(store)))]
  generator = np.random.default_rng(0)
  centres = generator.standard_normal((DOCUMENTS, DIM))
  centres /= np.linalg.norm(centres, axis=1, keepdims=True)
  nearest = [int(f['title'].split()[1]) for f in fields]
  embeddings = (centres[nearest] + 0.03 * generator.standard_normal((len(fields), DIM))).astype(
    np.float16
  )
  publish(folder / 'filtered_index', store, embeddings)
  return World(
    store, str(folder / 'filtered_index'), centres.astype(np.float32), embeddings, fields
  )


class Recording:
  """A client that remembers how deep it was asked, and may interfere."""

  needs_strict_order = False

  def __init__(self, client, before_search=lambda count: None):
    self._client = client
    self._before_search = before_search
    self.depths = []
    self.batches = []

  def status(self):
    return self._client.status()

  def search(self, queries, k, **options):
    self._before_search(len(self.depths))
    self.depths.append(k)
    self.batches.append(len(queries))
    return self._client.search(queries, k, **options)


def retriever(client, world, n_passages=5, store=None, **options):
  return PassageRetriever(client, store or world.store, n_passages, **options)


def best_rows(world, query, n, hidden) -> list[int]:
  """The n best rows of those that are not hidden, by brute force."""
  scores = world.embeddings.astype(np.float32) @ query
  order = np.argsort(-scores, kind='stable')
  return [int(row) for row in order if not hidden(int(row))][:n]


def hidden(world, by, excluded=(), bound=None):
  """A predicate on rows, of the fields as they were written."""
  names = {world.fields[row]['id'] for row in excluded if row >= 0}
  titles = {world.fields[row]['title'] for row in excluded if row >= 0}

  def hidden(row: int) -> bool:
    fields = world.fields[row]
    if by == 'none':
      return False
    if bound is not None and ('date' not in fields or dates.last_day(fields['date']) > bound):
      return True
    return fields['id'] in names or by == 'document' and fields['title'] in titles

  return hidden


def check(world, found, queries, n, hiddens):
  """Compares a whole answer with brute force; scores with their rows."""
  assert found.rows.shape == found.scores.shape == (len(queries), n)
  assert found.rows.dtype == np.int64 and found.scores.dtype == np.float32
  for query, rows, scores, hidden in zip(queries, found.rows, found.scores, hiddens):
    expected = best_rows(world, query, n, hidden)
    assert rows[: len(expected)].tolist() == expected
    assert np.all(rows[len(expected) :] == -1)
    assert np.all(scores[len(expected) :] == -np.inf)
    np.testing.assert_allclose(
      scores[: len(expected)], world.embeddings[expected].astype(np.float32) @ query, rtol=1e-5
    )


def one_of_each_document(world) -> np.ndarray:
  return world.store.rows_of([f'p{i}' for i in range(DOCUMENTS)])
