"""What a worker process is beside Celery's part: its life from start to drain, its leases, its health."""
