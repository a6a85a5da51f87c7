"""Recorded runs, one file each: `make runs` writes them, `training.records` reads them."""
