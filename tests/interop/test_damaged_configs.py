"""Foreign JSON, tensors and checksums of another kind: named, no traceback."""

import hashlib
import json
import pathlib
import re

import numpy as np
import pytest

pytest.importorskip('torch')
pytest.importorskip('transformers')

from safetensors import numpy as files
import torch

from ralm_jax.files import checksums, new_folder
from ralm_jax.interop import huggingface, part, recognition
from tests.interop import huggingface_folders as folders


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp('saved')
  for name, model in (
    ('t5', folders.t5()),
    ('bert', folders.bert()),
    ('bart', folders.bart()),
    ('rag', folders.rag()),
    ('question', folders.dpr()),
  ):
    model.save_pretrained(folder / name)
  return folder


@pytest.fixture
def change(saved, tmp_path):
  """Links to a folder's files, some fields of its config.json changed."""

  def changed(name: str, fields: dict) -> pathlib.Path:
    for file in (saved / name).iterdir():
      if file.name != 'config.json' and not (tmp_path / file.name).exists():
        (tmp_path / file.name).symlink_to(file)
    content = json.loads((saved / name / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps(content | fields))
    return tmp_path

  return changed


def test_fields_of_another_type(change):
  for name, field, value, expected in (
    ('t5', 'num_layers', '3', 'a whole number of at least 1'),
    ('t5', 'd_model', 16.0, 'a whole number'),
    ('t5', 'eos_token_id', [1, 2], 'a whole number of at least 0'),
    ('bert', 'num_attention_heads', 0, 'a whole number of at least 1'),
    ('bert', 'num_hidden_layers', True, 'a whole number of at least 1'),
    ('bert', 'layer_norm_eps', 'x', 'a number above 0'),
    ('bart', 'forced_eos_token_id', 'x', 'a whole number'),
    ('bart', 'max_position_embeddings', {}, 'a whole number'),
    ('rag', 'n_docs', 'x', 'a whole number of at least 1'),
    ('rag', 'max_combined_length', -1, 'a whole number of at least 1'),
    ('rag', 'generator', 'bart', 'an object'),
    ('rag', 'architectures', 7, 'an array of strings'),
  ):
    folder = change(name, {field: value})
    if name == 'bart':
      (folder / 'generation_config.json').unlink(missing_ok=True)
    with pytest.raises(
      ValueError, match=(rf'config\.json: {field} is {re.escape(repr(value))}, expected {expected}')
    ):
      recognition.recognise(str(folder))
    for file in folder.iterdir():
      file.unlink()
  folder = change('bert', {'hidden_act': ['gelu']})
  with pytest.raises(ValueError, match=r"hidden_act \['gelu'\] is not known"):
    recognition.recognise(str(folder))


def test_null_is_absent(change):
  rag = huggingface.open_rag(change('rag', {'n_docs': None, 'architectures': None}))
  assert rag.n_passages == 5 and rag.marginalization is None


def test_shards_and_modules_of_another_type(change):
  folder = change('bert', {})
  (folder / 'model.safetensors').unlink()
  for shard in (3, '../model.safetensors', ''):
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': {'a': shard}}))
    with pytest.raises(
      ValueError, match=(f"places tensor 'a' in {re.escape(repr(shard))}, expected the name")
    ):
      huggingface.open_bert(folder)
  (folder / 'modules.json').write_text(
    json.dumps([{'type': 'sentence_transformers.models.Transformer', 'path': 3}])
  )
  with pytest.raises(ValueError, match='modules.json: path is 3, expected a string'):
    recognition.recognise(str(folder))


@pytest.mark.parametrize('said, gated', [('relu', True), ('gated-gelu', False)])
def test_another_feed_forward_than_the_config_says(said, gated, tmp_path):
  folders.t5(feed_forward_proj='gated-gelu' if gated else 'relu').save_pretrained(tmp_path)
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'feed_forward_proj': said}))
  with pytest.raises(
    ValueError,
    match=(f"feed_forward_proj '{said}', the tensors are {'' if gated else 'not '}gated"),
  ):
    huggingface.load_t5(tmp_path)


def test_separators_of_rag(change):
  """The reader's format is the checkpoint's, not always that of the released."""
  folder = change(
    'rag', {'title_sep': ' {-} ', 'doc_sep': ' ', 'max_combined_length': 77, 'n_docs': 9}
  )
  text = huggingface.open_rag(folder).parts['reader'].text
  assert text['reader_format'] == '{title} {{-}} {text} {query}'
  assert text['passage_length'] == 77 and text['n_passages'] == 9
  for separator in ('//', ' //', ''):
    folder = change('rag', {'doc_sep': separator})
    with pytest.raises(ValueError, match='doc_sep is .* not supported'):
      huggingface.open_rag(folder)


