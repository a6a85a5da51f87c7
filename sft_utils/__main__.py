"""``python -m sft_utils check mine.toml`` says what a build with a profile would do."""

from .dry_run import main

if __name__ == "__main__":
    raise SystemExit(main())
