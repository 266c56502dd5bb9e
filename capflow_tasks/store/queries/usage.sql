-- Answers, tokens and time by stage, model and worker. Reads all results of the run.
SELECT results.stage, results.model, results.worker,
       count(*) AS answers,
       sum(results.prompt_tokens)::bigint AS prompt,
       sum(results.cached_tokens)::bigint AS cached,
       sum(results.completion_tokens)::bigint AS completion,
       sum(results.seconds)::float8 AS seconds,
       -- A request was sent to the engine this long before its answer was stored.
       min(results.created_at - make_interval(secs => results.seconds)) AS began_at,
       max(results.created_at) AS ended_at
FROM results
JOIN samples ON samples.id = results.sample_id
WHERE samples.shard_id IN (SELECT id FROM shards WHERE run_id = :run_id)
GROUP BY results.stage, results.model, results.worker
