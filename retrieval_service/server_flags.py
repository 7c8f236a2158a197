"""Flags of the retrieval process, for its own module and for `ralm serve`.

Apart from the process, so that showing them imports no gRPC.
"""

import argparse


def add(parser: argparse.ArgumentParser) -> None:
  """Adds the flags; help texts show their defaults whatever the formatter."""
  add = parser.add_argument
  add('--index', required=True, help='index folder')
  add(
    '--address',
    default='localhost:50051',
    help='host:port to listen on; port 0 takes a free one (default: %(default)s)',
  )
  add('--nprobe', type=int, help="inverted lists a query visits (default: the index's own)")
  add('--rerank', type=int, help="candidates scored exactly; 0 for none (default: the index's own)")
  add('--threads', type=int, help='threads a search uses (default: all cores)')
  add('--build_threads', type=int, help='threads a build uses (default: one fewer than --threads)')
  add(
    '--verify_checksums',
    default=True,
    action=argparse.BooleanOptionalAction,
    help='read an index whole before it is first served (default: %(default)s)',
  )
  add(
    '--keep_generations',
    type=int,
    default=2,
    help='newest generations kept after a build, besides pinned ones (default: %(default)s)',
  )
  add(
    '--exit_with_parent',
    action='store_true',
    help='end when the starting process does (its end of stdin closes)',
  )
