"""A small vocabulary of a decoder-only model, with a chat template."""

import json
import pathlib

import tokenizers

CHATML = (
  "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
  '<|im_start|>system\nBe brief<|im_end|>\n{% endif %}'
  "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = (
  'Context: Question: Answer: the city of Paris is the capital of France.',
  'Who wrote Hamlet? William Shakespeare, in 1601.',
  'user assistant system\n\nBe brief. What is the colour of it?\n',
)


def write(folder: pathlib.Path, chat_template: str | None = CHATML) -> pathlib.Path:
  """A tokenizer.json of byte-level BPE with its configuration beside it, as SmolLM2 has them."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  special = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=special,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(TEXTS * 3, trainer)
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(folder / 'tokenizer.json'))
  config = {
    'tokenizer_class': 'GPT2Tokenizer',
    'bos_token': '<|im_start|>',
    'eos_token': '<|im_end|>',
    'pad_token': '<|endoftext|>',
    'unk_token': '<|endoftext|>',
    'add_bos_token': False,
    **({'chat_template': chat_template} if chat_template else {}),
  }
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  return folder / 'tokenizer.json'


class Vocabulary:
  """By tokenizers and jinja2 alone."""

  def __init__(self, folder, chat_template=CHATML):
    self.path = write(folder)
    self._tokenizers = {
      special: tokenizers.Tokenizer.from_file(str(self.path)) for special in (False, True)
    }
    self._tokenizers[False].encode_special_tokens = True
    self.pad_id, self.bos_id, self.eos_id = 0, None, 2
    self.end_ids = (2,)
    self._template = chat_template

  def encode_segment(self, text, special=False):
    return self._tokenizers[special].encode(text, add_special_tokens=False).ids

  def encode_segment_batch(self, texts):
    return list(map(self.encode_segment, texts))

  def stop_ids(self, stop_string):
    size = self._tokenizers[True].get_vocab_size()
    return [i for i in range(size) if stop_string in self.decode([i])]

  def decode(self, ids):
    return self._tokenizers[True].decode(list(ids), skip_special_tokens=True)

  def chat(self, messages, add_generation_prompt=False):
    import jinja2

    return jinja2.Template(self._template, trim_blocks=True, lstrip_blocks=True).render(
      messages=messages, add_generation_prompt=add_generation_prompt
    )
