"""The import path that NeMo Curator uses for `capflow_tasks.curator.qwen_vl`."""

import sys

from capflow_tasks.curator import qwen_vl

# The same module object, so that a name patched here is patched there.
sys.modules[__name__] = qwen_vl
