-- Claims of the chosen captions that were asked of the media one by one, and what that took. Reads all results of the run.
SELECT count(*) FILTER (WHERE results.checks -> 'kept' IS NOT NULL) AS captions,
       count(*) FILTER (WHERE (results.checks ->> 'is_rewritten')::boolean) AS rewritten,
       coalesce(sum((results.checks ->> 'kept')::bigint), 0)::bigint AS kept,
       coalesce(sum((results.checks ->> 'unsure')::bigint), 0)::bigint AS unsure,
       coalesce(sum((results.checks ->> 'dropped')::bigint), 0)::bigint AS dropped,
       coalesce(sum(results.prompt_tokens) FILTER (WHERE results.agent = 'verifier'), 0)::bigint AS prompt,
       coalesce(sum(results.cached_tokens) FILTER (WHERE results.agent = 'verifier'), 0)::bigint AS cached,
       coalesce(sum(results.completion_tokens) FILTER (WHERE results.agent = 'verifier'), 0)::bigint AS completion
FROM results
JOIN samples ON samples.id = results.sample_id
WHERE samples.shard_id IN (SELECT id FROM shards WHERE run_id = :run_id)
  AND results.stage = 'summarize'
  AND results.candidate = samples.candidate
