"""metrics.json: means over questions, by group, what is no mean, and what is to be said of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ralm_jax.evaluation import metrics as metrics_lib
from ralm_jax.evaluation.scores import by_task

_COUNTED = ('id', 'prediction', 'answers', 'group', 'metrics')
_NOTED = ('cut', 'unknown_gold_ids', 'unended', 'not_finite', 'provenance')
_CUT = {'query': 'queries_cut', 'question': 'questions_cut', 'target': 'targets_cut'}
# What is said of `noted`: of so many questions, or passages.
_SENTENCES = {
  'without_answers': '{n:,} of {count:,} questions have no answer and are scored by none',
  'unknown_gold': '{n:,} of {count:,} questions name gold passages that are not among those '
  'searched, such as {unknown_gold_example!r}: where none of a question is, recall and mrr count a '
  'miss',
  'unknown_pages': 'no passage that was found is of a page that the provenance of the {n:,} '
  'questions names (found: {page_example!r}, named: {gold_page_example!r}): recall by page and '
  'KILT scores are 0; if passages name their pages elsewhere, say so with --page_field or '
  '--page_separators',
  'passages_cut': '{n:,} of {passages:,} passages were cut before the reader read them; an '
  'answer behind the cut is not counted as found (remedies: ralm corpus --max_words, --text '
  'passage_length=…)',
  'queries_cut': '{n:,} of {count:,} queries were cut to query_length for the retriever '
  '(--text query_length=…)',
  'questions_cut': '{n:,} of {count:,} questions were cut for the reader (--text '
  'reader_query_length=…; of a multiple choice also choice_prompt_length)',
  'targets_cut': 'the loss of {n:,} of {count:,} questions is of a target cut to target_length '
  '(--text target_length=…)',
  'unended': '{n:,} of {count:,} answers reached max_length without a stop string or the end of '
  'sequence, and are cut there (--max_length; --text stop_strings=…)',
  'not_finite': '{n:,} metrics are not finite and are left out of the averages, such as '
  '{not_finite_example}',
}


def counted(record: Mapping[str, Any]) -> dict[str, Any]:
  """The part of a prediction record that `summarize` reads."""
  passages = record.get('passages') or ()
  return {
    **{name: record[name] for name in _COUNTED if name in record},
    **{name: record[name] for name in _NOTED if record.get(name)},
    'n_passages': len(passages),
    'passages_cut': sum('characters_read' in passage for passage in passages),
    **({'pages': [p.get('page') for p in passages]} if record.get('provenance') else {}),
  }


def summarize(records: Sequence[Mapping[str, Any]], metrics: str = 'qa') -> dict[str, Any]:
  """Metrics of a whole evaluation: the mean of each (0 to 1), and `count`.

  A metric that applies to no question is None; of one that applies to some, `averaged_over` has
  their number. `noted` counts what a reader of the numbers must know (see `notes`). Where questions
  have groups, `groups` holds the same of each; where these are MMLU's subjects, `categories` that
  of its categories.
  """
  result = _of(records, metrics)
  if noted := _noted(records):
    result['noted'] = noted
  by_group: dict[str, list[Mapping[str, Any]]] = {}
  for record in records:
    if record.get('group'):
      by_group.setdefault(record['group'], []).append(record)
  if by_group:
    result['groups'] = {name: _of(by_group[name], metrics) for name in sorted(by_group)}
    of_groups = by_task.family(metrics).of_groups
    result |= of_groups(records) if of_groups else {}
  return result


def numbers(means: Mapping[str, Any]) -> Iterator[tuple[str, float, str]]:
  """Each metric that has a value, and what it is averaged over where that is not all questions."""
  for name, value in means.items():
    if name != 'count' and isinstance(value, (int, float)):
      over = means.get('averaged_over', {}).get(name)
      yield name, value, '' if over is None else f' (over {over:,} of {means["count"]:,})'


def notes(means: Mapping[str, Any]) -> list[str]:
  """A sentence for each thing that is noted."""
  noted = means.get('noted', {})
  return [
    text.format(n=noted[name], count=means['count'], **noted)
    for name, text in _SENTENCES.items()
    # Where nobody gave answers, nobody asks for scores.
    if noted.get(name) and not (name == 'without_answers' and noted[name] == means['count'])
  ]


def _of(records: Sequence[Mapping[str, Any]], metrics: str) -> dict[str, Any]:
  means = metrics_lib.means_and_count([record['metrics'] for record in records])
  over = means.pop('averaged_over', {})
  count = means.pop('count')
  answered = sum(bool(r.get('answers')) and r.get('prediction') is not None for r in records)
  of_corpus = by_task.corpus_metrics(metrics, records)
  if answered < count:
    over |= dict.fromkeys(of_corpus, answered)
  return {**means, **of_corpus, 'count': count, **({'averaged_over': over} if over else {})}


def _noted(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  cut = [name for record in records for name in record.get('cut', ())]
  unknown = [ids for record in records if (ids := record.get('unknown_gold_ids'))]
  strange = [(name, r.get('id')) for r in records for name in r.get('not_finite', ())]
  found: dict[str, Any] = {
    'without_answers': sum(not record.get('answers') for record in records),
    'unknown_gold': len(unknown),
    **unknown_pages([record for record in records if record.get('pages')]),
    'passages_cut': sum(record.get('passages_cut', 0) for record in records),
    **{
      f'{one[:-1]}ies_cut' if one == 'query' else f'{one}s_cut': cut.count(one) for one in set(cut)
    },
    'unended': sum(record.get('unended', False) for record in records),
    'not_finite': len(strange),
  }
  found = {name: value for name, value in found.items() if value}
  if unknown:
    found['unknown_gold_example'] = unknown[0][0]
  if strange:
    found['not_finite_example'] = '{} of {}'.format(*strange[0])
  if 'passages_cut' in found:
    found['passages'] = sum(record.get('n_passages', 0) for record in records)
  return found


def unknown_pages(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """What is to be noted where no passage found is of any page that a question names.

  Records have the `pages` of their passages and their question's `provenance`.
  """
  found = {page: None for record in records for page in record['pages'] if page}
  named = {page: None for record in records for one in record['provenance'] for page in one}
  if not found or not named or not found.keys().isdisjoint(named):
    return {}
  return {
    'unknown_pages': len(records),
    'page_example': next(iter(found)),
    'gold_page_example': next(iter(named)),
  }
