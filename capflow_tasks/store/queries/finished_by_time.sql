-- Samples by the time at which their batch last finished. Reads the batches.
SELECT to_timestamp(floor(extract(epoch FROM finished_at) / :seconds) * :seconds) AS begins_at,
       sum(done_count + failed_count + held_count)::bigint AS samples
FROM batches
WHERE shard_id IN (SELECT id FROM shards WHERE run_id = :run_id) AND state = 'done'
GROUP BY begins_at
ORDER BY begins_at
