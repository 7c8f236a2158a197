"""The same training run with several seeds, and what they vary by."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import difflib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from typing import Any

from ralm_jax.files import atomic_files
from ralm_jax.jobs import report
from ralm_jax.jobs.inputs import Fingerprints
from ralm_jax.jobs.report import Result
from ralm_jax.runs import gin_config

FINISHED = 'finished.json'
_SEED, _DIRECTORY, _STEPS = 'RANDOM_SEED', 'MODEL_DIR', 'TRAIN_STEPS'
_INDEX, _ADDRESS = 'INDEX', 'RETRIEVAL_ADDRESS'
_REFRESH, _FOLLOW = 'REFRESH_INDEX', 'FOLLOW_CURRENT'
_EVALUATES = ('EVAL_QUESTIONS', 'EVAL_PERIOD')
_QUESTIONS = ('TRAIN_QUESTIONS', 'EVAL_QUESTIONS')
_CHECKPOINT = re.compile(r'checkpoint_(\d+)')
_CHANGES_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class _Configuration:
  """What gin files and flags say of a run."""

  files: Sequence[str]
  bindings: Sequence[str]
  search_paths: Sequence[str]

  def with_bindings(self, *bindings: str) -> _Configuration:
    return dataclasses.replace(self, bindings=[*self.bindings, *bindings])

  def parse(self) -> None:
    gin_config.import_tensorflow()
    gin_config.parse(self.files, self.bindings, self.search_paths)

  def flags(self) -> list[str]:
    return [
      *(f'--gin_file={file}' for file in self.files),
      *(f'--gin_bindings={binding}' for binding in self.bindings),
      f'--gin_search_paths={",".join(self.search_paths)}',
    ]

  def macros(self) -> dict[str, Any]:
    """What it binds; it must be one that has seeds."""
    import gin

    self.parse()
    values: dict[str, Any] = {}
    for name in (
      _SEED,
      _DIRECTORY,
      _STEPS,
      _INDEX,
      _ADDRESS,
      _REFRESH,
      _FOLLOW,
      *_EVALUATES,
      *_QUESTIONS,
    ):
      try:
        values[name] = gin.query_parameter(f'%{name}')
      except ValueError:
        if name in (_SEED, _DIRECTORY):
          raise ValueError(
            f'The configuration has no macro {name}, which several seeds need; write it as '
            f'gin_configs/runs/train.gin does ({name} = ..., and %{name} where it is used).'
          ) from None
        values[name] = None
    return values

  def lines(self, *, without_steps: bool) -> list[str]:
    """Lines that tell one configuration from another, wherever the run lies."""
    import gin

    self.parse()
    gin.bind_parameter(f'%{_DIRECTORY}', '')
    if without_steps:
      gin.bind_parameter(f'%{_STEPS}', 0)
    return gin.config_str().splitlines()


def train_seeds(
  gin_files: Sequence[str],
  bindings: Sequence[str],
  search_paths: Sequence[str] = ('.',),
  seeds: int | Sequence[int] = 5,
  *,
  flags: Sequence[str] = (),
  metrics: Sequence[str] | None = None,
  show: bool = True,
) -> list[Result]:
  """Trains with each seed into MODEL_DIR/seed_N, one after another.

  Each run is a process of its own. Started again, it goes on with the run that was interrupted;
  finished ones are passed over, or go on where TRAIN_STEPS is more than before. Runs that build or
  refresh their index, or follow what a second job publishes in it, each have one of their own,
  INDEX-seed_N. `seeds` says how many, from 0, or which; `flags` are further ones of `ralm train`.

  Returns:
    The last evaluation of each run; [] where the runs evaluate nothing.

  Raises:
    ValueError: a configuration without MODEL_DIR or RANDOM_SEED, or other than
      that of a run that is finished; no seeds.
    RuntimeError: a run has failed.
  """
  chosen = list(range(seeds) if isinstance(seeds, int) else seeds)
  if not chosen or len(set(chosen)) != len(chosen) or min(chosen) < 0:
    raise ValueError(f'seeds must be at least 1, or different numbers from 0; got {seeds}.')
  # Before the first run starts: a mistake in it would stop each of them.
  configuration = _Configuration(gin_files, bindings, search_paths)
  macros = configuration.macros()
  directory = str(macros[_DIRECTORY])
  index = _own_index(macros)
  steps = macros[_STEPS] if isinstance(macros[_STEPS], int) else None
  files = Fingerprints()
  questions = {name: files.of_files(macros[name]) for name in _QUESTIONS if macros[name]}
  unfinished = []
  for seed in chosen:
    folder = os.path.join(directory, f'seed_{seed}')
    own = configuration.with_bindings(f'{_SEED} = {seed}', f'{_DIRECTORY} = {folder!r}')
    if index is not None:
      own = own.with_bindings(f'{_INDEX} = {f"{index}-seed_{seed}"!r}')
    description = {
      'seed': seed,
      'steps': steps,
      'configuration': own.lines(without_steps=steps is not None),
      'questions': questions,
    }
    if _is_finished(folder, description):
      logging.info('%s is finished already.', folder)
    else:
      unfinished.append((folder, own, description))
  for folder, own, description in unfinished:
    logging.info('Training with seed %d into %s.', description['seed'], folder)
    _train([*own.flags(), *flags], folder)
    _check_evaluated(folder, all(macros[name] for name in _EVALUATES))
    atomic_files.write(
      os.path.join(folder, FINISHED), (json.dumps(description, indent=2) + '\n').encode('utf-8')
    )
  try:
    results = report.collect(directory)
  except FileNotFoundError as error:
    logging.warning('All runs are finished, but there is nothing to average: %s', error)
    return []
  wanted = {f'seed_{seed}' for seed in chosen}
  results = [result for result in results if result.name in wanted]
  if show and results:
    print(report.render(results, metrics), end='')
  return results


def _train(flags: Sequence[str], folder: str) -> None:
  status = _run([sys.executable, '-m', 'ralm_jax', 'train', *flags])
  if status == 130:
    raise KeyboardInterrupt
  if status:
    raise RuntimeError(
      f'The run {folder} ended with status {status}; see above. The same command goes on with it.'
    )


def _run(command: Sequence[str]) -> int:
  """Exit status of a command that ends when this program is told to, by SystemExit then."""
  process: subprocess.Popen | None = None
  told = False

  def stop(*unused_signal) -> None:
    nonlocal told
    if process is not None:
      # Whoever asks twice does not want to wait.
      (process.kill if told else process.terminate)()
    told = True

  # Only the main thread can handle signals.
  handles = threading.current_thread() is threading.main_thread()
  former = signal.signal(signal.SIGTERM, stop) if handles else None
  try:
    process = subprocess.Popen(command)
    if told:  # while it was started
      process.terminate()
    try:
      status = process.wait()
    except BaseException:
      # An interrupt typed at the terminal has reached it, too.
      process.terminate()
      process.wait()
      raise
  finally:
    if handles:
      # None where something other than Python had set it.
      signal.signal(signal.SIGTERM, former or signal.SIG_DFL)
  if told:
    raise SystemExit(128 + signal.SIGTERM)
  return status


def _check_evaluated(folder: str, evaluates: bool) -> None:
  """Raises RuntimeError where the evaluation of the last step is missing.

  Also of a run whose configuration does not have it evaluate, but that has before.
  """
  evaluations = os.path.join(folder, 'inference_eval')
  if not evaluates and not os.path.isdir(evaluations):
    return
  names = os.listdir(folder) if os.path.isdir(folder) else []
  steps = [int(match[1]) for match in map(_CHECKPOINT.fullmatch, names) if match]
  if not steps:
    raise RuntimeError(f'The run {folder} ended without a checkpoint.')
  path = os.path.join(evaluations, f'step_{max(steps)}', 'metrics.json')
  if not os.path.exists(path):
    raise RuntimeError(
      f'The run {folder} ended without an evaluation of its last step: there is no {path}. The '
      'same command makes up for it.'
    )


def _own_index(macros: dict[str, Any]) -> str | None:
  """The index that a run changes, of which each seed needs its own."""
  changes = macros[_REFRESH] or macros[_FOLLOW]
  if changes and macros[_ADDRESS]:
    raise ValueError(
      f'Every seed would refresh the index that {macros[_ADDRESS]} serves, or follow who does, and '
      'begin with what the one before has left; give INDEX in place of RETRIEVAL_ADDRESS, or run '
      'the seeds one by one.'
    )
  index = macros[_INDEX]
  if not isinstance(index, str):
    return None
  built = os.path.exists(os.path.join(index, 'CURRENT'))
  return index if changes or not built else None


def _is_finished(folder: str, description: dict[str, Any]) -> bool:
  """Whether a run is finished as it is wanted; one of fewer steps goes on.

  ValueError where it is finished, but with another configuration.
  """
  try:
    with open(os.path.join(folder, FINISHED), encoding='utf-8') as file:
      found = json.load(file)
    configuration, steps = found['configuration'], found['steps']
  except (OSError, ValueError, KeyError, TypeError):
    return False
  changes = [
    line
    for line in difflib.unified_diff(configuration, description['configuration'], n=0, lineterm='')
    if re.match(r'[-+](?![-+]{2} ).', line)
  ]
  changes += [
    f'the files of {name} hold something else'
    for name, files in found.get('questions', {}).items()
    if files != description['questions'].get(name)
  ]
  if steps != description['steps']:
    if None not in (steps, description['steps']) and steps < description['steps']:
      if not changes:
        return False
    else:
      changes.insert(0, f'{_STEPS}: {steps} is now {description["steps"]}')
  if changes:
    more = len(changes) - _CHANGES_SHOWN
    shown = '; '.join(changes[:_CHANGES_SHOWN]) + (f' (and {more} more)' if more > 0 else '')
    raise ValueError(
      f'{folder} is finished, and its results are of another configuration: {shown}. Give another '
      f'MODEL_DIR; of a finished run {_STEPS} alone may grow.'
    )
  return True
