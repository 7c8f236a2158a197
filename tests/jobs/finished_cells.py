"""Cells as evaluation jobs leave them, made up."""

import json

from ralm_jax.jobs import cells, results
from ralm_jax.jobs.cells import Cell
from ralm_jax.jobs.results import TableOptions

OPTIONS = TableOptions(resamples=500)


def cell(output, checkpoint, task, index, scores, **about):
  """A finished cell whose nth question scored `scores[n]`.

  Cells of as many scores are of one question file.
  """
  result = Cell(results.cell_folder(output, checkpoint, task, index))
  with result.claimed() as claim:
    inputs = {
      'checkpoint': {'step': about.pop('step', 4)},
      'questions': {'0': f'of {len(scores)} lines'},
      'task': {},
      'index': None if index == 'none' else {'id': index, 'generation': 1, 'edits': 0},
    }
    work = result.begin(claim, inputs)
    with open(work / cells.PREDICTIONS, 'w', encoding='utf-8') as file:
      for i, score in enumerate(scores):
        file.write(
          json.dumps(
            {
              'id': f'{about.get("file", "q")}:{i}',
              'metrics': {'exact_match': score, 'recall@1_gold': 1.0},
            }
          )
          + '\n'
        )
    numbers = [score for score in scores if score is not None]
    mean = sum(numbers) / len(numbers)
    (work / cells.METRICS).write_text(
      json.dumps(
        {
          'exact_match': mean,
          'recall@1_gold': 1.0,
          'absent': None,
          'count': len(scores),
          'groups': {'2017': {'exact_match': mean / 2}},
        }
      )
    )
    result.publish(
      claim,
      work,
      inputs,
      {
        'names': {'checkpoint': checkpoint, 'task': task, 'index': index},
        'run': f'/runs/{checkpoint}',
        'seconds': 1.5,
        'date': '2024-01-01',
        'index_passages': 1000,
        'index_bytes': 1500,
        'search_ms': 0.25,
        'intervals': results.intervals(work / cells.PREDICTIONS, OPTIONS),
        'of_intervals': OPTIONS.of_intervals,
        **about,
      },
    )
