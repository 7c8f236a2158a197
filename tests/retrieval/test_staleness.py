"""What is known of the generations that answer."""

import time

import numpy as np
import pytest

from ralm_jax.data.batches import QueryBatch
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.retrieval.assembler import Assembler
from ralm_jax.retrieval.augmenter import RetrievalAugmenter
from ralm_jax.retrieval.retriever import PassageRetriever
from ralm_jax.retrieval.staleness import CurrentFollower, GenerationSteps
from ralm_jax.runs import opening
from retrieval_service import generation_writer
from retrieval_service.client import RetrievalClient
from retrieval_service.generations import GenerationStore
from retrieval_service.local import LocalRetrievalServer
from retrieval_service.options import IndexOptions
from tests import tiny

DIM = 4


def _embeddings(seed=0):
  return np.random.default_rng(seed).normal(size=(10, DIM)).astype(np.float16)


class Counting(RetrievalClient):
  """Counts the calls that ask for the status."""

  calls = 0

  def status(self):
    self.calls += 1
    return super().status()


@pytest.fixture
def served(tmp_path):
  with LocalRetrievalServer(tmp_path / 'index', threads=1) as server:
    with Counting(server.address) as client:
      yield client


def _build(client, **metadata):
  return client.build([(None, _embeddings())], dim=DIM, metadata=metadata)


def test_steps_of_a_run(served, tmp_path):
  run = tmp_path / 'run'
  run.mkdir()
  (tmp_path / 'link').symlink_to(run)
  checked = []
  steps = GenerationSteps(
    served, tmp_path / 'link', check=lambda status: checked.append(status.generation)
  )
  first = _build(served, run=str(run), step=5)
  served.calls = 0
  assert [steps.step_of(first) for _ in range(3)] == [5, 5, 5]
  assert served.calls == 1
  assert steps.step_of(_build(served, run='/elsewhere', step=7)) is None
  assert steps.step_of(_build(served)) is None
  known = _build(served)
  steps.tell(known, 9)
  # One that is not current any more, and nobody told of.
  missed = _build(served, run=str(run), step=11)
  latest = _build(served, run=str(run), step=12)
  calls = served.calls
  assert steps.step_of(known) == 9
  assert served.calls == calls
  assert steps.step_of(missed) is None
  assert steps.step_of(latest) == 12
  assert served.calls == calls + 1
  assert checked == [1, 2, 3, latest]


def test_a_generation_that_does_not_fit_is_refused(served, tmp_path):

  def check(status):
    raise ValueError(f'generation {status.generation}')

  steps = GenerationSteps(served, tmp_path, check=check)
  with pytest.raises(ValueError, match='generation 1'):
    steps.step_of(_build(served))


def test_what_others_publish_in_a_folder(served, tmp_path):
  _build(served)
  follower = CurrentFollower(served, tmp_path / 'index')
  follower()
  store = GenerationStore(tmp_path / 'index')
  with generation_writer.begin(store, IndexOptions(), DIM, {}) as writer:
    writer.append(None, _embeddings(1))
    writer.commit()
  assert served.status().generation == 1
  # The process reads it while searches go on in the one before.
  deadline = time.monotonic() + 60
  while served.status().generation != 2:
    assert time.monotonic() < deadline
    follower()
    time.sleep(0.01)
  np.testing.assert_array_equal(
    served.search(_embeddings(1)[:1], 1, return_embeddings=True).embeddings[0],
    _embeddings(1)[served.search(_embeddings(1)[:1], 1).ids[0]],
  )


def test_every_batch_says_how_stale_it_is(tmp_path):
  """A trainer that follows what is current, while another job publishes."""
  trained = tiny.trained()
  opened = opening.open_checkpoint(trained.run)
  store = PassageStore.open(trained.data.corpus)
  first = GenerationStore(trained.index).open_current()
  metadata = first.manifest.metadata
  with LocalRetrievalServer(tmp_path / 'index', threads=1) as server:
    with RetrievalClient(server.address) as client:

      def publish(step):
        client.build(
          [(None, np.asarray(first.embeddings))],
          dim=first.dim,
          metadata={**metadata, 'run': str(trained.run), 'step': step},
        )

      publish(2)
      retriever = PassageRetriever(client, store, 3)
      augmenter = RetrievalAugmenter(
        opened.spec.model,
        opened.partitioner,
        Assembler(opened.spec.tokenizer, store),
        retriever,
        generation_steps=GenerationSteps(client, trained.run),
      )
      queries = opened.spec.tokenizer.batch(['a', 'b'], size=8)
      assert isinstance(queries, QueryBatch)
      found = []
      for step in (4, 5, 6):
        if step == 6:
          publish(4)
        pending = augmenter.submit(opened.params, queries, step)
        metrics = pending.result().metrics
        found.append((metrics['retrieval/generation'], metrics['retrieval/staleness']))
      assert found == [(1, 2), (1, 3), (2, 2)]
      # A resumed run knows it of the batch it resumes with.
      snapshot = pending.snapshot()
      fresh = GenerationSteps(client, tmp_path / 'moved')
      again = RetrievalAugmenter(
        opened.spec.model,
        opened.partitioner,
        Assembler(opened.spec.tokenizer, store),
        retriever,
        generation_steps=fresh,
      )
      resumed = again.resume(snapshot, 6).result()
      assert resumed.metrics['retrieval/staleness'] == 2
      np.testing.assert_array_equal(resumed.retrieved.rows, pending.result().retrieved.rows)
      augmenter.close()
      again.close()


def test_snapshots_of_other_widths():
  """A run that goes on with more or fewer passages than it had."""
  from ralm_jax.retrieval import augmenter

  widened = augmenter._widened(np.arange(4).reshape(2, 2), 3, -1)
  np.testing.assert_array_equal(widened, [[0, 1, -1], [2, 3, -1]])
  assert augmenter._widened(np.ones((2, 5, 4)), 3, 0).shape == (2, 3, 4)
