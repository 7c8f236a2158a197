"""Serve: run the retrieval process for an index."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import sys

from retrieval_service import server


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Serves until a signal ends it."""
  parser = argparse.ArgumentParser(prog=prog, description=__doc__)
  server.add_arguments(parser)
  status = server.run(parser.parse_args(argv))
  if status:
    sys.exit(status)
