"""`ralm`: one command for each thing a user does; only `train` needs a gin file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
import importlib
import logging
import os
import sys
from typing import NoReturn

from ralm_jax.commands import flags

# Command to (module of main(argv, prog), or module:function; one line of help).
COMMANDS = {
  'quickstart': ('ralm_jax.quickstart.command', 'the whole loop on the docs of your own Python'),
  'prepare': ('ralm_jax.commands.prepare', 'published benchmark files to question files'),
  'corpus': ('ralm_jax.commands.corpus', 'passages to a tokenised, memory-mapped corpus'),
  'embed': ('ralm_jax.commands.embed', 'a corpus to a searchable index'),
  'add': ('ralm_jax.commands.edits:add', 'add a passage to a corpus and its index'),
  'replace': ('ralm_jax.commands.edits:replace', 'give passages of an index a new text'),
  'delete': ('ralm_jax.commands.edits:delete', 'take passages out of a served index'),
  'serve': ('ralm_jax.commands.serve', 'run the retrieval process'),
  'swap': ('ralm_jax.commands.swap', 'have a running retrieval process serve another index'),
  'warm_start': ('ralm_jax.commands.warm_start', 'train a retriever on crops of a corpus'),
  'convert': ('ralm_jax.commands.convert', 'released weights and indexes in, Hugging Face out'),
  'train': ('ralm_jax.commands.train', 'train reader and retriever from a gin file'),
  'refresh': ('ralm_jax.commands.refresh', 'keep an index fresh while a run trains'),
  'eval': ('ralm_jax.commands.evaluate', 'answer a file of questions and score the answers'),
  'report': ('ralm_jax.commands.report', 'mean and deviation of several runs or evaluations'),
  'infer': ('ralm_jax.commands.evaluate:infer', 'answer a file of questions without scoring'),
  'leakage': ('ralm_jax.commands.leakage', 'what questions share with training data and a corpus'),
  'kilt': ('ralm_jax.commands.kilt', "predictions in KILT's own format"),
  'ask': ('ralm_jax.commands.ask', 'answer questions and show the passages'),
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command; returns its exit status."""
  argv = list(sys.argv[1:] if argv is None else argv)
  parser = flags.Parser(
    'ralm',
    'Retrieval-augmented language models in JAX.',
    epilog='commands:\n'
    + '\n'.join(f'  {name:<11} {help_}' for name, (_, help_) in COMMANDS.items())
    + "\n\n'ralm COMMAND --help' shows a command's flags.",
  )
  # The package's face, which no module of it needs to import.
  version = importlib.import_module('ralm_jax').__version__
  parser.add_argument('--version', action='version', version=f'ralm {version}')
  parser.add_argument('command', metavar='COMMAND', help='see below')
  rest = argparse.REMAINDER
  parser.add_argument('arguments', nargs=rest, metavar='…', help='flags of that command')
  if not argv:
    parser.print_help()
    return 2
  command = parser.parse_args(argv[:1]).command.replace('-', '_')
  if command not in COMMANDS:
    parser.error(f'unknown command {argv[0]}.{flags.did_you_mean(command, COMMANDS)}')
  _set_up_libraries()
  module, _, function = COMMANDS[command][0].partition(':')
  call: Callable = getattr(importlib.import_module(module), function or 'main')
  try:
    call(argv[1:], prog=f'ralm {command}')
  except KeyboardInterrupt:
    print('interrupted; the same command goes on', file=sys.stderr)
    return 130
  except (ValueError, OSError, LookupError, RuntimeError, ImportError) as e:
    if logging.getLogger().isEnabledFor(logging.DEBUG):
      raise
    print(f'ralm {command}: error: {_message(e)}', file=sys.stderr)
    return 1
  return 0


def run(command: str) -> NoReturn:
  """What `python -m` of a command's own module does."""
  sys.exit(main([command, *sys.argv[1:]]))


def _set_up_libraries() -> None:
  """Has libraries say little; before they are imported."""
  _log_to_stderr()
  for noisy in ('orbax', 'jax', 'faiss', 'httpx', 'httpx2'):
    logging.getLogger(noisy).setLevel(logging.ERROR)
  # Orbax logs through it the traceback of every error that it raises, too.
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  # TensorFlow only feeds data here; its start-up notes would hide ours.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  # FAISS's threads must not spin on the cores that JAX computes on; OpenMP
  # reads this once, when it is loaded.
  os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')


def _log_to_stderr() -> None:
  """Sets up logging, also where a library that is imported by now already has."""
  root = logging.getLogger()
  for handler in list(root.handlers):
    if type(handler) is logging.StreamHandler:  # pylint: disable=unidiomatic-typecheck
      root.removeHandler(handler)
  handler = logging.StreamHandler(sys.stderr)
  handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', datefmt='%H:%M:%S'))
  root.addHandler(handler)
  root.setLevel(logging.INFO)


def _message(error: Exception) -> str:
  if isinstance(error, OSError) and error.errno and error.filename and error.strerror:
    return f'{os.fsdecode(error.filename)}: {error.strerror[0].lower()}{error.strerror[1:]}'
  if isinstance(error, UnicodeDecodeError):
    return f'a file is not UTF-8 ({error}); convert it to UTF-8'
  # A KeyError's text is the repr of its argument.
  if isinstance(error, KeyError) and len(error.args) == 1 and ' ' not in str(error.args[0]):
    return f'missing field or name {error.args[0]!r}'
  text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
  # gin appends where the error passed through it.
  lines = text.split('\n')
  while lines and lines[-1].startswith('  In call to configurable'):
    lines.pop()
  return '\n'.join(lines).strip() or type(error).__name__


if __name__ == '__main__':
  sys.exit(main())
