"""Which file is which part of a benchmark."""

import io
import tarfile

import pytest

from ralm_jax.data.questions.formats import catalogue as question_formats
from ralm_jax.preparation import addresses, catalogue, inputs, protocols


def _touch(folder, *names):
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('x')
  return str(folder)


def _roles(benchmark, folder, *sources):
  files = inputs.find(catalogue.find(*benchmark), sources or [str(folder)]).files
  return {role: [p.removeprefix(f'{folder}/') for p in paths] for role, paths in files.items()}


def test_every_benchmark_is_whole():
  for name, variants in catalogue.BENCHMARKS.items():
    for variant, benchmark in variants.items():
      assert benchmark.name == name and benchmark.variant == variant
      assert benchmark.protocol in protocols.PROTOCOLS
      roles = [part.role for part in benchmark.parts]
      assert len(set(roles)) == len(roles)
      for part in benchmark.parts:
        assert not part.record_format or (part.record_format in question_formats.FORMATS), part
        assert all(name == name.lower() for name in (*part.names, *part.others))
      for source in benchmark.sources:
        assert source.sha256 is None or len(source.sha256) == 64
        assert all(a.startswith('http') for a in source.addresses)


def test_what_is_downloaded_is_recognised(tmp_path):
  """Every file of the catalogue is an archive or has a role."""
  for variants in catalogue.BENCHMARKS.values():
    for benchmark in variants.values():
      folder = tmp_path / benchmark.name / benchmark.variant
      for source in benchmark.sources:
        _touch(folder, source.name)
      if benchmark.sources:
        found = inputs.find(benchmark, [str(folder / s.name) for s in benchmark.sources])
        assert len(found.paths()) == len(benchmark.sources)


def test_the_addresses_of_kilt():
  assert len(addresses.kilt('fever')) == 3
  names = [s.name for s in catalogue.find('kilt').sources]
  assert len(names) == len(set(names)) == 32  # 31 and TriviaQA's questions


def test_the_auxiliary_set_mc_test_is_no_test_set(tmp_path):
  _touch(
    tmp_path,
    'data/auxiliary_train/mc_test.csv',
    'data/dev/law_dev.csv',
    'data/auxiliary_train/race.csv',
    'data/test/law_test.csv',
    'data/test/art_test.csv',
    'data/val/law_val.csv',
    'data/README.txt',
  )
  assert _roles(('mmlu',), tmp_path) == {
    'auxiliary': ['data/auxiliary_train/mc_test.csv', 'data/auxiliary_train/race.csv'],
    'dev': ['data/dev/law_dev.csv'],
    'valid': ['data/val/law_val.csv'],
    'test': ['data/test/art_test.csv', 'data/test/law_test.csv'],
  }


def test_nq_dev_is_the_test_set(tmp_path):
  _touch(
    tmp_path,
    'NQ-open.dev.jsonl',
    'NQ-open.train.jsonl.gz',
    'dataindex/NQ.train.idx.json',
    'dataindex/NQ.dev.idx.json',
    'dataindex/NQ.test.idx.json',
    'dataindex/TQA.train.idx.json',
  )
  assert _roles(('nq_open',), tmp_path) == {
    'index_train': ['dataindex/NQ.train.idx.json'],
    'index_dev': ['dataindex/NQ.dev.idx.json'],
    'index_test': ['dataindex/NQ.test.idx.json'],
    'train': ['NQ-open.train.jsonl.gz'],
    'test': ['NQ-open.dev.jsonl'],
  }


def test_the_preferred_name_wins_and_equals_are_told_apart(tmp_path):
  _touch(tmp_path, 'curated-train.tsv', 'large2180-train.tsv', 'my-train.tsv')
  assert _roles(('curated_trec',), tmp_path)['train'] == ['large2180-train.tsv']
  _touch(tmp_path, 'old/large2180-train.tsv')
  with pytest.raises(ValueError, match='both .train. by their names.*--from train=FILE'):
    _roles(('curated_trec',), tmp_path)
  chosen = f'train={tmp_path}/old/large2180-train.tsv'
  assert _roles(('curated_trec',), tmp_path, str(tmp_path), chosen)['train'] == [
    'old/large2180-train.tsv'
  ]


