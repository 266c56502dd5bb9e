-- Answers, tokens and time by stage, model and worker. Reads all results of the run.
WITH minutes AS (
    SELECT results.stage, results.model, results.worker, date_trunc('minute', results.created_at) AS minute,
           count(*) AS answers,
           sum(results.prompt_tokens) AS prompt,
           sum(results.cached_tokens) AS cached,
           sum(results.completion_tokens) AS completion,
           sum(results.seconds) AS seconds,
           -- A request was sent to the engine this long before its answer was stored.
           min(results.created_at - make_interval(secs => results.seconds)) AS began_at,
           max(results.created_at) AS ended_at
    FROM results
    JOIN samples ON samples.id = results.sample_id
    WHERE samples.shard_id IN (SELECT id FROM shards WHERE run_id = :run_id)
    GROUP BY results.stage, results.model, results.worker, minute
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
