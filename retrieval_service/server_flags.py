"""Flags of the retrieval process, for its own module and for `ralm serve`.

Apart from the process, so that showing them imports no gRPC.
"""

import argparse

from retrieval_service.options import ServingOptions


def add(parser: argparse.ArgumentParser) -> None:
  """Adds the flags; help texts show their defaults whatever the formatter."""
  parser.add_argument('--index', required=True, help='index folder')
  parser.add_argument(
    '--address',
    default='localhost:50051',
    help='host:port to listen on; port 0 takes a free one (default: %(default)s)',
  )
  ServingOptions.add_flags(parser)
  parser.add_argument(
    '--exit_with_parent',
    action='store_true',
    help='end when the starting process does (its end of stdin closes)',
  )
