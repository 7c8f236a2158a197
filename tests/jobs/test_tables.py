"""Tables of finished cells, and following a run's checkpoints."""

import json
import os

import pytest

from ralm_jax.evaluation.scores import statistics
from ralm_jax.jobs import cells, markdown, results, tables as job_tables, watch
from ralm_jax.jobs.cells import Cell
from ralm_jax.jobs.results import TableOptions, Wanted
from tests.jobs import finished_cells


def test_table():
  text = markdown.table(['name', 'x'], [['a|b', '1'], ['東', '10.5']])
  assert text.splitlines() == [
    '| name |    x |',
    '| :--- | ---: |',
    '| a\\|b |    1 |',
    '| 東   | 10.5 |',
  ]


def test_pivot_orders_as_people_count():
  items = [('run-10', '2020', 1), ('run-9', '2017', 2), ('run-9', '2020', 3)]
  text = markdown.pivot(tuple(map(str, item)) for item in items)
  rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines()]
  assert rows[0] == ['', '2017', '2020']
  assert rows[2:] == [['run-9', '2', '3'], ['run-10', '–', '1']]


def test_sizes_and_p_values():
  assert [markdown.size(n) for n in (None, 999, 1500, 49_200_000_000)] == [
    '–',
    '999 B',
    '1.50 kB',
    '49.20 GB',
  ]
  assert markdown.p_value(0.00001) == '< 0.0001'
  assert markdown.p_value(None) == '–'


OPTIONS = TableOptions(resamples=500)
cell = finished_cells.cell


def section(text, title):
  (found,) = [part for part in text.split('## ') if part.split('\n')[0] == title]
  return [
    [c.strip() for c in line.split('|')[1:-1]]
    for line in found.splitlines()
    if line.startswith('|')
  ]


def test_train_year_by_index_year(tmp_path):
  """The matrix that dated tasks are read from."""
  for train, index, good in ((2017, 2017, 8), (2017, 2020, 2), (2020, 2017, 3), (2020, 2020, 9)):
    cell(tmp_path, str(train), 'templama', str(index), [1.0] * good + [0.0] * (10 - good))
  text = job_tables.write_table(tmp_path, OPTIONS)
  assert text == (tmp_path / 'table.md').read_text()
  rows = section(text, 'templama: exact_match, checkpoint × index')
  assert rows[0] == ['checkpoint', '2017', '2020']
  assert rows[2:] == [['2017', '0.8000', '0.2000'], ['2020', '0.3000', '0.9000']]
  rows = section(text, 'templama: indexes')
  assert rows[0] == [
    'checkpoint, index',
    'exact_match',
    'passages',
    'index memory',
    'search, ms a query',
  ]
  assert rows[2] == ['2017, 2017', '0.8000', '1,000', '1.50 kB', '0.250']
  # By group only where asked for.
  assert '### 2017' not in text
  grouped = job_tables.render(
    tmp_path, results.read_cells(tmp_path), TableOptions(resamples=500, by_group=True)
  )
  assert '### 2017' in grouped and '0.4500' in grouped


def test_scores_and_paired_tests(tmp_path):
  first, second = [1.0] * 9 + [0.0] * 3, [1.0] * 4 + [0.0] * 8
  cell(tmp_path, 'a', 'nq', 'i', first)
  cell(tmp_path, 'b', 'nq', 'i', second)
  cell(tmp_path, 'b', 'trivia', 'i', second)
  text = job_tables.write_table(tmp_path, OPTIONS)
  scores = section(text, 'exact_match')
  assert scores[0] == ['checkpoint', 'nq', 'trivia']
  interval = statistics.bootstrap_interval(first, resamples=500)
  assert scores[2] == ['a', f'0.7500 [{interval.low:.4f}, {interval.high:.4f}]', '–']
  compared = statistics.compare(first, second, resamples=500)
  (pair,) = section(text, 'Paired tests between checkpoints')[2:]
  assert pair[:4] == ['a − b', 'nq', 'i', 'exact_match']
  assert pair[4].startswith('+0.4167 [')
  assert pair[6] == f'{compared.permutation_p:.4f}' == '0.0625'
  # Recall only counts by itself, or where it is asked for.
  assert 'recall' not in text
  assert 'recall@1_gold' in job_tables.render(
    tmp_path, results.read_cells(tmp_path), TableOptions(resamples=500, metrics=['recall@1_gold'])
  )


