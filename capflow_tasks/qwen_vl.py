"""The import path that code for NeMo Curator uses; the module itself is `capflow_tasks.curator.qwen_vl`."""

import sys

from capflow_tasks.curator import qwen_vl

# The very module, so that names patched here are patched there.
sys.modules[__name__] = qwen_vl
