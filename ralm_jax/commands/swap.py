"""Swap: have a running retrieval process serve another index.

It is opened and checked aside; then every search that begins is answered from
it, and evaluations that run follow, with its corpus. When the process is started
again it serves the index of its own flags.
"""

from __future__ import annotations

from collections.abc import Sequence
import logging
import os

from ralm_jax.commands import flags


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Swaps from command-line flags; where that fails the former index stays served."""
  parser = flags.Parser(prog, __doc__)
  flags.shared(parser, 'retrieval_address', required=True, help='of the running retrieval process')
  text = 'index folder to serve, on the machine of that process'
  flags.shared(parser, 'index', required=True, help=text)
  flags.shared(parser, 'retry_for_s')
  arguments = parser.parse_args(argv)
  from retrieval_service.client import RetrievalClient

  address, index = arguments.retrieval_address, os.path.abspath(arguments.index)
  with RetrievalClient(address, retry_for_s=arguments.retry_for_s) as client:
    done = client.swap(index)
  if done.pinned_by:
    logging.warning(
      'Training runs have used %s: %s. One that still runs stops with an error at its next '
      'search, and goes on from its last checkpoint when that index is served again.',
      done.former_directory,
      ', '.join(done.pinned_by),
    )
  now = f'{index} (index {done.index_id}, generation {done.generation}, {done.count:,} passages)'
  if done.index_id == done.former_index_id:
    print(f'{address} serves {now}, as before')
    return
  print(f'{address} served  {done.former_directory} (index {done.former_index_id})')
  print(f'{" " * len(address)} serves  {now}')
