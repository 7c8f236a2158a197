"""`ralm prepare`, from published layouts to question files."""

import gzip
import http.server
import io
import json
import os
import tarfile
import threading

import pytest

from ralm_jax import cli
from ralm_jax.commands import prepare
from ralm_jax.data.questions import few_shot
from ralm_jax.preparation import fetched, producing, writing
from ralm_jax.preparation.download import Patience
from tests.preparation import preparing


@pytest.fixture
def nq(tmp_path):
  """NQ-open as published, and FiD's lists."""
  folder = tmp_path / 'nq'
  for split, n in (('train', 200), ('dev', 20)):
    preparing.lines(
      folder / f'NQ-open.{split}.jsonl',
      [{'question': f'{split} question {i}', 'answer': [f'a{i}', 'b']} for i in range(n)],
    )
  for split, indexes in (('train', [5, 3, 7]), ('dev', [0, 9]), ('test', [2, 1])):
    (folder / f'NQ.{split}.idx.json').write_text(json.dumps(indexes))
  return folder


def test_nq_open_by_fids_lists(tmp_path, nq):
  shots = tmp_path / '64.json'
  shots.write_text('[11, 5]')  # Places in the published file, train or not.
  report = preparing.prepare('nq_open', tmp_path / 'out', nq, shots_list=str(shots))
  out = tmp_path / 'out'
  assert preparing.texts(out / 'train.jsonl') == [f'train question {i}' for i in (5, 3, 7)]
  assert preparing.texts(out / 'dev.jsonl') == ['train question 0', 'train question 9']
  assert preparing.texts(out / 'test.jsonl') == ['dev question 2', 'dev question 1']
  assert preparing.texts(out / 'train.2-shot.jsonl') == ['train question 11', 'train question 5']
  assert sorted(os.listdir(out)) == [
    'dev.jsonl',
    'manifest.json',
    'test.jsonl',
    'train.2-shot.jsonl',
    'train.jsonl',
  ]
  assert report.manifest['parts']['train'] == {
    'read': 200,
    'renamed_ids': 0,
    'skipped': {},
    'examples': [],
  }
  assert {s['role']: s['sha256'] for s in report.manifest['sources']}['train'] == (
    fetched.file_sha256(str(nq / 'NQ-open.train.jsonl'))
  )


def test_nq_open_without_lists(tmp_path, nq):
  for path in nq.glob('*.idx.json'):
    path.unlink()
  report = preparing.prepare('nq_open', tmp_path / 'out', nq, shots=16, shots_seed=3)
  out = tmp_path / 'out'
  train, dev = preparing.texts(out / 'train.jsonl'), preparing.texts(out / 'dev.jsonl')
  assert len(train) + len(dev) == 200 and 5 < len(dev) < 40
  assert len(preparing.texts(out / 'test.jsonl')) == 20
  assert 'by hash' in {f['name']: f['how'] for f in report.manifest['files']}['dev.jsonl']
  # The shots of the prepared file are those of the published one.
  chosen = few_shot.choose(preparing.questions(out / 'train.jsonl'), 16, 3)
  assert preparing.texts(out / 'train.16-shot.jsonl') == [q.question for q in chosen]
  with pytest.raises(ValueError, match='dev_fraction is 2'):
    preparing.prepare('nq_open', tmp_path / 'other', nq, dev_fraction=2.0)
  assert not (tmp_path / 'other').exists()


def test_shots_are_chosen_of_all_questions(tmp_path, nq, monkeypatch):
  for path in nq.glob('*.idx.json'):
    path.unlink()
  monkeypatch.setattr(producing, '_CHUNK', 5)  # Few of them at once.
  preparing.prepare('nq_open', tmp_path / 'out', nq, shots=7, shots_seed=1, dev_fraction=0)
  preparing.prepare('nq_open', tmp_path / 'carved', f'train={nq}/NQ-open.train.jsonl', shots=7)
  for out, seed in (('out', 1), ('carved', 0)):
    chosen = few_shot.choose(preparing.questions(tmp_path / out / 'train.jsonl'), 7, seed)
    assert preparing.texts(tmp_path / out / 'train.7-shot.jsonl') == [q.question for q in chosen]


