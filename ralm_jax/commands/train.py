"""Training: `ralm train --gin_file=… --gin.MODEL_DIR=…`."""

from __future__ import annotations

from collections.abc import Sequence

from ralm_jax.commands import flags, launch


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Parses flags and gin, then trains; several seeds in a process each."""
  parser = launch.parser(prog, __doc__)
  text = (
    'train with the seeds 0 to N - 1, one after another, into MODEL_DIR/seed_0, ..., and print '
    'mean and standard deviation (default: one run, with RANDOM_SEED)'
  )
  parser.add_argument('--seeds', type=flags.COUNT, metavar='N', help=text)
  arguments = launch.parse(parser, argv)
  if arguments.seeds is None:
    from ralm_jax.runs import training

    launch.call(training.train, arguments)
    return
  if arguments.coordinator_address or arguments.multihost or arguments.dry_run:
    raise ValueError(
      '--seeds goes neither with several hosts nor with --dry_run; bind RANDOM_SEED and MODEL_DIR '
      'for each run instead.'
    )
  from ralm_jax.commands import seeds

  seeds.train_seeds(
    arguments.gin_file, arguments.gin_bindings, arguments.gin_search_paths, arguments.seeds
  )