def test_checkpoints_with_an_index_each(tmp_path):
  """They are tested across indexes, and there is no matrix to fill."""
  cell(tmp_path, 'flat', 'nq', 'flat', [1.0] * 6)
  cell(tmp_path, 'pq', 'nq', 'pq', [0.0] * 6)
  text = job_tables.write_table(tmp_path, OPTIONS)
  (pair,) = section(text, 'Paired tests between checkpoints')[2:]
  assert pair[:3] == ['flat − pq', 'nq', 'flat, pq'] and pair[6] == '0.0312'
  assert '×' not in text and 'nq: indexes' in text


def test_only_questions_that_both_have(tmp_path, caplog):
  """What is no number is missing; a renamed file's questions are the same."""
  cell(tmp_path, 'a', 'nq', 'i', [1.0, 0.0, 1.0, 1.0], file='old')
  cell(tmp_path, 'b', 'nq', 'i', [0.0, 0.0, None, float('nan')], file='new')
  text = job_tables.write_table(tmp_path, OPTIONS)
  (pair,) = section(text, 'Paired tests between checkpoints')[2:]
  assert pair[-1] == '2' and pair[4].startswith('+0.5000')
  assert pair[5] == '–'  # resamples of two questions say nothing
  assert 'exact_match of new:3 is not finite' in caplog.text
  lines = (tmp_path / 'results.jsonl').read_text()
  assert 'NaN' not in lines
  assert json.loads(lines.splitlines()[1])['metrics']['exact_match'] == 0.0


def test_cells_of_other_questions_are_not_compared(tmp_path, caplog):
  cell(tmp_path, 'a', 'nq', 'i', [1.0, 0.0, 1.0, 1.0])
  cell(tmp_path, 'b', 'nq', 'i', [0.0, 0.0])
  text = job_tables.write_table(tmp_path, OPTIONS)
  assert 'Paired tests' not in text
  assert 'different ways: a − b on nq.' in text and 'a − b on nq' in caplog.text


def test_intervals_are_those_that_are_named(tmp_path):
  scores = [1.0] * 5 + [0.0] * 7
  cell(tmp_path, 'a', 'nq', 'i', scores)
  half = TableOptions(resamples=400, confidence=0.5)
  text = job_tables.write_table(tmp_path, half)
  found = statistics.bootstrap_interval(scores, resamples=400, confidence=0.5)
  shown = f'[{found.low:.4f}, {found.high:.4f}]'
  assert shown in text and '50% bootstrap intervals' in text
  (line,) = (tmp_path / 'results.jsonl').read_text().splitlines()
  assert json.loads(line)['of_intervals']['confidence'] == 0.5
  # Rows that have others are shown without.
  rows = results.read_cells(tmp_path)
  assert rows[0]['of_intervals'] == OPTIONS.of_intervals
  assert '[' in job_tables.render(tmp_path, rows, OPTIONS)
  assert '[' not in job_tables.render(tmp_path, rows, half)


def test_outdated_cells_are_marked(tmp_path):
  cell(tmp_path, 'a', 'nq', 'i', [1.0, 0.0])
  cell(tmp_path, 'a', 'new', 'i', [1.0, 0.0])
  cell(tmp_path, 'a', 'gone', 'i', [1.0, 0.0])
  cell(tmp_path, 'a', 'absent', 'i', [1.0, 0.0])
  cell(tmp_path, 'b', 'nq', 'i', [1.0, 0.0], step=6)
  cell(tmp_path, 'removed', 'nq', 'i', [1.0, 0.0])
  now = {
    'questions': {'0': 'of 2 lines'},
    'task': {},
    'index': {'id': 'i', 'generation': 2, 'edits': 0},
  }
  wanted = Wanted(
    tasks={
      ('nq', 'i'): now,
      ('absent', 'i'): 'no such file',
      ('new', 'i'): {**now, 'questions': {'0': 'of 3 lines'}},
    },
    checkpoints={'a': {'step': 4}, 'b': {'step': 4}},
    ignore={'i': ('index.generation',)},
  )
  rows = results.write_results(tmp_path, wanted, OPTIONS)
  assert {(row['checkpoint'], row['task']): row['outdated'] for row in rows} == {
    ('a', 'nq'): None,
    ('removed', 'nq'): None,
    ('b', 'nq'): 'checkpoint.step: 6 is now 4',
    ('a', 'new'): "questions.0: 'of 2 lines' is now 'of 3 lines'",
    ('a', 'gone'): 'not configured any more',
    ('a', 'absent'): 'no such file',
  }
  text = job_tables.write_table(tmp_path, OPTIONS, rows)
  scores = section(text, 'exact_match')
  assert scores[0] == ['checkpoint', 'absent', 'gone', 'new', 'nq']
  assert [value.endswith('†') for value in scores[2][1:]] == [True, True, True, False]
  assert '\n- b, nq, i: checkpoint.step: 6 is now 4\n' in text
  without = Wanted(wanted.tasks, wanted.checkpoints)
  assert all(row['outdated'] for row in results.read_cells(tmp_path, without))


