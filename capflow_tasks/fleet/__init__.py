"""Celery and Redis: the application, tasks, a worker's life and its probes, embedded services."""
