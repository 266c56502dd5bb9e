"""Capflow's workers; `celery -A capflow_tasks` finds their application in `celery.py`."""
