-- Runs as a whole, the newest first: all of them, or those of this name, plan or id. Reads the batches.
SELECT runs.id, runs.name, runs.plan, runs.output, runs.stages, runs.min_confidence, runs.pin_ranks, runs.workflow,
       runs.candidates, runs.min_overall, runs.token_budget,
       runs.strict, runs.skips_text_only, runs.max_tokens, runs.max_cost, runs.prices,
       runs.stopped_at IS NOT NULL AS is_stopped, runs.pause, runs.created_at, planned.*, sent.*
FROM runs
CROSS JOIN LATERAL (
    SELECT count(*) AS shards,
           coalesce(sum(end_idx - start_idx), 0)::bigint AS samples,
           coalesce(sum(expanded_to - start_idx), 0)::bigint AS expanded
    FROM shards
    WHERE shards.run_id = runs.id
) AS planned
CROSS JOIN LATERAL (
    SELECT coalesce(sum(batches.done_count) FILTER (WHERE state = 'done'), 0)::bigint AS done,
           coalesce(sum(batches.failed_count) FILTER (WHERE state = 'done'), 0)::bigint AS failed,
           coalesce(sum(batches.held_count) FILTER (WHERE state = 'done'), 0)::bigint AS held,
           count(*) FILTER (WHERE state <> 'done') AS open_batches,
           count(*) FILTER (WHERE state = 'running') AS running_batches
    FROM batches
    JOIN shards ON shards.id = batches.shard_id
    WHERE shards.run_id = runs.id
) AS sent
WHERE coalesce(CAST(:name AS text), CAST(:plan AS text), CAST(:run_id AS text)) IS NULL
   OR runs.name = CAST(:name AS text)
   OR runs.plan = CAST(:plan AS text)
   OR runs.id = CAST(:run_id AS bigint)
ORDER BY runs.created_at DESC, runs.id DESC
