"""BM25 recall of a set of questions: what a learned retriever should beat.

  python benchmarks/bm25.py --passages 'passages/*.jsonl' --questions dev.jsonl

Needs `pip install bm25s`. Title and text are indexed as lower-cased runs of
word characters, nothing stemmed, no stop words, scored in Lucene's form of
BM25. Passages are indexed whole, however long they are.

Recall is shown in two ways. By answer string: a passage among the best k
contains an answer, token by token. By gold id: the named passage itself is
among the best k. Where a corpus holds copies of the gold passage the score
of both is equal, and which comes first says nothing about the retriever; so
that recall is the one expected if passages of equal score were shuffled, and
its bounds (copies always first, gold passage always first) stand beside it.
A corpus with near-copies under other ids thus caps recall by gold id: the QED
and NQ-oracle passages share about a thousand paragraphs, so recall@1 of QED's
questions by gold id says little when both are indexed.
"""

import argparse
import os
import re
import time

import numpy as np
import tqdm

from ralm_jax.data.questions import reading
from ralm_jax.evaluation import metrics
from ralm_jax.evaluation.scores import retrieval
from ralm_jax.files import input_files, json_records

KS = (1, 5, 20)
_WORD = re.compile(r'\w+')


def tokens(text: str) -> list[str]:
  """Lower-cased runs of letters, digits and underscores."""
  return _WORD.findall(text.lower())


def read_passages(patterns: list[str]) -> tuple[list[str], list[str], list[str]]:
  """Reads the ids, titles and texts of passage jsonl files."""
  ids, titles, texts = [], [], []
  for path in input_files.expand_inputs(patterns):
    for line, row in json_records.read_json_lines(path):
      for field in ('id', 'text'):
        if not isinstance(row.get(field), str):
          raise ValueError(f'{path}:{line}: field {field!r} must be a string')
      ids.append(row['id'])
      titles.append(row.get('title') or '')
      texts.append(row['text'])
  return ids, titles, texts


def best_rows(scores: np.ndarray, k: int) -> np.ndarray:
  """The rows of the k best scores, best first, equal ones in row order.

  Args:
    scores: [N] float32.
    k: how many, at most N.

  Returns:
    [k] int64.
  """
  threshold = np.partition(scores, -k)[-k]
  rows = np.flatnonzero(scores >= threshold)
  return rows[np.argsort(-scores[rows], kind='stable')][:k]


def gold_recall(scores: np.ndarray, gold_rows: np.ndarray) -> np.ndarray:
  """Recall@k of the best gold passage when others may score the same.

  Args:
    scores: [N] float32.
    gold_rows: [G] int, at least one.

  Returns:
    [3, len(KS)] float64: copies first, expected over shuffles, gold first.
  """
  best = scores[gold_rows].max()
  above = int((scores > best).sum())
  equal = int((scores == best).sum())
  gold = int((scores[gold_rows] == best).sum())
  recalls = np.zeros([3, len(KS)])
  for column, k in enumerate(KS):
    places = min(max(k - above, 0), equal)
    # The chance that none of the gold ones is among the first `places`.
    missed = 1.0
    for drawn in range(places):
      missed *= max(equal - gold - drawn, 0) / (equal - drawn)
    recalls[:, column] = [float(places > equal - gold), 1.0 - missed, float(places > 0)]
  return recalls


