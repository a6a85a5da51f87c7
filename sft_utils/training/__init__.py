"""Fine-tuning: the cheaper step, runs that are kept, their records, memory, several devices."""
