"""Import path of NeMo Curator's classes: an alias of the module `capflow_tasks.curator.qwen_vl`."""

import sys

from capflow_tasks.curator import qwen_vl

# the module itself, so that a name patched here is patched there
sys.modules[__name__] = qwen_vl
