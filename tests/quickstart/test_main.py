"""The quickstart at smoke size: every step runs and leaves what it promises."""

import json

import pytest

from ralm_jax.quickstart import recipe
from ralm_jax.quickstart.main import Quickstart


@pytest.mark.slow
def test_smoke_run_and_second_start(tmp_path, capsys):
  run = Quickstart(str(tmp_path), recipe.SMOKE)
  summary = run.run()
  saved = json.loads((tmp_path / 'summary.json').read_text())
  for name in (
    'recall_at_5_before',
    'recall_at_5_after',
    'exact_match',
    'exact_match_closed_book',
    'seconds',
  ):
    assert saved[name] == summary[name] and saved[name] >= 0
  lines = (tmp_path / 'evaluation' / 'predictions.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert len(records) == summary['test_questions']
  assert set(records[0]) >= {'id', 'query', 'answers', 'prediction', 'passages', 'metrics'}
  assert set(records[0]['passages'][0]) == {'id', 'title', 'text', 'score', 'probability'}
  # Started again it finds everything done and says the same.
  again = Quickstart(str(tmp_path), recipe.SMOKE).run()
  for name in ('recall_at_5_after', 'exact_match', 'exact_match_closed_book'):
    assert again[name] == summary[name]
  assert 'Ask it yourself' in capsys.readouterr().out


def test_the_questions_are_split_by_object():
  from ralm_jax.quickstart import docstring_corpus, docstrings

  split = docstring_corpus.split_by_object(docstrings.collect_docstrings())
  train = {d.name for d in split.train}
  assert len(train) > 3000 and len(split.test) > 300
  assert not train & {d.name for d in split.test}
