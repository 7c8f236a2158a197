"""Commands that gin configures: their flags, processes and the configured call."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
import os
import sys
from typing import Any

from ralm_jax.commands import flags
from ralm_jax.commands.flags import Parser

_GIN = '--gin.'


def parser(prog: str | None, description: str | None) -> Parser:
  """Has the flags of gin, and those of runs on several hosts."""
  made = Parser(
    prog,
    description,
    epilog='--gin.NAME=VALUE sets a macro or parameter, e.g. '
    '--gin.MODEL_DIR=/tmp/run --gin.TRAIN_STEPS=100',
    compiles=True,
  )
  add = made.add_argument
  text = 'gin file; may be repeated, later ones override (default: none, but one is needed)'
  add('--gin_file', action='append', default=[], metavar='FILE', help=text)
  text = "one binding, e.g. 'TRAIN_STEPS = 100'; may be repeated (default: none)"
  add('--gin_bindings', action='append', default=[], metavar='BINDING', help=text)
  text = 'folders where gin files are looked for, separated by commas'
  add('--gin_search_paths', default='.', metavar='DIRS', help=text)
  add('--dry_run', action='store_true', help='parse the configuration, print it and stop')
  text = 'initialise jax.distributed from the environment (TPU pod, Slurm)'
  add('--multihost', action='store_true', help=text)
  add('--coordinator_address', help='host:port of process 0 (default: one process, or --multihost)')
  add(
    '--process_count',
    type=flags.COUNT,
    help='of --coordinator_address (default: from the environment)',
  )
  add(
    '--process_index',
    type=flags.NUMBER,
    help="this process's number (default: from the environment)",
  )
  return made


def parse(own: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
  """Flags, with `--gin.NAME=VALUE` among the `gin_bindings` and a list of search paths."""
  argv = list(sys.argv[1:] if argv is None else argv)
  arguments = own.parse_args([argument for argument in argv if not argument.startswith(_GIN)])
  from ralm_jax.runs import gin_config

  arguments.gin_bindings += gin_config.split_gin_arguments(argv)[1]
  paths = arguments.gin_search_paths.split(',')
  arguments.gin_search_paths = [os.path.expanduser(path) for path in paths]
  if not arguments.gin_file:
    own.error('give a configuration, e.g. --gin_file=gin_configs/recipes/qed_tiny.gin')
  return arguments


def call(function: Callable[..., Any], arguments: argparse.Namespace, **fixed: Any) -> None:
  """Calls a configurable function as flags and gin files say, and with what is `fixed`."""
  import gin
  import jax

  from ralm_jax.files import quiet
  from ralm_jax.runs import gin_config
  from ralm_jax.training.multihost import Agreement

  if arguments.coordinator_address:
    jax.distributed.initialize(
      arguments.coordinator_address, arguments.process_count, arguments.process_index
    )
  elif arguments.multihost:
    jax.distributed.initialize()
  with Agreement().together():
    with quiet.withheld_stderr():
      gin_config.import_tensorflow()
    gin_config.parse(arguments.gin_file, arguments.gin_bindings, arguments.gin_search_paths)
  if arguments.dry_run:
    print(gin.config_str())
    return
  try:
    gin.get_configurable(function)(**fixed)
  except ValueError as error:
    if 'in the Gin registry' in str(error):
      raise ValueError(
        f'{", ".join(arguments.gin_file)}: configures nothing; see gin_configs'
      ) from error
    raise
  except TypeError as error:
    # gin's own words for a parameter that nothing binds.
    if 'missing' in str(error) and 'required' in str(error):
      raise ValueError(f'The configuration is incomplete: {str(error).splitlines()[0]}') from error
    raise
