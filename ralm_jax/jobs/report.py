"""Metrics of finished runs and evaluations, mean ± deviation over seeds."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import json
import logging
import math
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
  run: str = ''  #: the folder whose checkpoint it is, where that is known
  checkpoint: str = ''  #: what the checkpoint holds, as `store.fingerprint` has it
  asked: str = ''  #: which questions, and in which way, where that is known
  averaged_over: dict[str, int] = dataclasses.field(default_factory=dict)  #: see `summary`

  def is_of_the_same(self, other: Result) -> bool:
    """Whether both are of one checkpoint, so that they are no two seeds."""
    if os.path.realpath(self.path) == os.path.realpath(other.path):
      return True
    if self.checkpoint and other.checkpoint:
      return self.checkpoint == other.checkpoint
    known = bool(self.run) and self.step is not None
    return known and (self.run, self.step) == (other.run, other.step)


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
  lacking = [path.name for path in seeds if _metrics_file(path) is None]
  if results and lacking:
    logging.warning('%s: no results yet, or none whole, in %s.', directory, ', '.join(lacking))
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
  notes = {group: _notes(members, names) for group, members in groups.items()}
  groups = {group: _seeds(members) for group, members in groups.items()}
  rows = [
    [group, str(len(members)), *(_spread(members, name) for name in names)]
    for group, members in groups.items()
  ]
  text = markdown.table(['results', 'seeds', *names], rows)
  if any(len(members) > 1 for members in groups.values()):
    text += '\nMean ± standard deviation over seeds (n - 1).\n'
  text += ''.join(f'\n{group}: {note}.\n' for group in groups for note in notes[group])
  return text


def as_json(results: Sequence[Result]) -> list[dict]:
  """Each group with its seeds, their mean and deviation."""
  rows = []
  for group, members in markdown.grouped(results, lambda result: result.group).items():
    names = list(dict.fromkeys(name for result in members for name in result.metrics))
    notes, seeds = _notes(members, names), _seeds(members)
    # Folders of one name may be of two studies.
    twice = len({result.name for result in seeds}) < len(seeds)
    by_name = {result.path if twice else result.name: result for result in seeds}
    rows.append(
      {
        'results': group,
        'seeds': {name: result.metrics for name, result in by_name.items()},
        'steps': {name: result.step for name, result in by_name.items()},
        'questions': {name: result.count for name, result in by_name.items()},
        **({'notes': notes} if notes else {}),
        **{
          name: dataclasses.asdict(statistics.spread(values))
          for name in names
          if (values := _values(seeds, name))
        },
      }
    )
  return rows


def _seeds(members: Sequence[Result]) -> list[Result]:
  """The first result of each checkpoint: evaluated twice it is one seed."""
  found: list[Result] = []
  for result in members:
    if not any(result.is_of_the_same(one) for one in found):
      found.append(result)
  return found


def _notes(members: Sequence[Result], names: Sequence[str]) -> list[str]:
  """What is to be known of a group's means."""
  seeds = _seeds(members)
  notes = []
  for result in members:
    if all(result is not one for one in seeds):
      (first,) = [one for one in seeds if result.is_of_the_same(one)][:1]
      way = ' in another way' if result.asked != first.asked else ''
      notes.append(f'{result.path} is of the same checkpoint as {first.path}{way} and left out')
  if len({result.count for result in seeds}) > 1:
    counts = ', '.join(f'{one.count} in {one.path}' for one in seeds)
    notes.append(f'differing numbers of questions: {counts}')
  elif len({result.asked for result in seeds if result.asked}) > 1:
    notes.append('differing questions or options: ' + ', '.join(one.path for one in seeds))
  if len({result.step for result in seeds}) > 1:
    steps = [('not known' if one.step is None else one.step, one.path) for one in seeds]
    notes.append('differing steps: ' + ', '.join(f'{step} in {path}' for step, path in steps))
  for name in names:
    over = {
      f'{one.averaged_over[name]:,} of {one.count:,}' for one in seeds if name in one.averaged_over
    }
    if over:
      notes.append(f'{name} is averaged over {", ".join(sorted(over))} questions')
  return notes


def _values(members: Sequence[Result], name: str) -> list[float]:
  return [result.metrics[name] for result in members if name in result.metrics]


def _spread(members: Sequence[Result], name: str) -> str:
  values = _values(members, name)
  if not values:
    return markdown.NOTHING
  spread = statistics.spread(values)
  # Not all seeds may have it.
  part = '' if len(values) == len(members) else f' (of {len(values)})'
  if spread.deviation is None:
    return markdown.number(spread.mean) + part
  return f'{spread.mean:.4f} ± {spread.deviation:.4f}{part}'


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
    results.append(
      Result(
        group,
        name,
        str(root / row['folder']),
        _numbers(row['metrics']),
        row['count'],
        row['step'],
        os.path.realpath(run),
        row['checkpoint_fingerprint'] or '',
        row['asked'],
        row.get('averaged_over', {}),
      )
    )
  undone = [path for path in root.glob(f'{finished_cells.CELLS}/*/*/*') if _is_unfinished(path)]
  if undone:
    logging.warning('%s: %d cells are not finished and not shown.', root, len(undone))
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
  of = content.get('of') or {}
  if step:  # of the run itself
    of = {'run': os.path.realpath(folder), 'step': int(step[1])}
  return Result(
    group,
    folder.name,
    str(path),
    metrics,
    count,
    of.get('step'),
    of.get('run', ''),
    of.get('checkpoint', ''),
    of.get('asked', ''),
    content.get('averaged_over', {}),
  )


def _is_unfinished(cell: pathlib.Path) -> bool:
  return cell.is_dir() and not (cell / 'manifest.json').is_file()


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
    if name != 'count' and isinstance(value, (int, float)) and math.isfinite(value)
  }
