"""PostgreSQL: the tables, and every statement that is sent to them, named as the domain's verbs.

`runs` is what a producer writes, `batches` what a worker writes, `views` what anybody reads.
Knows nothing of Celery, media or models.
"""
