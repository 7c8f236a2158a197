"""Metrics of finished runs and evaluations, mean ± deviation over seeds."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
import re

from ralm_jax.evaluation.scores import statistics
from ralm_jax.jobs import markdown, results as finished_cells

_SEED = re.compile(r'seed_\d+')
_STEP = re.compile(r'step_(\d+)')


@dataclasses.dataclass(frozen=True)
class Result:
  """Metrics of one evaluation."""

  group: str  #: what it is a seed of: a folder, and what was evaluated
  name: str  #: of the seed
  path: str  #: where the metrics are
  metrics: dict[str, float]
  count: int  #: of questions
  step: int | None = None  #: of the checkpoint, where that is known


def collect(directory: str | os.PathLike[str]) -> list[Result]:
  """All results in a folder; FileNotFoundError where there are none."""
  root = pathlib.Path(directory)
  if (root / finished_cells.CELLS).is_dir():
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
      f'{directory} holds no results: neither metrics.json, nor cells/ of evaluation jobs, nor '
      'inference_eval/step_*/metrics.json of a run (gin: EVAL_QUESTIONS, EVAL_PERIOD), nor '
      'seed_*/ with one of them.'
    )
  return results


def render(results: Sequence[Result], metrics: Sequence[str] | None = None) -> str:
  """A row for each group of seeds, as Markdown; None shows all metrics."""
  groups = markdown.grouped(results, lambda result: result.group)
  known = list(dict.fromkeys(name for result in results for name in result.metrics))
  names = known if metrics is None else list(metrics)
  missing = [name for name in names if name not in known]
  if missing:
    raise ValueError(f'No result has the metric {missing[0]!r}; there are {", ".join(known)}.')
  rows = [
    [group, str(len(members)), *(_spread(_values(members, name)) for name in names)]
    for group, members in groups.items()
  ]
  text = markdown.table(['results', 'seeds', *names], rows)
  if any(len(members) > 1 for members in groups.values()):
    text += '\nMean ± standard deviation over seeds (n - 1).\n'
  for group, members in groups.items():
    if len({result.count for result in members}) > 1:
      counts = ', '.join(f'{one.count} in {one.path}' for one in members)
      text += f'\n{group}: differing numbers of questions: {counts}.\n'
    if len({result.step for result in members}) > 1:
      steps = [('not known' if one.step is None else one.step, one.path) for one in members]
      shown = ', '.join(f'{step} in {path}' for step, path in steps)
      text += f'\n{group}: differing steps: {shown}.\n'
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
        **{name: dataclasses.asdict(statistics.spread(_values(members, name))) for name in names},
      }
    )
  return rows


def _values(members: Sequence[Result], name: str) -> list[float]:
  return [result.metrics[name] for result in members if name in result.metrics]


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
  for row in finished_cells.read_cells(root):
    run = pathlib.Path(row['run'])
    seed = _SEED.fullmatch(run.name)
    what = f'{row["task"]} @ {row["index"]}'
    if seed:
      # A name may hold the seed's, which here is one of many.
      which = row['checkpoint'].replace(run.name, run.parent.name)
      group, name = f'{which}, {what}', run.name
    else:
      group, name = f'{row["checkpoint"]}, {what}', row['checkpoint']
    path, metrics = str(root / row['folder']), _numbers(row['metrics'])
    results.append(Result(group, name, path, metrics, row['count'], row['step']))
  if not results:
    raise FileNotFoundError(f'{root}: no cell is finished yet.')
  return results


def _of_folder(folder: pathlib.Path) -> Result | None:
  """Of an evaluation, or of the last one of a run."""
  path = _metrics_file(folder)
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


def _metrics_file(folder: pathlib.Path) -> pathlib.Path | None:
  """The one that counts: of the evaluation itself, or of the run's last step."""
  if (folder / 'metrics.json').is_file():
    return folder / 'metrics.json'
  found = [
    (int(match[1]), path)
    for path in folder.glob('inference_eval/step_*/metrics.json')
    if (match := _STEP.fullmatch(path.parent.name))
  ]
  return max(found)[1] if found else None


def _numbers(metrics: dict) -> dict[str, float]:
  return {
    name: float(value)
    for name, value in metrics.items()
    if name != 'count' and isinstance(value, (int, float))
  }
