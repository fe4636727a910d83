"""`python -m music2vec_hf` and `accelerate launch -m music2vec_hf`: the `music2vec` command."""

import sys

from music2vec_hf.cli import main

if __name__ == "__main__":
    sys.exit(main())
