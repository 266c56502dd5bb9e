-- Open the finished samples of a run whose caption is below the bar, and that may have more candidates than they
-- have; their batches go on with summarize. Reads all results of the run. Batches that a worker has are left to finish.
WITH wanting AS (
    SELECT samples.id, samples.batch_id, answered.last
    FROM shards
    JOIN samples ON samples.shard_id = shards.id AND samples.state = 'done'
    JOIN batches ON batches.id = samples.batch_id AND batches.lease_owner IS NULL
    CROSS JOIN LATERAL (
        SELECT (data ->> 'overall')::int AS overall
        FROM results
        WHERE sample_id = samples.id AND candidate = samples.candidate AND stage = 'score' AND data IS NOT NULL
        ORDER BY position DESC, agent DESC
        LIMIT 1
    ) AS judgement
    CROSS JOIN LATERAL (
        SELECT max(candidate) FILTER (WHERE stage = 'summarize') AS last,
               sum(prompt_tokens + completion_tokens) AS tokens
        FROM results
        WHERE sample_id = samples.id
    ) AS answered
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(prompt_tokens + completion_tokens), 0) AS tokens
        FROM refused_answers
        WHERE sample_id = samples.id AND outcome <> 'forgotten'
    ) AS refused
    WHERE shards.run_id = :run_id
      AND judgement.overall < :min_overall
      AND answered.last < :most
      AND (CAST(:token_budget AS bigint) IS NULL OR answered.tokens + refused.tokens < :token_budget)
), opened AS (
    UPDATE batches
    SET state = 'ready',
        next_stage = CASE WHEN state <> 'done' AND next_stage IN ('route', 'perceive', 'reason')
                          THEN next_stage ELSE 'summarize' END,
        attempt = attempt + 1,  -- who claimed it before writes nothing
        tries = 0,
        lease_until = now(),
        finished_at = NULL
    WHERE lease_owner IS NULL AND id IN (SELECT batch_id FROM wanting)
    RETURNING id
)
UPDATE samples
SET state = 'pending', attempts = 0, candidate = wanting.last + 1
FROM wanting
JOIN opened ON opened.id = wanting.batch_id
WHERE samples.id = wanting.id AND samples.state = 'done'