def test_quantised_tensors(saved, tmp_path):
  name = 'encoder.layer.1.output.dense.weight'
  (tmp_path / 'config.json').symlink_to(saved / 'bert' / 'config.json')
  state = files.load_file(saved / 'bert' / 'model.safetensors')
  state[name] = np.ones(state[name].shape, np.int8)
  files.save_file(state, tmp_path / 'model.safetensors')
  with pytest.raises(ValueError, match=f"'{name}' is of type int8, .* quantised"):
    huggingface.load_bert(tmp_path)
  (tmp_path / 'model.safetensors').unlink()
  tensors = {k: torch.tensor(v) for k, v in state.items()}
  tensors[name] = tensors[name].to(torch.float8_e4m3fn)
  torch.save(tensors, tmp_path / 'pytorch_model.bin')
  with pytest.raises(ValueError, match='is of type float8_e4m3fn, .* quantised'):
    huggingface.load_bert(tmp_path)


def test_the_version_in_old_files_is_needless(change, saved, tmp_path):
  folder = change('bart', {})
  state = files.load_file(saved / 'bart' / 'model.safetensors')
  state |= {'model.encoder.version': np.ones(1, 'f'), 'model.decoder.version': np.ones(1, 'f')}
  (folder / 'model.safetensors').unlink()
  files.save_file(state, folder / 'model.safetensors')
  left = {item.name: item.reason for item in part.leftovers([huggingface.open_bart(folder)])}
  assert left['model.encoder.version'] and left['model.decoder.version']


def test_what_to_do_with_a_damaged_torch_file(change):
  folder = change('bert', {})
  (folder / 'model.safetensors').unlink()
  (folder / 'pytorch_model.bin').write_bytes(b'PK\3\4 and no more')
  with pytest.raises(ValueError, match='fetch it again, or convert it to safetensors'):
    huggingface.open_bert(folder)


def test_a_file_in_place_of_its_folder(saved):
  # Its weights name the folder, any other file does not.
  assert recognition.recognise(f'{saved}/bert/model.safetensors').parts
  with pytest.raises(ValueError, match=f'give its folder, {saved}/bert'):
    recognition.recognise(f'{saved}/bert/config.json')
  with pytest.raises(ValueError, match='--from reader= names no path'):
    recognition.recognise('', 'reader')


def test_a_tower_of_the_other_side(saved):
  with pytest.raises(ValueError, match='query_encoder, given as passage_encoder='):
    recognition.recognise(f'{saved}/question', 'passage_encoder')
  recognition.recognise(f'{saved}/question', 'query_encoder')
  recognition.recognise(f'{saved}/question', 'retriever')


def _sha256(path: pathlib.Path) -> str:
  return hashlib.sha256(path.read_bytes()).hexdigest()


def test_checksums_of_inner_folders(tmp_path):
  inner = tmp_path / '1_Pooling'
  inner.mkdir()
  file = inner / 'config.json'
  file.write_text('{}')
  wrong = '0' * 64
  note = tmp_path / '.cache/huggingface/download/1_Pooling/config.json.metadata'
  note.parent.mkdir(parents=True)
  for place, form in (
    (tmp_path / 'SHA256SUMS', '{}  ./1_Pooling/config.json\n'),
    (inner / 'SHA256SUMS', '{} *config.json\n'),
    (inner / 'config.json.sha256', '{}\n'),
    (note, '0123\n{}\n1.0\n'),
  ):
    assert checksums.verify(str(tmp_path), progress=False) == 0
    place.write_text(form.format(wrong))
    with pytest.raises(ValueError, match=f'config.json has the SHA-256 .* by .*{place.name}'):
      checksums.verify(str(tmp_path), progress=False)
    place.write_text(form.format(_sha256(file)))
    assert checksums.verify(str(tmp_path), progress=False) == 1
    place.unlink()
  (inner / 'config.json.sha256').write_text('not found\n')
  with pytest.raises(ValueError, match='config.json.sha256 holds no SHA-256'):
    checksums.verify(str(tmp_path), progress=False)


def test_a_folder_in_a_file(tmp_path):
  (tmp_path / 'file').touch()
  for path in (tmp_path / 'file' / 'x', tmp_path / 'file' / 'x' / 'y'):
    with pytest.raises(
      NotADirectoryError, match=(f'^{path} cannot be made: {tmp_path}/file is not a folder')
    ):
      with new_folder.creating(path):
        pass
