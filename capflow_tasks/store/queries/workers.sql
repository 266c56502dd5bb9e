-- All workers in the table, by name, with the batches that they hold.
SELECT owner, node, started_at, fault,
       -- One that has ended was seen "long ago", so that it is removed.
       CASE WHEN seen_at >= started_at THEN extract(epoch FROM now() - seen_at)::float8 END AS silent_seconds,
       extract(epoch FROM now() - seen_at) < :lease_seconds AS is_alive,
       (SELECT count(*) FROM batches WHERE lease_owner = owner AND state = 'running') AS running_batches
FROM workers
ORDER BY owner
