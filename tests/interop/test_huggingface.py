"""Loading Hugging Face folders: sharded files, and what is wrong with them."""

import json

import numpy as np
import pytest

from ralm_jax.interop import huggingface, initial_weights

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')


@pytest.fixture
def folders(tmp_path):
  torch.manual_seed(0)
  t5 = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      vocab_size=60,
      d_model=16,
      d_kv=4,
      d_ff=32,
      num_layers=2,
      num_heads=2,
      feed_forward_proj='gated-gelu',
    )
  )
  bert = transformers.BertModel(
    transformers.BertConfig(
      vocab_size=60,
      hidden_size=16,
      num_hidden_layers=2,
      num_attention_heads=2,
      intermediate_size=32,
      max_position_embeddings=20,
    )
  )
  t5.save_pretrained(tmp_path / 't5')
  t5.save_pretrained(tmp_path / 't5_sharded', max_shard_size='8KB')
  bert.save_pretrained(tmp_path / 'bert')
  return tmp_path


def test_sharded_equals_whole(folders):
  assert len(list((folders / 't5_sharded').glob('*.safetensors'))) > 1
  _, whole = huggingface.load_t5(folders / 't5')
  _, sharded = huggingface.load_t5(folders / 't5_sharded')
  import jax

  assert all(jax.tree.leaves(jax.tree.map(np.array_equal, whole, sharded)))


def test_initial_weights_scanned_and_untied(folders):
  params = initial_weights.from_huggingface(
    str(folders / 't5'), str(folders / 'bert'), scan_layers=True, tied_retriever=False
  )
  _, plain = huggingface.load_t5(folders / 't5')
  stacked = params['reader']['decoder']['layers']['mlp']['wo']['kernel']
  np.testing.assert_array_equal(stacked[1], plain['decoder']['layers_1']['mlp']['wo']['kernel'])
  assert set(params['retriever']) == {'query_encoder', 'passage_encoder'}
  with pytest.raises(ValueError, match='READER_WEIGHTS'):
    initial_weights.from_huggingface(None, str(folders / 'bert'))


def test_initial_weights_of_two_towers(folders, tmp_path):
  tower = lambda side, seed: (
    torch.manual_seed(seed)
    and side(
      transformers.DPRConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=20,
      )
    ).save_pretrained(tmp_path / side.__name__)
  )
  tower(transformers.DPRQuestionEncoder, 1)
  tower(transformers.DPRContextEncoder, 2)
  names = dict(
    query_encoder=str(tmp_path / 'DPRQuestionEncoder'),
    passage_encoder=str(tmp_path / 'DPRContextEncoder'),
  )
  params = initial_weights.from_huggingface(
    str(folders / 't5'), tied_retriever=False, scan_layers=True, **names
  )
  for side, folder in names.items():
    _, expected = huggingface.load_dpr(folder)
    found = params['retriever'][side]
    np.testing.assert_array_equal(
      found['layers']['mlp']['wi']['kernel'][1], expected['layers_1']['mlp']['wi']['kernel']
    )
  with pytest.raises(ValueError, match='set tied_retriever = False'):
    initial_weights.from_huggingface(str(folders / 't5'), **names)
  del names['passage_encoder']
  with pytest.raises(ValueError, match='passage_encoder names no folder'):
    initial_weights.from_huggingface(str(folders / 't5'), tied_retriever=False, **names)


def test_a_truncated_file(folders):
  path = folders / 't5' / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(ValueError, match='model.safetensors is truncated'):
    huggingface.load_t5(folders / 't5')


@pytest.mark.parametrize('old_format', [False, True])
def test_a_truncated_torch_file(folders, old_format):
  path = folders / 't5' / 'pytorch_model.bin'
  (folders / 't5' / 'model.safetensors').unlink()
  torch.save(
    {'shared.weight': torch.zeros(60, 16)}, path, _use_new_zipfile_serialization=not old_format
  )
  path.write_bytes(path.read_bytes()[:-200])
  with pytest.raises(ValueError, match='pytorch_model.bin cannot be read .*truncated'):
    huggingface.load_t5(folders / 't5')


def test_a_missing_shard(folders):
  next((folders / 't5_sharded').glob('*-of-*.safetensors')).unlink()
  with pytest.raises(FileNotFoundError, match='incomplete'):
    huggingface.load_t5(folders / 't5_sharded')


def test_another_architecture(folders):
  with pytest.raises(ValueError, match="model_type 'bert', expected t5"):
    huggingface.load_t5(folders / 'bert')
  config = json.loads((folders / 'bert' / 'config.json').read_text())
  config['num_hidden_layers'] = 3
  (folders / 'bert' / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match="no tensor 'encoder.layer.2"):
    huggingface.load_bert(folders / 'bert')
  config |= {'num_hidden_layers': 2, 'vocab_size': 61}
  (folders / 'bert' / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match=r'has shape \(60, 16\), expected \(61, 16\)'):
    huggingface.load_bert(folders / 'bert')


def test_no_folder_and_no_weights(tmp_path):
  with pytest.raises(FileNotFoundError, match='config.json'):
    huggingface.load_t5(tmp_path / 'nothing')
  (tmp_path / 'config.json').write_text('{"model_type": "t5"')
  with pytest.raises(ValueError, match='config.json:1 is not valid JSON'):
    huggingface.load_t5(tmp_path)


class _Malicious:
  def __reduce__(self):
    import os

    return os.system, ('touch /tmp/ralm_jax_was_here',)


def test_a_pickle_is_never_executed(folders):
  import os
  import pickle

  (folders / 't5' / 'model.safetensors').unlink()
  (folders / 't5' / 'pytorch_model.bin').write_bytes(pickle.dumps({'shared.weight': _Malicious()}))
  with pytest.raises(ValueError, match='never executed'):
    huggingface.load_t5(folders / 't5')
  assert not os.path.exists('/tmp/ralm_jax_was_here')