def test_the_output_may_lie_among_the_files(tmp_path, nq):
  for path in nq.glob('*.idx.json'):
    path.unlink()
  for name in ('out', 'other'):
    for made in (True, False):
      assert preparing.prepare('nq_open', nq / name, nq).made == made
  (nq / 'out.downloads').mkdir()
  (nq / 'out.downloads' / 'NQ-open.train.jsonl').write_text('of another time')
  (nq / 'other' / 'manifest.json').unlink()
  assert not preparing.prepare(
    'nq_open', nq / 'out', f'train={nq}/NQ-open.train.jsonl', f'test={nq}/NQ-open.dev.jsonl'
  ).made
  # An output is told by its manifest; without one it is a folder as any.
  with pytest.raises(FileExistsError, match='other/dev.jsonl was not among'):
    preparing.prepare('nq_open', nq / 'out', nq)


def test_a_guess_is_said(tmp_path, nq):
  train = (nq / 'NQ-open.train.jsonl').rename(tmp_path / 'my-train.jsonl')
  report = preparing.prepare('nq_open', tmp_path / 'out', train, nq / 'NQ-open.dev.jsonl')
  assert {file['name']: file['how'] for file in report.manifest['files']} == {
    'train.jsonl': 'from my-train.jsonl; by hash, 0.1 of train are dev',
    'dev.jsonl': 'from my-train.jsonl; by hash, 0.1 of train are dev',
    'test.jsonl': '',
  }
  assert any('(from my-train.jsonl; by' in line for line in report.lines)


def test_the_same_command_has_nothing_to_do(tmp_path, nq):
  out = tmp_path / 'out'
  assert preparing.prepare('nq_open', out, nq).made
  before = os.stat(out / 'train.jsonl').st_ino
  nq = nq.rename(tmp_path / 'moved')
  assert not preparing.prepare('nq_open', out, nq).made
  assert os.stat(out / 'train.jsonl').st_ino == before
  with pytest.raises(FileExistsError, match='option shots None was, 2 is'):
    preparing.prepare('nq_open', out, nq, shots=2)
  with open(nq / 'NQ-open.dev.jsonl', 'a') as file:
    file.write('{"question": "new", "answer": ["x"]}\n')
  with pytest.raises(FileExistsError, match='dev.jsonl was not among the files.*--overwrite'):
    preparing.prepare('nq_open', out, nq)
  assert preparing.prepare('nq_open', out, nq, shots=2, overwrite=True).made
  assert (out / 'train.2-shot.jsonl').exists()
  (out / 'dev.jsonl').write_text('{}\n')
  with pytest.raises(FileExistsError, match='dev.jsonl was changed'):
    preparing.prepare('nq_open', out, nq, shots=2)
  assert preparing.prepare('nq_open', out, nq, shots=2, overwrite=True).made
  assert sorted(p.name for p in tmp_path.iterdir()) == ['moved', 'out']


def test_a_failure_leaves_the_earlier_output(tmp_path, nq):
  out = tmp_path / 'out'
  preparing.prepare('nq_open', out, nq)
  before = (out / 'train.jsonl').read_bytes()
  (nq / 'NQ-open.dev.jsonl').write_text('{"question": "q"}\n')
  with pytest.raises(ValueError, match="NQ-open.dev.jsonl:1: missing field 'answer'"):
    preparing.prepare('nq_open', out, nq, overwrite=True)
  assert (out / 'train.jsonl').read_bytes() == before
  assert sorted(p.name for p in tmp_path.iterdir()) == ['nq', 'out']


def test_goes_on_where_a_killed_process_replaced_an_output(tmp_path, nq):
  out = tmp_path / 'out'
  preparing.prepare('nq_open', out, nq)
  out.rename(tmp_path / '.out.replaced-1-0123abcd')
  assert not preparing.prepare('nq_open', out, nq).made
  assert sorted(os.listdir(tmp_path)) == ['nq', 'out']


def test_what_is_not_ours_is_never_replaced(tmp_path, nq):
  out = tmp_path / 'out'
  out.mkdir()
  (out / 'thesis.txt').write_text('years of work')
  for overwrite in (False, True):
    with pytest.raises(FileExistsError):
      preparing.prepare('nq_open', out, nq, overwrite=overwrite)
  assert os.listdir(out) == ['thesis.txt']


