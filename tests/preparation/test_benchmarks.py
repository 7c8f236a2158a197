"""What becomes of each benchmark's published files."""

import csv
import io
import json
import tarfile

import pytest

from tests.preparation import preparing


def test_triviaqa_from_its_archive(tmp_path):
  def data(prefix, n):
    return json.dumps(
      {
        'Data': [
          {
            'QuestionId': f'{prefix}_{i}',
            'Question': f'{prefix} {i}?',
            'Answer': {'Value': 'PARIS', 'Aliases': ['Paris', 'Lutetia']},
          }
          for i in range(n)
        ],
        'Version': 1.0,
      }
    ).encode()

  for name, members in (
    (
      'triviaqa-unfiltered.tar.gz',
      {
        'triviaqa-unfiltered/unfiltered-web-train.json': data('train', 30),
        'triviaqa-unfiltered/unfiltered-web-dev.json': data('dev', 5),
      },
    ),
    (
      'dataindex.tar.gz',
      {
        'TQA.train.idx.json': b'[4, 2]',
        'TQA.dev.idx.json': b'[1]',
        'TQA.test.idx.json': b'[3]',
        'NQ.train.idx.json': b'[0]',
      },
    ),
  ):
    with tarfile.open(tmp_path / name, 'w:gz') as tar:
      for member, content in members.items():
        info = tarfile.TarInfo(member)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
  out = tmp_path / 'out'
  preparing.prepare(
    'triviaqa', out, tmp_path / 'triviaqa-unfiltered.tar.gz', tmp_path / 'dataindex.tar.gz'
  )
  assert [(q.id, q.target) for q in preparing.questions(out / 'train.jsonl')] == [
    ('train_4', 'Paris'),
    ('train_2', 'Paris'),
  ]
  assert preparing.texts(out / 'dev.jsonl') == ['train 1?']
  [test] = preparing.questions(out / 'test.jsonl')
  assert test.question == 'dev 3?' and 'Lutetia' in test.answers
  assert not (out / '.unpacked').exists()
  (tmp_path / 'train.json').write_bytes(data('w', 3))
  preparing.prepare('triviaqa', tmp_path / 'f', f'dev={tmp_path}/train.json', variant='filtered')
  assert len(preparing.texts(tmp_path / 'f/dev.jsonl')) == 3


def _mmlu(folder):
  """A whole MMLU, tiny: two subjects, and auxiliary files."""
  for split, suffix, n in (
    ('dev', '_dev', 5),
    ('val', '_val', 2),
    ('test', '_test', 4),
    ('auxiliary_train', '', 20),
  ):
    names = ('law', 'art') if suffix else ('race', 'mc_test')
    for name in names:
      path = folder / split / f'{name}{suffix}.csv'
      path.parent.mkdir(parents=True, exist_ok=True)
      with open(path, 'w', newline='') as file:
        csv.writer(file).writerows(
          [f'{name} {split} {i}?', 'a', 'b', 'c', 'd', 'ABCD'[i % 4]] for i in range(n)
        )
  return folder


def test_the_four_ways_to_use_mmlu(tmp_path):
  folder = _mmlu(tmp_path / 'data')
  files = {}
  for variant, kwargs in (
    ('zero_shot', {}),
    ('five_shot', {}),
    ('multitask', {}),
    ('transfer', {'auxiliary_valid': 7}),
  ):
    out = tmp_path / variant
    preparing.prepare('mmlu', out, folder, variant=variant, **kwargs)
    files[variant] = {
      str(p.relative_to(out)): preparing.questions(p) for p in sorted(out.rglob('*.jsonl'))
    }
    assert len(files[variant]['test.jsonl']) == 8
    assert len(files[variant]['valid.jsonl']) == 4
  assert list(files['zero_shot']) == ['test.jsonl', 'valid.jsonl']
  assert list(files['five_shot']) == [
    'test.jsonl',
    'train/art.jsonl',
    'train/law.jsonl',
    'valid.jsonl',
  ]
  assert {q.group for q in files['five_shot']['train/art.jsonl']} == {'art'}
  assert len(files['five_shot']['train/art.jsonl']) == 5
  assert len(files['multitask']['train.jsonl']) == 10
  transfer = files['transfer']
  assert len(transfer['auxiliary_valid.jsonl']) == 7
  assert len(transfer['train.jsonl']) == 33 + 10
  assert {q.group for q in transfer['train.jsonl'][-10:]} == {'law', 'art'}
  auxiliary = transfer['train.jsonl'][:-10] + transfer['auxiliary_valid.jsonl']
  assert len({q.question for q in auxiliary}) == 40
  assert transfer['test.jsonl'][0].options == ('a', 'b', 'c', 'd')
  with pytest.raises(ValueError, match='auxiliary_valid is 5000, but there are 40'):
    preparing.prepare('mmlu', tmp_path / 'x', folder, variant='transfer')


