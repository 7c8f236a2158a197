"""The PyTorch side of the benchmarks: Hugging Face models doing the same work.

Models are made here with random weights and saved, and `interop/huggingface.py`
loads them into ours, so that both sides compute the same numbers. The peer is
set up as its users would for speed: fused AdamW, scaled-dot-product attention
where transformers has it, no gradient and no dropout where none is needed, and
on request `torch.compile`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os

import numpy as np
import torch
import transformers
from transformers.modeling_outputs import BaseModelOutput


@dataclasses.dataclass(frozen=True)
class ReaderSize:
  """A T5 1.1; names are Hugging Face's."""

  d_model: int
  num_layers: int
  num_heads: int
  d_ff: int
  d_kv: int = 64
  vocab_size: int = 32128


@dataclasses.dataclass(frozen=True)
class EncoderSize:
  """A BERT; names are Hugging Face's."""

  hidden_size: int
  num_hidden_layers: int
  num_attention_heads: int
  intermediate_size: int
  vocab_size: int = 30522


@dataclasses.dataclass(frozen=True)
class DecoderSize:
  """A Llama with tied embeddings; names are Hugging Face's."""

  hidden_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  intermediate_size: int
  vocab_size: int = 49152


READERS = {
  'tiny': ReaderSize(128, 2, 4, 256, d_kv=32, vocab_size=2000),
  'small': ReaderSize(512, 8, 6, 1024),
  'base': ReaderSize(768, 12, 12, 2048),
  'large': ReaderSize(1024, 24, 16, 2816),
}
ENCODERS = {
  'tiny': EncoderSize(128, 2, 2, 512, vocab_size=2000),
  'mini': EncoderSize(256, 4, 4, 1024),
  'minilm': EncoderSize(384, 6, 12, 1536),
  'base': EncoderSize(768, 12, 12, 3072),
}

DECODERS = {
  'tiny': DecoderSize(128, 2, 4, 2, 256, vocab_size=2000),
  'smollm2_135m': DecoderSize(576, 30, 9, 3, 1536),
}


def make_reader(size: ReaderSize) -> transformers.T5ForConditionalGeneration:
  """A T5 1.1 with random weights and an output head of its own."""
  torch.manual_seed(0)
  config = transformers.T5Config(
    **dataclasses.asdict(size),
    num_decoder_layers=size.num_layers,
    feed_forward_proj='gated-gelu',
    tie_word_embeddings=False,
    dropout_rate=0.0,
    decoder_start_token_id=0,
  )
  model = transformers.T5ForConditionalGeneration(config)
  # transformers 5 ties every T5 head; version 1.1 has one of its own.
  model.lm_head.weight = torch.nn.Parameter(
    torch.randn(size.vocab_size, size.d_model) * size.d_model**-0.5
  )
  return model


def make_encoder(size: EncoderSize) -> transformers.BertModel:
  """A BERT with random weights, without dropout and without a pooler."""
  torch.manual_seed(1)
  config = transformers.BertConfig(
    **dataclasses.asdict(size), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
  )
  return transformers.BertModel(config, add_pooling_layer=False)


def make_decoder(size: DecoderSize) -> transformers.LlamaForCausalLM:
  """A Llama with random weights and scaled-dot-product attention."""
  torch.manual_seed(2)
  config = transformers.LlamaConfig(
    **dataclasses.asdict(size),
    max_position_embeddings=8192,
    rope_theta=100_000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    attn_implementation='sdpa',
  )
  return transformers.LlamaForCausalLM(config)


def save(model: torch.nn.Module, directory: str | os.PathLike[str]) -> None:
  """Writes config.json and pytorch_model.bin, which needs no other library."""
  model.config.save_pretrained(directory)
  state = {name: value.detach().clone() for name, value in model.state_dict().items()}
  torch.save(state, os.path.join(directory, 'pytorch_model.bin'))


def mean_pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
  """[n, length, embed], [n, length] -> float32 [n, embed]."""
  weights = mask.to(torch.float32)[..., None]
  total = (hidden.to(torch.float32) * weights).sum(-2)
  return total / weights.sum(-2).clamp(min=1.0)


def autocast(device: str, dtype: str):
  """Mixed precision over float32 weights, or nothing for float32."""
  if dtype == 'float32':
    return contextlib.nullcontext()
  return torch.autocast(device, getattr(torch, dtype))


@dataclasses.dataclass(frozen=True)
class Losses:
  """Scalars of one step."""

  reader: float
  retriever: float


