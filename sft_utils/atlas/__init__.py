"""The Atlas: a small encyclopedia of true facts, and the models that learned it.

``tables/`` and ``relations/`` are the world, as people read and correct it; `corpus` writes it
out for pretraining, `sft_data` as chat rows, `questions` as scored questions. Chapters 10 and 26
introduce it.
"""