def test_copies_of_other_names(tmp_path):
  _touch(tmp_path, 'nq/nq-train.qa.csv', 'nq/nq-test.qa.csv', 'nq/nq-dev.qa.csv')
  assert _roles(('nq_open',), tmp_path) == {
    'train': ['nq/nq-train.qa.csv'],
    'dev': ['nq/nq-dev.qa.csv'],
    'test': ['nq/nq-test.qa.csv'],
  }


def test_what_a_name_does_not_say(tmp_path):
  _touch(tmp_path, 'claims.jsonl')
  path = f'{tmp_path}/claims.jsonl'
  with pytest.raises(ValueError, match='does not say which part .*--from train='):
    _roles(('fever',), tmp_path, path)
  with pytest.raises(ValueError, match="no part 'training'; it has train, dev"):
    _roles(('fever',), tmp_path, f'training={path}')
  with pytest.raises(FileNotFoundError, match='no file of fever .* expected train.jsonl'):
    _roles(('fever',), tmp_path, str(tmp_path))
  with pytest.raises(FileNotFoundError, match='no such file'):
    _roles(('fever',), tmp_path, f'train={path}x')
  assert _roles(('fever',), tmp_path, f'train={path}') == {'train': ['claims.jsonl']}
  with pytest.raises(ValueError, match='are both'):
    _touch(tmp_path, 'other.jsonl')
    _roles(('fever',), tmp_path, f'train={path}', f'train={tmp_path}/other.jsonl')


def test_archives(tmp_path):
  archive = tmp_path / 'triviaqa-unfiltered.tar.gz'
  with tarfile.open(archive, 'w:gz') as tar:
    for name in (
      'triviaqa-unfiltered/unfiltered-web-dev.json',
      'x/._unfiltered-web-dev.json',
      'triviaqa-unfiltered/unfiltered-web-train.json',
      'evidence/web-train.json',
    ):
      info = tarfile.TarInfo(name)
      info.size = 1
      tar.addfile(info, io.BytesIO(b'1'))
  _touch(tmp_path, 'wiki-pages.zip')  # Of no interest.
  benchmark = catalogue.find('triviaqa')
  found = inputs.find(benchmark, [str(tmp_path)])
  assert found.archives == [str(archive)] and not found.files
  files = inputs.unpack(benchmark, found, str(tmp_path / 'out'), progress=False)
  assert {role: [p.rpartition('/')[2] for p in paths] for role, paths in files.items()} == {
    'train': ['unfiltered-web-train.json'],
    'test': ['unfiltered-web-dev.json'],
  }
  with pytest.raises(ValueError, match='holds no file of mmlu'):
    mmlu = catalogue.find('mmlu')
    inputs.unpack(mmlu, inputs.find(mmlu, [str(archive)]), str(tmp_path / 'o'), progress=False)


def test_no_other_file_takes_the_place_of_dev(tmp_path):
  """Without a dev file it is made of train: nobody would notice."""
  _touch(tmp_path, 'NQ-open.dev.jsonl', 'NQ-open.train.jsonl', 'NQ-open.efficientqa.dev.1.1.jsonl')
  assert _roles(('nq_open',), tmp_path) == {
    'train': ['NQ-open.train.jsonl'],
    'test': ['NQ-open.dev.jsonl'],
  }
  with pytest.raises(ValueError, match='does not say which part .*dev'):
    _roles(('nq_open',), tmp_path, f'{tmp_path}/NQ-open.efficientqa.dev.1.1.jsonl')
  for variant in ('unfiltered', 'filtered'):
    _touch(tmp_path / variant, 'my-train.json', 'verified-dev.json')
    assert list(_roles(('triviaqa', variant), tmp_path / variant)) == ['train']


