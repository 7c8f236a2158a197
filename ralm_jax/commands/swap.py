"""Swap: have a running retrieval process serve another index.

It is opened and checked aside; then every search that begins is answered from
it, and evaluations that run follow, with its corpus. When the process is started
again it serves the index of its own flags.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import logging
import os

from retrieval_service.client import RetrievalClient
from retrieval_service.results import SwapResult


def swap(index: str, *, retrieval_address: str, retry_for_s: float = 30.0) -> SwapResult:
  """Has the process at an address serve another INDEX folder.

  Args:
    index: INDEX folder, as the process's machine sees it.
    retrieval_address: 'host:port' of the process.
    retry_for_s: how long an unreachable process is waited for.

  Raises:
    ValueError: there is no index, it is damaged, or of another dimension; the
      former one stays served.
    retrieval_service.client.RetrievalError: the process cannot be reached.
  """
  with RetrievalClient(retrieval_address, retry_for_s=retry_for_s) as client:
    done = client.swap(os.path.abspath(index))
  if done.pinned_by:
    logging.warning(
      'Training runs have used %s: %s. One that still runs stops with an '
      'error at its next search, and goes on from its last checkpoint when '
      'that index is served again.',
      done.former_directory,
      ', '.join(done.pinned_by),
    )
  return done


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Swaps from command-line flags."""
  parser = argparse.ArgumentParser(
    prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--retrieval_address',
    required=True,
    metavar='HOST:PORT',
    help='of the running retrieval process',
  )
  parser.add_argument(
    '--index',
    required=True,
    metavar='INDEX',
    help='index folder to serve, on the machine of that process',
  )
  parser.add_argument(
    '--retry_for_s',
    type=float,
    default=30.0,
    metavar='SECONDS',
    help='how long an unreachable retrieval process is waited for',
  )
  arguments = parser.parse_args(argv)
  done = swap(**vars(arguments))
  address, index = arguments.retrieval_address, os.path.abspath(arguments.index)
  now = f'{index} (index {done.index_id}, generation {done.generation}, {done.count:,} passages)'
  if done.index_id == done.former_index_id:
    print(f'{address} serves {now}, as before')
    return
  print(
    f'{address} served  {done.former_directory} (index '
    f'{done.former_index_id})\n{" " * len(address)} serves  {now}'
  )
