"""Exact search on the devices of a mesh against FAISS's flat index in process.

    python benchmarks/device_search.py --count 100000

Both are called in turn from one program, ids and scores out. FAISS searches the
float32 vectors; the devices hold them in each of --dtypes. On a machine with
accelerators FAISS still runs on the processor.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

# Spinning OpenMP threads take the cores from JAX's. Read when FAISS loads.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import faiss  # pylint: disable=g-import-not-at-top
import jax
import numpy as np

from benchmarks import reporting
from benchmarks.search import clustered_vectors, recall
from ralm_jax.retrieval.device import search
from ralm_jax.retrieval.device.index import DeviceIndex
from ralm_jax.retrieval.device.search import DeviceOptions
from ralm_jax.training.partitioning import Partitioner


def compare(
  peer: faiss.Index, index: DeviceIndex, queries: np.ndarray, k: int, repeats: int
) -> dict[str, float]:
  """Times both in turn, so that a busy moment hits both."""
  times = {'faiss': [], 'device': []}
  calls = {'faiss': lambda: peer.search(queries, k), 'device': lambda: index.search(queries, k)}
  for repeat in range(repeats + 2):
    for name, call in calls.items():
      begin = time.perf_counter()
      call()
      if repeat >= 2:  # the first ones compile and warm up
        times[name].append(1e3 * (time.perf_counter() - begin))
  ours, theirs = (float(np.median(times[name])) for name in ('device', 'faiss'))
  return {
    'queries': len(queries),
    'k': k,
    'faiss_ms': theirs,
    'device_ms': ours,
    'ratio': theirs / ours,
  }


def measure(
  directory: str, vectors: np.ndarray, peer: faiss.Index, dtype: str, flags: argparse.Namespace
) -> dict:
  """Times searches, and putting a generation on the devices."""
  queries = clustered_vectors(64, flags.dim, seed=2).astype(np.float32)
  _, true = peer.search(queries, flags.k)
  partitioner = Partitioner(num_partitions=flags.num_partitions)
  with DeviceIndex(
    directory,
    partitioner,
    DeviceOptions(dtype, approximate=flags.approximate, block_rows=flags.block_rows),
    verify_checksums=False,
  ) as index:
    if not index.status().generation:
      index.build([(None, vectors)], dim=flags.dim)
    begin = time.perf_counter()
    index.search(queries, flags.k)
    first = time.perf_counter() - begin
    rows = [compare(peer, index, queries[:batch], flags.k, flags.repeats) for batch in (64, 8, 1)]
    found = index.search(queries, flags.k).ids
  result = {
    'dtype': dtype,
    'recall': recall(found, true),
    'load_and_compile_seconds': first,
    'searches': rows,
  }
  print(
    f'\n{dtype}: recall@{flags.k} against float32 {result["recall"]:.4f}; '
    f'put there and compiled in {first:.1f} s'
  )
  print('queries  FAISS ms  device ms  ratio')
  for row in rows:
    print(f'{row["queries"]:7d}{row["faiss_ms"]:10.1f}{row["device_ms"]:11.1f}{row["ratio"]:7.2f}')
  return result


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--count', type=int, default=100_000)
  parser.add_argument('--dim', type=int, default=768)
  parser.add_argument('--k', type=int, default=100)
  parser.add_argument('--dtypes', nargs='+', default=list(search.DTYPES), choices=search.DTYPES)
  parser.add_argument('--approximate', action='store_true')
  parser.add_argument('--block_rows', type=int, default=16384)
  parser.add_argument('--num_partitions', type=int, default=1)
  parser.add_argument('--threads', type=int, default=os.cpu_count())
  parser.add_argument('--repeats', type=int, default=15)
  flags = parser.parse_args()
  faiss.omp_set_num_threads(flags.threads)
  vectors = clustered_vectors(flags.count, flags.dim, seed=1)
  peer = faiss.IndexFlatIP(flags.dim)
  peer.add(vectors.astype(np.float32))
  devices = jax.devices()
  print(
    f'{len(vectors):,} x {flags.dim} on {len(devices)} '
    f'{devices[0].device_kind}; FAISS on {flags.threads} threads'
  )
  with tempfile.TemporaryDirectory() as directory:
    results = [measure(directory, vectors, peer, dtype, flags) for dtype in flags.dtypes]
  path = reporting.write_result(
    'device_search',
    {
      'count': len(vectors),
      'dim': flags.dim,
      'threads': flags.threads,
      'repeats': flags.repeats,
      'approximate': flags.approximate,
      'block_rows': flags.block_rows,
      'devices': len(devices),
      'device_kind': devices[0].device_kind,
      'results': results,
    },
  )
  print(f'\nwritten to {path}')


if __name__ == '__main__':
  main()
