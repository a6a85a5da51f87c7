"""Fine-tuning: a cheaper step, runs that are kept and resumed, records, memory, devices."""
