"""`python -m batchgen` is `batchgen`."""

from batchgen.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
