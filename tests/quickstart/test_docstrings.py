"""The quickstart's corpus: real docstrings of the Python that runs the tests."""

import json
import subprocess
import sys

import pytest

from ralm_jax.preparation import standard_library
from ralm_jax.quickstart import docstring_corpus, docstrings
from ralm_jax.quickstart.docstrings import Docstring


@pytest.fixture(scope='module')
def collected():
  return docstrings.collect_docstrings()


def test_collects_thousands_of_distinct_questions(collected):
  assert len(collected) > 3000
  names = [d.name for d in collected]
  assert names == sorted(set(names))
  sentences = [d.sentence.lower() for d in collected]
  assert len(set(sentences)) == len(sentences)


def test_parsed_and_compiled_modules_are_both_there(collected):
  by_name = {d.name: d for d in collected}
  assert by_name['math.hypot'].text.startswith('Multidimensional Euclidean distance')
  assert 'shlex.split' in by_name
  assert 'os.path.commonpath' in by_name
  assert 'collections.abc' in by_name
  dotted_parts = {part for name in by_name for part in name.split('.')}
  assert not any(part.startswith('_') for part in dotted_parts - {'_thread'})


def test_passage_holds_its_question_and_is_short(collected):
  for d in collected:
    assert len(d.text.split()) <= 100
    assert '\n' not in d.text + d.sentence
    assert d.text.startswith(d.sentence[:40])
    assert d.name not in d.sentence


def test_collecting_is_silent_imports_no_sources_and_repeats_itself():
  program = (
    'import sys\n'
    'from ralm_jax.quickstart import docstrings\n'
    'import hashlib\n'
    'found = docstrings.collect_docstrings()\n'
    'assert "tkinter" not in sys.modules and "this" not in sys.modules\n'
    'print(hashlib.sha256(repr(found).encode()).hexdigest())\n'
  )
  outputs = set()
  for hash_seed in ('1', '2'):
    done = subprocess.run(
      [sys.executable, '-c', program],
      capture_output=True,
      text=True,
      env={'PYTHONHASHSEED': hash_seed, 'PYTHONPATH': ':'.join(sys.path)},
      check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    outputs.add(done.stdout)
  (output,) = outputs
  assert len(output.split()) == 1


@pytest.mark.parametrize(
  'docstring, expected',
  [
    ('hypot(*coordinates) -> value\n\nMultidimensional.', 'Multidimensional.'),
    ('D.get(k[,d]) -> D[k] if k in D.  More.', 'More.'),
    ('f(a=(1, 2)) -- Do this', 'Do this'),
    ('dir([object]) -> list of strings\n\nShow it.', 'Show it.'),
    ('  Indented.\n\n    More.\n    ', 'Indented.\n\nMore.'),
    ('Return f(x) for x.', 'Return f(x) for x.'),
  ],
)
def test_signature_lines_go(docstring, expected):
  assert standard_library.clean_docstring(docstring) == expected


@pytest.mark.parametrize(
  'text, expected',
  [
    ('One here. Two here.', 'One here.'),
    ('Names, e.g. a.b, count\nas one. Two.', 'Names, e.g. a.b, count as one.'),
    ('No full stop\n\nSecond paragraph.', 'No full stop'),
    ('Is it? Yes.', 'Is it?'),
  ],
)
def test_first_sentence(text, expected):
  assert docstrings.first_sentence(text) == expected


def test_split_is_by_object_and_stable(collected):
  split = docstring_corpus.split_by_object(collected)
  assert 0.07 < len(split.test) / len(collected) < 0.13
  assert len(split.train) + len(split.test) == len(collected)
  assert not {d.name.lower() for d in split.train} & {d.name.lower() for d in split.test}
  # A group's side does not depend on the other groups.
  assert not docstring_corpus.split_by_object(split.test).train
  assert not docstring_corpus.split_by_object(split.train).test
  other = docstring_corpus.split_by_object(collected, seed=1)
  assert set(other.test) != set(split.test)


def test_aliases_never_straddle_the_split():
  # Pairs that exact match takes for one answer, and objects under two names.
  pairs = []
  for i in range(200):
    pairs.append(Docstring(f'm{i}.Name', f'Sentence {i}.', f'Text {i}.'))
    pairs.append(Docstring(f'M{i}.name', f'Another {i}.', f'Else {i}.'))
    pairs.append(Docstring(f'x{i}.alias', f'Third {i}.', f'Text {i}.'))
  split = docstring_corpus.split_by_object(pairs, test_fraction=0.5)
  sides = {d.name: side for side in ('train', 'test') for d in getattr(split, side)}
  for i in range(200):
    assert sides[f'm{i}.Name'] == sides[f'M{i}.name'] == sides[f'x{i}.alias']
  assert set(sides.values()) == {'train', 'test'}


def test_files_carry_the_corpus_and_the_questions(tmp_path, collected):
  some = collected[:300]
  split = docstring_corpus.write_corpus(tmp_path / 'new', some)
  read = {
    name: [json.loads(line) for line in (tmp_path / 'new' / f'{name}.jsonl').open('rb')]
    for name in ('passages', 'train', 'test')
  }
  assert sorted(p.name for p in (tmp_path / 'new').iterdir()) == [
    'passages.jsonl',
    'test.jsonl',
    'train.jsonl',
  ]
  passages = {p['id']: p for p in read['passages']}
  assert len(passages) == len(some) == len(read['train']) + len(read['test'])
  assert len(read['test']) == len(split.test) > 0
  for question in read['train'] + read['test']:
    passage = passages[question['gold_passage_id']]
    assert question['answers'] == [passage['title']]
    assert passage['text'].startswith(question['question'][:40])
    assert set(passage) == {'id', 'title', 'section', 'text'}


def test_bad_arguments(tmp_path):
  one = Docstring('a.b', 'Do a thing.', 'Do a thing.')
  with pytest.raises(ValueError, match='between 0 and 1'):
    docstring_corpus.split_by_object([one], test_fraction=1.5)
  with pytest.raises(ValueError, match="'a.b' occurs twice"):
    docstring_corpus.write_corpus(tmp_path, [one, one])
  with pytest.raises(ValueError, match='both need at least one'):
    docstring_corpus.write_corpus(tmp_path, [one])
