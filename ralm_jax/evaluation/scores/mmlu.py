"""MMLU's 57 subjects, their categories, and averages over both.

The categories are those of Hendrycks et al. (2021) as Atlas's scorer
(`evaluate_mmlu_predictions.py`) has them. Predictions of several evaluations,
such as those of a model for each subject, are averaged together by

  python -m ralm_jax.evaluation.scores.mmlu RUNS/*/predictions.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
import json
from typing import Any

from ralm_jax.evaluation import metrics
from ralm_jax.files import input_files, json_records

Scores = Mapping[str, float | None]
CATEGORIES: Mapping[str, tuple[str, ...]] = {
  category: tuple(subjects.split())
  for category, subjects in {
    'humanities': """
      formal_logic high_school_european_history high_school_us_history
      high_school_world_history international_law jurisprudence logical_fallacies
      moral_disputes moral_scenarios philosophy prehistory professional_law world_religions
    """,
    'social_sciences': """
      econometrics high_school_geography high_school_government_and_politics
      high_school_macroeconomics high_school_microeconomics high_school_psychology
      human_sexuality professional_psychology public_relations security_studies sociology
      us_foreign_policy
    """,
    'stem': """
      abstract_algebra astronomy college_biology college_chemistry college_computer_science
      college_mathematics college_physics computer_security conceptual_physics
      electrical_engineering elementary_mathematics high_school_biology high_school_chemistry
      high_school_computer_science high_school_mathematics high_school_physics
      high_school_statistics machine_learning
    """,
    'other': """
      anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging
      management marketing medical_genetics miscellaneous nutrition professional_accounting
      professional_medicine virology
    """,
  }.items()
}
CATEGORY_OF: Mapping[str, str] = {
  subject: category for category, subjects in CATEGORIES.items() for subject in subjects
}


def summary(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
  """Averages over the questions of MMLU's categories, and over its subjects.

  `categories` has for each category with questions the mean of each metric over these (a
  micro average, as Atlas's scorer has it) and `count`; `all` of them is every question of
  a subject of MMLU. `subject_average` is the mean over subjects of each one's means (a
  macro average). Nothing where no `group` is a subject of MMLU.
  """
  by_subject = _by_subject(records)
  if not by_subject:
    return {}
  categories = {
    category: rows
    for category, subjects in CATEGORIES.items()
    if (rows := [row for subject in subjects for row in by_subject.get(subject, ())])
  }
  categories['all'] = [row for rows in by_subject.values() for row in rows]
  means = [metrics.mean_metrics(rows) for rows in by_subject.values()]
  return {
    'categories': {name: metrics.means_and_count(rows) for name, rows in categories.items()},
    'subject_average': {**metrics.mean_metrics(means), 'count': len(by_subject)},
  }


def _by_subject(records: Iterable[Mapping[str, Any]]) -> dict[str, list[Scores]]:
  found: dict[str, list[Scores]] = {}
  for record in records:
    if record.get('group') in CATEGORY_OF:
      found.setdefault(record['group'], []).append(record['metrics'])
  return found


def unique(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """Of equal questions of one subject, with equal options, the last alone.

  Atlas's scorer counts them so. MMLU holds a few; its authors, and `summary`, count them all.
  """
  last = {json.dumps([row.get('group'), row['query'], row.get('options')]): row for row in records}
  return list(last.values())


def table(records: Sequence[Mapping[str, Any]]) -> str:
  """Percentages by subject, by category and over all; ValueError without any of MMLU."""
  found = summary(records)
  if not found:
    raise ValueError(
      "No prediction is of a subject of MMLU (field 'group'); were they made of its files, or of "
      'what `ralm prepare mmlu` wrote?'
    )
  by_subject = _by_subject(records)
  rows = {subject: metrics.means_and_count(by_subject[subject]) for subject in sorted(by_subject)}
  rows |= found['categories']
  rows['mean of subjects'] = found['subject_average']
  columns = ('accuracy', 'permuted_accuracy', 'debiased_accuracy')
  lines = [f'{"":<36}{"count":>8}' + ''.join(f'{name.replace("_", " "):>20}' for name in columns)]
  for name, row in rows.items():
    values = (row.get(column) for column in columns)
    lines.append(
      f'{name:<36}{row["count"]:>8}'
      + ''.join(f'{"-" if value is None else f"{100 * value:.2f}":>20}' for value in values)
    )
  return '\n'.join(lines)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Prints the table of prediction files."""
  parser = argparse.ArgumentParser(prog=prog, description='MMLU by subject and category.')
  parser.add_argument('predictions', nargs='+', help='predictions.jsonl; globs')
  parser.add_argument(
    '--unique', action='store_true', help='count equal questions of a subject once, as Atlas does'
  )
  arguments = parser.parse_args(argv)
  paths = input_files.expand_inputs(arguments.predictions)
  records = [record for path in paths for _, record in json_records.read_json_lines(path)]
  print(table(unique(records) if arguments.unique else records))


if __name__ == '__main__':
  main()
