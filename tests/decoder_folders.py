"""Tiny tokenizers of the structure that each decoder-only family has published, as folders."""

import functools
import io
import json
import os
import pathlib
import string

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

# Of PROSE and of other scripts, so that there are merges of several bytes.
SCRIPTS = (
  '東京は日本の首都です。人口は約1400万人。',
  'القاهرة هي عاصمة مصر، وعدد سكانها كبير.',
  'Москва — столица России, население 13 млн.',
  'नई दिल्ली भारत की राजधानी है।',
  'Köln, Zürich und Málaga; naïve façade 👩‍👩‍👧 🇩🇪 ½ ²',
)
PROSE = [str(module.__doc__) for module in (io, json, os, pathlib, string, os.walk)]

_LETTERS = r'[^\r\n\p{L}\p{N}]?\p{L}+'
_REST = r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3_REGEX = rf'{_ENGLISH}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}'
QWEN2_REGEX = rf'{_ENGLISH}|{_LETTERS}|\p{{N}}|{_REST}'

CHATML = (
  "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
  "+ '<|im_end|>' + '\n'}}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Templates as published, but for defaults and tools.
TEMPLATES = {
  'llama2': (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    '{% set system_message = false %}{% endif %}{% for message in loop_messages %}'
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    '{% endif %}{% if loop.index0 == 0 and system_message != false %}'
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}"
    '{% endif %}{% endfor %}'
  ),
  'mistral': (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != "
    "(loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate "
    "user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles"
    " are supported!') }}{% endif %}{% endfor %}"
  ),
  'llama3': (
    '{{- bos_token }}\n{%- if not date_string is defined %}\n'
    '    {%- if strftime_now is defined %}\n        {%- set date_string = '
    'strftime_now("%d %b %Y") %}\n    {%- else %}\n'
    '        {%- set date_string = "26 Jul 2024" %}\n    {%- endif %}\n{%- endif %}'
    "\n{%- if messages[0]['role'] == 'system' %}\n"
    "    {%- set system_message = messages[0]['content']|trim %}\n"
    '    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = "" %}\n'
    '{%- endif %}\n{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}\n'
    '{{- "Today Date: " + date_string + "\\n\\n" }}\n{{- system_message }}\n{{- "<|eot_id|>" }}\n'
    '{%- for message in messages %}\n'
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    "+ message['content'] | trim + '<|eot_id|>' }}\n{%- endfor %}\n"
    '{%- if add_generation_prompt %}\n'
    "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n"
  ),
  'smollm2': (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}" + CHATML.removeprefix('{% for message in messages %}')
  ),
  'qwen2': (
    "{%- if messages[0]['role'] == 'system' %}\n"
    "    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n{%- else %}\n"
    "    {{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}\n{%- endif %}\n"
    '{%- for message in messages %}\n'
    '    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or '
    '(message.role == "assistant" and not message.tool_calls) %}\n'
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    '    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n'
    "    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
  ),
  'qwen3': (
    '{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}\n'
    '{%- for message in messages[::-1] %}\n'
    '    {%- set index = (messages|length - 1) - loop.index0 %}\n'
    '    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}\n'
    '        {%- set ns.multi_step_tool = false %}\n'
    '        {%- set ns.last_query_index = index %}\n    {%- endif %}\n{%- endfor %}\n'
    '{%- for message in messages %}\n    {%- set content = message.content %}\n'
    "    {%- if message.role == 'assistant' and '</think>' in content %}\n"
    "        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n    {%- endif %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n"
    '    {%- if enable_thinking is defined and enable_thinking is false %}\n'
    "        {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- endif %}\n{%- endif %}"
  ),
  'gemma3': (
    "{{ bos_token }}\n{%- if messages[0]['role'] == 'system' -%}\n"
    "    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}\n"
    '    {%- set loop_messages = messages[1:] -%}\n{%- else -%}\n'
    '    {%- set first_user_prefix = "" -%}\n    {%- set loop_messages = messages -%}\n'
    '{%- endif -%}\n{%- for message in loop_messages -%}\n'
    "    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}\n"
    '        {{ raise_exception("Conversation roles must alternate user/assistant/...") }}\n'
    "    {%- endif -%}\n    {%- if (message['role'] == 'assistant') -%}\n"
    '        {%- set role = "model" -%}\n    {%- else -%}\n'
    "        {%- set role = message['role'] -%}\n    {%- endif -%}\n"
    "    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else \"\") }}\n"
    "    {{ message['content'] | trim }}\n    {{ '<end_of_turn>\n' }}\n{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n    {{'<start_of_turn>model\n'}}\n{%- endif -%}\n"
  ),
}
_FIRST = {  # Special tokens that begin a vocabulary.
  'llama2': ['<unk>', '<s>', '</s>'],
  'mistral': ['<unk>', '<s>', '</s>'],
  'gemma3': ['<pad>', '<eos>', '<bos>', '<unk>', '<mask>'],
  'smollm2': ['<|endoftext|>', '<|im_start|>', '<|im_end|>', '<repo_name>', '<empty_output>'],
}
_LAST = {  # Those that end it.
  'llama3': [
    '<|begin_of_text|>',
    '<|end_of_text|>',
    '<|reserved_special_token_0|>',
    '<|finetune_right_pad_id|>',
    '<|start_header_id|>',
    '<|end_header_id|>',
    '<|eom_id|>',
    '<|eot_id|>',
  ],
  'qwen2': ['<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|fim_pad|>'],
  'gemma3': ['<start_of_turn>', '<end_of_turn>'],
}
_LAST['qwen3'] = _LAST['qwen2']
CONFIGS = {
  'llama2': dict(
    tokenizer_class='LlamaTokenizer',
    bos_token='<s>',
    eos_token='</s>',
    unk_token='<unk>',
    pad_token=None,
    add_bos_token=True,
    add_eos_token=False,
    legacy=False,
  ),
  'llama3': dict(
    tokenizer_class='PreTrainedTokenizerFast', bos_token='<|begin_of_text|>', eos_token='<|eot_id|>'
  ),
  'smollm2': dict(
    tokenizer_class='GPT2Tokenizer',
    bos_token='<|im_start|>',
    eos_token='<|im_end|>',
    unk_token='<|endoftext|>',
    pad_token='<|im_end|>',
    add_prefix_space=False,
  ),
  'qwen2': dict(
    tokenizer_class='Qwen2Tokenizer',
    bos_token=None,
    eos_token='<|im_end|>',
    pad_token='<|endoftext|>',
    unk_token=None,
    add_bos_token=False,
    add_prefix_space=False,
  ),
  'gemma3': dict(
    tokenizer_class='GemmaTokenizer',
    bos_token='<bos>',
    eos_token='<eos>',
    pad_token='<pad>',
    unk_token='<unk>',
    add_bos_token=True,
    add_eos_token=False,
  ),
}
CONFIGS |= {'mistral': CONFIGS['llama2'] | {'legacy': True}, 'qwen3': CONFIGS['qwen2']}
# Names of ends, in the order of the published generation_config.json.
_ENDS = {
  'llama3': ['<|end_of_text|>', '<|eom_id|>', '<|eot_id|>'],
  'qwen2': ['<|im_end|>', '<|endoftext|>'],
  'qwen3': ['<|im_end|>', '<|endoftext|>'],
  'gemma3': ['<eos>', '<end_of_turn>'],
  'smollm2': '<|im_end|>',
  'llama2': '</s>',
  'mistral': '</s>',
}
_MODEL_TYPES = {'smollm2': 'llama', 'llama2': 'llama', 'llama3': 'llama', 'gemma3': 'gemma3_text'}
FAMILIES = tuple(TEMPLATES)
SENTENCE_PIECE = ('llama2', 'mistral', 'gemma3')


