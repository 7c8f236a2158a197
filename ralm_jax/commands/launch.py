"""Entry points that are configured by gin: flags, processes, parsing."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
import sys
from typing import Any

import jax

from ralm_jax.files import quiet
from ralm_jax.runs import gin_config
from ralm_jax.training.multihost import Agreement


def run_from_gin(
  function: Callable[..., Any],
  argv: Sequence[str] | None,
  *,
  prog: str | None,
  description: str | None,
  add_flags: Callable[[argparse.ArgumentParser], None] | None = None,
  instead: Callable[[argparse.Namespace, list[str]], bool] | None = None,
  arguments_of: Mapping[str, Any] | None = None,
) -> None:
  """Parses flags and gin files, then calls a configurable function.

  Args:
    function: gets its arguments from gin.
    argv: the flags; None takes the command line's.
    prog: name shown in help.
    description: shown in help.
    add_flags: adds flags of the command's own.
    instead: given the parsed flags and the bindings, does something else than
      calling the function if it returns True. No device is in use yet.
    arguments_of: arguments of the function that no configuration sets.
  """
  import gin

  argv, bindings = gin_config.split_gin_arguments(sys.argv[1:] if argv is None else argv)
  parser = argparse.ArgumentParser(prog=prog, description=description)
  gin_config.add_flags(parser)
  parser.add_argument(
    '--dry_run', action='store_true', help='parse the configuration, print it and stop'
  )
  add_process_flags(parser)
  if add_flags is not None:
    add_flags(parser)
  arguments = parser.parse_args(argv)
  if not arguments.gin_file:
    parser.error('give a configuration, e.g. --gin_file=gin_configs/recipes/qed_tiny.gin')
  if instead is not None and instead(arguments, bindings):
    return
  initialize_processes(arguments)
  with Agreement().together():
    with quiet.withheld_stderr():
      gin_config.import_tensorflow()
    gin_config.parse(
      arguments.gin_file,
      [*arguments.gin_bindings, *bindings],
      arguments.gin_search_paths.split(','),
    )
  if arguments.dry_run:
    print(gin.config_str())
    return
  try:
    gin.get_configurable(function)(**(arguments_of or {}))
  except TypeError as error:
    # gin's own words for a parameter that nothing binds.
    if 'missing' in str(error) and 'required' in str(error):
      raise ValueError(f'The configuration is incomplete: {str(error).splitlines()[0]}') from error
    raise


def add_process_flags(parser: argparse.ArgumentParser) -> None:
  """Flags of runs on several hosts; TPU pods need none of them."""
  parser.add_argument(
    '--multihost',
    action='store_true',
    help='initialise jax.distributed from the environment (TPU pod, Slurm)',
  )
  parser.add_argument('--coordinator_address', help='host:port of process 0')
  parser.add_argument('--process_count', type=int)
  parser.add_argument('--process_index', type=int)


def initialize_processes(arguments: argparse.Namespace) -> None:
  """Starts jax.distributed where the flags ask for it."""
  if arguments.coordinator_address:
    jax.distributed.initialize(
      arguments.coordinator_address, arguments.process_count, arguments.process_index
    )
  elif arguments.multihost:
    jax.distributed.initialize()