def test_malformed_records(tmp_path):
  path = tmp_path / 'train.jsonl'
  path.write_text(
    '{"id": 1, "claim": "a", "label": "SUPPORTS"}\n'
    '{"id": 2, "claim": "b", "label": "MAYBE"}\n'
    'no json\n'
    '{"id": 3, "label": "REFUTES"}\n'
    '{"id": 1, "claim": "c", "label": "REFUTES"}\n'
  )
  with pytest.raises(ValueError, match=rf"{path}:2: field 'label'"):
    preparing.prepare('fever', tmp_path / 'out', path)
  assert sorted(os.listdir(tmp_path)) == ['train.jsonl']
  report = preparing.prepare('fever', tmp_path / 'out', path, on_error='skip')
  assert preparing.texts(tmp_path / 'out/train.jsonl') == ['a', 'c']
  tally = report.manifest['parts']['train']
  assert tally['read'] == 2 and tally['renamed_ids'] == 1
  assert sum(tally['skipped'].values()) == 3 and len(tally['skipped']) == 3
  assert not any(str(path) in reason for reason in tally['skipped'])
  assert [e.split(': ')[0] for e in tally['examples']] == [f'{path}:{n}' for n in (2, 3, 4)]
  assert any('left out 3' in line for line in report.lines)
  assert 'not among the files: dev, test' in report.lines
  path.write_text('no json\n')
  with pytest.raises(ValueError, match='no question could be read as fever'):
    preparing.prepare('fever', tmp_path / 'none', path, on_error='skip')


@pytest.mark.parametrize('name', ['train.jsonl.gz', 'train.json.gz'])
def test_a_damaged_file_is_no_malformed_record(tmp_path, name, capsys):
  rows = [{'id': i, 'claim': f'claim {i}', 'label': 'SUPPORTS'} for i in range(2000)]
  content = gzip.compress('\n'.join(map(json.dumps, rows)).encode())
  path = tmp_path / name
  path.write_bytes(content[:-2000])
  arguments = [
    'prepare',
    'fever',
    '--from',
    f'train={path}',
    '--output',
    str(tmp_path / 'out'),
    '--on_error',
    'skip',
  ]
  assert cli.main(arguments) == 1
  assert f'{path}' in (error := capsys.readouterr().err) and 'damaged' in error
  assert os.listdir(tmp_path) == [name]
  path.write_bytes(content)
  assert cli.main(arguments) == 0


def test_a_question_is_written_as_it_is_read(tmp_path):
  row = {
    'id': 'x',
    'question': 'q “ü”?',
    'answers': ['B'],
    'target': 'B',
    'gold_passage_ids': ['p'],
    'exclude_passage_ids': ['s'],
    'date': '2020-01',
    'options': ['1', '2'],
    'group': 'law',
    'provenance': [['1', '2'], ['3']],
    'passages': [{'id': 'p', 'title': 't', 'text': 'x'}, {'title': '', 'text': 'y'}],
    'metadata': {'n': [1, None]},
  }
  for rows in ([row], [{'question': 'p?', 'answers': ['a.*b'], 'patterns': True}]):
    [question] = preparing.questions(preparing.lines(tmp_path / 'q.jsonl', rows))
    assert writing.row(question) == rows[0]


def test_options_that_mean_nothing(tmp_path, nq):
  for kwargs, message in (
    ({'years': ['2017']}, '--years means nothing for nq_open; it has --shots'),
    ({'variant': 'small'}, 'has no variant'),
    ({'shots': 3, 'shots_list': 'x'}, 'not both'),
    ({'on_error': 'ignore'}, "'raise' or 'skip'"),
  ):
    with pytest.raises(ValueError, match=message):
      preparing.prepare('nq_open', tmp_path / 'out', nq, **kwargs)
  with pytest.raises(ValueError, match='no training questions'):
    preparing.prepare('templama', tmp_path / 'out', nq, shots=3)
  with pytest.raises(ValueError, match='by hand from https'):
    preparing.prepare('nq_open', tmp_path / 'out')
  with pytest.raises(ValueError, match='no training questions of nq_open among'):
    preparing.prepare('nq_open', tmp_path / 'out', f'test={nq}/NQ-open.dev.jsonl', shots=3)
  assert not (tmp_path / 'out').exists()