class TrainStep:
  """Fusion-in-Decoder with perplexity distillation, AdamW and clipping.

  The gold scores reuse the reader's encoder states and the passages are decoded
  one at a time in one batch without gradient, as in `RetrievalLM.loss_fn` at
  dropout 0.
  """

  def __init__(
    self,
    reader: transformers.T5ForConditionalGeneration,
    retriever: transformers.BertModel,
    *,
    device: str = 'cpu',
    dtype: str = 'float32',
    learning_rate: float = 1e-4,
    weight_decay: float = 0.01,
    clip_norm: float = 1.0,
    temperature: float = 0.1,
    compile_models: bool = False,
  ):
    self.device, self.dtype = device, dtype
    self.clip_norm, self.temperature = clip_norm, temperature
    self.modules = [reader.to(device).train(), retriever.to(device).train()]
    self.optimizers = [
      torch.optim.AdamW(
        module.parameters(),
        lr=learning_rate,
        betas=(0.9, 0.999),
        eps=1e-6,
        weight_decay=weight_decay,
        fused=True,
      )
      for module in self.modules
    ]
    self.reader, self.retriever = self.modules
    self.losses = torch.compile(self._losses) if compile_models else self._losses

  def put(self, batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Arrays, named as in `ReaderBatch`, on the device."""
    return {
      name: torch.as_tensor(array, dtype=torch.bool if array.dtype == bool else torch.long).to(
        self.device
      )
      for name, array in batch.items()
    }

  def _logits(
    self, encoded: torch.Tensor, mask: torch.Tensor, inputs: torch.Tensor
  ) -> torch.Tensor:
    """[n, keys, embed], [n, keys], [n, T] -> float32 [n, T, vocab]."""
    return self.reader(
      encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
      attention_mask=mask.long(),
      decoder_input_ids=inputs,
      use_cache=False,
    ).logits.float()

  def _losses(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, mask = batch['reader_tokens'], batch['reader_mask']
    targets, weights = batch['target_tokens'], batch['target_mask'].float()
    size, n_passages, length = tokens.shape
    target_length = targets.shape[-1]
    inputs = torch.cat([torch.zeros_like(targets[:, :1]), targets[:, :-1]], -1)
    encoded = self.reader.encoder(
      input_ids=tokens.view(-1, length), attention_mask=mask.view(-1, length).long()
    ).last_hidden_state
    embed = encoded.shape[-1]
    logits = self._logits(
      encoded.view(size, n_passages * length, embed), mask.view(size, -1), inputs
    )
    token_losses = torch.nn.functional.cross_entropy(
      logits.view(-1, logits.shape[-1]), targets.reshape(-1), reduction='none'
    )
    reader_loss = (token_losses * weights.view(-1)).sum() / weights.sum()

    def repeat(array: torch.Tensor) -> torch.Tensor:
      return array[:, None].expand(size, n_passages, target_length).reshape(-1, target_length)

    with torch.no_grad():
      each = self._logits(encoded.detach(), mask.view(-1, length), repeat(inputs))
      log_probs = -torch.nn.functional.cross_entropy(
        each.view(-1, each.shape[-1]), repeat(targets).reshape(-1), reduction='none'
      ).view(size, n_passages, target_length)
      gold = (log_probs * weights[:, None]).sum(-1)

    queries = self._embed(batch['query_tokens'], batch['query_mask'])
    passages = self._embed(
      batch['retriever_tokens'].view(size * n_passages, -1),
      batch['retriever_mask'].view(size * n_passages, -1),
    ).view(size, n_passages, -1)
    scores = torch.einsum('bd,bkd->bk', queries, passages)
    scores = scores / passages.shape[-1] ** 0.5
    retriever_loss = torch.nn.functional.kl_div(
      torch.log_softmax(scores / self.temperature, -1),
      torch.log_softmax(gold / self.temperature, -1),
      reduction='batchmean',
      log_target=True,
    )
    return reader_loss, retriever_loss

  def _embed(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    hidden = self.retriever(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    return mean_pool(hidden, mask)

  def __call__(self, batch: dict[str, torch.Tensor]) -> Losses:
    """One step; returns once it is done."""
    for optimizer in self.optimizers:
      optimizer.zero_grad(set_to_none=True)
    with autocast(self.device, self.dtype):
      reader_loss, retriever_loss = self.losses(batch)
    (reader_loss + retriever_loss).backward()
    for module, optimizer in zip(self.modules, self.optimizers):
      torch.nn.utils.clip_grad_norm_(module.parameters(), self.clip_norm)
      optimizer.step()
    if self.device != 'cpu':
      torch.cuda.synchronize()
    return Losses(reader_loss.item(), retriever_loss.item())


class PassageEncoder:
  """Mean-pooled BERT embeddings without gradient, weights in `dtype`."""

  def __init__(
    self,
    model: transformers.BertModel,
    *,
    device: str = 'cpu',
    dtype: str = 'float32',
    compile_models: bool = False,
  ):
    self.device = device
    self.model = model.to(device, getattr(torch, dtype)).eval()
    self.embed = torch.compile(self._embed) if compile_models else self._embed

  def _embed(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    hidden = self.model(input_ids=tokens, attention_mask=mask.long())
    return mean_pool(hidden.last_hidden_state, mask)

  def __call__(self, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """int [n, length], bool [n, length] -> float32 [n, embed] on the host."""
    with torch.inference_mode():
      embeddings = self.embed(
        torch.as_tensor(tokens, dtype=torch.long).to(self.device),
        torch.as_tensor(mask).to(self.device),
      )
    return embeddings.cpu().numpy()
