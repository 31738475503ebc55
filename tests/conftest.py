"""No test reaches for the network: read when huggingface_hub is first imported, by whichever test does."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