def write(folder: pathlib.Path, family: str, texts: tuple[str, ...] = (), size: int = 900):
  """Writes a folder's tokenizer files; returns its `tokenizer.json`."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  trained = tokenizer(family, texts, size)
  (folder / 'tokenizer.json').write_text(trained, 'utf-8')
  ids = tokenizers.Tokenizer.from_str(trained).token_to_id
  ends = _ENDS[family]
  files = {
    'tokenizer_config.json': CONFIGS[family] | {'chat_template': TEMPLATES[family]},
    'generation_config.json': {
      'eos_token_id': ids(ends) if isinstance(ends, str) else [ids(name) for name in ends]
    },
    'config.json': {'model_type': _MODEL_TYPES.get(family, family)},
  }
  for name, content in files.items():
    (folder / name).write_text(json.dumps(content), 'utf-8')
  return folder / 'tokenizer.json'


@functools.cache
def tokenizer(family: str, texts: tuple[str, ...] = (), size: int = 900) -> str:
  """A `tokenizer.json` of the family's structure, trained on `texts` or on a little prose."""
  piece = family in SENTENCE_PIECE
  made = tokenizers.Tokenizer(
    models.BPE(
      unk_token='<unk>' if piece else None,
      fuse_unk=piece,
      byte_fallback=piece,
      ignore_merges=family == 'llama3',
    )
  )
  (_sentence_piece if piece else _byte_level)(made, family)
  first, last = _FIRST.get(family, []), _LAST.get(family, [])
  fallback = [f'<0x{byte:02X}>' for byte in range(256)] if piece else []
  trainer = trainers.BpeTrainer(
    vocab_size=size,
    special_tokens=[*first, *fallback],
    initial_alphabet=[] if piece else pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  published = made.pre_tokenizer
  if piece:  # SentencePiece lets no piece reach across a space, nor Gemma's across a newline.
    parts = [
      pre_tokenizers.Split('\u2581', 'merged_with_next'),
      pre_tokenizers.Split('\n', 'isolated'),
    ]
    made.pre_tokenizer = pre_tokenizers.Sequence(parts)
  made.train_from_iterator(texts or [*PROSE, *SCRIPTS * 4], trainer)
  made.pre_tokenizer = published
  made.add_special_tokens(last)
  if family == 'qwen3':
    made.add_tokens(['<think>', '</think>'])
  if family == 'gemma3':
    made.add_tokens(['\n\n', '\n\n\n', '\u2581\u2581', '\u2581\u2581\u2581', '<table>'])
  _frame(made, family)
  content = json.loads(made.to_str())
  content['added_tokens'] = [t for t in content['added_tokens'] if t['content'] not in fallback]
  return json.dumps(content if published else content | {'pre_tokenizer': None})


def _sentence_piece(made: tokenizers.Tokenizer, family: str) -> None:
  steps = [decoders.Replace('\u2581', ' '), decoders.ByteFallback(), decoders.Fuse()]
  replaced = normalizers.Replace(' ', '\u2581')
  if family == 'gemma3':
    made.normalizer = replaced
    made.pre_tokenizer = pre_tokenizers.Split(' ', 'merged_with_previous')
    made.decoder = decoders.Sequence(steps)
  else:
    made.normalizer = normalizers.Sequence([normalizers.Prepend('\u2581'), replaced])
    made.decoder = decoders.Sequence([*steps, decoders.Strip(' ', 1, 0)])


def _byte_level(made: tokenizers.Tokenizer, family: str) -> None:
  made.decoder = decoders.ByteLevel()
  if family == 'smollm2':
    parts = [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
  else:
    regex = LLAMA3_REGEX if family == 'llama3' else QWEN2_REGEX
    parts = [
      pre_tokenizers.Split(tokenizers.Regex(regex), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  made.pre_tokenizer = pre_tokenizers.Sequence(parts)
  if family.startswith('qwen'):
    made.normalizer = normalizers.NFC()


def _frame(made: tokenizers.Tokenizer, family: str) -> None:
  if family in SENTENCE_PIECE or family == 'llama3':
    bos = CONFIGS[family]['bos_token']
    made.post_processor = processors.TemplateProcessing(
      single=f'{bos} $A',
      pair=f'{bos} $A {bos}:1 $B:1',
      special_tokens=[(bos, made.token_to_id(bos))],
    )
  else:
    made.post_processor = processors.ByteLevel(trim_offsets=False)
