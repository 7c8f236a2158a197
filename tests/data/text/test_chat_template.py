"""Chat templates: the text of transformers, and what a template may not do."""

import itertools

import pytest

from ralm_jax.data.text import chat_template, vocabularies
from ralm_jax.data.text.chat_template import ChatTemplateError
from tests import decoder_folders

transformers = pytest.importorskip('transformers')
chat_template_utils = pytest.importorskip('transformers.utils.chat_template_utils')

USER = {'role': 'user', 'content': ' Wer sagt <b>"Ja"</b>?\n '}
SYSTEM = {'role': 'system', 'content': 'Be brief.'}
SAID = {'role': 'assistant', 'content': '<think>\nhm\n</think>\n\nAnna'}
CONVERSATIONS = ([USER], [USER, SAID, USER], [SYSTEM, USER], [SYSTEM, USER, SAID])


@pytest.fixture(scope='module', params=decoder_folders.FAMILIES)
def folder(request, tmp_path_factory):
  return decoder_folders.write(tmp_path_factory.mktemp(request.param), request.param).parent


def test_text_is_that_of_transformers(folder):
  ours = vocabularies.load_vocabulary(folder / 'tokenizer.json')
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  for messages, prompt in itertools.product(CONVERSATIONS, (False, True)):
    options = dict(add_generation_prompt=prompt, enable_thinking=False, date_string='1 Dec 2026')
    if 'mistral' in folder.name and messages[0] is SYSTEM:
      with pytest.raises(
        ChatTemplateError, match=r'refuses messages of the roles system, user'
      ) as e:
        ours.chat(messages, **options)
      assert e.value.refused and '\n' not in str(e.value) and str(folder) in str(e.value)
      continue
    expected = theirs.apply_chat_template(messages, tokenize=False, **options)
    assert ours.chat(messages, **options) == expected
    ids = theirs(expected, add_special_tokens=False).input_ids
    assert ours.encode_segment(expected, special=True) == ids


@pytest.mark.parametrize(
  'source, expected',
  [
    ('{{ messages | tojson }}', '[{"role": "user", "content": "<é>"}]'),
    (
      "{{ {'b': 1, 'a': [2]} | tojson(indent=1, sort_keys=true) }}",
      '{\n "a": [\n  2\n ],\n "b": 1\n}',
    ),
    ('{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}', '012'),
    ('  {% if true %}\nx\n  {% endif %}\ny', 'x\ny'),
    ('{% generation %}{{ messages[0].content }}{% endgeneration %}!', '<é>!'),
    ('{{ tools is none }} {{ documents is none }} {{ what is defined }}', 'True True False'),
    ('{% set n = namespace(a=1) %}{% set n.a = 2 %}{{ n.a }}{{ dict(b=3).b }}', '23'),
    ("{{ strftime_now('%Y') | int > 2000 }}", 'True'),
  ],
)
def test_what_a_template_may_use(source, expected):
  messages = [{'role': 'user', 'content': '<é>'}]
  assert chat_template.render(source, messages) == expected
  theirs, _ = chat_template_utils.render_jinja_template([messages], chat_template=source)
  assert theirs == [expected]


@pytest.mark.parametrize(
  'source, fault',
  [
    ('{% for %}', r'does not parse: .* \(its line 1\)'),
    ('a\n{{ b }', 'does not parse: .*its line 2'),
    ("{{ ''.__class__.__mro__ }}", 'what the sandbox forbids: .*__class__'),
    ("{{ (messages | attr('append'))({}) }}", 'what the sandbox forbids'),
    ("{{ messages[0].update(role='system') }}", 'what the sandbox forbids'),
    ('{% for i in range(999999999) %}{% endfor %}', 'fails: OverflowError: Range too big'),
    ('{{ raise_exception.__globals__.json }}', 'what the sandbox forbids'),
    ('{{ strftime_now.__globals__.json }}', 'what the sandbox forbids'),
    ('{{ dict.fromkeys.__self__ }}', '(forbids|fails)'),
    ('{% set n = namespace(__class__=1) %}', 'what the sandbox forbids'),
    ("{% set n = namespace() %}{% set n['__init__'] = 1 %}", '(does not parse|forbids)'),
    ('{{ messages[5].content }}', 'fails: UndefinedError'),
    ('{{ 1 / 0 }}', 'fails: ZeroDivisionError'),
    ("{% include 'other' %}", 'fails: .*loader'),
    ('{{ messages[0].content + 1 }}', 'fails: TypeError'),
  ],
)
def test_one_line_says_what_a_template_does_wrong(source, fault):
  messages = [{'role': 'user', 'content': 'x'}]
  with pytest.raises(ChatTemplateError, match=fault) as caught:
    chat_template.render(source, messages, where='folder/tokenizer.json')
  assert str(caught.value).startswith('folder/tokenizer.json: its chat template ')
  assert '\n' not in str(caught.value) and 'plain prompt style' in str(caught.value)
  assert not caught.value.refused
  assert messages == [{'role': 'user', 'content': 'x'}]


def test_no_template(tmp_path):
  folder = decoder_folders.write(tmp_path, 'qwen2').parent
  (folder / 'tokenizer_config.json').write_text('{"eos_token": "<|endoftext|>"}')
  vocabulary = vocabularies.load_vocabulary(folder / 'tokenizer.json')
  with pytest.raises(ValueError, match='no chat template lies beside it'):
    vocabulary.chat([USER])
  (folder / 'chat_template.jinja').write_text('{{ messages[0].content }}|')
  assert (
    vocabularies.load_vocabulary(folder / 'tokenizer.json').chat([USER]) == USER['content'] + '|'
  )
