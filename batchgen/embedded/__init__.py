"""The embedded model: a tiny chat model that ships with the package, so that a first run needs no download.

It was trained by `train.py` on text that `grammar.py` generates. It is enough to try everything and useless
as data.
"""

from pathlib import Path

MODEL_PATH = Path(__file__).parent / "model"
