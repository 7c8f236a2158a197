"""Answers as files write them: lists that have become text, and marks of hidden ones."""

from __future__ import annotations

import ast
import json
import re

# What stands in place of the answer in hidden test sets, such as Hugging Face's of TriviaQA.
_HIDDEN = frozenset(('<unk>', '[unk]', '<hidden>', '[hidden]', 'n/a'))
_STRING = r"""[uU]?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
# Python's ['a', 'b'] and NumPy's ['a' 'b'], in which Python would read 'ab'.
_LIST = re.compile(rf'\[\s*(?:{_STRING}(?:\s*,\s*|\s+|(?=\])))*\]', re.DOTALL)
_ARRAY = re.compile(r'array\((\[.*\])(?:,\s*dtype=[\w<>\'"]+)?\)', re.DOTALL)


def is_answer(text: str) -> bool:
  """Whether a text is one; a blank is none, nor is what marks an answer that is kept secret."""
  return bool(text.strip()) and text.strip().lower() not in _HIDDEN


def listed(text: str) -> list[str] | None:
  """The texts of a list that was written as text, as exports of tables do; None for none.

  As JSON, Python or NumPy write it. An answer may begin with a bracket of its own ('[sic] …'), and
  so may a pattern ('[12]'): neither is a list of texts.
  """
  text = text.strip()
  if array := _ARRAY.fullmatch(text):
    text = array[1]
  if not (text.startswith('[') and text.endswith(']')):
    return None
  try:
    value = json.loads(text)
  except (ValueError, RecursionError):
    value = _literals(text)
  is_list = isinstance(value, list) and all(isinstance(one, str) for one in value)
  return value if is_list else None


def _literals(text: str) -> list[str] | None:
  if not _LIST.fullmatch(text):
    return None
  try:
    return [ast.literal_eval(one) for one in re.findall(_STRING, text, re.DOTALL)]
  except (ValueError, SyntaxError):  # An escape that is none.
    return None
