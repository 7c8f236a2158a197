"""Latency of searches while the retrieval process builds the next generation.

    python benchmarks/search_during_build.py --count 100000 --index_type pq

One client searches at the pace of a training run, a pause after each answer:
alone, during a build, and alone again, against which the middle is held. The
vectors come from a process of lowest priority, since whoever embeds a corpus has
processors of its own. Searches alternate between the batch sizes.
"""

import argparse
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np  # pylint: disable=g-import-not-at-top

from benchmarks import reporting
from benchmarks.search import clustered_vectors
from retrieval_service.client import RetrievalClient
from retrieval_service.local import LocalRetrievalServer
from retrieval_service.options import IndexOptions

_CHUNK = 8192


def upload(address: str, path: str, options: IndexOptions) -> None:
  """Builds a generation of the vectors in a file."""
  vectors = np.load(path, mmap_mode='r')
  with RetrievalClient(address) as client:
    client.build(
      [(None, vectors[begin : begin + _CHUNK]) for begin in range(0, len(vectors), _CHUNK)],
      dim=vectors.shape[1],
      options=options,
    )


def upload_humbly(address: str, path: str, options: IndexOptions) -> None:
  """As `upload`, at the lowest priority."""
  os.nice(19)
  upload(address, path, options)


def search_while(
  client: RetrievalClient, batches: dict[int, np.ndarray], k: int, pause_s: float, going_on
) -> dict[int, list[float]]:
  """Milliseconds of each search, by batch size."""
  times = {size: [] for size in batches}
  while going_on():
    for size, queries in batches.items():
      begin = time.perf_counter()
      client.search(queries, k)
      times[size].append(1e3 * (time.perf_counter() - begin))
      time.sleep(pause_s)
  return times


def for_seconds(seconds: float):
  """True until so many seconds have passed."""
  end = time.monotonic() + seconds
  return lambda: time.monotonic() < end


def describe(times: list[float]) -> dict[str, float]:
  return {
    'searches': len(times),
    'median_ms': float(np.median(times)),
    'p95_ms': float(np.percentile(times, 95)),
    'slowest_ms': max(times),
  }


def compare(alone: dict[int, list[float]], during: dict[int, list[float]]) -> list[dict]:
  rows = []
  for size in alone:
    row = {'queries': size, 'alone': describe(alone[size]), 'during': describe(during[size])}
    for name in ('median_ms', 'p95_ms'):
      row[f'ratio_{name[:-3]}'] = row['during'][name] / row['alone'][name]
    rows.append(row)
  return rows


def report(rows: list[dict]) -> None:
  print('queries        searches  median ms   p95 ms  slowest ms')
  for row in rows:
    for name in ('alone', 'during'):
      side = row[name]
      print(
        f'{row["queries"]:7d}  {name:7s}{side["searches"]:7d}'
        f'{side["median_ms"]:11.2f}{side["p95_ms"]:9.2f}'
        f'{side["slowest_ms"]:12.2f}'
      )
    print(f'         ratio         {row["ratio_median"]:11.2f}{row["ratio_p95"]:9.2f}')


def measure(directory: str, flags: argparse.Namespace) -> dict:
  """Builds an index, then searches it before, during and after another build."""
  options = IndexOptions(flags.index_type)
  path = os.path.join(directory, 'vectors.npy')
  np.save(path, clustered_vectors(flags.count, flags.dim, seed=1))
  queries = clustered_vectors(64, flags.dim, seed=2).astype(np.float32)
  batches = {size: queries[:size] for size in flags.batch_sizes}
  with (
    LocalRetrievalServer(os.path.join(directory, 'index'), threads=flags.threads) as server,
    RetrievalClient(server.address) as client,
  ):
    upload(server.address, path, options)

    def search(going_on):
      return search_while(client, batches, flags.k, flags.pause_ms / 1e3, going_on)

    search(for_seconds(2))  # warms up
    before = search(for_seconds(flags.alone_seconds))
    builder = multiprocessing.get_context('spawn').Process(
      target=upload_humbly, args=(server.address, path, options)
    )
    builder.start()
    search(lambda: builder.is_alive() and not client.status().building)
    begin = time.monotonic()
    during = search(builder.is_alive)
    seconds = time.monotonic() - begin
    builder.join()
    status = client.status()
    if builder.exitcode or status.generation != 2:
      raise RuntimeError('the build failed: there is nothing to report')
    after = search(for_seconds(flags.alone_seconds))
  alone = {size: before[size] + after[size] for size in before}
  rows = compare(alone, during)
  print(
    f'\n{flags.count:,} x {flags.dim}, {status.factory}, k={flags.k}: built '
    f'in {seconds:.1f} s beside a search every {flags.pause_ms} ms'
  )
  report(rows)
  return {
    'count': flags.count,
    'dim': flags.dim,
    'factory': status.factory,
    'k': flags.k,
    'threads': flags.threads,
    'pause_ms': flags.pause_ms,
    'build_seconds': seconds,
    'searches': rows,
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--count', type=int, default=100_000)
  parser.add_argument('--dim', type=int, default=768)
  parser.add_argument('--k', type=int, default=100)
  parser.add_argument('--index_type', default='pq')
  parser.add_argument('--threads', type=int, default=os.cpu_count())
  parser.add_argument('--batch_sizes', type=int, nargs='+', default=[64, 1])
  parser.add_argument('--pause_ms', type=float, default=100)
  parser.add_argument('--alone_seconds', type=float, default=15)
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as directory:
    result = measure(directory, flags)
  path = reporting.write_result('search_during_build', result)
  print(f'\nwritten to {path}')


if __name__ == '__main__':
  main()
