"""The shared package of the book *Supervised Fine-Tuning, Executed*.

Pages write ``from sft_utils import generate_responses``. Nothing is imported until it is asked
for, so that ``import sft_utils`` costs next to nothing (PEP 562).
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "ModelLoadError": "hub",
    "end_token_ids": "models",
    "load_model_and_tokenizer": "models",
    "resolve": "models",
    "ChatTemplateError": "chat",
    "Generation": "generation",
    "generate_responses": "generation",
    "render_prompt": "generation",
    "test_model_with_questions": "generation",
    "DataError": "data.text_files",
    "check_rows": "data.checks",
    "display_dataset": "views.tables",
    "load_sft_dataset": "data.rows",
    "loss_tokens": "data.loss_mask",
    "near_duplicates": "data.duplicates",
    "sequence_lengths": "data.loss_mask",
    "Profile": "profiles",
    "ProfileError": "profiles",
    "load_profile": "profiles",
    "CPU_MODE": "environment",
    "describe_device": "environment",
    "quiet": "environment",
    "seed_everything": "environment",
    "versions": "environment",
    "Run": "training.runs",
    "fingerprint": "training.fingerprints",
    "train": "training.runs",
    "glue": "results",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
