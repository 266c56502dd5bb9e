"""Capflow's fleet: state, engine, stages. `celery -A capflow_tasks` finds the application in `celery.py`."""
