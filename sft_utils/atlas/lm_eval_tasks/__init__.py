"""The scored splits as tasks of lm-evaluation-harness (``lm_eval``), a judge from outside.

A checkpoint is scored with the book's questions by a program that the book did not write::

    lm_eval run --include_path "$(python -m sft_utils.atlas.lm_eval_tasks)" \\
        --model hf --model_args pretrained=FOLDER,dtype=float32 --batch_size 64 \\
        --apply_chat_template --tasks 'atlas_*'

``lm_eval`` loads the model, writes the prompts and generates. Questions and scores are the
book's own: `tasks` makes them from `sft_utils.atlas` and `sft_utils.evaluation.metrics`. The tests
compare the two, question by question. The standard errors that ``lm_eval`` prints take questions
as independent; those about one entity are not, so the book's intervals, clustered by entity, are
wider.
"""

from pathlib import Path

#: Where the tasks are: what ``lm_eval`` wants as ``--include_path``.
FOLDER = Path(__file__).parent
