"""What lies in place of a file that was not fetched is named, whatever kind of file it was."""

import pytest

from ralm_jax.data.text import vocabularies
from ralm_jax.interop import atlas
from ralm_jax.interop.files import restricted_pickle, weight_files
from ralm_jax.interop.files.weight_files import WeightFiles

BEGINNINGS = {
  'git lfs pull': b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n',
  'a web page': b'<!DOCTYPE html><title>Sign in</title>',
}
READERS = {
  'model.safetensors': lambda path: WeightFiles(path.parent),
  'pytorch_model.bin': lambda path: WeightFiles(path.parent),
  'model.safetensors.index.json': lambda path: WeightFiles(path.parent),
  'config.json': weight_files.read_json,
  'model.pth.tar': lambda path: atlas.open_checkpoint(str(path)),
  'passages.pkl': restricted_pickle.load_arrays,
  'spiece.model': vocabularies.load_vocabulary,
  'vocab.txt': vocabularies.load_vocabulary,
  'tokenizer.json': vocabularies.load_vocabulary,
}


@pytest.mark.parametrize('message', BEGINNINGS)
@pytest.mark.parametrize('name', READERS)
def test_pointers_and_pages(name, message, tmp_path):
  path = tmp_path / name
  path.write_bytes(BEGINNINGS[message])
  with pytest.raises(ValueError, match=message) as caught:
    READERS[name](path)
  assert str(path) in str(caught.value)
