-- The latest samples that workers ended in a run since a time: how each failed, and on whom; nulls for the others.
-- A kind of failure that `capflow resume` has accepted counts as none.
SELECT CASE WHEN samples.state = 'failed' AND samples.error_kind <> ALL (runs.accepted_failures)
            THEN samples.error_kind END AS kind,
       CASE WHEN samples.state = 'failed' THEN samples.failed_by END AS worker,
       CASE WHEN samples.state = 'failed' THEN samples.error_text END AS reason
FROM (
    SELECT batches.id, batches.finished_at
    FROM batches
    JOIN shards ON shards.id = batches.shard_id
    WHERE shards.run_id = :run_id AND batches.finished_at > :since
    ORDER BY batches.finished_at DESC
    LIMIT :samples
) AS latest
JOIN samples ON samples.batch_id = latest.id
JOIN runs ON runs.id = :run_id
-- What could not be read from an annotation file has failed without a worker, and what failed before the time in
-- another command.
WHERE samples.state <> 'failed' OR (samples.failed_by IS NOT NULL AND samples.failed_at > :since)
ORDER BY latest.finished_at DESC, samples.idx
LIMIT :samples
