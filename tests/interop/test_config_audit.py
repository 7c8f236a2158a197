"""Every field of a config.json is obeyed, without effect, refused or named."""

import json
import re

import pytest

pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

from ralm_jax.interop import config_audit, recognition
from tests.interop import huggingface_folders as folders


@pytest.mark.parametrize(
  'family, name', [('t5', 'T5'), ('bart', 'Bart'), ('bert', 'Bert'), ('bert', 'DPR')]
)
def test_what_transformers_writes_is_all_known(family, name):
  """Its own defaults, with all that its class knows."""
  config = getattr(transformers, f'{name}Config')()
  said = config.to_dict() | transformers.GenerationConfig().to_dict()
  assert config_audit.check(config.to_dict(), 'c', family) == []
  if family != 'bert':
    assert config_audit.check(config.to_dict(), 'c', family, said) == []


# As transformers 4 wrote every one of them, with its defaults.
_FOURTH = dict(
  return_dict=True, output_hidden_states=False, torchscript=False, torch_dtype='float32',
  use_bfloat16=False, tf_legacy_loss=False, pruned_heads={}, tie_word_embeddings=True,
  chunk_size_feed_forward=0, is_decoder=False, cross_attention_hidden_size=None,
  add_cross_attention=False, tie_encoder_decoder=False, max_length=20, min_length=0,
  do_sample=False, early_stopping=False, num_beams=1, num_beam_groups=1, diversity_penalty=0.0,
  temperature=1.0, top_k=50, top_p=1.0, typical_p=1.0, repetition_penalty=1.0, length_penalty=1.0,
  no_repeat_ngram_size=0, encoder_no_repeat_ngram_size=0, bad_words_ids=None,
  num_return_sequences=1, output_scores=False, return_dict_in_generate=False,
  forced_bos_token_id=None, remove_invalid_values=False, exponential_decay_length_penalty=None,
  suppress_tokens=None, begin_suppress_tokens=None, finetuning_task=None,
  id2label={'0': 'LABEL_0'}, label2id={'LABEL_0': 0}, tokenizer_class=None, prefix=None,
  bos_token_id=None, sep_token_id=None, task_specific_params=None, problem_type=None,
  _name_or_path='x', _commit_hash=None, transformers_version='4.30.0', gradient_checkpointing=False,
)  # fmt: skip


@pytest.mark.parametrize('family', ['t5', 'bart', 'bert'])
def test_what_transformers_4_wrote_is_all_known(family):
  assert config_audit.check(_FOURTH, 'c', family) == []


@pytest.mark.parametrize(
  'family, said, note',
  [
    ('t5', {'num_beams': 4, 'length_penalty': 2.0}, 'c: num_beams = 4, length_penalty = 2.0'),
    ('t5', {'forced_bos_token_id': 3}, 'not obeyed: c: forced_bos_token_id = 3'),
    ('bart', {'no_repeat_ngram_size': 3}, 'not obeyed: c: no_repeat_ngram_size = 3'),
    ('t5', {'task_specific_params': {'summarization': {}}}, 'task_specific_params = .*summ'),
    ('t5', {'gate_width': 3}, 'not obeyed: c: gate_width = 3; not known'),
    ('bert', {'embedding_size': 8}, 'not obeyed: c: embedding_size = 8; not known'),
    ('bert', {'architectures': ['RobertaModel']}, 'architecture RobertaModel; read as BertModel'),
  ],
)
def test_what_is_not_obeyed_is_named(family, said, note):
  (found,) = config_audit.check(said, 'c', family)
  assert re.search(note, found)


def test_generation_config_is_named():
  generation = {'num_beams': 4, 'eos_token_id': 2, 'pad_token_id': 0, 'forced_bos_token_id': 0}
  said = {'eos_token_id': 1, 'pad_token_id': 0}
  (line,) = config_audit.check(said, 'c', 't5', generation)
  fields = 'num_beams = 4, eos_token_id = 2, forced_bos_token_id = 0'
  assert line.startswith(f'not obeyed: generation_config.json: {fields}; answers are made')
  # BART's forced tokens are obeyed.
  assert config_audit.check({}, 'c', 'bart', {'forced_bos_token_id': 0}) == []
  # A decoder-only reader's vocabulary reads its ends.
  assert config_audit.check({'eos_token_id': 1}, 'c', 'llama', {'eos_token_id': [1, 2]}) == []
  # What an encoder would decode by is of no matter.
  assert config_audit.check({'num_beams': 4}, 'c', 'bert', generation) == []


@pytest.mark.parametrize(
  'family, said, message',
  [
    ('bert', {'is_decoder': True}, 'is_decoder is true, which is not computed here; only false is'),
    ('bert', {'add_cross_attention': True}, 'add_cross_attention is true'),
    ('bert', {'pruned_heads': {'1': [0]}}, r'pruned_heads is \{"1": \[0\]\}'),
    ('bert', {'position_embedding_type': 'relative_key'}, "'relative_key' is not supported"),
    ('bert', {'hidden_act': 'silu'}, "hidden_act 'silu' is not known"),
    ('bert', {'auto_map': {'AutoModel': 'a.B'}}, 'auto_map is .*not computed here'),
    ('bert', {'model_type': 'roberta'}, "model_type 'roberta', expected t5, bart, bert"),
    ('bert', {'model_type': 'distilbert'}, "model_type 'distilbert', expected t5, bart, bert"),
    ('t5', {'quantization_config': {'bits': 4}}, 'quantization_config is'),
    ('t5', {'tie_encoder_decoder': True}, 'tie_encoder_decoder is true'),
    ('t5', {'feed_forward_proj': 'gated-relu'}, "feed_forward_proj 'gated-relu' is not known"),
    ('t5', {'is_encoder_decoder': False}, 'is_encoder_decoder is false'),
    ('bart', {'normalize_before': True}, 'normalize_before True is not supported'),
    ('bart', {'activation_function': 'swish'}, "activation_function 'swish' is not known"),
  ],
)
def test_what_is_computed_otherwise_is_refused(family, said, message, tmp_path):
  getattr(folders, family)().save_pretrained(tmp_path)
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | said))
  with pytest.raises(ValueError, match=message):
    recognition.recognise(str(tmp_path))