def test_averages_over_a_part_of_the_questions(tmp_path):
  cell(tmp_path, 'a', 'nq', 'i', [1.0, None, 0.0])
  (row,) = results.read_cells(tmp_path)
  row |= {'averaged_over': {'exact_match': 2}, 'noted': {'passages_cut': 3, 'passages': 6}}
  row['groups'] = {'2017': {'exact_match': 0.5, 'count': 3}}
  text = job_tables.render(tmp_path, [row], TableOptions(resamples=500, by_group=True))
  assert '\n- exact_match of nq is averaged over 2 of 3 questions\n' in text
  assert '\n- 3 of 6 passages were cut' in text and '(a, nq, i)\n' in text
  assert section(text, 'nq: exact_match by group')[2] == ['2017', '0.5000', '3']


def test_misspelt_names(tmp_path):
  cell(tmp_path, 'run-2', 'nq', 'i', [1.0])
  rows = results.read_cells(tmp_path)
  for options, message in (
    ({'baseline': 'run2'}, "'run2'; the checkpoints are 'run-2'"),
    ({'metrics': ['exact_mach']}, "'exact_mach'; the metrics are exact_match"),
  ):
    options = TableOptions(**options)
    with pytest.raises(ValueError, match=message):
      job_tables.render(tmp_path, rows, options)
    # Others are still at it.
    text = job_tables.render(tmp_path, rows, options, pending=True)
    assert 'is not finished yet' in text or 'has the metric exact_mach' in text
  for bad in ({'confidence': 95}, {'resamples': 0}, {'metrics': 'f1'}):
    with pytest.raises(ValueError, match=f'TableOptions.{next(iter(bad))}'):
      TableOptions(**bad)


@pytest.mark.parametrize('index', ['i', 'none'])
def test_groups_without_a_matrix(tmp_path, index):
  for name, scores in (('a', [1.0, 0.0]), ('b', [1.0, 1.0])):
    cell(tmp_path, name, 'nq', index, scores)
  options = TableOptions(resamples=500, by_group=True)
  text = job_tables.write_table(tmp_path, options)
  rows = section(text, 'nq: exact_match by group')
  assert rows[0] == ['group', 'a', 'b'] and rows[2] == ['2017', '0.2500', '0.5000']
  assert 'by group' not in job_tables.write_table(tmp_path, OPTIONS)


def test_cells_that_are_just_being_replaced(tmp_path, monkeypatch):
  """A reader sees old results or new ones, no mixture and no error."""
  for name in 'ab':
    cell(tmp_path, name, 'nq', 'i', [1.0] * 12)
  rows = results.read_cells(tmp_path)
  folder = tmp_path / 'cells/a/nq/i'
  old = Cell(folder).manifest()
  (folder / cells.PREDICTIONS).unlink()
  assert 'Paired tests' not in job_tables.render(tmp_path, rows, OPTIONS)
  cell(tmp_path, 'a', 'nq', 'i', [1.0], date='later')
  read = Cell.manifest
  seen = [old]  # what the reader finds first
  monkeypatch.setattr(
    Cell, 'manifest', lambda self: seen.pop() if (seen and self.folder == folder) else read(self)
  )
  row = results.read_cells(tmp_path)[0]
  assert row['date'] == 'later' and row['count'] == 1
  monkeypatch.setattr(Cell, 'manifest', lambda self: old)
  (folder / cells.METRICS).unlink()
  assert [row['folder'] for row in results.read_cells(tmp_path)] == ['cells/b/nq/i']


def test_results_of_nothing(tmp_path):
  assert results.write_results(tmp_path / 'not' / 'there') == []
  assert (tmp_path / 'not/there/results.jsonl').read_text() == ''


