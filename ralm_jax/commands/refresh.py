"""Refresh: follow a run's checkpoints and publish its index anew from each.

A second job beside `ralm train` with RetrievalConfig.follow_current = True
(gin: FOLLOW_CURRENT), on devices of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ralm_jax.runs.following import refresh


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Refreshes from command-line flags."""
  parser = argparse.ArgumentParser(prog=prog, description=__doc__)
  parser.add_argument('--model_dir', required=True, metavar='RUN')
  parser.add_argument('--index', metavar='INDEX', help='index folder to publish in')
  parser.add_argument(
    '--retrieval_address',
    metavar='HOST:PORT',
    help='a running retrieval process, instead of --index',
  )
  parser.add_argument('--corpus', metavar='CORPUS', help="where the index's corpus is now")
  parser.add_argument(
    '--every_steps',
    type=int,
    default=1,
    metavar='N',
    help='publish when the run is so many steps further (default: every checkpoint)',
  )
  parser.add_argument('--poll_s', type=float, default=10.0, metavar='SECONDS')
  parser.add_argument('--once', action='store_true', help='publish the newest checkpoint and stop')
  parser.add_argument(
    '--stop_after_steps',
    type=int,
    metavar='TOTAL',
    help='stop when a checkpoint of this step is published',
  )
  parser.add_argument('--batch_size', type=int, default=256)
  parser.add_argument(
    '--keep_generations',
    type=int,
    default=2,
    help='newest generations kept in INDEX, besides pinned ones',
  )
  parser.add_argument(
    '--retry_for_s',
    type=float,
    default=300.0,
    metavar='SECONDS',
    help='how long an unreachable retrieval process is waited for',
  )
  published = refresh(**vars(parser.parse_args(argv)))
  print(f'{published} generations published')
