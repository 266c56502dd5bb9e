"""Celery and a worker's life: the application, routing, tasks, start, drain, embedded services."""
