"""PostgreSQL: the tables and all statements; producers write by `runs`, workers by `claims`."""
