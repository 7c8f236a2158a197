"""Warm start: train a retriever on unlabelled crops of a corpus.

`ralm warm_start --gin_file=… --gin.MODEL_DIR=…` writes a checkpoint that
`ralm train` starts from with INITIAL_CHECKPOINT_PATH.
"""

from __future__ import annotations

from collections.abc import Sequence

from ralm_jax.commands import launch


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Parses flags and gin, then trains."""
  arguments = launch.parse(launch.parser(prog, __doc__), argv)
  from ralm_jax.runs import warm_start

  launch.call(warm_start.warm_start, arguments)
