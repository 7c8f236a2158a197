import faiss
import numpy as np
import pytest

from retrieval_service.client import RetrievalClient
from retrieval_service.local import LocalRetrievalServer


@pytest.fixture(autouse=True)
def one_thread():
  """Spinning OpenMP threads make small tests slow on a busy machine."""
  faiss.omp_set_num_threads(1)


@pytest.fixture
def vectors():
  """Makes clustered unit vectors: [count, dim] float32, repeatable by seed.

  Of unit length, so that the nearest to a stored vector is itself.
  """

  def make(count, dim=32, seed=0, clusters=40):
    centers = np.random.default_rng(99).standard_normal((clusters, dim))
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((count, dim))
    points = centers[rng.integers(0, clusters, count)] + 0.4 * noise
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)

  return make


@pytest.fixture
def server(tmp_path):
  """A real process over an empty index folder."""
  with LocalRetrievalServer(tmp_path / 'index', threads=1) as running:
    yield running


@pytest.fixture
def client(server):
  with RetrievalClient(server.address, timeout_s=30, retry_for_s=30) as ready:
    yield ready