def test_templama_of_changed_answers(tmp_path):
  def fact(i, year, *names):
    return {
      'query': f'fact {i} is _X_.',
      'date': year,
      'id': f'Q{i}_{year}',
      'relation': 'P1',
      'answer': [{'name': n, 'wikidata_id': 'Q'} for n in names],
    }

  path = preparing.lines(
    tmp_path / 'val.json',
    [
      fact(1, '2017', 'a'),
      fact(1, '2020', 'b'),
      fact(2, '2017', 'a'),
      fact(2, '2020', 'a', 'c'),
      fact(3, '2018', 'x'),
      fact(4, '2020', 'y'),
    ],
  )
  out = tmp_path / 'out'
  preparing.prepare('templama', out, path)
  assert preparing.texts(out / 'valid.2017.jsonl') == ['fact 1 is <extra_id_0>.']
  [question] = preparing.questions(out / 'valid.2020.jsonl')
  assert question.answers == ('b',) and question.group == '2020'
  preparing.prepare('templama', tmp_path / 'all', path, years=[])
  assert len(preparing.texts(tmp_path / 'all/valid.jsonl')) == 6


def test_kilt_with_triviaqas_questions(tmp_path):
  folder = tmp_path / 'kilt'
  output = [{'answer': 'x', 'provenance': [{'wikipedia_id': '7'}]}]
  preparing.lines(
    folder / 'fever-dev-kilt.jsonl',
    [{'id': 'f1', 'input': 'c', 'output': [{'answer': 'SUPPORTS'}]}],
  )
  preparing.lines(folder / 'nq-test_without_answers-kilt.jsonl', [{'id': 'n', 'input': 'q?'}])
  preparing.lines(
    folder / 'triviaqa-train_id-kilt.jsonl', [{'id': 'qw_1', 'input': '', 'output': output}]
  )
  with pytest.raises(ValueError, match='publishes TriviaQA without its questions'):
    preparing.prepare('kilt', tmp_path / 'out', folder)
  (folder / 'wikipedia-train.json').write_text(
    json.dumps({'Data': [{'QuestionId': 'qw_1', 'Question': 'where?'}]})
  )
  preparing.prepare('kilt', tmp_path / 'out', folder)
  out = tmp_path / 'out'
  assert sorted(str(p.relative_to(out)) for p in out.rglob('*.jsonl')) == [
    'fever/dev.jsonl',
    'nq/test.jsonl',
    'triviaqa/train.jsonl',
  ]
  [question] = preparing.questions(out / 'triviaqa/train.jsonl')
  assert question.question == 'where?' and question.provenance == (('7',),)
  assert preparing.texts(out / 'nq/test.jsonl', require_answers=False) == ['q?']


def test_jeopardy_is_divided_by_its_clues(tmp_path):
  path = tmp_path / 'JEOPARDY_QUESTIONS1.json'
  path.write_text(
    json.dumps([{'question': f"'clue {i}'", 'answer': f'entity {i % 9}'} for i in range(300)])
  )
  out = tmp_path / 'out'
  preparing.prepare('jeopardy', out, path, test_fraction=0.3)
  n = {name: len(preparing.texts(out / f'{name}.jsonl')) for name in ('train', 'dev', 'test')}
  assert sum(n.values()) == 300 and 60 < n['test'] < 120 and 10 < n['dev'] < 55


def test_jeopardys_lists_and_parts(tmp_path):
  path = tmp_path / 'JEOPARDY_QUESTIONS1.json'
  path.write_text(
    json.dumps([{'question': f"'clue {i}'", 'answer': f'entity {i}'} for i in range(100)])
  )
  shots = tmp_path / 'list.json'
  shots.write_text(json.dumps(list(range(60))))  # Surely some are not in train.
  report = preparing.prepare('jeopardy', tmp_path / 'out', path, shots_list=str(shots))
  out = tmp_path / 'out'
  chosen = [q.answers[0] for q in preparing.questions(out / 'train.60-shot.jsonl')]
  train = {q.answers[0] for q in preparing.questions(out / 'train.jsonl')}
  assert set(chosen) - train and len(set(chosen)) == 60
  assert not any('not among the files' in line for line in report.lines)
  assert report.manifest['absent'] == []


def test_wikitext_becomes_passages(tmp_path):
  folder = tmp_path / 'wikitext-2'
  folder.mkdir()
  for split in ('train', 'valid'):
    (folder / f'wiki.{split}.tokens').write_text(
      ' \n = Robert <unk> = \n \n A text . \n \n = = Career = = \n \n More . \n'
    )
  out = tmp_path / 'out'
  preparing.prepare('wikitext', out, folder)
  rows = [json.loads(line) for split in ('train', 'valid') for line in open(out / f'{split}.jsonl')]
  assert [(row['section'], row['text']) for row in rows[:2]] == [
    ('', 'A text .'),
    ('Career', 'More .'),
  ]
  # One corpus may be built of all the files.
  assert len({row['id'] for row in rows}) == 4


def test_on_real_files(tmp_path, shared_data):
  preparing.prepare('web_questions', tmp_path / 'web', shared_data / 'webquestions', shots=64)
  assert [
    len(preparing.texts(tmp_path / f'web/{s}.jsonl'))
    for s in ('train', 'train.64-shot', 'dev', 'test')
  ] == [2834, 64, 944, 2032]
  preparing.prepare('mmlu', tmp_path / 'mmlu', shared_data / 'mmlu', variant='multitask')
  test = preparing.questions(tmp_path / 'mmlu/test.jsonl')
  assert len(test) == 1067 and len({q.group for q in test}) == 6