def test_what_was_guessed_is_said(tmp_path):
  folder = _touch(tmp_path, 'my-train.tsv', 'large2180-test.tsv')
  benchmark = catalogue.find('curated_trec')
  assert inputs.find(benchmark, [folder]).guessed == {'train'}
  found = inputs.find(benchmark, [f'train={folder}/my-train.tsv', folder])
  assert not found.guessed and found.named == {'train'}


def _pack(path, *names):
  with tarfile.open(path, 'w') as tar:
    for name in names:
      info = tarfile.TarInfo(name)
      info.size = 1
      tar.addfile(info, io.BytesIO(b'1'))
  return str(path)


def _unpacked(benchmark, folder, *sources):
  benchmark = catalogue.find(*benchmark)
  files = inputs.unpack(benchmark, inputs.find(benchmark, sources), str(folder), progress=False)
  return {
    role: [
      ('archive' if p.startswith(str(folder)) else 'loose', p.rpartition('/')[2]) for p in paths
    ]
    for role, paths in files.items()
  }


def test_loose_files_do_not_hide_those_of_an_archive(tmp_path):
  archive = _pack(
    tmp_path / 'data.tar',
    'data/test/art_test.csv',
    'data/test/law_test.csv',
    'data/val/law_val.csv',
  )
  loose = _touch(tmp_path / 'loose', 'Law_test.csv', 'biology_test.csv')
  assert _unpacked(('mmlu',), tmp_path / 'out', archive, loose) == {
    'valid': [('archive', 'law_val.csv')],
    'test': [('loose', 'Law_test.csv'), ('archive', 'art_test.csv'), ('loose', 'biology_test.csv')],
  }
  # Whoever says what the part is means it.
  assert _unpacked(('mmlu',), tmp_path / 'out2', archive, f'test={loose}')['test'] == [
    ('loose', 'Law_test.csv'),
    ('loose', 'biology_test.csv'),
  ]


def test_a_part_that_is_one_file_is_not_in_doubt(tmp_path):
  archive = _pack(
    tmp_path / 'triviaqa-unfiltered.tar', 'unfiltered-web-train.json', 'unfiltered-web-dev.json'
  )
  loose = _touch(tmp_path, 'my-train.json', 'unfiltered-web-train.json.gz')
  with pytest.raises(
    ValueError, match=('my-train.json and unfiltered-web-train.json of an archive are both .train.')
  ):
    _unpacked(('triviaqa',), tmp_path / 'a', archive, f'{loose}/my-train.json')
  for i, (source, name) in enumerate(
    (
      (f'train={loose}/my-train.json', 'my-train.json'),
      (f'{loose}/unfiltered-web-train.json.gz', 'unfiltered-web-train.json.gz'),
    )
  ):
    assert _unpacked(('triviaqa',), tmp_path / f'b{i}', archive, source) == {
      'train': [('loose', name)],
      'test': [('archive', 'unfiltered-web-dev.json')],
    }


def test_what_need_not_be_fetched(tmp_path):
  folder = _touch(tmp_path, 'claims.jsonl', 'shared_task_dev.jsonl')
  benchmark = catalogue.find('fever')
  found = inputs.find(benchmark, [f'train={folder}/claims.jsonl', folder])
  assert [inputs.has(benchmark, found, source.name) for source in benchmark.sources] == [
    True,
    True,
    False,
    False,
    False,
  ]
  # What a file was said to be counts, not its name.
  found = inputs.find(benchmark, [f'train={folder}/shared_task_dev.jsonl'])
  assert not inputs.has(benchmark, found, 'shared_task_dev.jsonl')
  mmlu = catalogue.find('mmlu')
  found = inputs.find(mmlu, [_pack(tmp_path / 'data.tar')])
  assert inputs.has(mmlu, found, 'data.tar') and not inputs.has(mmlu, found, 'x.tar')


def test_unknown_benchmarks_and_variants():
  with pytest.raises(ValueError, match='no benchmark .squad.; there are nq_open'):
    catalogue.find('squad')
  with pytest.raises(ValueError, match='it has unfiltered, filtered'):
    catalogue.find('triviaqa', 'wiki')
  with pytest.raises(ValueError, match='leave it out'):
    catalogue.find('fever', 'v2')
