-- A run by line of its plan. Reads the batches.
SELECT shards.dataset, shards.annotation, shards.shard_index, shards.num_shards, shards.assign_rank,
       shards.end_idx - shards.start_idx AS samples,
       coalesce(sum(batches.end_idx - batches.start_idx) FILTER (WHERE state <> 'done'), 0)::bigint AS in_flight,
       coalesce(sum(batches.done_count) FILTER (WHERE state = 'done'), 0)::bigint AS done,
       coalesce(sum(batches.failed_count) FILTER (WHERE state = 'done'), 0)::bigint AS failed,
       coalesce(sum(batches.held_count) FILTER (WHERE state = 'done'), 0)::bigint AS held
FROM shards
LEFT JOIN batches ON batches.shard_id = shards.id
WHERE shards.run_id = :run_id
GROUP BY shards.id
ORDER BY shards.id