@pytest.fixture
def publisher(tmp_path):
  """A server of the files below a folder."""
  folder = tmp_path / 'www'
  folder.mkdir()

  class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args):
      super().__init__(*args, directory=str(folder))

    def log_message(self, *_):
      pass

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  yield folder, f'http://127.0.0.1:{server.server_port}/'
  server.shutdown()
  server.server_close()
  thread.join()


def test_downloads_and_prepares(tmp_path, publisher):
  folder, url = publisher
  with tarfile.open(folder / 'copy.tar', 'w') as tar:
    info = tarfile.TarInfo('data/test/law_test.csv')
    info.size = len(content := b'one?,a,b,c,d,A\ntwo?,a,b,c,d,B\n')
    tar.addfile(info, io.BytesIO(content))
  sha256 = fetched.file_sha256(str(folder / 'copy.tar'))
  out = tmp_path / 'out'
  options = {
    'download': True,
    'addresses': {'data.tar': f'{url}copy.tar'},
    'patience': Patience(5, 2, 0.01),
  }
  # The catalogue knows the size and the checksum of the real one.
  with pytest.raises(FileNotFoundError, match='bytes, expected 166,184,960'):
    preparing.prepare('mmlu', out, **options)
  report = preparing.prepare('mmlu', out, sha256={'data.tar': sha256}, **options)
  assert preparing.texts(out / 'test.jsonl') == ['one?', 'two?']
  assert [s['sha256'] for s in report.manifest['sources']] == [sha256]
  assert {'checksums.json', 'data.tar'} <= set(os.listdir(tmp_path / 'out.downloads'))
  (folder / 'copy.tar').unlink()  # It is here now.
  assert not preparing.prepare('mmlu', out, sha256={'data.tar': sha256}, **options).made


def test_only_what_is_missing_is_fetched(tmp_path, publisher):
  folder, url = publisher
  for name, label in (('train.jsonl', 'SUPPORTS'), ('dev.jsonl', 'REFUTES')):
    preparing.lines(folder / name, [{'id': 1, 'claim': name, 'label': label}])
  train = (folder / 'train.jsonl').rename(tmp_path / 'claims.jsonl')
  sha256 = fetched.file_sha256(str(folder / 'dev.jsonl'))
  names = ('shared_task_dev.jsonl', 'shared_task_test.jsonl', 'paper_dev.jsonl', 'paper_test.jsonl')
  report = preparing.prepare(
    'fever',
    tmp_path / 'out',
    f'train={train}',
    download=True,
    addresses={name: f'{url}dev.jsonl' for name in names},
    sha256={name: sha256 for name in names},
  )
  assert preparing.texts(tmp_path / 'out/train.jsonl') == ['train.jsonl']
  assert len(report.manifest['sources']) == 5
  assert not (tmp_path / 'out.downloads/train.jsonl').exists()
  with pytest.raises(ValueError, match='train.jsonl is not fetched, --from gives it'):
    preparing.prepare(
      'fever', tmp_path / 'out', f'train={train}', download=True, sha256={'train.jsonl': sha256}
    )


def test_a_refused_download_says_what_to_do(tmp_path, publisher):
  _, url = publisher
  with pytest.raises(
    FileNotFoundError, match=('404 .*by hand from https://github.com/TalSchuster.*--from')
  ):
    preparing.prepare(
      'fever_symmetric',
      tmp_path / 'out',
      download=True,
      addresses={name: f'{url}{name}' for name in ('fever_symmetric_full.jsonl',)},
    )
  with pytest.raises(ValueError, match='no file of fever; they are train.jsonl'):
    preparing.prepare('fever', tmp_path / 'out', download=True, addresses={'x': url})
  with pytest.raises(ValueError, match='has no address to download from.*reddit'):
    preparing.prepare('jeopardy', tmp_path / 'out', download=True)


def test_the_command(tmp_path, nq, capsys):
  prepare.main(
    ['nq_open', '--from', str(nq), '--output', str(tmp_path / 'out'), '--shots', '2'],
    'ralm prepare',
  )
  assert f'{tmp_path}/out/train.2-shot.jsonl: 2 (by hash, seed 0)' in (capsys.readouterr().out)
  with pytest.raises(ValueError, match='NAME=VALUE'):
    prepare.main(['nq_open', '--output', 'x', '--sha256', 'y'])
  with pytest.raises(ValueError, match='for --download'):
    prepare.main(['nq_open', '--output', 'x', '--sha256', 'a=b'])
