-- Unfinished samples by the next stage and the state of their batch. Reads the open batches.
SELECT next_stage, state, sum(end_idx - start_idx)::bigint AS samples
FROM batches
WHERE shard_id IN (SELECT id FROM shards WHERE run_id = :run_id) AND state <> 'done'
GROUP BY next_stage, state