def test_many_checkpoints_are_tested_against_one(tmp_path):
  for i in range(9):
    cell(tmp_path, f'run-{i}', 'nq', 'i', [float(i > j) for j in range(9)])
  rows = results.read_cells(tmp_path)
  assert [row['checkpoint'] for row in rows] == [f'run-{i}' for i in range(9)]
  text = job_tables.render(tmp_path, rows, OPTIONS)
  pairs = section(text, 'Paired tests between checkpoints')[2:]
  assert [pair[0] for pair in pairs] == [f'run-{i} − run-0' for i in range(1, 9)]
  text = job_tables.render(tmp_path, rows, TableOptions(resamples=500, baseline='run-8'))
  pairs = section(text, 'Paired tests between checkpoints')[2:]
  assert pairs[0][0] == 'run-0 − run-8' and len(pairs) == 8


def test_unfinished_cells_do_not_count(tmp_path):
  cell(tmp_path, 'a', 'nq', 'i', [1.0])
  cell(tmp_path, 'b', 'nq', 'i', [1.0])
  (tmp_path / 'cells/b/nq/i/manifest.json').write_text('{')
  (row,) = results.write_results(tmp_path)
  assert row['checkpoint'] == 'a'
  assert row['metrics'] == {'exact_match': 1.0, 'recall@1_gold': 1.0, 'absent': None}
  assert job_tables.render(tmp_path, [], OPTIONS) == 'No cell is finished yet.\n'


def checkpoint(run, step):
  (run / f'checkpoint_{step}').mkdir(parents=True)


def test_follow(tmp_path):
  """Those there are, then those that come; a half-written one never."""
  run = tmp_path / 'run'
  slept = []
  events = [
    lambda: checkpoint(run, 2),
    lambda: (run / 'checkpoint_4.orbax-checkpoint-tmp-1').mkdir(),
    lambda: (checkpoint(run, 10), checkpoint(run, 4)),
    lambda: ((run / 'checkpoint_2').rmdir(), checkpoint(run, 12)),
  ]

  def sleep(seconds):
    slept.append(seconds)
    events.pop(0)()

  found = list(watch.follow(run, until_step=11, poll_s=3, sleep=sleep))
  assert [one.step for one in found] == [2, 4, 10, 12]
  assert found[0].path == str(run / 'checkpoint_2')
  assert slept == [3] * 4


def test_follow_ends_when_idle_or_finished(tmp_path):
  checkpoint(tmp_path, 2)
  slept = []
  found = list(watch.follow(tmp_path, idle_s=10, poll_s=4, sleep=slept.append))
  assert [one.step for one in found] == [2] and len(slept) == 3
  checkpoint(tmp_path, 6)
  (tmp_path / 'config.gin').write_text(
    'TRAIN_STEPS = 6\ntrain_script.train.total_steps = %TRAIN_STEPS\n'
  )
  assert len(list(watch.follow(tmp_path))) == 2  # never sleeps
  with pytest.raises(ValueError, match='poll_s'):
    next(watch.follow(tmp_path, poll_s=0))


def test_follow_passes_over_what_is_removed(tmp_path):
  for step in (2, 4, 6):
    checkpoint(tmp_path, step)
  steps = []
  for found in watch.follow(tmp_path, until_step=6):
    steps.append(found.step)
    if found.step == 2:
      (tmp_path / 'checkpoint_4').rmdir()
  assert steps == [2, 6]


@pytest.mark.parametrize('until, steps', [(200, [100, 200]), (150, [100, 200])])
def test_follow_ends_at_its_step(tmp_path, until, steps):
  for step in (100, 200, 300):
    checkpoint(tmp_path, step)
  found = watch.follow(tmp_path, until_step=until)
  assert [one.step for one in found] == steps


def test_follow_notices_what_was_replaced(tmp_path):
  checkpoint(tmp_path, 2)

  def sleep(unused_seconds):
    checkpoint(tmp_path / 'aside', 2)
    (tmp_path / 'checkpoint_2').rmdir()
    os.rename(tmp_path / 'aside/checkpoint_2', tmp_path / 'checkpoint_2')
    checkpoint(tmp_path, 4)

  found = watch.follow(tmp_path, until_step=4, sleep=sleep)
  assert [one.step for one in found] == [2, 2, 4]
