-- Captions that were written again: samples and tokens by candidate, with those of the judges. Reads all results.
SELECT results.candidate,
       count(DISTINCT results.sample_id) AS samples,
       sum(results.prompt_tokens)::bigint AS prompt,
       sum(results.cached_tokens)::bigint AS cached,
       sum(results.completion_tokens)::bigint AS completion
FROM results
JOIN samples ON samples.id = results.sample_id
WHERE samples.shard_id IN (SELECT id FROM shards WHERE run_id = :run_id) AND results.candidate > 1
GROUP BY results.candidate
ORDER BY results.candidate
