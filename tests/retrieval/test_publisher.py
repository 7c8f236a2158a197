"""Embedding a corpus into a running retrieval process."""

import dataclasses
import os
import time

import jax
import numpy as np
import pytest

from ralm_jax.data.corpus import passage_store, passages
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.retrieval import embedding
from ralm_jax.retrieval.assembler import Assembler
from ralm_jax.retrieval.embedding import PassageEmbedder
from ralm_jax.retrieval.publisher import IndexPublisher
from ralm_jax.runs import opening
from retrieval_service import generation_writer
from retrieval_service.client import RetrievalClient
from retrieval_service.generations import GenerationStore
from retrieval_service.local import LocalRetrievalServer
from retrieval_service.options import IndexOptions
from tests import tiny


@pytest.fixture(scope='module')
def opened():
  return opening.open_checkpoint(tiny.trained().run)


@pytest.fixture
def store():
  return PassageStore.open(tiny.trained().data.corpus)


@pytest.fixture
def served(tmp_path, store):
  """A process with an index of the corpus, of some other encoder."""
  folder = GenerationStore(tmp_path / 'index')
  metadata = embedding.describe(store, 'another', folder.directory)
  with generation_writer.begin(
    folder,
    IndexOptions(index_type='ivf_flat', nlist=2, nprobe=2),
    16,
    {**metadata, 'owner': 'me', 'passages_per_second': 3},
  ) as writer:
    writer.append(None, np.ones((len(store), 16), np.float16))
    writer.commit()
  with LocalRetrievalServer(tmp_path / 'index', threads=1) as server:
    with RetrievalClient(server.address, retry_for_s=60) as client:
      client.server = server
      yield client


def _publisher(client, opened, store, **options):
  return IndexPublisher(
    client,
    opened.spec.model,
    opened.partitioner,
    Assembler(opened.spec.tokenizer, store),
    **{'batch_size': 8, 'chunk_size': 12, 'progress': False, **options},
  )


def _changed(params):
  return {**params, 'retriever': jax.tree.map(lambda x: x + 0.01, params['retriever'])}


def _expected(opened, store, params):
  return (
    PassageEmbedder(
      opened.spec.model, opened.partitioner, Assembler(opened.spec.tokenizer, store), batch_size=8
    )
    .embed(params, np.arange(len(store)))
    .astype(np.float16)
  )


def _served_embeddings(client):
  store = GenerationStore(client.status().index_directory)
  return np.asarray(store.open_current().embeddings)


def test_publishes_once(served, opened, store):
  publisher = _publisher(served, opened, store)
  done = publisher.publish(opened.params, 'a', run='/run', step=4)
  assert (done.generation, done.passages) == (2, len(store))
  assert done.metrics['refresh/passages_per_second'] > 0
  np.testing.assert_allclose(
    _served_embeddings(served), _expected(opened, store, opened.params), atol=2e-3
  )
  status = served.status()
  assert status.options.index_type == 'ivf_flat'
  metadata = status.metadata
  assert metadata['step'] == 4 and metadata['run'] == '/run'
  assert metadata['owner'] == 'me' and 'passages_per_second' not in metadata
  assert metadata['corpus_fingerprint'] == store.fingerprint
  assert metadata['encoder_fingerprint'] == embedding.retriever_fingerprint(opened.params)
  # The same encoder is there already, whatever it is asked for.
  again = publisher.publish(opened.params, 'b', step=5)
  assert (again.generation, again.passages) == (2, 0)
  assert served.status().metadata['step'] == 4
  # Another one is not.
  assert publisher.publish(_changed(opened.params), 'b').generation == 3


def test_a_finished_build_is_taken_again(served, opened, store):
  """Though something else has been published since."""
  publisher = _publisher(served, opened, store)
  assert publisher.publish(opened.params, 'step 4').generation == 2
  publisher.publish(_changed(opened.params), 'step 6')
  before = served.status().generations
  assert publisher.publish(opened.params, 'step 4').generation == 2
  assert served.status().generation == 2
  assert served.status().generations == before


