-- All workers in the table, by name, with the batches that they hold.
SELECT owner, node, started_at,
       extract(epoch FROM now() - seen_at)::float8 AS silent_seconds,
       extract(epoch FROM now() - seen_at) < :lease_seconds AS is_alive,
       (SELECT count(*) FROM batches WHERE lease_owner = owner AND state = 'running') AS running_batches
FROM workers
ORDER BY owner
