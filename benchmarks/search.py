"""Search through the retrieval process against FAISS called in-process.

    python benchmarks/search.py --count 100000 --index_type pq

Both sides use one index file, the same candidates and the same exact
re-ranking, so that recall is equal and only the way there differs. What the
process adds to a call drowns in the noise of a long search: it is measured on a
small index as well.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

# Spinning OpenMP threads take the cores from each other; the retrieval process
# sets the same. Read when FAISS loads.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import faiss  # pylint: disable=g-import-not-at-top
import numpy as np

from benchmarks import reporting
from retrieval_service import faiss_index, generation_writer
from retrieval_service.client import RetrievalClient
from retrieval_service.generation import Generation
from retrieval_service.generations import GenerationStore
from retrieval_service.local import LocalRetrievalServer
from retrieval_service.options import IndexOptions

_CHUNK = 8192
# Scanned in about a millisecond: what remains is the way to the process.
_SMALL_COUNT = 200


def clustered_vectors(count: int, dim: int, seed: int) -> np.ndarray:
  """[count, dim] float16 unit vectors in 1,000 clusters of falling spectrum."""
  centers_rng = np.random.default_rng(0)
  spectrum = np.arange(1, dim + 1, dtype=np.float32) ** -0.5
  centers = centers_rng.standard_normal((1000, dim), np.float32) * spectrum
  rng = np.random.default_rng(seed)
  made = np.empty((count, dim), np.float16)
  for begin in range(0, count, _CHUNK):
    rows = min(_CHUNK, count - begin)
    points = centers[rng.integers(0, 1000, rows)]
    points = points + 0.7 * spectrum * rng.standard_normal((rows, dim), np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    made[begin : begin + rows] = points
  return made


def compare(
  peer: Generation, client: RetrievalClient, queries: np.ndarray, k: int, repeats: int
) -> dict[str, float]:
  """Times both in turn, so that a busy moment hits both."""
  times = {'in_process': [], 'service': []}
  calls = {
    'in_process': lambda: peer.search(queries, k),
    'service': lambda: client.search(queries, k),
  }
  for repeat in range(repeats + 2):
    for name, call in calls.items():
      begin = time.perf_counter()
      call()
      if repeat >= 2:  # the first ones warm up
        times[name].append(1e3 * (time.perf_counter() - begin))
  inside, service = (float(np.median(times[name])) for name in times)
  return {
    'queries': len(queries),
    'k': k,
    'in_process_ms': inside,
    'service_ms': service,
    'ratio': inside / service,
    'added_ms': service - inside,
  }


def recall(found: np.ndarray, true: np.ndarray) -> float:
  return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, true)]))


def build(
  directory: str, vectors: np.ndarray, options: IndexOptions, threads: int
) -> tuple[Generation, float]:
  """A generation on disk and the seconds it took."""
  begin = time.perf_counter()
  store = GenerationStore(directory)
  with generation_writer.begin(store, options, vectors.shape[1], progress=True) as writer:
    for start in range(0, len(vectors), _CHUNK):
      writer.append(None, vectors[start : start + _CHUNK])
    number = writer.commit()
  seconds = time.perf_counter() - begin
  return store.open(number, threads=threads), seconds


def measure(
  directory: str, vectors: np.ndarray, options: IndexOptions, flags: argparse.Namespace
) -> dict:
  """Builds an index, times both ways of searching it, compares answers."""
  peer, seconds = build(directory, vectors, options, flags.threads)
  queries = clustered_vectors(64, flags.dim, seed=2).astype(np.float32)
  with (
    LocalRetrievalServer(directory, threads=flags.threads) as server,
    RetrievalClient(server.address) as client,
  ):
    rows = [compare(peer, client, queries[:batch], flags.k, flags.repeats) for batch in (64, 1)]
    found = client.search(queries, flags.k).ids
  inside = peer.search(queries, flags.k).ids
  _, true = faiss_index.exact_search(vectors, queries, flags.k)
  result = {
    'count': len(vectors),
    'factory': peer.manifest.factory,
    'build_seconds': seconds,
    'recall_service': recall(found, true),
    'recall_in_process': recall(inside, true),
    'searches': rows,
  }
  print(
    f'\n{len(vectors):,} x {flags.dim}, {result["factory"]}: built in '
    f'{seconds:.1f} s; recall@{flags.k} against exact search: service '
    f'{result["recall_service"]:.4f}, in-process '
    f'{result["recall_in_process"]:.4f}'
  )
  print('queries     in-process ms  service ms  ratio  added ms')
  for row in rows:
    print(
      f'{row["queries"]:7d}  {row["in_process_ms"]:16.2f}'
      f'{row["service_ms"]:12.2f}{row["ratio"]:7.2f}{row["added_ms"]:10.2f}'
    )
  return result


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--count', type=int, default=100_000)
  parser.add_argument('--dim', type=int, default=768)
  parser.add_argument('--k', type=int, default=100)
  parser.add_argument('--index_type', default='pq')
  parser.add_argument('--nprobe', type=int)
  parser.add_argument('--threads', type=int, default=os.cpu_count())
  parser.add_argument('--repeats', type=int, default=30)
  flags = parser.parse_args()
  faiss.omp_set_num_threads(flags.threads)
  vectors = clustered_vectors(flags.count, flags.dim, seed=1)
  with tempfile.TemporaryDirectory() as directory:
    large = measure(
      os.path.join(directory, 'large'),
      vectors,
      IndexOptions(flags.index_type, nprobe=flags.nprobe),
      flags,
    )
    small = measure(
      os.path.join(directory, 'small'), vectors[:_SMALL_COUNT], IndexOptions(rerank=0), flags
    )
  path = reporting.write_result(
    'search',
    {
      'dim': flags.dim,
      'threads': flags.threads,
      'repeats': flags.repeats,
      'large': large,
      'small': small,
    },
  )
  print(f'\nwritten to {path}')


if __name__ == '__main__':
  main()
