"""Training: `ralm train --gin_file=… --gin.MODEL_DIR=…`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ralm_jax.commands import launch, seeds
from ralm_jax.runs.training import train


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Parses flags and gin, then trains."""
  launch.run_from_gin(
    train, argv, prog=prog, description=__doc__, add_flags=_add_flags, instead=_train_seeds
  )


def _add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--seeds',
    type=int,
    metavar='N',
    help='train with the seeds 0 to N - 1, one after another, into '
    'MODEL_DIR/seed_0, ..., and print mean and standard deviation',
  )


def _train_seeds(arguments: argparse.Namespace, bindings: list[str]) -> bool:
  """Whether several seeds were asked for; each is a process of its own."""
  if arguments.seeds is None:
    return False
  if arguments.coordinator_address or arguments.multihost or arguments.dry_run:
    raise ValueError(
      '--seeds goes neither with several hosts nor with --dry_run; bind '
      'RANDOM_SEED and MODEL_DIR for each run instead.'
    )
  seeds.train_seeds(
    arguments.gin_file,
    [*arguments.gin_bindings, *bindings],
    arguments.gin_search_paths.split(','),
    arguments.seeds,
  )
  return True