def _names(paths: list[str]) -> list[str]:
  """File names without their folders, which differ from machine to machine."""
  return [os.path.basename(path) for path in paths]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument(
    '--passages', nargs='+', required=True, help='jsonl files or globs, plain or gzipped'
  )
  parser.add_argument('--questions', nargs='+', required=True)
  parser.add_argument('--k1', type=float, default=1.2)
  parser.add_argument('--b', type=float, default=0.75)
  parser.add_argument('--name', help='name of the result, bm25_QUESTIONS if not given')
  arguments = parser.parse_args()
  try:
    import bm25s
  except ImportError as error:
    raise SystemExit('this benchmark needs bm25s: pip install bm25s') from error

  # Ids of questions do not matter here, and some data repeat them.
  questions = reading.read_questions(
    arguments.questions, require_answers=False, duplicate_ids='number'
  )
  ids, titles, texts = read_passages(arguments.passages)
  if len(ids) < max(KS):
    raise SystemExit(f'{len(ids)} passages are fewer than k = {max(KS)}')
  row_of = {passage_id: row for row, passage_id in enumerate(ids)}
  if len(row_of) != len(ids):
    raise SystemExit('passage ids are not unique: recall by gold id is void')

  started = time.perf_counter()
  index = bm25s.BM25(method='lucene', k1=arguments.k1, b=arguments.b)
  index.index(
    [tokens(f'{title} {text}') for title, text in zip(titles, texts)], show_progress=False
  )
  index_seconds = time.perf_counter() - started

  answer_ranks, gold_recalls, absent = [], [], 0
  started = time.perf_counter()
  for question in tqdm.tqdm(questions, desc='questions'):
    words = tokens(question.question)
    scores = (
      index.get_scores(words)
      if words  # bm25s takes no empty query.
      else np.zeros(len(ids), np.float32)
    )
    answer_ranks.append(
      retrieval.first_hit(
        retrieval.answer_hits([texts[row] for row in best_rows(scores, max(KS))], question.answers)
      )
      if question.answers
      else None
    )
    if question.gold_passage_ids:
      rows = [row_of[i] for i in question.gold_passage_ids if i in row_of]
      absent += not rows
      gold_recalls.append(gold_recall(scores, np.array(rows)) if rows else np.zeros([3, len(KS)]))
  seconds = time.perf_counter() - started

  by_answer = metrics.mean_metrics(
    [retrieval.rank_metrics(rank, max(KS), KS, 'answer') for rank in answer_ranks]
  )
  fields = dict(
    passages=len(ids),
    passage_files=_names(arguments.passages),
    questions=len(questions),
    question_files=_names(arguments.questions),
    library=f'bm25s {bm25s.__version__}',
    method='lucene',
    k1=arguments.k1,
    b=arguments.b,
    tokenisation=r'title + text, lower-cased \w+',
    index_seconds=round(index_seconds, 2),
    seconds=round(seconds, 2),
    questions_with_answers=sum(rank is not None for rank in answer_ranks),
    questions_with_gold=len(gold_recalls),
    gold_not_indexed=absent,
  )
  print(f'{len(questions)} questions, {len(ids)} passages, k1 {arguments.k1}, b {arguments.b}')
  if absent:
    print(f'{absent} questions name only gold passages that are not indexed; they count as misses')
  if gold_recalls:
    print(f'{"":11}{"gold id":>8}{"copies first":>14}{"gold first":>12}')
    lowest, expected, highest = np.mean(gold_recalls, axis=0)
    for column, k in enumerate(KS):
      fields[f'recall@{k}_gold'] = round(float(expected[column]), 4)
      fields[f'recall@{k}_gold_copies_first'] = round(float(lowest[column]), 4)
      fields[f'recall@{k}_gold_gold_first'] = round(float(highest[column]), 4)
      print(f'recall@{k:<4}{expected[column]:8.1%}{lowest[column]:14.1%}{highest[column]:12.1%}')
  if fields['questions_with_answers']:
    print(f'{"":11}{"answer string":>14}')
    for k in KS:
      recall = by_answer[f'recall@{k}_answer']
      fields[f'recall@{k}_answer'] = round(recall, 4)
      print(f'recall@{k:<4}{recall:14.1%}')

  from reporting import write_result  # Beside this file.

  stem = _names(arguments.questions)[0].split('.')[0]
  print('written to', write_result(arguments.name or f'bm25_{stem}', fields))


if __name__ == '__main__':
  main()
