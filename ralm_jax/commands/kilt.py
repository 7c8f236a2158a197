"""Predictions as a file that KILT's scorer and its hidden tests take."""

from __future__ import annotations

from collections.abc import Sequence

from ralm_jax.commands import flags


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Writes a file of KILT's from command-line flags."""
  parser = flags.Parser(prog, __doc__)
  add = parser.add_argument
  text = 'what `ralm eval` or `ralm infer` wrote'
  add('--predictions', required=True, metavar='predictions.jsonl', help=text)
  text = "of the questions; FEVER's true and false become SUPPORTS and REFUTES again"
  add('--record_format', required=True, choices=flags.KILT_FORMATS, help=text)
  add('--output', required=True, metavar='FILE', help='the file to write')
  flags.shared(parser, 'page_field')
  flags.shared(parser, 'page_separators', also='separators')
  add('--with_text', action='store_true', help='write every passage with its text')
  arguments = parser.parse_args(argv)
  from ralm_jax.evaluation import kilt_predictions
  from ralm_jax.evaluation.kilt_predictions import PageOptions

  values = vars(arguments)
  pages = PageOptions(values.pop('page_field'), values.pop('page_separators'))
  count = kilt_predictions.write(**values, pages=pages)
  print(f'{arguments.output}: {count:,} predictions')
