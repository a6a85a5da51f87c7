"""``python -m sft_utils.lm_eval_tasks`` prints the folder of the tasks, for ``--include_path``."""

from . import FOLDER

print(FOLDER)
