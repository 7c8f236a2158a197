"""Report: metrics of finished runs and evaluations, mean ± deviation over seeds.

Each DIR is the OUTPUT of an evaluation, that of evaluation jobs, a run (its last
evaluation during training counts) or a folder of runs seed_0, seed_1, ....
What differs only in the seed makes one row.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
import dataclasses
import json
import os
import pathlib
import re

from ralm_jax.evaluation.scores import statistics
from ralm_jax.jobs import markdown, results as job_results

_SEED = re.compile(r'seed_\d+')
_STEP = re.compile(r'step_(\d+)')


@dataclasses.dataclass(frozen=True)
class Result:
  """Metrics of one evaluation.

  Attributes:
    group: what it is a seed of: a folder, and what was evaluated.
    name: of the seed.
    path: where the metrics are.
    metrics: by name.
    count: of questions.
    step: of the checkpoint; None where that is not known.
  """

  group: str
  name: str
  path: str
  metrics: dict[str, float]
  count: int
  step: int | None = None


def collect(directory: str | os.PathLike[str]) -> list[Result]:
  """All results in a folder.

  Raises:
    FileNotFoundError: there are none; the message says what was looked for.
    ValueError: a file of them is damaged.
  """
  root = pathlib.Path(directory)
  if (root / job_results.CELLS).is_dir():
    return _of_jobs(root)
  found = _of_folder(root)
  if found is not None:
    return [found]
  seeds = sorted(
    (path for path in root.glob('seed_*') if _SEED.fullmatch(path.name)),
    key=lambda path: markdown.natural(path.name),
  )
  results = [result for result in map(_of_folder, seeds) if result is not None]
  if not results:
    raise FileNotFoundError(
      f'{directory} holds no results: neither metrics.json, nor cells/ of '
      'evaluation jobs, nor inference_eval/step_*/metrics.json of a run (gin: '
      'EVAL_QUESTIONS, EVAL_PERIOD), nor seed_*/ with one of them.'
    )
  return results


def render(results: Sequence[Result], metrics: Sequence[str] | None = None) -> str:
  """A row for each group of seeds, as Markdown.

  Args:
    results: of `collect`, of any number of folders.
    metrics: names of those to show; None for all.
  """
  groups = markdown.grouped(results, lambda result: result.group)
  known = list(dict.fromkeys(name for result in results for name in result.metrics))
  names = known if metrics is None else list(metrics)
  missing = [name for name in names if name not in known]
  if missing:
    raise ValueError(f'No result has the metric {missing[0]!r}; there are {", ".join(known)}.')
  rows = []
  for group, members in groups.items():
    row = [group, str(len(members))]
    for name in names:
      values = [result.metrics[name] for result in members if name in result.metrics]
      row.append(_spread(values))
    rows.append(row)
  text = markdown.table(['results', 'seeds', *names], rows)
  if any(len(members) > 1 for members in groups.values()):
    text += '\nMean ± standard deviation over seeds (n - 1).\n'
  for group, members in groups.items():
    if len({result.count for result in members}) > 1:
      counts = ', '.join(f'{one.count} in {one.path}' for one in members)
      text += f'\n{group}: differing numbers of questions: {counts}.\n'
    if len({result.step for result in members}) > 1:
      steps = ', '.join(
        f'{"not known" if one.step is None else one.step} in {one.path}' for one in members
      )
      text += f'\n{group}: differing steps: {steps}.\n'
  return text


def as_json(results: Sequence[Result]) -> list[dict]:
  """Each group with its seeds, their mean and deviation."""
  rows = []
  for group, members in markdown.grouped(results, lambda result: result.group).items():
    names = dict.fromkeys(name for result in members for name in result.metrics)
    rows.append(
      {
        'results': group,
        'seeds': {result.name: result.metrics for result in members},
        'steps': {result.name: result.step for result in members},
        **{
          name: dataclasses.asdict(
            statistics.spread(
              [result.metrics[name] for result in members if name in result.metrics]
            )
          )
          for name in names
        },
      }
    )
  return rows


def _spread(values: Sequence[float]) -> str:
  if not values:
    return markdown.NOTHING
  spread = statistics.spread(values)
  if spread.deviation is None:
    return markdown.number(spread.mean)
  return f'{spread.mean:.4f} ± {spread.deviation:.4f}'


def _of_jobs(root: pathlib.Path) -> list[Result]:
  """Checkpoints of runs `…/seed_N` are seeds of one."""
  results = []
  for row in job_results.read_cells(root):
    run = pathlib.Path(row['run'])
    seed = _SEED.fullmatch(run.name)
    what = f'{row["task"]} @ {row["index"]}'
    if seed:
      # A name may hold the seed's, which here is one of many.
      which = row['checkpoint'].replace(run.name, run.parent.name)
      group, name = f'{which}, {what}', run.name
    else:
      group, name = f'{row["checkpoint"]}, {what}', row['checkpoint']
    results.append(
      Result(
        group, name, str(root / row['folder']), _numbers(row['metrics']), row['count'], row['step']
      )
    )
  if not results:
    raise FileNotFoundError(f'{root}: no cell is finished yet.')
  return results


def _of_folder(folder: pathlib.Path) -> Result | None:
  """Of an evaluation, or of the last one of a run."""
  path = next(_metrics_files(folder), None)
  if path is None:
    return None
  try:
    content = json.loads(path.read_text('utf-8'))
    metrics, count = _numbers(content), int(content['count'])
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'{path} is damaged ({error!r}); evaluate again.') from error
  folder = pathlib.Path(os.path.abspath(folder))
  seed = _SEED.fullmatch(folder.name)
  group = str(folder.parent if seed else folder)
  step = _STEP.fullmatch(path.parent.name)
  return Result(group, folder.name, str(path), metrics, count, int(step[1]) if step else None)


def _metrics_files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """The file that counts first."""
  if (folder / 'metrics.json').is_file():
    yield folder / 'metrics.json'
  steps = {}
  for path in folder.glob('inference_eval/step_*/metrics.json'):
    match = _STEP.fullmatch(path.parent.name)
    if match:
      steps[int(match[1])] = path
  for step in sorted(steps, reverse=True):
    yield steps[step]


def _numbers(metrics: dict) -> dict[str, float]:
  return {
    name: float(value)
    for name, value in metrics.items()
    if name != 'count' and isinstance(value, (int, float))
  }


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Prints a table of what the folders hold."""
  parser = argparse.ArgumentParser(
    prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('directories', nargs='+', metavar='DIR')
  parser.add_argument('--metrics', nargs='+', metavar='NAME', help='which ones (default: all)')
  parser.add_argument(
    '--together', metavar='NAME', help='take all results for seeds of one thing and call it so'
  )
  parser.add_argument('--json', action='store_true', help='JSON in place of a table')
  arguments = parser.parse_args(argv)
  results = [result for directory in arguments.directories for result in collect(directory)]
  if arguments.together:
    results = [dataclasses.replace(result, group=arguments.together) for result in results]
  if arguments.json:
    print(json.dumps(as_json(results), indent=2))
  else:
    print(render(results, arguments.metrics), end='')
