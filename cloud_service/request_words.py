"""The options of ``zo-cloud prepare`` and the fields of a request that they fill: one table for both directions.

The command line makes requests from options. A job's errors come from the same pipeline and speak of options, but
whoever reads them sent a request: there each option is named by its field, and what is left are the operator's.
"""

from __future__ import annotations

import re

OPTION_FIELDS = {
    "--revision": "revision",
    "--gguf-file": "gguf_file",
    "--name": "name",
    "--tag": "tag",
    "--sparsity": "sparsity",
    "--scope": "scope",
    "--mask-source": "mask_source",
    "--quantizer": "quantizer.method",
    "--bits": "quantizer.bits",
    "--group-size": "quantizer.group_size",
    "--compensation": "quantizer.compensation",
    "--embedding-bits": "embedding_bits",
    "--calibration-text": "calibration.text",
    "--calibration-task": "calibration.task",
    "--template": "calibration.template",
    "--label-words": "calibration.label_words",
    "--sequences": "calibration.sequences",
    "--tokens": "calibration.tokens_per_sequence",
    "--seed": "calibration.seed",
    "--evaluation-text": "evaluation.text",
    "--evaluation-documents": "evaluation.documents",
    "--allow-untested": "allow_untested",
}
"""Option → dotted field of ``PrepareRequest``."""

_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
_OPERATORS = re.compile(rf"{_OPTION.pattern}|\bzo-cloud \w")


def in_request_words(text: str) -> str:
    """Return a text that names fields of the request in place of options, and says whose the other options are."""
    said = _OPTION.sub(lambda match: OPTION_FIELDS.get(match[0], match[0]), text)
    if _OPERATORS.search(said) and "operator" not in said:
        said += " (what belongs to zo-cloud is the operator's to change)"
    return said