def test_the_process_dies_in_mid_upload(served, opened, store, monkeypatch):
  publisher = _publisher(served, opened, store)
  build = RetrievalClient.build
  tried = []

  def build_and_kill(self, chunks, **options):
    def sent():
      for chunk in chunks:
        yield chunk
        if not tried:
          tried.append(options['build_id'])
          self.server.process.kill()
          self.server.process.wait()
          self.server.ensure_alive()

    number = build(self, sent(), **options)
    tried.append(options['build_id'])
    return number

  monkeypatch.setattr(RetrievalClient, 'build', build_and_kill)
  assert publisher.publish(opened.params, 'a').generation == 2
  assert len(tried) == 2 and len(set(tried)) == 1
  np.testing.assert_allclose(
    _served_embeddings(served), _expected(opened, store, opened.params), atol=2e-3
  )


def test_what_cannot_be_stored(served, opened, store):
  huge = {'retriever': jax.tree.map(lambda x: x * 1e5, opened.params['retriever'])}
  with pytest.raises(ValueError, match='beyond float16 for rows 0 to 11'):
    _publisher(served, opened, store).publish(huge, 'a')
  # The process hears of the end of the upload a moment after we do.
  for _ in range(600):
    status = served.status()
    if not status.building:
      break
    time.sleep(0.1)
  assert status.generation == 1 and not status.building


def test_passages_added_and_replaced_meanwhile(served, opened, tmp_path):
  """A refresh sees the corpus of now, and no passage as it was before."""
  data = tiny.make_data(tmp_path)
  store = PassageStore.open(data.corpus)
  publisher = _publisher(served, opened, store, index=tmp_path / 'index')
  third = list(passages.iterate_passages([str(data.passages)]))[3]
  passage_store.append_passages(
    store.directory,
    [dataclasses.replace(third, id='new'), dataclasses.replace(third, text='It is black now.')],
    replace=True,
  )
  done = publisher.publish(opened.params, 'a')
  assert done.passages == 41 and len(store) == 42
  view = GenerationStore(tmp_path / 'index').open_current()
  assert sorted(set(range(42)) - set(view.ids.tolist())) == [3]
  np.testing.assert_allclose(
    view.embeddings, _expected(opened, store, opened.params)[view.ids], atol=2e-3
  )
  assert served.status().metadata['corpus_relative'] == os.path.relpath(
    data.corpus, tmp_path / 'index'
  )
  # The same from scratch.
  embedder = PassageEmbedder(
    opened.spec.model, opened.partitioner, Assembler(opened.spec.tokenizer, store), batch_size=8
  )
  embedding.build_generation(
    embedder, opened.params, store, tmp_path / 'anew', IndexOptions(), chunk_size=7, progress=False
  )
  anew = GenerationStore(tmp_path / 'anew').open_current()
  np.testing.assert_array_equal(anew.ids, view.ids)
  np.testing.assert_allclose(anew.embeddings, view.embeddings, atol=2e-3)


def test_parts_come_in_order(opened, store):
  """Whatever their sizes, and with the caller slower or faster."""
  embedder = PassageEmbedder(
    opened.spec.model, opened.partitioner, Assembler(opened.spec.tokenizer, store), batch_size=8
  )
  everything = embedder.embed(opened.params, np.arange(len(store)))
  parts = np.split(np.arange(len(store)), [1, 2, 9, 25])
  found = list(embedder.stream(opened.params, iter(parts)))
  assert [len(part) for part in found] == [1, 1, 7, 16, 15]
  np.testing.assert_allclose(np.concatenate(found), everything, atol=1e-5)
  # A caller that stops early leaves no thread behind.
  stream = embedder.stream(opened.params, iter(parts))
  next(stream)
  stream.close()
  with pytest.raises(IndexError):
    list(embedder.stream(opened.params, [np.arange(2), np.asarray([4000])]))
