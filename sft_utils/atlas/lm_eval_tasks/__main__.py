"""``python -m sft_utils.atlas.lm_eval_tasks`` prints the tasks' folder, for ``--include_path``."""

from . import FOLDER

print(FOLDER)
