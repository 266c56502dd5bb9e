-- Forget all answers about these samples, whose media have changed, and open them again; a route is asked for again.
-- Samples of a batch that a worker has are left as they are.
WITH chosen AS (
    SELECT samples.id, batches.next_stage, batches.state
    FROM samples
    JOIN batches ON batches.id = samples.batch_id AND batches.lease_owner IS NULL
    WHERE samples.id = ANY (CAST(:sample_ids AS bigint[])) AND samples.state IN ('done', 'pending')
    FOR UPDATE OF batches, samples
), gone AS (
    DELETE FROM results USING chosen WHERE results.sample_id = chosen.id RETURNING results.*
), spent AS (
    -- What they cost stays; text that a tool has read took no tokens.
    INSERT INTO refused_answers (sample_id, candidate, stage, agent, outcome, model, worker, prompt_tokens,
                                 cached_tokens, completion_tokens, seconds, created_at)
    SELECT sample_id, candidate, stage, agent, 'forgotten', model, worker, prompt_tokens, cached_tokens,
           completion_tokens, seconds, created_at
    FROM gone
    WHERE prompt_tokens + completion_tokens > 0
), forgotten AS (
    SELECT sample_id, array_agg(DISTINCT stage) AS stages FROM gone GROUP BY sample_id
)
UPDATE samples
SET state = 'pending', attempts = 0, candidate = 1, media_stamp = NULL,
    domain = CASE WHEN samples.confidence IS NULL THEN samples.domain END,
    confidence = NULL
FROM chosen
LEFT JOIN forgotten ON forgotten.sample_id = chosen.id
WHERE samples.id = chosen.id
RETURNING samples.batch_id, coalesce(forgotten.stages, '{}') AS stages,
          CASE WHEN chosen.state <> 'done' THEN chosen.next_stage END AS next_stage
