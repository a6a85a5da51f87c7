"""The recorded runs, one file each: `make runs` writes them, `sft_utils.records` reads them."""
