"""metrics.json: means over questions, by group, and what is no mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ralm_jax.evaluation import metrics as metrics_lib
from ralm_jax.evaluation.scores import by_task

_COUNTED = ('id', 'prediction', 'answers', 'group', 'metrics')


def counted(record: Mapping[str, Any]) -> dict[str, Any]:
  """The part of a prediction record that `summarize` reads."""
  return {name: record[name] for name in _COUNTED if name in record}


def summarize(records: Sequence[Mapping[str, Any]], metrics: str = 'qa') -> dict[str, Any]:
  """Metrics of a whole evaluation: the mean of each (0 to 1), and `count`.

  A metric that applies to no question is None. Where questions have groups, `groups` holds the same
  of each; where these are MMLU's subjects, `categories` that of its categories.
  """
  result = _of(records, metrics)
  by_group: dict[str, list[Mapping[str, Any]]] = {}
  for record in records:
    if record.get('group'):
      by_group.setdefault(record['group'], []).append(record)
  if by_group:
    result['groups'] = {name: _of(by_group[name], metrics) for name in sorted(by_group)}
    of_groups = by_task.family(metrics).of_groups
    result |= of_groups(records) if of_groups else {}
  return result


def _of(records: Sequence[Mapping[str, Any]], metrics: str) -> dict[str, Any]:
  return {
    **metrics_lib.mean_metrics([record['metrics'] for record in records]),
    **by_task.corpus_metrics(metrics, records),
    'count': len(records),
  }
