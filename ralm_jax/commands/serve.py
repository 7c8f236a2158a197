"""Serve: run the retrieval process for an index."""

from __future__ import annotations

from collections.abc import Sequence
import sys

from ralm_jax.commands import flags
from retrieval_service import server_flags


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Serves until a signal ends it."""
  parser = flags.Parser(prog, __doc__)
  server_flags.add(parser)
  arguments = parser.parse_args(argv)
  from retrieval_service import server

  status = server.run(arguments)
  if status:
    sys.exit(status)
