-- Answers, tokens and time by stage, model and worker. Reads all results of the run.
-- The tokens and the time of refused and forgotten answers count, too; those of samples that did not fail stand in their results.
WITH answered AS (
    SELECT sample_id, stage, model, worker, prompt_tokens, cached_tokens, completion_tokens, seconds, created_at,
           true AS is_kept
    FROM results
    WHERE model <> :text_reader  -- it takes no tokens, and no GPU
    UNION ALL
    SELECT sample_id, stage, model, worker, prompt_tokens, cached_tokens, completion_tokens, seconds, created_at,
           false
    FROM refused_answers
), minutes AS (
    SELECT answered.stage, answered.model, answered.worker, date_trunc('minute', answered.created_at) AS minute,
           count(*) FILTER (WHERE is_kept) AS answers,
           sum(answered.prompt_tokens) AS prompt,
           sum(answered.cached_tokens) AS cached,
           sum(answered.completion_tokens) AS completion,
           sum(answered.seconds) AS seconds,
           -- A request was sent to the engine this long before its answer was stored.
           min(answered.created_at - make_interval(secs => answered.seconds)) AS began_at,
           max(answered.created_at) AS ended_at
    FROM answered
    JOIN samples ON samples.id = answered.sample_id
    WHERE samples.shard_id IN (SELECT id FROM shards WHERE run_id = :run_id)
    GROUP BY answered.stage, answered.model, answered.worker, minute
), spans AS (
    -- Pauses that a minute's answers do not bridge are not work: the worker was idle, or served another run.
    SELECT model, worker, unnest(range_agg(tstzrange(began_at, ended_at, '[]'))) AS span
    FROM minutes
    GROUP BY model, worker
), worked AS (
    SELECT model, worker, sum(extract(epoch FROM upper(span) - lower(span)))::float8 AS worked_seconds
    FROM spans
    GROUP BY model, worker
)
SELECT stage, model, worker,
       sum(answers)::bigint AS answers,
       sum(prompt)::bigint AS prompt,
       sum(cached)::bigint AS cached,
       sum(completion)::bigint AS completion,
       sum(seconds)::float8 AS seconds,
       min(began_at) AS began_at,
       max(ended_at) AS ended_at,
       worked_seconds,
       (SELECT gpus FROM worker_gpus WHERE owner = worker) AS gpus
FROM minutes
JOIN worked USING (model, worker)
GROUP BY stage, model, worker, worked_seconds
